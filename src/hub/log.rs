//! The log of a channel: the last entries, within limits, each with a sequence number of this
//! instance. A cursor is such a number. Pure data: `topic.rs` and `delivery/` decide when to read,
//! and encode.

use std::collections::VecDeque;

use crate::message::{Entry, Position};

/// The limits of a log. The newest entry stays even if it exceeds them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogBounds {
    /// The maximum number of entries.
    pub entries: usize,
    /// The maximum size in bytes, by [`Entry::weight`].
    pub bytes: usize,
}

/// Where to continue after a position.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Found {
    /// The log has all messages after the position, starting at this sequence number.
    At(u64),
    /// The position is older than the log, or was never in it; read the history.
    Older,
}

/// The last entries of a channel.
#[derive(Debug)]
pub struct Log {
    entries: VecDeque<Entry>,
    /// How many of the entries are gaps.
    gaps: usize,
    first: u64,
    bytes: usize,
    bounds: LogBounds,
}

impl Log {
    /// Creates an empty log.
    pub fn new(bounds: LogBounds) -> Self {
        Self { entries: VecDeque::new(), gaps: 0, first: 0, bytes: 0, bounds }
    }

    /// The sequence number of the oldest entry; [`Log::end`] if the log is empty.
    pub fn start(&self) -> u64 {
        self.first
    }

    /// The sequence number of the next entry.
    pub fn end(&self) -> u64 {
        self.first + self.entries.len() as u64
    }

    /// The size of the entries, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Appends an entry, and drops the oldest ones beyond the limits, but none at or after
    /// `needed`.
    pub fn push(&mut self, entry: Entry, needed: u64) {
        self.bytes += entry.weight();
        self.gaps += usize::from(matches!(entry, Entry::Gap(_)));
        self.entries.push_back(entry);
        while self.over_bounds() && self.first < needed {
            self.drop_oldest();
        }
    }

    /// Whether there is room for another entry without dropping one at or after `needed`.
    pub fn has_room(&self, needed: u64) -> bool {
        needed > self.first || (self.entries.len() < self.bounds.entries && self.bytes < self.bounds.bytes)
    }

    /// Drops all entries before `sequence`, and frees their memory.
    pub fn trim_to(&mut self, sequence: u64) {
        while self.first < sequence && !self.entries.is_empty() {
            self.drop_oldest();
        }
        self.entries.shrink_to(self.entries.len().next_power_of_two());
    }

    /// Drops the oldest entries until the log has at most `bytes`, but none at or after `needed`.
    pub fn shrink_to(&mut self, bytes: usize, needed: u64) {
        while self.bytes > bytes && self.first < needed && !self.entries.is_empty() {
            self.drop_oldest();
        }
        self.entries.shrink_to(self.entries.len().next_power_of_two());
    }

    /// The entries from `sequence` on; `None` if some of them have been dropped.
    pub fn read(&self, sequence: u64) -> Option<impl Iterator<Item = &Entry>> {
        let skipped = sequence.checked_sub(self.first)?;
        Some(self.entries.range((skipped as usize).min(self.entries.len())..))
    }

    /// Where a client with `position` continues. Not in front of a gap: the history says what became of
    /// the messages there.
    pub fn find(&self, position: Position) -> Found {
        // Offsets have no holes, so the first newer entry is the one. The search starts at the
        // newest entry, because most clients resume close to it.
        let mut end = self.entries.len();
        let mut is_before_gap = false;
        while let Some(entry) = end.checked_sub(1).and_then(|last| self.entries.get(last)) {
            let at = self.first + end as u64;
            match entry.position() {
                Some(held) if held == position && is_before_gap => break,
                Some(held) if held == position => return Found::At(at),
                Some(held) if held == position.next() && matches!(entry, Entry::Message(_)) => {
                    return Found::At(at - 1);
                }
                Some(held) if held.epoch == position.epoch && held.offset < position.offset => break,
                held => end = end.saturating_sub(self.stride(held, position)),
            }
            is_before_gap = match entry {
                Entry::Gap(_) => true,
                // A message without a position stands at no place between positions.
                Entry::Message(message) => is_before_gap && message.position.is_none(),
            };
        }
        Found::Older
    }

    /// How far [`Log::find`] can go back from an entry with the position `held`, over entries that are too
    /// new. After a repair of a keyed channel, a log may have less than all offsets; then this may be too
    /// far, and the history answers.
    fn stride(&self, held: Option<Position>, wanted: Position) -> usize {
        match held {
            Some(held) if self.gaps == 0 => {
                let oldest = if held.epoch == wanted.epoch { wanted.next().offset } else { 1 };
                (held.offset.saturating_sub(oldest) as usize).max(1)
            }
            _ => 1,
        }
    }

    /// The sequence number of the first of the last `count` messages; `None` if the log has fewer.
    pub fn find_last(&self, count: usize) -> Option<u64> {
        let mut wanted = count;
        let mut at = self.end();
        for entry in self.entries.iter().rev() {
            if wanted == 0 {
                break;
            }
            match entry {
                Entry::Message(_) => wanted -= 1,
                Entry::Gap(_) => return None,
            }
            at -= 1;
        }
        (wanted == 0).then_some(at)
    }

    fn over_bounds(&self) -> bool {
        self.entries.len() > 1 && (self.entries.len() > self.bounds.entries || self.bytes > self.bounds.bytes)
    }

