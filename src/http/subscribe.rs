//! `GET /ws` and `GET /events`: validates the request, joins the channels, and sends the handshake
//! to the connection of the request. The response of the route becomes the head of the subscriber's
//! stream.

use std::sync::{Arc, OnceLock};

use futures::future::try_join_all;
use hyper::header::{
    CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderMap, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_EXTENSIONS,
    SEC_WEBSOCKET_PROTOCOL, TRANSFER_ENCODING, UPGRADE,
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
    BARE_EVENTS, BARE_EVENTS_JSON, BARE_MULTI_CHANNEL_EVENTS, EVENTS, EVENTS_JSON, Encoding, MULTI_CHANNEL_EVENTS,
    WEBSOCKET_JSON, WEBSOCKET_JSON_COMPRESSED, WEBSOCKET_RAW, WEBSOCKET_RAW_COMPRESSED,
};
use crate::delivery::subscription::{Attendance, NewSubscription, Rights};
use crate::delivery::task::{AwaitedChannel, Channels, Handshake};
use crate::hub::Membership;
use crate::hub::topic::Start;
use crate::presence::ClientId;
use crate::transport::address::ClientAddress;
use crate::transport::admission::AddressClaim;

/// Sends the handshake from a route to the connection of its request. It is in the extensions of
/// the request.
#[derive(Clone)]
pub struct HandshakeSender(Arc<Slot>);

struct Slot {
    client: ClientAddress,
    version: Version,
    sent: OnceLock<Handshake>,
}

impl HandshakeSender {
    /// A sender for a request of this client, with this version of HTTP.
    pub fn new(client: ClientAddress, version: Version) -> Self {
        Self(Arc::new(Slot { client, version, sent: OnceLock::new() }))
    }

    /// The client of the request.
    pub fn client(&self) -> ClientAddress {
        self.0.client
    }

    /// Whether the client understands chunked encoding, which HTTP/1.0 lacks.
    fn takes_chunks(&self) -> bool {
        self.0.version > Version::HTTP_10
    }

    /// Counts a proxied client for its address. A client that connects directly was counted when it
    /// was accepted.
    pub(super) fn claim(&self, app: &App) -> Result<Option<AddressClaim>, ApiError> {
        let client = self.0.client;
        if client.proxied { Ok(Some(app.admission.claim(client)?)) } else { Ok(None) }
    }

    /// Sends the handshake. Called once for a request.
    pub(super) fn send(&self, handshake: Handshake) {
        let _ = self.0.sent.set(handshake);
    }

    /// Refuses the request on its stream: sends `head`, the error and a close.
    pub(super) fn refuse(&self, encoding: &'static Encoding, error: ApiError, mut head: Response) -> Response {
        let channels = Channels::Refused(error.close());
        self.send(Handshake { head: Vec::new(), encoding, channels, holds_for: None, claim: None });
        head.extensions_mut().insert(error.into_problem());
        head
    }

    /// Refuses a request for a WebSocket. A page cannot see the status of the response, so it gets
    /// the error in the close frame.
    pub(super) fn refuse_websocket(
        &self,
        encoding: &'static Encoding,
        error: ApiError,
        origin: &OriginCheck,
        headers: &HeaderMap,
    ) -> Response {
        match (origin, handshake::accept(headers)) {
            (OriginCheck::Trusted | OriginCheck::Allowed, Ok(accept)) => {
                self.refuse(encoding, error, websocket_head(&accept, None, headers))
            }
            _ => error.into_response(),
        }
    }

