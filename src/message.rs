//! What is relayed: messages, their positions, and the notice that some are gone. No encoding here (see `dialect`).

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use bytes::Bytes;

/// Where a message stands in its channel. Offsets count 1, 2, 3 … without holes within an epoch; offset 0 is
/// 'before the first'.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Position {
    /// Which life of the channel's history: the microsecond at which it began. Opaque to clients.
    pub epoch: u64,
    /// The message's number within the epoch.
    pub offset: u64,
}

impl Position {
    /// A position in the given life of a channel.
    pub fn new(epoch: u64, offset: u64) -> Self {
        Self { epoch, offset }
    }

    /// The position of the message right after this one.
    pub fn next(self) -> Self {
        Self::new(self.epoch, self.offset + 1)
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.epoch, self.offset)
    }
}

/// A text that is not `EPOCH:OFFSET`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a position; a position looks like EPOCH:OFFSET, as in an envelope or an event's id")]
pub struct PositionError(pub String);

impl FromStr for Position {
    type Err = PositionError;

    fn from_str(text: &str) -> Result<Self, PositionError> {
        // `u64::from_str` takes a leading '+', which in a query string is a space that went wrong.
        let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit()).then(|| part.parse().ok()).flatten();
        text.split_once(':')
            .and_then(|(epoch, offset)| Some(Self::new(digits(epoch)?, digits(offset)?)))
            .ok_or_else(|| PositionError(text.chars().take(80).collect()))
    }
}

/// One message of a channel, as the broker handed it over. Shared by all who deliver it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Message {
    /// `None` for what a Redis client published without asking for a position.
    pub position: Option<Position>,
    /// When the broker took it, in milliseconds since 1970; with the position, its identity. 0 where unknown.
    pub stamp: u64,
    /// On a keyed channel: what this message is the new value of.
    pub key: Option<Arc<str>>,
    /// On a keyed channel: the key is gone.
    pub removed: bool,
    /// What was published, never changed.
    pub payload: Bytes,
}

impl Message {
    /// A message without a position or key.
    pub fn plain(payload: impl Into<Bytes>) -> Self {
        Self { position: None, stamp: 0, key: None, removed: false, payload: payload.into() }
    }

    /// The payload as text, where it is UTF-8: this, not the way it came in, decides between text and binary frames.
    pub fn text(&self) -> Option<&str> {
        std::str::from_utf8(&self.payload).ok()
    }
}

/// Why messages may be missing at some place of a channel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GapReason {
    /// The channel's history began anew: Redis came back empty, or lacks what had been delivered.
    EpochChanged,
    /// What was asked for is older than the history that is kept.
    HistoryTrimmed,
}

impl GapReason {
    /// The machine-readable name in envelopes and events.
    pub fn code(self) -> &'static str {
        match self {
            Self::EpochChanged => "epoch_changed",
            Self::HistoryTrimmed => "history_trimmed",
        }
    }

    /// The sentence for people.
    pub fn explanation(self) -> &'static str {
        match self {
            Self::EpochChanged => "the channel's history has restarted; messages may be missing, so reload your state",
            Self::HistoryTrimmed => "the position is older than the stored history; reload your state",
        }
    }
}

/// The notice that messages may be missing here; what follows continues after `resumes_after`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Gap {
    /// The position after which the stream goes on.
    pub resumes_after: Position,
    /// Why messages are missing.
    pub reason: GapReason,
}

/// What a channel's log consists of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Entry {
    /// A message to deliver.
    Message(Arc<Message>),
    /// Messages may be missing here.
    Gap(Gap),
}

impl Entry {
    /// The position that a subscriber holds once it has received this entry.
    pub fn position(&self) -> Option<Position> {
        match self {
            Self::Message(message) => message.position,
            Self::Gap(gap) => Some(gap.resumes_after),
        }
    }

    /// What the entry weighs against the bounds of a log, in bytes.
    pub fn weight(&self) -> usize {
        const FIXED: usize = size_of::<Entry>() + size_of::<Message>();
        match self {
            Self::Message(message) => FIXED + message.payload.len() + message.key.as_ref().map_or(0, |key| key.len()),
            Self::Gap(_) => FIXED,
        }
    }
}

impl From<Message> for Entry {
    fn from(message: Message) -> Self {
        Self::Message(Arc::new(message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_survives_its_text_form() {
        let position = Position::new(1_732_300_000_000_000, 17);
        assert_eq!(position.to_string().parse(), Ok(position));
    }

    #[test]
    fn a_text_that_is_no_position_is_refused() {
        for text in ["", ":", "1", "1:", ":1", "1:+2", "1:-2", "a:1", "1:2:3", "1: 2", "99999999999999999999:1"] {
            assert!(text.parse::<Position>().is_err(), "{text:?}");
        }
    }
}
