//! Checks that HTTP requires and that hyper leaves to its users, and that each path has only one
//! spelling. The meaning of a request is not checked here.

use hyper::header::{EXPECT, HOST, HeaderMap, HeaderName, TRANSFER_ENCODING, UPGRADE};
use hyper::{Request, StatusCode, Version};

use super::error::ApiError;

/// Maximum length of a path that an error quotes, in bytes.
const MOST_QUOTED: usize = 100;

/// Refuses a request that a proxy may have interpreted differently or that is meant for another
/// server. Removes headers that must be ignored.
///
/// # Errors
/// [`ApiError`] that names the broken rule.
pub fn check<B>(request: &mut Request<B>) -> Result<(), ApiError> {
    let invalid = |message: String| Err(ApiError::new(StatusCode::BAD_REQUEST, "request_invalid", message));
    // CONNECT's `host:port` and `*`, which warp cannot represent.
    if !request.uri().path().starts_with('/') {
        return invalid("the request target must be a path; this server is not a proxy".into());
    }
    check_path(request.uri().path())?;
    if request.version() < Version::HTTP_11 {
        // A server must ignore `Upgrade` in HTTP/1.0 (RFC 9110, 7.8).
        request.headers_mut().remove(UPGRADE);
        return Ok(());
    }
    // A request has exactly one `Host` (RFC 9112, 3.2).
    match request.headers().get_all(HOST).iter().count() {
        1 => check_codings(request.headers()),
        count => invalid(format!("a request must have exactly one Host header; this one has {count}")),
    }
}

/// Refuses a path with a trailing slash. The routes would accept it as the path without the slash,
/// and the rules of a proxy for that path would not apply.
fn check_path(path: &str) -> Result<(), ApiError> {
    let Some(without) = path.strip_suffix('/').filter(|without| !without.is_empty()) else { return Ok(()) };
    let without = without.trim_end_matches('/');
    let message = if without.is_empty() || without.len() > MOST_QUOTED {
        "no path ends with a slash; remove the slash".to_owned()
    } else {
        format!("no path ends with a slash; use {without}")
    };
    Err(ApiError::new(StatusCode::NOT_FOUND, "not_found", message))
}

/// Refuses a transfer coding other than chunked (RFC 9112, 6.1), and an expectation other than
/// 100-continue, which hyper handles (RFC 9110, 10.1.1).
fn check_codings(headers: &HeaderMap) -> Result<(), ApiError> {
    if elements(headers, &TRANSFER_ENCODING).any(|coding| !coding.eq_ignore_ascii_case("chunked")) {
        let message = "the only supported transfer coding is `chunked`; send the body uncompressed";
        return Err(ApiError::new(StatusCode::NOT_IMPLEMENTED, "encoding_unsupported", message));
    }
    if elements(headers, &EXPECT).any(|expected| !expected.eq_ignore_ascii_case("100-continue")) {
        let message = "`Expect` can only be `100-continue`; leave it out";
        return Err(ApiError::new(StatusCode::EXPECTATION_FAILED, "expectation_failed", message));
    }
    Ok(())
}

/// The elements of a list header, also if it is split into several lines. A line that is not text
/// becomes `?`, which equals no valid element.
fn elements<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let lines = headers.get_all(name).iter().map(|line| line.to_str().unwrap_or("?"));
    lines.flat_map(|line| line.split(',')).map(str::trim).filter(|element| !element.is_empty())
}
