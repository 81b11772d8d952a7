//! `GET /ws` and `GET /events`: checks what is asked, joins the channels, and sends the handshake to the connection that the
//! request came on. The response that a route returns then is the head of what the subscriber gets.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures::future::try_join_all;
use hyper::header::{
    CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderMap, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_PROTOCOL,
    TRANSFER_ENCODING, UPGRADE,
};
use hyper::{StatusCode, Version};
use warp::reply::Response;

use super::credentials;
use super::error::ApiError;
use super::handshake::{self, HandshakeError};
use super::query::Query;
use crate::access::origin::OriginCheck;
use crate::access::{Action, Credentials, Permissions};
use crate::app::App;
use crate::broker::{BrokerError, RequestSize};
use crate::channel::ChannelName;
use crate::delivery::encoding::{
    BARE_EVENTS, BARE_MULTI_CHANNEL_EVENTS, EVENTS, Encoding, MULTI_CHANNEL_EVENTS, WEBSOCKET_JSON, WEBSOCKET_RAW,
};
use crate::delivery::subscription::{NewSubscription, Rights};
use crate::delivery::task::{AwaitedChannel, Channels, Handshake};
use crate::hub::Membership;
use crate::hub::topic::Start;
use crate::transport::address::ClientAddress;
use crate::transport::admission::{AddressClaim, Charge};

/// How long joining a channel may take: a round trip or two to Redis, or a Redis that is coming back.
const JOIN_TIMEOUT: Duration = Duration::from_secs(5);

/// The way from a route to the connection that its request came on; among the request's extensions.
#[derive(Clone)]
pub struct HandshakeSender(Arc<Slot>);

struct Slot {
    client: ClientAddress,
    version: Version,
    sent: OnceLock<Handshake>,
}

impl HandshakeSender {
    /// For a request of this client, in this version of HTTP.
    pub fn new(client: ClientAddress, version: Version) -> Self {
        Self(Arc::new(Slot { client, version, sent: OnceLock::new() }))
    }

    /// The client that asks.
    pub fn client(&self) -> ClientAddress {
        self.0.client
    }

    /// Whether the client understands chunks: HTTP/1.0 has none.
    fn takes_chunks(&self) -> bool {
        self.0.version > Version::HTTP_10
    }

    /// Counts a client for its address. One that connects directly was counted when it was accepted.
    fn claim(&self, app: &App) -> Result<Option<AddressClaim>, ApiError> {
        let client = self.0.client;
        if client.proxied { Ok(Some(app.admission.claim(client)?)) } else { Ok(None) }
    }

    /// Charges a client's address for the channels that nobody here has subscribed to yet: Redis must be asked for each.
    fn charge_new_channels(&self, app: &App, channels: &[ChannelName]) -> Result<(), ApiError> {
        let new = app.hub.count_new(channels);
        if new == 0 { Ok(()) } else { Ok(app.admission.charge(Charge::NewChannels, self.0.client, new)?) }
    }

    /// Sends; called once for a request.
    fn send(&self, handshake: Handshake) {
        let _ = self.0.sent.set(handshake);
    }

