//! Consecutive entries of a channel, encoded into one buffer, so that a subscriber gets all pending
//! entries in one write. The fan-out encodes a part of the log once for all subscribers of an
//! encoding on a shard. A subscriber that catches up encodes batches of its own, from the log or
//! from a page of history.

use std::cell::RefCell;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::dialect::SubscriberData;
use super::encoding::Encoding;
use crate::channel::ChannelName;
use crate::close::{Close, Code};
use crate::hub::held_page::HeldPage;
use crate::hub::topic::{FellBehind, Topic};
use crate::message::{Entry, GapReason, Position};
use crate::transport::byte_budget::{Budget, hold_anyway};

/// The size after which the fan-out ends a batch, in bytes: large enough to make system calls rare,
/// small enough to stay in the CPU cache.
const SHARED_BYTES: usize = 128 << 10;
/// The same for a subscriber that catches up. Smaller, because bytes that its socket does not take
/// are encoded again.
pub(super) const OWN_BYTES: usize = 64 << 10;
/// The approximate overhead of a frame, in bytes.
const FRAME_BYTES: usize = 16;
/// A rest of a frame up to this size, in bytes, is not counted against the budget.
const FREE_REST: usize = 16 << 10;

/// Ready frames for the entries `first..end` of a log or page.
#[derive(Default)]
pub struct EncodedBatch {
    bytes: Vec<u8>,
    entries: Vec<Entry>,
    /// The end of the frame of each entry, in `bytes`.
    ends: Vec<usize>,
    first: u64,
    /// The index of the last entry that has a position.
    last_positioned: Option<usize>,
    /// The epoch of that entry.
    epoch: Option<u64>,
    close: Option<Close>,
    /// The last partly written frame: its index and bytes. Subscribers share them.
    partial_frame: RefCell<Option<(usize, Bytes)>>,
    /// The budget for partly written frames.
    outgoing: Arc<Budget>,
    /// Incremented by each `fill`.
    generation: u64,
    /// The inputs of the frames, if they differ per subscriber.
    per_subscriber: PerSubscriberInputs,
}

/// The inputs of the frames of a per-subscriber encoding. Subscribers with the same inputs share
/// the frames.
#[derive(Default)]
struct PerSubscriberInputs {
    /// Generation and first entry of the shared batch; (0, 0) for none.
    shared: (u64, u64),
    /// The positions of the subscriber in its channels before the first entry.
    before: Vec<Option<Position>>,
    /// The index of the batch's channel in `before`.
    index: usize,
    /// The positions after the last entry.
    positions: Vec<Option<Position>>,
}

/// The progress of a subscriber in a batch after a write.
pub(super) struct BatchProgress {
    /// The sequence number of the next entry. A partly written entry counts as written.
    pub(super) next: u64,
    /// The position of the subscriber after the write.
    pub(super) position: Option<Position>,
    /// The rest of the partly written frame.
    pub(super) rest: Bytes,
    /// The rest exceeds the budget, so the subscriber must be closed.
    pub(super) exceeds: bool,
}

impl EncodedBatch {
    /// Creates an empty batch. Rests of partly written frames count against `outgoing`.
    pub fn new(outgoing: Arc<Budget>) -> Self {
        Self { outgoing, ..Self::default() }
    }

    /// Encodes the log from `cursor` on, for all subscribers of an encoding. For a per-subscriber
    /// encoding, stores only the entries; `encode_per_subscriber` writes the frames. Returns whether
    /// there are entries or a close.
    pub fn fill(&mut self, topic: &Topic, cursor: u64, encoding: &Encoding) -> bool {
        self.generation += 1;
        let read = self.read_log(topic, cursor, SHARED_BYTES);
        debug_assert!(read.is_ok(), "the log keeps what a shard has not reported as served");
        if encoding.is_per_subscriber() {
            self.ends.resize(self.entries.len(), 0);
        } else {
            self.encode(|entry, bytes| {
                encoding.dialect.write_entry(&topic.channel, entry, &mut encoding.shared_writer(bytes))
            });
        }
        let last = self.last_positioned.and_then(|last| self.entries.get(last)?.position());
        self.epoch = last.map(|position| position.epoch);
        !self.is_empty() || self.close.is_some()
    }

