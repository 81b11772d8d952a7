//! Parses Redis URLs. An error names the wrong part, but never repeats any text of the URL, because
//! each part may be a piece of an unencoded password.

use std::path::PathBuf;

use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo};

const TCP_FORM: &str = "redis://user:password@host:6379/0, or with TLS rediss://user:password@host:6379/0";
const UNIX_FORM: &str = "unix:///run/redis.sock?db=0&user=USER&pass=PASSWORD";
const ENCODING: &str = "in a user or password, write `/` as %2F, `?` as %3F, `#` as %23, `@` as %40 and `%` as %25";

/// A Redis URL that is not valid.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot use the Redis URL: {what}; use a URL such as {form}")]
pub struct UrlError {
    /// The part that is wrong.
    pub(super) what: String,
    /// An example of the right form.
    pub(super) form: &'static str,
}

/// A parsed URL.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Url {
    pub(super) address: Address,
    /// Whether the scheme asks for TLS.
    pub(super) tls: bool,
    pub(super) login: Login,
}

/// The address of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Address {
    Tcp { host: String, port: u16 },
    Unix(PathBuf),
}

/// User, password and database.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Login {
    pub(super) user: Option<String>,
    pub(super) password: Option<String>,
    pub(super) database: u32,
}

impl Url {
    /// Parses a URL.
    ///
    /// # Errors
    /// The part of the URL that is wrong.
    pub(super) fn parse(text: &str) -> Result<Self, UrlError> {
        let Some((scheme, rest)) = text.trim().split_once("://") else {
            return Err(tcp_error("it does not start with a scheme and `://`"));
        };
        match scheme.to_ascii_lowercase().as_str() {
            "redis" | "valkey" => parse_tcp(rest, false),
            "rediss" | "valkeys" => parse_tcp(rest, true),
            "unix" | "redis+unix" | "valkey+unix" => parse_unix(rest),
            _ => Err(tcp_error(
                "its scheme is none of redis, rediss, redis+sentinel, rediss+sentinel, redis+cluster, rediss+cluster, \
                 valkey, valkeys, unix and redis+unix",
            )),
        }
    }
}

/// Splits a URL with several servers, such as `rediss+sentinel://`. Returns the scheme for one of
/// them, and what follows; `None` if the URL has another scheme.
pub(super) fn split_scheme<'a>(text: &'a str, kind: &str) -> Option<(&'static str, &'a str)> {
    let (scheme, rest) = text.trim().split_once("://")?;
    let scheme = scheme.to_ascii_lowercase();
    match scheme.strip_suffix(kind)? {
        "redis+" | "valkey+" => Some(("redis", rest)),
        "rediss+" | "valkeys+" => Some(("rediss", rest)),
        _ => None,
    }
}

/// Splits `user:password@hosts`. The first part includes the `@`, or is empty.
pub(super) fn split_authority(authority: &str) -> (&str, &str) {
    authority.split_at(authority.rfind('@').map_or(0, |at| at + 1))
}

/// Parses the addresses of several servers. `role` and `form` are for errors.
pub(super) fn server_list(
    hosts: &str,
    default_port: u16,
    role: &str,
    form: &'static str,
) -> Result<Vec<(String, u16)>, UrlError> {
    let server = |place: &str| {
        let place = place.trim();
        let has_port = place.rsplit_once(':').is_some_and(|(host, _)| !host.starts_with('[') || host.ends_with(']'));
        match Url::parse(&format!("redis://{place}")).map(|url| url.address) {
            Ok(Address::Tcp { host, port }) => Ok((host, if has_port { port } else { default_port })),
            Ok(Address::Unix(_)) => Err(UrlError { what: format!("{role} has a host and a port"), form }),
            Err(UrlError { what, .. }) => Err(UrlError { what: format!("for {role}: {what}"), form }),
        }
    };
    hosts.split(',').map(server).collect()
}

