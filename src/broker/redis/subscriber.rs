//! Supervises the connection that receives messages: reconnects forever, subscribes to the wanted
//! channels, and trusts the connection only as long as a canary sent through Redis comes back on
//! it. `Wanted` says which channels to subscribe to, `Subscriptions` keeps track of the `SUBSCRIBE`
//! commands in flight, and `Node` opens the `Connection`. Events go to the sink, which is the
//! `Dispatcher` of the hub (`server.rs` connects them).

use std::mem;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, MissedTickBehavior};

use super::connection::Connection;
use super::decoder::SubscriptionDecoder;
use super::error::{ClientError, Failure};
use super::names::Kind;
use super::node::Node;
use super::numberer::Numberer;
use super::resp::Frame;
use super::subscriptions::{Numbering, Refusal, Subscriptions};
use super::wanted::{ByKind, Wanted};
use crate::backoff::Backoff;
use crate::broker::{BrokerError, Event, EventSink, Health, RequestSize};
use crate::channel::ChannelName;
use crate::observability::log_throttle::LogThrottle;
use crate::observability::metrics::Metrics;

/// The interval of the canaries.
const BEAT: Duration = Duration::from_secs(1);
/// After this many missing canaries in a row, the connection counts as broken. The number leaves
/// time for a slow command of another client. It counts canaries instead of time, so that a stall
/// of this process proves nothing.
const MOST_MISSING: u32 = 4;
/// A connection that lasted this long resets the backoff.
const GOOD_AFTER: Duration = Duration::from_secs(4);
/// The health before the first connection.
pub(super) const NOT_YET: &str = "not connected yet";

/// The wanted channels, and the health of the subscription.
pub(super) struct Subscriber {
    wanted: Mutex<Wanted>,
    changed: Notify,
    health: Mutex<Health>,
    /// Whether `health` is up, without a lock, for every publish.
    is_up: AtomicBool,
    sink: Arc<dyn EventSink>,
    metrics: Arc<Metrics>,
    /// The channel of the canary. On a Cluster, it changes with the slots of the server.
    canary: Mutex<String>,
    /// On a Cluster: notified when the slots of this server may have changed.
    stale: Arc<Notify>,
    /// The numbering of plain messages, if a rule asks for it.
    numberer: Option<Arc<Numberer>>,
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error(transparent)]
    Connection(ClientError),
    #[error("cannot send a canary: {0}")]
    Canary(ClientError),
    #[error("the subscription receives nothing: the canary did not come back")]
    NoCanary,
}

impl Ended {
    /// The reason for clients: with the error code of Redis, but without its text, which is only
    /// for the log.
    fn public(&self) -> String {
        match self {
            Self::Connection(error @ ClientError::Refused(_)) | Self::Canary(error) => match error.into() {
                BrokerError::Unavailable(why) | BrokerError::Refused(why) => why,
                other => other.to_string(),
            },
            other => other.to_string(),
        }
    }
}

impl Subscriber {
    /// Creates a subscriber without channels. The channel of the canary must be unique among the
    /// instances. Notifies `stale` when another server may have become responsible.
    pub(super) fn new(
        canary: String,
        sink: Arc<dyn EventSink>,
        metrics: Arc<Metrics>,
        stale: Arc<Notify>,
        numberer: Option<Arc<Numberer>>,
    ) -> Self {
        Self {
            wanted: Mutex::default(),
            changed: Notify::new(),
            health: Mutex::new(Health::Down(NOT_YET.into())),
            is_up: AtomicBool::new(false),
            sink,
            metrics,
            canary: Mutex::new(canary),
            stale,
            numberer,
        }
    }

    /// See [`crate::broker::Broker::subscribe`].
    pub(super) fn want(&self, channel: &ChannelName, request: RequestSize) -> Result<(), BrokerError> {
        let mut wanted = self.wanted();
        if wanted.is_refused(channel) {
            return Err(BrokerError::ChannelRefused(channel.clone()));
        }
        wanted.insert(channel, request);
        drop(wanted);
        self.changed.notify_one();
        Ok(())
    }

    /// See [`crate::broker::Broker::unsubscribe`].
    pub(super) fn forget(&self, channel: &ChannelName) {
        self.wanted().remove(channel);
        self.changed.notify_one();
    }

    /// All wanted channels, and the size of the request for each.
    pub(super) fn channels(&self) -> Vec<(ChannelName, RequestSize)> {
        self.wanted().all()
    }

