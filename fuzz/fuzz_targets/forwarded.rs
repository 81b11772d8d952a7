//! What proxies' header lines say of a client's address: nobody but a proxy is believed, and what a client prepends to what
//! its proxy adds changes nothing.
#![no_main]

use std::net::IpAddr;

use hyper::header::{HeaderMap, HeaderValue};
use libfuzzer_sys::fuzz_target;
use livebridge::transport::address::{TrustedProxies, parse_network};
use livebridge::http::forwarded::client_address;

const PROXY: &str = "10.0.0.1";
const CLIENT: &str = "192.0.2.7";

fuzz_target!(|input: (bool, Vec<Vec<u8>>, Vec<Vec<u8>>)| {
    let (own_line, forwarded_for, forwarded) = input;
    let networks = ["10.0.0.0/8", "fd00::/8"].map(|text| parse_network(text).expect("a network"));
    let proxies = TrustedProxies::new(networks.to_vec());
    let (proxy, client): (IpAddr, IpAddr) = (PROXY.parse().expect("one"), CLIENT.parse().expect("one"));
    let mut headers = HeaderMap::new();
    for (name, lines) in [("x-forwarded-for", &forwarded_for), ("forwarded", &forwarded)] {
        for line in lines {
            if let Ok(value) = HeaderValue::from_bytes(line) {
                headers.append(name, value);
            }
        }
    }
    let direct = client_address(&proxies, client, &headers);
    assert!(direct.address == client && !direct.proxied);
    assert!(client_address(&proxies, proxy, &headers).proxied);
    // The proxy adds whom it heard it from: a line of its own, or the end of the last.
    headers.remove("forwarded");
    let last = headers.get_all("x-forwarded-for").iter().last().cloned();
    match last.filter(|_| !own_line) {
        Some(last) => {
            let line = [last.as_bytes(), b", ", CLIENT.as_bytes()].concat();
            // A line that is no text is dropped by no proxy, and makes all of it unreadable.
            let expected = if last.to_str().is_ok() { client } else { proxy };
            let Ok(line) = HeaderValue::from_bytes(&line) else { return };
            headers.insert("x-forwarded-for", line);
            assert_eq!(client_address(&proxies, proxy, &headers).address, expected);
        }
        None => {
            headers.append("x-forwarded-for", HeaderValue::from_static(CLIENT));
            assert_eq!(client_address(&proxies, proxy, &headers).address, client);
        }
    }
});
