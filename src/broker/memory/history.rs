//! One channel's history in memory: what `functions.lua` does in Redis, in Rust. The shared contract suite holds
//! the two to the same answers.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use tokio::time::Instant;

use crate::broker::{BrokerError, From, PAGE_BYTES, PAGE_MESSAGES, Page, Tail};
use crate::message::{Gap, GapReason, Message, Position};
use crate::rules::{History, Keyed};

/// How long the answer to an idempotency id is remembered.
const REMEMBER: Duration = Duration::from_secs(600);
/// How many removed keys are remembered, for those who come back and still show them.
const MOST_TOMBSTONES: usize = 1000;

/// The past of one channel.
pub(super) struct ChannelHistory {
    tail: Tail,
    bounds: History,
    log: VecDeque<(Arc<Message>, Instant)>,
    log_bytes: usize,
    keys: HashMap<Arc<str>, Arc<Message>>,
    key_bytes: usize,
    tombstones: usize,
    /// Removals up to this offset are forgotten.
    forgotten: u64,
    ids: HashMap<Arc<str>, (Position, Instant)>,
    published: Instant,
}

impl Default for ChannelHistory {
    fn default() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            tail: Tail { position: Position::new(since.as_micros() as u64, 0), stamp: 0 },
            bounds: History { messages: 0, age: Duration::ZERO },
            log: VecDeque::new(),
            log_bytes: 0,
            keys: HashMap::new(),
            key_bytes: 0,
            tombstones: 0,
            forgotten: 0,
            ids: HashMap::new(),
            published: Instant::now(),
        }
    }
}

