//! The JSON objects that `format=json`, the events of Server-Sent Events, the history and the HTTP
//! errors share, and how JSON is read and written.

use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use crate::channel::ChannelName;
use crate::message::{Gap, Message, Position};

/// A message with its metadata.
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

/// A payload as a JSON value.
#[derive(Serialize)]
#[serde(untagged)]
pub enum Data<'a> {
    /// The payload itself, which is JSON.
    Json(&'a RawValue),
    /// Other text, as a string.
    Text(&'a str),
    /// Bytes that are not UTF-8, as a string.
    Base64(String),
}

impl<'a> Data<'a> {
    /// The payload of a message.
    pub fn of(message: &'a Message) -> Self {
        match message.text() {
            Some(text) => as_json(text).map_or(Self::Text(text), Self::Json),
            None => Self::Base64(STANDARD.encode(&message.payload)),
        }
    }

    /// How the payload is encoded in the value, if it is.
    pub fn encoding(&self) -> Option<&'static str> {
        matches!(self, Self::Base64(_)).then_some("base64")
    }
}

impl<'a> Envelope<'a> {
    /// An envelope with channel and epoch, for a stream of several channels.
    pub fn new(channel: &'a ChannelName, message: &'a Message) -> Self {
        Self {
            channel: Some(channel.as_str()),
            epoch: message.position.map(|position| position.epoch.to_string()),
            ..Self::within(message)
        }
    }

    /// An envelope without channel and epoch, for a context that states them.
    pub fn within(message: &'a Message) -> Self {
        let data = Data::of(message);
        Self { encoding: data.encoding(), ..Self::around(message, data) }
    }

    fn around(message: &'a Message, data: Data<'a>) -> Self {
        Self {
            channel: None,
            epoch: None,
            offset: message.position.map(|position| position.offset),
            key: message.key.as_deref(),
            removed: message.removed,
            data,
            encoding: None,
        }
    }
}

/// Appends [`Envelope::within`] up to its data, which the caller appends.
pub fn write_start_within(message: &Message, out: &mut Vec<u8>) {
    write(&Envelope::around(message, Data::Text("")), out);
    out.truncate(out.len() - "\"\"}".len());
}

/// The range of the JSON value in a text that holds a single value and white space.
pub fn value_within(text: &str) -> Option<Range<usize>> {
    let value = as_json(text)?.get();
    let start = value.as_ptr().addr() - text.as_ptr().addr();
    Some(start..start + value.len())
}

/// Appends the text escaped for a JSON string, without the quotes.
pub fn write_unquoted(text: &str, out: &mut Vec<u8>) {
    let mut quoted = Vec::with_capacity(text.len() + 2);
    write(&text, &mut quoted);
    out.extend_from_slice(&quoted[1..quoted.len() - 1]);
}

/// The text unchanged, if it is one JSON value, on one line or several.
fn as_json(text: &str) -> Option<&RawValue> {
    serde_json::from_str(text).ok()
}

/// The first event of a subscriber.
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
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    keyed: bool,
}

#[derive(Serialize)]
struct WirePosition {
    epoch: String,
    offset: u64,
}

impl<'a> Connected<'a> {
    /// Contains the instance and, for each channel, the position after which the subscription
    /// starts, the newest offset, and whether it is keyed.
    pub fn new(
        instance: &'a str,
        channels: impl Iterator<Item = (&'a ChannelName, Option<Position>, Option<u64>, bool)>,
    ) -> Self {
        let channel = |(channel, position, head, keyed): (&'a ChannelName, Option<Position>, _, _)| ConnectedChannel {
            channel: channel.as_str(),
            position: position.map(WirePosition::new),
            head,
            keyed,
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
    /// Describes a gap in a channel.
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

/// The notice that a message from the client was not published.
#[derive(Serialize)]
pub struct ErrorNotice<'a> {
    event: &'static str,
    code: &'a str,
    message: &'a str,
}

impl<'a> ErrorNotice<'a> {
    /// An error code with its explanation.
    pub fn new(code: &'a str, message: &'a str) -> Self {
        Self { event: "error", code, message }
    }
}

/// Appends a value as JSON.
pub fn write(value: &impl Serialize, out: &mut Vec<u8>) {
    // Writing to memory does not fail, and none of these types has a map with non-string keys or a
    // `Serialize` that fails.
    let written = serde_json::to_writer(out, value);
    debug_assert!(written.is_ok(), "{written:?}");
}

/// A value that must be a JSON object when it is read; serde would also accept an array of the
/// values of its members.
#[derive(Debug)]
pub struct Object<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OnlyMap<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for OnlyMap<T> {
            type Value = Object<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Object)
            }
        }

        deserializer.deserialize_map(OnlyMap(PhantomData))
    }
}
