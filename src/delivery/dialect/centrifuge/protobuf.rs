//! The Centrifuge client protocol, version 2, as Protobuf: what the SDKs for Java, Swift and Dart
//! speak. It says the same as the JSON form, with the same numbers, in binary messages. `incoming`
//! has the messages of clients, `outgoing` those of the server.
//!
//! The structs there have the fields that livebridge reads or writes, with the numbers of the
//! protocol's definition (client.proto of centrifugal/protocol). They are written by hand: so a build
//! needs neither protoc nor a build script, and what is not read is skipped without being stored.

mod incoming;
mod outgoing;

use bytes::Bytes;
use prost::Message as _;

use self::incoming::read;
use self::outgoing::{Body, Failure, Push, Reply as WireReply};
use super::super::command::{Command, CommandError, CommandId, Reply, SubscriptionEnd};
use super::super::{Dialect, SubscriptionStart};
use super::codes;
use super::incoming::invalid;
use crate::channel::ChannelName;
use crate::close::{Close, Code};
use crate::delivery::framing::{FrameWriter, Kind};
use crate::message::Entry;
use crate::presence::Change;

/// The dialect.
pub struct CentrifugeProtobuf;

impl Dialect for CentrifugeProtobuf {
    /// Clients learn this by the reply to their first command.
    fn write_connected(&self, _: &str, _: &[SubscriptionStart<'_>], _: &mut FrameWriter<'_>) {}

    fn write_entry(&self, channel: &ChannelName, entry: &Entry, out: &mut FrameWriter<'_>) -> Result<(), Close> {
        match entry {
            Entry::Message(message) => {
                push(Push::publication(channel, message), out);
                Ok(())
            }
            Entry::Gap(gap) => Err(Close::new(Code::Gap, gap.reason.explanation())),
        }
    }

    /// The empty reply is a ping.
    fn write_keepalive(&self, out: &mut FrameWriter<'_>) {
        write(&WireReply::default(), out);
    }

    fn awaits_connect(&self) -> bool {
        true
    }

    fn close_number(&self, code: Code) -> Option<u16> {
        codes::close(code)
    }

    fn commands(&self, kind: Kind, message: Bytes, take: &mut dyn FnMut(Command)) -> Result<(), Close> {
        match kind {
            Kind::Binary => read(&message, take),
            Kind::Text => Err(invalid("the Protobuf form has binary frames; this one is text")),
        }
    }

    fn write_reply(&self, id: CommandId, reply: &Reply<'_>, out: &mut FrameWriter<'_>) {
        write(&WireReply { id: id.get(), body: Some(reply.into()) }, out);
    }

    fn write_error(&self, id: Option<CommandId>, error: &CommandError, out: &mut FrameWriter<'_>) -> bool {
        let Some(id) = id else { return false };
        let (code, temporary) = codes::error(error);
        let failure = Failure { code: code.into(), message: error.to_string(), temporary };
        write(&WireReply { id: id.get(), body: Some(Body::Error(failure)) }, out);
        true
    }

    fn write_unsubscribed(&self, channel: &ChannelName, end: SubscriptionEnd, out: &mut FrameWriter<'_>) -> bool {
        push(Push::unsubscribe(channel, codes::unsubscribed(end)), out);
        true
    }

    fn write_presence_change(&self, channel: &ChannelName, change: &Change, out: &mut FrameWriter<'_>) {
        push(Push::presence_change(channel, change), out);
    }
}

fn push(push: Push, out: &mut FrameWriter<'_>) {
    write(&WireReply { id: 0, body: Some(Body::Push(push)) }, out);
}

/// Appends a reply with its length before it: a frame may have several.
fn write(reply: &WireReply, out: &mut FrameWriter<'_>) {
    out.binary(|out| {
        // Writing to memory that grows does not fail.
        let written = reply.encode_length_delimited(out);
        debug_assert!(written.is_ok(), "{written:?}");
    });
}
