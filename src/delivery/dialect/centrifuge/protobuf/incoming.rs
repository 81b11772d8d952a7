//! Reads the commands of a frame: Protobuf messages, each with its length before it. What they ask
//! for is decided in the parent's `incoming`, as for JSON. The messages have no `Debug`, as some hold
//! tokens.

use std::iter;

use bytes::Bytes;
use prost::Message as _;
use serde::de::IgnoredAny;

use super::super::super::command::Command;
use super::super::incoming::{self, MOST_SUBS, Methods, command, invalid, take_all};
use crate::access::secret::Secret;
use crate::close::Close;
use crate::json::Object;

/// A command. Of methods that livebridge does not have, only the presence is read.
#[derive(prost::Message)]
#[prost(skip_debug)]
struct WireCommand {
    #[prost(uint32, tag = "1")]
    id: u32,
    #[prost(message, optional, tag = "4")]
    connect: Option<Connect>,
    #[prost(message, optional, tag = "5")]
    subscribe: Option<Subscribe>,
    #[prost(message, optional, tag = "6")]
    unsubscribe: Option<OfChannel>,
    #[prost(message, optional, tag = "7")]
    publish: Option<Publish>,
    #[prost(message, optional, tag = "8")]
    presence: Option<OfChannel>,
    #[prost(message, optional, tag = "9")]
    presence_stats: Option<OfChannel>,
    #[prost(message, optional, tag = "10")]
    history: Option<History>,
    #[prost(message, optional, tag = "11")]
    ping: Option<Unread>,
    #[prost(message, optional, tag = "12")]
    send: Option<Unread>,
    #[prost(message, optional, tag = "13")]
    rpc: Option<Unread>,
    #[prost(message, optional, tag = "14")]
    refresh: Option<Refresh>,
    #[prost(message, optional, tag = "15")]
    sub_refresh: Option<SubRefresh>,
}

/// A message whose fields are skipped.
#[derive(PartialEq, prost::Message)]
#[prost(skip_debug)]
struct Unread {}

#[derive(prost::Message)]
#[prost(skip_debug)]
struct Connect {
    #[prost(string, tag = "1")]
    token: String,
    /// The entries of a map, of which only the first are read.
    #[prost(bytes = "bytes", repeated, tag = "3")]
    subs: Vec<Bytes>,
    #[prost(string, tag = "4")]
    name: String,
}

#[derive(PartialEq, prost::Message)]
#[prost(skip_debug)]
struct Subscribe {
    #[prost(string, tag = "1")]
    channel: String,
    #[prost(string, tag = "2")]
    token: String,
    #[prost(bool, tag = "3")]
    recover: bool,
    #[prost(string, tag = "6")]
    epoch: String,
    #[prost(uint64, tag = "7")]
    offset: u64,
    #[prost(bytes = "bytes", tag = "8")]
    data: Bytes,
    #[prost(bool, tag = "11")]
    join_leave: bool,
    #[prost(message, optional, tag = "13")]
    tf: Option<Unread>,
    #[prost(int64, tag = "14")]
    flag: i64,
    #[prost(int32, tag = "15")]
    kind: i32,
    #[prost(int32, tag = "16")]
    phase: i32,
    #[prost(string, tag = "17")]
    cursor: String,
    #[prost(int32, tag = "18")]
    limit: i32,
}

#[derive(prost::Message)]
#[prost(skip_debug)]
struct SubsEntry {
    #[prost(string, tag = "1")]
    channel: String,
    #[prost(message, optional, tag = "2")]
    subscribe: Option<Subscribe>,
}

/// A request that only names a channel.
#[derive(prost::Message)]
#[prost(skip_debug)]
struct OfChannel {
    #[prost(string, tag = "1")]
    channel: String,
}

#[derive(prost::Message)]
#[prost(skip_debug)]
struct Publish {
    #[prost(string, tag = "1")]
    channel: String,
    /// A copy, as the message is read from a slice: it may be kept for long, and must not keep the whole
    /// frame in memory.
    #[prost(bytes = "bytes", tag = "2")]
    data: Bytes,
    #[prost(int32, tag = "3")]
    kind: i32,
    #[prost(string, tag = "4")]
    key: String,
    #[prost(bool, tag = "5")]
    removed: bool,
}

#[derive(prost::Message)]
#[prost(skip_debug)]
struct History {
    #[prost(string, tag = "1")]
    channel: String,
    #[prost(int32, tag = "7")]
    limit: i32,
    #[prost(message, optional, tag = "8")]
    since: Option<Position>,
    #[prost(bool, tag = "9")]
    reverse: bool,
}

#[derive(prost::Message)]
#[prost(skip_debug)]
struct Position {
    #[prost(uint64, tag = "1")]
    offset: u64,
    #[prost(string, tag = "2")]
    epoch: String,
}