fn parse_tcp(rest: &str, tls: bool) -> Result<Url, UrlError> {
    // The redis crate is built without TLS, and would refuse the scheme `rediss`.
    let url = redis::parse_redis_url(&format!("redis://{rest}")).ok_or_else(|| authority_error(rest))?;
    if url.host_str().is_none_or(str::is_empty) || url.port() == Some(0) {
        return Err(authority_error(rest));
    }
    if url.fragment().is_some() {
        return Err(tcp_error(format!("it has a `#`; {ENCODING}")));
    }
    if url.query_pairs().any(|(name, _)| name != "protocol") {
        return Err(tcp_error(format!("it has an unknown parameter after a `?`; {ENCODING}")));
    }
    let database = database(url.path().trim_matches('/'), TCP_FORM)?;
    let info = url.into_connection_info().map_err(|error| {
        tcp_error(match error.to_string() {
            text if text.contains("wildcard") => "its host is a wildcard address, which is only valid for listening",
            text if text.contains("UTF-8") => "its decoded user or password is not UTF-8",
            _ => "a part of it is not valid",
        })
    })?;
    match info.addr() {
        ConnectionAddr::Tcp(host, port) => {
            let address = Address::Tcp { host: host.clone(), port: *port };
            Ok(Url { address, tls, login: login(&info, database) })
        }
        _ => Err(authority_error(rest)),
    }
}

fn parse_unix(rest: &str) -> Result<Url, UrlError> {
    let error = |what: &str| UrlError { what: what.into(), form: UNIX_FORM };
    if !rest.starts_with('/') {
        return Err(error("the path of its socket is not absolute; write three slashes"));
    }
    let url = redis::parse_redis_url(&format!("unix://{rest}")).ok_or_else(|| error("its path is not valid"))?;
    if url.fragment().is_some() {
        return Err(error("it has a `#`; write %23 for a `#` in the path"));
    }
    if url.query_pairs().any(|(name, _)| !["db", "user", "pass", "protocol"].contains(&&*name)) {
        return Err(error("it has an unknown parameter; only db, user and pass are supported"));
    }
    let number = url.query_pairs().find(|(name, _)| name == "db").map(|(_, number)| number.into_owned());
    let database = database(&number.unwrap_or_default(), UNIX_FORM)?;
    let info = url.into_connection_info().map_err(|_| error("its path is not valid"))?;
    match info.addr() {
        ConnectionAddr::Unix(path) => {
            Ok(Url { address: Address::Unix(path.clone()), tls: false, login: login(&info, database) })
        }
        _ => Err(error("its path is not valid")),
    }
}

fn login(info: &ConnectionInfo, database: u32) -> Login {
    let login = info.redis_settings();
    Login { user: login.username().map(Into::into), password: login.password().map(Into::into), database }
}

fn database(text: &str, form: &'static str) -> Result<u32, UrlError> {
    let wrong = |_| UrlError { what: "its database is not a number such as 0".into(), form };
    if text.is_empty() { Ok(0) } else { text.parse().map_err(wrong) }
}

/// Finds the wrong part of `user:password@host:port`.
fn authority_error(rest: &str) -> UrlError {
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let place = authority.rsplit('@').next().unwrap_or_default();
    let is_open_ipv6 = !place.starts_with('[') && place.matches(':').count() > 1;
    let port = place.rsplit_once(':').filter(|(host, _)| !host.starts_with('[') || host.ends_with(']'));
    match port {
        _ if is_open_ipv6 => tcp_error("an IPv6 address needs brackets, as in redis://[::1]:6379"),
        _ if place.is_empty() || place.starts_with(':') => tcp_error("it has no host"),
        Some((_, port)) if port.parse().is_ok_and(|port: u16| port > 0) => tcp_error("its host is not valid"),
        Some(_) => tcp_error(format!("its port is not a number from 1 to 65535; {ENCODING}")),
        None => tcp_error("its host is not valid"),
    }
}

