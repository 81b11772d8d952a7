//! The position note: what `functions.lua` publishes on a companion channel right before a payload, and how the two are
//! put together again.

use std::sync::Arc;

use bytes::Bytes;

use crate::message::{Message, Position};

/// The companion channel of `sheet:q3` is `livebridge:note:sheet:q3`.
pub(super) const PREFIX: &str = "livebridge:note:";

/// `EPOCH OFFSET STAMP REMOVED[ KEY]`, in text.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Note {
    position: Position,
    stamp: u64,
    removed: bool,
    key: Option<Arc<str>>,
}

impl Note {
    /// Reads a note; `None` if it is not one.
    pub(super) fn parse(text: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok()?;
        let mut parts = text.splitn(5, ' ');
        let epoch = parts.next()?.parse().ok()?;
        let offset = parts.next()?.parse().ok()?;
        let stamp = parts.next()?.parse().ok()?;
        let removed = parts.next()? == "1";
        Some(Self { position: Position::new(epoch, offset), stamp, removed, key: parts.next().map(Arc::from) })
    }

    /// The message that the note and the payload make together.
    pub(super) fn into_message(self, payload: Bytes) -> Message {
        let Self { position, stamp, removed, key } = self;
        Message { position: Some(position), stamp, key, removed, payload }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_gives_position_and_key_even_one_with_spaces() {
        let note = Note::parse(b"1732 17 99 1 cell B 4").expect("a note");
        let message = note.into_message(Bytes::from_static(b"x"));
        assert_eq!(message.position, Some(Position::new(1732, 17)));
        assert_eq!((message.stamp, message.removed, message.key.as_deref()), (99, true, Some("cell B 4")));
    }

    #[test]
    fn what_is_not_a_note_is_not_taken_for_one() {
        for text in ["", "1", "1 2", "1 2 3", "a 2 3 0", "\u{1} 2 3 0"] {
            assert_eq!(Note::parse(text.as_bytes()), None, "{text:?}");
        }
    }
}
