//! The contract between the hub and whatever carries messages between instances. Two implementations:
//! `broker/memory.rs` (one process) and `broker/redis` (any number of instances). One test suite runs against both.
//!
//! What a broker promises:
//! * Once [`Event::Subscribed`] was queued for a channel, every message of it follows there, in the order
//!   of publishing. Should the broker have lost some on the way, it says `Subscribed` again, or the offsets show it.
//! * A publish that was answered `Ok` is in the history of a channel that keeps one.
//! * [`Broker::read`] answers from the history alone, and says whether something between is gone.

pub mod memory;
pub mod redis;

use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;

use crate::channel::ChannelName;
use crate::message::{Gap, Message, Position};

/// One message on its way in.
#[derive(Clone, Debug)]
pub struct Publication {
    /// Where to.
    pub channel: ChannelName,
    /// What, verbatim.
    pub payload: Bytes,
    /// On a keyed channel: what it is the new value of.
    pub key: Option<Arc<str>>,
    /// On a keyed channel: the key is to be removed.
    pub remove: bool,
    /// Makes a retry safe: the same id on the same channel is stored once within ten minutes, and
    /// refused with another payload, key or `remove`.
    pub id: Option<Arc<str>>,
}

/// The newest position of a channel, with the stamp that tells it from another message of the same number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tail {
    /// Where the channel stands; offset 0 before the first message.
    pub position: Position,
    /// [`Message::stamp`] of the message there; 0 if unknown.
    pub stamp: u64,
}

/// From where to read a channel's history.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReadFrom {
    /// Nothing but where the channel stands.
    Tail,
    /// From the oldest message that is kept.
    Oldest,
    /// The last so many messages.
    Last(usize),
    /// All after a position that a client holds.
    After(Position),
    /// All after what an instance has delivered. Where the stamp shows that the history went another way (a failover
    /// to a replica that lacked the tail), the channel begins a new epoch.
    AfterDelivered(Tail),
    /// On a keyed channel: the current value of every key.
    Keys,
}

/// A piece of a channel's history.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Page {
    /// What is missing before the first message, if anything is.
    pub gap: Option<Gap>,
    /// In the order of their offsets.
    pub messages: Vec<Arc<Message>>,
    /// What one holds after having received the messages.
    pub through: Tail,
    /// Where the channel stood when the page was read.
    pub tail: Tail,
}

/// The most messages in a page.
pub const PAGE_MESSAGES: usize = 1000;
/// The most payload bytes in a page, save that one message always fits.
pub const PAGE_BYTES: usize = 4 << 20;

/// Why a broker did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BrokerError {
    /// Not reachable, or no answer in time. Whether a publish took effect is unknown.
    #[error(
        "the broker is unavailable: {0}; try again, with the same Idempotency-Key if the message must not appear twice"
    )]
    Unavailable(String),
    /// A keyed channel is at its bound.
    #[error("the keyed channel is full ({0}); remove keys, or raise its limits in the rules")]
    KeyedChannelFull(String),
    /// `key` or `remove` for a channel that is not keyed.
    #[error("the channel is not keyed; add `keyed = true` to its rule, or leave out `key` and `remove`")]
    NotKeyed,
    /// An idempotency id that another message of the channel was published with.
    #[error(
        "this Idempotency-Key was used for another message on this channel within the last ten minutes; \
         use a new key for a new message"
    )]
    IdReused,
    /// The broker refuses subscriptions to this channel.
    #[error("the broker does not allow livebridge to subscribe to the channel {0}")]
    ChannelRefused(ChannelName),
    /// The broker refuses: it is out of memory, read-only, or lacks a permission.
    #[error("the broker refused: {0}")]
    Refused(String),
}

impl BrokerError {
    /// The machine-readable name in answers.
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

/// What a broker tells its [`EventSink`], in order.
#[derive(Debug)]
pub enum Event {
    /// From here on every message of the channel arrives. Said again after each reconnect.
    Subscribed(ChannelName),
    /// A message arrived.
    Arrived(ChannelName, Message),
    /// A message of the channel is known to have been lost on the way.
    Missed(ChannelName),
    /// The broker refuses the subscription to the channel, which is over.
    Refused(ChannelName),
}

/// How many channels a client asks for at once. Channels of small requests come first, so that a
/// client of a few channels does not wait behind others with very many.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RequestSize {
    /// At most [`Self::MOST_SMALL`].
    Small,
    /// More than [`Self::MOST_SMALL`].
    Large,
}

impl RequestSize {
    /// The most channels of a small request.
    pub const MOST_SMALL: usize = 10;

    /// The size of a request for so many channels.
    pub fn of(channels: usize) -> Self {
        if channels <= Self::MOST_SMALL { Self::Small } else { Self::Large }
    }
}

/// Where a broker delivers its events. The hub implements it; nothing here waits but [`EventSink::room`].
pub trait EventSink: Send + Sync + 'static {
    /// Queues an event behind those before it. [`EventSink::process`] or [`EventSink::wake`] must follow.
    /// A message that finds no room is dropped, and [`Event::Missed`] takes its place.
    fn add(&self, event: Event);

    /// Queues events in their order and empties the vector, with one lock for all.
    fn add_all(&self, events: &mut Vec<Event>);

    /// Has the queued events processed by the task of the sink.
    fn wake(&self);

    /// Processes the queued events on the calling thread, which saves waking another one. Wakes the
    /// task of the sink instead if there are many, or if another thread is processing events.
    fn process(&self) {
        self.wake();
    }

    /// Whether the queue is less than half full.
    fn has_room(&self) -> bool;

    /// Waits until the queue is less than half full.
    fn room(&self) -> BoxFuture<'_, ()>;

    /// Queues an event, and wakes the task of the sink.
    fn push(&self, event: Event) {
        self.add(event);
        self.wake();
    }
}

/// Whether publishing and receiving work.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Health {
    /// Both do.
    Up,
    /// At least one does not; why.
    Down(String),
}

/// What carries messages between instances.
pub trait Broker: Send + Sync + 'static {
    /// Publishes each message, in order per channel; the results stand in the order asked, each the message's
    /// position, or `None` where the channel keeps no history. Ends within a bounded time, whatever happens.
    fn publish(&self, batch: Vec<Publication>) -> BoxFuture<'_, Vec<Result<Option<Position>, BrokerError>>>;

    /// Wants the channel's messages, for a client's request of that size. Never waits; the sink is told
    /// `Subscribed` or `Refused`.
    ///
    /// # Errors
    /// [`BrokerError::ChannelRefused`] for a while after the broker refused the channel. Then nothing is
    /// wanted. While the broker is down the channel is wanted as soon as it is back.
    fn subscribe(&self, channel: &ChannelName, request: RequestSize) -> Result<(), BrokerError>;

    /// Wants them no more. Some may still arrive.
    fn unsubscribe(&self, channel: &ChannelName);

    /// Reads a channel's history; `None` if the channel keeps none. `limit` is capped by [`PAGE_MESSAGES`].
    fn read<'a>(
        &'a self,
        channel: &'a ChannelName,
        from: ReadFrom,
        limit: usize,
    ) -> BoxFuture<'a, Result<Option<Page>, BrokerError>>;

    /// Whether it works now.
    fn health(&self) -> Health;
}
