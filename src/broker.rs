//! The interface between the hub and a message broker. It has two implementations:
//! `broker/memory.rs` (one process) and `broker/redis` (any number of instances). One test suite
//! runs against both.
//!
//! A broker guarantees:
//! * After it queues [`Event::Subscribed`] for a channel, it queues every later message of the
//!   channel, in the order of publishing. If it loses messages, it either queues `Subscribed` or
//!   `Missed`, or the offsets show the loss.
//! * After a publish returns `Ok`, the message is in the history, if the channel keeps one.
//! * [`Broker::read`] answers from the history alone, and reports whether messages are missing.

pub mod memory;
pub mod redis;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt, ready};

use crate::channel::ChannelName;
use crate::message::{Gap, Message, Position};
use crate::presence::{Everybody, News, Update, Updated};

/// A message to publish.
#[derive(Clone, Debug)]
pub struct Publication {
    /// The channel to publish to.
    pub channel: ChannelName,
    /// The payload, which is relayed unchanged.
    pub payload: Bytes,
    /// On a keyed channel: the key whose new value this message is.
    pub key: Option<Arc<str>>,
    /// On a keyed channel: removes the key.
    pub remove: bool,
    /// The idempotency id, which makes a retry safe: within ten minutes, the broker stores only one
    /// message with this id on this channel. It refuses the id with another payload, key or
    /// `remove`.
    pub id: Option<Arc<str>>,
}

/// The newest position of a channel. The stamp distinguishes two messages with the same position,
/// as a failover can produce them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tail {
    /// The position of the newest message; offset 0 before the first message.
    pub position: Position,
    /// [`Message::stamp`] of the message at that position; 0 if unknown.
    pub stamp: u64,
}

/// Where to start reading a channel's history.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReadFrom {
    /// Read no messages, only the tail.
    Tail,
    /// From the oldest stored message.
    Oldest,
    /// The last N messages.
    Last(usize),
    /// All messages after the position that a client holds.
    After(Position),
    /// The same, but if messages are missing, the page has only the gap: for a reader to whom the others
    /// are of no use then.
    AfterIfKept(Position),
    /// All messages after the last one that this instance delivered. If the stamp shows that the
    /// history has diverged (after a failover to a replica that lacked the newest messages), the
    /// broker starts a new epoch for the channel.
    AfterDelivered(Tail),
    /// On a keyed channel: the current value of every key.
    Keys,
}

/// A page of a channel's history.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Page {
    /// Messages that are missing before the first one, if any.
    pub gap: Option<Gap>,
    /// The messages in the order of their offsets.
    pub messages: Vec<Arc<Message>>,
    /// The position that a reader holds after it has received the messages.
    pub through: Tail,
    /// The newest position when the page was read.
    pub tail: Tail,
}

impl Page {
    /// On a page of [`ReadFrom::Keys`]: the newest position up to which the page has one value of each
    /// key. What took the broker several reads may hold a value, and what has become of it meanwhile.
    pub fn settled(&self) -> Position {
        let mut keys = HashSet::with_capacity(self.messages.len());
        let unsettled = self.messages.iter().find(|message| message.removed || !keys.insert(message.key.as_deref()));
        let through = self.through.position;
        let offset = unsettled.and_then(|message| message.position).map(|position| position.offset);
        offset.map_or(through, |offset| Position::new(through.epoch, offset.saturating_sub(1)))
    }
}

/// How long what an instance tells about the clients of a channel holds, unless it tells it again.
pub const PRESENCE_HOLDS: Duration = Duration::from_secs(25);

/// The maximum number of messages in a page.
pub const PAGE_MESSAGES: usize = 1000;
/// The maximum payload bytes in a page. A page may exceed it with a single message.
pub const PAGE_BYTES: usize = 4 << 20;

/// Why a broker operation failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BrokerError {
    /// The broker is unreachable or did not answer in time. A publish may or may not have taken
    /// effect.
    #[error(
        "the broker is unavailable: {0}; try again, with the same Idempotency-Key if the message must not appear twice"
    )]
    Unavailable(String),
    /// A keyed channel has reached its limit.
    #[error("the keyed channel is full ({0}); remove keys, or raise its limits in the rules")]
    KeyedChannelFull(String),
    /// A publication has `key` or `remove`, but the channel is not keyed.
    #[error("the channel is not keyed; add `keyed = true` to its rule, or leave out `key` and `remove`")]
    NotKeyed,
    /// Another message of the channel was published with the same idempotency id.
    #[error(
        "this Idempotency-Key was used for another message on this channel within the last ten minutes; \
         use a new key for a new message"
    )]
    IdReused,
    /// The broker does not allow subscriptions to this channel.
    #[error("the broker does not allow livebridge to subscribe to the channel {0}")]
    ChannelRefused(ChannelName),
    /// The broker refused the operation: it is out of memory, read-only, or denies a permission.
    #[error("the broker refused: {0}")]
    Refused(String),
}

impl BrokerError {
    /// The machine-readable error code in responses.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Unavailable(_) => "broker_unavailable",
            Self::KeyedChannelFull(_) => "keyed_channel_full",
            Self::NotKeyed => "channel_not_keyed",
            Self::IdReused => "idempotency_key_reused",
            Self::ChannelRefused(_) => "channel_refused",
            Self::Refused(_) => "broker_refused",
        }
    }
}

