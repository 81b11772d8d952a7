//! CORS headers (WHATWG Fetch, 3.2): report to browsers which pages may read a response, according
//! to the allow-list of `access/origin.rs`.

use hyper::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_METHOD,
    HeaderMap, HeaderValue, ORIGIN, VARY,
};
use hyper::{Method, StatusCode};
use warp::reply::Response;

use super::error::ApiError;
use crate::access::AccessError;
use crate::access::origin::{OriginCheck, Origins};

const METHODS: HeaderValue = HeaderValue::from_static("GET, HEAD, POST");
const REQUEST_HEADERS: HeaderValue =
    HeaderValue::from_static("Authorization, Content-Type, Idempotency-Key, Last-Event-ID, X-Request-Id");
const RESPONSE_HEADERS: HeaderValue = HeaderValue::from_static("Retry-After, WWW-Authenticate, X-Request-Id");
/// How long a browser may cache the response to a preflight, in seconds: the maximum of Chromium.
const MAX_AGE: HeaderValue = HeaderValue::from_static("7200");

/// The CORS headers of a response; none if the request has no `Origin` and no allow-list is
/// configured.
pub struct Reply {
    check: OriginCheck,
    origin: Option<HeaderValue>,
    varies: bool,
}

impl Reply {
    /// Derives them from the headers of a request and the result of its origin check.
    pub fn new(origins: &Origins, check: OriginCheck, headers: &HeaderMap) -> Self {
        let origin = headers.get(ORIGIN).cloned();
        Self { check, varies: origin.is_some() || origins.is_listed(), origin }
    }

    /// The response to a preflight request; `None` for other requests.
    pub fn preflight(&self, origins: &Origins, method: &Method, headers: &HeaderMap) -> Option<Response> {
        if method != Method::OPTIONS || self.origin.is_none() || !headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD) {
            return None;
        }
        if self.check == OriginCheck::Refused {
            return Some(self.finish(ApiError::from(AccessError::Origin(origins.to_string())).into_response()));
        }
        let mut response = Response::default();
        *response.status_mut() = StatusCode::NO_CONTENT;
        let lines = response.headers_mut();
        lines.insert(ACCESS_CONTROL_ALLOW_METHODS, METHODS);
        lines.insert(ACCESS_CONTROL_ALLOW_HEADERS, REQUEST_HEADERS);
        lines.insert(ACCESS_CONTROL_MAX_AGE, MAX_AGE);
        Some(self.finish(response))
    }

    /// Adds the CORS headers to a response.
    pub fn finish(&self, mut response: Response) -> Response {
        if !self.varies {
            return response;
        }
        let lines = response.headers_mut();
        // Caches must not serve a response for one page to another.
        lines.append(VARY, HeaderValue::from_static("Origin"));
        match (self.check, &self.origin) {
            (OriginCheck::Trusted, Some(origin)) => {
                lines.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
                lines.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
                lines.insert(ACCESS_CONTROL_EXPOSE_HEADERS, RESPONSE_HEADERS);
            }
            (OriginCheck::Allowed, Some(_)) => {
                lines.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
                lines.insert(ACCESS_CONTROL_EXPOSE_HEADERS, RESPONSE_HEADERS);
            }
            _ => {}
        }
        response
    }
}