fn tcp_error(what: impl Into<String>) -> UrlError {
    UrlError { what: what.into(), form: TCP_FORM }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(host: &str, port: u16, user: Option<&str>, password: Option<&str>, database: u32, tls: bool) -> Url {
        let login = Login { user: user.map(Into::into), password: password.map(Into::into), database };
        Url { address: Address::Tcp { host: host.into(), port }, tls, login }
    }

    #[test]
    fn urls_of_every_form_are_understood() {
        for (text, expected) in [
            ("redis://127.0.0.1", tcp("127.0.0.1", 6379, None, None, 0, false)),
            ("redis://host:1/", tcp("host", 1, None, None, 0, false)),
            ("REDIS://host:65535/15", tcp("host", 65535, None, None, 15, false)),
            ("rediss://:pw@host:6380/2", tcp("host", 6380, None, Some("pw"), 2, true)),
            ("valkey://me:pw@host", tcp("host", 6379, Some("me"), Some("pw"), 0, false)),
            ("valkeys://host", tcp("host", 6379, None, None, 0, true)),
            ("redis://[::1]:7000/1", tcp("::1", 7000, None, None, 1, false)),
            (
                "redis://a%40b:p%2F%3F%23%25%3A%20%C3%A4+@host",
                tcp("host", 6379, Some("a@b"), Some("p/?#%: ä+"), 0, false),
            ),
            ("redis://:a@b:c!$&'()*,;=~@host", tcp("host", 6379, None, Some("a@b:c!$&'()*,;=~"), 0, false)),
            ("redis://host?protocol=resp3", tcp("host", 6379, None, None, 0, false)),
        ] {
            assert_eq!(Url::parse(text), Ok(expected), "{text}");
        }
        let unix = Url::parse("redis+unix:///run/a%20b.sock?db=3&user=me&pass=p%26%2B").expect("valid");
        let login = Login { user: Some("me".into()), password: Some("p&+".into()), database: 3 };
        assert_eq!(unix, Url { address: Address::Unix("/run/a b.sock".into()), tls: false, login });
        assert_eq!(Url::parse("unix:///r.sock").expect("valid").address, Address::Unix("/r.sock".into()));
    }

    #[test]
    fn of_a_wrong_url_the_wrong_part_is_named_and_nothing_shown() {
        for (text, part) in [
            ("", "scheme"),
            ("SECRET:6379", "scheme"),
            ("http://u:SECRET@host", "scheme"),
            ("redis-sentinel://:SECRET@a:1,b:2/x", "scheme"),
            ("redis://", "no host"),
            ("redis://:SECRET@:6379", "no host"),
            ("redis://u:SECRET@host:port", "port"),
            ("redis://u:SECRET@host:65536", "port"),
            ("redis://u:SECRET@host:0", "port"),
            ("redis://u:SEC/RET@host", "write `/` as %2F"),
            ("redis://u:SEC#RET@host", "write `/` as %2F"),
            ("redis://host#SECRET", "it has a `#`"),
            ("redis://host?SECRET=1", "after a `?`"),
            ("redis://::1:6379", "needs brackets"),
            ("redis://[::1:6379", "host"),
            ("redis://0.0.0.0", "only valid for listening"),
            ("redis://u:SECRET@host/a", "database"),
            ("redis://host/-1", "database"),
            ("redis://host/0/1", "database"),
            ("redis://u:%FFSECRET@host", "UTF-8"),
            ("unix://r.sock", "three slashes"),
            ("unix:///r.sock?pass=SECRET&db=x", "database"),
            ("unix:///r.sock?password=SECRET", "only db, user and pass"),
        ] {
            let error = Url::parse(text).expect_err(text).to_string();
            assert!(error.contains(part), "{text}: {error}");
            assert!(
                error.contains("use a URL such as redis://") || error.contains("use a URL such as unix:///"),
                "{error}"
            );
            assert!(!error.contains("SEC") && !error.contains("RET"), "{error}");
        }
    }
}
