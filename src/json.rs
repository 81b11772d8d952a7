//! The JSON objects that `format=json`, Server-Sent Events' own events, the history and the errors over HTTP share.

use std::ops::Range;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use serde_json::value::RawValue;

use crate::channel::ChannelName;
use crate::message::{Gap, Message, Position};

/// A message with all that is known of it.
#[derive(Serialize)]
pub struct Envelope<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    channel: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    epoch: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    offset: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<&'a str>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    removed: bool,
    data: Data<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    encoding: Option<&'static str>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Data<'a> {
    Json(&'a RawValue),
    Text(&'a str),
    Base64(String),
}

impl<'a> Envelope<'a> {
    /// The envelope of a message within a stream of several channels.
    pub fn new(channel: &'a ChannelName, message: &'a Message) -> Self {
        Self {
            channel: Some(channel.as_str()),
            epoch: message.position.map(|position| position.epoch.to_string()),
            ..Self::within(message)
        }
    }

    /// The envelope of a message where channel and epoch stand outside.
    pub fn within(message: &'a Message) -> Self {
        let (data, encoding) = match message.text() {
            Some(text) => (as_json(text).map_or(Data::Text(text), Data::Json), None),
            None => (Data::Base64(STANDARD.encode(&message.payload)), Some("base64")),
        };
        Self {
            channel: None,
            epoch: None,
            offset: message.position.map(|position| position.offset),
            key: message.key.as_deref(),
            removed: message.removed,
            data,
            encoding,
        }
    }
}

/// The beginning of [`Envelope::within`], up to the data.
#[derive(Serialize)]
pub struct EnvelopeStart<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    offset: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<&'a str>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    removed: bool,
}

impl<'a> EnvelopeStart<'a> {
    /// The beginning of a message's envelope.
    pub fn within(message: &'a Message) -> Self {
        let offset = message.position.map(|position| position.offset);
        Self { offset, key: message.key.as_deref(), removed: message.removed }
    }

    /// Appends it; the data follows.
    pub fn write(&self, out: &mut Vec<u8>) {
        write(self, out);
        out.pop();
        out.extend_from_slice(if out.ends_with(b"{") { b"\"data\":" } else { b",\"data\":" });
    }
}

/// Where in a text its one JSON value stands, if that is all there is beside white space.
pub fn value_within(text: &str) -> Option<Range<usize>> {
    let value = as_json(text)?.get();
    let start = value.as_ptr().addr() - text.as_ptr().addr();
    Some(start..start + value.len())
}

/// Appends what stands between the quotes of a JSON string.
pub fn write_unquoted(text: &str, out: &mut Vec<u8>) {
    let mut quoted = Vec::with_capacity(text.len() + 2);
    write(&text, &mut quoted);
    out.extend_from_slice(&quoted[1..quoted.len() - 1]);
}

/// The text as it is, if it is one JSON value on one line or several.
fn as_json(text: &str) -> Option<&RawValue> {
    serde_json::from_str(text).ok()
}

/// The first thing a subscriber is told.
#[derive(Serialize)]
pub struct Connected<'a> {
    event: &'static str,
    instance: &'a str,
    channels: Vec<ConnectedChannel<'a>>,
}

#[derive(Serialize)]
struct ConnectedChannel<'a> {
    channel: &'a str,
    #[serde(flatten)]
    position: Option<WirePosition>,
    #[serde(skip_serializing_if = "Option::is_none")]
    head: Option<u64>,
}

#[derive(Serialize)]
struct WirePosition {
    epoch: String,
    offset: u64,
}

impl<'a> Connected<'a> {
    /// Names the instance and, for each channel, the position that the subscription starts after and the newest offset.
    pub fn new(
        instance: &'a str,
        channels: impl Iterator<Item = (&'a ChannelName, Option<Position>, Option<u64>)>,
    ) -> Self {
        let channel = |(channel, position, head): (&'a ChannelName, Option<Position>, _)| ConnectedChannel {
            channel: channel.as_str(),
            position: position.map(WirePosition::new),
            head,
        };
        Self { event: "welcome", instance, channels: channels.map(channel).collect() }
    }
}

impl WirePosition {
    fn new(position: Position) -> Self {
        Self { epoch: position.epoch.to_string(), offset: position.offset }
    }
}

/// The notice that messages may be missing.
#[derive(Serialize)]
pub struct GapNotice<'a> {
    event: &'static str,
    channel: &'a str,
    #[serde(flatten)]
    position: WirePosition,
    reason: &'static str,
    message: &'static str,
}

impl<'a> GapNotice<'a> {
    /// Says where and why.
    pub fn new(channel: &'a ChannelName, gap: &Gap) -> Self {
        Self {
            event: "gap",
            channel: channel.as_str(),
            position: WirePosition::new(gap.resumes_after),
            reason: gap.reason.code(),
            message: gap.reason.explanation(),
        }
    }
}

/// The notice that what the client sent was not published.
#[derive(Serialize)]
pub struct ErrorNotice<'a> {
    event: &'static str,
    code: &'a str,
    message: &'a str,
}

impl<'a> ErrorNotice<'a> {
    /// Says what and why.
    pub fn new(code: &'a str, message: &'a str) -> Self {
        Self { event: "error", code, message }
    }
}

/// Appends a value as JSON.
pub fn write(value: &impl Serialize, out: &mut Vec<u8>) {
    // Writing to memory does not fail, and none of these types has a map with odd keys or a failing Serialize.
    let written = serde_json::to_writer(out, value);
    debug_assert!(written.is_ok(), "{written:?}");
}
