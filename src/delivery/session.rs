//! A client's subscriptions, and in which order its bytes go out. There is no socket in sight: the caller hands in a
//! function that writes as much as can be written now.
//!
//! The order of bytes: the rest of a frame that was written in part, then what concerns the connection itself (the
//! response's head, notices, pongs, the last frame), then the channels. All bytes of channels go through
//! `write_batch`, whether the fan-out or the client's own catching up encoded them.

use std::io;
use std::sync::Arc;

use bytes::{Buf, Bytes};
use slab::Slab;

use super::batch::{EncodedBatch, OWN_BYTES};
use super::dialect::SubscriptionStart;
use super::encoding::Encoding;
use super::framing::FrameWriter;
use super::subscription::{Cursor, NewSubscription, Subscription};
use crate::broker::ReadFrom;
use crate::close::{Close, Code, Refused};
use crate::hub::held_page::HeldPage;
use crate::hub::topic::{FellBehind, Topic};
use crate::message::Position;

/// Writes as much as can be written now and returns how many bytes that were; `WouldBlock` if nothing can.
pub type Write<'a> = &'a mut dyn FnMut(&[u8]) -> io::Result<usize>;

/// Names a subscription within its session.
pub type SubscriptionKey = usize;

/// What a session waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Waits {
    /// New messages.
    News,
    /// Its next turn: it has written enough for now.
    Turn,
    /// Room in the socket.
    Room,
    /// The answer of the history for a subscription.
    History(SubscriptionKey, ReadFrom),
    /// Nothing: all is written, the connection is to be closed.
    End,
    /// Nothing: the connection is broken.
    Gone,
}

/// A client, without its socket.
pub struct Session {
    encoding: &'static Encoding,
    subscriptions: Slab<Subscription>,
    /// What the socket has yet to take of a frame that was written in part.
    rest: Bytes,
    /// What concerns the connection itself.
    outbox: Vec<u8>,
    blocked: bool,
    /// The subscription whose turn it is to catch up.
    turn: SubscriptionKey,
    /// Messages written since they were last counted.
    delivered: u32,
    ending: Option<Box<Close>>,
}

impl Session {
    /// A client without subscriptions, with room for so many. `head` is what its transport sends first.
    pub fn new(encoding: &'static Encoding, head: Vec<u8>, subscriptions: usize) -> Self {
        Self {
            encoding,
            subscriptions: Slab::with_capacity(subscriptions),
            rest: Bytes::new(),
            outbox: head,
            blocked: false,
            turn: 0,
            delivered: 0,
            ending: None,
        }
    }

    /// Tells the client of the instance and of these subscriptions, each with its channel's newest offset.
    pub fn write_connected(&mut self, instance: &str, made: &[(SubscriptionKey, Option<u64>)]) {
        let start = |&(key, head): &(SubscriptionKey, _)| {
            let subscription = self.subscriptions.get(key)?;
            Some(SubscriptionStart { channel: &subscription.topic().channel, position: subscription.position, head })
        };
        let starts: Vec<_> = made.iter().filter_map(start).collect();
        self.encoding.dialect.write_connected(instance, &starts, &mut self.encoding.writer(&mut self.outbox));
    }

    /// Subscribes to a channel. Returns the subscription's key, which may be one that had been another's before, and the
    /// channel's newest offset.
    pub fn subscribe(&mut self, new: NewSubscription) -> (SubscriptionKey, Option<u64>) {
        let (subscription, head) = Subscription::new(new);
        (self.subscriptions.insert(subscription), head)
    }

    /// Ends a subscription: nothing of its channel follows but the rest of a frame that is under way.
    pub fn unsubscribe(&mut self, key: SubscriptionKey) -> Option<Subscription> {
        self.subscriptions.try_remove(key)
    }

