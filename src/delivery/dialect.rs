//! What the messages to and from a client say. A dialect turns a channel's entries and the server's notices into
//! messages, and a client's messages into commands. It knows neither framing nor sockets, logs or Redis. A new one is a
//! new file here and a line in `encoding.rs`.
//!
//! A dialect itself has no state: what it writes for an entry is shared by all its subscribers. What it must know of
//! one connection it is handed as [`Personal`].

pub mod events;
pub mod json;
pub mod raw;

use std::num::NonZeroU32;

use bytes::Bytes;

use super::framing::FrameWriter;
use crate::channel::ChannelName;
use crate::close::Close;
use crate::message::{Entry, Position};

/// Where a subscription starts in its channel.
#[derive(Clone, Copy, Debug)]
pub struct SubscriptionStart<'a> {
    /// Which channel.
    pub channel: &'a ChannelName,
    /// The position that it starts after; `None` where the channel keeps no history.
    pub position: Option<Position>,
    /// The channel's newest offset: messages up to it are the past.
    pub head: Option<u64>,
}

/// What a frame of a personal dialect may contain of the one connection it is for.
#[derive(Clone, Copy, Debug)]
pub struct Personal<'a> {
    /// What the client holds in each of its channels once it has received the entry.
    pub positions: &'a [Option<Position>],
}

/// The number by which a client matches an answer to its command.
pub type CommandId = NonZeroU32;

/// What a client asks for.
#[derive(Debug)]
pub struct Command {
    /// `None` where the dialect has no ids.
    pub id: Option<CommandId>,
    /// What is to be published, verbatim. (The first verb; others make this an enum.)
    pub payload: Bytes,
}

/// One way to tell a client what happens, and to understand it.
pub trait Dialect: Sync {
    /// Whether frames contain something of one subscriber, so that none can be shared: entries are then written by
    /// [`Dialect::write_personal_entry`].
    fn is_personal(&self) -> bool {
        false
    }

    /// What a client is told first: the instance, and where each of its subscriptions starts.
    fn write_connected(&self, instance: &str, starts: &[SubscriptionStart<'_>], out: &mut FrameWriter<'_>);

    /// Writes what a client is told that is kept until its channels can be joined.
    fn write_waiting(&self, _: &mut FrameWriter<'_>) {}

    /// Writes an entry, for all subscribers.
    ///
    /// # Errors
    /// The dialect has no words for the entry: its subscribers are to be closed for this reason.
    fn write_entry(&self, channel: &ChannelName, entry: &Entry, out: &mut FrameWriter<'_>) -> Result<(), Close>;

    /// Writes an entry, for one subscriber.
    ///
    /// # Errors
    /// As [`Dialect::write_entry`].
    fn write_personal_entry(
        &self,
        channel: &ChannelName,
        entry: &Entry,
        _: &Personal<'_>,
        out: &mut FrameWriter<'_>,
    ) -> Result<(), Close> {
        self.write_entry(channel, entry, out)
    }

    /// Writes what keeps a quiet connection alive: the framing's own keepalive, unless the dialect has one.
    fn write_keepalive(&self, out: &mut FrameWriter<'_>) {
        out.keepalive();
    }

    /// Writes what a client is told before the framing closes the connection.
    fn write_farewell(&self, _: &Close, _: &mut FrameWriter<'_>) {}

    /// Understands a client's message.
    ///
    /// # Errors
    /// The message makes no sense: the client is to be closed for this reason.
    fn command(&self, message: Bytes) -> Result<Command, Close> {
        Ok(Command { id: None, payload: message })
    }

    /// Writes that a command failed; `false` where the dialect has no words for that, so that the client must be closed.
    fn write_error(&self, _: Option<CommandId>, _code: &str, _message: &str, _: &mut FrameWriter<'_>) -> bool {
        false
    }
}