    /// Encodes the entries of a shared batch from `cursor` on for one subscriber of a
    /// per-subscriber encoding. Does nothing if the last call had the same arguments, as
    /// subscribers of the same channels usually have the same positions. `positions` are the
    /// subscriber's positions in its channels; `positions[index]` is the batch's channel.
    pub(super) fn encode_per_subscriber(
        &mut self,
        shared: &Self,
        cursor: u64,
        (channel, encoding): (&ChannelName, &Encoding),
        (positions, index): (impl Iterator<Item = Option<Position>>, usize),
    ) {
        let key = (shared.generation, cursor);
        // Compare while collecting, because most positions are the same.
        let mut known = self.per_subscriber.shared == key && self.per_subscriber.index == index;
        let mut count = 0;
        for position in positions {
            known &= self.per_subscriber.before.get(count) == Some(&position);
            if !known {
                self.per_subscriber.before.truncate(count);
                self.per_subscriber.before.push(position);
            }
            count += 1;
        }
        if known && count == self.per_subscriber.before.len() {
            return;
        }
        self.clear();
        self.first = cursor;
        self.entries.extend_from_slice(&shared.entries[(cursor - shared.first) as usize..]);
        let mut inputs = std::mem::take(&mut self.per_subscriber);
        inputs.before.truncate(count);
        inputs.positions.clone_from(&inputs.before);
        self.encode_own(channel, encoding, None, (&mut inputs.positions, index));
        self.per_subscriber = PerSubscriberInputs { shared: key, index, ..inputs };
    }

    /// Reads the log from `cursor` on, for one subscriber.
    pub(super) fn read_own_log(&mut self, topic: &Topic, cursor: u64) -> Result<(), FellBehind> {
        self.read_log(topic, cursor, OWN_BYTES)
    }

    /// Reads a page of history from its entry `next` on, for one subscriber. A gap of the page
    /// becomes the first entry.
    pub(super) fn read_page(&mut self, page: &HeldPage, next: u64) {
        self.clear();
        self.first = next;
        let gap = page.gap.filter(|_| next == 0).map(Entry::Gap);
        let skip = next as usize - usize::from(page.gap.is_some() && next > 0);
        let entries = gap.into_iter().chain(page.messages()[skip..].iter().cloned().map(Entry::Message));
        let mut size = 0;
        self.entries.extend(entries.take_while(|entry| {
            let fits = size < OWN_BYTES;
            size += encoded_size(entry);
            fits
        }));
    }

    /// Encodes the entries that were read, for one subscriber, up to the first one outside of
    /// `epoch`. `positions` are the subscriber's positions in its channels; `positions[index]` is
    /// the batch's channel.
    pub(super) fn encode_own(
        &mut self,
        channel: &ChannelName,
        encoding: &Encoding,
        epoch: Option<u64>,
        (positions, index): (&mut [Option<Position>], usize),
    ) {
        self.encode(|entry, bytes| {
            let mut writer = encoding.writer(bytes);
            if epoch.zip(entry.position()).is_some_and(|(epoch, position)| position.epoch != epoch) {
                return Err(epoch_ended());
            }
            if !encoding.is_per_subscriber() {
                return encoding.dialect.write_entry(channel, entry, &mut writer);
            }
            positions[index] = entry.position().or(positions[index]);
            encoding.dialect.write_subscriber_entry(channel, entry, &SubscriberData { positions }, &mut writer)
        });
    }

    fn read_log(&mut self, topic: &Topic, cursor: u64, most: usize) -> Result<(), FellBehind> {
        self.clear();
        self.first = cursor;
        let mut size = 0;
        // Encode after this loop, because the hub and the other shards wait for the log.
        topic.read(cursor, |entry| {
            size += encoded_size(entry);
            self.entries.push(entry.clone());
            size < most
        })?;
        Ok(())
    }

    fn encode(&mut self, mut write: impl FnMut(&Entry, &mut Vec<u8>) -> Result<(), Close>) {
        for entry in &self.entries {
            let start = self.bytes.len();
            if let Err(close) = write(entry, &mut self.bytes) {
                self.bytes.truncate(start);
                self.close = Some(close);
                break;
            }
            self.ends.push(self.bytes.len());
        }
        self.entries.truncate(self.ends.len());
        self.last_positioned = self.entries.iter().rposition(|entry| entry.position().is_some());
    }

