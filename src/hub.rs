//! The channels of this instance. Opens and forgets channels in the broker, and reads missing
//! messages from the broker's history. The hub knows neither sockets nor encodings nor Redis. In
//! reading order:
//!
//! * [`Hub::run`]: the task that processes what no publishing thread has, and reads what is missing.
//! * [`dispatch`]: the sink for the events of the broker, which wait in its [`event_queue`]. It holds
//!   the table of channels, and passes each message to the topic of its channel.
//! * [`topic`]: one channel: its [`sequence`] checks the order, its [`log`] stores the messages.
//! * [`wake_list`]: tells a shard which topics have new entries.
//!
//! Who is on a channel: [`presence`].
//!
//! Reads for subscribers: `history`, `shared_reads`, [`held_page`].

pub mod dispatch;
pub mod event_queue;
pub mod held_page;
mod history;
pub mod log;
pub mod presence;
pub mod sequence;
pub(crate) mod shared_reads;
pub mod topic;
pub mod wake_list;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

use self::dispatch::{Dispatcher, Progress};
use self::held_page::PageBudget;
use self::presence::Presence;
use self::wake_list::WakeList;
use crate::backoff::Backoff;
use crate::broker::{Broker, BrokerError, Health, PAGE_MESSAGES, Page, ReadFrom, RequestSize};
use crate::channel::ChannelName;
use crate::hub::log::LogBounds;
use crate::hub::sequence::Next;
use crate::hub::topic::Topic;
use crate::presence::Everybody;
use crate::rules::Rules;
use crate::transport::byte_budget::Budget;

/// How long a channel without subscribers is kept, so that a page reload costs no round trip to
/// Redis.
const IDLE_TOPIC_TTL: Duration = Duration::from_secs(5);
/// Time limit for joining a channel: one or two round trips to Redis, or a reconnect to Redis.
const JOIN_TIMEOUT: Duration = Duration::from_secs(5);
/// The interval, in seconds, of dropping shared pages that no reader can use any more.
const PAGES_SWEPT: u64 = 5;
/// How many histories are read at once, both of channels that only large requests have joined and of
/// others.
const CHECKS_AT_ONCE: usize = 32;
/// How long a log entry is kept after all shards have read it. Most clients that lose their
/// connection return within this time.
const LOG_IDLE: Duration = Duration::from_secs(60);

/// The channels that have subscribers on this instance.
pub struct Hub {
    dispatcher: Arc<Dispatcher>,
    next_id: AtomicU64,
    broker: Arc<dyn Broker>,
    rules: Arc<Rules>,
    bounds: LogBounds,
    /// Limits checks of channels that a small request has joined.
    small_checks: Semaphore,
    /// Limits checks of channels that only large requests have joined.
    large_checks: Semaphore,
    /// The budget for pages of history that clients have not received yet.
    pages: PageBudget,
}

impl Hub {
    /// Creates a hub without channels. `broker` must deliver its events to `dispatcher`. Pages of
    /// history for clients count against `outgoing`.
    pub fn new(
        dispatcher: Arc<Dispatcher>,
        broker: Arc<dyn Broker>,
        rules: Arc<Rules>,
        bounds: LogBounds,
        outgoing: Arc<Budget>,
    ) -> Arc<Self> {
        let semaphore = || Semaphore::new(CHECKS_AT_ONCE);
        let (small_checks, large_checks) = (semaphore(), semaphore());
        let pages = PageBudget::new(outgoing);
        Arc::new(Self {
            dispatcher,
            next_id: AtomicU64::new(0),
            broker,
            rules,
            bounds,
            small_checks,
            large_checks,
            pages,
        })
    }

