//! What HTTP asks of a request and hyper leaves to its user, and that a path has one spelling. What a request means is not looked
//! at here.

use hyper::header::{EXPECT, HOST, HeaderMap, HeaderName, TRANSFER_ENCODING, UPGRADE};
use hyper::{Request, StatusCode, Version};

use super::error::ApiError;

/// The longest path that an error repeats, in bytes.
const MOST_QUOTED: usize = 100;

/// Refuses a request that others on its way may have read differently or that is meant for somebody else, and takes out what must
/// be ignored.
///
/// # Errors
/// Says which rule it breaks.
pub fn check<B>(request: &mut Request<B>) -> Result<(), ApiError> {
    let invalid = |message: String| Err(ApiError::new(StatusCode::BAD_REQUEST, "request_invalid", message));
    // CONNECT's `host:port`, and `*`: warp has no notion of them.
    if !request.uri().path().starts_with('/') {
        return invalid("the request target must be a path; this server is not a proxy".into());
    }
    check_path(request.uri().path())?;
    if request.version() < Version::HTTP_11 {
        // RFC 9110, 7.8.
        request.headers_mut().remove(UPGRADE);
        return Ok(());
    }
    // RFC 9112, 3.2.
    match request.headers().get_all(HOST).iter().count() {
        1 => check_codings(request.headers()),
        count => invalid(format!("a request must have exactly one Host header; this one has {count}")),
    }
}

/// Refuses a path with a slash at its end, which the routes would take for the path without: rules of a
/// proxy for that path would not apply to it.
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

/// Refuses a body in a transfer coding other than chunked (RFC 9112, 6.1), and an expectation other than 100-continue, which
/// hyper meets (RFC 9110, 10.1.1).
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

/// The elements of a list header, on however many lines. What is no text is an element that equals nothing.
fn elements<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let lines = headers.get_all(name).iter().map(|line| line.to_str().unwrap_or("?"));
    lines.flat_map(|line| line.split(',')).map(str::trim).filter(|element| !element.is_empty())
}
