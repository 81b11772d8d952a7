//! The `format=json` dialect: each message in an envelope with its channel and position. Notices
//! are messages too.

use super::command::{CommandError, CommandId};
use super::{Dialect, SubscriptionStart};
use crate::channel::ChannelName;
use crate::close::Close;
use crate::delivery::framing::FrameWriter;
use crate::json::{self, Connected, Envelope, ErrorNotice, GapNotice};
use crate::message::Entry;

/// The dialect.
pub struct Json;

impl Dialect for Json {
    fn write_connected(&self, instance: &str, starts: &[SubscriptionStart<'_>], out: &mut FrameWriter<'_>) {
        out.text(|out| json::write(&connected(instance, starts), out));
    }

    fn write_entry(&self, channel: &ChannelName, entry: &Entry, out: &mut FrameWriter<'_>) -> Result<(), Close> {
        out.text(|out| match entry {
            Entry::Message(message) => json::write(&Envelope::new(channel, message), out),
            Entry::Gap(gap) => json::write(&GapNotice::new(channel, gap), out),
        });
        Ok(())
    }

    fn write_error(&self, _: Option<CommandId>, error: &CommandError, out: &mut FrameWriter<'_>) -> bool {
        out.text(|out| json::write(&ErrorNotice::new(error.code(), &error.to_string()), out));
        true
    }
}

/// The first notice, also used by the event stream.
pub(super) fn connected<'a>(instance: &'a str, starts: &[SubscriptionStart<'a>]) -> Connected<'a> {
    Connected::new(instance, starts.iter().map(|start| (start.channel, start.position, start.head, start.keyed)))
}
