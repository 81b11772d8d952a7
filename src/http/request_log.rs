//! The log entry of a request: its id, which the response contains as well, and a line about the
//! response. Query strings, headers and bodies are never logged, because they may contain secrets.

use std::cell::Cell;
use std::net::IpAddr;

use hyper::body::Incoming;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, Uri};
use percent_encoding::{CONTROLS, utf8_percent_encode};
use tracing::{Span, debug, debug_span, warn};
use warp::reply::Response;

use super::error::Problem;
use crate::app::App;
use crate::broker::Health;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Maximum length of a request id from the client, in bytes.
const MOST_ID_BYTES: usize = 64;
/// Errors with a 5xx status that are refusals and not failures: a limit was reached, the instance
/// drains, or an encoding is not supported.
const REFUSALS: [&str; 6] =
    ["server_full", "incoming_full", "outgoing_full", "draining", "keyed_channel_full", "encoding_unsupported"];

/// Generates the ids of a connection's requests.
pub(super) struct Ids(Cell<u64>);

impl Ids {
    /// Starts at a random number, so that the ids of two connections rarely coincide.
    pub(super) fn new() -> Self {
        Self(Cell::new(rand::random()))
    }

    /// The id that the request has, if it is valid; otherwise a new one.
    fn of(&self, headers: &HeaderMap) -> HeaderValue {
        match headers.get(REQUEST_ID) {
            Some(id) if is_sane(id.as_bytes()) => id.clone(),
            _ => self.next(),
        }
    }

    fn next(&self) -> HeaderValue {
        let number = self.0.get();
        self.0.set(number.wrapping_add(1));
        // Multiplication by an odd number is a bijection: consecutive ids look different and stay
        // unique.
        let mixed = number.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let digit = |place: usize| b"0123456789abcdef"[(mixed >> (60 - 4 * place)) as usize & 15];
        let digits: [u8; 16] = std::array::from_fn(digit);
        // Hexadecimal digits are always a valid header value.
        HeaderValue::from_bytes(&digits).unwrap_or(HeaderValue::from_static("-"))
    }
}

fn is_sane(id: &[u8]) -> bool {
    let sane = |byte: &u8| byte.is_ascii_alphanumeric() || b"._-".contains(byte);
    (1..=MOST_ID_BYTES).contains(&id.len()) && id.iter().all(sane)
}

/// The log entry of a request that is being answered.
pub(super) struct RequestLog {
    id: HeaderValue,
    method: Method,
    uri: Uri,
    client: IpAddr,
}

impl RequestLog {
    pub(super) fn begin(ids: &Ids, request: &Request<Incoming>, client: IpAddr) -> Self {
        let (method, uri) = (request.method().clone(), request.uri().clone());
        Self { id: ids.of(request.headers()), method, uri, client }
    }

    /// A span that adds the request to log lines; disabled if that level is off.
    pub(super) fn span(&self) -> Span {
        debug_span!("request", request = self.id(), client = %self.client)
    }

    /// Logs the response, and adds the request id to it.
    pub(super) fn answered(&self, app: &App, mut response: Response) -> Response {
        self.log(app, &response);
        response.headers_mut().insert(REQUEST_ID, self.id.clone());
        response
    }

    fn log(&self, app: &App, response: &Response) {
        // Some control characters of terminals are not ASCII, so a path may contain them unescaped.
        let path = utf8_percent_encode(self.uri.path(), CONTROLS);
        let (status, request) = (response.status().as_u16(), self.id());
        let (client, method) = (self.client, &self.method);
        let problem = response.extensions().get::<Problem>();
        if let Some(Problem { status: refused, code: reason, message: error }) = problem
            && refused.is_server_error()
            && is_failure(app, reason)
            && let Some(times) = app.failures.happened(reason)
        {
            return warn!(request, %client, %method, %path, status, reason, error, times, "a request failed");
        }
        let reason = problem.map(|problem| problem.code);
        debug!(request, %client, %method, %path, status, reason, "answered");
    }

    fn id(&self) -> &str {
        self.id.to_str().unwrap_or_default()
    }
}

/// Whether the error is logged as a failure of its own. Errors during an outage are not, because
/// the outage is already logged.
fn is_failure(app: &App, reason: &str) -> bool {
    let outage = || reason == "broker_unavailable" && app.broker.health() != Health::Up;
    !REFUSALS.contains(&reason) && !outage()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_taken_over_if_it_is_sane() {
        let of = |id: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(REQUEST_ID, HeaderValue::from_bytes(id.as_bytes()).expect("a header value"));
            Ids::new().of(&headers).to_str().map(str::to_owned).expect("visible ASCII")
        };
        for sane in ["a", "Trace-7.of_9", &"x".repeat(64)] {
            assert_eq!(of(sane), sane);
        }
        for other in ["", "a b", "a\"b", "\u{9b}31m", "é", "a,b", &"x".repeat(65)] {
            let id = of(other);
            assert!(id.len() == 16 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{other:?}: {id}");
        }
    }

    #[test]
    fn ids_differ() {
        let ids = Ids::new();
        let made: std::collections::HashSet<_> = (0..1000).map(|_| ids.next()).collect();
        assert_eq!(made.len(), 1000);
    }
}
