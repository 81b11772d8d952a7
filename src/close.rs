//! Why a subscriber is closed: one list of codes and reasons, which `docs/protocol.md` repeats.

use std::borrow::Cow;

/// The reason in a close frame has at most 123 bytes (RFC 6455, 5.5: a control frame's 125, less the code's two).
const MAX_REASON: usize = 123;

/// A close code (RFC 6455, 7.4) and a reason that a person understands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Close {
    /// What it is about.
    pub code: Code,
    detail: Cow<'static, str>,
}

/// The codes that livebridge closes with.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Code {
    /// The client closed; its own code is sent back, or none if it gave none.
    Client(Option<u16>),
    /// A frame that RFC 6455 forbids.
    ProtocolError,
    /// A text message that is not UTF-8.
    InvalidUtf8,
    /// The client may not publish here.
    PublishRefused,
    /// The broker refuses a channel of the client.
    ChannelRefused,
    /// A message over the limit.
    MessageTooBig,
    /// The instance is draining.
    Restarting,
    /// The broker did not take what the client sent.
    PublishFailed,
    /// The client read slower than the channel's log is long.
    FellBehind,
    /// What was asked for, or was due next, is gone.
    Gap,
    /// The token that the client was let in with holds no longer.
    TokenExpired,
    /// The client keeps sending faster than it may.
    TooFast,
    /// The client was let in only to be told that it is not: see [`Refused`].
    Refused(Refused),
    /// The other side is gone: nothing can be sent.
    Gone,
}

/// A refusal that the client learns from its stream, since it can't see the status of its request or gives up at that.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Refused {
    /// For now: the error code says why.
    ForNow(&'static str),
    /// Until the client shows another token.
    Unauthorized,
    /// For good: the same again would be refused again; the error code says why.
    ForGood(&'static str),
}

impl Code {
    /// The number on the wire; `None` for a close frame without one, and where there is nobody to send one to.
    pub fn number(self) -> Option<u16> {
        match self {
            Self::Client(code) => code,
            Self::ProtocolError => Some(1002),
            Self::InvalidUtf8 => Some(1007),
            Self::PublishRefused => Some(1008),
            Self::MessageTooBig => Some(1009),
            Self::Restarting => Some(1012),
            // The ACL may be fixed: a code after which clients come back.
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

    /// The name in reasons and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Client(_) => "client",
            Self::ProtocolError => "protocol_error",
            Self::InvalidUtf8 => "invalid_utf8",
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
    /// A close with a sentence that says more.
    pub fn new(code: Code, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { code, detail: detail.into() }
    }

    /// The client's own close, answered.
    pub fn answer(code: Option<u16>) -> Self {
        Self::new(Code::Client(code), "")
    }

    /// The sentence.
    pub fn detail(&self) -> &str {
        &self.detail
    }

    /// The reason, `name: sentence`, cut to what a close frame holds.
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
        // The last of the 123 bytes would be the first of two: the character goes as a whole.
        let reason = Close::new(Code::Gap, format!("{}é", &exact[1..])).reason();
        assert_eq!((reason.len(), reason.chars().last()), (MAX_REASON - 1, Some('x')));
    }
}