    /// The sequence number of the first entry.
    pub fn first(&self) -> u64 {
        self.first
    }

    /// The sequence number after the last frame.
    pub fn end(&self) -> u64 {
        self.first + self.entries.len() as u64
    }

    /// The sequence number at which the next batch starts. Skips the entry that closes subscribers,
    /// if there is one; it has no frame.
    pub fn resume_at(&self) -> u64 {
        self.end() + u64::from(self.close.is_some())
    }

    /// Whether the batch ends in the epoch of a position.
    pub(super) fn is_in_epoch_of(&self, held: Option<Position>) -> bool {
        self.epoch.zip(held).is_none_or(|(epoch, held)| epoch == held.epoch)
    }

    /// Whether the batch has no entries.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The size of all frames, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// The close for subscribers that have received the whole batch.
    pub fn close(&self) -> Option<&Close> {
        self.close.as_ref()
    }

    /// The frames from a sequence number on.
    pub(super) fn from(&self, sequence: u64) -> &[u8] {
        &self.bytes[self.offset(sequence)..]
    }

    /// Progress of a subscriber that started at `sequence` and wrote `length` bytes.
    pub(super) fn written(&self, sequence: u64, length: usize) -> BatchProgress {
        let byte = self.offset(sequence) + length;
        let whole = self.ends.partition_point(|&end| end <= byte);
        let begins = whole.checked_sub(1).map_or(0, |last| self.ends[last]);
        let partial = self.ends.get(whole).filter(|_| byte > begins);
        let given = if partial.is_some() { whole + 1 } else { whole };
        let (rest, exceeds) = partial.map_or((Bytes::new(), false), |&end| self.rest(whole, begins..end, byte));
        BatchProgress {
            next: self.first + given as u64,
            position: self.last_position((sequence - self.first) as usize..given),
            rest,
            exceeds,
        }
    }

    /// The rest of a frame from `byte` on, and whether it exceeds the budget. `index` is the index
    /// of the frame, `frame` its range in `bytes`.
    fn rest(&self, index: usize, frame: Range<usize>, byte: usize) -> (Bytes, bool) {
        if frame.end - byte <= FREE_REST {
            return (Bytes::copy_from_slice(&self.bytes[byte..frame.end]), false);
        }
        let mut partial = self.partial_frame.borrow_mut();
        let known = partial.as_ref().filter(|(known, _)| *known == index).map(|(_, bytes)| (bytes.clone(), true));
        let (bytes, fits) = known.unwrap_or_else(|| hold_anyway(self.bytes[frame.clone()].to_vec(), &self.outgoing));
        *partial = Some((index, bytes.clone()));
        (bytes.slice(byte - frame.start..), !fits)
    }

    /// The newest position among the entries in `range`.
    fn last_position(&self, range: Range<usize>) -> Option<Position> {
        // Fast path for the whole batch; avoids a scan when no entry has a position.
        let last = self.last_positioned.filter(|last| *last >= range.start)?;
        if last < range.end {
            return self.entries[last].position();
        }
        self.entries[range].iter().rev().find_map(Entry::position)
    }

    /// The start of the frame of an entry, in `bytes`.
    fn offset(&self, sequence: u64) -> usize {
        match sequence.saturating_sub(self.first) as usize {
            0 => 0,
            index => self.ends[index.min(self.ends.len()) - 1],
        }
    }

    /// Removes the entries, and frees the memory of an unusually large batch.
    pub fn clear(&mut self) {
        self.entries.clear();
        self.ends.clear();
        self.bytes.clear();
        self.epoch = None;
        self.close = None;
        self.partial_frame.take();
        self.per_subscriber.shared = (0, 0);
        if self.bytes.capacity() > 4 * SHARED_BYTES {
            self.bytes = Vec::new();
        }
    }
}

/// The close for a subscription that ends with its epoch.
pub(super) fn epoch_ended() -> Close {
    Close::new(Code::Gap, GapReason::EpochChanged.explanation())
}

