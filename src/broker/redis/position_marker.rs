//! Position markers. `functions/publish.lua` publishes a marker on a companion channel right before
//! the payloads, so that subscribers know the positions of these payloads in the history.
//! `decoder.rs` combines them. For a message with the key `B4`, and for two messages without a key,
//! the subscriber receives:
//!
//! ```text
//! livebridge:note:sheet:q3  1732 17 99 0 B4   epoch, offset, stamp, removed, key
//! sheet:q3                  PAYLOAD           of offset 17
//! livebridge:run:sheet:q3   1732 18 99 2      epoch, offset, stamp, count
//! sheet:q3                  PAYLOAD           of offset 18
//! sheet:q3                  PAYLOAD           of offset 19
//! ```
//!
//! On a Redis Cluster, the name of the channel is in braces there, `livebridge:note:{sheet:q3}`, so
//! that its companions are in its hash slot.

use std::sync::Arc;

use bytes::Bytes;

use crate::message::{Message, Position};

/// The prefix of the companion channel whose markers announce one payload each; the one of
/// `sheet:q3` is `livebridge:note:sheet:q3`.
pub(super) const SINGLE_PREFIX: &str = "livebridge:note:";
/// The prefix of the companion channel whose markers announce several payloads. Redis uses it only
/// if every instance that subscribes to the other one subscribes to it too.
pub(super) const RUN_PREFIX: &str = "livebridge:run:";

/// The maximum number of payloads that a marker announces, as in `functions/publish.lua`.
const MOST_IN_RUN: u64 = 1000;

/// A marker that announces the next payloads on the same connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct PositionMarker {
    next: Position,
    stamp: u64,
    left: u64,
    /// The changes of the remaining payloads, in reverse order; empty if none has a key.
    keys: Vec<Change>,
}

/// The change of a payload on a keyed channel: whether it removes a key, and which key.
type Change = (bool, Option<Arc<str>>);

impl PositionMarker {
    /// Parses `EPOCH OFFSET STAMP REMOVED[ KEY]`; `None` if the text has another form.
    pub(super) fn parse_single(text: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok()?;
        let (next, stamp, change) = position_and_rest(text)?;
        // Most messages have no key, and this allocates nothing for them.
        let keys = if change == "0" { Vec::new() } else { vec![parse_change(change)?] };
        Some(Self { next, stamp, left: 1, keys })
    }

    /// Parses `EPOCH OFFSET STAMP COUNT`, on a keyed channel followed by a line `REMOVED[ KEY]` for
    /// each payload; `None` if the text has another form.
    pub(super) fn parse_run(text: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok()?;
        let mut lines = text.split('\n');
        let (next, stamp, count) = position_and_rest(lines.next()?)?;
        let left = count.parse().ok().filter(|count| (1..=MOST_IN_RUN).contains(count))?;
        let mut keys: Vec<_> = lines.map(parse_change).collect::<Option<_>>()?;
        keys.reverse();
        (keys.is_empty() || keys.len() as u64 == left).then_some(Self { next, stamp, left, keys })
    }

    /// Combines the marker and the next payload into a message.
    pub(super) fn message(&mut self, payload: Bytes) -> Message {
        let (removed, key) = self.keys.pop().unwrap_or_default();
        let message = Message { position: Some(self.next), stamp: self.stamp, key, removed, payload };
        self.next = self.next.next();
        self.left -= 1;
        message
    }

    /// Whether all announced payloads have arrived.
    pub(super) fn is_complete(&self) -> bool {
        self.left == 0
    }
}

fn position_and_rest(text: &str) -> Option<(Position, u64, &str)> {
    let mut parts = text.splitn(4, ' ');
    let position = Position::new(parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    Some((position, parts.next()?.parse().ok()?, parts.next()?))
}

fn parse_change(text: &str) -> Option<Change> {
    let (removed, key) = match text.split_once(' ') {
        Some((removed, key)) => (removed, Some(key.into())),
        None => (text, None),
    };
    matches!(removed, "0" | "1").then_some((removed == "1", key))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn positions(mut marker: PositionMarker) -> Vec<(u64, bool, Option<String>)> {
        let mut seen = Vec::new();
        while !marker.is_complete() {
            let message = marker.message(Bytes::new());
            let offset = message.position.expect("a marker gives positions").offset;
            seen.push((offset, message.removed, message.key.map(|key| key.to_string())));
        }
        seen
    }

    #[test]
    fn a_marker_gives_position_and_key_even_one_with_spaces() {
        let marker = PositionMarker::parse_single(b"1732 17 99 1 cell B 4").expect("a marker");
        assert_eq!(positions(marker), [(17, true, Some("cell B 4".into()))]);
    }

    #[test]
    fn a_marker_of_a_run_gives_each_payload_its_position_and_key() {
        let marker = PositionMarker::parse_run(b"1732 17 99 3").expect("a marker");
        assert_eq!(positions(marker), [(17, false, None), (18, false, None), (19, false, None)]);
        let marker = PositionMarker::parse_run(b"1732 17 99 2\n0 B 4\n1 C").expect("a marker");
        assert_eq!(positions(marker), [(17, false, Some("B 4".into())), (18, true, Some("C".into()))]);
    }

    #[test]
    fn what_is_not_a_marker_is_not_taken_for_one() {
        for text in ["", "1", "1 2", "1 2 3", "a 2 3 0", "1 2 3 x", "\u{1} 2 3 0"] {
            assert_eq!(PositionMarker::parse_single(text.as_bytes()), None, "{text:?}");
        }
        assert_eq!(PositionMarker::parse_single(b"1 2 3 0 \xff"), None);
        for text in ["1 2 3", "1 2 3 0", "1 2 3 1001", "1 2 3 2\n0", "1 2 3 1\nx"] {
            assert_eq!(PositionMarker::parse_run(text.as_bytes()), None, "{text:?}");
        }
    }
}
