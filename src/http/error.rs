//! Errors as clients see them: a status, a code for programs, a sentence for people.

use hyper::StatusCode;
use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use serde_json::json;
use warp::reply::Response;

use crate::access::AccessError;
use crate::access::token::TokenError;
use crate::broker::BrokerError;
use crate::channel::ChannelError;
use crate::close::{Close, Code, Refused};
use crate::hub::held_page::PageError;
use crate::transport::refusal::Refusal;

/// Why a request was not done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    /// The HTTP status.
    pub status: StatusCode,
    /// The machine-readable name.
    pub code: &'static str,
    /// What is wrong, why, and the suggested fix.
    pub message: String,
    /// In a batch: which line, from 1.
    pub line: Option<usize>,
    /// After how many seconds trying again makes sense, where it does.
    pub retry_after: Option<u16>,
}

/// What was wrong, beside the answer that says so: for the log.
#[derive(Clone, Debug)]
pub(super) struct Problem {
    /// The status of the error, also where the answer is a stream that tells it.
    pub(super) status: StatusCode,
    pub(super) code: &'static str,
    pub(super) message: String,
}

/// As large as most answers are, in bytes.
const MOST_ANSWERS: usize = 128;

/// After how many seconds to try again what failed for the broker's sake.
const RETRY_AFTER_SECONDS: u16 = 1;

impl ApiError {
    /// An error with a status, a code and a sentence.
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        let retry_after = (status == StatusCode::SERVICE_UNAVAILABLE).then_some(RETRY_AFTER_SECONDS);
        Self { status, code, message: message.into(), line: None, retry_after }
    }

    /// A parameter that can't be understood.
    pub fn parameter(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "parameter_invalid", message)
    }

    /// The same error, of a line of a batch.
    pub fn at_line(self, line: usize) -> Self {
        Self { line: Some(line), ..self }
    }

    /// The answer.
    pub fn into_response(self) -> Response {
        let mut error = json!({"code": self.code, "message": self.message});
        if let Some(line) = self.line {
            error["line"] = line.into();
        }
        let mut response = json_response(self.status, &json!({"error": error}));
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(RETRY_AFTER, seconds.into());
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if self.status == StatusCode::NOT_IMPLEMENTED {
            // The body is in a coding that is not understood.
            close_after(&mut response);
        }
        response.extensions_mut().insert(self.into_problem());
        response
    }

    /// Whether the same request may well succeed in a moment.
    pub fn is_passing(&self) -> bool {
        matches!(self.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE)
    }

    /// What a subscriber is told on its stream instead of by the status.
    pub fn close(&self) -> Close {
        let refused = match self.status {
            StatusCode::UNAUTHORIZED => Refused::Unauthorized,
            _ if self.is_passing() => Refused::ForNow(self.code),
            _ => Refused::ForGood(self.code),
        };
        Close::new(Code::Refused(refused), self.message.clone())
    }

    pub(super) fn into_problem(self) -> Problem {
        Problem { status: self.status, code: self.code, message: self.message }
    }
}

impl From<AccessError> for ApiError {
    fn from(error: AccessError) -> Self {
        let (status, code) = match error {
            AccessError::Origin(_) => (StatusCode::FORBIDDEN, "origin_not_allowed"),
            AccessError::Forbidden(..) | AccessError::Useless(_) => (StatusCode::FORBIDDEN, "forbidden"),
            AccessError::Token(TokenError::NoKeys) => (StatusCode::SERVICE_UNAVAILABLE, "keys_unavailable"),
            _ => (StatusCode::UNAUTHORIZED, "unauthorized"),
        };
        Self::new(status, code, error.to_string())
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        let (status, code, message) = refusal.answer();
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
        Self { retry_after: Some(refusal.retry_after()), ..Self::new(status, code, message) }
    }
}

impl From<ChannelError> for ApiError {
    fn from(error: ChannelError) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "channel_invalid", error.to_string())
    }
}

impl From<BrokerError> for ApiError {
    fn from(error: BrokerError) -> Self {
        let status = match error {
            BrokerError::Unavailable(_) | BrokerError::Refused(_) => StatusCode::SERVICE_UNAVAILABLE,
            BrokerError::KeyedChannelFull(_) => StatusCode::INSUFFICIENT_STORAGE,
            BrokerError::NotKeyed => StatusCode::BAD_REQUEST,
            BrokerError::ChannelRefused(_) => StatusCode::FORBIDDEN,
            BrokerError::IdReused => StatusCode::UNPROCESSABLE_ENTITY,
        };
        Self::new(status, error.code(), error.to_string())
    }
}

impl From<PageError> for ApiError {
    fn from(error: PageError) -> Self {
        match error {
            PageError::Broker(error) => error.into(),
            PageError::OutgoingFull => Self::new(StatusCode::SERVICE_UNAVAILABLE, "outgoing_full", error.to_string()),
        }
    }
}

/// Says that the connection ends after a response (RFC 9112, 9.6), as it does where a request's body was not
/// read: a client that is not told would send its next request on it, and lose that.
pub fn close_after(response: &mut Response) {
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
}

/// A JSON answer.
pub fn json_response(status: StatusCode, body: &impl serde::Serialize) -> Response {
    let mut text = Vec::with_capacity(MOST_ANSWERS);
    crate::json::write(body, &mut text);
    text.push(b'\n');
    let mut response = Response::new(text.into());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
