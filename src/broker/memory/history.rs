//! The history of one channel in memory: the counterpart of the Lua code that runs in Redis
//! (`redis/functions/`). A shared test suite checks that both give the same results.

use std::collections::VecDeque;
use std::sync::Arc;

use super::clock::{Micros, micros};
use super::ids::{Ids, Known};
use super::keys::Keys;
use crate::broker::{BrokerError, PAGE_BYTES, PAGE_MESSAGES, Page, Publication, ReadFrom, Tail};
use crate::message::{Gap, GapReason, Message, Position};
use crate::rules::{History, Keyed};

/// The estimated memory of a message without its payload and key: the struct, the reference counts
/// of its `Arc` and of its payload, and its entry in the log, including spare capacity.
const MESSAGE_BYTES: usize = size_of::<Message>() + 72;
/// A log with a smaller capacity is never shrunk.
const SMALL: usize = 16;

/// How long a channel's position and keyed state outlive its last message, as in Redis.
pub(super) const RETAIN: Micros = 24 * 3600 * 1_000_000;

/// The history of one channel.
pub(super) struct ChannelHistory {
    tail: Tail,
    bounds: History,
    log: VecDeque<Arc<Message>>,
    log_bytes: usize,
    /// The keys, if the channel is keyed.
    keys: Option<Box<Keys>>,
    ids: Ids,
    published: Micros,
}

impl ChannelHistory {
    /// Creates the history of a channel before its first message.
    pub(super) fn new(epoch: u64, bounds: History, keyed: bool) -> Self {
        Self {
            tail: Tail { position: Position::new(epoch, 0), stamp: 0 },
            bounds,
            log: VecDeque::new(),
            log_bytes: 0,
            keys: keyed.then(Box::default),
            ids: Ids::default(),
            published: epoch,
        }
    }

    /// The epoch of the channel.
    pub(super) fn epoch(&self) -> u64 {
        self.tail.position.epoch
    }

    /// The memory of the messages in the log, in bytes.
    pub(super) fn log_bytes(&self) -> usize {
        self.log_bytes
    }

    /// The memory of keys and ids, in bytes, which shortening the log does not free.
    pub(super) fn lasting_bytes(&self) -> usize {
        self.keys.as_ref().map_or(0, |keys| keys.bytes()) + self.ids.bytes()
    }

    /// The memory of the history, in bytes. Counts a message twice that is both a key's value and
    /// in the log.
    pub(super) fn bytes(&self) -> usize {
        self.log_bytes + self.lasting_bytes()
    }

    /// By how many bytes a message makes the log grow at most, and by how many the keys and ids.
    pub(super) fn growth(&self, publication: &Publication) -> (usize, usize) {
        let keys = match (&self.keys, &publication.key) {
            (Some(keys), Some(key)) => keys.bytes_with(key, publication.payload.len()).saturating_sub(keys.bytes()),
            _ => 0,
        };
        let id = publication.id.as_ref().map_or(0, |id| Ids::weight(id));
        (message_bytes(&publication.payload, publication.key.as_ref()), keys + id)
    }

    /// When the last message was published.
    pub(super) fn published(&self) -> Micros {
        self.published
    }

    /// Whether the channel has expired, because no message was published for [`RETAIN`].
    pub(super) fn has_expired(&self, now: Micros) -> bool {
        now >= self.published + RETAIN
    }

    /// The message that an idempotency id was used for.
    pub(super) fn known(&self, id: &str, now: Micros) -> Option<Known> {
        self.ids.find(id, now)
    }

    /// A position in the current epoch.
    pub(super) fn position(&self, offset: u64) -> Position {
        Position::new(self.epoch(), offset)
    }

    /// Whether the limits of a keyed channel allow the message.
    pub(super) fn check(&self, publication: &Publication, keyed: Option<Keyed>) -> Result<(), BrokerError> {
        match (&self.keys, &publication.key, keyed) {
            (Some(keys), Some(key), Some(bounds)) if !publication.remove => {
                keys.check(key, publication.payload.len(), bounds)
            }
            _ => Ok(()),
        }
    }

    /// Stores a message and assigns its position.
    pub(super) fn publish(&mut self, publication: Publication, digest: u64, now: Micros) -> Message {
        let Publication { payload, key, remove, id, .. } = publication;
        let position = self.tail.position.next();
        let stamp = (now / 1000).max(self.tail.stamp);
        let message = Message { position: Some(position), stamp, key, removed: remove, payload };
        let shared = Arc::new(message.clone());
        if let (Some(keys), Some(key)) = (&mut self.keys, &message.key) {
            keys.set(key.clone(), position.offset, shared.clone());
        }
        if let Some(id) = id {
            self.ids.remember(id, position.offset, digest, now);
        }
        self.published = now.max(self.published);
        self.tail = Tail { position, stamp };
        self.log_bytes += weight(&shared);
        self.log.push_back(shared);
        while self.log.len() > self.bounds.messages {
            self.drop_oldest();
        }
        message
    }

