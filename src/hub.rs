//! The instance's table of channels: joins what the broker delivers with who listens. It appends to the topics' logs
//! in the order that `sequence.rs` proves, asks the broker's history where something is missing, and wakes
//! the shards. It knows neither sockets nor encodings, and nothing of Redis.

mod dispatch;
pub mod event_queue;
pub mod held_page;
pub mod log;
pub mod sequence;
pub(crate) mod shared_reads;
pub mod topic;
pub mod wake_list;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

use self::dispatch::Pending;
use self::wake_list::WakeList;
use crate::backoff::Backoff;
use crate::broker::{Broker, BrokerError, Health, PAGE_MESSAGES, Page, ReadFrom};
use crate::channel::ChannelName;
use crate::fair_share::level;
use crate::hub::log::Bounds;
use crate::hub::sequence::Next;
use crate::hub::topic::{Change, Topic};
use crate::observability::metrics::Metrics;
use crate::rules::Rules;
use crate::transport::byte_budget::Budget;

/// How long a channel without subscribers is kept: a page reload must not cost a round trip to Redis.
const IDLE_TOPIC_TTL: Duration = Duration::from_secs(5);
/// How often shared pages are checked for those that nobody can use any more.
const PAGES_SWEPT: u64 = 5;
/// How many histories are asked at once.
const CHECKS_AT_ONCE: usize = 64;
/// How long a log entry stays once all have read it: the time in which most who lost their connection come back.
const LOG_IDLE: Duration = Duration::from_secs(60);

/// The channels that have subscribers on this instance.
pub struct Hub {
    topics: Mutex<HashMap<ChannelName, Arc<Topic>>>,
    pending: Mutex<Pending>,
    next_id: AtomicU64,
    broker: Arc<dyn Broker>,
    rules: Arc<Rules>,
    bounds: Bounds,
    /// What all logs weigh, in bytes, and may weigh.
    log_bytes: Arc<AtomicUsize>,
    most_log_bytes: usize,
    wake_lists: Vec<Arc<WakeList>>,
    checks: Semaphore,
    /// The bytes that are on their way out to clients.
    pub(crate) outgoing: Arc<Budget>,
    metrics: Arc<Metrics>,
}

impl Hub {
    /// A hub without channels, for so many shards. Pages of history for clients are counted against `outgoing`.
    pub fn new(
        broker: Arc<dyn Broker>,
        rules: Arc<Rules>,
        bounds: Bounds,
        most_log_bytes: usize,
        shards: usize,
        outgoing: Arc<Budget>,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        Arc::new(Self {
            topics: Mutex::default(),
            pending: Mutex::new(Pending::new()),
            next_id: AtomicU64::new(0),
            broker,
            rules,
            bounds,
            log_bytes: Arc::default(),
            most_log_bytes,
            wake_lists: (0..shards).map(|_| Arc::default()).collect(),
            checks: Semaphore::new(CHECKS_AT_ONCE),
            outgoing,
            metrics,
        })
    }

    /// The broker behind it.
    pub fn broker(&self) -> &Arc<dyn Broker> {
        &self.broker
    }

    /// What wakes a shard.
    pub fn wake_list(&self, shard: usize) -> Arc<WakeList> {
        self.wake_lists[shard].clone()
    }

    /// How many channels have, or had until shortly, subscribers here.
    pub fn channels(&self) -> usize {
        self.lock().len()
    }

    /// What all logs weigh, in bytes.
    pub fn log_bytes(&self) -> usize {
        self.log_bytes.load(Ordering::Relaxed)
    }

    /// Joins a channel; resolves when all that is published from now on will reach its subscribers. The caller is
    /// counted in until it drops the [`Membership`]. A join that fails leaves nothing behind.
    ///
    /// # Errors
    /// As [`Broker::subscribe`].
    pub async fn join(&self, channel: &ChannelName) -> Result<Membership, BrokerError> {
        if let Health::Down(why) = self.broker.health() {
            return Err(BrokerError::Unavailable(why));
        }
        self.join_when_available(channel).await
    }

    /// The same, but waits for a broker that is away.
    ///
    /// # Errors
    /// As [`Broker::subscribe`].
    pub async fn join_when_available(&self, channel: &ChannelName) -> Result<Membership, BrokerError> {
        let membership = self.enter(channel)?;
        if membership.0.ready().await { Ok(membership) } else { Err(BrokerError::ChannelRefused(channel.clone())) }
    }

    fn enter(&self, channel: &ChannelName) -> Result<Membership, BrokerError> {
        let mut topics = self.lock();
        let topic = match topics.get(channel) {
            Some(topic) => topic.clone(),
            None => self.open(channel)?,
        };
        topic.join();
        topics.entry(channel.clone()).or_insert_with(|| topic.clone());
        Ok(Membership(topic))
    }

    fn open(&self, channel: &ChannelName) -> Result<Arc<Topic>, BrokerError> {
        self.broker.subscribe(channel)?;
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (rule, shards) = (self.rules.of(channel), self.wake_lists.len());
        Ok(Arc::new(Topic::new(id, channel.clone(), rule, self.bounds, shards, self.log_bytes.clone())))
    }

