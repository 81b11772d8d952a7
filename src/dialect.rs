//! What a subscriber's bytes look like. A dialect turns entries of a channel into frames; it knows nothing of sockets,
//! logs or Redis. A new one is a new file here and a line where its transport chooses it.

pub mod envelope;
pub mod events;
pub mod frame;
pub mod json;
pub mod raw;

use crate::channel::ChannelName;
use crate::close::Close;
use crate::message::{Entry, Position};

/// Where a subscriber begins in a channel.
#[derive(Clone, Copy, Debug)]
pub struct Standing<'a> {
    /// Which channel.
    pub channel: &'a ChannelName,
    /// The position that it starts after; `None` where the channel keeps no history.
    pub position: Option<Position>,
    /// The channel's newest offset: messages up to it are the past.
    pub head: Option<u64>,
}

/// One way to encode what a subscriber receives. All text and binary frames of a dialect can be shared between its
/// subscribers, unless it is [`Dialect::personal`].
pub trait Dialect: Sync {
    /// Tells dialects apart.
    fn name(&self) -> &'static str;

    /// Whether frames contain something of the subscriber's own, so that none can be shared.
    fn personal(&self) -> bool {
        false
    }

    /// What a subscriber receives first: the instance, and where it begins in each channel.
    fn welcome(&self, instance: &str, channels: &[Standing<'_>], out: &mut Vec<u8>);

    /// Appends an entry as one ready frame. `positions`, for a personal dialect alone, are what the subscriber holds in each
    /// of its channels once it has received the entry. An error ends the subscriber with that reason.
    fn encode(
        &self,
        channel: &ChannelName,
        entry: &Entry,
        positions: &[Option<Position>],
        out: &mut Vec<u8>,
    ) -> Result<(), Close>;

    /// Something to keep a quiet connection alive and to see that the other side is there.
    fn heartbeat(&self, out: &mut Vec<u8>);

    /// The last bytes before the connection is closed for a reason.
    fn farewell(&self, close: &Close, out: &mut Vec<u8>);

    /// What a subscriber receives whose own message could not be published; `false` where it must be closed instead.
    fn publish_error(&self, code: &str, message: &str, out: &mut Vec<u8>) -> bool;
}