    /// The handshake, if the route has sent one.
    pub fn receive(self) -> Option<Handshake> {
        // The route and the request are dropped by now, so this is the last reference.
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
    let origin = credentials.origin;
    let answer = try_websocket(&app, &Query::parse(&query), &headers, credentials, &sender).await;
    answer.unwrap_or_else(|error| sender.refuse_websocket(&WEBSOCKET_RAW, error, &origin, &headers))
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
    let compression = app.limits.compression.then(|| handshake::compression(headers)).flatten();
    let encoding = match (query.wants_json()?, compression.is_some()) {
        (true, true) => &WEBSOCKET_JSON_COMPRESSED,
        (true, false) => &WEBSOCKET_JSON,
        (false, true) => &WEBSOCKET_RAW_COMPRESSED,
        (false, false) => &WEBSOCKET_RAW,
    };
    let accept = match handshake::accept(headers) {
        Ok(accept) => accept,
        Err(error) => return Ok(no_handshake(&error)),
    };
    app.charge_new_channels(sender.client(), &channels)?;
    let wanted = Wanted { channels, starts, permissions };
    let channels = Channels::Joined(wanted.join(app).await?);
    sender.send(Handshake { head: Vec::new(), encoding, channels, holds_for: wanted.permissions.holds_for(), claim });
    Ok(websocket_head(&accept, compression, headers))
}

/// The response to a request for a WebSocket that is no handshake.
pub(super) fn no_handshake(error: &HandshakeError) -> Response {
    let (status, code) = match error {
        HandshakeError::Key | HandshakeError::Body => (StatusCode::BAD_REQUEST, "handshake_invalid"),
        _ => (StatusCode::UPGRADE_REQUIRED, "upgrade_required"),
    };
    // A 426 names the protocol to upgrade to (RFC 9110, 15.5.22) and the supported version (RFC
    // 6455, 4.4).
    let mut response = ApiError::new(status, code, error.to_string()).into_response();
    response.headers_mut().insert(UPGRADE, HeaderValue::from_static("websocket"));
    response.headers_mut().insert("sec-websocket-version", HeaderValue::from_static("13"));
    response
}

/// The head of the response that completes a WebSocket handshake. `compression`: the answer to the
/// client's offer.
pub(super) fn websocket_head(accept: &str, compression: Option<HeaderValue>, request: &HeaderMap) -> Response {
    let mut response = Response::new(Vec::new().into());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    // Base64 is always a valid header value.
    headers.extend(HeaderValue::from_str(accept).map(|accept| (SEC_WEBSOCKET_ACCEPT, accept)));
    headers.extend(compression.map(|compression| (SEC_WEBSOCKET_EXTENSIONS, compression)));
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
        // `EventSource` stops reconnecting at a status other than 200, whatever `Retry-After` says.
        // Temporary errors are therefore reported on the stream, with the time after which to
        // reconnect.
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
    let encoding = match (query.wants_json()?, sender.takes_chunks()) {
        (true, true) => &EVENTS_JSON,
        (true, false) => &BARE_EVENTS_JSON,
        (false, chunked) => events_encoding(channels.len() > 1, chunked),
    };
    app.charge_new_channels(sender.client(), &channels)?;
    let wanted = Wanted { channels, starts, permissions };
    let holds_for = wanted.permissions.holds_for();
    let channels = match wanted.join(app).await {
        Ok(joined) => Channels::Joined(joined),
        Err(JoinError::Broker(BrokerError::Unavailable(why))) => {
            tracing::debug!(why, "a subscriber waits for the broker");
            Channels::Awaited(wanted.awaited(app))
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

/// The head of the response of an event stream.
fn events_head(chunked: bool) -> Response {
    let mut response = Response::new(Vec::new().into());
    let headers = response.headers_mut();
    // Some clients decode a stream without a charset as Latin-1.
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    // A proxy that compresses would delay events.
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, no-transform"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    if chunked {
        headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    // The connection carries only the stream: no other request is read from it.
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    response
}

/// A validated request for a subscription.
struct Wanted {
    channels: Vec<ChannelName>,
    /// The start in each channel.
    starts: Vec<Start>,
    permissions: Permissions,
}

/// Why the client did not join its channels.
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

    /// Joins all channels.
    async fn join(&self, app: &App) -> Result<Vec<NewSubscription>, JoinError> {
        if app.drain.is_draining() {
            return Err(JoinError::Draining);
        }
        let size = RequestSize::of(self.channels.len());
        let memberships = try_join_all(self.channels.iter().map(|channel| app.hub.join(channel, size)))
            .await
            .inspect_err(|error| {
                if matches!(error, BrokerError::ChannelRefused(_)) {
                    app.metrics.count_refused("channel");
                }
            })
            .map_err(JoinError::Broker)?;
        let id = ClientId::next();
        let subscription = |(membership, start): (Membership, &Start)| {
            let rights = self.rights(&membership.topic().channel);
            let attendance = membership.topic().rule.presence.then(|| self.attendance(id));
            NewSubscription { membership, start: *start, rights, page: None, attendance }
        };
        Ok(memberships.into_iter().zip(&self.starts).map(subscription).collect())
    }

    /// The channels, to be joined when the broker is available.
    fn awaited(&self, app: &App) -> Vec<AwaitedChannel> {
        let id = ClientId::next();
        let awaited = |(channel, start): (&ChannelName, &Start)| {
            let attendance = app.hub.has_presence(channel).then(|| self.attendance(id));
            AwaitedChannel { channel: channel.clone(), start: *start, rights: self.rights(channel), attendance }
        };
        self.channels.iter().zip(&self.starts).map(awaited).collect()
    }

    /// As whom others see the client. It is not told of them.
    fn attendance(&self, id: ClientId) -> Attendance {
        Attendance { client: self.permissions.describe(id).into(), is_told: false }
    }
}
