//! The Centrifuge client protocol, version 2, as JSON: what its SDKs speak. `incoming` reads
//! commands, `outgoing` writes replies and pushes. docs/centrifuge.md says which parts of the
//! protocol there are.

mod incoming;
mod outgoing;

use bytes::Bytes;

use self::incoming::read;
use self::outgoing::{Answer, Body, Failure, Push};
use super::command::{Command, CommandError, CommandId, Reply, SubscriptionEnd};
use super::{Dialect, SubscriptionStart};
use crate::access::AccessError;
use crate::broker::BrokerError;
use crate::channel::ChannelName;
use crate::close::{Close, Code, Refused};
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

    /// A client comes back after a code from 3000 to 3499 and after those of RFC 6455 other than
    /// 1009, and not after 3500 to 3999.
    fn close_number(&self, code: Code) -> Option<u16> {
        Some(match code {
            Code::Client(code) => return code,
            Code::Restarting => 3001,
            Code::TokenExpired => 3005,
            Code::FellBehind => 3008,
            Code::Gap => 3010,
            Code::ChannelRefused => 3011,
            Code::Gone => 3012,
            Code::TooFast | Code::PublishFailed | Code::Refused(Refused::ForNow(_)) => 3013,
            Code::Refused(Refused::Unauthorized) => 3500,
            Code::ProtocolError | Code::InvalidUtf8 | Code::CommandInvalid => 3501,
            Code::NotConnected => 3502,
            Code::Refused(Refused::ForGood(_)) => 3503,
            Code::PublishRefused => 3507,
            Code::MessageTooBig => 1009,
        })
    }

    fn commands(&self, message: Bytes, take: &mut dyn FnMut(Command)) -> Result<(), Close> {
        read(&message, take)
    }

    fn write_reply(&self, id: CommandId, reply: &Reply<'_>, out: &mut FrameWriter<'_>) {
        out.text(|out| json::write(&Answer { id: id.get(), body: Body::from(reply) }, out));
    }

    fn write_error(&self, id: Option<CommandId>, error: &CommandError, out: &mut FrameWriter<'_>) -> bool {
        let Some(id) = id else { return false };
        let (code, temporary) = number(error);
        let failure = Failure { code, message: &error.to_string(), temporary };
        out.text(|out| json::write(&Answer { id: id.get(), body: Body::Error(failure) }, out));
        true
    }

    fn write_unsubscribed(&self, channel: &ChannelName, end: SubscriptionEnd, out: &mut FrameWriter<'_>) -> bool {
        // A client subscribes again after a code from 2500 on.
        let (code, reason) = match end {
            SubscriptionEnd::NotAllowed => (2000, "the new token does not allow the channel"),
            SubscriptionEnd::Interrupted => (2500, "insufficient state"),
            SubscriptionEnd::Expired => (2501, "the token of the subscription has expired"),
        };
        out.text(|out| json::write(&Push::unsubscribe(channel, code, reason), out));
        true
    }

    fn write_presence_change(&self, channel: &ChannelName, change: &Change, out: &mut FrameWriter<'_>) {
        out.text(|out| json::write(&Push::presence_change(channel, change), out));
    }
}

/// The number of an error, and whether the client should try again.
fn number(error: &CommandError) -> (u16, bool) {
    match error {
        CommandError::Broker(BrokerError::Unavailable(_) | BrokerError::Refused(_))
        | CommandError::Draining
        | CommandError::OutgoingFull => (100, true),
        CommandError::Access(error) => access_number(error),
        CommandError::PublishRefused | CommandError::Broker(BrokerError::ChannelRefused(_)) => (103, false),
        CommandError::UnknownMethod => (104, false),
        CommandError::AlreadySubscribed => (105, false),
        CommandError::TooManyChannels(_)
        | CommandError::TooLarge(_)
        | CommandError::Broker(BrokerError::KeyedChannelFull(_)) => (106, false),
        CommandError::Channel(_)
        | CommandError::Invalid(_)
        | CommandError::Broker(BrokerError::NotKeyed | BrokerError::IdReused) => (107, false),
        CommandError::NotAvailable(_) => (108, false),
        CommandError::AddressLimit(_) => (111, true),
        CommandError::PositionGone => (112, false),
    }
}

fn access_number(error: &AccessError) -> (u16, bool) {
    use crate::access::token::TokenError;
    match error {
        AccessError::Token(TokenError::NoKeys) => (100, true),
        // The client gets a new token, and tries again.
        AccessError::Token(TokenError::Expired) => (109, false),
        AccessError::Anonymous(..)
        | AccessError::Forbidden(..)
        | AccessError::Useless(_)
        | AccessError::Subscription(_) => (103, false),
        _ => (101, false),
    }
}
