//! Commands of clients: how they are read from a frame of JSON objects, one a line, and what they ask for.
//! The Protobuf form (`protobuf/incoming.rs`) reads the same commands from other bytes.

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU32;
use std::sync::Arc;

use bytes::Bytes;
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use serde_json::value::RawValue;

use super::super::command::{
    Command, CommandError, ConnectRequest, HistoryRequest, MapOrigin, PublishOptions, PublishRequest, Request, Since,
    SubscribeRequest, ValuesAfter, ValuesRequest,
};
use crate::access::secret::Secret;
use crate::broker::PAGE_MESSAGES;
use crate::channel::ChannelName;
use crate::close::{Close, Code};
use crate::hub::topic::Start;
use crate::json::Object;
use crate::message::is_key;

/// An epoch that no channel has. A position with another offset than 0 in it is in no history.
const NO_EPOCH: u64 = 0;
/// The names of SDKs that read the epoch of a publication.
const READS_EPOCHS: [&str; 1] = ["js"];
/// The bit of `flag` with which a client wants an error instead of a subscription that could not be
/// recovered.
const REJECT_UNRECOVERED: u64 = 2;
/// The maximum number of commands in a frame. Each takes more memory until it is carried out than
/// in the frame.
const MOST_COMMANDS: usize = 10_000;
/// The `type` of subscriptions and publications that have no keys, or whose keys are not looked at.
const STREAM: i64 = 0;
/// The `type` of those that are to a map of keys.
const MAP: i64 = 1;
/// The `phase` of a map subscription that reads values, by pages.
const STATE_PHASE: i64 = 2;
/// The phases in which a client subscribes: it has the values, and wants what has changed since. The
/// server decides when it has caught up; here that is at once.
const STREAM_PHASE: i64 = 1;
const LIVE_PHASE: i64 = 0;

/// The maximum number of channels in a `connect`. The others are skipped while they are read, because
/// a small one takes many times its size in memory.
pub(super) const MOST_SUBS: usize = 1000;

