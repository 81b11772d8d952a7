//! URLs of a Redis Cluster: `redis+cluster://user:password@host:6379,host:6379`. Any of its nodes
//! is enough to find the others; user and password are for all of them.

use super::url::{Url, UrlError, server_list, split_authority, split_scheme};

const FORM: &str = "redis+cluster://user:password@host:6379,host:6379";
/// The port of a node, if the URL has none.
const DEFAULT_PORT: u16 = 6379;

/// A parsed URL.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ClusterUrl {
    /// The addresses of some nodes; at least one.
    pub(super) nodes: Vec<(String, u16)>,
    /// The first node.
    pub(super) node: Url,
}

impl ClusterUrl {
    /// Parses a URL; `None` if it has another scheme.
    ///
    /// # Errors
    /// The part of the URL that is not valid.
    pub(super) fn parse(text: &str) -> Option<Result<Self, UrlError>> {
        let (scheme, rest) = split_scheme(text, "cluster")?;
        Some(parse(scheme, rest).map_err(|UrlError { what, .. }| UrlError { what, form: FORM }))
    }
}

fn parse(scheme: &str, rest: &str) -> Result<ClusterUrl, UrlError> {
    let (authority, path) = rest.split_once(['/', '?']).unwrap_or((rest, ""));
    if !["", "0"].contains(&path) {
        return Err(UrlError { what: "a Redis Cluster has no database but 0, and no parameters".into(), form: FORM });
    }
    let (login, hosts) = split_authority(authority);
    let nodes = server_list(hosts, DEFAULT_PORT, "a node", FORM)?;
    let first = hosts.split(',').next().unwrap_or_default().trim();
    Ok(ClusterUrl { nodes, node: Url::parse(&format!("{scheme}://{login}{first}"))? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_and_login_are_understood() {
        let url = ClusterUrl::parse("redis+cluster://me:p%40w@a,b:5000,[::1]:7000").expect("a Cluster").expect("valid");
        let nodes = [("a", DEFAULT_PORT), ("b", 5000), ("::1", 7000)].map(|(host, port)| (host.to_owned(), port));
        assert_eq!(url.nodes, nodes);
        assert_eq!(url.node, Url::parse("redis://me:p%40w@a").expect("valid"));
        let secure = ClusterUrl::parse("valkeys+cluster://a/0").expect("a Cluster").expect("valid");
        assert_eq!(secure.node, Url::parse("rediss://a").expect("valid"));
        assert_eq!(ClusterUrl::parse("redis://a"), None);
    }

    #[test]
    fn of_a_wrong_url_the_wrong_part_is_named_and_nothing_shown() {
        for (text, part) in [
            ("redis+cluster://u:SECRET@", "no host"),
            ("redis+cluster://u:SECRET@a:1,b:x", "port"),
            ("redis+cluster://u:SECRET@a,", "no host"),
            ("redis+cluster://u:SECRET@a/3", "database"),
            ("redis+cluster://a?password=SECRET", "parameters"),
        ] {
            let error = ClusterUrl::parse(text).expect("a Cluster").expect_err(text).to_string();
            assert!(error.contains(part) && !error.contains("SECRET"), "{text}: {error}");
            assert!(error.contains("redis+cluster://user"), "{error}");
        }
    }
}
