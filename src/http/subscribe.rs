//! `GET /ws` and `GET /events`: checks what is asked, joins the channels, and sends the handshake to the connection that the
//! request came on. The response that a route returns then is the head of what the subscriber gets.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures::future::try_join_all;
use hyper::StatusCode;
use hyper::header::{CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderMap, HeaderValue, SEC_WEBSOCKET_ACCEPT, UPGRADE};
use warp::reply::Response;

use super::credentials;
use super::error::ApiError;
use super::handshake::{self, HandshakeError};
use super::query::Query;
use crate::access::{Action, Asker, Grant};
use crate::address::ClientAddress;
use crate::admission::AddressClaim;
use crate::app::App;
use crate::broker::BrokerError;
use crate::channel::ChannelName;
use crate::delivery::encoding::{EVENTS, Encoding, MULTI_CHANNEL_EVENTS, WEBSOCKET_JSON, WEBSOCKET_RAW};
use crate::delivery::subscription::{NewSubscription, Rights};
use crate::delivery::task::Handshake;
use crate::hub::Membership;
use crate::topic::Start;

/// How long joining a channel may take: a round trip or two to Redis, or a Redis that is coming back.
const JOIN_TIMEOUT: Duration = Duration::from_secs(5);

/// The way from a route to the connection that its request came on; among the request's extensions.
#[derive(Clone)]
pub struct HandshakeSender(Arc<Slot>);

struct Slot {
    client: ClientAddress,
    sent: OnceLock<Handshake>,
}

impl HandshakeSender {
    /// For a request of this client.
    pub fn new(client: ClientAddress) -> Self {
        Self(Arc::new(Slot { client, sent: OnceLock::new() }))
    }

    /// Counts a client for its address. One that connects directly was counted when it was accepted.
    fn claim(&self, app: &App) -> Result<Option<AddressClaim>, ApiError> {
        let client = self.0.client;
        if client.proxied { Ok(Some(app.admission.claim(client)?)) } else { Ok(None) }
    }

    /// Sends; called once for a request.
    fn send(&self, handshake: Handshake) {
        let _ = self.0.sent.set(handshake);
    }

    /// What was sent, once the route has answered.
    pub fn receive(self) -> Option<Handshake> {
        // The route and its request are gone, so this is the only one.
        Arc::into_inner(self.0).and_then(|slot| slot.sent.into_inner())
    }
}

/// Answers `GET /ws`.
pub async fn websocket(
    app: Arc<App>,
    query: String,
    headers: HeaderMap,
    asker: Asker,
    sender: HandshakeSender,
) -> Response {
    match try_websocket(&app, &Query::parse(&query), &headers, asker, &sender).await {
        Ok(response) => response,
        Err(error) => error.into_response(),
    }
}

async fn try_websocket(
    app: &Arc<App>,
    query: &Query,
    headers: &HeaderMap,
    asker: Asker,
    sender: &HandshakeSender,
) -> Result<Response, ApiError> {
    let claim = sender.claim(app)?;
    let channels = query.channels(app)?;
    let grant = credentials::authorize(app, asker, query, &channels, Action::Subscribe).await?;
    let starts = query.starts(&channels, None)?;
    let encoding = if query.wants_json()? { &WEBSOCKET_JSON } else { &WEBSOCKET_RAW };
    let accept = handshake::accept(headers).map_err(|error| {
        let (status, code) = match error {
            HandshakeError::Key | HandshakeError::Body => (StatusCode::BAD_REQUEST, "handshake_invalid"),
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
    sender.send(join(app, encoding, channels, starts, &grant, claim).await?);
    let mut response = Response::new(Vec::new().into());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    // Base64 is always a valid header value.
    headers.extend(HeaderValue::from_str(&accept).map(|accept| (SEC_WEBSOCKET_ACCEPT, accept)));
    Ok(response)
}

/// Answers `GET /events`.
pub async fn events(
    app: Arc<App>,
    query: String,
    headers: HeaderMap,
    asker: Asker,
    sender: HandshakeSender,
) -> Response {
    match try_events(&app, &Query::parse(&query), &headers, asker, &sender).await {
        Ok(response) => response,
        Err(error) => error.into_response(),
    }
}

async fn try_events(
    app: &Arc<App>,
    query: &Query,
    headers: &HeaderMap,
    asker: Asker,
    sender: &HandshakeSender,
) -> Result<Response, ApiError> {
    let claim = sender.claim(app)?;
    let channels = query.channels(app)?;
    let grant = credentials::authorize(app, asker, query, &channels, Action::Subscribe).await?;
    let last_event_id = headers.get("last-event-id").map(|id| id.to_str()).transpose();
    let last_event_id = last_event_id.map_err(|_| ApiError::parameter("`Last-Event-ID` is no list of positions"))?;
    let starts = query.starts(&channels, last_event_id)?;
    let encoding = if channels.len() == 1 { &EVENTS } else { &MULTI_CHANNEL_EVENTS };
    sender.send(join(app, encoding, channels, starts, &grant, claim).await?);
    let mut response = Response::new(Vec::new().into());
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // The stream ends with the connection, so it needs no framing of its own.
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    Ok(response)
}

/// Joins the channels.
async fn join(
    app: &Arc<App>,
    encoding: &'static Encoding,
    channels: Vec<ChannelName>,
    starts: Vec<Start>,
    grant: &Grant,
    claim: Option<AddressClaim>,
) -> Result<Handshake, ApiError> {
    if app.drain.is_draining() {
        let message = "this instance is stopping; connect again";
        return Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "draining", message));
    }
    let joined = try_join_all(channels.iter().map(|channel| app.hub.join(channel)));
    let memberships = tokio::time::timeout(JOIN_TIMEOUT, joined)
        .await
        .unwrap_or_else(|_| Err(BrokerError::Unavailable("no subscription in time".into())))
        .inspect_err(|error| {
            if matches!(error, BrokerError::ChannelRefused(_)) {
                app.metrics.count_refused("channel");
            }
        })?;
    let subscription = |(membership, start): (Membership, Start)| {
        let rights = Rights { publish: grant.check(&membership.topic().channel, Action::Publish).is_ok() };
        NewSubscription { membership, start, rights }
    };
    let subscriptions = memberships.into_iter().zip(starts).map(subscription).collect();
    Ok(Handshake { head: Vec::new(), encoding, subscriptions, holds_for: grant.holds_for(), claim })
}