    /// Forgets a channel that the broker refuses. Its subscribers are told so, and those who wait to be.
    fn refuse(&self, channel: &ChannelName) {
        let Some(topic) = self.lock().remove(channel) else { return };
        for shard in topic.refuse() {
            self.wake_lists[shard].push(topic.clone());
        }
    }

    fn apply(self: &Arc<Self>, topic: &Arc<Topic>, change: Change) {
        self.metrics.plain_dropped.inc_by(change.dropped);
        for shard in change.wake {
            self.wake_lists[shard].push(topic.clone());
        }
        if change.next == Next::Check {
            tokio::spawn(self.clone().check(topic.clone()));
        }
    }

    /// Whether the logs together are within their bound, after the largest were shortened if need be. What a shard has yet to
    /// serve stays, but that is soon.
    fn has_room(&self) -> bool {
        if self.log_bytes() <= self.most_log_bytes {
            return true;
        }
        self.metrics.log_trims.inc();
        let topics: Vec<_> = self.lock().values().map(|topic| (topic.log_bytes(), topic.clone())).collect();
        // An eighth is freed at once, so that the next message does not look through all channels again.
        let level = level(topics.iter().map(|(bytes, _)| *bytes).collect(), self.most_log_bytes / 8 * 7);
        topics.iter().filter(|(bytes, _)| *bytes > level).for_each(|(_, topic)| topic.shrink_to(level));
        self.log_bytes() <= self.most_log_bytes
    }

    /// Asks the history what is missing until nothing is.
    async fn check(self: Arc<Self>, topic: Arc<Topic>) {
        let mut backoff = Backoff::new(Duration::from_millis(20), Duration::from_secs(2));
        let mut next = Next::Check;
        while next == Next::Check {
            let delivered = topic.delivered();
            let from = delivered.map_or(ReadFrom::Tail, ReadFrom::AfterDelivered);
            let answer = {
                // Closed never: the semaphore lives as long as the hub.
                let _permit = self.checks.acquire().await;
                self.broker.read(&topic.channel, from, PAGE_MESSAGES).await
            };
            match answer {
                Ok(page) => {
                    self.count_repair(&topic.channel, page.as_ref());
                    let mut change = topic.checked(page);
                    next = std::mem::replace(&mut change.next, Next::Continue);
                    self.apply(&topic, change);
                    backoff.reset();
                }
                Err(error) => {
                    tracing::debug!(channel = %topic.channel, %error, "cannot read the history yet");
                    // Only a forgotten topic may be left so: one that is joined again would wait for ever.
                    if !self.holds(&topic) {
                        return;
                    }
                    tokio::time::sleep(backoff.next_delay()).await;
                }
            }
        }
    }

    fn count_repair(&self, channel: &ChannelName, page: Option<&Page>) {
        let Some(page) = page else { return };
        if let Some(gap) = page.gap {
            self.metrics.gaps_told.inc();
            tracing::warn!(%channel, reason = gap.reason.code(), "messages may be missing; subscribers are told");
        } else if !page.messages.is_empty() {
            self.metrics.gaps_repaired.inc();
            tracing::debug!(%channel, messages = page.messages.len(), "repaired a gap from the history");
        }
    }

    /// Forgets channels whose last subscriber left a while ago, and log entries that nobody comes back for.
    pub async fn sweep(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(Duration::from_secs(1));
        let mut trimmed = Instant::now();
        for second in 0_u64.. {
            ticks.tick().await;
            let expired = |topic: &Arc<Topic>| topic.idle_since().is_some_and(|since| since.elapsed() > IDLE_TOPIC_TTL);
            {
                // Under the lock, as in `join`: a channel that is opened again at this moment must not lose its
                // new subscription to the end of the old one.
                let mut topics = self.lock();
                for (channel, _) in topics.extract_if(|_, topic| expired(topic)) {
                    self.broker.unsubscribe(&channel);
                }
            }
            // What clients wait for goes before what is only kept for those that may come.
            let is_scarce = self.outgoing.is_scarce();
            if !second.is_multiple_of(PAGES_SWEPT) && !is_scarce {
                continue;
            }
            let topics: Vec<_> = self.lock().values().cloned().collect();
            topics.iter().for_each(|topic| topic.sweep_page(is_scarce));
            if trimmed.elapsed() > LOG_IDLE {
                trimmed = Instant::now();
                topics.iter().for_each(|topic| topic.trim_idle());
            }
        }
    }

    /// Whether the topic has not been forgotten.
    fn holds(&self, topic: &Arc<Topic>) -> bool {
        self.lock().get(&topic.channel).is_some_and(|held| Arc::ptr_eq(held, topic))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ChannelName, Arc<Topic>>> {
        // The table is whole after every line that holds it: a panic elsewhere does not spoil it.
        self.topics.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A subscriber's share in a topic; counted out when dropped.
pub struct Membership(Arc<Topic>);

impl Membership {
    /// The topic.
    pub fn topic(&self) -> &Arc<Topic> {
        &self.0
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.0.leave();
    }
}
