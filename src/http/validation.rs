//! What HTTP asks of a request and hyper leaves to its user. What a request means is not looked at here.

use hyper::header::{HOST, UPGRADE};
use hyper::{Request, StatusCode, Version};

use super::error::ApiError;

/// Refuses a request that others on its way may have read differently or that is meant for somebody else, and takes out what must
/// be ignored.
///
/// # Errors
/// Says which rule it breaks.
pub fn check<B>(request: &mut Request<B>) -> Result<(), ApiError> {
    let invalid = |message: String| Err(ApiError::new(StatusCode::BAD_REQUEST, "request_invalid", message));
    // CONNECT's `host:port`, and `*`: warp has no notion of them.
    if !request.uri().path().starts_with('/') {
        return invalid("the target of a request is a path here; this is no proxy".into());
    }
    if request.version() < Version::HTTP_11 {
        // RFC 9110, 7.8.
        request.headers_mut().remove(UPGRADE);
        return Ok(());
    }
    // RFC 9112, 3.2.
    match request.headers().get_all(HOST).iter().count() {
        1 => Ok(()),
        count => invalid(format!("a request has one Host line, this one has {count}")),
    }
}
