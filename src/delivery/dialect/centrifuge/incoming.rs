//! Reads the commands of a frame: JSON objects, one a line, each with an id and one method.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::Arc;

use bytes::Bytes;
use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use serde_json::value::RawValue;

use super::super::command::{
    Command, CommandError, ConnectRequest, HistoryRequest, PublishOptions, PublishRequest, Request, Since,
    SubscribeRequest,
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

/// A command. Unknown members are ignored, as the protocol grows by them.
#[derive(Deserialize)]
struct Line<'a> {
    #[serde(default)]
    id: u32,
    connect: Option<Object<Connect>>,
    ping: Option<IgnoredAny>,
    subscribe: Option<Object<Subscribe>>,
    unsubscribe: Option<Object<OfChannel>>,
    #[serde(borrow)]
    publish: Option<Object<Publish<'a>>>,
    presence: Option<Object<OfChannel>>,
    presence_stats: Option<Object<OfChannel>>,
    history: Option<Object<History>>,
    rpc: Option<IgnoredAny>,
    send: Option<IgnoredAny>,
    refresh: Option<Object<Refresh>>,
    sub_refresh: Option<Object<SubRefresh>>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Connect {
    token: Option<Secret>,
    name: String,
    subs: BTreeMap<String, Object<Subscribe>>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Subscribe {
    channel: String,
    token: Option<Secret>,
    recover: bool,
    epoch: String,
    offset: u64,
    tf: Option<IgnoredAny>,
    join_leave: bool,
    flag: u64,
    #[serde(rename = "type")]
    kind: i64,
    data: Option<SubscribeData>,
}

/// What an application sends along. The protocol leaves it to the server; here it is for livebridge
/// only if it says so.
#[derive(Deserialize)]
#[serde(untagged)]
enum SubscribeData {
    Livebridge { livebridge: SubscribeOptions },
    Other(IgnoredAny),
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct SubscribeOptions {
    /// A number of messages, or `"oldest"`.
    start: Option<Value>,
    describe: bool,
}

/// A request that only names a channel.
#[derive(Deserialize)]
struct OfChannel {
    #[serde(default)]
    channel: String,
}

#[derive(Deserialize)]
struct Publish<'a> {
    #[serde(default)]
    channel: String,
    #[serde(borrow, default, deserialize_with = "raw")]
    data: Option<&'a RawValue>,
    #[serde(default, rename = "type")]
    kind: i64,
    key: Option<String>,
    #[serde(default)]
    removed: bool,
    idempotency_key: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct History {
    channel: String,
    limit: i64,
    since: Option<Object<Position>>,
    reverse: bool,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Position {
    epoch: String,
    offset: u64,
}

#[derive(Deserialize)]
struct Refresh {
    token: Option<Secret>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct SubRefresh {
    channel: String,
    token: Option<Secret>,
    #[serde(rename = "type")]
    kind: i64,
}

/// Any JSON value as it is written, `null` too.
fn raw<'de: 'a, 'a, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'a RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

/// Calls `take` with each command of a frame.
///
/// # Errors
/// The close for a client that sends anything else. Nothing says then which command an error
/// answers.
pub(super) fn read(message: &[u8], take: &mut dyn FnMut(Command)) -> Result<(), Close> {
    let mut is_empty = true;
    for line in message.split(|&byte| byte == b'\n').map(<[u8]>::trim_ascii).filter(|line| !line.is_empty()) {
        is_empty = false;
        let Ok(Object(parsed)) = serde_json::from_slice::<Object<Line<'_>>>(line) else {
            return Err(invalid("a line of the frame is no command: send JSON objects, one a line"));
        };
        take(command(parsed, line.len())?);
    }
    if is_empty { Err(invalid("the frame has no command")) } else { Ok(()) }
}

fn command(line: Line<'_>, size: usize) -> Result<Command, Close> {
    let id = NonZeroU32::new(line.id);
    let is_sent = line.send.is_some();
    let Some(request) = line.request() else {
        // The empty command is a pong.
        let pong = Command { id, request: Request::Nothing, size };
        return if id.is_none() { Ok(pong) } else { Err(invalid("the command has no method that is known here")) };
    };
    match id {
        None if !is_sent => Err(invalid("the command has no id, so that it cannot be answered")),
        id => Ok(Command { id, request, size }),
    }
}

impl Line<'_> {
    /// The first method of the command, in the order of the protocol's definition.
    fn request(self) -> Option<Request> {
        Some(if let Some(Object(connect)) = self.connect {
            connect.request()
        } else if self.ping.is_some() {
            Request::Ping
        } else if let Some(Object(subscribe)) = self.subscribe {
            subscribe.request().map_or_else(refused, |request| Request::Subscribe(request.into()))
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
            refused(CommandError::UnknownMethod)
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
    /// Channels with invalid requests are left out, and so not subscribed to.
    fn request(self) -> Request {
        let named = |(channel, Object(subscribe)): (String, _)| Subscribe { channel, ..subscribe }.request().ok();
        let subscriptions = self.subs.into_iter().filter_map(named).collect();
        let token = self.token.filter(|token| !token.reveal().is_empty());
        let reads_epochs = self.name.is_empty() || READS_EPOCHS.contains(&&*self.name);
        Request::Connect(ConnectRequest { token, reads_epochs, subscriptions }.into())
    }
}

impl Subscribe {
    fn request(self) -> Result<SubscribeRequest, CommandError> {
        let channel = name(&self.channel)?;
        if self.kind != 0 {
            return Err(CommandError::NotAvailable("subscriptions have no `type` here; leave it out"));
        }
        if self.tf.is_some() {
            return Err(CommandError::Invalid("messages have no tags to filter by"));
        }
        let recover = self.recover.then(|| since(&self.epoch, self.offset));
        let SubscribeOptions { start, describe } = match self.data {
            Some(SubscribeData::Livebridge { livebridge }) => livebridge,
            Some(SubscribeData::Other(_)) | None => SubscribeOptions::default(),
        };
        let start = start.map_or(Ok(Start::Live), |start| start_of(&start))?;
        let all_or_nothing = self.flag & REJECT_UNRECOVERED != 0;
        let token = self.token.filter(|token| !token.reveal().is_empty());
        Ok(SubscribeRequest { channel, token, recover, all_or_nothing, start, describe, join_leave: self.join_leave })
    }
}

impl Publish<'_> {
    fn request(self) -> Result<Request, CommandError> {
        let channel = Some(name(&self.channel)?);
        if self.kind != 0 {
            return Err(CommandError::NotAvailable("publications have no `type` here; leave it out"));
        }
        let payload = match self.data {
            // A copy: a message may be kept for long, and must not keep the whole frame in memory.
            Some(data) => Bytes::copy_from_slice(data.get().as_bytes()),
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

fn refused(error: CommandError) -> Request {
    Request::Refused(error.into())
}

fn invalid(detail: &'static str) -> Close {
    Close::new(Code::CommandInvalid, detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commands(frame: &str) -> Result<Vec<Command>, Close> {
        let mut commands = Vec::new();
        read(frame.as_bytes(), &mut |command| commands.push(command)).map(|()| commands)
    }

    fn only(line: &str) -> Request {
        let mut commands = commands(line).unwrap_or_else(|close| panic!("{line}: {close:?}"));
        assert_eq!(commands.len(), 1, "{line}");
        commands.remove(0).request
    }

    #[test]
    fn a_frame_has_a_command_in_each_line() {
        let frame =
            " {\"id\":1,\"connect\":{\"token\":\"\",\"name\":\"js\"}}\r\n\n{\"id\":2,\"ping\":{}}\n{}\n{\"send\":{}}";
        let commands = commands(frame).expect("commands");
        assert_eq!(
            commands.iter().map(|command| command.id.map_or(0, NonZeroU32::get)).collect::<Vec<_>>(),
            [1, 2, 0, 0]
        );
        assert!(matches!(&commands[0].request, Request::Connect(request) if request.token.is_none()));
        assert!(matches!(commands[1].request, Request::Ping));
        assert!(commands[2..].iter().all(|command| matches!(command.request, Request::Nothing)));
    }

    #[test]
    fn whatever_is_no_command_closes_the_connection() {
        for frame in [
            "",
            "\n",
            "x",
            "1",
            "[]",
            "[1]",
            "{\"id\":1}",
            "{\"ping\":{}}",
            "{\"id\":1,\"connect\":[\"token\"]}",
            "{\"id\":4294967296,\"ping\":{}}",
            "{\"id\":1.5,\"ping\":{}}",
            "{}\n{\"id\":1,\"other\":{}}",
        ] {
            assert_eq!(commands(frame).expect_err(frame).code, Code::CommandInvalid, "{frame}");
        }
    }

    #[test]
    fn a_payload_is_taken_as_it_is_written() {
        for data in ["null", "{ \"a\" : 1.50 }", "\"text\"", "1e400", "[]"] {
            let request = only(&format!("{{\"id\":1,\"publish\":{{\"channel\":\"a\",\"data\": {data} }}}}"));
            assert!(matches!(&request, Request::Publish(request) if request.payload == data.as_bytes()), "{request:?}");
        }
        let refused = only("{\"id\":1,\"publish\":{\"channel\":\"a\"}}");
        assert!(matches!(refused, Request::Refused(error) if matches!(*error, CommandError::Invalid(_))));
    }

    #[test]
    fn an_epoch_of_another_server_matches_no_history() {
        let of = |member: &str| match only(&format!("{{\"id\":1,\"subscribe\":{{\"channel\":\"a\",{member}}}}}")) {
            Request::Subscribe(request) => request.recover,
            other => panic!("{other:?}"),
        };
        assert_eq!(of("\"offset\":3,\"epoch\":\"9\""), None, "without `recover`");
        assert_eq!(of("\"recover\":true,\"offset\":3,\"epoch\":\"9\""), Some(Since { epoch: Some(9), offset: 3 }));
        assert_eq!(of("\"recover\":true,\"offset\":3"), Some(Since { epoch: None, offset: 3 }));
        assert_eq!(of("\"recover\":true,\"epoch\":\"_\""), Some(Since { epoch: Some(NO_EPOCH), offset: 1 }));
    }

    #[test]
    fn what_is_not_spoken_is_refused_and_not_ignored() {
        for method in [
            "\"subscribe\":{\"channel\":\"a\",\"type\":1}",
            "\"publish\":{\"channel\":\"a\",\"type\":1,\"data\":1}",
            "\"sub_refresh\":{\"channel\":\"a\",\"token\":\"x\",\"type\":1}",
        ] {
            let refused = only(&format!("{{\"id\":1,{method}}}"));
            assert!(
                matches!(&refused, Request::Refused(error) if matches!(**error, CommandError::NotAvailable(_))),
                "{method}: {refused:?}"
            );
        }
    }
}