/// An event that a broker passes to its [`EventSink`], in order.
#[derive(Debug)]
pub enum Event {
    /// From now on, the broker delivers every message of the channel. Repeated after each
    /// reconnect.
    Subscribed(ChannelName),
    /// A message arrived.
    Arrived(ChannelName, Message),
    /// A message of the channel was lost in transit.
    Missed(ChannelName),
    /// The broker refused the subscription to the channel, and has ended it.
    Refused(ChannelName),
    /// Clients have come to or gone from the channel. Some of these events may be lost.
    Presence(ChannelName, News),
}

/// How many channels a request subscribes to. The broker subscribes the channels of small requests
/// first, so that a client with a few channels does not wait for clients with thousands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RequestSize {
    /// At most [`Self::MOST_SMALL`].
    Small,
    /// More than [`Self::MOST_SMALL`].
    Large,
}

impl RequestSize {
    /// The maximum number of channels in a small request.
    pub const MOST_SMALL: usize = 10;

    /// The size of a request for this number of channels.
    pub fn of(channels: usize) -> Self {
        if channels <= Self::MOST_SMALL { Self::Small } else { Self::Large }
    }
}

/// Receives the events of a broker. The hub implements it. Only [`EventSink::room`] waits.
pub trait EventSink: Send + Sync + 'static {
    /// Queues an event after those queued before. The caller must then call [`EventSink::process`]
    /// or [`EventSink::wake`]. If there is no room for a message, the sink drops it and queues
    /// [`Event::Missed`] in its place.
    fn add(&self, event: Event);

    /// Queues all events in order under one lock, and empties the vector.
    fn add_all(&self, events: &mut Vec<Event>);

    /// Wakes the task of the sink, which processes the queued events.
    fn wake(&self);

    /// Processes the queued events on the calling thread, which avoids waking another one. If there
    /// are many events, or if another thread is processing them, wakes the task of the sink
    /// instead.
    fn process(&self) {
        self.wake();
    }

    /// Whether the queue is less than half full.
    fn has_room(&self) -> bool;

    /// Waits until the queue is less than half full.
    fn room(&self) -> BoxFuture<'_, ()>;

    /// Queues an event and wakes the task of the sink.
    fn push(&self, event: Event) {
        self.add(event);
        self.wake();
    }
}

/// Whether publishing and receiving work.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Health {
    /// Both work.
    Up,
    /// Both work for some channels only, for this reason.
    Degraded(String),
    /// At least one of them fails, for this reason.
    Down(String),
}

/// How much of a broker with several servers works.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct ShardCounts {
    /// The known shards.
    pub shards: usize,
    /// Those of them for which publishing and receiving work.
    pub up: usize,
    /// How many hash slots have a master.
    pub slots: usize,
}

/// Carries messages between instances.
pub trait Broker: Send + Sync + 'static {
    /// Publishes each message, in order per channel. Returns one result per message, in the order
    /// of the batch: the position of the message, or `None` if the channel keeps no history. Always
    /// completes within a bounded time.
    fn publish(&self, batch: Vec<Publication>) -> BoxFuture<'_, Vec<Result<Option<Position>, BrokerError>>>;

    /// Subscribes to a channel, for a client's request of that size. Returns at once; the sink
    /// receives [`Event::Subscribed`] or [`Event::Refused`] later. While the broker is down, it
    /// remembers the channel and subscribes to it after reconnecting.
    ///
    /// # Errors
    /// [`BrokerError::ChannelRefused`], without subscribing, for some time after the broker refused
    /// the channel.
    fn subscribe(&self, channel: &ChannelName, request: RequestSize) -> Result<(), BrokerError>;

    /// Ends the subscription to a channel. Messages in transit may still arrive.
    fn unsubscribe(&self, channel: &ChannelName);

    /// Reads a page of a channel's history; `None` if the channel keeps none. Returns at most
    /// `limit` messages, and at most [`PAGE_MESSAGES`]; but all values of a keyed channel, or all that have
    /// changed after a position that the history no longer has.
    ///
    /// # Errors
    /// [`BrokerError::Unavailable`] or [`BrokerError::Refused`] if the broker cannot read the
    /// history.
    fn read<'a>(
        &'a self,
        channel: &'a ChannelName,
        from: ReadFrom,
        limit: usize,
    ) -> BoxFuture<'a, Result<Option<Page>, BrokerError>>;

    /// Tells the broker who is on channels of this instance. It queues an [`Event::Presence`] for the
    /// changes, on all instances that are subscribed to the channel. Returns one result for each
    /// update. By default, a broker has no presence.
    fn write_presence(&self, updates: Vec<Update>) -> BoxFuture<'_, Vec<Result<Updated, BrokerError>>> {
        ready(updates.iter().map(|_| Err(no_presence())).collect()).boxed()
    }

    /// Reads who is on a channel, on all instances.
    ///
    /// # Errors
    /// [`BrokerError::Unavailable`] or [`BrokerError::Refused`] if the broker cannot read it.
    fn read_presence<'a>(&'a self, _channel: &'a ChannelName) -> BoxFuture<'a, Result<Everybody, BrokerError>> {
        ready(Err(no_presence())).boxed()
    }

    /// The instance is about to stop: other instances should take over what it does for all of them.
    fn leave(&self) {}

    /// Whether the broker works now.
    fn health(&self) -> Health;

    /// Whether the broker works for a channel.
    fn health_of(&self, _channel: &ChannelName) -> Health {
        self.health()
    }

    /// The shards, if the broker has several servers.
    fn shards(&self) -> Option<ShardCounts> {
        None
    }
}

fn no_presence() -> BrokerError {
    BrokerError::Refused("this broker has no presence".into())
}
