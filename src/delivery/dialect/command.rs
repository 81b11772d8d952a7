//! What a client can ask for over its connection, and what it is answered, as all dialects with
//! commands share it. `delivery/commands.rs` carries commands out; how they are written is up to the
//! dialect.

use std::num::NonZeroU32;
use std::sync::Arc;

use bytes::Bytes;

use crate::access::AccessError;
use crate::access::secret::Secret;
use crate::broker::BrokerError;
use crate::channel::{ChannelError, ChannelName};
use crate::hub::held_page::PageError;
use crate::hub::topic::Start;
use crate::message::{Message, Position};
use crate::presence::Everybody;
use crate::transport::refusal::Refusal;

/// The number by which a client matches an answer to its command.
pub type CommandId = NonZeroU32;

/// A command of a client.
#[derive(Debug)]
pub struct Command {
    /// `None` if the dialect has no ids, or if the command has no answer.
    pub id: Option<CommandId>,
    /// What the client asks for.
    pub request: Request,
    /// The size of the command as the client sent it, in bytes.
    pub size: usize,
}

/// What a client asks for.
#[derive(Debug)]
pub enum Request {
    /// To publish.
    Publish(PublishRequest),
    /// To be let in. The first command in a dialect that has it.
    Connect(Box<ConnectRequest>),
    /// To subscribe to a channel.
    Subscribe(Box<SubscribeRequest>),
    /// To read some of the values of a keyed channel, before a subscription to them as a map.
    Values(Box<ValuesRequest>),
    /// To end the subscription to a channel.
    Unsubscribe(ChannelName),
    /// To read the history of a channel.
    History(Box<HistoryRequest>),
    /// To read who is on a channel.
    Presence(ChannelName),
    /// To read how many are.
    PresenceStats(ChannelName),
    /// To stay longer, with another token.
    Refresh(Secret),
    /// To stay subscribed to a channel for longer, with another token for it.
    RefreshSubscription(Box<(ChannelName, Secret)>),
    /// Whether the server is there.
    Ping,
    /// Nothing: the command has no answer.
    Nothing,
    /// Something that the dialect refuses.
    Refused(Box<CommandError>),
}

/// A message to publish.
#[derive(Debug)]
pub struct PublishRequest {
    /// The channel; `None` for the only one of the connection.
    pub channel: Option<ChannelName>,
    /// The payload, unchanged.
    pub payload: Bytes,
    /// What the channel needs besides it.
    pub options: PublishOptions,
}

/// How to publish a message, as `POST /publish` has it too.
#[derive(Debug, Default)]
pub struct PublishOptions {
    /// On a keyed channel: the key whose new value the message is.
    pub key: Option<Arc<str>>,
    /// On a keyed channel: removes the key.
    pub remove: bool,
    /// The idempotency id, which makes a retry safe.
    pub id: Option<Arc<str>>,
}

/// The first command of a client.
#[derive(Debug)]
pub struct ConnectRequest {
    /// The token of the client. Without one, that of the HTTP request applies.
    pub token: Option<Secret>,
    /// Whether the client reads the epoch of a message. Otherwise it learns of an epoch only when it
    /// subscribes, and its subscriptions end with the epoch.
    pub reads_epochs: bool,
    /// Channels to subscribe to at once.
    pub subscriptions: Vec<SubscribeRequest>,
}

/// A channel to subscribe to.
#[derive(Debug)]
pub struct SubscribeRequest {
    /// The name of the channel.
    pub channel: ChannelName,
    /// A token for this subscription. Without one, that of the connection counts.
    pub token: Option<Secret>,
    /// The position that the client holds, if it wants to go on from there.
    pub recover: Option<Since>,
    /// Whether to refuse the subscription if the messages after that position are not all there.
    pub all_or_nothing: bool,
    /// Where to start without such a position, or if they are not.
    pub start: Start,
    /// Whether to describe the channel in the answer.
    pub describe: bool,
    /// Whether the client wants to be told who comes and goes.
    pub join_leave: bool,
    /// As what the client holds the values of a keyed channel. With a map, `recover` is the position
    /// of its values, and `all_or_nothing` is set.
    pub map: Option<MapOrigin>,
}

/// Where a client has the values of its map from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MapOrigin {
    /// It has just read them, and has not shown them yet.
    Read,
    /// It has them from an earlier subscription.
    Kept,
}

/// Which values of a keyed channel to read.
#[derive(Debug)]
pub struct ValuesRequest {
    /// The name of the channel.
    pub channel: ChannelName,
    /// The token of the subscription, if it has one of its own.
    pub token: Option<Secret>,
    /// The maximum number of values; `None` for as many as a page has.
    pub limit: Option<usize>,
    /// Where the page begins; `None` for the first one.
    pub after: Option<ValuesAfter>,
}

/// Where a page of values begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ValuesAfter {
    /// The position that came with the first page.
    pub position: Since,
    /// The offset that came with the page before.
    pub offset: u64,
}

/// A position as a client gives it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Since {
    /// `None` for the current epoch, whichever it is.
    pub epoch: Option<u64>,
    /// The number of the last message that the client has.
    pub offset: u64,
}

/// What to read of a history.
#[derive(Debug)]
pub struct HistoryRequest {
    /// The name of the channel.
    pub channel: ChannelName,
    /// The maximum number of messages; `None` for as many as a page has.
    pub limit: Option<usize>,
    /// The messages after this position or, in reverse, before it.
    pub since: Option<Since>,
    /// Newest first.
    pub reverse: bool,
}

