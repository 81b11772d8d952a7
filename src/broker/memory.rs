//! The embedded broker. It behaves like the Redis broker, but within one process, and its data is
//! lost when the process ends. `history.rs` implements the history of one channel, `channels.rs`
//! the limit on the memory of all channels, `presence.rs` who is on them.

mod channels;
mod clock;
mod history;
mod ids;
mod keys;
mod presence;

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt, ready};
use tokio::time::MissedTickBehavior;

use self::channels::{Channels, Published};
use self::clock::Clock;
use self::presence::Records;
use super::{Broker, BrokerError, Event, EventSink, Health, Page, Publication, ReadFrom, RequestSize};
use crate::channel::ChannelName;
use crate::message::{Message, Position};
use crate::presence::{Everybody, Update, Updated};
use crate::rules::{History, Rules};

/// The maximum number of bytes in all histories together; this broker has no `maxmemory` setting.
const MOST_BYTES: usize = 256 << 20;
/// How often the background task drops expired data.
const EXPIRE_EVERY: Duration = Duration::from_secs(1);
/// The maximum number of items that it drops while it holds the lock, so that publishing does not
/// wait for long.
const EXPIRE_STEPS: usize = 1000;
/// What is kept of the messages of a channel without a history, if they have idempotency ids: only these.
const ONLY_IDS: History = History { messages: 0, age: Duration::ZERO };

/// A broker in the memory of this process.
pub struct MemoryBroker {
    state: Arc<Mutex<State>>,
    clock: Clock,
    /// Computes the digests that distinguish a retry from another message with the same id.
    digests: RandomState,
    sink: Arc<dyn EventSink>,
    rules: Arc<Rules>,
}

struct State {
    channels: Channels,
    subscribed: HashSet<ChannelName>,
    presence: Records,
}

impl MemoryBroker {
    /// Creates a broker without channels that delivers its events to `sink`.
    ///
    /// # Panics
    /// Panics outside of a Tokio runtime, on which it starts a task that drops expired data.
    pub fn new(sink: Arc<dyn EventSink>, rules: Arc<Rules>) -> Self {
        let clock = Clock::new();
        let channels = Channels::new(MOST_BYTES, clock.now());
        let state = Arc::new(Mutex::new(State { channels, subscribed: HashSet::new(), presence: Records::default() }));
        tokio::spawn(expire(Arc::downgrade(&state), clock));
        Self { state, clock, digests: RandomState::new(), sink, rules }
    }

    fn publish_one(&self, publication: Publication) -> Result<Option<Position>, BrokerError> {
        let rule = self.rules.of(&publication.channel);
        if (publication.key.is_some() || publication.remove) && rule.keyed.is_none() {
            return Err(BrokerError::NotKeyed);
        }
        let channel = publication.channel.clone();
        // Redis cannot compare a message that it does not store. There, the same id is a retry.
        let digest = match (&publication.id, rule.history) {
            (Some(_), Some(_)) => self.digests.hash_one((&publication.payload, &publication.key, publication.remove)),
            _ => 0,
        };
        let mut state = lock(&self.state);
        let message = match (rule.history, &publication.id) {
            (None, None) => Message::plain(publication.payload),
            (history, _) => {
                let bounds = history.unwrap_or(ONLY_IDS);
                match state.channels.publish(publication, digest, bounds, rule.keyed, self.clock.now())? {
                    Published::New(message) if history.is_some() => message,
                    Published::New(message) => Message::plain(message.payload),
                    Published::Known(position) => return Ok(history.map(|_| position)),
                }
            }
        };
        let position = message.position;
        if state.subscribed.contains(&channel) {
            self.sink.add(Event::Arrived(channel, message));
        }
        Ok(position)
    }
}

