//! Replies and pushes as Protobuf messages, and how they are made from what is to be said.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use super::super::super::command::{self, Recovery};
use super::super::outgoing::{Described, MAP, STATE_PHASE, VERSION};
use crate::channel::ChannelName;
use crate::json;
use crate::message::{self, Message};
use crate::presence::{Change, Client};

/// What is sent. The empty reply is a ping.
#[derive(PartialEq, prost::Message)]
pub(super) struct Reply {
    #[prost(uint32, tag = "1")]
    pub(super) id: u32,
    #[prost(oneof = "Body", tags = "2, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 15")]
    pub(super) body: Option<Body>,
}

/// What a reply says. On the wire, each is a field of the reply.
#[derive(PartialEq, prost::Oneof)]
pub(super) enum Body {
    #[prost(message, tag = "2")]
    Error(Failure),
    #[prost(message, tag = "4")]
    Push(Push),
    #[prost(message, tag = "5")]
    Connect(ConnectResult),
    #[prost(message, tag = "6")]
    Subscribe(SubscribeResult),
    #[prost(message, tag = "7")]
    Unsubscribe(Empty),
    #[prost(message, tag = "8")]
    Publish(Empty),
    #[prost(message, tag = "9")]
    Presence(PresenceResult),
    #[prost(message, tag = "10")]
    PresenceStats(PresenceStatsResult),
    #[prost(message, tag = "11")]
    History(HistoryResult),
    #[prost(message, tag = "12")]
    Ping(Empty),
    #[prost(message, tag = "14")]
    Refresh(RefreshResult),
    #[prost(message, tag = "15")]
    SubRefresh(SubRefreshResult),
}

/// A result without fields. The protocol has none for the position of a publication.
#[derive(PartialEq, prost::Message)]
pub(super) struct Empty {}

#[derive(PartialEq, prost::Message)]
pub(super) struct Failure {
    #[prost(uint32, tag = "1")]
    pub(super) code: u32,
    #[prost(string, tag = "2")]
    pub(super) message: String,
    #[prost(bool, tag = "3")]
    pub(super) temporary: bool,
}

/// What a client is told without having asked.
#[derive(PartialEq, prost::Message)]
pub(super) struct Push {
    #[prost(string, tag = "2")]
    channel: String,
    #[prost(oneof = "Event", tags = "4, 5, 6, 7")]
    event: Option<Event>,
}

#[derive(PartialEq, prost::Oneof)]
enum Event {
    #[prost(message, tag = "4")]
    Publication(Publication),
    #[prost(message, tag = "5")]
    Join(Whoever),
    #[prost(message, tag = "6")]
    Leave(Whoever),
    #[prost(message, tag = "7")]
    Unsubscribe(Unsubscribe),
}

#[derive(PartialEq, prost::Message)]
struct Publication {
    #[prost(bytes = "bytes", tag = "4")]
    data: Bytes,
    #[prost(uint64, tag = "6")]
    offset: u64,
    #[prost(string, tag = "11")]
    key: String,
    #[prost(bool, tag = "12")]
    removed: bool,
    /// In the first message of an epoch.
    #[prost(string, tag = "14")]
    epoch: String,
}

/// Who comes or goes.
#[derive(PartialEq, prost::Message)]
struct Whoever {
    #[prost(message, optional, tag = "1")]
    info: Option<ClientInfo>,
}

#[derive(PartialEq, prost::Message)]
struct ClientInfo {
    #[prost(string, tag = "1")]
    user: String,
    #[prost(string, tag = "2")]
    client: String,
    /// JSON, as in the token.
    #[prost(string, tag = "3")]
    conn_info: String,
}

#[derive(PartialEq, prost::Message)]
struct Unsubscribe {
    #[prost(uint32, tag = "2")]
    code: u32,
    #[prost(string, tag = "3")]
    reason: String,
}

#[derive(PartialEq, prost::Message)]
pub(super) struct ConnectResult {
    #[prost(string, tag = "1")]
    client: String,
    #[prost(string, tag = "2")]
    version: String,
    #[prost(bool, tag = "3")]
    expires: bool,
    #[prost(uint32, tag = "4")]
    ttl: u32,
    #[prost(btree_map = "string, message", tag = "6")]
    subs: BTreeMap<String, SubscribeResult>,
    #[prost(uint32, tag = "7")]
    ping: u32,
    #[prost(bool, tag = "8")]
    pong: bool,
    #[prost(string, tag = "10")]
    node: String,
}

