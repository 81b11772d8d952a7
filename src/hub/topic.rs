//! One channel on this instance: its log, its order, and how far each shard has read. The hub
//! appends and the shards read. A topic knows neither sockets nor encodings.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::Notify;

use crate::broker::{Page, ReadFrom, RequestSize, Tail};
use crate::channel::ChannelName;
use crate::hub::log::{Found, Log, LogBounds};
use crate::hub::sequence::{Next, Sequencer};
use crate::hub::shared_reads::SharedReads;
use crate::message::{Entry, Message, Position};
use crate::observability::metrics::latency::Moment;
use crate::rules::Rule;

/// Where a new subscriber starts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Start {
    /// With the next message.
    Live,
    /// After a position that the client holds.
    After(Position),
    /// With the last N messages.
    Last(usize),
    /// With the oldest stored message; on a keyed channel, with the value of every key.
    Oldest,
}

/// Where a reader of the topic continues.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ReadAt {
    /// In the log, at this sequence number.
    Log(u64),
    /// With a read of the history.
    History(ReadFrom),
}

/// Where a subscriber starts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StartingPoint {
    /// Where it reads first.
    pub read_at: ReadAt,
    /// The position after which it starts; `None` if the channel keeps no history.
    pub position: Option<Position>,
    /// The newest offset of the channel.
    pub head: Option<u64>,
}

/// The log no longer has the entries from a sequence number on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FellBehind;

/// The result of an event.
#[derive(Debug)]
#[must_use]
pub(crate) struct Change {
    /// Whether to read the history.
    pub(crate) next: Next,
    /// How many messages without a position were dropped.
    pub(crate) dropped: u64,
    /// The shards to wake. Empty, without an allocation, if all have been notified before.
    pub(crate) wake: Vec<usize>,
}

/// A channel with subscribers on this instance.
pub struct Topic {
    /// The name of the channel.
    pub channel: ChannelName,
    /// The rule for the channel.
    pub rule: Rule,
    /// The id of the topic on this instance, which is never reused.
    pub id: u64,
    state: Mutex<State>,
    ready: Notify,
    /// Per shard: arrival time of its oldest unread message; 0 if it has read everything.
    notified_since: Box<[AtomicU64]>,
    /// The size of the logs of all topics, in bytes; each topic adds its own.
    total: Arc<AtomicUsize>,
    /// Reads of the history that several subscribers share.
    pub(crate) shared_reads: SharedReads,
}

struct State {
    log: Log,
    sequencer: Sequencer,
    /// Per shard: the sequence number up to which it has served its subscribers; `u64::MAX` if it
    /// has none.
    served: Box<[u64]>,
    /// The log's end at the last call of `trim_idle`.
    end_at_last_trim: u64,
    /// Whether the broker refuses the channel.
    refused: bool,
    has_small_requests: bool,
    subscribers: usize,
    idle_since: Option<Instant>,
}

impl Topic {
    /// Creates a topic without a subscription in the broker.
    pub fn new(
        id: u64,
        channel: ChannelName,
        rule: Rule,
        bounds: LogBounds,
        shards: usize,
        total: Arc<AtomicUsize>,
    ) -> Self {
        let state = State {
            log: Log::new(bounds),
            sequencer: Sequencer::new(rule.keyed.is_some()),
            served: vec![u64::MAX; shards].into(),
            end_at_last_trim: 0,
            refused: false,
            has_small_requests: false,
            subscribers: 0,
            idle_since: Some(Instant::now()),
        };
        let notified_since = (0..shards).map(|_| AtomicU64::new(0)).collect();
        Self {
            channel,
            rule,
            id,
            state: Mutex::new(state),
            ready: Notify::new(),
            notified_since,
            total,
            shared_reads: SharedReads::default(),
        }
    }

    /// Waits until messages that are published from now on reach this topic. Returns `false` if the
    /// broker refuses the channel.
    pub async fn ready(&self) -> bool {
        loop {
            let changed = self.ready.notified();
            {
                let state = self.lock();
                if state.refused || state.sequencer.is_live() {
                    return !state.refused;
                }
            }
            changed.await;
        }
    }

    /// Marks the channel as refused by the broker. Returns the shards to wake.
    pub(crate) fn refuse(&self) -> Vec<usize> {
        let mut state = self.lock();
        state.refused = true;
        self.ready.notify_waiters();
        self.mark(&state.served, Moment::now())
    }