#[derive(prost::Message)]
#[prost(skip_debug)]
struct Refresh {
    #[prost(string, tag = "1")]
    token: String,
}

#[derive(prost::Message)]
#[prost(skip_debug)]
struct SubRefresh {
    #[prost(string, tag = "1")]
    channel: String,
    #[prost(string, tag = "2")]
    token: String,
    #[prost(int32, tag = "3")]
    kind: i32,
}

/// Calls `take` with each command of a frame.
///
/// # Errors
/// The close for a client that sends anything else. Nothing says then which command an error
/// answers.
pub(super) fn read(message: &[u8], take: &mut dyn FnMut(Command)) -> Result<(), Close> {
    let mut rest = message;
    let commands = iter::from_fn(|| {
        if rest.is_empty() {
            return None;
        }
        let parsed = split_off(&mut rest).and_then(|bytes| Some((WireCommand::decode(bytes).ok()?, bytes.len())));
        Some(match parsed {
            Some((wire, size)) => command(wire.into(), size),
            None => Err(invalid("the frame is not made of Protobuf commands, each with its length before it")),
        })
    });
    take_all(commands, take)
}

/// Takes a message off a frame, and the length before it; `None` if the frame is shorter.
fn split_off<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = prost::decode_length_delimiter(&mut *rest).ok()?;
    rest.split_off(..length)
}

impl From<WireCommand> for Methods {
    fn from(wire: WireCommand) -> Self {
        let unread = |method: Option<Unread>| method.map(|_| IgnoredAny);
        let of_channel = |method: Option<OfChannel>| method.map(|method| Object(method.into()));
        Self {
            id: wire.id,
            connect: wire.connect.map(|connect| Object(connect.into())),
            ping: unread(wire.ping),
            subscribe: wire.subscribe.map(|subscribe| Object(subscribe.into())),
            unsubscribe: of_channel(wire.unsubscribe),
            publish: wire.publish.map(|publish| Object(publish.into())),
            presence: of_channel(wire.presence),
            presence_stats: of_channel(wire.presence_stats),
            history: wire.history.map(|history| Object(history.into())),
            rpc: unread(wire.rpc),
            send: unread(wire.send),
            refresh: wire.refresh.map(|Refresh { token }| Object(incoming::Refresh { token: secret(token) })),
            sub_refresh: wire.sub_refresh.map(|refresh| Object(refresh.into())),
        }
    }
}

impl From<Connect> for incoming::Connect {
    fn from(wire: Connect) -> Self {
        let entries = wire.subs.into_iter().take(MOST_SUBS).filter_map(|entry| SubsEntry::decode(entry).ok());
        let subs = entries.map(|entry| (entry.channel, Object(entry.subscribe.unwrap_or_default().into())));
        Self { token: secret(wire.token), name: wire.name, subs: subs.collect() }
    }
}

impl From<Subscribe> for incoming::Subscribe {
    fn from(wire: Subscribe) -> Self {
        Self {
            channel: wire.channel,
            token: secret(wire.token),
            recover: wire.recover,
            epoch: wire.epoch,
            offset: wire.offset,
            tf: wire.tf.map(|_| IgnoredAny),
            join_leave: wire.join_leave,
            flag: wire.flag.cast_unsigned(),
            kind: wire.kind.into(),
            phase: wire.phase.into(),
            cursor: wire.cursor,
            limit: wire.limit.into(),
            // What is not JSON is for an application.
            data: serde_json::from_slice(&wire.data).ok(),
        }
    }
}

impl From<OfChannel> for incoming::OfChannel {
    fn from(OfChannel { channel }: OfChannel) -> Self {
        Self { channel }
    }
}

impl From<Publish> for incoming::Publish {
    /// No bytes are a message like any other.
    fn from(wire: Publish) -> Self {
        Self {
            channel: wire.channel,
            data: Some(wire.data),
            kind: wire.kind.into(),
            key: Some(wire.key).filter(|key| !key.is_empty()),
            removed: wire.removed,
            idempotency_key: None,
        }
    }
}

impl From<History> for incoming::History {
    fn from(wire: History) -> Self {
        let since = wire.since.map(|Position { offset, epoch }| Object(incoming::Position { epoch, offset }));
        Self { channel: wire.channel, limit: wire.limit.into(), since, reverse: wire.reverse }
    }
}

impl From<SubRefresh> for incoming::SubRefresh {
    fn from(wire: SubRefresh) -> Self {
        Self { channel: wire.channel, token: secret(wire.token), kind: wire.kind.into() }
    }
}

/// A token, if there is one.
fn secret(token: String) -> Option<Secret> {
    Some(token).filter(|token| !token.is_empty()).map(Secret::new)
}
