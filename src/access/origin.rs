//! Checks the origins of web pages (RFC 6454) against an allow-list or, without one, against the
//! `Host` of the request. `http/cors.rs` writes the response headers.

use std::fmt;

/// The result of checking the `Origin` header of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum OriginCheck {
    /// No `Origin` header: the client is not a browser, or the page sent a same-origin GET.
    #[default]
    Absent,
    /// A listed origin or the same origin. Cookies are accepted.
    Trusted,
    /// Another origin, allowed by `*`. Cookies are not accepted.
    Allowed,
    /// An origin that is not allowed.
    Refused,
}

/// The allow-list of origins.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Origins {
    listed: Vec<String>,
    any: bool,
}

/// A string that is not an origin.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an origin; write it as https://app.example.com, with :PORT where it has one, or * for any")]
pub struct OriginError(String);

impl Origins {
    /// Parses a list of origins: each `scheme://host[:port]` or `*`. An empty list allows only the
    /// same origin.
    ///
    /// # Errors
    /// [`OriginError`] for the first string that is not an origin.
    pub fn new(written: &[String]) -> Result<Self, OriginError> {
        let mut origins = Self::default();
        for text in written.iter().map(|text| text.trim()).filter(|text| !text.is_empty()) {
            if text == "*" {
                origins.any = true;
                continue;
            }
            let origin = normal(text).filter(|(scheme, _)| *scheme == "http" || *scheme == "https");
            let (scheme, authority) = origin.ok_or_else(|| OriginError(text.to_owned()))?;
            origins.listed.push(format!("{scheme}://{authority}"));
        }
        Ok(origins)
    }

    /// Whether a list is configured, so that pages of other origins may be allowed.
    pub fn is_listed(&self) -> bool {
        self.any || !self.listed.is_empty()
    }

    /// Checks an `Origin` header. `host` is the `Host` of the request.
    pub fn check(&self, origin: Option<&str>, host: Option<&str>) -> OriginCheck {
        let Some(text) = origin else { return OriginCheck::Absent };
        // `null`, the origin of sandboxed frames and files, identifies no page.
        let Some((scheme, authority)) = normal(text) else {
            return if self.any { OriginCheck::Allowed } else { OriginCheck::Refused };
        };
        let trusted = if self.is_listed() {
            self.listed.iter().any(|listed| {
                listed.strip_prefix(scheme).and_then(|rest| rest.strip_prefix("://")) == Some(authority.as_str())
            })
        } else {
            host.is_some_and(|host| authority == without_default_port(scheme, &host.to_ascii_lowercase()))
        };
        match (trusted, self.any) {
            (true, _) => OriginCheck::Trusted,
            (false, true) => OriginCheck::Allowed,
            (false, false) => OriginCheck::Refused,
        }
    }
}

impl fmt::Display for Origins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_listed() { "the list of --allowed-origin" } else { "the same origin" })
    }
}

/// Scheme and authority in lower case, without a default port; `None` if the string is not an
/// origin.
fn normal(text: &str) -> Option<(&'static str, String)> {
    let (scheme, authority) = text.split_once("://")?;
    let scheme = ["http", "https"].into_iter().find(|known| scheme.eq_ignore_ascii_case(known))?;
    let forbidden = |character: char| !character.is_ascii_graphic() || "/?#@,*\"'\\".contains(character);
    if authority.is_empty() || authority.contains(forbidden) {
        return None;
    }
    let authority = authority.to_ascii_lowercase();
    Some((scheme, without_default_port(scheme, &authority).to_owned()))
}

fn without_default_port<'a>(scheme: &str, authority: &'a str) -> &'a str {
    let port = if scheme == "https" { ":443" } else { ":80" };
    authority.strip_suffix(port).unwrap_or(authority)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origins(list: &[&str]) -> Origins {
        Origins::new(&list.iter().map(|&text| text.to_owned()).collect::<Vec<_>>()).expect("valid origins")
    }

    #[test]
    fn without_a_list_the_origin_must_be_that_of_the_host() {
        let same = |origin: &str, host: &str| origins(&[]).check(Some(origin), Some(host));
        for (origin, host) in [
            ("http://127.0.0.1:8000", "127.0.0.1:8000"),
            ("https://Live.Example.com", "live.example.COM"),
            ("https://live.example.com", "live.example.com:443"),
            ("http://[::1]:8000", "[::1]:8000"),
        ] {
            assert_eq!(same(origin, host), OriginCheck::Trusted, "{origin} {host}");
        }
        for (origin, host) in [
            ("http://evil.example", "live.example.com"),
            ("http://live.example.com:8080", "live.example.com"),
            ("http://live.example.com.evil.example", "live.example.com"),
            ("http://live.example.com@evil.example", "live.example.com"),
            ("null", "null"),
            ("", ""),
            ("file://", ""),
        ] {
            assert_eq!(same(origin, host), OriginCheck::Refused, "{origin} {host}");
        }
        assert_eq!(origins(&[]).check(Some("http://a"), None), OriginCheck::Refused);
        assert_eq!(origins(&[]).check(None, Some("a")), OriginCheck::Absent);
    }

    #[test]
    fn with_a_list_only_what_it_names_is_trusted() {
        let list = origins(&["https://app.example.com", "http://localhost:3000"]);
        assert_eq!(list.check(Some("https://app.example.com:443"), Some("live.example.com")), OriginCheck::Trusted);
        assert_eq!(list.check(Some("http://localhost:3000"), None), OriginCheck::Trusted);
        assert_eq!(list.check(Some("http://app.example.com"), None), OriginCheck::Refused, "another scheme");
        assert_eq!(list.check(Some("https://live.example.com"), Some("live.example.com")), OriginCheck::Refused);
    }

    #[test]
    fn a_star_allows_everybody_and_trusts_nobody() {
        assert_eq!(origins(&["*"]).check(Some("https://evil.example"), None), OriginCheck::Allowed);
        assert_eq!(origins(&["*"]).check(Some("null"), None), OriginCheck::Allowed);
        assert_eq!(
            origins(&["*", "https://app.example"]).check(Some("https://app.example"), None),
            OriginCheck::Trusted
        );
    }

    #[test]
    fn what_is_no_origin_is_refused_at_the_start() {
        for text in
            ["example.com", "https://", "https://a/", "https://a.example/path", "ftp://a", "https://*.example.com"]
        {
            assert!(Origins::new(&[text.to_owned()]).is_err(), "{text}");
        }
    }
}