    /// What its bytes look like.
    pub fn encoding(&self) -> &'static Encoding {
        self.encoding
    }

    /// Its subscriptions.
    pub fn subscriptions(&self) -> impl Iterator<Item = (SubscriptionKey, &Subscription)> {
        self.subscriptions.iter()
    }

    /// One of its subscriptions.
    pub fn subscription(&self, key: SubscriptionKey) -> Option<&Subscription> {
        self.subscriptions.get(key)
    }

    pub(super) fn subscription_mut(&mut self, key: SubscriptionKey) -> Option<&mut Subscription> {
        self.subscriptions.get_mut(key)
    }

    /// Its only subscription; `None` if it has none or several.
    pub fn only_subscription(&self) -> Option<&Subscription> {
        let mut all = self.subscriptions.iter().map(|(_, subscription)| subscription);
        all.next().filter(|_| all.next().is_none())
    }

    /// Why it is to be closed, if it is.
    pub fn ending(&self) -> Option<&Close> {
        self.ending.as_deref()
    }

    /// Adds bytes that concern the connection itself.
    pub fn post(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        if self.ending.is_none() {
            write(&mut self.outbox);
        }
    }

    /// Adds messages that concern the connection itself.
    pub fn notify(&mut self, write: impl FnOnce(&'static Encoding, &mut FrameWriter<'_>)) {
        let encoding = self.encoding;
        self.post(|out| write(encoding, &mut encoding.writer(out)));
    }

    /// How many bytes that concern the connection itself wait for the socket.
    pub fn posted(&self) -> usize {
        self.outbox.len()
    }

    /// How many messages were written since this was last asked.
    pub fn take_delivered(&mut self) -> u32 {
        std::mem::take(&mut self.delivered)
    }

    /// Whether it reads a page of history, which is kept for it until then.
    pub fn reads_page(&self) -> bool {
        self.subscriptions.iter().any(|(_, subscription)| subscription.reads_page())
    }

    /// How many messages it has yet to take of the channel in which it is furthest behind; `None` if its socket is not full.
    pub fn backlog(&self) -> Option<u64> {
        if !self.blocked {
            return None;
        }
        self.subscriptions.iter().map(|(_, subscription)| subscription.backlog()).max()
    }

    /// Ends it: after the frame that is under way the client is told, and gets nothing more.
    pub fn end(&mut self, close: Close) {
        if self.ending.is_none() {
            let mut out = self.encoding.writer(&mut self.outbox);
            self.encoding.dialect.write_farewell(&close, &mut out);
            out.close(&close);
            self.ending = Some(Box::new(close));
        }
    }

    /// Ends it as one that reads a page of history too slowly.
    pub fn end_as_too_slow(&mut self) {
        let mut subscriptions = self.subscriptions.iter().map(|(_, subscription)| subscription);
        let position = subscriptions.find(|held| held.reads_page()).and_then(|held| held.position);
        self.end(too_slow(position));
    }

    /// The history answered what a subscription to `topic` had asked; `None` if the channel keeps none any more. Ignored if
    /// the subscription has ended meanwhile.
    pub fn answered(&mut self, key: SubscriptionKey, topic: &Topic, page: Option<Arc<HeldPage>>) {
        if let Some(subscription) = self.subscriptions.get_mut(key)
            && subscription.topic().id == topic.id
            && subscription.question().is_some()
        {
            subscription.answered(page);
        }
    }

    /// Writes a batch that many subscribers share, as far as this one has not received it yet. `scratch` is for frames that
    /// only some of them share. `false` if it needs a [`Session::pump`] of its own.
    pub fn offer(
        &mut self,
        key: SubscriptionKey,
        batch: &EncodedBatch,
        scratch: &mut EncodedBatch,
        write: Write<'_>,
    ) -> bool {
        let Some(Cursor::Log(cursor)) = self.subscriptions.get(key).map(|subscription| &subscription.cursor) else {
            return true;
        };
        if self.blocked || *cursor >= batch.next() {
            return true;
        }
        let beyond_frames = *cursor < batch.first() || *cursor >= batch.end();
        if beyond_frames || !self.outbox.is_empty() || self.ending.is_some() {
            return false;
        }
        let batch = if self.encoding.is_personal() {
            self.encode_offered(key, *cursor, batch, scratch);
            scratch
        } else {
            batch
        };
        // Of an error that is not for want of room, the connection's own task learns when it writes.
        self.write_batch(key, batch, write).is_ok() && batch.close().is_none()
    }

    /// Writes what is due, as far as it can be written now, and of what it has to catch up with about one batch.
    /// `scratch` is for the batches of this subscriber alone.
    pub fn pump(&mut self, scratch: &mut EncodedBatch, write: Write<'_>) -> Waits {
        let waits = self.try_pump(scratch, write).unwrap_or_else(|error| match error.kind() {
            io::ErrorKind::WouldBlock => Waits::Room,
            _ => Waits::Gone,
        });
        self.blocked = waits == Waits::Room;
        waits
    }

    fn try_pump(&mut self, scratch: &mut EncodedBatch, write: Write<'_>) -> io::Result<Waits> {
        let mut written = 0;
        loop {
            self.flush(write)?;
            if self.ending.is_some() {
                return Ok(Waits::End);
            }
            let mut asks = None;
            let mut moved = false;
            let (turn, capacity) = (self.turn, self.subscriptions.capacity());
            for key in (0..capacity).map(|key| (turn + key) % capacity) {
                match self.catch_up(key, scratch, write)? {
                    CatchUp::Done => {}
                    CatchUp::Moved => {
                        moved = true;
                        written += scratch.bytes();
                        if written >= OWN_BYTES {
                            self.turn = key + 1;
                            return Ok(Waits::Turn);
                        }
                    }
                    CatchUp::Asks(from) => asks = asks.or(Some(Waits::History(key, from))),
                    CatchUp::Ends(close) => {
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

    /// Writes what was kept: the rest of a frame, and what concerns the connection itself.
    fn flush(&mut self, write: Write<'_>) -> io::Result<()> {
        while !self.rest.is_empty() {
            let written = write(&self.rest)?;
            self.rest.advance(written);
        }
        self.rest = Bytes::new();
        while !self.outbox.is_empty() {
            let written = write(&self.outbox)?;
            self.outbox.drain(..written);
        }
        self.outbox = Vec::new();
        Ok(())
    }

    /// Writes one batch of a subscription's own.
    fn catch_up(&mut self, key: SubscriptionKey, batch: &mut EncodedBatch, write: Write<'_>) -> io::Result<CatchUp> {
        let Some(subscription) = self.subscriptions.get_mut(key) else { return Ok(CatchUp::Done) };
        match &subscription.cursor {
            Cursor::History(_) | Cursor::Snapshot(_) => {
                return Ok(subscription.question().map_or(CatchUp::Done, CatchUp::Asks));
            }
            Cursor::Log(cursor) => {
                if let Err(FellBehind) = batch.read_own_log(subscription.topic(), *cursor) {
                    return Ok(fell_behind(subscription));
                }
                if batch.is_empty() {
                    return Ok(CatchUp::Done);
                }
            }
            Cursor::Page(at) => {
                batch.read_page(&at.page, at.next);
                if batch.is_empty() {
                    subscription.leave_page();
                    return Ok(CatchUp::Moved);
                }
            }
        }
        self.encode(key, batch);
        self.write_batch(key, batch, write)?;
        Ok(batch.close().cloned().map_or(CatchUp::Moved, CatchUp::Ends))
    }

    /// Encodes a batch from `cursor` on with the positions that this client holds.
    fn encode_offered(&self, key: SubscriptionKey, cursor: u64, batch: &EncodedBatch, scratch: &mut EncodedBatch) {
        let positions = self.subscriptions.iter().map(|(_, subscription)| subscription.position);
        let channel = &self.subscriptions[key].topic().channel;
        scratch.encode_personal(batch, cursor, (channel, self.encoding), (positions, self.index_of(key)));
    }

    /// Which of its subscriptions this is.
    fn index_of(&self, key: SubscriptionKey) -> usize {
        // Keys have holes only where a subscription has ended.
        if self.subscriptions.len() == self.subscriptions.capacity() {
            return key;
        }
        self.subscriptions.iter().take_while(|(other, _)| *other != key).count()
    }

    fn encode(&self, key: SubscriptionKey, batch: &mut EncodedBatch) {
        let (mut positions, mut index) = (Vec::new(), 0);
        if self.encoding.is_personal() {
            positions.extend(self.subscriptions.iter().map(|(_, subscription)| subscription.position));
            index = self.index_of(key);
        }
        batch.encode_own(&self.subscriptions[key].topic().channel, self.encoding, (&mut positions, index));
    }

    /// Writes a batch from the subscription's cursor on, moves the cursor on, and keeps the rest of a frame of which the
    /// socket took only a part. An error says that not all was written.
    fn write_batch(&mut self, key: SubscriptionKey, batch: &EncodedBatch, write: Write<'_>) -> io::Result<()> {
        let subscription = &mut self.subscriptions[key];
        let Some(next) = subscription.cursor.next_entry() else { return Ok(()) };
        let (written, outcome) = write_all(batch.from(*next), write);
        let given = batch.written(*next, written);
        self.delivered += (given.next - *next) as u32;
        *next = given.next;
        subscription.position = given.position.or(subscription.position);
        self.rest = given.rest;
        if given.exceeds {
            self.end(outgoing_full());
        }
        self.blocked = matches!(&outcome, Err(error) if error.kind() == io::ErrorKind::WouldBlock);
        outcome
    }
}

/// Writes as much as can be written; returns how many bytes that were, and what stood in the way of the others.
fn write_all(bytes: &[u8], write: Write<'_>) -> (usize, io::Result<()>) {
    let mut written = 0;
    while written < bytes.len() {
        match write(&bytes[written..]) {
            Ok(more) => written += more,
            Err(error) => return (written, Err(error)),
        }
    }
    (written, Ok(()))
}

/// The log no longer holds what the subscription must read next.
fn fell_behind(subscription: &mut Subscription) -> CatchUp {
    if let (Some(position), Some(_)) = (subscription.position, subscription.topic().rule.keyed) {
        // The latest value of each key that changed is all it needs.
        subscription.cursor = Cursor::History(ReadFrom::After(position));
        return CatchUp::Moved;
    }
    CatchUp::Ends(too_slow(subscription.position))
}

fn too_slow(position: Option<Position>) -> Close {
    let detail = match position {
        Some(position) => format!("read too slowly; reconnect with since={position}"),
        None => "read too slowly; reconnect".into(),
    };
    Close::new(Code::FellBehind, detail)
}

/// The budget for outgoing bytes is used up: the client is to reconnect later.
pub(super) fn outgoing_full() -> Close {
    let detail = "too much data waits for clients that do not read it; reconnect in a moment";
    Close::new(Code::Refused(Refused::ForNow("outgoing_full")), detail)
}

/// What became of one subscription's turn.
enum CatchUp {
    Done,
    Moved,
    Asks(ReadFrom),
    Ends(Close),
}

#[cfg(test)]
mod tests;
