//! The client's address as trusted proxies report it: `X-Forwarded-For`, or `Forwarded` (RFC 7239).
//! Each proxy appends the address from which it received the request. So the right-most hop that is
//! not a trusted proxy is the client, and a client can forge everything left of it.

use std::net::{IpAddr, SocketAddr};

use hyper::header::{FORWARDED, HeaderMap, HeaderName};

use crate::transport::address::{ClientAddress, TrustedProxies};

/// The client of a request on a connection from `peer`.
///
/// A proxy sets one of the two headers and may pass on the other as the client sent it. If a
/// request has both and they differ, livebridge believes neither, and such requests count for the
/// address of the proxy.
pub fn client_address(proxies: &TrustedProxies, peer: IpAddr, headers: &HeaderMap) -> ClientAddress {
    let peer = peer.to_canonical();
    if !proxies.trust(peer) {
        return ClientAddress { address: peer, proxied: false };
    }
    let said = |kind: &Kind| headers.contains_key(&kind.name).then(|| client_of(proxies, peer, headers, kind));
    let address = match (said(&X_FORWARDED_FOR), said(&RFC_7239)) {
        (Some(one), Some(other)) if one != other => peer,
        (Some(address), _) | (None, Some(address)) => address,
        (None, None) => peer,
    };
    ClientAddress { address, proxied: true }
}

/// The syntax of one of the two headers.
struct Kind {
    name: HeaderName,
    elements: fn(&str) -> Vec<&str>,
    hop: fn(&str) -> Option<IpAddr>,
}

const X_FORWARDED_FOR: Kind = Kind {
    name: HeaderName::from_static("x-forwarded-for"),
    elements: |line| line.split(',').collect(),
    hop: bare_hop,
};

const RFC_7239: Kind = Kind { name: FORWARDED, elements: |line| split_unquoted(line, ','), hop: forwarded_hop };

/// The right-most hop that is not a trusted proxy. Hops behind one that cannot be parsed are not
/// believed.
fn client_of(proxies: &TrustedProxies, peer: IpAddr, headers: &HeaderMap, kind: &Kind) -> IpAddr {
    let mut nearest = peer;
    let lines: Vec<_> = headers.get_all(&kind.name).iter().collect();
    for line in lines.into_iter().rev() {
        let Ok(line) = line.to_str() else { return nearest };
        for element in (kind.elements)(line).into_iter().rev() {
            match (kind.hop)(element) {
                Some(address) if proxies.trust(address) => nearest = address,
                Some(address) => return address,
                None => return nearest,
            }
        }
    }
    nearest
}

/// Splits at separators outside quotes.
fn split_unquoted(text: &str, separator: char) -> Vec<&str> {
    let (mut quoted, mut escaped) = (false, false);
    let splits = |character| {
        match character {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            _ => return !quoted && character == separator,
        }
        false
    };
    text.split(splits).collect()
}

/// An element of `X-Forwarded-For`: an address, to which some proxies add a port.
fn bare_hop(element: &str) -> Option<IpAddr> {
    let text = element.trim();
    let address = text.parse::<IpAddr>().ok().or_else(|| text.parse::<SocketAddr>().ok().map(|hop| hop.ip()));
    let bracketed = || text.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
    address.or_else(bracketed).map(|address| address.to_canonical())
}

