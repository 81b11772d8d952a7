//! The content of messages to and from a client. A dialect turns entries of a channel and notices
//! of the server into messages, and messages of a client into commands. It knows neither framing
//! nor sockets, logs or Redis. To add one, add a file here and a line in `encoding.rs`.
//!
//! A dialect has no state: subscribers share the messages that it writes. Data of one subscriber
//! comes as [`SubscriberData`].

pub mod centrifuge;
pub mod command;
pub mod events;
pub mod json;
pub mod raw;

use bytes::Bytes;

use self::command::{
    Command, CommandError, CommandId, PublishOptions, PublishRequest, Reply, Request, SubscriptionEnd,
};
use super::framing::{FrameWriter, Kind};
use crate::channel::ChannelName;
use crate::close::{Close, Code};
use crate::message::{Entry, Position};
use crate::presence::Change;

/// Where a subscription starts in its channel.
#[derive(Clone, Copy, Debug)]
pub struct SubscriptionStart<'a> {
    /// The name of the channel.
    pub channel: &'a ChannelName,
    /// The position after which it starts; `None` if the channel keeps no history.
    pub position: Option<Position>,
    /// The newest offset of the channel. Messages up to it are older than the subscription.
    pub head: Option<u64>,
    /// Whether the channel is keyed.
    pub keyed: bool,
}

/// Data of one subscriber for its frames.
#[derive(Clone, Copy, Debug)]
pub struct SubscriberData<'a> {
    /// The positions of the client in its channels after the entry.
    pub positions: &'a [Option<Position>],
}

/// A message format for both directions.
pub trait Dialect: Sync {
    /// Whether frames differ per subscriber. Entries are then written by
    /// [`Dialect::write_subscriber_entry`].
    fn is_per_subscriber(&self) -> bool {
        false
    }

    /// Writes the first message to a client: the instance, and the start of each subscription.
    fn write_connected(&self, instance: &str, starts: &[SubscriptionStart<'_>], out: &mut FrameWriter<'_>);

    /// Tells the client that it waits for the broker.
    fn write_waiting(&self, _: &mut FrameWriter<'_>) {}

    /// Writes an entry, for all subscribers.
    ///
    /// # Errors
    /// Returns the close for the subscribers if the dialect cannot express the entry.
    fn write_entry(&self, channel: &ChannelName, entry: &Entry, out: &mut FrameWriter<'_>) -> Result<(), Close>;

    /// Writes an entry, for one subscriber.
    ///
    /// # Errors
    /// As [`Dialect::write_entry`].
    fn write_subscriber_entry(
        &self,
        channel: &ChannelName,
        entry: &Entry,
        _: &SubscriberData<'_>,
        out: &mut FrameWriter<'_>,
    ) -> Result<(), Close> {
        self.write_entry(channel, entry, out)
    }

    /// Writes a keepalive for a quiet connection: that of the framing, unless the dialect has one.
    fn write_keepalive(&self, out: &mut FrameWriter<'_>) {
        out.keepalive();
    }

    /// Writes the last message before the framing closes the connection.
    fn write_farewell(&self, _: &Close, _: &mut FrameWriter<'_>) {}

    /// Whether clients begin with [`Request::Connect`], and name channels later by commands, instead
    /// of in the URL. The server then pings them at regular intervals, also while they send.
    fn awaits_connect(&self) -> bool {
        false
    }

    /// The code of a close frame.
    fn close_number(&self, code: Code) -> Option<u16> {
        code.number()
    }

    /// Parses the commands in a message of a client, which was sent as this kind. By default, the
    /// message itself is to be published: its bytes say of which kind it is.
    ///
    /// # Errors
    /// Returns the close for the client if the message is not valid.
    fn commands(&self, _: Kind, message: Bytes, take: &mut dyn FnMut(Command)) -> Result<(), Close> {
        let size = message.len();
        let request = PublishRequest { channel: None, payload: message, options: PublishOptions::default() };
        take(Command { id: None, request: Request::Publish(request), size });
        Ok(())
    }

    /// Writes the answer to a command. By default there is none.
    fn write_reply(&self, _: CommandId, _: &Reply<'_>, _: &mut FrameWriter<'_>) {}

    /// Writes that a command failed. Returns `false` if the dialect has no such message, so that
    /// the client must be closed.
    fn write_error(&self, _: Option<CommandId>, _: &CommandError, _: &mut FrameWriter<'_>) -> bool {
        false
    }

    /// Writes that the server has ended a subscription. Returns `false` if the dialect has no such
    /// message, so that the client must be closed.
    fn write_unsubscribed(&self, _: &ChannelName, _: SubscriptionEnd, _: &mut FrameWriter<'_>) -> bool {
        false
    }

    /// Writes that a client has come to a channel or gone from it. By default, clients are not told.
    fn write_presence_change(&self, _: &ChannelName, _: &Change, _: &mut FrameWriter<'_>) {}
}
