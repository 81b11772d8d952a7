//! `GET /ws` and `GET /events`: checks what is asked, joins the channels, and hands the connection over to a session.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::try_join_all;
use hyper::StatusCode;
use hyper::header::{CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderMap, HeaderValue, SEC_WEBSOCKET_ACCEPT, UPGRADE};
use warp::reply::Response;

use super::credentials;
use super::error::ApiError;
use super::query::Query;
use crate::access::{Action, Asker, Grant};
use crate::app::App;
use crate::broker::BrokerError;
use crate::channel::ChannelName;
use crate::dialect::Dialect;
use crate::dialect::events::{MultiChannelEvents, SingleChannelEvents};
use crate::dialect::json::Json;
use crate::dialect::raw::Raw;
use crate::hub::Membership;
use crate::topic::Start;
use crate::transport::connection::Permit;
use crate::transport::websocket;

/// How long joining a channel may take: a round trip or two to Redis, or a Redis that is coming back.
const JOIN_TIMEOUT: Duration = Duration::from_secs(5);

/// What a session needs to begin. Travels with the response to `edge.rs`, which takes it out once.
#[derive(Clone)]
pub struct Takeover(Arc<Mutex<Option<Subscription>>>);

/// What was asked for, checked and joined.
pub struct Subscription {
    /// What its bytes look like.
    pub dialect: &'static dyn Dialect,
    /// Which transport drives it.
    pub transport: Transport,
    /// Its channels, and where each begins.
    pub channels: Vec<(Membership, Start)>,
    /// What it may do, and for how long.
    pub permit: Permit,
}

/// What kind of connection follows the response's head.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Transport {
    /// Frames both ways.
    WebSocket,
    /// Events one way.
    Sse,
}

impl Takeover {
    fn new(subscription: Subscription) -> Self {
        Self(Arc::new(Mutex::new(Some(subscription))))
    }

    /// Takes the subscription out; there is one only the first time.
    pub fn take(&self) -> Option<Subscription> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take()
    }
}

/// Answers `GET /ws`.
pub async fn websocket(app: Arc<App>, query: String, headers: HeaderMap, asker: Asker) -> Response {
    match try_websocket(&app, &Query::parse(&query), &headers, asker).await {
        Ok(response) => response,
        Err(error) => error.into_response(),
    }
}

async fn try_websocket(app: &Arc<App>, query: &Query, headers: &HeaderMap, asker: Asker) -> Result<Response, ApiError> {
    let channels = query.channels(app)?;
    let grant = credentials::authorize(app, asker, query, &channels, Action::Subscribe).await?;
    let starts = query.starts(&channels)?;
    let dialect: &'static dyn Dialect = if query.wants_json()? { &Json } else { &Raw };
    let accept = websocket::accept(headers).map_err(|error| {
        let (status, code) = match error {
            websocket::HandshakeError::Key | websocket::HandshakeError::Body => {
                (StatusCode::BAD_REQUEST, "handshake_invalid")
            }
            _ => (StatusCode::UPGRADE_REQUIRED, "upgrade_required"),
        };
        ApiError::new(status, code, error.to_string())
    });
    let accept = match accept {
        Ok(accept) => accept,
        Err(error) => {
            // RFC 9110, 15.5.22: a 426 says what to upgrade to; RFC 6455, 4.4: which version is spoken.
            let mut response = error.into_response();
            response.headers_mut().insert(UPGRADE, HeaderValue::from_static("websocket"));
            response.headers_mut().insert("sec-websocket-version", HeaderValue::from_static("13"));
            return Ok(response);
        }
    };
    let mut response = takeover(app, dialect, Transport::WebSocket, channels, starts, &grant).await?;
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    // Base64 is always a valid header value.
    headers.extend(HeaderValue::from_str(&accept).map(|accept| (SEC_WEBSOCKET_ACCEPT, accept)));
    Ok(response)
}

/// Answers `GET /events`.
pub async fn events(app: Arc<App>, query: String, headers: HeaderMap, asker: Asker) -> Response {
    match try_events(&app, &Query::parse(&query), &headers, asker).await {
        Ok(response) => response,
        Err(error) => error.into_response(),
    }
}

async fn try_events(app: &Arc<App>, query: &Query, headers: &HeaderMap, asker: Asker) -> Result<Response, ApiError> {
    let channels = query.channels(app)?;
    let grant = credentials::authorize(app, asker, query, &channels, Action::Subscribe).await?;
    let starts = query.event_starts(&channels, headers.get("last-event-id").map(HeaderValue::as_bytes))?;
    let dialect: &'static dyn Dialect = if channels.len() == 1 { &SingleChannelEvents } else { &MultiChannelEvents };
    let mut response = takeover(app, dialect, Transport::Sse, channels, starts, &grant).await?;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // The stream ends with the connection, so it needs no framing of its own.
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    Ok(response)
}

async fn takeover(
    app: &Arc<App>,
    dialect: &'static dyn Dialect,
    transport: Transport,
    channels: Vec<ChannelName>,
    starts: Vec<Start>,
    grant: &Grant,
) -> Result<Response, ApiError> {
    if app.is_draining() {
        let message = "this instance is stopping; connect again";
        return Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "draining", message));
    }
    let joined = try_join_all(channels.iter().map(|channel| app.hub.join(channel)));
    let memberships = tokio::time::timeout(JOIN_TIMEOUT, joined)
        .await
        .unwrap_or_else(|_| Err(BrokerError::Unavailable("no subscription in time".into())))?;
    let may_publish = matches!(&channels[..], [channel] if grant.check(channel, Action::Publish).is_ok());
    let permit = Permit { holds_for: grant.holds_for(), may_publish };
    let channels = memberships.into_iter().zip(starts).collect();
    let mut response = Response::new(Vec::new().into());
    response.extensions_mut().insert(Takeover::new(Subscription { dialect, transport, channels, permit }));
    Ok(response)
}