/// An element of `Forwarded`: its `for=`, which may be quoted. `None` for `unknown` and for
/// obfuscated names.
fn forwarded_hop(element: &str) -> Option<IpAddr> {
    let pairs = split_unquoted(element, ';').into_iter().filter_map(|pair| pair.split_once('='));
    let (_, value) = pairs.into_iter().find(|(name, _)| name.trim().eq_ignore_ascii_case("for"))?;
    let value = value.trim();
    bare_hop(value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::address::parse_network;

    fn client(peer: &str, lines: &[(&'static str, &str)]) -> (String, bool) {
        let networks = ["10.0.0.0/8", "fd00::/8"].map(|text| parse_network(text).expect(text));
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, value.parse().expect("a header value"));
        }
        let proxies = TrustedProxies::new(networks.to_vec());
        let client = client_address(&proxies, peer.parse().expect(peer), &headers);
        (client.address.to_string(), client.proxied)
    }

    fn behind_proxy(name: &'static str, value: &str) -> String {
        let (address, proxied) = client("10.0.0.1", &[(name, value)]);
        assert!(proxied);
        address
    }

    #[test]
    fn nobody_else_is_believed() {
        let claims = [("x-forwarded-for", "192.0.2.1"), ("forwarded", "for=192.0.2.1")];
        assert_eq!(client("198.51.100.7", &claims), ("198.51.100.7".into(), false));
        assert_eq!(client("::ffff:198.51.100.7", &claims), ("198.51.100.7".into(), false));
        assert_eq!(client("10.0.0.1", &[]), ("10.0.0.1".into(), true));
    }

    #[test]
    fn the_right_most_hop_that_is_no_proxy_is_the_client() {
        for (value, expected) in [
            ("192.0.2.1", "192.0.2.1"),
            ("6.6.6.6, 192.0.2.1", "192.0.2.1"),
            ("6.6.6.6, 192.0.2.1, 10.0.0.9, 10.3.3.3", "192.0.2.1"),
            ("192.0.2.1:4711", "192.0.2.1"),
            ("[2001:db8::1]:80", "2001:db8::1"),
            ("2001:db8::1", "2001:db8::1"),
            ("10.0.0.5, 10.0.0.6", "10.0.0.5"),
            ("::ffff:192.0.2.1", "192.0.2.1"),
            ("\"6.6.6.6, 192.0.2.1", "192.0.2.1"),
        ] {
            assert_eq!(behind_proxy("x-forwarded-for", value), expected, "{value}");
        }
        let two_lines = [("x-forwarded-for", "6.6.6.6"), ("x-forwarded-for", "192.0.2.1, 10.0.0.2")];
        assert_eq!(client("10.0.0.1", &two_lines).0, "192.0.2.1");
    }

    #[test]
    fn behind_a_hop_that_cannot_be_read_nothing_is_believed() {
        for value in ["192.0.2.1, unknown", "", "192.0.2.1,", "192.0.2.1, 300.1.1.1", "x", "192.0.2.1, 1.2.3.4 5"] {
            assert_eq!(behind_proxy("x-forwarded-for", value), "10.0.0.1", "{value:?}");
        }
        assert_eq!(behind_proxy("x-forwarded-for", "192.0.2.1, unknown, 10.0.0.7"), "10.0.0.7");
    }

    #[test]
    fn forwarded_is_read_as_rfc_7239_writes_it() {
        for (value, expected) in [
            ("for=192.0.2.60;proto=http;by=203.0.113.43", "192.0.2.60"),
            ("For=\"[2001:db8:cafe::17]:4711\"", "2001:db8:cafe::17"),
            ("for=6.6.6.6, for=192.0.2.60", "192.0.2.60"),
            ("for=192.0.2.60;host=\"a,b;for=6.6.6.6\"", "192.0.2.60"),
            ("host=\"\\\"\";for=192.0.2.60", "192.0.2.60"),
            ("for=192.0.2.60, for=\"10.0.0.3:99\"", "192.0.2.60"),
            ("for=192.0.2.60, for=_hidden", "10.0.0.1"),
            ("for=192.0.2.60, for=unknown", "10.0.0.1"),
            ("proto=http", "10.0.0.1"),
        ] {
            assert_eq!(behind_proxy("forwarded", value), expected, "{value}");
        }
    }

    #[test]
    fn two_headers_that_differ_are_both_disbelieved() {
        let differ = [("x-forwarded-for", "192.0.2.1"), ("forwarded", "for=6.6.6.6")];
        assert_eq!(client("10.0.0.1", &differ), ("10.0.0.1".into(), true));
        let agree = [("x-forwarded-for", "192.0.2.1"), ("forwarded", "for=192.0.2.1")];
        assert_eq!(client("10.0.0.1", &agree).0, "192.0.2.1");
    }
}
