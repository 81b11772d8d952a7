//! One channel as this instance sees it: its log, how far its order is proved, and how far each shard has read.
//! Shared by the hub, which appends, and the shards, which read. It knows neither sockets nor encodings.

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

/// Where a new subscriber begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Start {
    /// From now on.
    Live,
    /// After a position that the client holds.
    After(Position),
    /// With the last so many messages.
    Last(usize),
    /// With the oldest message that is kept; on a keyed channel, with the value of every key.
    Oldest,
}

/// Where a reader of the topic goes on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ReadAt {
    /// In the log, at this sequence number.
    Log(u64),
    /// The history must be asked first.
    History(ReadFrom),
}

/// Where a subscriber begins.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StartingPoint {
    /// Where it reads first.
    pub read_at: ReadAt,
    /// The position that it starts after; `None` where the channel keeps no history.
    pub position: Option<Position>,
    /// The channel's newest offset.
    pub head: Option<u64>,
}

/// The entries from a sequence number on are no longer in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FellBehind;

/// A channel with subscribers on this instance.
pub struct Topic {
    /// Which channel.
    pub channel: ChannelName,
    /// What applies to it.
    pub rule: Rule,
    /// This instance's number for it, never used again.
    pub id: u64,
    state: Mutex<State>,
    ready: Notify,
    /// Per shard: since when it has known that there is something to read; 0 where it does not.
    marks: Box<[AtomicU64]>,
    /// What all topics' logs weigh, in bytes; each adds its own.
    total: Arc<AtomicUsize>,
    /// Reads of the history that several subscribers share.
    pub(crate) shared_reads: SharedReads,
}

struct State {
    log: Log,
    sequencer: Sequencer,
    /// Per shard: up to where it has served its subscribers; `u64::MAX` where it has none.
    served: Box<[u64]>,
    /// The log's end when it was last trimmed by age.
    aged: u64,
    /// The broker refuses the channel.
    refused: bool,
    has_small_requests: bool,
    subscribers: usize,
    idle_since: Option<Instant>,
}

