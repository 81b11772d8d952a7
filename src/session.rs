//! One subscriber's state: what it still has to receive, and in which order its bytes go out. There is no socket in
//! sight: whoever drives a session hands it a function that writes as much as can be written now.
//!
//! The order of bytes: the rest of a frame that was written in part, then what concerns the connection itself (the head
//! and the welcome, pongs, a farewell), then the channels.

use std::io;
use std::sync::Arc;

use crate::batch::Batch;
use crate::broker::{From, Page, Tail};
use crate::close::{Close, Code};
use crate::dialect::{Dialect, Standing};
use crate::hub::Membership;
use crate::message::{Entry, Message, Position};
use crate::topic::{FellBehind, Located, Place, Start, Topic};

/// How many bytes are encoded for one write to a subscriber that catches up.
const CHUNK: usize = 64 << 10;
/// A write buffer that grew beyond this is given back when it is empty.
const KEPT_OUTBOX: usize = 1 << 10;

/// What writes as much as can be written now; `WouldBlock` if nothing can.
pub type Write<'a> = &'a mut dyn FnMut(&[u8]) -> io::Result<usize>;

/// What a subscriber waits for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Waits {
    /// New messages.
    News,
    /// Room in the socket.
    Room,
    /// A page of history for the channel with this index.
    History(usize, From),
    /// Nothing: all is written, the connection is to be closed.
    End,
    /// Nothing: the connection is broken.
    Gone,
}

/// One subscriber.
pub struct Session {
    dialect: &'static dyn Dialect,
    slots: Box<[Slot]>,
    /// What concerns the connection itself.
    outbox: Vec<u8>,
    unfinished: Option<Unfinished>,
    blocked: bool,
    ending: Option<Close>,
}

/// One channel of a subscriber.
struct Slot {
    membership: Membership,
    reading: Reading,
    /// What the subscriber has received up to.
    position: Option<Position>,
    /// On a keyed channel, until the snapshot is there: the newest position when the subscriber joined.
    joined_at: Option<Position>,
}

/// Where a slot reads.
enum Reading {
    /// In the topic's log, from this sequence number on.
    Log(u64),
    /// In a page of history; then wherever the page leads.
    Page { page: Arc<Page>, next: usize, gap_told: bool },
    /// Nowhere until the history has answered this.
    History(From),
}

/// A frame that was written in part: the rest must follow before anything else.
struct Unfinished {
    slot: usize,
    entry: Entry,
    written: usize,
}

impl Session {
    /// A subscriber of channels, each from a start. `head` is what the transport sends first. `instance` is named in the
    /// welcome.
    pub fn new(
        dialect: &'static dyn Dialect,
        memberships: Vec<(Membership, Start)>,
        head: Vec<u8>,
        instance: &str,
    ) -> Self {
        let mut slots: Vec<Slot> = Vec::with_capacity(memberships.len());
        let mut heads = Vec::with_capacity(memberships.len());
        for (membership, start) in memberships {
            let Located { place, position, head } = membership.topic().locate(start);
            let joined_at = match (&place, position, head) {
                (Place::History(From::Keys), Some(Position { epoch, .. }), Some(offset)) => {
                    Some(Position::new(epoch, offset))
                }
                _ => None,
            };
            let reading = match place {
                Place::Log(cursor) => Reading::Log(cursor),
                Place::History(from) => Reading::History(from),
            };
            heads.push(head);
            slots.push(Slot { membership, reading, position, joined_at });
        }
        let mut outbox = head;
        let standings: Vec<_> = slots
            .iter()
            .zip(heads)
            .map(|(slot, head)| Standing { channel: &slot.topic().channel, position: slot.position, head })
            .collect();
        dialect.welcome(instance, &standings, &mut outbox);
        Self { dialect, slots: slots.into(), outbox, unfinished: None, blocked: false, ending: None }
    }