/// The answer to a command that was carried out.
#[derive(Debug)]
pub enum Reply<'a> {
    /// The client is let in.
    Connected(&'a Connected<'a>),
    /// The client is subscribed.
    Subscribed(&'a Subscribed),
    /// Some of the values of a keyed channel.
    Values(&'a Values),
    /// The client is not subscribed (any more).
    Unsubscribed,
    /// The message is published, and has this position if its channel keeps a history.
    Published(Option<Position>),
    /// A part of a history, and the newest position of the channel.
    History(&'a [Arc<Message>], Position),
    /// Who is on a channel.
    Presence(&'a Everybody),
    /// How many are.
    PresenceStats(&'a Everybody),
    /// The client may stay for so many seconds, or without a limit.
    Refreshed(Option<u64>),
    /// It may stay subscribed for so many seconds, or without a limit.
    SubscriptionRefreshed(Option<u64>),
    /// The server is there.
    Pong,
}

/// The answer to [`Request::Connect`].
#[derive(Debug)]
pub struct Connected<'a> {
    /// A name for the client that no other has.
    pub client: String,
    /// The name of the instance.
    pub instance: &'a str,
    /// After how many seconds the client needs another token; `None` for never.
    pub refresh_after: Option<u64>,
    /// The interval of the server's pings, in seconds.
    pub ping_seconds: u32,
    /// The subscriptions that were made.
    pub subscriptions: &'a [(ChannelName, Subscribed)],
}

/// The answer to [`Request::Subscribe`].
#[derive(Debug)]
pub struct Subscribed {
    /// The position of the client before the missed messages and all later ones, or after the missed
    /// ones if it has a map; `None` if the channel keeps no history.
    pub position: Option<Position>,
    /// After how many seconds the subscription needs another token; `None` for never.
    pub refresh_after: Option<u64>,
    /// What became of the position that the client gave.
    pub recovery: Recovery,
    /// The first of the messages that the client missed. The others follow as new ones.
    pub missed: Vec<Arc<Message>>,
    /// The channel, if the client asked for it.
    pub channel: Option<ChannelDescription>,
    /// Whether the client holds the values as a map.
    pub is_map: bool,
}

/// The answer to [`Request::Values`].
#[derive(Debug)]
pub struct Values {
    /// The position of all values of all pages. What has changed since follows with the subscription
    /// after this position.
    pub position: Position,
    /// The newest messages of some keys, in the order of their offsets.
    pub messages: Vec<Arc<Message>>,
    /// The offset after which the next page begins; `None` after the last one.
    pub next_after: Option<u64>,
}

/// What a client may want to know of a channel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ChannelDescription {
    /// The newest offset. Messages up to it are older than the subscription.
    pub head: Option<u64>,
    /// Whether messages are values of keys.
    pub keyed: bool,
}

/// Whether a client goes on from the position that it gave.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Recovery {
    /// It gave none.
    NotAsked,
    /// It does: no message is missing.
    Recovered,
    /// It does not: the history no longer has what the client missed.
    Failed,
}

/// Why the server ends a subscription.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SubscriptionEnd {
    /// The stream of messages does not go on from the position of the client. The client subscribes
    /// again, and learns then whether it missed any.
    Interrupted,
    /// The token of the subscription has expired. The client subscribes again with a new one.
    Expired,
    /// The new token of the client does not allow the channel.
    NotAllowed,
}

/// Why a command was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// The client may not publish through its subscription.
    #[error("this token does not allow publishing to the channel")]
    PublishRefused,
    /// The broker did not do it.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// The client may not do it.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// There can be no such channel.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// The address of the client asks for too much.
    #[error("{}", .0.answer().2)]
    AddressLimit(Refusal),
    /// The client is subscribed to the channel.
    #[error("this connection is subscribed to the channel")]
    AlreadySubscribed,
    /// The connection has as many channels as it may.
    #[error("a connection has at most {0} channels; open another connection for more")]
    TooManyChannels(usize),
    /// The message is too large.
    #[error("a message may have at most {0} bytes")]
    TooLarge(usize),
    /// A member of the command is missing or not valid.
    #[error("{0}")]
    Invalid(&'static str),
    /// This server or this channel does not have it.
    #[error("{0}")]
    NotAvailable(&'static str),
    /// The history no longer has the messages after the given position.
    #[error("the history does not go back to this position; reload your state")]
    PositionGone,
    /// The instance is stopping.
    #[error("this instance is stopping; connect again")]
    Draining,
    /// The budget for outgoing bytes is used up.
    #[error("too much data waits for clients that do not read it; try again in a moment")]
    OutgoingFull,
}

impl CommandError {
    /// The name of the error for programs and logs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::PublishRefused => "publish_refused",
            Self::Broker(error) => error.code(),
            Self::Access(_) => "not_allowed",
            Self::Channel(_) | Self::Invalid(_) => "command_invalid",
            Self::AddressLimit(refusal) => refusal.answer().1,
            Self::AlreadySubscribed => "already_subscribed",
            Self::TooManyChannels(_) => "channels",
            Self::TooLarge(_) => "message_too_big",
            Self::NotAvailable(_) => "not_available",
            Self::PositionGone => "position_gone",
            Self::Draining => "draining",
            Self::OutgoingFull => "outgoing_full",
        }
    }
}

impl From<PageError> for CommandError {
    fn from(error: PageError) -> Self {
        match error {
            PageError::Broker(error) => error.into(),
            PageError::OutgoingFull => Self::OutgoingFull,
        }
    }
}

impl From<Refusal> for CommandError {
    fn from(refusal: Refusal) -> Self {
        Self::AddressLimit(refusal)
    }
}

impl Command {
    /// The memory that the command holds until it is carried out, in bytes.
    pub fn weight(&self) -> usize {
        let subscriptions = if let Request::Connect(request) = &self.request { request.subscriptions.len() } else { 0 };
        size_of::<Self>() + self.size + subscriptions * size_of::<SubscribeRequest>()
    }
}