    /// Sends that the client is to be told an error on its stream, behind this head, and closed.
    fn refuse(&self, encoding: &'static Encoding, error: ApiError, mut head: Response) -> Response {
        let channels = Channels::Refused(error.close());
        self.send(Handshake { head: Vec::new(), encoding, channels, holds_for: None, claim: None });
        head.extensions_mut().insert(error.into_problem());
        head
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
    credentials: Credentials,
    sender: HandshakeSender,
) -> Response {
    let is_page = matches!(credentials.origin, OriginCheck::Trusted | OriginCheck::Allowed);
    match try_websocket(&app, &Query::parse(&query), &headers, credentials, &sender).await {
        Ok(response) => response,
        Err(error) => match handshake::accept(&headers) {
            // A page can't see the status of a handshake: it is told by the code and the reason of a close.
            Ok(accept) if is_page => sender.refuse(&WEBSOCKET_RAW, error, websocket_head(&accept, &headers)),
            _ => error.into_response(),
        },
    }
}

async fn try_websocket(
    app: &Arc<App>,
    query: &Query,
    headers: &HeaderMap,
    credentials: Credentials,
    sender: &HandshakeSender,
) -> Result<Response, ApiError> {
    let claim = sender.claim(app)?;
    let channels = query.channels(app)?;
    let permissions = credentials::authorize(app, credentials, query, &channels, Action::Subscribe).await?;
    let starts = query.starts(&channels)?;
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
    sender.charge_new_channels(app, &channels)?;
    let wanted = Wanted { channels, starts, permissions };
    let channels = Channels::Joined(wanted.join(app).await?);
    sender.send(Handshake { head: Vec::new(), encoding, channels, holds_for: wanted.permissions.holds_for(), claim });
    Ok(websocket_head(&accept, headers))
}

/// The head that ends a WebSocket handshake.
fn websocket_head(accept: &str, request: &HeaderMap) -> Response {
    let mut response = Response::new(Vec::new().into());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    // Base64 is always a valid header value.
    headers.extend(HeaderValue::from_str(accept).map(|accept| (SEC_WEBSOCKET_ACCEPT, accept)));
    headers.extend(handshake::subprotocol(request).map(|chosen| (SEC_WEBSOCKET_PROTOCOL, chosen)));
    response
}

/// Answers `GET /events`.
pub async fn events(
    app: Arc<App>,
    query: String,
    headers: HeaderMap,
    credentials: Credentials,
    sender: HandshakeSender,
) -> Response {
    match try_events(&app, &Query::parse(&query), &headers, credentials, &sender).await {
        Ok(response) => response,
        // At a status other than 200 `EventSource` gives up for good, whatever `Retry-After` says: what passes is told on the
        // stream, with the time to come back after.
        Err(error) if error.is_passing() => {
            let chunked = sender.takes_chunks();
            sender.refuse(events_encoding(false, chunked), error, events_head(chunked))
        }
        Err(error) => error.into_response(),
    }
}

async fn try_events(
    app: &Arc<App>,
    query: &Query,
    headers: &HeaderMap,
    credentials: Credentials,
    sender: &HandshakeSender,
) -> Result<Response, ApiError> {
    let claim = sender.claim(app)?;
    let channels = query.channels(app)?;
    let permissions = credentials::authorize(app, credentials, query, &channels, Action::Subscribe).await?;
    let starts = query.event_starts(&channels, headers.get("last-event-id").map(HeaderValue::as_bytes))?;
    let encoding = events_encoding(channels.len() > 1, sender.takes_chunks());
    sender.charge_new_channels(app, &channels)?;
    let wanted = Wanted { channels, starts, permissions };
    let holds_for = wanted.permissions.holds_for();
    let channels = match wanted.join(app).await {
        Ok(joined) => Channels::Joined(joined),
        Err(JoinError::Broker(BrokerError::Unavailable(why))) => {
            tracing::debug!(why, "a subscriber waits for the broker");
            Channels::Awaited(wanted.awaited())
        }
        Err(error) => return Err(error.into()),
    };
    sender.send(Handshake { head: Vec::new(), encoding, channels, holds_for, claim });
    Ok(events_head(sender.takes_chunks()))
}

fn events_encoding(several: bool, chunked: bool) -> &'static Encoding {
    match (several, chunked) {
        (false, true) => &EVENTS,
        (true, true) => &MULTI_CHANNEL_EVENTS,
        (false, false) => &BARE_EVENTS,
        (true, false) => &BARE_MULTI_CHANNEL_EVENTS,
    }
}

/// The head of an event stream.
fn events_head(chunked: bool) -> Response {
    let mut response = Response::new(Vec::new().into());
    let headers = response.headers_mut();
    // Some clients take a stream that does not name it for Latin-1.
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    // A proxy that compresses would hold events back.
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, no-transform"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    if chunked {
        headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    // The connection is the subscriber's alone: no other request is read on it.
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    response
}

/// What a client asks for and is allowed.
struct Wanted {
    channels: Vec<ChannelName>,
    /// A start for each.
    starts: Vec<Start>,
    permissions: Permissions,
}

/// Why channels were not joined.
enum JoinError {
    Draining,
    Broker(BrokerError),
}

impl From<JoinError> for ApiError {
    fn from(error: JoinError) -> Self {
        match error {
            JoinError::Draining => {
                let message = "this instance is stopping; connect again";
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "draining", message)
            }
            JoinError::Broker(error) => error.into(),
        }
    }
}

impl Wanted {
    fn rights(&self, channel: &ChannelName) -> Rights {
        Rights { publish: self.permissions.check(channel, Action::Publish).is_ok() }
    }

    /// Joins the channels.
    async fn join(&self, app: &App) -> Result<Vec<NewSubscription>, JoinError> {
        if app.drain.is_draining() {
            return Err(JoinError::Draining);
        }
        let size = RequestSize::of(self.channels.len());
        let joined = try_join_all(self.channels.iter().map(|channel| app.hub.join(channel, size)));
        let memberships = tokio::time::timeout(JOIN_TIMEOUT, joined)
            .await
            .unwrap_or_else(|_| Err(BrokerError::Unavailable("no subscription in time".into())))
            .inspect_err(|error| {
                if matches!(error, BrokerError::ChannelRefused(_)) {
                    app.metrics.count_refused("channel");
                }
            })
            .map_err(JoinError::Broker)?;
        let subscription = |(membership, start): (Membership, &Start)| {
            let rights = self.rights(&membership.topic().channel);
            NewSubscription { membership, start: *start, rights }
        };
        Ok(memberships.into_iter().zip(&self.starts).map(subscription).collect())
    }

    /// The channels, to be joined when the broker is there.
    fn awaited(self) -> Vec<AwaitedChannel> {
        let rights: Vec<_> = self.channels.iter().map(|channel| self.rights(channel)).collect();
        let channels = self.channels.into_iter().zip(self.starts).zip(rights);
        channels.map(|((channel, start), rights)| AwaitedChannel { channel, start, rights }).collect()
    }
}
