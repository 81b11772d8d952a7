//! `POST /publish`: validates requests that publish a message to one or several channels, or a
//! batch of messages. `App::publish` hands the batch to the broker.

use std::borrow::Cow;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{Buf, Bytes, BytesMut};
use futures::{FutureExt, Stream, StreamExt};
use hyper::header::{ACCEPT_ENCODING, HeaderValue};
use hyper::{Method, Request, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use warp::reply::Response;

use super::credentials::{self, denied};
use super::error::{ApiError, close_after, json_response};
use super::query::{Query, check_key};
use crate::access::{Action, Credentials, Permissions};
use crate::app::App;
use crate::broker::Publication;
use crate::channel::ChannelName;
use crate::message::Position;
use crate::transport::address::ClientAddress;
use crate::transport::admission::Charge;
use crate::transport::byte_budget::Reservation;

/// The content types that clients use for lines of JSON; none of them is registered.
const BATCH_TYPES: [&str; 5] = [
    "application/x-ndjson",
    "application/ndjson",
    "application/jsonl",
    "application/x-jsonlines",
    "application/json-lines",
];
/// Maximum number of characters of an error message that may quote the request.
const MOST_QUOTED: usize = 200;
/// The buffer allocated for a body before any of it arrives, in bytes.
const FIRST_PIECE: usize = 16 << 10;

/// The headers that matter for publishing.
pub struct Headers {
    /// `Content-Type`.
    pub content_type: Option<String>,
    /// `Content-Encoding`.
    pub content_encoding: Option<String>,
    /// `Content-Length`.
    pub content_length: Option<usize>,
    /// `Idempotency-Key`.
    pub idempotency_key: Option<String>,
}

/// Answers a request to publish. `client` is the client whose address is charged; `None` if that
/// has no limit.
pub async fn publish(
    app: Arc<App>,
    query: String,
    headers: Headers,
    credentials: Credentials,
    client: Option<ClientAddress>,
    body: impl Stream<Item = Result<impl Buf, warp::Error>> + Unpin,
) -> Response {
    let mut is_read = headers.content_length == Some(0);
    let result = try_publish(&app, &Query::parse(&query), &headers, credentials, client, body, &mut is_read).await;
    let mut response = result.unwrap_or_else(ApiError::into_response);
    if !is_read {
        close_after(&mut response);
    }
    response
}

/// Whether [`publish`] answers this request.
pub fn is_publish<B>(request: &Request<B>) -> bool {
    request.method() == Method::POST && request.uri().path() == "/publish"
}

async fn try_publish(
    app: &App,
    query: &Query,
    headers: &Headers,
    credentials: Credentials,
    client: Option<ClientAddress>,
    body: impl Stream<Item = Result<impl Buf, warp::Error>> + Unpin,
    is_read: &mut bool,
) -> Result<Response, ApiError> {
    let coding = headers.content_encoding.as_deref().map_or("", str::trim);
    if !coding.is_empty() && !coding.eq_ignore_ascii_case("identity") {
        return Ok(refused_coding());
    }
    let kind = headers.content_type.as_deref().and_then(|kind| kind.split(';').next()).unwrap_or_default();
    let is_batch = BATCH_TYPES.iter().any(|name| kind.trim().eq_ignore_ascii_case(name));
    let (limit, what) =
        if is_batch { (app.limits.batch_bytes, "batch") } else { (app.limits.message_bytes, "message") };
    if is_batch && query.get("key").or(query.get("remove")).is_some() {
        return Err(ApiError::parameter("in a batch, set `key` and `remove` in each line, not in the URL"));
    }
    let channels = query.channels(app)?;
    // Permissions are checked before the body is read. For a batch they are checked again for each
    // line, because the lines name the channels.
    let known = if is_batch { &[] } else { channels.as_slice() };
    let permissions = credentials::authorize(app, credentials, query, known, Action::Publish).await?;
    let id = headers.idempotency_key.as_deref().map(idempotency_key).transpose()?;
    // The bytes of a body count once for each channel that it goes to.
    let copies = if is_batch { 1 } else { channels.len() };
    let charger = AddressCharger { app, client: client.filter(|_| !permissions.is_by_key()) };
    charger.charge(Charge::PublishedMessages, if is_batch { 0 } else { copies })?;
    // Held until the broker has answered.
    let mut held = Reservation::new(app.incoming.clone());
    let body = read(&charger, headers.content_length, body, Bound { what, limit, copies }, &mut held).await?;
    *is_read = true;
    permissions.check_time().map_err(|error| denied(app, error))?;
    let batch = if is_batch {
        parse_batch(app, &channels, &permissions, &body, id.as_deref())?
    } else {
        one_per_channel(query, channels, &body, id.as_ref())?
    };
    // The messages of a batch are copies of the body.
    drop(body);
    if is_batch {
        charger.charge(Charge::PublishedMessages, batch.len())?;
    }
    if app.drain.is_draining() {
        return Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "draining", "this instance is stopping; try again"));
    }
    let channels: Vec<_> = batch.iter().map(|publication| publication.channel.clone()).collect();
    let results = app.publish(batch).await;
    let mut messages = Vec::with_capacity(channels.len());
    for (index, (channel, result)) in channels.iter().zip(results).enumerate() {
        match result {
            Ok(position) => messages.push(Receipt::new(channel.as_str(), position)),
            Err(error) if is_batch => return Err(ApiError::from(error).at_line(index + 1)),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(json_response(StatusCode::OK, &Receipts { messages }))
}

/// Charges a client's address for the messages that it publishes.
struct AddressCharger<'a> {
    app: &'a App,
    /// `None` if it has no limit.
    client: Option<ClientAddress>,
}