/// A command with its methods, of which it should have one. Unknown members are ignored, as the
/// protocol grows by them.
#[derive(Deserialize)]
pub(super) struct Methods {
    #[serde(default)]
    pub(super) id: u32,
    pub(super) connect: Option<Object<Connect>>,
    pub(super) ping: Option<IgnoredAny>,
    pub(super) subscribe: Option<Object<Subscribe>>,
    pub(super) unsubscribe: Option<Object<OfChannel>>,
    pub(super) publish: Option<Object<Publish>>,
    pub(super) presence: Option<Object<OfChannel>>,
    pub(super) presence_stats: Option<Object<OfChannel>>,
    pub(super) history: Option<Object<History>>,
    pub(super) rpc: Option<IgnoredAny>,
    pub(super) send: Option<IgnoredAny>,
    pub(super) refresh: Option<Object<Refresh>>,
    pub(super) sub_refresh: Option<Object<SubRefresh>>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
pub(super) struct Connect {
    pub(super) token: Option<Secret>,
    pub(super) name: String,
    #[serde(deserialize_with = "first_subs")]
    pub(super) subs: BTreeMap<String, Object<Subscribe>>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
pub(super) struct Subscribe {
    pub(super) channel: String,
    pub(super) token: Option<Secret>,
    pub(super) recover: bool,
    pub(super) epoch: String,
    pub(super) offset: u64,
    pub(super) tf: Option<IgnoredAny>,
    pub(super) join_leave: bool,
    pub(super) flag: u64,
    #[serde(rename = "type")]
    pub(super) kind: i64,
    pub(super) phase: i64,
    pub(super) cursor: String,
    pub(super) limit: i64,
    pub(super) data: Option<SubscribeData>,
}

/// What an application sends along. The protocol leaves it to the server; here it is for livebridge
/// only if it says so.
#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum SubscribeData {
    Livebridge { livebridge: SubscribeOptions },
    Other(IgnoredAny),
}

#[derive(Deserialize, Default)]
#[serde(default)]
pub(super) struct SubscribeOptions {
    /// A number of messages, or `"oldest"`.
    start: Option<Value>,
    describe: bool,
}

/// A request that only names a channel.
#[derive(Deserialize)]
pub(super) struct OfChannel {
    #[serde(default)]
    pub(super) channel: String,
}

#[derive(Deserialize)]
pub(super) struct Publish {
    #[serde(default)]
    pub(super) channel: String,
    #[serde(default, deserialize_with = "raw")]
    pub(super) data: Option<Bytes>,
    #[serde(default, rename = "type")]
    pub(super) kind: i64,
    pub(super) key: Option<String>,
    #[serde(default)]
    pub(super) removed: bool,
    pub(super) idempotency_key: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
pub(super) struct History {
    pub(super) channel: String,
    pub(super) limit: i64,
    pub(super) since: Option<Object<Position>>,
    pub(super) reverse: bool,
}

#[derive(Deserialize, Default)]
#[serde(default)]
pub(super) struct Position {
    pub(super) epoch: String,
    pub(super) offset: u64,
}

#[derive(Deserialize)]
pub(super) struct Refresh {
    pub(super) token: Option<Secret>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
pub(super) struct SubRefresh {
    pub(super) channel: String,
    pub(super) token: Option<Secret>,
    #[serde(rename = "type")]
    pub(super) kind: i64,
}

/// Reads the first channels of a `connect`.
fn first_subs<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, Object<Subscribe>>, D::Error> {
    struct First;
    impl<'de> Visitor<'de> for First {
        type Value = BTreeMap<String, Object<Subscribe>>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object with a member for each channel")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Self::Value, A::Error> {
            let mut first = BTreeMap::new();
            while first.len() < MOST_SUBS
                && let Some((channel, subscribe)) = members.next_entry()?
            {
                first.insert(channel, subscribe);
            }
            while members.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
            Ok(first)
        }
    }
    deserializer.deserialize_map(First)
}

/// Any JSON value as it is written, `null` too. A copy: a message may be kept for long, and must not
/// keep the whole frame in memory.
fn raw<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Bytes>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(|data| Some(Bytes::copy_from_slice(data.get().as_bytes())))
}

/// Calls `take` with each command of a frame.
///
/// # Errors
/// The close for a client that sends anything else. Nothing says then which command an error
/// answers.
pub(super) fn read(message: &[u8], take: &mut dyn FnMut(Command)) -> Result<(), Close> {
    let lines = message.split(|&byte| byte == b'\n').map(<[u8]>::trim_ascii).filter(|line| !line.is_empty());
    let parse = |line: &[u8]| {
        let Ok(Object(methods)) = serde_json::from_slice::<Object<Methods>>(line) else {
            return Err(invalid("a line of the frame is no command: send JSON objects, one a line"));
        };
        command(methods, line.len())
    };
    take_all(lines.map(parse), take)
}

/// Calls `take` with each command of a frame.
///
/// # Errors
/// The close for a client whose frame has an invalid command, none, or too many.
pub(super) fn take_all(
    commands: impl Iterator<Item = Result<Command, Close>>,
    take: &mut dyn FnMut(Command),
) -> Result<(), Close> {
    let mut count = 0;
    for command in commands {
        count += 1;
        if count > MOST_COMMANDS {
            return Err(invalid("the frame has more than 10000 commands"));
        }
        take(command?);
    }
    if count == 0 { Err(invalid("the frame has no command")) } else { Ok(()) }
}

/// What a command asks for. `size`: as the client sent it, in bytes.
///
/// # Errors
/// The close for a client whose command cannot be answered.
pub(super) fn command(methods: Methods, size: usize) -> Result<Command, Close> {
    let id = NonZeroU32::new(methods.id);
    let is_sent = methods.send.is_some();
    let Some(request) = methods.request() else {
        // The empty command is a pong.
        let pong = Command { id, request: Request::Nothing, size };
        return if id.is_none() { Ok(pong) } else { Err(invalid("the command has no method that is known here")) };
    };
    match id {
        None if !is_sent => Err(invalid("the command has no id, so that it cannot be answered")),
        id => Ok(Command { id, request, size }),
    }
}

impl Methods {
    /// The first method of the command, in the order of the protocol's definition.
    fn request(self) -> Option<Request> {
        Some(if let Some(Object(connect)) = self.connect {
            connect.request()
        } else if self.ping.is_some() {
            Request::Ping
        } else if let Some(Object(subscribe)) = self.subscribe {
            subscribe.request().unwrap_or_else(refused)
        } else if let Some(Object(OfChannel { channel })) = self.unsubscribe {
            name(&channel).map_or_else(refused, Request::Unsubscribe)
        } else if let Some(Object(publish)) = self.publish {
            publish.request().unwrap_or_else(refused)
        } else if let Some(Object(OfChannel { channel })) = self.presence {
            name(&channel).map_or_else(refused, Request::Presence)
        } else if let Some(Object(OfChannel { channel })) = self.presence_stats {
            name(&channel).map_or_else(refused, Request::PresenceStats)
        } else if let Some(Object(history)) = self.history {
            history.request().unwrap_or_else(refused)
        } else if self.rpc.is_some() {
            refused(CommandError::NotAvailable("there are no calls here"))
        } else if self.send.is_some() {
            Request::Nothing
        } else if let Some(Object(Refresh { token })) = self.refresh {
            let missing = || refused(CommandError::Invalid("a refresh needs a token"));
            token.map_or_else(missing, Request::Refresh)
        } else if let Some(Object(refresh)) = self.sub_refresh {
            refresh.request().unwrap_or_else(refused)
        } else {
            return None;
        })
    }
}

impl Connect {
    /// Channels with invalid requests are left out, and so not subscribed to. Maps are, too: an SDK
    /// subscribes to them itself.
    fn request(self) -> Request {
        let named = |(channel, Object(subscribe)): (String, _)| Subscribe { channel, ..subscribe }.subscription().ok();
        let subscriptions = self.subs.into_iter().filter_map(named).filter(|request| request.map.is_none()).collect();
        let token = self.token.filter(is_token);
        let reads_epochs = self.name.is_empty() || READS_EPOCHS.contains(&&*self.name);
        Request::Connect(ConnectRequest { token, reads_epochs, subscriptions }.into())
    }
}

impl Subscribe {
    fn request(self) -> Result<Request, CommandError> {
        if (self.kind, self.phase) == (MAP, STATE_PHASE) {
            return Ok(Request::Values(self.values()?.into()));
        }
        Ok(Request::Subscribe(self.subscription()?.into()))
    }