/// Drops expired data as long as the broker exists.
async fn expire(state: Weak<Mutex<State>>, clock: Clock) {
    let mut ticks = tokio::time::interval(EXPIRE_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        loop {
            let Some(state) = state.upgrade() else { return };
            if !lock(&state).channels.expire(clock.now(), EXPIRE_STEPS) {
                break;
            }
            tokio::task::yield_now().await;
        }
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    // Every statement leaves the state consistent, so a poisoned lock is safe to use.
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Broker for MemoryBroker {
    fn publish(&self, batch: Vec<Publication>) -> BoxFuture<'_, Vec<Result<Option<Position>, BrokerError>>> {
        async move {
            // Backpressure, as with Redis: a publisher that is faster than this instance must wait.
            if !self.sink.has_room() {
                self.sink.room().await;
            }
            let results = batch.into_iter().map(|publication| self.publish_one(publication)).collect();
            self.sink.process();
            results
        }
        .boxed()
    }

    fn subscribe(&self, channel: &ChannelName, _: RequestSize) -> Result<(), BrokerError> {
        let mut state = lock(&self.state);
        state.subscribed.insert(channel.clone());
        self.sink.push(Event::Subscribed(channel.clone()));
        Ok(())
    }

    fn unsubscribe(&self, channel: &ChannelName) {
        lock(&self.state).subscribed.remove(channel);
    }

    fn read<'a>(
        &'a self,
        channel: &'a ChannelName,
        from: ReadFrom,
        limit: usize,
    ) -> BoxFuture<'a, Result<Option<Page>, BrokerError>> {
        let rule = self.rules.of(channel);
        // Reads the clock under the lock, so that earlier messages do not have later times.
        let read = || {
            let state = lock(&self.state);
            state.channels.read(channel, from, limit, self.clock.now())
        };
        let page = rule.history.map(|_| read());
        ready(Ok(page)).boxed()
    }

    fn write_presence(&self, updates: Vec<Update>) -> BoxFuture<'_, Vec<Result<Updated, BrokerError>>> {
        let mut state = lock(&self.state);
        let written = updates.into_iter().map(|update| {
            let (updated, news) = state.presence.write(update);
            if let Some((channel, news)) = news {
                self.sink.push(Event::Presence(channel, news));
            }
            Ok(updated)
        });
        let written = written.collect();
        ready(written).boxed()
    }

    fn read_presence<'a>(&'a self, channel: &'a ChannelName) -> BoxFuture<'a, Result<Everybody, BrokerError>> {
        ready(Ok(lock(&self.state).presence.read(channel))).boxed()
    }

    fn health(&self) -> Health {
        Health::Up
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::event_queue::EventQueue;

    const RULES: &str = "
[[channel]]
match = 'brief'
history = { messages = 1000, age = '1s' }
[[channel]]
match = 'none'
history = false
[[channel]]
match = 'sheet'
keyed = true
";

    fn broker() -> MemoryBroker {
        deliver_to(Arc::default())
    }

    fn deliver_to(sink: Arc<EventQueue>) -> MemoryBroker {
        MemoryBroker::new(sink, Arc::new(Rules::parse(RULES).expect("rules")))
    }

    fn publication(channel: &str, payload: &'static str, id: Option<&str>) -> Publication {
        let channel = channel.parse().expect("valid");
        Publication { channel, payload: payload.into(), key: None, remove: false, id: id.map(Arc::from) }
    }

    async fn publish(broker: &MemoryBroker, publication: Publication) -> Result<Option<u64>, BrokerError> {
        let result = broker.publish(vec![publication]).await.remove(0);
        result.map(|position| position.map(|position| position.offset))
    }

    #[tokio::test]
    async fn what_has_aged_is_given_back_while_nothing_is_published() {
        let broker = broker();
        let batch = (0..1000).map(|_| publication("brief", "x", None)).collect();
        assert!(broker.publish(batch).await.iter().all(Result::is_ok));
        let full = lock(&broker.state).channels.bytes();
        let given_back = async {
            // Only the channels remain: their positions outlive their messages.
            while lock(&broker.state).channels.bytes() > full / 100 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), given_back).await.expect("the task drops them");
    }

    #[tokio::test]
    async fn the_task_ends_with_the_broker() {
        let broker = broker();
        let state = Arc::downgrade(&broker.state);
        drop(broker);
        assert!(state.upgrade().is_none(), "the task holds nothing while it waits");
    }

    #[tokio::test]
    async fn a_retry_is_the_same_payload_key_and_removal_and_is_not_delivered_again() {
        let queue = Arc::new(EventQueue::default());
        let broker = deliver_to(queue.clone());
        let channel: ChannelName = "sheet".parse().expect("valid");
        broker.subscribe(&channel, RequestSize::Small).expect("it refuses nothing");
        let set = Publication { key: Some("a".into()), ..publication("sheet", "1", Some("id")) };
        for _ in 0..3 {
            assert_eq!(publish(&broker, set.clone()).await, Ok(Some(1)));
        }
        for other in [
            Publication { payload: "2".into(), ..set.clone() },
            Publication { key: Some("b".into()), ..set.clone() },
            Publication { key: None, ..set.clone() },
            Publication { remove: true, ..set.clone() },
        ] {
            assert_eq!(publish(&broker, other).await, Err(BrokerError::IdReused));
        }
        assert_eq!(publish(&broker, Publication { id: Some("other".into()), ..set }).await, Ok(Some(2)));
        let mut events = std::collections::VecDeque::new();
        queue.take(&mut events);
        let arrived = |event: &Event| matches!(event, Event::Arrived(..));
        assert_eq!((events.len(), events.iter().filter(|event| arrived(event)).count()), (3, 2));
    }

    #[tokio::test]
    async fn a_channel_without_history_keeps_nothing() {
        let broker = broker();
        assert_eq!(publish(&broker, publication("none", "x", None)).await, Ok(None));
        assert_eq!(broker.read(&"none".parse().expect("valid"), ReadFrom::Oldest, 1).await, Ok(None));
        assert_eq!(lock(&broker.state).channels.bytes(), 0);
    }

    #[tokio::test]
    async fn a_channel_without_history_keeps_only_ids_and_delivers_a_retry_once() {
        let queue = Arc::new(EventQueue::default());
        let broker = deliver_to(queue.clone());
        broker.subscribe(&"none".parse().expect("valid"), RequestSize::Small).expect("it refuses nothing");
        let large: &'static str = "x".repeat(10_000).leak();
        for id in ["a", "a", "b", "a"] {
            assert_eq!(publish(&broker, publication("none", large, Some(id))).await, Ok(None));
        }
        let mut events = std::collections::VecDeque::new();
        queue.take(&mut events);
        let plain = |event: &Event| matches!(event, Event::Arrived(_, message) if message.position.is_none());
        assert_eq!((events.len(), events.iter().filter(|event| plain(event)).count()), (3, 2));
        assert_eq!(broker.read(&"none".parse().expect("valid"), ReadFrom::Oldest, 1).await, Ok(None));
        let bytes = lock(&broker.state).channels.bytes();
        assert!((1..2000).contains(&bytes), "{bytes}");
    }
}