impl AddressCharger<'_> {
    fn charge(&self, charge: Charge, amount: usize) -> Result<(), ApiError> {
        let charged = self.client.map(|client| self.app.admission.charge(charge, client, amount));
        charged.transpose().map(drop).map_err(ApiError::from)
    }
}

#[derive(Serialize)]
struct Receipts<'a> {
    messages: Vec<Receipt<'a>>,
}

#[derive(Serialize)]
struct Receipt<'a> {
    channel: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    epoch: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    offset: Option<u64>,
}

impl<'a> Receipt<'a> {
    fn new(channel: &'a str, position: Option<Position>) -> Self {
        let epoch = position.map(|position| position.epoch.to_string());
        Self { channel, epoch, offset: position.map(|position| position.offset) }
    }
}

/// Refuses a compressed body. With decompression, a small body could cost a thousand times its size
/// in CPU and memory.
fn refused_coding() -> Response {
    let message = "bodies are not decompressed: send the body uncompressed, without `Content-Encoding`";
    let error = ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "encoding_unsupported", message);
    let mut response = error.into_response();
    // RFC 9110, 15.5.16.
    response.headers_mut().insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    response
}

/// The key in an `Idempotency-Key` header: a quoted string, as its draft specifies (RFC 8941,
/// 3.3.3), or bare text.
fn idempotency_key(value: &str) -> Result<Arc<str>, ApiError> {
    let value = value.trim();
    let Some(quoted) = value.strip_prefix('"') else { return check_key(value) };
    let malformed = || {
        ApiError::parameter(
            "the `Idempotency-Key` starts with a quote but is not a quoted string: \
             end it with a quote, and escape quotes and backslashes as \\\" and \\\\",
        )
    };
    let mut key = String::with_capacity(quoted.len());
    let mut characters = quoted.chars();
    loop {
        match characters.next() {
            Some('"') => break,
            Some('\\') => match characters.next() {
                Some(escaped @ ('"' | '\\')) => key.push(escaped),
                _ => return Err(malformed()),
            },
            Some(character) => key.push(character),
            None => return Err(malformed()),
        }
    }
    if characters.next().is_some() {
        return Err(malformed());
    }
    check_key(&key)
}

/// Why a body was not read completely.
#[derive(Clone, Copy)]
enum Unread {
    TooLarge,
    TooManyCopies,
    Slow,
    Broken,
    NoRoom,
}

