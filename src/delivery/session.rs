//! The subscriptions of a client, and the order in which its bytes are written. Knows no socket:
//! the caller passes a function that writes as much as can be written now.
//!
//! The order of bytes: the rest of a partly written frame; then the outbox with bytes of the
//! connection itself (the HTTP response head, notices, pongs, the close frame); then the channels.
//! All bytes of channels go through `write_batch`, from batches of the fan-out and from batches of
//! this client alone.

use std::io;
use std::sync::Arc;

use bytes::{Buf, Bytes};
use slab::Slab;

use super::batch::{EncodedBatch, OWN_BYTES, epoch_ended};
use super::dialect::SubscriptionStart;
use super::dialect::command::SubscriptionEnd;
use super::encoding::Encoding;
use super::framing::FrameWriter;
use super::subscription::{Cursor, Missed, NewSubscription, Subscription};
use crate::broker::ReadFrom;
use crate::channel::ChannelName;
use crate::close::{Close, Code, Refused};
use crate::hub::held_page::HeldPage;
use crate::hub::topic::{FellBehind, Topic};
use crate::message::Position;

/// Writes as much as can be written now and returns the number of bytes; `WouldBlock` if nothing
/// can be written.
pub type Write<'a> = &'a mut dyn FnMut(&[u8]) -> io::Result<usize>;

/// The key of a subscription within its session.
pub type SubscriptionKey = usize;

/// The event that a session waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Waits {
    /// New messages.
    News,
    /// A permit of [`super::pace`]: it has written enough for now.
    Permit,
    /// The socket is full.
    Room,
    /// A read of the history for a subscription.
    History(SubscriptionKey, ReadFrom),
    /// The end of this subscription, of which the client has been told.
    Unsubscribe(SubscriptionKey),
    /// Nothing: everything is written, so close the connection.
    End,
    /// Nothing: the connection is broken.
    Gone,
}

/// A client without its socket.
pub struct Session {
    encoding: &'static Encoding,
    subscriptions: Slab<Subscription>,
    /// The rest of a partly written frame.
    rest: Bytes,
    /// Bytes of the connection itself, not of a channel.
    outbox: Vec<u8>,
    blocked: bool,
    /// The subscription that catches up next.
    next_to_catch_up: SubscriptionKey,
    /// Whether subscriptions end with their epochs, as the client learns of an epoch only when it
    /// subscribes.
    ends_with_epochs: bool,
    /// Messages written since the last [`Session::take_delivered`].
    delivered: u32,
    ending: Option<Box<Close>>,
}

impl Session {
    /// Creates a session without subscriptions, with capacity for `subscriptions`. `head` is the
    /// HTTP response head, the first bytes to write.
    pub fn new(encoding: &'static Encoding, head: Vec<u8>, subscriptions: usize) -> Self {
        Self {
            encoding,
            subscriptions: Slab::with_capacity(subscriptions),
            rest: Bytes::new(),
            outbox: head,
            blocked: false,
            next_to_catch_up: 0,
            ends_with_epochs: false,
            delivered: 0,
            ending: None,
        }
    }

    /// Tells the client the instance and its subscriptions, each with the newest offset of its
    /// channel.
    pub fn write_connected(&mut self, instance: &str, made: &[(SubscriptionKey, Option<u64>)]) {
        let start = |&(key, head): &(SubscriptionKey, _)| {
            let subscription = self.subscriptions.get(key)?;
            let (topic, position) = (subscription.topic(), subscription.position);
            Some(SubscriptionStart { channel: &topic.channel, position, head, keyed: topic.rule.keyed.is_some() })
        };
        let starts: Vec<_> = made.iter().filter_map(start).collect();
        self.encoding.dialect.write_connected(instance, &starts, &mut self.encoding.writer(&mut self.outbox));
    }

    /// Subscribes to a channel. Returns the key of the subscription and the newest offset of the
    /// channel. Keys are reused.
    pub fn subscribe(&mut self, new: NewSubscription) -> (SubscriptionKey, Option<u64>) {
        let (subscription, head) = Subscription::new(new);
        (self.subscriptions.insert(subscription), head)
    }

    /// Ends a subscription. Only a partly written frame is still completed.
    pub fn unsubscribe(&mut self, key: SubscriptionKey) -> Option<Subscription> {
        self.subscriptions.try_remove(key)
    }