    /// Whether the broker refuses the channel, so that no more messages arrive.
    pub fn is_refused(&self) -> bool {
        self.lock().refused
    }

    /// Adds a subscriber. A topic with subscribers is not forgotten.
    pub fn join(&self, request: RequestSize) {
        let mut state = self.lock();
        state.has_small_requests |= request == RequestSize::Small;
        state.subscribers += 1;
        state.idle_since = None;
    }

    /// Whether a small request has joined the topic.
    pub fn has_small_requests(&self) -> bool {
        self.lock().has_small_requests
    }

    /// Removes a subscriber.
    pub fn leave(&self) {
        let mut state = self.lock();
        state.subscribers -= 1;
        if state.subscribers == 0 {
            state.idle_since = Some(Instant::now());
        }
    }

    /// When the last subscriber left, if there is none now.
    pub fn idle_since(&self) -> Option<Instant> {
        self.lock().idle_since
    }

    /// The last message that this instance has delivered; `None` if the channel keeps no history.
    pub fn delivered(&self) -> Option<Tail> {
        self.lock().sequencer.delivered()
    }

    /// The size of the log, in bytes.
    pub fn log_bytes(&self) -> usize {
        self.lock().log.bytes()
    }

    /// Whether a message can be appended without dropping one that a shard has not read yet.
    pub fn has_room(&self) -> bool {
        let state = self.lock();
        state.log.has_room(state.needed())
    }

    /// Handles a message from the broker; `since` is when it arrived.
    pub(crate) fn arrive(&self, message: Message, since: Moment) -> Change {
        self.change(since, |sequencer, out| sequencer.arrive(message, out))
    }

    /// Handles the possible loss of messages.
    pub(crate) fn require_check(&self) -> Change {
        self.change(Moment::now(), |sequencer, _| sequencer.require_check())
    }

    /// Handles a page of the history; `None` if the channel keeps none.
    pub(crate) fn apply_page(&self, page: Option<Page>) -> Change {
        let change = self.change(Moment::now(), |sequencer, out| sequencer.apply_page(page, out));
        if change.next == Next::Continue {
            self.ready.notify_waiters();
        }
        change
    }

    /// Runs the sequencer, appends the entries that it delivers, and returns which shards to wake.
    fn change(&self, since: Moment, act: impl FnOnce(&mut Sequencer, &mut dyn FnMut(Entry)) -> Next) -> Change {
        let mut state = self.lock();
        let needed = state.needed();
        let State { log, sequencer, served, .. } = &mut *state;
        let before = log.end();
        let bytes = log.bytes();
        let next = act(sequencer, &mut |entry| log.push(entry, needed));
        self.count_bytes(bytes, log.bytes());
        let dropped = sequencer.take_dropped();
        let wake = if log.end() == before { Vec::new() } else { self.mark(served, since) };
        Change { next, dropped, wake }
    }

    /// Marks the topic as changed for each shard with subscribers. Returns the shards for which it
    /// was not marked before.
    fn mark(&self, served: &[u64], since: Moment) -> Vec<usize> {
        let since = since.to_bits();
        let mark =
            |shard: usize| self.notified_since[shard].compare_exchange(0, since, Ordering::AcqRel, Ordering::Acquire);
        let reads = |&shard: &usize| served[shard] != u64::MAX && mark(shard).is_ok();
        (0..served.len()).filter(reads).collect()
    }