    /// Runs the hub's task as long as the process runs: processes events, and reads missing
    /// messages.
    pub async fn run(self: Arc<Self>) {
        loop {
            let progress = self.dispatcher.process_all();
            for topic in self.dispatcher.take_checks() {
                tokio::spawn(self.clone().check(topic));
            }
            match progress {
                Progress::Idle => self.dispatcher.woken().await,
                // There may be many events, so let other tasks of this thread run.
                Progress::Done => tokio::task::yield_now().await,
                // Shards never wait for sockets, so there is room soon. Until then, the queue fills
                // up, and then Redis buffers.
                Progress::Blocked => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        }
    }

    /// Who is on the channels of this instance.
    pub fn presence(&self) -> &Arc<Presence> {
        self.dispatcher.presence()
    }

    /// Keeps the broker informed of who is on the channels, as long as the process runs.
    pub async fn keep_presence(self: Arc<Self>) {
        self.presence().run(&*self.broker).await;
    }

    /// Whether the rule of a channel has presence.
    pub fn has_presence(&self, channel: &ChannelName) -> bool {
        self.rules.of(channel).presence
    }

    /// Reads who is on a channel, on all instances; `None` if its rule has no presence.
    ///
    /// # Errors
    /// As [`Broker::read_presence`].
    pub async fn read_presence(&self, channel: &ChannelName) -> Result<Option<Everybody>, BrokerError> {
        if !self.has_presence(channel) {
            return Ok(None);
        }
        self.presence().write_now(channel).await;
        self.broker.read_presence(channel).await.map(Some)
    }

    /// The wake list of a shard.
    pub fn wake_list(&self, shard: usize) -> Arc<WakeList> {
        self.dispatcher.wake_lists()[shard].clone()
    }

    /// The number of channels with subscribers on this instance now or in the last seconds.
    pub fn channels(&self) -> usize {
        self.dispatcher.topics().len()
    }

    /// How many of these channels are not in the table, so that they need a subscription in the
    /// broker. A channel stays in the table for a few seconds after its last subscriber.
    pub fn count_new(&self, channels: &[ChannelName]) -> usize {
        let topics = self.dispatcher.topics();
        channels.iter().filter(|channel| !topics.contains_key(*channel)).count()
    }

    /// The size of all logs, in bytes.
    pub fn log_bytes(&self) -> usize {
        self.dispatcher.log_bytes().load(Ordering::Relaxed)
    }

    /// Joins a channel. Resolves when every message published from now on reaches its subscribers.
    /// Counts the caller as a subscriber until it drops the [`Membership`]. A join that fails
    /// changes nothing.
    ///
    /// # Errors
    /// [`BrokerError::Unavailable`] while the broker is down or does not subscribe in time, or as
    /// [`Broker::subscribe`].
    pub async fn join(&self, channel: &ChannelName, request: RequestSize) -> Result<Membership, BrokerError> {
        if let Health::Down(why) = self.broker.health_of(channel) {
            return Err(BrokerError::Unavailable(why));
        }
        let joined = tokio::time::timeout(JOIN_TIMEOUT, self.join_when_available(channel, request)).await;
        joined.unwrap_or_else(|_| Err(BrokerError::Unavailable("no subscription in time".into())))
    }

    /// Joins a channel like [`Hub::join`], but waits while the broker is down.
    ///
    /// # Errors
    /// As [`Broker::subscribe`].
    pub async fn join_when_available(
        &self,
        channel: &ChannelName,
        request: RequestSize,
    ) -> Result<Membership, BrokerError> {
        let membership = self.enter(channel, request)?;
        if membership.0.ready().await { Ok(membership) } else { Err(BrokerError::ChannelRefused(channel.clone())) }
    }

    fn enter(&self, channel: &ChannelName, request: RequestSize) -> Result<Membership, BrokerError> {
        let mut topics = self.dispatcher.topics();
        let topic = match topics.get(channel) {
            Some(topic) => topic.clone(),
            None => self.open(channel, request)?,
        };
        topic.join(request);
        topics.entry(channel.clone()).or_insert_with(|| topic.clone());
        Ok(Membership(topic))
    }

    fn open(&self, channel: &ChannelName, request: RequestSize) -> Result<Arc<Topic>, BrokerError> {
        self.broker.subscribe(channel, request)?;
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (rule, shards) = (self.rules.of(channel), self.dispatcher.wake_lists().len());
        Ok(Arc::new(Topic::new(id, channel.clone(), rule, self.bounds, shards, self.dispatcher.log_bytes().clone())))
    }

    /// Forgets a channel that the broker allows to subscribe to, but not to read, so that its order
    /// cannot be proved.
    fn refuse_unread(&self, topic: &Arc<Topic>) {
        {
            // Holds the lock for the same reason as `sweep`.
            let mut topics = self.dispatcher.topics();
            if holds(&topics, topic) {
                topics.remove(&topic.channel);
                self.broker.unsubscribe(&topic.channel);
            }
        }
        self.dispatcher.tell_refused(topic);
    }

    /// Reads the history until no messages are missing.
    async fn check(self: Arc<Self>, topic: Arc<Topic>) {
        let mut backoff = Backoff::new(Duration::from_millis(20), Duration::from_secs(2));
        let mut next = Next::Check;
        while next == Next::Check {
            let delivered = topic.delivered();
            let from = delivered.map_or(ReadFrom::Tail, ReadFrom::AfterDelivered);
            let answer = {
                // Never closed: the semaphores live as long as the hub.
                let checks = if topic.has_small_requests() { &self.small_checks } else { &self.large_checks };
                let _permit = checks.acquire().await;
                self.broker.read(&topic.channel, from, PAGE_MESSAGES).await
            };
            match answer {
                Ok(page) => {
                    self.count_repair(&topic.channel, page.as_ref());
                    let mut change = topic.apply_page(page);
                    next = std::mem::replace(&mut change.next, Next::Continue);
                    self.dispatcher.apply(&topic, change);
                    backoff.reset();
                }
                Err(BrokerError::ChannelRefused(_)) => return self.refuse_unread(&topic),
                Err(error) => {
                    tracing::debug!(channel = %topic.channel, %error, "cannot read the history yet");
                    // Stop retrying only for removed topics: a topic that is joined again must
                    // become ready.
                    if !holds(&self.dispatcher.topics(), &topic) {
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
            self.dispatcher.metrics().gaps_told.inc();
            tracing::warn!(%channel, reason = gap.reason.code(), "messages may be missing; subscribers get a gap notice");
        } else if !page.messages.is_empty() {
            self.dispatcher.metrics().gaps_repaired.inc();
            tracing::debug!(%channel, messages = page.messages.len(), "repaired a gap from the history");
        }
    }

    /// Forgets channels whose last subscriber left some time ago, and old log entries.
    pub async fn sweep(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(Duration::from_secs(1));
        let mut trimmed = Instant::now();
        for second in 0_u64.. {
            ticks.tick().await;
            let expired = |topic: &Arc<Topic>| topic.idle_since().is_some_and(|since| since.elapsed() > IDLE_TOPIC_TTL);
            {
                // Unsubscribe under the lock, as `join` subscribes: otherwise a channel that is
                // opened again at this moment could lose its new subscription.
                let mut topics = self.dispatcher.topics();
                for (channel, _) in topics.extract_if(|_, topic| expired(topic)) {
                    self.broker.unsubscribe(&channel);
                }
            }
            // If memory is scarce, drop pages that no client is receiving.
            let is_scarce = self.pages.is_scarce();
            if !second.is_multiple_of(PAGES_SWEPT) && !is_scarce {
                continue;
            }
            let topics: Vec<_> = self.dispatcher.topics().values().cloned().collect();
            topics.iter().for_each(|topic| topic.sweep_pages(is_scarce));
            if trimmed.elapsed() > LOG_IDLE {
                trimmed = Instant::now();
                topics.iter().for_each(|topic| topic.trim_idle());
            }
        }
    }
}

/// Whether the topic is still in the table.
fn holds(topics: &HashMap<ChannelName, Arc<Topic>>, topic: &Arc<Topic>) -> bool {
    topics.get(&topic.channel).is_some_and(|held| Arc::ptr_eq(held, topic))
}

/// Counts a subscriber of a topic, until it is dropped.
pub struct Membership(Arc<Topic>);

impl Membership {
    /// The topic of the subscriber.
    pub fn topic(&self) -> &Arc<Topic> {
        &self.0
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.0.leave();
    }
}