#[derive(PartialEq, prost::Message)]
pub(super) struct RefreshResult {
    #[prost(string, tag = "2")]
    version: String,
    #[prost(bool, tag = "3")]
    expires: bool,
    #[prost(uint32, tag = "4")]
    ttl: u32,
}

#[derive(PartialEq, prost::Message)]
pub(super) struct SubRefreshResult {
    #[prost(bool, tag = "1")]
    expires: bool,
    #[prost(uint32, tag = "2")]
    ttl: u32,
}

#[derive(PartialEq, prost::Message)]
pub(super) struct SubscribeResult {
    #[prost(bool, tag = "1")]
    expires: bool,
    #[prost(uint32, tag = "2")]
    ttl: u32,
    #[prost(bool, tag = "3")]
    recoverable: bool,
    #[prost(string, tag = "6")]
    epoch: String,
    #[prost(message, repeated, tag = "7")]
    publications: Vec<Publication>,
    #[prost(bool, tag = "8")]
    recovered: bool,
    #[prost(uint64, tag = "9")]
    offset: u64,
    #[prost(bool, tag = "10")]
    positioned: bool,
    /// JSON, as in that form.
    #[prost(bytes = "vec", tag = "11")]
    data: Vec<u8>,
    #[prost(bool, tag = "12")]
    was_recovering: bool,
    #[prost(int32, tag = "15")]
    kind: i32,
    #[prost(int32, tag = "16")]
    phase: i32,
    #[prost(string, tag = "17")]
    cursor: String,
    #[prost(message, repeated, tag = "18")]
    state: Vec<Publication>,
}

#[derive(PartialEq, prost::Message)]
pub(super) struct HistoryResult {
    #[prost(message, repeated, tag = "1")]
    publications: Vec<Publication>,
    #[prost(string, tag = "2")]
    epoch: String,
    #[prost(uint64, tag = "3")]
    offset: u64,
}

#[derive(PartialEq, prost::Message)]
pub(super) struct PresenceResult {
    #[prost(btree_map = "string, message", tag = "1")]
    presence: BTreeMap<String, ClientInfo>,
}

#[derive(PartialEq, prost::Message)]
pub(super) struct PresenceStatsResult {
    #[prost(uint32, tag = "1")]
    num_clients: u32,
    #[prost(uint32, tag = "2")]
    num_users: u32,
}

impl Push {
    /// A message.
    pub(super) fn publication(channel: &ChannelName, message: &Message) -> Self {
        Self::on(channel, Event::Publication(message.into()))
    }

    /// A client that has come or gone.
    pub(super) fn presence_change(channel: &ChannelName, change: &Change) -> Self {
        let whoever = |client: &Client| Whoever { info: Some(client.into()) };
        Self::on(
            channel,
            match change {
                Change::Joined(client) => Event::Join(whoever(client)),
                Change::Left(client) => Event::Leave(whoever(client)),
            },
        )
    }

    /// The end of a subscription.
    pub(super) fn unsubscribe(channel: &ChannelName, (code, reason): (u16, &str)) -> Self {
        Self::on(channel, Event::Unsubscribe(Unsubscribe { code: code.into(), reason: reason.to_owned() }))
    }

    fn on(channel: &ChannelName, event: Event) -> Self {
        Self { channel: channel.as_str().to_owned(), event: Some(event) }
    }
}

impl From<&Message> for Publication {
    /// The payload is shared and not copied. Bytes need no encoding here, so no tag names one.
    fn from(message: &Message) -> Self {
        let first = message.position.filter(|position| position.offset == 1);
        Self {
            data: message.payload.clone(),
            offset: message.position.map_or(0, |position| position.offset),
            key: message.key.as_deref().unwrap_or_default().to_owned(),
            removed: message.removed,
            epoch: first.map(|position| position.epoch.to_string()).unwrap_or_default(),
        }
    }
}

