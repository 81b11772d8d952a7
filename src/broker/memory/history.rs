//! One channel's history in memory: what `functions.lua` does in Redis, in Rust. The shared
//! contract suite holds the two to the same answers.

use std::collections::VecDeque;
use std::sync::Arc;

use super::clock::{Micros, micros};
use super::ids::{Ids, Known};
use super::keys::Keys;
use crate::broker::{BrokerError, PAGE_BYTES, PAGE_MESSAGES, Page, Publication, ReadFrom, Tail};
use crate::message::{Gap, GapReason, Message, Position};
use crate::rules::{History, Keyed};

/// What a message takes beside its payload and key: itself, the counters of its `Arc` and its
/// payload's, its place in the log with the room that the log keeps to grow.
const MESSAGE_BYTES: usize = size_of::<Message>() + 72;
/// Below so many places a log is not worth shrinking.
const SMALL: usize = 16;

/// How long a channel's position and keyed state outlive its last message, as in Redis.
pub(super) const RETAIN: Micros = 24 * 3600 * 1_000_000;

/// The past of one channel.
pub(super) struct ChannelHistory {
    tail: Tail,
    bounds: History,
    log: VecDeque<Arc<Message>>,
    log_bytes: usize,
    /// Where the channel is keyed.
    keys: Option<Box<Keys>>,
    ids: Ids,
    published: Micros,
}

impl ChannelHistory {
    /// The history of a channel whose first message is to follow.
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

    /// Which life of the channel this is.
    pub(super) fn epoch(&self) -> u64 {
        self.tail.position.epoch
    }

    /// What the messages of the log take, in bytes.
    pub(super) fn log_bytes(&self) -> usize {
        self.log_bytes
    }

    /// What a shorter log would not give back, in bytes: keys and ids.
    pub(super) fn lasting_bytes(&self) -> usize {
        self.keys.as_ref().map_or(0, |keys| keys.bytes()) + self.ids.bytes()
    }

    /// What the history takes, in bytes. A message that is a key's value and in the log as well
    /// counts twice.
    pub(super) fn bytes(&self) -> usize {
        self.log_bytes + self.lasting_bytes()
    }

    /// By how much a message makes the log grow at most, and the keys and ids, in bytes.
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

    /// Whether the channel ended because nothing was published for so long.
    pub(super) fn has_expired(&self, now: Micros) -> bool {
        now >= self.published + RETAIN
    }

    /// What an idempotency id was used for.
    pub(super) fn known(&self, id: &str, now: Micros) -> Option<Known> {
        self.ids.find(id, now)
    }

    /// A position of this life of the channel.
    pub(super) fn position(&self, offset: u64) -> Position {
        Position::new(self.epoch(), offset)
    }

    /// Whether the bounds of a keyed channel allow the message.
    pub(super) fn check(&self, publication: &Publication, keyed: Option<Keyed>) -> Result<(), BrokerError> {
        match (&self.keys, &publication.key, keyed) {
            (Some(keys), Some(key), Some(bounds)) if !publication.remove => {
                keys.check(key, publication.payload.len(), bounds)
            }
            _ => Ok(()),
        }
    }

    /// Takes a message in and gives it its position.
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

    /// When something ages next, if there is anything.
    pub(super) fn next_expiry(&self) -> Option<Micros> {
        let message = self.log.front().map(|message| (message.stamp + 1) * 1000 + micros(self.bounds.age));
        message.into_iter().chain(self.ids.next_expiry()).min()
    }

    /// Drops aged messages and ids, at most `most` of them; returns how many.
    pub(super) fn drop_aged(&mut self, now: Micros, most: usize) -> usize {
        let mut count = 0;
        while count < most && self.log.front().is_some_and(|message| self.is_aged(message, now)) {
            self.drop_oldest();
            count += 1;
        }
        self.give_back();
        count + self.ids.expire(now, most - count)
    }

    /// Drops the oldest messages of the log until it takes no more than so many bytes.
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

    /// Answers [`super::super::Broker::read`].
    pub(super) fn read(&self, from: ReadFrom, limit: usize, now: Micros) -> Page {
        let limit = limit.min(PAGE_MESSAGES);
        // What is too old is not returned, also while it waits to be dropped.
        let first = self.log.partition_point(|message| self.is_aged(message, now));
        match from {
            ReadFrom::Tail => self.page(None, Vec::new(), self.tail),
            ReadFrom::Oldest => self.page_from(None, first, limit),
            ReadFrom::Last(count) => {
                self.page_from(None, first.max(self.log.len().saturating_sub(count.min(limit))), limit)
            }
            ReadFrom::Keys => self.all_keys(None),
            ReadFrom::After(position) | ReadFrom::AfterDelivered(Tail { position, .. }) => {
                self.after(position, first, limit)
            }
        }
    }

    fn after(&self, position: Position, first: usize, limit: usize) -> Page {
        let tail = self.tail.position;
        if position.epoch != tail.epoch || position.offset > tail.offset {
            return self.lost(GapReason::EpochChanged, first, limit);
        }
        let before_log = tail.offset - self.log.len() as u64;
        if position.offset >= before_log + first as u64 {
            return self.page_from(None, (position.offset - before_log) as usize, limit);
        }
        if let Some(changed) = self.keys.as_ref().and_then(|keys| keys.changed_since(position.offset)) {
            return self.page(None, changed, self.tail);
        }
        self.lost(GapReason::HistoryTrimmed, first, limit)
    }

    /// All that is still there, after the notice that something is not.
    fn lost(&self, reason: GapReason, first: usize, limit: usize) -> Page {
        if self.keys.is_some() {
            return self.all_keys(Some(Gap { resumes_after: self.position(0), reason }));
        }
        let before_first = self.tail.position.offset - (self.log.len() - first) as u64;
        let gap = Gap { resumes_after: self.position(before_first), reason };
        self.page_from(Some(gap), first, limit)
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
