//! A run of a channel's entries, encoded: one contiguous text, so that a subscriber gets all that is due in one write.
//! The fan-out encodes a run of the log once for all subscribers of an encoding on a shard; a subscriber that catches up
//! encodes one of its own, of the log or of a page of history.

use std::cell::RefCell;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::dialect::Personal;
use super::encoding::Encoding;
use crate::broker::Page;
use crate::channel::ChannelName;
use crate::close::Close;
use crate::hub::topic::{FellBehind, Topic};
use crate::message::{Entry, Position};
use crate::transport::byte_budget::{Budget, hold_anyway};

/// The bytes after which the fan-out ends a batch: enough to make system calls rare, few enough to stay in the cache.
const SHARED_BYTES: usize = 128 << 10;
/// The same for a subscriber that catches up: what its socket does not take is encoded again.
pub(super) const OWN_BYTES: usize = 64 << 10;
/// What a frame adds to a payload, roughly.
const FRAME_BYTES: usize = 16;
/// What is left of a frame, up to so many bytes, is not counted: less than what a client may have waiting for itself.
const FREE_REST: usize = 16 << 10;

/// Ready frames for the entries `first..end` of a log or page.
#[derive(Default)]
pub struct EncodedBatch {
    bytes: Vec<u8>,
    entries: Vec<Entry>,
    /// Where each entry's frame ends.
    ends: Vec<usize>,
    first: u64,
    /// The index of the last entry that has a position.
    last_positioned: Option<usize>,
    close: Option<Close>,
    /// The index and the bytes of the frame that a socket cut last: all whose sockets cut it share them.
    cut: RefCell<Option<(usize, Bytes)>>,
    /// What such frames count against.
    outgoing: Arc<Budget>,
}

/// How much of a batch a subscriber has been given once its bytes were written up to some byte.
pub(super) struct Written {
    /// The sequence number of the next entry; one that was written in part counts as given.
    pub(super) next: u64,
    /// The position that the subscriber then holds.
    pub(super) position: Option<Position>,
    /// What is left of the frame that was written in part.
    pub(super) rest: Bytes,
    /// There was no room for the rest: its reader is to be closed.
    pub(super) exceeds: bool,
}

impl EncodedBatch {
    /// An empty batch. What clients do not take of a frame counts against `outgoing`.
    pub fn new(outgoing: Arc<Budget>) -> Self {
        Self { outgoing, ..Self::default() }
    }

    /// Encodes the log from `cursor` on, for all subscribers of an encoding. A personal encoding's frames can't be shared:
    /// of them, only how many there are is noted. Returns whether there is anything.
    pub fn fill(&mut self, topic: &Topic, cursor: u64, encoding: &Encoding) -> bool {
        let read = self.read_log(topic, cursor, SHARED_BYTES);
        debug_assert!(read.is_ok(), "the log keeps what a shard has not reported as served");
        if encoding.is_personal() {
            self.ends.resize(self.entries.len(), 0);
        } else {
            self.encode(|entry, bytes| {
                encoding.dialect.write_entry(&topic.channel, entry, &mut encoding.writer(bytes))
            });
        }
        !self.is_empty() || self.close.is_some()
    }

    /// Reads the log from `cursor` on, for one subscriber.
    pub(super) fn read_own_log(&mut self, topic: &Topic, cursor: u64) -> Result<(), FellBehind> {
        self.read_log(topic, cursor, OWN_BYTES)
    }

    /// Reads a page of history, for one subscriber. What the page lacks before its first message is its first entry.
    pub(super) fn read_page(&mut self, page: &Page, next: u64) {
        self.clear();
        self.first = next;
        let gap = page.gap.map(Entry::Gap).into_iter();
        let entries = gap.chain(page.messages.iter().cloned().map(Entry::Message)).skip(next as usize);
        let mut size = 0;
        self.entries.extend(entries.take_while(|entry| {
            let fits = size < OWN_BYTES;
            size += encoded_size(entry);
            fits
        }));
    }