    fn drop_oldest(&mut self) {
        if let Some(entry) = self.entries.pop_front() {
            self.bytes -= entry.weight();
            self.gaps -= usize::from(matches!(entry, Entry::Gap(_)));
            self.first += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Gap, GapReason, Message};

    fn message(epoch: u64, offset: u64) -> Entry {
        Message { position: Some(Position::new(epoch, offset)), ..Message::plain("x") }.into()
    }

    fn log(entries: usize) -> Log {
        Log::new(LogBounds { entries, bytes: 1 << 20 })
    }

    #[test]
    fn the_oldest_entries_go_first_and_sequence_numbers_stay() {
        let mut log = log(3);
        (1..=5).for_each(|offset| log.push(message(1, offset), u64::MAX));
        assert_eq!((log.start(), log.end()), (2, 5));
        assert!(log.read(1).is_none());
        assert_eq!(log.read(3).map(Iterator::count), Some(2));
        assert_eq!(log.read(5).map(Iterator::count), Some(0));
    }

    #[test]
    fn one_entry_always_stays_however_large() {
        let mut log = Log::new(LogBounds { entries: 10, bytes: 100 });
        log.push(message(1, 1), u64::MAX);
        log.push(Message::plain(vec![0; 5000]).into(), u64::MAX);
        assert_eq!((log.start(), log.end()), (1, 2));
        log.trim_to(2);
        assert_eq!(log.bytes(), 0);
    }

    #[test]
    fn what_is_still_needed_stays_beyond_the_bounds() {
        let mut log = log(3);
        (1..=5).for_each(|offset| log.push(message(1, offset), 1));
        assert_eq!((log.start(), log.end()), (1, 5));
        assert!(!log.has_room(1) && log.has_room(2));
    }

    #[test]
    fn a_log_is_shortened_but_for_what_is_needed() {
        let mut log = log(9);
        (1..=5).for_each(|offset| log.push(message(1, offset), u64::MAX));
        let each = log.bytes() / 5;
        log.shrink_to(3 * each, u64::MAX);
        assert_eq!((log.start(), log.end(), log.bytes()), (2, 5, 3 * each));
        log.shrink_to(0, 4);
        assert_eq!(log.start(), 4);
        log.shrink_to(0, u64::MAX);
        assert_eq!((log.start(), log.end(), log.bytes()), (5, 5, 0));
    }

    #[test]
    fn a_position_is_found_when_all_after_it_is_there() {
        let mut log = log(3);
        (1..=5).for_each(|offset| log.push(message(1, offset), u64::MAX));
        assert_eq!(log.find(Position::new(1, 5)), Found::At(5));
        assert_eq!(log.find(Position::new(1, 4)), Found::At(4));
        assert_eq!(log.find(Position::new(1, 2)), Found::At(2));
        assert_eq!(log.find(Position::new(1, 1)), Found::Older);
        assert_eq!(log.find(Position::new(1, 9)), Found::Older);
        assert_eq!(log.find(Position::new(1, u64::MAX)), Found::Older);
        assert_eq!(log.find(Position::new(2, 4)), Found::Older);
    }

    #[test]
    fn the_end_of_an_epoch_resumes_in_the_next_one() {
        let mut log = log(9);
        log.push(message(1, 7), u64::MAX);
        log.push(message(2, 1), u64::MAX);
        assert_eq!(log.find(Position::new(1, 7)), Found::At(1));
    }

    #[test]
    fn a_gap_is_not_counted_as_a_message_nor_skipped() {
        let mut log = log(9);
        log.push(message(1, 1), u64::MAX);
        log.push(Entry::Gap(Gap { resumes_after: Position::new(2, 3), reason: GapReason::EpochChanged }), u64::MAX);
        log.push(message(2, 4), u64::MAX);
        assert_eq!(log.find_last(1), Some(2));
        assert_eq!(log.find_last(2), None);
        assert_eq!(log.find(Position::new(2, 3)), Found::At(2));
        assert_eq!(log.find(Position::new(1, 1)), Found::Older, "the history knows what is missing");
        let mut log = self::log(9);
        log.push(message(1, 1), u64::MAX);
        log.push(Entry::Message(Message::plain("plain").into()), u64::MAX);
        log.push(Entry::Gap(Gap { resumes_after: Position::new(2, 3), reason: GapReason::EpochChanged }), u64::MAX);
        assert_eq!(log.find(Position::new(1, 1)), Found::Older, "a message without a position changes nothing");
    }

    #[test]
    fn a_search_that_leaves_out_what_is_too_new_finds_the_same() {
        for plain_every in [1, 2, 3, 7, u64::MAX] {
            let mut log = log(60);
            log.push(
                Entry::Gap(Gap { resumes_after: Position::new(3, 9), reason: GapReason::HistoryTrimmed }),
                u64::MAX,
            );
            for (epoch, offsets) in [(3, 10..=99), (5, 1..=20), (8, 1..=9)] {
                for offset in offsets {
                    log.push(message(epoch, offset), u64::MAX);
                    if offset % plain_every == 0 {
                        log.push(Entry::Message(Message::plain("plain").into()), u64::MAX);
                    }
                }
            }
            assert_eq!(log.gaps, 0, "the gap was dropped");
            let positions = || (2..=9).flat_map(|epoch| (0..=101).map(move |offset| Position::new(epoch, offset)));
            let found: Vec<_> = positions().map(|position| log.find(position)).collect();
            log.gaps = 1;
            for (position, found) in positions().zip(found) {
                assert_eq!(found, log.find(position), "{position}, {plain_every}");
            }
        }
    }
}