    fn subscription(self) -> Result<SubscribeRequest, CommandError> {
        let channel = self.channel()?;
        let map = match (self.kind, self.phase) {
            (STREAM, _) => None,
            (MAP, STREAM_PHASE | LIVE_PHASE) if self.recover => Some(MapOrigin::Kept),
            (MAP, STREAM_PHASE | LIVE_PHASE) => Some(MapOrigin::Read),
            _ => return Err(CommandError::Invalid("`phase` is 2 for the values of a map, 1 or 0 for what follows")),
        };
        let recover = match map {
            None => self.recover.then(|| since(&self.epoch, self.offset)),
            Some(_) => Some(self.map_position()),
        };
        let SubscribeOptions { start, describe } = match self.data {
            Some(SubscribeData::Livebridge { livebridge }) => livebridge,
            Some(SubscribeData::Other(_)) | None => SubscribeOptions::default(),
        };
        let start = start.map_or(Ok(Start::Live), |start| start_of(&start))?;
        let all_or_nothing = map.is_some() || self.flag & REJECT_UNRECOVERED != 0;
        let (token, join_leave) = (self.token.filter(is_token), self.join_leave);
        Ok(SubscribeRequest { channel, token, recover, all_or_nothing, start, describe, join_leave, map })
    }

    fn values(self) -> Result<ValuesRequest, CommandError> {
        let channel = self.channel()?;
        let limit = usize::try_from(self.limit).ok().filter(|&limit| limit > 0);
        let after = if self.cursor.is_empty() {
            None
        } else {
            let foreign = CommandError::Invalid("`cursor` is none of this server; read the values from the beginning");
            let offset = self.cursor.parse().map_err(|_| foreign)?;
            Some(ValuesAfter { position: self.map_position(), offset })
        };
        Ok(ValuesRequest { channel, token: self.token.filter(is_token), limit, after })
    }