    /// The encoding of the session.
    pub fn encoding(&self) -> &'static Encoding {
        self.encoding
    }

    /// All subscriptions.
    pub fn subscriptions(&self) -> impl Iterator<Item = (SubscriptionKey, &Subscription)> {
        self.subscriptions.iter()
    }

    /// A subscription.
    pub fn subscription(&self, key: SubscriptionKey) -> Option<&Subscription> {
        self.subscriptions.get(key)
    }

    pub(super) fn subscription_mut(&mut self, key: SubscriptionKey) -> Option<&mut Subscription> {
        self.subscriptions.get_mut(key)
    }

    /// The only subscription; `None` if there are none or several.
    pub fn only_subscription(&self) -> Option<&Subscription> {
        let mut all = self.subscriptions.iter().map(|(_, subscription)| subscription);
        all.next().filter(|_| all.next().is_none())
    }

    /// Ends each subscription with its epoch from now on.
    pub fn end_with_epochs(&mut self) {
        self.ends_with_epochs = true;
    }

    /// The number of subscriptions.
    pub fn subscription_count(&self) -> usize {
        self.subscriptions.len()
    }

    /// The subscription to a channel.
    pub fn find(&self, channel: &ChannelName) -> Option<SubscriptionKey> {
        self.subscriptions.iter().find(|(_, held)| held.topic().channel == *channel).map(|(key, _)| key)
    }

    /// Takes the messages that a new subscriber missed, up to about `most` bytes, to be written with
    /// the answer to its subscription. The others follow as new messages.
    pub fn take_missed(&mut self, key: SubscriptionKey, most: usize) -> Missed {
        let subscription = self.subscriptions.get_mut(key);
        let missed = subscription.map(|subscription| subscription.take_missed(most)).unwrap_or_default();
        self.delivered += missed.messages.len() as u32;
        missed
    }

    /// The reason of the close, if the session is closing.
    pub fn ending(&self) -> Option<&Close> {
        self.ending.as_deref()
    }

    /// Adds control bytes to the outbox.
    pub fn queue_control(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        if self.ending.is_none() {
            write(&mut self.outbox);
        }
    }

    /// Adds notices for the client to the outbox.
    pub fn queue_notice(&mut self, write: impl FnOnce(&'static Encoding, &mut FrameWriter<'_>)) {
        let encoding = self.encoding;
        self.queue_control(|out| write(encoding, &mut encoding.writer(out)));
    }

    /// Removes the last bytes of the outbox, which nobody has begun to write.
    pub fn take_back(&mut self, bytes: usize) {
        self.outbox.truncate(self.outbox.len() - bytes);
        self.outbox.shrink_to_fit();
    }

    /// The size of the outbox, in bytes.
    pub fn outbox_bytes(&self) -> usize {
        self.outbox.len()
    }

    /// The number of messages written since the last call.
    pub fn take_delivered(&mut self) -> u32 {
        std::mem::take(&mut self.delivered)
    }

    /// Whether a subscription reads a page of history, which stays in memory until then.
    pub fn reads_page(&self) -> bool {
        self.subscriptions.iter().any(|(_, subscription)| subscription.reads_page())
    }

    /// The number of unread messages of the channel in which the client is furthest behind; `None`
    /// if its socket is not full.
    pub fn backlog(&self) -> Option<u64> {
        if !self.blocked {
            return None;
        }
        self.subscriptions.iter().map(|(_, subscription)| subscription.backlog()).max()
    }

    /// Ends the session: after the partly written frame, the client gets the close and nothing
    /// else.
    pub fn end(&mut self, close: Close) {
        if self.ending.is_none() {
            let mut out = self.encoding.writer(&mut self.outbox);
            self.encoding.dialect.write_farewell(&close, &mut out);
            out.close(self.encoding.dialect.close_number(close.code), &close.reason());
            self.ending = Some(Box::new(close));
        }
    }

    /// Ends the session because the client reads a page of history too slowly.
    pub fn end_as_too_slow(&mut self) {
        let mut subscriptions = self.subscriptions.iter().map(|(_, subscription)| subscription);
        let position = subscriptions.find(|held| held.reads_page()).and_then(|held| held.position);
        self.end(too_slow(position));
    }

    /// Passes the answer of a read of the history to a subscription to `topic`; `None` if the
    /// channel no longer keeps a history. Ignored if that subscription has ended.
    pub fn set_page(&mut self, key: SubscriptionKey, topic: &Topic, page: Option<Arc<HeldPage>>) {
        if let Some(subscription) = self.subscriptions.get_mut(key)
            && subscription.topic().id == topic.id
            && subscription.question().is_some()
        {
            subscription.set_page(page);
        }
    }

    /// Writes the part of a shared batch that this subscriber has not received yet. `scratch` is
    /// for frames of a per-subscriber encoding. Returns `false` if [`Session::pump`] must be
    /// called.
    pub fn offer(
        &mut self,
        key: SubscriptionKey,
        batch: &EncodedBatch,
        scratch: &mut EncodedBatch,
        write: Write<'_>,
    ) -> bool {
        let Some(subscription) = self.subscriptions.get(key) else { return true };
        let Cursor::Log(cursor) = &subscription.cursor else { return true };
        if self.blocked || *cursor >= batch.resume_at() {
            return true;
        }
        let beyond_frames = *cursor < batch.first() || *cursor >= batch.end();
        let is_over = self.ends_with_epochs && !batch.is_in_epoch_of(subscription.position);
        if beyond_frames || is_over || !self.outbox.is_empty() || self.ending.is_some() {
            return false;
        }
        let batch = if self.encoding.is_per_subscriber() {
            self.encode_offered(key, *cursor, batch, scratch);
            scratch
        } else {
            batch
        };
        // Other errors than `WouldBlock`: the task sees them on its next write.
        self.write_batch(key, batch, write).is_ok() && batch.close().is_none()
    }

    /// Flushes, then catches up by about one batch. `scratch` is for batches of this client alone.
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
            let (first, capacity) = (self.next_to_catch_up, self.subscriptions.capacity());
            for key in (0..capacity).map(|key| (first + key) % capacity) {
                match self.catch_up(key, scratch, write)? {
                    CatchUp::Done => {}
                    CatchUp::Moved => {
                        moved = true;
                        written += scratch.bytes();
                        if written >= OWN_BYTES {
                            self.next_to_catch_up = key + 1;
                            return Ok(Waits::Permit);
                        }
                    }
                    CatchUp::Asks(from) => asks = asks.or(Some(Waits::History(key, from))),
                    CatchUp::Ends(close) if self.end_subscription(key, &close) => {
                        return Ok(Waits::Unsubscribe(key));
                    }
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

    /// Tells the client that a subscription has ended, if only that has, and if the dialect can tell
    /// it.
    fn end_subscription(&mut self, key: SubscriptionKey, close: &Close) -> bool {
        let Some(subscription) = self.subscriptions.get(key) else { return true };
        if close.code != Code::Gap {
            return false;
        }
        let mut out = self.encoding.writer(&mut self.outbox);
        let channel = &subscription.topic().channel;
        self.encoding.dialect.write_unsubscribed(channel, SubscriptionEnd::Interrupted, &mut out)
    }

    /// Writes the rest of a frame and the outbox.
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

    /// Writes one batch of this subscription alone.
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
                    let before = subscription.position;
                    subscription.leave_page();
                    let goes_on = !self.ends_with_epochs || subscription.is_in_epoch_of(before);
                    return Ok(if goes_on { CatchUp::Moved } else { CatchUp::Ends(epoch_ended()) });
                }
            }
        }
        self.encode(key, batch);
        self.write_batch(key, batch, write)?;
        Ok(batch.close().cloned().map_or(CatchUp::Moved, CatchUp::Ends))
    }

    /// Encodes a shared batch from `cursor` on with the positions of this client.
    fn encode_offered(&self, key: SubscriptionKey, cursor: u64, batch: &EncodedBatch, scratch: &mut EncodedBatch) {
        let positions = self.subscriptions.iter().map(|(_, subscription)| subscription.position);
        let channel = &self.subscriptions[key].topic().channel;
        scratch.encode_per_subscriber(batch, cursor, (channel, self.encoding), (positions, self.index_of(key)));
    }

    /// Index among the live subscriptions.
    fn index_of(&self, key: SubscriptionKey) -> usize {
        // Without ended subscriptions, the keys have no holes.
        if self.subscriptions.len() == self.subscriptions.capacity() {
            return key;
        }
        self.subscriptions.iter().take_while(|(other, _)| *other != key).count()
    }

    fn encode(&self, key: SubscriptionKey, batch: &mut EncodedBatch) {
        let (mut positions, mut index) = (Vec::new(), 0);
        if self.encoding.is_per_subscriber() {
            positions.extend(self.subscriptions.iter().map(|(_, subscription)| subscription.position));
            index = self.index_of(key);
        }
        let subscription = &self.subscriptions[key];
        let held = subscription.position.filter(|_| self.ends_with_epochs);
        let epoch = held.map(|position| position.epoch);
        batch.encode_own(&subscription.topic().channel, self.encoding, epoch, (&mut positions, index));
    }

    /// Writes a batch from the cursor of the subscription on, advances the cursor, and keeps the
    /// rest of a partly written frame. Returns an error if not everything was written.
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

/// Writes as much as can be written. Returns the number of bytes, and the error that stopped it.
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

/// Handles that the log no longer has the next entry of the subscription.
fn fell_behind(subscription: &mut Subscription) -> CatchUp {
    if let (Some(position), Some(_)) = (subscription.position, subscription.topic().rule.keyed) {
        // The client needs only the latest value of each changed key.
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

/// The close for a client that finds the budget for outgoing bytes used up.
pub(super) fn outgoing_full() -> Close {
    let detail = "too much data waits for clients that do not read it; reconnect in a moment";
    Close::new(Code::Refused(Refused::ForNow("outgoing_full")), detail)
}

/// The result of one step of a subscription.
enum CatchUp {
    Done,
    Moved,
    Asks(ReadFrom),
    Ends(Close),
}

#[cfg(test)]
mod tests;