    /// When the next message or id expires, if there is any.
    pub(super) fn next_expiry(&self) -> Option<Micros> {
        let message = self.log.front().map(|message| (message.stamp + 1) * 1000 + micros(self.bounds.age));
        message.into_iter().chain(self.ids.next_expiry()).min()
    }

    /// Drops expired messages and ids, at most `most` of them. Returns how many.
    pub(super) fn drop_aged(&mut self, now: Micros, most: usize) -> usize {
        let mut count = 0;
        while count < most && self.log.front().is_some_and(|message| self.is_aged(message, now)) {
            self.drop_oldest();
            count += 1;
        }
        self.give_back();
        count + self.ids.expire(now, most - count)
    }

    /// Drops the oldest messages of the log until it uses at most `bytes`.
    pub(super) fn shorten_to(&mut self, bytes: usize) {
        while self.log_bytes > bytes {
            self.drop_oldest();
        }
        self.give_back();
    }

    fn drop_oldest(&mut self) {
        if let Some(message) = self.log.pop_front() {
            self.log_bytes -= weight(&message);
        }
    }

    fn give_back(&mut self) {
        if self.log.capacity() > SMALL && self.log.len() < self.log.capacity() / 4 {
            self.log.shrink_to(self.log.len() * 2);
        }
    }

    fn is_aged(&self, message: &Message, now: Micros) -> bool {
        message.stamp + micros(self.bounds.age) / 1000 < now / 1000
    }

    /// Implements [`super::super::Broker::read`].
    pub(super) fn read(&self, from: ReadFrom, limit: usize, now: Micros) -> Page {
        let limit = limit.min(PAGE_MESSAGES);
        // Does not return expired messages, even if they have not been dropped yet.
        let first = self.log.partition_point(|message| self.is_aged(message, now));
        match from {
            ReadFrom::Tail => self.page(None, Vec::new(), self.tail),
            ReadFrom::Oldest => self.page_from(None, first, limit),
            ReadFrom::Last(count) => {
                self.page_from(None, first.max(self.log.len().saturating_sub(count.min(limit))), limit)
            }
            ReadFrom::Keys => self.all_keys(None),
            ReadFrom::After(position) | ReadFrom::AfterDelivered(Tail { position, .. }) => {
                self.after(position, first, limit).unwrap_or_else(|reason| self.lost(reason, first, limit))
            }
            ReadFrom::AfterIfKept(position) => self
                .after(position, first, limit)
                .unwrap_or_else(|reason| self.page(Some(self.gap(reason, first)), Vec::new(), self.tail)),
        }
    }

    /// What follows a position, or why messages are missing.
    fn after(&self, position: Position, first: usize, limit: usize) -> Result<Page, GapReason> {
        let tail = self.tail.position;
        if position.epoch != tail.epoch || position.offset > tail.offset {
            return Err(GapReason::EpochChanged);
        }
        let before_log = tail.offset - self.log.len() as u64;
        if position.offset >= before_log + first as u64 {
            return Ok(self.page_from(None, (position.offset - before_log) as usize, limit));
        }
        let changed = self.keys.as_ref().and_then(|keys| keys.changed_since(position.offset));
        changed.map(|changed| self.page(None, changed, self.tail)).ok_or(GapReason::HistoryTrimmed)
    }

    /// A page with a gap, followed by all stored messages.
    fn lost(&self, reason: GapReason, first: usize, limit: usize) -> Page {
        let gap = Some(self.gap(reason, first));
        if self.keys.is_some() { self.all_keys(gap) } else { self.page_from(gap, first, limit) }
    }

    /// The gap before all stored messages, or before the values of all keys.
    fn gap(&self, reason: GapReason, first: usize) -> Gap {
        let before_first = self.tail.position.offset - (self.log.len() - first) as u64;
        let resumes_after = self.position(if self.keys.is_some() { 0 } else { before_first });
        Gap { resumes_after, reason }
    }

    fn all_keys(&self, gap: Option<Gap>) -> Page {
        self.page(gap, self.keys.as_ref().map(|keys| keys.values()).unwrap_or_default(), self.tail)
    }

    fn page_from(&self, gap: Option<Gap>, index: usize, limit: usize) -> Page {
        let mut bytes = 0;
        let fits = |message: &&Arc<Message>| {
            let first = bytes == 0;
            bytes += message.payload.len().max(1);
            first || bytes <= PAGE_BYTES
        };
        let messages: Vec<_> = self.log.range(index..).take(limit).take_while(fits).cloned().collect();
        let complete = index + messages.len() == self.log.len();
        let last = messages.last().and_then(|last| Some(Tail { position: last.position?, stamp: last.stamp }));
        let through = last.filter(|_| !complete).unwrap_or(self.tail);
        self.page(gap, messages, through)
    }

    fn page(&self, gap: Option<Gap>, messages: Vec<Arc<Message>>, through: Tail) -> Page {
        Page { gap, messages, through, tail: self.tail }
    }
}

fn weight(message: &Message) -> usize {
    message_bytes(&message.payload, message.key.as_ref())
}

fn message_bytes(payload: &[u8], key: Option<&Arc<str>>) -> usize {
    MESSAGE_BYTES + payload.len() + key.map_or(0, |key| key.len())
}
