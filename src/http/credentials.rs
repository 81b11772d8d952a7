//! Extracts the credentials of a request from its headers and its URL. `access.rs` decides what
//! they allow.

use hyper::header::{AUTHORIZATION, COOKIE, HOST, HeaderMap, HeaderName, HeaderValue, ORIGIN};

use super::error::ApiError;
use super::handshake;
use super::query::Query;
use crate::access::secret::Secret;
use crate::access::{Access, AccessError, Action, Credentials, Permissions};
use crate::app::App;
use crate::channel::ChannelName;

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// The credentials in the headers.
pub fn credentials(access: &Access, headers: &HeaderMap) -> Credentials {
    let text = |name: &HeaderName| headers.get(name).map(|value| value.to_str().unwrap_or(""));
    let origin = access.origins().check(text(&ORIGIN), text(&HOST));
    if access.is_open() {
        return Credentials { origin, ..Credentials::default() };
    }
    Credentials {
        bearer: headers
            .get(AUTHORIZATION)
            .and_then(bearer)
            .or_else(|| handshake::offered_token(headers).map(Secret::new)),
        query: None,
        cookie: access.cookie().and_then(|name| cookie(headers, name)),
        origin,
        says_same_origin: text(&SEC_FETCH_SITE) == Some("same-origin"),
    }
}

/// A bearer token (RFC 6750, 2.1). Other schemes, such as a password for a proxy, are ignored.
fn bearer(value: &HeaderValue) -> Option<Secret> {
    let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| Secret::new(token.trim()))
}

/// The value of a cookie (RFC 6265, 5.4). If there are several, the first one counts, because it
/// has the longest path.
fn cookie(headers: &HeaderMap, name: &str) -> Option<Secret> {
    let lines = headers.get_all(COOKIE).iter().filter_map(|line| line.to_str().ok());
    let mut pairs = lines.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(key, _)| *key == name).map(|(_, value)| Secret::new(value.trim_matches('"')))
}

/// Like [`Access::authorize`], but also accepts a token in the query. Counts denied requests.
///
/// # Errors
/// [`ApiError`] for the response.
pub async fn authorize(
    app: &App,
    credentials: Credentials,
    query: &Query,
    channels: &[ChannelName],
    action: Action,
) -> Result<Permissions, ApiError> {
    let credentials = Credentials { query: query.get("token").map(Secret::new), ..credentials };
    app.access.authorize(&credentials, channels, action).await.map_err(|error| denied(app, error))
}

/// Counts a denied request and returns its response.
pub fn denied(app: &App, error: AccessError) -> ApiError {
    let error = ApiError::from(error);
    app.metrics.count_refused(error.code);
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: &'static str, values: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(name, value.parse().expect("a header value"));
        }
        headers
    }

    #[test]
    fn a_bearer_is_taken_whatever_the_case_of_its_scheme() {
        let taken = |value: &str| headers("authorization", &[value]).get(AUTHORIZATION).and_then(bearer);
        assert_eq!(taken("Bearer abc.def-g"), Some(Secret::new("abc.def-g")));
        assert_eq!(taken("bearer  abc "), Some(Secret::new("abc")));
        assert_eq!([taken("Basic abc"), taken("Bearer"), taken("abc")], [None, None, None]);
    }

    #[test]
    fn a_cookie_is_found_among_others_by_its_whole_name() {
        let lines = ["a=1; lb-token2=no; xlb-token=no", "lb-token=\"yes\"; lb-token=later"];
        assert_eq!(cookie(&headers("cookie", &lines), "lb-token"), Some(Secret::new("yes")));
        assert_eq!(cookie(&headers("cookie", &["lb-token", "=lb-token"]), "lb-token"), None);
    }
}