fn encoded_size(entry: &Entry) -> usize {
    let variable = match entry {
        Entry::Message(message) => message.size(),
        Entry::Gap(_) => 0,
    };
    FRAME_BYTES + variable
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::{Page, Tail};
    use crate::delivery::encoding::BARE_MULTI_CHANNEL_EVENTS;
    use crate::hub::held_page::PageBudget;
    use crate::message::{Gap, Message};

    #[test]
    fn frames_per_subscriber_are_encoded_once_for_equal_positions() {
        let channel: ChannelName = "b".parse().expect("valid");
        let message = |offset| {
            let position = Some(Position::new(7, offset));
            Entry::from(Message { position, ..Message::plain(format!("m{offset}")) })
        };
        let shared = EncodedBatch {
            entries: vec![message(1), message(2)],
            ends: vec![0, 0],
            first: 5,
            generation: 3,
            ..EncodedBatch::default()
        };
        let mut scratch = EncodedBatch::default();
        let mut encode = |shared: &EncodedBatch, cursor, positions: &[Option<Position>], index| {
            let of = (&channel, &BARE_MULTI_CHANNEL_EVENTS);
            scratch.encode_per_subscriber(shared, cursor, of, (positions.iter().copied(), index));
            let text = String::from_utf8(scratch.bytes.clone()).expect("UTF-8");
            // Marks the buffer to detect reuse.
            scratch.bytes[0] = b'!';
            (text.starts_with('!'), text.replacen('!', "i", 1), scratch.end())
        };
        let (none, some) = (None, Some(Position::new(4, 9)));
        let both = "id: 4:9,7:1\nevent: b\ndata: m1\n\nid: 4:9,7:2\nevent: b\ndata: m2\n\n";
        let last = "id: 4:9,7:2\nevent: b\ndata: m2\n\n";
        assert_eq!(encode(&shared, 5, &[some, none], 1), (false, both.into(), 7));
        assert_eq!(encode(&shared, 5, &[some, none], 1), (true, both.into(), 7));
        assert_eq!(encode(&shared, 6, &[some, none], 1), (false, last.into(), 7), "another cursor");
        assert_eq!(encode(&shared, 6, &[some, none, none], 1).1, last.replace("7:2", "7:2,"), "more channels");
        assert_eq!(encode(&shared, 6, &[some, none], 1), (false, last.into(), 7), "fewer channels");
        assert_eq!(
            encode(&shared, 6, &[none, some], 0),
            (false, last.replace("4:9,7:2", "7:2,4:9"), 7),
            "another order"
        );
        assert_eq!(
            encode(&shared, 6, &[none, none], 0),
            (false, last.replace("4:9,7:2", "7:2,"), 7),
            "another position"
        );
        let next = EncodedBatch { generation: 4, entries: vec![message(3)], first: 6, ..EncodedBatch::default() };
        assert_eq!(encode(&next, 6, &[none, none], 0).1, "id: 7:3,\nevent: b\ndata: m3\n\n", "another batch");
        // `clear` forgets the cached frames.
        scratch.clear();
        let of = (&channel, &BARE_MULTI_CHANNEL_EVENTS);
        scratch.encode_per_subscriber(&next, 6, of, ([none, none].into_iter(), 0));
        assert!(scratch.bytes.starts_with(b"id: 7:3,\n"));
    }

    #[test]
    fn a_page_is_read_from_any_of_its_entries_on() {
        let message = |offset| Arc::new(Message { position: Some(Position::new(7, offset)), ..Message::plain("x") });
        let tail = Tail { position: Position::new(7, 5), stamp: 1 };
        let gap = Gap { resumes_after: Position::new(7, 2), reason: GapReason::HistoryTrimmed };
        for (gap, all) in [(None, &[3, 4, 5][..]), (Some(gap), &[2, 3, 4, 5])] {
            let page = Page { gap, messages: (3..=5).map(message).collect(), through: tail, tail };
            let page = PageBudget::new(Arc::default()).hold(page, None).expect("no limit");
            let mut batch = EncodedBatch::default();
            for next in 0..=all.len() {
                batch.read_page(&page, next as u64);
                let offsets = batch.entries.iter().map(|entry| entry.position().map_or(0, |position| position.offset));
                assert_eq!(offsets.collect::<Vec<_>>(), all[next..]);
                let has_gap = batch.entries.iter().any(|entry| matches!(entry, Entry::Gap(_)));
                assert_eq!(has_gap, gap.is_some() && next == 0);
            }
        }
    }
}