impl ChannelHistory {
    /// What the history weighs, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.log_bytes + self.key_bytes + self.ids.len() * 64
    }

    /// How long ago the last message was published.
    pub(super) fn idle(&self) -> Duration {
        self.published.elapsed()
    }

    /// The position that was answered to an idempotency id.
    pub(super) fn known(&self, id: &str) -> Option<Position> {
        self.ids.get(id).filter(|(_, at)| at.elapsed() < REMEMBER).map(|(position, _)| *position)
    }

    /// Remembers the answer to an idempotency id.
    pub(super) fn remember(&mut self, id: Arc<str>, position: Position) {
        self.ids.insert(id, (position, Instant::now()));
    }

    /// Sets how much is kept.
    pub(super) fn bound(&mut self, bounds: History) {
        self.bounds = bounds;
        self.drop_aged();
    }

    /// Takes a message in and gives it its position.
    pub(super) fn publish(
        &mut self,
        payload: Bytes,
        key: Option<Arc<str>>,
        removed: bool,
        bounds: History,
        keyed: Option<Keyed>,
    ) -> Result<Message, BrokerError> {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let position = self.tail.position.next();
        let stamp = since.as_millis() as u64;
        let message = Message { position: Some(position), stamp, key, removed, payload };
        let shared = Arc::new(message.clone());
        if let (Some(keyed), Some(key)) = (keyed, &message.key) {
            self.set_key(key.clone(), shared.clone(), keyed)?;
        }
        self.published = Instant::now();
        self.tail = Tail { position, stamp };
        self.log_bytes += message.payload.len() + size_of::<Message>();
        self.log.push_back((shared, Instant::now()));
        self.bound(bounds);
        Ok(message)
    }

    fn set_key(&mut self, key: Arc<str>, message: Arc<Message>, bounds: Keyed) -> Result<(), BrokerError> {
        let weight = |message: &Message| key.len() + message.payload.len();
        let old = self.keys.get(&key);
        let (old_bytes, old_live, old_dead) = match old {
            Some(old) => (weight(old), usize::from(!old.removed), usize::from(old.removed)),
            None => (0, 0, 0),
        };
        let live = self.keys.len() - self.tombstones - old_live + usize::from(!message.removed);
        let bytes = self.key_bytes - old_bytes + weight(&message);
        if !message.removed && live > bounds.keys {
            return Err(BrokerError::KeyedChannelFull(format!("{} keys", bounds.keys)));
        }
        if !message.removed && bytes > bounds.bytes {
            return Err(BrokerError::KeyedChannelFull(format!("{} bytes", bounds.bytes)));
        }
        self.key_bytes = bytes;
        self.tombstones = self.tombstones - old_dead + usize::from(message.removed);
        self.keys.insert(key, message);
        if self.tombstones > MOST_TOMBSTONES {
            self.forget_tombstones();
        }
        Ok(())
    }

    fn forget_tombstones(&mut self) {
        self.forgotten = self.tail.position.offset + 1;
        self.keys.retain(|_, message| !message.removed);
        self.key_bytes = self.keys.iter().map(|(key, message)| key.len() + message.payload.len()).sum();
        self.tombstones = 0;
    }

    /// Drops what is beyond the bounds.
    pub(super) fn drop_aged(&mut self) {
        while let Some((message, at)) = self.log.front()
            && (self.log.len() > self.bounds.messages || at.elapsed() > self.bounds.age)
        {
            self.log_bytes -= message.payload.len() + size_of::<Message>();
            self.log.pop_front();
        }
        if self.ids.len() > 100 {
            self.ids.retain(|_, (_, at)| at.elapsed() < REMEMBER);
        }
    }

    /// Answers [`super::super::Broker::read`].
    pub(super) fn read(&self, from: From, limit: usize, keyed: bool) -> Page {
        let limit = limit.min(PAGE_MESSAGES);
        match from {
            From::Tail => self.page(None, Vec::new(), self.tail),
            From::Oldest => self.page_from(None, 0, limit),
            From::Last(count) => self.page_from(None, self.log.len().saturating_sub(count.min(limit)), limit),
            From::Keys => self.all_keys(None),
            From::After(position) | From::AfterDelivered(Tail { position, .. }) => self.after(position, limit, keyed),
        }
    }

    fn after(&self, position: Position, limit: usize, keyed: bool) -> Page {
        let tail = self.tail.position;
        if position.epoch != tail.epoch || position.offset > tail.offset {
            return self.lost(GapReason::EpochChanged, limit, keyed);
        }
        let oldest = tail.offset + 1 - self.log.len() as u64;
        if position.offset + 1 >= oldest {
            return self.page_from(None, (position.offset + 1 - oldest) as usize, limit);
        }
        if keyed && position.offset >= self.forgotten {
            let changed =
                self.sorted_keys(|message| message.position.is_some_and(|held| held.offset > position.offset));
            return self.page(None, changed, self.tail);
        }
        self.lost(GapReason::HistoryTrimmed, limit, keyed)
    }

    /// All that is still there, after the notice that something is not.
    fn lost(&self, reason: GapReason, limit: usize, keyed: bool) -> Page {
        let epoch = self.tail.position.epoch;
        if keyed {
            return self.all_keys(Some(Gap { resumes_after: Position::new(epoch, 0), reason }));
        }
        let before_oldest = self.tail.position.offset - self.log.len() as u64;
        self.page_from(Some(Gap { resumes_after: Position::new(epoch, before_oldest), reason }), 0, limit)
    }

    fn all_keys(&self, gap: Option<Gap>) -> Page {
        self.page(gap, self.sorted_keys(|message| !message.removed), self.tail)
    }

    fn sorted_keys(&self, wanted: impl Fn(&Message) -> bool) -> Vec<Arc<Message>> {
        let mut messages: Vec<_> = self.keys.values().filter(|message| wanted(message)).cloned().collect();
        messages.sort_by_key(|message| message.position.map(|position| position.offset));
        messages
    }

    fn page_from(&self, gap: Option<Gap>, index: usize, limit: usize) -> Page {
        let mut bytes = 0;
        let fits = |message: &&Arc<Message>| {
            let first = bytes == 0;
            bytes += message.payload.len().max(1);
            first || bytes <= PAGE_BYTES
        };
        let messages: Vec<_> =
            self.log.range(index..).map(|(message, _)| message).take(limit).take_while(fits).cloned().collect();
        let complete = index + messages.len() == self.log.len();
        let last = messages.last().and_then(|last| Some(Tail { position: last.position?, stamp: last.stamp }));
        let through = last.filter(|_| !complete).unwrap_or(self.tail);
        self.page(gap, messages, through)
    }

    fn page(&self, gap: Option<Gap>, messages: Vec<Arc<Message>>, through: Tail) -> Page {
        Page { gap, messages, through, tail: self.tail }
    }
}