/// Counts a refused body, and returns an error that says how to fix it.
fn refused(app: &App, why: Unread, Bound { what, limit, .. }: Bound) -> ApiError {
    let (reason, error) = match why {
        Unread::TooLarge => {
            let message =
                format!("a {what} may have at most {limit} bytes; send less, or raise the limit of the server");
            ("body_size", ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message))
        }
        Unread::TooManyCopies => {
            let message = "the message times its channels is more than this server takes in at once: \
                           name fewer channels, or raise the server's --incoming-bytes-total";
            ("body_size", ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message))
        }
        Unread::Slow => {
            let message = format!("the body was not complete within {} s", app.limits.request_time.as_secs());
            ("body_time", ApiError::new(StatusCode::REQUEST_TIMEOUT, "body_too_slow", message))
        }
        Unread::NoRoom => {
            let message = "too many unfinished bodies; try again in a moment";
            ("incoming_bytes", ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "incoming_full", message))
        }
        Unread::Broken => {
            let message = "the body ended before it was complete";
            return ApiError::new(StatusCode::BAD_REQUEST, "body_incomplete", message);
        }
    };
    app.metrics.count_refused(reason);
    error
}

/// Runs a future with a time limit. A future that is ready at once, as for most bodies, costs no
/// timer.
async fn in_time<T>(limit: Duration, future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    match future.as_mut().now_or_never() {
        Some(output) => Some(output),
        None => Box::pin(tokio::time::timeout(limit, future)).await.ok(),
    }
}

/// The limits on the size of a body.
#[derive(Clone, Copy)]
struct Bound {
    /// The name of the body in error messages.
    what: &'static str,
    /// Maximum size in bytes.
    limit: usize,
    /// How many times its bytes count towards the budget for all bodies.
    copies: usize,
}

impl Bound {
    /// Whether a body of this length may be read. `most` is the budget for all bodies together.
    fn check(self, length: usize, most: usize) -> Result<(), Unread> {
        if length > self.limit {
            Err(Unread::TooLarge)
        } else if length.saturating_mul(self.copies) > most {
            Err(Unread::TooManyCopies)
        } else {
            Ok(())
        }
    }
}

/// Reads the body within the limits, and charges the client for it.
async fn read(
    charger: &AddressCharger<'_>,
    announced: Option<usize>,
    body: impl Stream<Item = Result<impl Buf, warp::Error>> + Unpin,
    bound: Bound,
    held: &mut Reservation,
) -> Result<Bytes, ApiError> {
    let app = charger.app;
    let refused = |why| refused(app, why, bound);
    bound.check(announced.unwrap_or(0), held.budget().limit()).map_err(refused)?;
    // Charged before the body is read, as far as its length is known. A body of unknown length is
    // refused only if the address is in debt.
    charger.charge(Charge::PublishedBytes, announced.unwrap_or(0) * bound.copies)?;
    let collected = in_time(app.limits.request_time, collect(announced, body, bound, held)).await;
    let body = collected.unwrap_or(Err(Unread::Slow)).map_err(refused)?;
    if announced.is_none() {
        charger.charge(Charge::PublishedBytes, body.len() * bound.copies)?;
    }
    Ok(body)
}

async fn collect(
    announced: Option<usize>,
    mut body: impl Stream<Item = Result<impl Buf, warp::Error>> + Unpin,
    bound: Bound,
    held: &mut Reservation,
) -> Result<Bytes, Unread> {
    // An announced length alone allocates no more than the first piece, which for most bodies is
    // the whole body.
    let mut bytes = BytesMut::with_capacity(announced.unwrap_or(0).min(FIRST_PIECE));
    while let Some(chunk) = body.next().await {
        let mut chunk = chunk.map_err(|_| Unread::Broken)?;
        let length = bytes.len() + chunk.remaining();
        bound.check(length, held.budget().limit())?;
        if !held.set(length * bound.copies) {
            return Err(Unread::NoRoom);
        }
        bytes.extend_from_slice(&chunk.copy_to_bytes(chunk.remaining()));
    }
    Ok(bytes.freeze())
}

/// One publication of the body for each channel.
fn one_per_channel(
    query: &Query,
    channels: Vec<ChannelName>,
    payload: &Bytes,
    id: Option<&Arc<str>>,
) -> Result<Vec<Publication>, ApiError> {
    let (key, remove) = query.key()?;
    let publication =
        |channel| Publication { channel, payload: payload.clone(), key: key.clone(), remove, id: id.cloned() };
    Ok(channels.into_iter().map(publication).collect())
}

/// A line of a batch.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line<'a> {
    #[serde(borrow)]
    channel: Option<Text<'a>>,
    #[serde(borrow)]
    data: &'a RawValue,
    #[serde(borrow)]
    key: Option<Text<'a>>,
    #[serde(default)]
    remove: bool,
    #[serde(borrow)]
    id: Option<Text<'a>>,
    #[serde(borrow)]
    encoding: Option<Text<'a>>,
}

