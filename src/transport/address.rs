//! Client addresses: which of them count as one, which are private, and which proxies may report
//! the address of a client.

use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use ipnet::IpNet;

/// The client of a request, as far as it is known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ClientAddress {
    /// The client's own address if a trusted proxy reports it, otherwise the address of the
    /// connection.
    pub address: IpAddr,
    /// Whether the connection comes from a trusted proxy, whose headers about the client are
    /// believed.
    pub proxied: bool,
}

/// The proxies whose headers about clients are believed.
#[derive(Clone, Default, Debug)]
pub struct TrustedProxies(Vec<IpNet>);

impl TrustedProxies {
    /// Trusts the proxies in these networks.
    pub fn new(networks: Vec<IpNet>) -> Self {
        Self(networks)
    }

    /// Whether the address belongs to a trusted proxy.
    pub fn trust(&self, address: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(&address))
    }
}

/// Parses a network or a single address of a setting.
///
/// # Errors
/// A text that quotes the input and shows the expected syntax.
pub fn parse_network(text: &str) -> Result<IpNet, String> {
    IpNet::from_str(text)
        .or_else(|_| IpAddr::from_str(text).map(IpNet::from))
        .map_err(|_| format!("{text:?} is neither an address nor a network such as 10.0.0.0/8 or fd00::/8"))
}

/// The unit that limits apply to: an IPv4 address, or a /64 of IPv6, within which a host chooses
/// its addresses freely.
pub fn group(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
        v4 => v4,
    }
}

/// Whether an address is not public: loopback, a private network, or a carrier's internal network.
/// Proxies, backends and load programs have such addresses.
pub fn is_near(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => {
            let [first, second, ..] = address.octets();
            let shared = first == 100 && second & 0xC0 == 64; // RFC 6598
            address.is_loopback() || address.is_private() || address.is_link_local() || shared
        }
        IpAddr::V6(address) => address.is_loopback() || address.is_unique_local() || address.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().expect(text)
    }

    #[test]
    fn addresses_of_one_host_count_as_one() {
        assert_eq!(group(address("192.0.2.7")), address("192.0.2.7"));
        assert_eq!(group(address("::ffff:192.0.2.7")), address("192.0.2.7"));
        assert_eq!(group(address("2001:db8:1:2:aaaa::1")), group(address("2001:db8:1:2:bbbb::2")));
        assert_ne!(group(address("2001:db8:1:2::1")), group(address("2001:db8:1:3::1")));
    }

    #[test]
    fn near_is_what_the_internet_does_not_route() {
        for near in
            ["127.8.9.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.1.1", "100.64.0.1", "::1", "fd00::1"]
        {
            assert!(is_near(address(near)), "{near}");
        }
        for far in ["192.0.2.1", "172.32.0.1", "100.128.0.1", "2001:db8::1", "::ffff:8.8.8.8"] {
            assert!(!is_near(address(far)), "{far}");
        }
    }

    #[test]
    fn a_proxy_is_trusted_by_network_or_address() {
        let networks = ["10.0.0.0/8", "192.0.2.7", "fd00::/8"].map(|text| parse_network(text).expect(text));
        let proxies = TrustedProxies::new(networks.to_vec());
        for (text, trusted) in [("10.9.9.9", true), ("192.0.2.7", true), ("192.0.2.8", false), ("fd01::1", true)] {
            assert_eq!(proxies.trust(address(text)), trusted, "{text}");
        }
        assert!(parse_network("10.0.0.0/33").is_err() && parse_network("proxy").is_err());
    }
}
