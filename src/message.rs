//! The data that livebridge relays: messages, their positions, and notices of gaps. Encodings are
//! in `delivery/dialect`.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use bytes::Bytes;

/// The position of a message in its channel. Within an epoch, offsets count 1, 2, 3 … without gaps.
/// Offset 0 is the position before the first message.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Position {
    /// Identifies one history of the channel: the time at which it began, in microseconds since
    /// 1970. Opaque to clients.
    pub epoch: u64,
    /// The number of the message within the epoch.
    pub offset: u64,
}

/// Maximum length of a key of a keyed channel, and of an idempotency id, in bytes.
pub const MOST_KEY_BYTES: usize = 255;

/// Whether a text can be a key of a keyed channel, or an idempotency id.
pub fn is_key(text: &str) -> bool {
    // Bytes that are not UTF-8 were decoded as U+FFFD.
    let forbidden = |character: char| character.is_control() || character == char::REPLACEMENT_CHARACTER;
    !text.is_empty() && text.len() <= MOST_KEY_BYTES && !text.chars().any(forbidden)
}

impl Position {
    /// A position in the given epoch.
    pub fn new(epoch: u64, offset: u64) -> Self {
        Self { epoch, offset }
    }

    /// The position of the next message.
    pub fn next(self) -> Self {
        // The offset may be any number that a client sent.
        Self::new(self.epoch, self.offset.saturating_add(1))
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.epoch, self.offset)
    }
}

/// A string that is not of the form `EPOCH:OFFSET`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a position; a position looks like EPOCH:OFFSET, as in an envelope or an event's id")]
pub struct PositionError(pub String);

impl FromStr for Position {
    type Err = PositionError;

    fn from_str(text: &str) -> Result<Self, PositionError> {
        // `u64::from_str` accepts a leading '+', which in a query string is a space that was not
        // encoded.
        let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit()).then(|| part.parse().ok()).flatten();
        text.split_once(':')
            .and_then(|(epoch, offset)| Some(Self::new(digits(epoch)?, digits(offset)?)))
            .ok_or_else(|| PositionError(text.chars().take(80).collect()))
    }
}

/// A message of a channel, as the broker delivered it. All subscribers share it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Message {
    /// `None` if a Redis client published it without a position.
    pub position: Option<Position>,
    /// When the broker accepted it, in milliseconds since 1970; 0 if unknown. Together with the
    /// position it identifies the message.
    pub stamp: u64,
    /// On a keyed channel: the key whose new value this message is.
    pub key: Option<Arc<str>>,
    /// On a keyed channel: whether the key was removed.
    pub removed: bool,
    /// The published bytes, unchanged.
    pub payload: Bytes,
}

impl Message {
    /// Creates a message without a position or key.
    pub fn plain(payload: impl Into<Bytes>) -> Self {
        Self { position: None, stamp: 0, key: None, removed: false, payload: payload.into() }
    }

    /// The size of the payload and the key, in bytes.
    pub fn size(&self) -> usize {
        self.payload.len() + self.key.as_ref().map_or(0, |key| key.len())
    }

    /// The size that counts towards the limits on logs and pages, in bytes.
    pub fn weight(&self) -> usize {
        FIXED_WEIGHT + self.size()
    }

    /// The payload as text, if it is valid UTF-8. This decides between text and binary frames,
    /// however the message was published.
    pub fn text(&self) -> Option<&str> {
        std::str::from_utf8(&self.payload).ok()
    }
}

/// Why messages may be missing at a position of a channel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GapReason {
    /// The channel's history began anew: Redis lost its data, or lacks messages that were already
    /// delivered.
    EpochChanged,
    /// The requested messages are older than the retained history.
    HistoryTrimmed,
}

impl GapReason {
    /// The machine-readable reason in envelopes and events.
    pub fn code(self) -> &'static str {
        match self {
            Self::EpochChanged => "epoch_changed",
            Self::HistoryTrimmed => "history_trimmed",
        }
    }

    /// The explanation for people.
    pub fn explanation(self) -> &'static str {
        match self {
            Self::EpochChanged => "the channel's history has restarted; messages may be missing, so reload your state",
            Self::HistoryTrimmed => "the position is older than the stored history; reload your state",
        }
    }
}

/// The notice that messages may be missing. The messages after it continue after `resumes_after`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Gap {
    /// The position after which the stream continues.
    pub resumes_after: Position,
    /// Why messages may be missing.
    pub reason: GapReason,
}

/// The weight of an entry without payload and key, in bytes.
const FIXED_WEIGHT: usize = size_of::<Entry>() + size_of::<Message>();

/// An entry of a channel's log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Entry {
    /// A message to deliver.
    Message(Arc<Message>),
    /// Messages may be missing here.
    Gap(Gap),
}

impl Entry {
    /// The position of a subscriber that has received this entry.
    pub fn position(&self) -> Option<Position> {
        match self {
            Self::Message(message) => message.position,
            Self::Gap(gap) => Some(gap.resumes_after),
        }
    }

    /// The size of the entry that counts towards the bounds of a log, in bytes.
    pub fn weight(&self) -> usize {
        match self {
            Self::Message(message) => message.weight(),
            Self::Gap(_) => FIXED_WEIGHT,
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