/// A string that is copied only if it has escapes.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// Parses all lines of a batch. `id`, from the header, applies to each line together with the
/// number of the line.
///
/// # Errors
/// The first invalid line, with its number. Lines count from 1.
pub fn parse_batch(
    app: &App,
    fallback: &[ChannelName],
    permissions: &Permissions,
    body: &[u8],
    id: Option<&str>,
) -> Result<Vec<Publication>, ApiError> {
    let [fallback] = fallback else {
        return Err(ApiError::parameter(
            "a batch names the channel in each line; the URL may name at most one, for lines without a channel",
        ));
    };
    let mut batch = Vec::new();
    for (index, text) in body.split(|&byte| byte == b'\n').enumerate() {
        if text.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let number = index + 1;
        if batch.len() == app.limits.batch_messages {
            let most = app.limits.batch_messages;
            return Err(invalid_line(format!("a batch has at most {most} messages; send more batches")).at_line(number));
        }
        // Lines of one channel are usually adjacent, and then share one allocation of its name.
        let likely = batch.last().map_or(fallback, |last: &Publication| &last.channel);
        let mut publication = parse_line(app, fallback, likely, text).map_err(|error| error.at_line(number))?;
        let permitted = permissions.check(&publication.channel, Action::Publish);
        permitted.map_err(|error| denied(app, error).at_line(number))?;
        if let (None, Some(id)) = (&publication.id, id) {
            publication.id = Some(format!("{id}#{number}").into());
        }
        batch.push(publication);
    }
    Ok(batch)
}

fn parse_line(app: &App, fallback: &ChannelName, likely: &ChannelName, text: &[u8]) -> Result<Publication, ApiError> {
    let wrong = |error: String| {
        invalid_line(format!(
            "{error}; a line is an object with `data`, and optionally `channel`, `key`, `remove`, `id`, `encoding`"
        ))
    };
    // serde would also accept an array of the values of the members.
    if text.trim_ascii_start().first() == Some(&b'[') {
        return Err(wrong("this is an array".into()));
    }
    // The error may quote the line at any length.
    let quoted = |error: serde_json::Error| wrong(error.to_string().chars().take(MOST_QUOTED).collect());
    let line: Line<'_> = serde_json::from_slice(text).map_err(quoted)?;
    let channel = match &line.channel {
        Some(Text(name)) if name == likely.as_str() => likely.clone(),
        Some(Text(name)) => name.parse()?,
        None => fallback.clone(),
    };
    let payload = payload(line.data, line.encoding.as_ref())?;
    if payload.len() > app.limits.message_bytes {
        let message = format!("a message may have at most {} bytes", app.limits.message_bytes);
        return Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message));
    }
    let key = line.key.map(|Text(key)| check_key(&key)).transpose()?;
    if line.remove && key.is_none() {
        return Err(invalid_line("`remove` needs the `key` to remove".into()));
    }
    let id = line.id.map(|Text(id)| check_key(&id)).transpose()?;
    Ok(Publication { channel, payload, key, remove: line.remove, id })
}

/// The payload of a line: the characters of a string, or any other JSON value as written.
fn payload(data: &RawValue, encoding: Option<&Text<'_>>) -> Result<Bytes, ApiError> {
    let text = if data.get().starts_with('"') {
        serde_json::from_str::<Text<'_>>(data.get()).map_err(|error| invalid_line(error.to_string()))?.0
    } else {
        Cow::Borrowed(data.get())
    };
    match encoding.map(|Text(name)| &**name) {
        // A copy: a message may be kept for long, and must not keep the whole batch in memory.
        None => Ok(Bytes::copy_from_slice(text.as_bytes())),
        Some("base64") => STANDARD
            .decode(&*text)
            .map(Bytes::from)
            .map_err(|error| invalid_line(format!("`data` is not base64: {error}"))),
        Some(_) => Err(invalid_line("`encoding` can only be \"base64\"; leave it out for text".into())),
    }
}

fn invalid_line(message: String) -> ApiError {
    ApiError::new(StatusCode::BAD_REQUEST, "batch_invalid", message)
}