impl Topic {
    /// A topic that nobody has subscribed to in the broker yet.
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
            aged: 0,
            refused: false,
            has_small_requests: false,
            subscribers: 0,
            idle_since: Some(Instant::now()),
        };
        let marks = (0..shards).map(|_| AtomicU64::new(0)).collect();
        Self {
            channel,
            rule,
            id,
            state: Mutex::new(state),
            ready: Notify::new(),
            marks,
            total,
            shared_reads: SharedReads::default(),
        }
    }

    /// Waits until what is published from now on reaches this topic; `false` if the broker refuses the
    /// channel.
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

    /// The broker refuses the channel. Returns the shards that must be woken.
    pub(crate) fn refuse(&self) -> Vec<usize> {
        let mut state = self.lock();
        state.refused = true;
        self.ready.notify_waiters();
        self.mark(&state.served, Moment::now())
    }

    /// Whether the broker refuses the channel: nothing comes any more.
    pub fn is_refused(&self) -> bool {
        self.lock().refused
    }

    /// Counts a subscriber in. A topic with subscribers is not forgotten.
    pub fn join(&self, request: RequestSize) {
        let mut state = self.lock();
        state.has_small_requests |= request == RequestSize::Small;
        state.subscribers += 1;
        state.idle_since = None;
    }

    /// Whether a small request has joined it.
    pub fn has_small_requests(&self) -> bool {
        self.lock().has_small_requests
    }

    /// Counts a subscriber out.
    pub fn leave(&self) {
        let mut state = self.lock();
        state.subscribers -= 1;
        if state.subscribers == 0 {
            state.idle_since = Some(Instant::now());
        }
    }

    /// Since when the topic has had no subscriber.
    pub fn idle_since(&self) -> Option<Instant> {
        self.lock().idle_since
    }

    /// Where the channel stands, as far as this instance has delivered; `None` where it keeps no history.
    pub fn delivered(&self) -> Option<Tail> {
        self.lock().sequencer.delivered()
    }

    /// What the log weighs, in bytes.
    pub fn log_bytes(&self) -> usize {
        self.lock().log.bytes()
    }

    /// Whether a message can be appended without dropping one that a shard has yet to read.
    pub fn has_room(&self) -> bool {
        let state = self.lock();
        state.log.has_room(state.needed())
    }

    /// A message arrived from the broker, at that time.
    pub(crate) fn arrive(&self, message: Message, since: Moment) -> Change {
        self.change(since, |sequencer, out| sequencer.arrive(message, out))
    }

    /// Something may have been missed.
    pub(crate) fn suspect(&self) -> Change {
        self.change(Moment::now(), |sequencer, _| sequencer.suspect())
    }

    /// The history answered.
    pub(crate) fn checked(&self, page: Option<Page>) -> Change {
        let change = self.change(Moment::now(), |sequencer, out| sequencer.checked(page, out));
        if change.next == Next::Continue {
            self.ready.notify_waiters();
        }
        change
    }

    /// Lets the sequencer act, appends what it delivers, and says which shards must be woken.
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

    /// Marks the topic as changed for each shard that has subscribers; returns those that did not know yet.
    fn mark(&self, served: &[u64], since: Moment) -> Vec<usize> {
        let since = since.to_bits();
        let mark = |shard: usize| self.marks[shard].compare_exchange(0, since, Ordering::AcqRel, Ordering::Acquire);
        let reads = |&shard: &usize| served[shard] != u64::MAX && mark(shard).is_ok();
        (0..served.len()).filter(reads).collect()
    }

    /// Where a subscriber begins that wants `start`.
    pub fn locate(&self, start: Start) -> StartingPoint {
        let state = self.lock();
        let end = ReadAt::Log(state.log.end());
        let Some(tail) = state.sequencer.delivered().map(|tail| tail.position) else {
            // Nothing to resume in a channel without history; the last few that passed by are in the log.
            let read_at = match start {
                Start::Last(count) => ReadAt::Log(state.log.find_last(count).unwrap_or(state.log.start())),
                Start::Oldest => ReadAt::Log(state.log.start()),
                _ => end,
            };
            return StartingPoint { read_at, position: None, head: None };
        };
        let (read_at, position) = match start {
            // Before a channel's first message there are no values to ask for.
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
                    // The history says exactly what is gone, if anything is.
                    Found::Older => ReadAt::History(ReadFrom::After(position)),
                };
                (read_at, position)
            }
        };
        StartingPoint { read_at, position: Some(position), head: Some(tail.offset) }
    }

    /// Where to go on in the log for one who has everything up to `through`.
    pub fn after_history(&self, through: Position) -> ReadAt {
        {
            // The epoch of a channel without messages is the time at which it was asked for.
            let state = self.lock();
            let is_empty = state.sequencer.delivered().is_some_and(|tail| tail.position.offset == 0);
            if through.offset == 0 && is_empty {
                return ReadAt::Log(state.log.end());
            }
        }
        self.locate(Start::After(through)).read_at
    }

    /// The end of the log.
    pub fn end(&self) -> u64 {
        self.lock().log.end()
    }

    /// Calls `visit` with the entries from `cursor` on, until it returns `false`. Returns the cursor of the end of the log.
    ///
    /// # Errors
    /// [`FellBehind`] if the log no longer holds the entry at `cursor`.
    pub fn read(&self, cursor: u64, mut visit: impl FnMut(&Entry) -> bool) -> Result<u64, FellBehind> {
        let state = self.lock();
        for entry in state.log.read(cursor).ok_or(FellBehind)? {
            if !visit(entry) {
                break;
            }
        }
        Ok(state.log.end())
    }

    /// A shard says up to where it has served its subscribers: entries before that may be dropped. Returns the log's
    /// end, so that a shard that begins can begin there (`None`).
    pub fn served(&self, shard: usize, cursor: Option<u64>) -> u64 {
        let mut state = self.lock();
        let end = state.log.end();
        state.served[shard] = cursor.unwrap_or(end);
        end
    }

    /// A shard has no subscriber of the topic any more.
    pub fn abandoned(&self, shard: usize) {
        self.lock().served[shard] = u64::MAX;
    }

    /// Drops from the log what stood there already at the last call and has been served: who has not come back for it
    /// by now reads the history.
    pub(crate) fn trim_idle(&self) {
        let mut state = self.lock();
        let end = state.log.end();
        let before = std::mem::replace(&mut state.aged, end);
        let sequence = before.min(state.needed());
        let bytes = state.log.bytes();
        state.log.trim_to(sequence);
        self.count_bytes(bytes, state.log.bytes());
    }

    /// Shortens the log to so many bytes, as far as it has been served.
    pub(crate) fn shrink_to(&self, bytes: usize) {
        let mut state = self.lock();
        let (before, needed) = (state.log.bytes(), state.needed());
        state.log.shrink_to(bytes, needed);
        self.count_bytes(before, state.log.bytes());
    }

    fn count_bytes(&self, before: usize, after: usize) {
        self.total.fetch_add(after.wrapping_sub(before), Ordering::Relaxed);
    }

    /// A shard is about to read: what is appended from now on must wake it again. Returns when the first message came that it
    /// was woken for.
    pub fn unmark(&self, shard: usize) -> Option<Moment> {
        Moment::from_bits(self.marks[shard].swap(0, Ordering::AcqRel))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is whole after every line that holds it: a panic elsewhere does not spoil it.
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

/// What an event did to the log, and what follows from it.
#[derive(Debug)]
#[must_use]
pub(crate) struct Change {
    /// Whether the history must be asked.
    pub(crate) next: Next,
    /// How many messages without a position could not be kept.
    pub(crate) dropped: u64,
    /// The shards that must be woken. Empty, and without an allocation, when all know already.
    pub(crate) wake: Vec<usize>,
}