impl From<&Client> for ClientInfo {
    fn from(client: &Client) -> Self {
        Self {
            user: client.user.to_string(),
            client: client.id.to_string(),
            conn_info: client.info.as_deref().unwrap_or_default().to_owned(),
        }
    }
}

impl From<&command::Reply<'_>> for Body {
    fn from(reply: &command::Reply<'_>) -> Self {
        use command::Reply;
        match reply {
            Reply::Connected(connected) => Self::Connect((*connected).into()),
            Reply::Subscribed(subscribed) => Self::Subscribe((*subscribed).into()),
            Reply::Values(values) => Self::Subscribe((*values).into()),
            Reply::Unsubscribed => Self::Unsubscribe(Empty {}),
            Reply::Published(_) => Self::Publish(Empty {}),
            Reply::History(messages, newest) => Self::History(HistoryResult {
                publications: publications(messages),
                epoch: newest.epoch.to_string(),
                offset: newest.offset,
            }),
            Reply::Presence(all) => {
                let clients = all.listed.iter();
                let presence = clients.map(|client| (client.id.to_string(), (&**client).into())).collect();
                Self::Presence(PresenceResult { presence })
            }
            Reply::PresenceStats(all) => Self::PresenceStats(PresenceStatsResult {
                num_clients: narrow(all.clients),
                num_users: narrow(all.users),
            }),
            Reply::Refreshed(after) => Self::Refresh(RefreshResult {
                version: VERSION.to_owned(),
                expires: after.is_some(),
                ttl: narrow(after.unwrap_or_default()),
            }),
            Reply::SubscriptionRefreshed(after) => {
                Self::SubRefresh(SubRefreshResult { expires: after.is_some(), ttl: narrow(after.unwrap_or_default()) })
            }
            Reply::Pong => Self::Ping(Empty {}),
        }
    }
}

impl From<&command::Connected<'_>> for ConnectResult {
    fn from(connected: &command::Connected<'_>) -> Self {
        let made = connected.subscriptions.iter();
        Self {
            client: connected.client.clone(),
            version: VERSION.to_owned(),
            expires: connected.refresh_after.is_some(),
            ttl: narrow(connected.refresh_after.unwrap_or_default()),
            subs: made.map(|(channel, subscribed)| (channel.as_str().to_owned(), subscribed.into())).collect(),
            ping: connected.ping_seconds,
            pong: true,
            node: connected.instance.to_owned(),
        }
    }
}

impl From<&command::Subscribed> for SubscribeResult {
    fn from(subscribed: &command::Subscribed) -> Self {
        let (epoch, offset) = wire_position(subscribed.position);
        let mut data = Vec::new();
        subscribed.channel.iter().for_each(|&channel| json::write(&Described::from(channel), &mut data));
        Self {
            expires: subscribed.refresh_after.is_some(),
            ttl: narrow(subscribed.refresh_after.unwrap_or_default()),
            recoverable: subscribed.position.is_some(),
            epoch,
            publications: publications(&subscribed.missed),
            recovered: subscribed.recovery == Recovery::Recovered,
            offset,
            positioned: subscribed.position.is_some(),
            data,
            was_recovering: subscribed.recovery != Recovery::NotAsked,
            kind: if subscribed.is_map { MAP.into() } else { 0 },
            ..Self::default()
        }
    }
}

impl From<&command::Values> for SubscribeResult {
    fn from(values: &command::Values) -> Self {
        let (epoch, offset) = wire_position(Some(values.position));
        Self {
            epoch,
            offset,
            kind: MAP.into(),
            phase: STATE_PHASE.into(),
            cursor: values.next_after.map(|offset| offset.to_string()).unwrap_or_default(),
            state: publications(&values.messages),
            ..Self::default()
        }
    }
}

fn wire_position(position: Option<message::Position>) -> (String, u64) {
    position.map(|position| (position.epoch.to_string(), position.offset)).unwrap_or_default()
}

fn publications(messages: &[Arc<Message>]) -> Vec<Publication> {
    messages.iter().map(|message| Publication::from(&**message)).collect()
}

/// A number for a field of 32 bits.
fn narrow(number: impl TryInto<u32>) -> u32 {
    number.try_into().unwrap_or(u32::MAX)
}
