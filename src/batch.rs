//! A run of a channel's log, encoded once for all subscribers of a dialect on a shard: one contiguous text, so that each
//! of them gets all that is due in one write.

use crate::close::Close;
use crate::dialect::Dialect;
use crate::message::Position;
use crate::topic::Topic;

/// A batch ends when it has so many bytes: large enough to make system calls rare, small enough to stay in the cache.
const ENOUGH: usize = 128 << 10;

/// Ready frames for the entries `first..end` of a log.
#[derive(Default)]
pub struct Batch {
    bytes: Vec<u8>,
    frames: Vec<Frame>,
    first: u64,
    close: Option<Close>,
}

struct Frame {
    end: usize,
    position: Option<Position>,
}

impl Batch {
    /// Encodes the entries from `cursor` on. Returns whether there is anything to do.
    pub fn fill(&mut self, topic: &Topic, cursor: u64, dialect: &dyn Dialect) -> bool {
        self.bytes.clear();
        self.frames.clear();
        self.close = None;
        self.first = cursor;
        let Self { bytes, frames, close, .. } = self;
        let read = topic.read(cursor, |entry| {
            // A personal dialect's frames can't be shared: only that there are some is told.
            if !dialect.personal()
                && let Err(reason) = dialect.encode(&topic.channel, entry, &[], bytes)
            {
                *close = Some(reason);
                return false;
            }
            frames.push(Frame { end: bytes.len(), position: entry.position() });
            bytes.len() < ENOUGH
        });
        debug_assert!(read.is_ok(), "the log keeps what a shard has not reported as served");
        !self.frames.is_empty() || self.close.is_some()
    }

    /// The sequence number of the first entry.
    pub fn first(&self) -> u64 {
        self.first
    }

    /// The sequence number after the last frame.
    pub fn end(&self) -> u64 {
        self.first + self.frames.len() as u64
    }

    /// The sequence number from which the next batch is to be filled: an entry that closes its readers has no frame.
    pub fn next(&self) -> u64 {
        self.end() + u64::from(self.close.is_some())
    }

    /// How many messages it holds.
    pub fn len(&self) -> usize {
        self.frames.len()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Why subscribers that have received all of it are to be closed.
    pub fn close(&self) -> Option<&Close> {
        self.close.as_ref()
    }

    /// The frames from a sequence number on.
    pub fn from(&self, sequence: u64) -> &[u8] {
        &self.bytes[self.offset(sequence)..]
    }

    /// Where in the bytes a sequence number's frame begins.
    pub fn offset(&self, sequence: u64) -> usize {
        match sequence.saturating_sub(self.first) as usize {
            0 => 0,
            index => self.frames[index.min(self.frames.len()) - 1].end,
        }
    }

    /// Which frame a byte belongs to, and how far into it; a frame's end is the beginning of the next.
    pub fn locate(&self, byte: usize) -> (u64, usize) {
        let index = self.frames.partition_point(|frame| frame.end <= byte);
        let sequence = self.first + index as u64;
        (sequence, byte - self.offset(sequence))
    }

    /// The position that one holds after a sequence number's frame.
    pub fn position(&self, sequence: u64) -> Option<Position> {
        self.frames.get((sequence - self.first) as usize)?.position
    }

    /// The newest position in it.
    pub fn last_position(&self) -> Option<Position> {
        self.frames.iter().rev().find_map(|frame| frame.position)
    }

    /// Gives back the memory of an unusually large batch.
    pub fn shrink(&mut self) {
        if self.bytes.capacity() > 4 * ENOUGH {
            self.bytes = Vec::new();
        }
    }
}