    /// The name of the channel, if there may be such a subscription to it.
    fn channel(&self) -> Result<ChannelName, CommandError> {
        let channel = name(&self.channel)?;
        if !matches!(self.kind, STREAM | MAP) {
            return Err(CommandError::NotAvailable("there is no such `type` here; use `presence` for who is there"));
        }
        if self.tf.is_some() {
            return Err(CommandError::Invalid("messages have no tags to filter by"));
        }
        Ok(channel)
    }

    /// The position of the values of a map. It must name its epoch: the values are of that alone.
    fn map_position(&self) -> Since {
        match since(&self.epoch, self.offset) {
            Since { epoch: None, offset } => Since { epoch: Some(NO_EPOCH), offset: offset.max(1) },
            named => named,
        }
    }
}

impl Publish {
    fn request(self) -> Result<Request, CommandError> {
        let channel = Some(name(&self.channel)?);
        if !matches!(self.kind, STREAM | MAP) {
            return Err(CommandError::NotAvailable("there is no such `type` of publications here"));
        }
        if self.kind == MAP && self.key.is_none() {
            return Err(CommandError::Invalid("a publication to a map needs a `key`"));
        }
        let payload = match self.data {
            Some(data) => data,
            None if self.removed => Bytes::new(),
            None => return Err(CommandError::Invalid("a publication needs `data`")),
        };
        if self.removed && self.key.is_none() {
            return Err(CommandError::Invalid("`removed` needs the `key` that it removes"));
        }
        let options = PublishOptions { key: key(self.key)?, remove: self.removed, id: key(self.idempotency_key)? };
        Ok(Request::Publish(PublishRequest { channel, payload, options }))
    }
}

impl SubRefresh {
    fn request(self) -> Result<Request, CommandError> {
        if self.kind != 0 {
            return Err(CommandError::NotAvailable("subscriptions of this `type` have no tokens here"));
        }
        let token = self.token.ok_or(CommandError::Invalid("a refresh needs a token"))?;
        Ok(Request::RefreshSubscription((name(&self.channel)?, token).into()))
    }
}

impl History {
    fn request(self) -> Result<Request, CommandError> {
        let channel = name(&self.channel)?;
        let limit = usize::try_from(self.limit).ok();
        let since = self.since.map(|Object(Position { epoch, offset })| since(&epoch, offset));
        Ok(Request::History(HistoryRequest { channel, limit, since, reverse: self.reverse }.into()))
    }
}

/// Where a client starts that has no position.
fn start_of(at: &Value) -> Result<Start, CommandError> {
    let count = at.as_u64().and_then(|count| usize::try_from(count).ok());
    match count {
        Some(count) if count <= PAGE_MESSAGES => Ok(Start::Last(count)),
        None if at == "oldest" => Ok(Start::Oldest),
        _ => Err(CommandError::Invalid("`start` is a number of messages up to 1000, or \"oldest\"")),
    }
}

fn key(text: Option<String>) -> Result<Option<Arc<str>>, CommandError> {
    let invalid = CommandError::Invalid("a key has 1 to 255 bytes of UTF-8 without control characters");
    text.map(|text| if is_key(&text) { Ok(text.into()) } else { Err(invalid) }).transpose()
}

fn name(channel: &str) -> Result<ChannelName, CommandError> {
    Ok(channel.parse()?)
}

/// A position. An epoch that is none of livebridge's matches no history, whatever the offset.
fn since(epoch: &str, offset: u64) -> Since {
    if epoch.is_empty() {
        return Since { epoch: None, offset };
    }
    match epoch.parse() {
        Ok(epoch) => Since { epoch: Some(epoch), offset },
        Err(_) => Since { epoch: Some(NO_EPOCH), offset: offset.max(1) },
    }
}

/// An empty token is none.
fn is_token(token: &Secret) -> bool {
    !token.reveal().is_empty()
}

fn refused(error: CommandError) -> Request {
    Request::Refused(error.into())
}

/// The close for a client that sent no command.
pub(super) fn invalid(detail: &'static str) -> Close {
    Close::new(Code::CommandInvalid, detail)
}

#[cfg(test)]
mod tests;