    /// Encodes what was read, for one subscriber. `positions` are what it holds in each of its channels, of which this is
    /// the one at `index`.
    pub(super) fn encode_own(
        &mut self,
        channel: &ChannelName,
        encoding: &Encoding,
        (positions, index): (&mut [Option<Position>], usize),
    ) {
        self.encode(|entry, bytes| {
            let mut writer = encoding.writer(bytes);
            if !encoding.is_personal() {
                return encoding.dialect.write_entry(channel, entry, &mut writer);
            }
            positions[index] = entry.position().or(positions[index]);
            encoding.dialect.write_personal_entry(channel, entry, &Personal { positions }, &mut writer)
        });
    }

    fn read_log(&mut self, topic: &Topic, cursor: u64, most: usize) -> Result<(), FellBehind> {
        self.clear();
        self.first = cursor;
        let mut size = 0;
        // Encoded later: the hub and the other shards wait for the log.
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

    /// The sequence number from which the next batch is to be filled: an entry that closes its readers has no frame.
    pub fn next(&self) -> u64 {
        self.end() + u64::from(self.close.is_some())
    }

    /// Whether it holds no entry.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// How many bytes the frames have.
    pub(super) fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Why subscribers that have received all of it are to be closed.
    pub fn close(&self) -> Option<&Close> {
        self.close.as_ref()
    }

    /// The frames from a sequence number on.
    pub(super) fn from(&self, sequence: u64) -> &[u8] {
        &self.bytes[self.offset(sequence)..]
    }

    /// What a subscriber has been given that began at `sequence` and took `length` bytes.
    pub(super) fn written(&self, sequence: u64, length: usize) -> Written {
        let byte = self.offset(sequence) + length;
        let whole = self.ends.partition_point(|&end| end <= byte);
        let begins = whole.checked_sub(1).map_or(0, |last| self.ends[last]);
        let cut = self.ends.get(whole).filter(|_| byte > begins);
        let given = if cut.is_some() { whole + 1 } else { whole };
        let (rest, exceeds) = cut.map_or((Bytes::new(), false), |&end| self.rest(whole, begins..end, byte));
        Written {
            next: self.first + given as u64,
            position: self.last_position((sequence - self.first) as usize..given),
            rest,
            exceeds,
        }
    }

    /// What is left from `byte` on of the frame with that index, and whether there was no room for it.
    fn rest(&self, index: usize, frame: Range<usize>, byte: usize) -> (Bytes, bool) {
        if frame.end - byte <= FREE_REST {
            return (Bytes::copy_from_slice(&self.bytes[byte..frame.end]), false);
        }
        let mut cut = self.cut.borrow_mut();
        let known = cut.as_ref().filter(|(known, _)| *known == index).map(|(_, bytes)| (bytes.clone(), true));
        let (bytes, fits) = known.unwrap_or_else(|| hold_anyway(self.bytes[frame.clone()].to_vec(), &self.outgoing));
        *cut = Some((index, bytes.clone()));
        (bytes.slice(byte - frame.start..), !fits)
    }

    /// The newest position among some of the entries.
    fn last_position(&self, range: Range<usize>) -> Option<Position> {
        // Nearly always all of them are asked for; in a channel without history they would all be looked at.
        let last = self.last_positioned.filter(|last| *last >= range.start)?;
        if last < range.end {
            return self.entries[last].position();
        }
        self.entries[range].iter().rev().find_map(Entry::position)
    }

    /// Where in the bytes a sequence number's frame begins.
    fn offset(&self, sequence: u64) -> usize {
        match sequence.saturating_sub(self.first) as usize {
            0 => 0,
            index => self.ends[index.min(self.ends.len()) - 1],
        }
    }

    /// Lets go of the entries, and of the memory of an unusually large batch.
    pub fn clear(&mut self) {
        self.entries.clear();
        self.ends.clear();
        self.bytes.clear();
        self.close = None;
        self.cut.take();
        if self.bytes.capacity() > 4 * SHARED_BYTES {
            self.bytes = Vec::new();
        }
    }
}

fn encoded_size(entry: &Entry) -> usize {
    let variable = match entry {
        Entry::Message(message) => message.payload.len() + message.key.as_ref().map_or(0, |key| key.len()),
        Entry::Gap(_) => 0,
    };
    FRAME_BYTES + variable
}
