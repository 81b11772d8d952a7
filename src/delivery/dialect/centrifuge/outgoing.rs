//! Writes replies and pushes. Members with zero values are left out, as the protocol wants it.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::ser::Error;
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

use super::super::command::{ChannelDescription, Connected, Recovery, Reply, Subscribed, Values};
use crate::channel::ChannelName;
use crate::json::Data;
use crate::message::{Message, Position};
use crate::presence::{Change, Client};

/// The `type` in the results of map subscriptions.
pub(super) const MAP: u8 = 1;
/// The `phase` in the results with values. That of the last result, 0, is left out.
pub(super) const STATE_PHASE: u8 = 2;
/// The program, as clients see it.
pub(super) const VERSION: &str = concat!("livebridge ", env!("CARGO_PKG_VERSION"));

/// A reply to a command.
#[derive(Serialize)]
pub(super) struct Answer<'a> {
    pub(super) id: u32,
    #[serde(flatten)]
    pub(super) body: Body<'a>,
}

/// What a client is told without having asked.
#[derive(Serialize)]
pub(super) struct Push<'a> {
    push: ChannelPush<'a>,
}

#[derive(Serialize)]
struct ChannelPush<'a> {
    channel: &'a str,
    #[serde(flatten)]
    event: Event<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum Event<'a> {
    Pub(Publication<'a>),
    Join(Whoever<'a>),
    Leave(Whoever<'a>),
    Unsubscribe { code: u16, reason: &'a str },
}

impl<'a> Push<'a> {
    /// A message.
    pub(super) fn publication(channel: &'a ChannelName, message: &'a Message) -> Self {
        Self { push: ChannelPush { channel: channel.as_str(), event: Event::Pub(message.into()) } }
    }

    /// A client that has come or gone.
    pub(super) fn presence_change(channel: &'a ChannelName, change: &'a Change) -> Self {
        let event = match change {
            Change::Joined(client) => Event::Join(Whoever { info: (&**client).into() }),
            Change::Left(client) => Event::Leave(Whoever { info: (&**client).into() }),
        };
        Self { push: ChannelPush { channel: channel.as_str(), event } }
    }

    /// The end of a subscription.
    pub(super) fn unsubscribe(channel: &'a ChannelName, code: u16, reason: &'a str) -> Self {
        Self { push: ChannelPush { channel: channel.as_str(), event: Event::Unsubscribe { code, reason } } }
    }
}

/// What a reply says.
#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Body<'a> {
    Error(Failure<'a>),
    Connect(ConnectResult<'a>),
    Subscribe(SubscribeResult<'a>),
    Unsubscribe(Empty),
    Publish(WirePosition),
    Presence(PresenceResult<'a>),
    PresenceStats(PresenceStatsResult),
    History(HistoryResult<'a>),
    Refresh(RefreshResult),
    SubRefresh(Expiry),
    Ping(Empty),
}

/// An empty object.
#[derive(Serialize)]
pub(super) struct Empty {}

#[derive(Serialize)]
pub(super) struct Failure<'a> {
    pub(super) code: u16,
    pub(super) message: &'a str,
    #[serde(skip_serializing_if = "is_false")]
    pub(super) temporary: bool,
}

#[derive(Serialize)]
pub(super) struct ConnectResult<'a> {
    client: &'a str,
    node: &'a str,
    version: &'static str,
    #[serde(flatten)]
    expiry: Expiry,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    subs: BTreeMap<&'a str, SubscribeResult<'a>>,
    ping: u32,
    pong: bool,
}

#[derive(Serialize)]
pub(super) struct RefreshResult {
    version: &'static str,
    #[serde(flatten)]
    expiry: Expiry,
}

#[derive(Serialize, Default)]
pub(super) struct Expiry {
    #[serde(skip_serializing_if = "is_false")]
    expires: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    ttl: Option<u64>,
}

#[derive(Serialize, Default)]
pub(super) struct SubscribeResult<'a> {
    #[serde(flatten)]
    expiry: Expiry,
    #[serde(skip_serializing_if = "is_false")]
    recoverable: bool,
    #[serde(skip_serializing_if = "is_false")]
    positioned: bool,
    #[serde(flatten)]
    position: WirePosition,
    #[serde(skip_serializing_if = "is_false")]
    was_recovering: bool,
    #[serde(skip_serializing_if = "is_false")]
    recovered: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    publications: Vec<Publication<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Described>,
    #[serde(rename = "type", skip_serializing_if = "is_zero")]
    kind: u8,
    #[serde(skip_serializing_if = "is_zero")]
    phase: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    cursor: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    state: Vec<Publication<'a>>,
}

/// A channel, for a client that asked for it.
#[derive(Serialize)]
pub(super) struct Described {
    #[serde(skip_serializing_if = "Option::is_none")]
    head: Option<u64>,
    keyed: bool,
}

#[derive(Serialize)]
pub(super) struct HistoryResult<'a> {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    publications: Vec<Publication<'a>>,
    #[serde(flatten)]
    position: WirePosition,
}

#[derive(Serialize)]
pub(super) struct PresenceResult<'a> {
    presence: BTreeMap<&'a str, ClientInfo<'a>>,
}

#[derive(Serialize)]
pub(super) struct PresenceStatsResult {
    #[serde(skip_serializing_if = "is_zero")]
    num_clients: usize,
    #[serde(skip_serializing_if = "is_zero")]
    num_users: usize,
}

/// Who comes or goes.
#[derive(Serialize)]
struct Whoever<'a> {
    info: ClientInfo<'a>,
}

#[derive(Serialize)]
struct ClientInfo<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    user: &'a str,
    client: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    conn_info: Option<&'a RawValue>,
}