    /// Where a subscriber with this `start` begins.
    pub fn locate(&self, start: Start) -> StartingPoint {
        let state = self.lock();
        let end = ReadAt::Log(state.log.end());
        let Some(tail) = state.sequencer.delivered().map(|tail| tail.position) else {
            // A channel without history has no positions, but the log has the last few messages.
            let read_at = match start {
                Start::Last(count) => ReadAt::Log(state.log.find_last(count).unwrap_or(state.log.start())),
                Start::Oldest => ReadAt::Log(state.log.start()),
                _ => end,
            };
            return StartingPoint { read_at, position: None, head: None };
        };
        let (read_at, position) = match start {
            // Before the first message, a keyed channel has no values to read.
            Start::Live | Start::Oldest if self.rule.keyed.is_some() && tail.offset > 0 => {
                (ReadAt::History(ReadFrom::Keys), Position::new(tail.epoch, 0))
            }
            Start::Live | Start::Last(0) => (end, tail),
            Start::Oldest => (ReadAt::History(ReadFrom::Oldest), Position::new(tail.epoch, 0)),
            Start::Last(count) => {
                let before = Position::new(tail.epoch, tail.offset.saturating_sub(count as u64));
                (state.log.find_last(count).map_or(ReadAt::History(ReadFrom::Last(count)), ReadAt::Log), before)
            }
            Start::After(position) => {
                let read_at = match state.log.find(position) {
                    Found::At(sequence) => ReadAt::Log(sequence),
                    Found::Older if position == tail => end,
                    // The history knows exactly whether messages are lost.
                    Found::Older => ReadAt::History(ReadFrom::After(position)),
                };
                (read_at, position)
            }
        };
        StartingPoint { read_at, position: Some(position), head: Some(tail.offset) }
    }

    /// Where a reader that has everything up to `through` continues in the log.
    pub fn after_history(&self, through: Position) -> ReadAt {
        {
            // The epoch of a channel without messages is the time of the read.
            let state = self.lock();
            let is_empty = state.sequencer.delivered().is_some_and(|tail| tail.position.offset == 0);
            if through.offset == 0 && is_empty {
                return ReadAt::Log(state.log.end());
            }
        }
        self.locate(Start::After(through)).read_at
    }

    /// The sequence number of the next entry of the log.
    pub fn end(&self) -> u64 {
        self.lock().log.end()
    }

    /// Calls `visit` with the entries from `cursor` on, until it returns `false`. Returns the end
    /// of the log.
    ///
    /// # Errors
    /// [`FellBehind`] if the log no longer has the entry at `cursor`.
    pub fn read(&self, cursor: u64, mut visit: impl FnMut(&Entry) -> bool) -> Result<u64, FellBehind> {
        let state = self.lock();
        for entry in state.log.read(cursor).ok_or(FellBehind)? {
            if !visit(entry) {
                break;
            }
        }
        Ok(state.log.end())
    }

    /// Records up to where a shard has served its subscribers: the log may drop earlier entries. A
    /// shard with its first subscriber passes `None` to start at the end. Returns the end of the
    /// log.
    pub fn record_served(&self, shard: usize, cursor: Option<u64>) -> u64 {
        let mut state = self.lock();
        let end = state.log.end();
        state.served[shard] = cursor.unwrap_or(end);
        end
    }

    /// Records that a shard has no subscribers of the topic any more.
    pub fn record_no_subscribers(&self, shard: usize) {
        self.lock().served[shard] = u64::MAX;
    }

    /// Drops log entries that all shards have served and that were already there at the last call.
    /// Clients that need them later read the history.
    pub(crate) fn trim_idle(&self) {
        let mut state = self.lock();
        let end = state.log.end();
        let before = std::mem::replace(&mut state.end_at_last_trim, end);
        let sequence = before.min(state.needed());
        let bytes = state.log.bytes();
        state.log.trim_to(sequence);
        self.count_bytes(bytes, state.log.bytes());
    }

    /// Shortens the log to at most `bytes`, but keeps entries that have not been served.
    pub(crate) fn shrink_to(&self, bytes: usize) {
        let mut state = self.lock();
        let (before, needed) = (state.log.bytes(), state.needed());
        state.log.shrink_to(bytes, needed);
        self.count_bytes(before, state.log.bytes());
    }

    fn count_bytes(&self, before: usize, after: usize) {
        self.total.fetch_add(after.wrapping_sub(before), Ordering::Relaxed);
    }

    /// Called before a shard reads: entries appended from now on wake it again. Returns the arrival
    /// time of the message that woke the shard.
    pub fn take_notification(&self, shard: usize) -> Option<Moment> {
        Moment::from_bits(self.notified_since[shard].swap(0, Ordering::AcqRel))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every statement leaves the state consistent, so a poisoned lock is safe to use.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Topic {
    fn drop(&mut self) {
        self.count_bytes(self.log_bytes(), 0);
    }
}

impl State {
    fn needed(&self) -> u64 {
        self.served.iter().copied().min().unwrap_or(u64::MAX)
    }
}
