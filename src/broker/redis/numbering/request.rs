//! What instances and Redis tell each other about plain messages: places, requests, markers, and the members.

use bytes::Bytes;

use crate::channel::ChannelName;
use crate::message::Position;

/// Where a plain message stands in the order of Redis.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Place {
    /// The number of the last barrier before the message.
    pub barrier: u64,
    /// How many plain messages of the channel lie between the barrier and the message.
    pub index: u64,
}

impl Place {
    /// A place after a barrier.
    pub fn new(barrier: u64, index: u64) -> Self {
        Self { barrier, index }
    }

    /// The place `count` messages later, without a barrier in between.
    pub fn plus(self, count: usize) -> Self {
        Self { index: self.index + count as u64, ..self }
    }
}

/// Says that plain messages have been appended to the history.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Marker {
    /// The channel of the messages.
    pub channel: ChannelName,
    /// The position of the first message.
    pub first: Position,
    /// The stamp of the messages.
    pub stamp: u64,
    /// The place of the first message.
    pub place: Place,
    /// How many messages there are. No barrier lies between them.
    pub count: usize,
    /// The bytes of all payloads.
    pub bytes: usize,
}

/// A request to append plain messages to the history of their channel. It states a fact that never changes,
/// so executing it late or twice does no harm: since the barrier `since`, all messages before `place` have been
/// appended, and the messages from `place` on are these.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Append {
    /// The channel of the messages.
    pub channel: ChannelName,
    /// The member that received the messages.
    pub since: u64,
    /// The place of the first message.
    pub place: Place,
    /// The messages. No barrier lies between them.
    pub payloads: Vec<Bytes>,
}

/// What Redis tells all members on one channel whenever a member renews, joins or leaves.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Announcement {
    /// The number of the barrier that this message is, and the word that the new member chose; `None` if it
    /// is no barrier.
    pub barrier: Option<(u64, u64)>,
    /// The members, the oldest first.
    pub members: Vec<u64>,
}
