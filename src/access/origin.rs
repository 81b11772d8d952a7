//! Which web pages may speak to an instance: their origin (RFC 6454), compared with an allow-list, or with the host that was
//! asked where there is none. What a browser is answered is `http/cors.rs`.

use std::fmt;

/// Where a request comes from, as far as its `Origin` says.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Page {
    /// No `Origin`: not a browser, or a browser that reads what its own page's server serves.
    #[default]
    Unnamed,
    /// A page whose origin may speak to us, and may do so with the user's cookies.
    Trusted,
    /// A page like any other, where every origin may speak to us.
    Any,
    /// A page that may not.
    Foreign,
}

/// The allow-list.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Origins {
    listed: Vec<String>,
    any: bool,
}

/// A text that is no origin.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an origin; write it as https://app.example.com, with :PORT where it has one, or * for any")]
pub struct OriginError(String);

impl Origins {
    /// A list as it is written: `scheme://host[:port]` each, or `*`. An empty one allows the same origin only.
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

    /// Whether there is a list, so that pages of other origins can be among those allowed.
    pub fn is_listed(&self) -> bool {
        self.any || !self.listed.is_empty()
    }

    /// Judges an `Origin` line. `host` is the request's `Host`.
    pub fn judge(&self, origin: Option<&str>, host: Option<&str>) -> Page {
        let Some(text) = origin else { return Page::Unnamed };
        // `null`, as of a sandboxed frame or a file, is nobody in particular.
        let Some((scheme, authority)) = normal(text) else {
            return if self.any { Page::Any } else { Page::Foreign };
        };
        let trusted = if self.is_listed() {
            self.listed.iter().any(|listed| {
                listed.strip_prefix(scheme).and_then(|rest| rest.strip_prefix("://")) == Some(authority.as_str())
            })
        } else {
            host.is_some_and(|host| authority == without_default_port(scheme, &host.to_ascii_lowercase()))
        };
        match (trusted, self.any) {
            (true, _) => Page::Trusted,
            (false, true) => Page::Any,
            (false, false) => Page::Foreign,
        }
    }
}

impl fmt::Display for Origins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_listed() { "the list of --allowed-origin" } else { "the same origin" })
    }
}

/// Scheme and authority, in small letters and without a default port; `None` if it is no origin.
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
        let same = |origin: &str, host: &str| origins(&[]).judge(Some(origin), Some(host));
        for (origin, host) in [
            ("http://127.0.0.1:8000", "127.0.0.1:8000"),
            ("https://Live.Example.com", "live.example.COM"),
            ("https://live.example.com", "live.example.com:443"),
            ("http://[::1]:8000", "[::1]:8000"),
        ] {
            assert_eq!(same(origin, host), Page::Trusted, "{origin} {host}");
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
            assert_eq!(same(origin, host), Page::Foreign, "{origin} {host}");
        }
        assert_eq!(origins(&[]).judge(Some("http://a"), None), Page::Foreign);
        assert_eq!(origins(&[]).judge(None, Some("a")), Page::Unnamed);
    }

    #[test]
    fn with_a_list_only_what_it_names_is_trusted() {
        let list = origins(&["https://app.example.com", "http://localhost:3000"]);
        assert_eq!(list.judge(Some("https://app.example.com:443"), Some("live.example.com")), Page::Trusted);
        assert_eq!(list.judge(Some("http://localhost:3000"), None), Page::Trusted);
        assert_eq!(list.judge(Some("http://app.example.com"), None), Page::Foreign, "another scheme");
        assert_eq!(list.judge(Some("https://live.example.com"), Some("live.example.com")), Page::Foreign);
    }

    #[test]
    fn a_star_allows_everybody_and_trusts_nobody() {
        assert_eq!(origins(&["*"]).judge(Some("https://evil.example"), None), Page::Any);
        assert_eq!(origins(&["*"]).judge(Some("null"), None), Page::Any);
        assert_eq!(origins(&["*", "https://app.example"]).judge(Some("https://app.example"), None), Page::Trusted);
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
