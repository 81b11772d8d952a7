//! The default dialect: each message is the payload of a channel's message, unchanged.

use super::{Dialect, SubscriptionStart};
use crate::channel::ChannelName;
use crate::close::{Close, Code};
use crate::delivery::framing::{FrameWriter, Kind};
use crate::message::Entry;

/// Bare payloads: text for UTF-8, binary otherwise. It cannot express anything else, so an error
/// closes the connection.
pub struct Raw;

impl Dialect for Raw {
    fn write_connected(&self, _: &str, _: &[SubscriptionStart<'_>], _: &mut FrameWriter<'_>) {}

    fn write_entry(&self, _: &ChannelName, entry: &Entry, out: &mut FrameWriter<'_>) -> Result<(), Close> {
        match entry {
            Entry::Message(message) => {
                let kind = if message.text().is_some() { Kind::Text } else { Kind::Binary };
                out.message(kind, &message.payload);
                Ok(())
            }
            Entry::Gap(gap) => Err(Close::new(Code::Gap, gap.reason.explanation())),
        }
    }
}