impl<'a> From<&'a Client> for ClientInfo<'a> {
    fn from(client: &'a Client) -> Self {
        let conn_info = client.info.as_deref().and_then(|info| serde_json::from_str(info).ok());
        Self { user: &client.user, client: &client.id, conn_info }
    }
}

#[derive(Serialize, Default)]
pub(super) struct WirePosition {
    #[serde(skip_serializing_if = "String::is_empty")]
    epoch: String,
    #[serde(skip_serializing_if = "is_zero")]
    offset: u64,
}

/// A message.
#[derive(Serialize)]
pub(super) struct Publication<'a> {
    data: OneLine<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tags: Option<Tags>,
    #[serde(skip_serializing_if = "is_zero")]
    offset: u64,
    /// In the first message of an epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    epoch: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<&'a str>,
    #[serde(skip_serializing_if = "is_false")]
    removed: bool,
}

/// How bytes that are no text are written.
#[derive(Serialize)]
struct Tags {
    encoding: &'static str,
}

/// A payload without line ends, as clients split a frame at them. Within JSON they are white space.
struct OneLine<'a>(Data<'a>);

impl Serialize for OneLine<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.0 {
            Data::Json(value) if memchr::memchr(b'\n', value.get().as_bytes()).is_some() => {
                let line = value.get().replace('\n', "");
                RawValue::from_string(line).map_err(S::Error::custom)?.serialize(serializer)
            }
            data => data.serialize(serializer),
        }
    }
}

impl<'a> From<&'a Message> for Publication<'a> {
    fn from(message: &'a Message) -> Self {
        let data = Data::of(message);
        let first = message.position.filter(|position| position.offset == 1);
        Self {
            tags: data.encoding().map(|encoding| Tags { encoding }),
            data: OneLine(data),
            offset: message.position.map_or(0, |position| position.offset),
            epoch: first.map(|position| position.epoch.to_string()),
            key: message.key.as_deref(),
            removed: message.removed,
        }
    }
}

impl<'a> From<&'a Reply<'a>> for Body<'a> {
    fn from(reply: &'a Reply<'a>) -> Self {
        match reply {
            Reply::Connected(connected) => Self::Connect((*connected).into()),
            Reply::Subscribed(subscribed) => Self::Subscribe((*subscribed).into()),
            Reply::Values(values) => Self::Subscribe((*values).into()),
            Reply::Unsubscribed => Self::Unsubscribe(Empty {}),
            Reply::Published(position) => Self::Publish((*position).into()),
            Reply::History(messages, newest) => Self::History(HistoryResult {
                publications: publications(messages),
                position: WirePosition::from(Some(*newest)),
            }),
            Reply::Presence(all) => {
                let clients = all.listed.iter();
                let presence = clients.map(|client| (&*client.id, ClientInfo::from(&**client))).collect();
                Self::Presence(PresenceResult { presence })
            }
            Reply::PresenceStats(all) => {
                Self::PresenceStats(PresenceStatsResult { num_clients: all.clients, num_users: all.users })
            }
            Reply::Refreshed(after) => Self::Refresh(RefreshResult { version: VERSION, expiry: Expiry::from(*after) }),
            Reply::SubscriptionRefreshed(after) => Self::SubRefresh(Expiry::from(*after)),
            Reply::Pong => Self::Ping(Empty {}),
        }
    }
}

impl<'a> From<&'a Connected<'a>> for ConnectResult<'a> {
    fn from(connected: &'a Connected<'a>) -> Self {
        let made = connected.subscriptions.iter();
        Self {
            client: &connected.client,
            node: connected.instance,
            version: VERSION,
            expiry: Expiry::from(connected.refresh_after),
            subs: made.map(|(channel, subscribed)| (channel.as_str(), subscribed.into())).collect(),
            ping: connected.ping_seconds,
            pong: true,
        }
    }
}

impl<'a> From<&'a Subscribed> for SubscribeResult<'a> {
    fn from(subscribed: &'a Subscribed) -> Self {
        let has_history = subscribed.position.is_some();
        Self {
            expiry: Expiry::from(subscribed.refresh_after),
            recoverable: has_history,
            positioned: has_history,
            position: WirePosition::from(subscribed.position),
            was_recovering: subscribed.recovery != Recovery::NotAsked,
            recovered: subscribed.recovery == Recovery::Recovered,
            publications: publications(&subscribed.missed),
            data: subscribed.channel.map(Described::from),
            kind: if subscribed.is_map { MAP } else { 0 },
            ..Self::default()
        }
    }
}

impl<'a> From<&'a Values> for SubscribeResult<'a> {
    fn from(values: &'a Values) -> Self {
        Self {
            kind: MAP,
            phase: STATE_PHASE,
            position: WirePosition::from(Some(values.position)),
            cursor: values.next_after.map(|offset| offset.to_string()),
            state: publications(&values.messages),
            ..Self::default()
        }
    }
}

impl From<ChannelDescription> for Described {
    fn from(ChannelDescription { head, keyed }: ChannelDescription) -> Self {
        Self { head, keyed }
    }
}

impl From<Option<u64>> for Expiry {
    fn from(ttl: Option<u64>) -> Self {
        Self { expires: ttl.is_some(), ttl }
    }
}

impl From<Option<Position>> for WirePosition {
    fn from(position: Option<Position>) -> Self {
        let epoch = position.map(|position| position.epoch.to_string()).unwrap_or_default();
        Self { epoch, offset: position.map_or(0, |position| position.offset) }
    }
}

fn publications(messages: &[Arc<Message>]) -> Vec<Publication<'_>> {
    messages.iter().map(|message| Publication::from(&**message)).collect()
}

/// Whether a member is left out.
fn is_false(value: &bool) -> bool {
    !value
}

/// The same for a number.
fn is_zero<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
