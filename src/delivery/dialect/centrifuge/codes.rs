//! The numbers of the Centrifuge protocol that both of its forms share: of errors, of closes, and of the
//! ends of subscriptions.

use super::super::command::{CommandError, SubscriptionEnd};
use crate::access::AccessError;
use crate::broker::BrokerError;
use crate::close::{Code, Refused};

/// The code of a close frame. A client comes back after a code from 3000 to 3499 and after those of
/// RFC 6455, some not after 1009, and not after 3500 to 3999.
pub(super) fn close(code: Code) -> Option<u16> {
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

/// The code and the reason of the end of a subscription. A client subscribes again after a code from
/// 2500 on.
pub(super) fn unsubscribed(end: SubscriptionEnd) -> (u16, &'static str) {
    match end {
        SubscriptionEnd::NotAllowed => (2000, "the new token does not allow the channel"),
        SubscriptionEnd::Interrupted => (2500, "insufficient state"),
        SubscriptionEnd::Expired => (2501, "the token of the subscription has expired"),
    }
}

/// The number of an error, and whether the client should try again.
pub(super) fn error(error: &CommandError) -> (u16, bool) {
    match error {
        CommandError::Broker(BrokerError::Unavailable(_) | BrokerError::Refused(_))
        | CommandError::Draining
        | CommandError::OutgoingFull => (100, true),
        CommandError::Access(error) => access(error),
        CommandError::PublishRefused | CommandError::Broker(BrokerError::ChannelRefused(_)) => (103, false),
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

fn access(error: &AccessError) -> (u16, bool) {
    use crate::access::token::TokenError;
    match error {
        AccessError::Token(TokenError::NoKeys) => (100, true),
        // The client gets a new token, and tries again.
        AccessError::Token(TokenError::Expired) => (109, false),
        // Another token of a client ends its connection: this one is of a subscription.
        AccessError::Token(_)
        | AccessError::Anonymous(..)
        | AccessError::Forbidden(..)
        | AccessError::Useless(_)
        | AccessError::Subscription(_) => (103, false),
        _ => (101, false),
    }
}