    /// Its dialect.
    pub fn dialect(&self) -> &'static dyn Dialect {
        self.dialect
    }

    /// Its channels.
    pub fn topics(&self) -> impl Iterator<Item = &Arc<Topic>> {
        self.slots.iter().map(Slot::topic)
    }

    /// Why it is to be closed, if it is.
    pub fn ending(&self) -> Option<&Close> {
        self.ending.as_ref()
    }

    /// Adds bytes that concern the connection itself.
    pub fn post(&mut self, write: impl FnOnce(&'static dyn Dialect, &mut Vec<u8>)) {
        if self.ending.is_none() {
            write(self.dialect, &mut self.outbox);
        }
    }

    /// Whether it is reading a page of history, which is kept for it until then.
    pub fn reads_page(&self) -> bool {
        self.slots.iter().any(|slot| matches!(slot.reading, Reading::Page { .. }))
    }

    /// How many messages it has yet to take of the channel in which it is furthest behind; `None` if its socket is not full.
    pub fn backlog(&self) -> Option<u64> {
        let behind = |slot: &Slot| match &slot.reading {
            Reading::Log(cursor) => slot.topic().end().saturating_sub(*cursor),
            Reading::Page { page, next, .. } => (page.messages.len() - next) as u64,
            Reading::History(_) => 0,
        };
        if self.blocked { self.slots.iter().map(behind).max() } else { None }
    }

    /// Ends it as one that reads too slowly.
    pub fn end_as_too_slow(&mut self) {
        let slot = self.slots.iter().find(|slot| matches!(slot.reading, Reading::Page { .. }));
        let position = slot.and_then(|slot| slot.position);
        self.end(too_slow(position));
    }

    /// How many bytes of the kind that [`Session::post`] adds are waiting.
    pub fn posted(&self) -> usize {
        self.outbox.len()
    }

    /// Ends the subscriber: after the frame that is under way it gets the farewell, and nothing more.
    pub fn end(&mut self, close: Close) {
        if self.ending.is_none() {
            self.dialect.farewell(&close, &mut self.outbox);
            self.ending = Some(close);
        }
    }

    /// The history answered what the slot asked; `None` if the channel keeps none any more.
    pub fn answered(&mut self, slot: usize, page: Option<Arc<Page>>) {
        let slot = &mut self.slots[slot];
        let joined_at = slot.joined_at.take();
        slot.reading = match page.map(|page| snapshot_at(page, joined_at)) {
            Some(page) => Reading::Page { page, next: 0, gap_told: false },
            None => Reading::Log(slot.topic().end()),
        };
    }

    /// Writes a batch that many subscribers share, as far as this one has not received it yet. `false` if it needs a
    /// [`Session::pump`] of its own.
    pub fn offer(&mut self, slot: usize, batch: &Batch, write: Write<'_>) -> bool {
        if self.blocked {
            return true;
        }
        let Reading::Log(cursor) = self.slots[slot].reading else { return true };
        if cursor >= batch.next() {
            return true;
        }
        let beyond_frames = cursor < batch.first() || cursor >= batch.end();
        if beyond_frames || !self.outbox.is_empty() || self.ending.is_some() || self.dialect.personal() {
            return false;
        }
        let bytes = batch.from(cursor);
        match write(bytes) {
            Ok(written) if written == bytes.len() => {
                self.slots[slot].reading = Reading::Log(batch.end());
                self.slots[slot].position = batch.last_position().or(self.slots[slot].position);
                batch.close().is_none()
            }
            Ok(written) => {
                self.stop_within(slot, cursor, batch.offset(cursor) + written, batch);
                self.blocked = true;
                false
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.stop_within(slot, cursor, batch.offset(cursor), batch);
                self.blocked = true;
                false
            }
            // The connection's own task will meet the same error, and say so.
            Err(_) => false,
        }
    }

    /// Notes that a batch was written up to a byte.
    fn stop_within(&mut self, slot: usize, cursor: u64, byte: usize, batch: &Batch) {
        let (sequence, into_frame) = batch.locate(byte);
        let state = &mut self.slots[slot];
        if sequence > cursor {
            state.position = batch.position(sequence - 1).or(state.position);
        }
        state.reading = Reading::Log(sequence);
        if into_frame > 0 {
            let mut entry = None;
            // The log keeps what a shard has not reported as served, so the entry is still there.
            let found = state.topic().read(sequence, |read| {
                entry = Some(read.clone());
                false
            });
            debug_assert!(found.is_ok());
            if let Some(entry) = entry {
                state.reading = Reading::Log(sequence + 1);
                self.unfinished = Some(Unfinished { slot, entry, written: into_frame });
            }
        }
    }

    /// Writes what is due, as far as it can be written now.
    pub fn pump(&mut self, scratch: &mut Vec<u8>, write: Write<'_>) -> Waits {
        let waits = self.try_pump(scratch, write).unwrap_or_else(|error| match error.kind() {
            io::ErrorKind::WouldBlock => Waits::Room,
            _ => Waits::Gone,
        });
        self.blocked = waits == Waits::Room;
        waits
    }

    fn try_pump(&mut self, scratch: &mut Vec<u8>, write: Write<'_>) -> io::Result<Waits> {
        loop {
            self.finish_frame(scratch, write)?;
            self.flush_outbox(write)?;
            if self.ending.is_some() {
                return Ok(Waits::End);
            }
            let mut asks = None;
            let mut moved = false;
            for slot in 0..self.slots.len() {
                match self.advance(slot, scratch, write)? {
                    Advance::Idle => {}
                    Advance::Moved => moved = true,
                    Advance::Asks(from) => asks = asks.or(Some(Waits::History(slot, from))),
                    Advance::Ends(close) => {
                        self.end(close);
                        moved = true;
                        break;
                    }
                }
            }
            if !moved {
                return Ok(asks.unwrap_or(Waits::News));
            }
        }
    }

    fn finish_frame(&mut self, scratch: &mut Vec<u8>, write: Write<'_>) -> io::Result<()> {
        let Some(Unfinished { slot, entry, .. }) = &self.unfinished else { return Ok(()) };
        let (slot, position) = (*slot, entry.position());
        scratch.clear();
        // It was encoded before without an error, or it would not be under way.
        let _ = self.encode(slot, &entry.clone(), scratch);
        let Some(unfinished) = &mut self.unfinished else { return Ok(()) };
        while unfinished.written < scratch.len() {
            unfinished.written += write(&scratch[unfinished.written..])?;
        }
        self.unfinished = None;
        self.slots[slot].position = position.or(self.slots[slot].position);
        Ok(())
    }

    fn flush_outbox(&mut self, write: Write<'_>) -> io::Result<()> {
        while !self.outbox.is_empty() {
            let written = write(&self.outbox)?;
            self.outbox.drain(..written);
        }
        if self.outbox.capacity() > KEPT_OUTBOX || self.ending.is_none() {
            self.outbox = Vec::new();
        }
        Ok(())
    }

    /// Writes one chunk of a slot.
    fn advance(&mut self, slot: usize, scratch: &mut Vec<u8>, write: Write<'_>) -> io::Result<Advance> {
        let mut entries = Vec::new();
        let state = &self.slots[slot];
        match &state.reading {
            Reading::History(from) => return Ok(Advance::Asks(*from)),
            Reading::Log(cursor) => {
                let mut bytes = 0;
                let read = state.topic().read(*cursor, |entry| {
                    bytes += entry.weight();
                    entries.push(entry.clone());
                    bytes < CHUNK
                });
                if let Err(FellBehind) = read {
                    return Ok(self.fell_behind(slot));
                }
            }
            Reading::Page { page, next, gap_told } => {
                if let (Some(gap), false) = (page.gap, gap_told) {
                    entries.push(Entry::Gap(gap));
                } else {
                    let mut bytes = 0;
                    entries.extend(page.messages[*next..].iter().cloned().map(Entry::Message).take_while(|entry| {
                        let fits = bytes < CHUNK;
                        bytes += entry.weight();
                        fits
                    }));
                }
                if entries.is_empty() {
                    return Ok(self.leave_page(slot));
                }
            }
        }
        if entries.is_empty() {
            return Ok(Advance::Idle);
        }
        self.write_entries(slot, &entries, scratch, write)
    }

    fn write_entries(
        &mut self,
        slot: usize,
        entries: &[Entry],
        scratch: &mut Vec<u8>,
        write: Write<'_>,
    ) -> io::Result<Advance> {
        scratch.clear();
        let mut ends = Vec::with_capacity(entries.len());
        let mut close = None;
        for entry in entries {
            if let Err(reason) = self.encode(slot, entry, scratch) {
                close = Some(reason);
                break;
            }
            ends.push(scratch.len());
            if self.dialect.personal() {
                // Its next frame depends on this one having been received.
                break;
            }
        }
        let mut written = 0;
        let mut failed = None;
        while written < scratch.len() && failed.is_none() {
            match write(&scratch[written..]) {
                Ok(more) => written += more,
                Err(error) => failed = Some(error),
            }
        }
        let whole = ends.partition_point(|&end| end <= written);
        entries[..whole].iter().for_each(|entry| self.received(slot, entry));
        let frame_start = whole.checked_sub(1).map_or(0, |last| ends[last]);
        if whole < ends.len() && written > frame_start {
            self.step(slot);
            let entry = entries[whole].clone();
            self.unfinished = Some(Unfinished { slot, entry, written: written - frame_start });
        }
        match (failed, close) {
            (Some(error), _) => Err(error),
            (None, Some(close)) => Ok(Advance::Ends(close)),
            (None, None) => Ok(Advance::Moved),
        }
    }

    fn encode(&self, slot: usize, entry: &Entry, out: &mut Vec<u8>) -> Result<(), Close> {
        let mut positions = Vec::new();
        if self.dialect.personal() {
            positions.extend(self.slots.iter().map(|slot| slot.position));
            positions[slot] = entry.position().or(positions[slot]);
        }
        self.dialect.encode(&self.slots[slot].topic().channel, entry, &positions, out)
    }

    /// An entry was written whole.
    fn received(&mut self, slot: usize, entry: &Entry) {
        self.step(slot);
        let slot = &mut self.slots[slot];
        slot.position = entry.position().or(slot.position);
    }

    /// Moves a slot on by one entry.
    fn step(&mut self, slot: usize) {
        match &mut self.slots[slot].reading {
            Reading::Log(cursor) => *cursor += 1,
            Reading::Page { page, next, gap_told } => {
                if page.gap.is_some() && !*gap_told {
                    *gap_told = true;
                } else {
                    *next += 1;
                }
            }
            Reading::History(_) => {}
        }
    }

    /// A page has been received: on to the log, or to the next page.
    fn leave_page(&mut self, slot: usize) -> Advance {
        let slot = &mut self.slots[slot];
        let Reading::Page { page, .. } = &slot.reading else { return Advance::Idle };
        let through = page.through.position;
        slot.position = Some(through);
        slot.reading = match slot.topic().after_history(through) {
            Place::Log(cursor) => Reading::Log(cursor),
            Place::History(from) => Reading::History(from),
        };
        Advance::Moved
    }

    /// The log no longer holds what the slot must read next.
    fn fell_behind(&mut self, slot: usize) -> Advance {
        let slot = &mut self.slots[slot];
        if let (Some(position), Some(_)) = (slot.position, slot.topic().rule.keyed) {
            // The latest value of each key that changed is all it needs.
            slot.reading = Reading::History(From::After(position));
            return Advance::Moved;
        }
        Advance::Ends(too_slow(slot.position))
    }
}

fn too_slow(position: Option<Position>) -> Close {
    let detail = match position {
        Some(position) => format!("read too slowly; reconnect with since={position}"),
        None => "read too slowly; reconnect".into(),
    };
    Close::new(Code::FellBehind, detail)
}

/// What became of one slot's turn.
enum Advance {
    Idle,
    Moved,
    Asks(From),
    Ends(Close),
}

impl Slot {
    fn topic(&self) -> &Arc<Topic> {
        self.membership.topic()
    }
}

/// A snapshot as it was when the subscriber joined: what came since follows from the log, messages without a key included.
fn snapshot_at(page: Arc<Page>, joined_at: Option<Position>) -> Arc<Page> {
    let Some(joined_at) = joined_at else { return page };
    let through = page.through.position;
    if page.gap.is_some() || through.epoch != joined_at.epoch || through.offset <= joined_at.offset {
        return page;
    }
    let was_there = |message: &&Arc<Message>| message.position.is_some_and(|held| held.offset <= joined_at.offset);
    let messages = page.messages.iter().filter(was_there).cloned().collect();
    Arc::new(Page { messages, through: Tail { position: joined_at, stamp: 0 }, ..*page })
}
