//! Why a subscriber is closed: the close codes and reasons. `docs/protocol.md` documents the same
//! list.

use std::borrow::Cow;

/// The longest reason of a close frame, in bytes: a control frame has at most 125 (RFC 6455, 5.5),
/// and the code takes two.
const MAX_REASON: usize = 123;

/// A close code (RFC 6455, 7.4) and a readable reason.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Close {
    /// The cause.
    pub code: Code,
    detail: Cow<'static, str>,
}

/// The causes for which livebridge closes a connection.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Code {
    /// The client closed. Its code is sent back, or none if it sent none.
    Client(Option<u16>),
    /// The client sent a frame that RFC 6455 forbids.
    ProtocolError,
    /// The client sent a text message that is not UTF-8.
    InvalidUtf8,
    /// The client sent what is no command, or a command that may not come here.
    CommandInvalid,
    /// The client did not send its first command in time.
    NotConnected,
    /// The client may not publish here.
    PublishRefused,
    /// The broker refuses one of the client's channels.
    ChannelRefused,
    /// The client sent a message over the size limit.
    MessageTooBig,
    /// The instance is draining.
    Restarting,
    /// The broker did not accept a message from the client.
    PublishFailed,
    /// The client fell further behind than the log of the channel reaches.
    FellBehind,
    /// Messages that the client asked for, or the next ones, are no longer available.
    Gap,
    /// The client's token has expired.
    TokenExpired,
    /// The client keeps sending faster than its limit.
    TooFast,
    /// The request was refused, and the connection was opened only to report that: see [`Refused`].
    Refused(Refused),
    /// The connection is lost: nothing can be sent.
    Gone,
}

/// A refusal that is reported on the stream, because the client cannot see the status of its
/// request, or would stop reconnecting after it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Refused {
    /// A temporary refusal; the error code says why.
    ForNow(&'static str),
    /// The client needs another token.
    Unauthorized,
    /// A permanent refusal: the same request would fail again. The error code says why.
    ForGood(&'static str),
}

impl Code {
    /// The code on the wire; `None` for a close frame without a code, and for a lost connection.
    pub fn number(self) -> Option<u16> {
        match self {
            Self::Client(code) => code,
            Self::ProtocolError => Some(1002),
            Self::InvalidUtf8 => Some(1007),
            Self::CommandInvalid | Self::NotConnected | Self::PublishRefused => Some(1008),
            Self::MessageTooBig => Some(1009),
            Self::Restarting => Some(1012),
            // The ACL may be fixed later, so this is a code after which clients reconnect.
            Self::PublishFailed | Self::ChannelRefused => Some(1013),
            Self::FellBehind => Some(4001),
            Self::Gap => Some(4002),
            Self::TokenExpired => Some(4003),
            Self::TooFast => Some(4029),
            Self::Refused(Refused::ForNow(_)) => Some(1013),
            Self::Refused(Refused::Unauthorized) => Some(4003),
            Self::Refused(Refused::ForGood(_)) => Some(1008),
            Self::Gone => None,
        }
    }

    /// The name in close reasons and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Client(_) => "client",
            Self::ProtocolError => "protocol_error",
            Self::InvalidUtf8 => "invalid_utf8",
            Self::CommandInvalid => "command_invalid",
            Self::NotConnected => "not_connected",
            Self::PublishRefused => "publish_refused",
            Self::ChannelRefused => "channel_refused",
            Self::MessageTooBig => "message_too_big",
            Self::Restarting => "restarting",
            Self::PublishFailed => "publish_failed",
            Self::FellBehind => "fell_behind",
            Self::Gap => "gap",
            Self::TokenExpired => "token_expired",
            Self::TooFast => "too_fast",
            Self::Refused(Refused::ForNow(code) | Refused::ForGood(code)) => code,
            Self::Refused(Refused::Unauthorized) => "unauthorized",
            Self::Gone => "gone",
        }
    }
}

impl Close {
    /// A close whose reason explains the code.
    pub fn new(code: Code, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { code, detail: detail.into() }
    }

    /// The answer to a close frame from the client.
    pub fn answer(code: Option<u16>) -> Self {
        Self::new(Code::Client(code), "")
    }

    /// The explanation in the reason.
    pub fn detail(&self) -> &str {
        &self.detail
    }

    /// The reason, `name: explanation`, cut to the length of a close frame.
    pub fn reason(&self) -> String {
        if let Code::Client(_) = self.code {
            return String::new();
        }
        let mut reason = format!("{}: {}", self.code.name(), self.detail);
        reason.truncate(reason.floor_char_boundary(MAX_REASON));
        reason
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_names_the_code_and_is_cut_between_characters() {
        assert_eq!(Close::new(Code::Gap, "gone").reason(), "gap: gone");
        assert_eq!(Close::answer(Some(1000)).reason(), "");
        let exact = "x".repeat(MAX_REASON - "gap: ".len());
        assert_eq!(Close::new(Code::Gap, exact.clone()).reason(), format!("gap: {exact}"));
        assert_eq!(Close::new(Code::Gap, format!("{exact}y")).reason(), format!("gap: {exact}"));
        // The limit falls within the last character, which has two bytes, so the whole character is
        // cut.
        let reason = Close::new(Code::Gap, format!("{}é", &exact[1..])).reason();
        assert_eq!((reason.len(), reason.chars().last()), (MAX_REASON - 1, Some('x')));
    }
}