    /// Takes note that the slots of this server are known again, and include the slot of a canary.
    pub(super) fn settle(&self, canary: String) {
        *lock(&self.canary) = canary;
        self.wanted().restore_moved();
        self.changed.notify_one();
    }

    /// Whether publishing and receiving work.
    pub(super) fn is_up(&self) -> bool {
        self.is_up.load(Ordering::Acquire)
    }

    pub(super) fn health(&self) -> Health {
        if self.is_up() { Health::Up } else { lock(&self.health).clone() }
    }

    /// Keeps a connection open as long as the process runs.
    pub(super) async fn supervise(self: Arc<Self>, node: Arc<Node>) {
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));
        loop {
            let began = Instant::now();
            let ended = self.listen(&node).await;
            self.wanted().on_disconnected();
            if let Some(numberer) = &self.numberer {
                numberer.on_disconnected();
            }
            self.set_down(&ended, &node);
            self.stale.notify_one();
            // Stop publishing too: a server in this state may lose the messages that it accepts.
            node.give_up(node.generation());
            if began.elapsed() > GOOD_AFTER {
                backoff.reset();
            }
            tokio::select! {
                () = tokio::time::sleep(backoff.next_delay()) => {}
                // Another server is the master now: it need not be waited for.
                () = node.switched() => {}
            }
        }
    }

    /// Runs one connection. Returns why it ended.
    async fn listen(&self, node: &Node) -> Ended {
        let connection = match node.connect().await {
            Ok(connection) => connection,
            Err(error) => return Ended::Connection(error),
        };
        let unanswered = AtomicU32::new(0);
        tokio::select! {
            ended = self.receive(node, connection, &unanswered) => Ended::Connection(ended),
            ended = self.send_canaries(node, &unanswered) => ended,
            () = node.switched() => Ended::Connection(ClientError::Switched),
        }
    }

    /// Subscribes to the wanted channels and passes on events, until the connection fails.
    async fn receive(&self, node: &Node, mut connection: Connection, unanswered: &AtomicU32) -> ClientError {
        let mut subscriptions = Subscriptions::new(node.names().clone());
        let mut canary = self.canary();
        subscriptions.subscribe_canary(&canary, &mut connection);
        let all = self.wanted().on_connected();
        let count = all.iter().map(Vec::len).sum();
        // Channels with numbered plain messages have subscriptions by pattern, which are confirmed together.
        let (all, _) = self.without_numbered(all);
        self.subscribe_numbering(&mut subscriptions, &mut connection);
        subscriptions.subscribe(all);
        let mut decoder = SubscriptionDecoder::new(node.names().clone(), self.numberer.clone());
        let mut numbering = Numbering::Idle;
        loop {
            if subscriptions.has_due() {
                let wanted = self.wanted();
                subscriptions.send_due(|channel| wanted.contains(channel), &mut connection);
            }
            let has_room = self.sink.has_room();
            tokio::select! {
                // While the sink is full, Redis buffers messages, up to its configured limit.
                () = async { self.sink.room().await }, if !has_room => {}
                () = self.changed.notified() => {
                    self.renew_canary(&mut canary, &mut subscriptions, &mut connection);
                    let numbered = self.send_pending(&mut subscriptions, &mut connection);
                    match subscriptions.numbering() {
                        Numbering::Confirmed => self.confirm_numbered(numbered, &mut decoder),
                        Numbering::Denied if !numbered.is_empty() => {
                            self.subscribe_numbering(&mut subscriptions, &mut connection);
                        }
                        // The answer decides about all channels that are wanted then.
                        _ => {}
                    }
                }
                progress = connection.read_or_write(), if has_room => {
                    let mut refusals = Vec::new();
                    let received = progress.and_then(|()| {
                        self.process(node, &mut connection, &mut subscriptions, &mut decoder, &canary, &mut refusals)
                    });
                    let before = mem::replace(&mut numbering, subscriptions.numbering());
                    self.drive_numbering(numbering, numbering != before, &mut decoder);
                    let numbering_failed = decoder.numbering_failed();
                    let (events, has_canary) = decoder.take_events();
                    if has_canary {
                        unanswered.store(0, Ordering::Relaxed);
                        self.set_up(count, node);
                    }
                    if !events.is_empty() {
                        self.sink.add_all(events);
                        self.sink.wake();
                    }
                    refusals.into_iter().for_each(|refusal| self.handle(refusal, &mut subscriptions, &mut connection));
                    if let Err(error) = received {
                        return error;
                    }
                    if let Some(error) = numbering_failed {
                        return ClientError::Numbering(error.to_string());
                    }
                    // The hub runs on the same thread.
                    tokio::task::yield_now().await;
                }
            }
        }
    }

    /// Processes the frames that have arrived.
    fn process(
        &self,
        node: &Node,
        connection: &mut Connection,
        subscriptions: &mut Subscriptions,
        decoder: &mut SubscriptionDecoder,
        canary: &str,
        refusals: &mut Vec<Refusal>,
    ) -> Result<(), ClientError> {
        let mut wanted = self.wanted();
        connection.frames(|frame| {
            match frame {
                Frame::Refused(why) => refusals.push(subscriptions.on_refusal(why)?),
                Frame::Subscribed { .. } => subscriptions.on_subscribed(),
                Frame::Unsubscribed(name) if !subscriptions.on_unsubscribed() => {
                    if name == canary.as_bytes() {
                        subscriptions.on_canary_moved();
                        self.stale.notify_one();
                    }
                    let channel = node.names().parse(name).filter(|(kind, _)| *kind == Kind::Channel);
                    if channel.is_some_and(|(_, name)| wanted.on_moved(name)) {
                        self.stale.notify_one();
                    }
                }
                _ => {}
            }
            if let Some(channel) = decoder.push(&frame, &wanted, canary) {
                wanted.confirm(&channel);
            }
            Ok(())
        })
    }

    /// Handles the refusal of a `SUBSCRIBE` command.
    fn handle(&self, refusal: Refusal, subscriptions: &mut Subscriptions, connection: &mut Connection) {
        match refusal {
            Refusal::Denied(channels) => {
                let is_wanted = |channel: &ChannelName| self.wanted().contains(channel);
                if let Some(channel) = subscriptions.retry(channels, is_wanted, connection) {
                    self.refuse(channel);
                }
            }
            Refusal::Moved(channels) => {
                let mut wanted = self.wanted();
                channels.iter().for_each(|channel| _ = wanted.on_moved(channel.as_str().as_bytes()));
                self.stale.notify_one();
            }
            Refusal::Nothing => {}
        }
    }

    /// Sends canaries, until Redis does not take one or too many are missing.
    async fn send_canaries(&self, node: &Node, unanswered: &AtomicU32) -> Ended {
        let mut beats = tokio::time::interval(BEAT);
        // After a stall of Redis, the instances must not send theirs, and judge, all at the same moment.
        beats.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut unsent = None;
        loop {
            beats.tick().await;
            if unanswered.fetch_add(1, Ordering::Relaxed) >= MOST_MISSING {
                return unsent.map_or(Ended::NoCanary, Ended::Canary);
            }
            unsent = match node.publish_plain(&self.canary(), "beat").await {
                Ok(()) => None,
                // The canary gets another channel, unless too many are missing by then.
                Err(error) if Failure::from(&error) == Failure::Moved => {
                    self.stale.notify_one();
                    None
                }
                // This says nothing about the subscription, which may hold unread messages. The next
                // canary is sent on a new connection.
                Err(error) if error.is_lost_connection() => Some(error),
                Err(error) => return Ended::Canary(error),
            };
        }
    }

    /// Listens to the canary on its present channel.
    fn renew_canary(&self, canary: &mut String, subscriptions: &mut Subscriptions, connection: &mut Connection) {
        let now = self.canary();
        if *canary != now || subscriptions.lacks_canary() {
            subscriptions.replace_canary(canary, &now, connection);
            *canary = now;
        }
    }

    fn canary(&self) -> String {
        lock(&self.canary).clone()
    }

    /// Sends changes of the wanted channels. Returns those that have a subscription by pattern.
    fn send_pending(&self, subscriptions: &mut Subscriptions, connection: &mut Connection) -> Vec<ChannelName> {
        let (wanted, mut unwanted) = self.wanted().take_pending();
        unwanted.retain(|channel| !self.is_numbered(channel));
        let (wanted, numbered) = self.without_numbered(wanted);
        subscriptions.unsubscribe(&unwanted, connection);
        subscriptions.subscribe(wanted);
        numbered
    }

    /// Subscribes to what the numbering needs, if a rule asks for it.
    fn subscribe_numbering(&self, subscriptions: &mut Subscriptions, connection: &mut Connection) {
        if let Some(numberer) = &self.numberer {
            subscriptions.subscribe_numbering(numberer.own(), &numberer.patterns(), connection);
        }
    }

    /// Lets the numbering send what is due. If its subscriptions have just been answered, all of its channels are
    /// subscribed, or refused.
    fn drive_numbering(&self, numbering: Numbering, has_changed: bool, decoder: &mut SubscriptionDecoder) {
        let Some(numberer) = &self.numberer else { return };
        let numbered = || {
            let all = self.wanted().all().into_iter().map(|(channel, _)| channel);
            all.filter(|channel| numberer.numbers(channel)).collect::<Vec<_>>()
        };
        match numbering {
            Numbering::Confirmed if has_changed => {
                numberer.on_subscribed();
                self.confirm_numbered(numbered(), decoder);
            }
            Numbering::Denied if has_changed => {
                static REPEATED: LazyLock<LogThrottle> = LazyLock::new(LogThrottle::default);
                if let Some(times) = REPEATED.happened("patterns") {
                    tracing::error!(
                        times,
                        "Redis does not allow this user the patterns or the channel that `plain = \"numbered\"` needs, so the \
                         channels of these rules are refused; run `livebridge check`"
                    );
                }
                numbered().into_iter().for_each(|channel| self.refuse(channel));
            }
            _ => {}
        }
        numberer.wake();
    }

    fn is_numbered(&self, channel: &ChannelName) -> bool {
        self.numberer.as_ref().is_some_and(|numberer| numberer.numbers(channel))
    }

    /// Separates the channels that have a subscription by pattern.
    fn without_numbered(&self, mut channels: ByKind) -> (ByKind, Vec<ChannelName>) {
        let mut numbered = Vec::new();
        if self.numberer.is_some() {
            channels.iter_mut().for_each(|kind| numbered.extend(kind.extract_if(.., |it| self.is_numbered(it))));
        }
        (channels, numbered)
    }

    /// Reports channels with a subscription by pattern as subscribed, behind what has arrived.
    fn confirm_numbered(&self, channels: Vec<ChannelName>, decoder: &mut SubscriptionDecoder) {
        for channel in channels {
            self.wanted().confirm(&channel);
            decoder.subscribed(channel);
        }
        let events = decoder.events();
        if !events.is_empty() {
            self.sink.add_all(events);
            self.sink.wake();
        }
    }

    /// Handles a channel that Redis refuses: removes it from the wanted channels, and refuses
    /// further requests for some time.
    fn refuse(&self, channel: ChannelName) {
        self.wanted().refuse(&channel);
        static REPEATED: LazyLock<LogThrottle> = LazyLock::new(LogThrottle::default);
        if let Some(times) = REPEATED.happened("channel") {
            tracing::warn!(%channel, times, "Redis does not allow this user to subscribe to the channel; run `livebridge check`");
        }
        self.sink.push(Event::Refused(channel));
    }

    fn set_up(&self, channels: usize, node: &Node) {
        let before = self.set_health(Health::Up);
        if let Health::Down(why) = before {
            if why != NOT_YET {
                self.metrics.broker_reconnects.inc();
            }
            tracing::info!(channels, redis = node.place(), "connected to Redis: publishing and receiving work");
        }
    }

    fn set_down(&self, ended: &Ended, node: &Node) {
        let now = Health::Down(ended.public());
        let before = self.set_health(now.clone());
        if before == Health::Up {
            self.metrics.broker_disconnects.inc();
        }
        let redis = node.place();
        // Logs one line per outage, regardless of the number of attempts, and some more if the reason
        // changes: the first one may only be a consequence.
        static REPEATED: LazyLock<LogThrottle> = LazyLock::new(LogThrottle::default);
        if before == Health::Up || before == Health::Down(NOT_YET.into()) {
            tracing::warn!(
                error = %ended,
                redis,
                "Redis is unavailable; clients stay connected, publishing is refused; reconnecting"
            );
        } else if before != now && REPEATED.happened("other reason").is_some() {
            tracing::warn!(error = %ended, redis, "Redis is still unavailable, for another reason");
        }
    }

    fn set_health(&self, now: Health) -> Health {
        let mut health = lock(&self.health);
        self.is_up.store(now == Health::Up, Ordering::Release);
        std::mem::replace(&mut *health, now)
    }

    fn wanted(&self) -> MutexGuard<'_, Wanted> {
        lock(&self.wanted)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every statement leaves the data consistent, so a poisoned lock is safe to use.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
