//! The Centrifuge client protocol, version 2, as JSON: what its SDKs speak. `incoming` reads
//! commands, `outgoing` writes replies and pushes, `protobuf` is the protocol's other form.
//! docs/centrifuge.md says which parts of the protocol there are.

mod codes;
mod incoming;
mod outgoing;
pub mod protobuf;

use bytes::Bytes;

use self::incoming::read;
use self::outgoing::{Answer, Body, Failure, Push};
use super::command::{Command, CommandError, CommandId, Reply, SubscriptionEnd};
use super::{Dialect, SubscriptionStart};
use crate::channel::ChannelName;
use crate::close::{Close, Code};
use crate::delivery::framing::{FrameWriter, Kind};
use crate::json;
use crate::message::Entry;
use crate::presence::Change;

/// The dialect.
pub struct Centrifuge;

impl Dialect for Centrifuge {
    /// Clients learn this by the reply to their first command.
    fn write_connected(&self, _: &str, _: &[SubscriptionStart<'_>], _: &mut FrameWriter<'_>) {}

    fn write_entry(&self, channel: &ChannelName, entry: &Entry, out: &mut FrameWriter<'_>) -> Result<(), Close> {
        match entry {
            Entry::Message(message) => {
                out.text(|out| json::write(&Push::publication(channel, message), out));
                Ok(())
            }
            Entry::Gap(gap) => Err(Close::new(Code::Gap, gap.reason.explanation())),
        }
    }

    /// The empty reply is a ping.
    fn write_keepalive(&self, out: &mut FrameWriter<'_>) {
        out.message(Kind::Text, b"{}");
    }

    fn awaits_connect(&self) -> bool {
        true
    }

    fn close_number(&self, code: Code) -> Option<u16> {
        codes::close(code)
    }

    fn commands(&self, _: Kind, message: Bytes, take: &mut dyn FnMut(Command)) -> Result<(), Close> {
        read(&message, take)
    }

    fn write_reply(&self, id: CommandId, reply: &Reply<'_>, out: &mut FrameWriter<'_>) {
        out.text(|out| json::write(&Answer { id: id.get(), body: Body::from(reply) }, out));
    }

    fn write_error(&self, id: Option<CommandId>, error: &CommandError, out: &mut FrameWriter<'_>) -> bool {
        let Some(id) = id else { return false };
        let (code, temporary) = codes::error(error);
        let failure = Failure { code, message: &error.to_string(), temporary };
        out.text(|out| json::write(&Answer { id: id.get(), body: Body::Error(failure) }, out));
        true
    }

    fn write_unsubscribed(&self, channel: &ChannelName, end: SubscriptionEnd, out: &mut FrameWriter<'_>) -> bool {
        let (code, reason) = codes::unsubscribed(end);
        out.text(|out| json::write(&Push::unsubscribe(channel, code, reason), out));
        true
    }

    fn write_presence_change(&self, channel: &ChannelName, change: &Change, out: &mut FrameWriter<'_>) {
        out.text(|out| json::write(&Push::presence_change(channel, change), out));
    }
}
