//! URLs of Sentinels: `redis+sentinel://user:password@host:26379,host:26379/MASTER/0`. User,
//! password and database are for the master, `sentinel_user` and `sentinel_password` for the
//! Sentinels.

use super::url::{Login, Url, UrlError, server_list, split_authority, split_scheme};

const FORM: &str = "redis+sentinel://user:password@host:26379,host:26379/MASTER/0\
                    ?sentinel_user=USER&sentinel_password=PASSWORD";
/// The port of a Sentinel, if the URL has none.
const DEFAULT_PORT: u16 = 26379;

/// A parsed URL.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct SentinelUrl {
    /// The addresses of the Sentinels.
    pub(super) sentinels: Vec<(String, u16)>,
    /// The login for the Sentinels.
    pub(super) login: Login,
    /// The master, with the first Sentinel's host in place of its own.
    pub(super) master: Url,
    /// The name of the master.
    pub(super) name: String,
}

impl SentinelUrl {
    /// Parses a URL; `None` if it has another scheme.
    ///
    /// # Errors
    /// The part of the URL that is not valid.
    pub(super) fn parse(text: &str) -> Option<Result<Self, UrlError>> {
        let (scheme, rest) = split_scheme(text, "sentinel")?;
        Some(parse(scheme, rest))
    }
}

fn parse(scheme: &str, rest: &str) -> Result<SentinelUrl, UrlError> {
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let (user, hosts) = split_authority(authority);
    let (name, database) = path.split_once('/').unwrap_or((path, ""));
    if name.is_empty() {
        return Err(error("it does not name the master"));
    }
    let name = percent_encoding::percent_decode_str(name).decode_utf8();
    let name = name.map_err(|_| error("the decoded name of the master is not UTF-8"))?.into_owned();
    let sentinels = server_list(hosts, DEFAULT_PORT, "a Sentinel", FORM)?;
    let first = hosts.split(',').next().unwrap_or_default();
    let master = Url::parse(&format!("{scheme}://{user}{first}/{database}"));
    // An error in the user, password or database shows the form of the Sentinel URL.
    let master = master.map_err(|UrlError { what, .. }| UrlError { what, form: FORM })?;
    Ok(SentinelUrl { sentinels, login: login(query)?, master, name })
}

fn login(query: &str) -> Result<Login, UrlError> {
    let mut login = Login::default();
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        match &*name {
            "sentinel_user" => login.user = Some(value.into_owned()),
            "sentinel_password" => login.password = Some(value.into_owned()),
            _ => return Err(error("it has an unknown parameter after a `?`")),
        }
    }
    Ok(login)
}

fn error(what: &str) -> UrlError {
    UrlError { what: what.into(), form: FORM }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> SentinelUrl {
        SentinelUrl::parse(text).expect("Sentinels").expect("valid")
    }

    #[test]
    fn sentinels_their_master_and_both_logins_are_understood() {
        let url =
            parsed("redis+sentinel://me:p%40w@a,b:5000,[::1]:26380/sheets/2?sentinel_user=s&sentinel_password=x%26y");
        let sentinels = [("a", DEFAULT_PORT), ("b", 5000), ("::1", 26380)].map(|(host, port)| (host.to_owned(), port));
        assert_eq!(url.sentinels, sentinels);
        let server = |text| Url::parse(text).expect("valid");
        assert_eq!((url.name.as_str(), url.master), ("sheets", server("redis://me:p%40w@a/2")));
        assert_eq!((url.login.user.as_deref(), url.login.password.as_deref()), (Some("s"), Some("x&y")));
        assert_eq!(parsed("rediss+sentinel://a/m%20x").master, server("rediss://a/"));
        assert_eq!(parsed("valkey+sentinel://a/m%20x").name, "m x");
        assert_eq!(SentinelUrl::parse("redis://a/m"), None);
    }

    #[test]
    fn of_a_wrong_url_the_wrong_part_is_named_and_nothing_shown() {
        for (text, part) in [
            ("redis+sentinel://u:SECRET@a:1,b:2", "does not name the master"),
            ("redis+sentinel://u:SECRET@a:1,b:x/m", "port"),
            ("redis+sentinel://u:SECRET@/m", "no host"),
            ("redis+sentinel://u:SECRET@a,/m", "no host"),
            ("redis+sentinel://a/m/SECRET", "database"),
            ("redis+sentinel://a/m?password=SECRET", "parameter"),
            ("redis+sentinel://a/m%FF", "UTF-8"),
        ] {
            let error = SentinelUrl::parse(text).expect("Sentinels").expect_err(text).to_string();
            assert!(error.contains(part) && !error.contains("SECRET"), "{text}: {error}");
            assert!(error.contains("redis+sentinel://user"), "{error}");
        }
    }
}
