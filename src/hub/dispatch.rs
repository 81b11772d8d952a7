//! The sink of the broker's events: queues them, and processes them in their order, on the hub's own task or on
//! the thread that published. It appends to the topics' logs and wakes the shards. It does not know the broker:
//! topics whose history must be read are handed to the hub's task.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::future::BoxFuture;

use crate::broker::{Event, EventSink};
use crate::channel::ChannelName;
use crate::fair_share::level;
use crate::hub::event_queue::{EventQueue, Taken};
use crate::hub::sequence::Next;
use crate::hub::topic::{Change, Topic};
use crate::hub::wake_list::WakeList;
use crate::observability::metrics::Metrics;
use crate::observability::metrics::latency::Moment;

/// The most events that a publishing thread processes. It leaves more of them to the hub's task.
const MOST_ON_PUBLISHER: usize = 64;

/// The table of channels, and the events for them.
pub struct Dispatcher {
    queue: EventQueue,
    pending: Mutex<Pending>,
    topics: Mutex<HashMap<ChannelName, Arc<Topic>>>,
    /// Topics whose history is to be read.
    checks: Mutex<Vec<Arc<Topic>>>,
    /// The bytes of all logs, and their bound.
    log_bytes: Arc<AtomicUsize>,
    most_log_bytes: usize,
    wake_lists: Vec<Arc<WakeList>>,
    metrics: Arc<Metrics>,
}

/// Events being processed. The lock around them keeps their order: only its holder processes events.
struct Pending {
    events: VecDeque<Event>,
    /// When the first of them came.
    since: Moment,
}

/// How far processing came.
#[derive(PartialEq, Eq)]
pub(super) enum Progress {
    /// There was no event.
    Idle,
    /// Every event that was there at the beginning.
    Done,
    /// Every event up to a message for which there is no room yet.
    Blocked,
}

/// Messages processed in one call, counted here before the shared counters are.
#[derive(Default)]
struct Count {
    messages: u64,
    bytes: u64,
}

impl EventSink for Dispatcher {
    fn add(&self, event: Event) {
        self.queue.add(event);
    }

    fn add_all(&self, events: &mut Vec<Event>) {
        self.queue.add_all(events);
    }

    fn wake(&self) {
        self.queue.wake();
    }

    fn process(&self) {
        let waiting = self.queue.len();
        if waiting > 0 && (waiting > MOST_ON_PUBLISHER || !self.try_process_here()) {
            self.queue.wake();
        }
    }

    fn has_room(&self) -> bool {
        self.queue.has_room()
    }

    fn room(&self) -> BoxFuture<'_, ()> {
        self.queue.room()
    }
}

impl Dispatcher {
    /// A dispatcher without channels for a number of shards, whose logs may hold `most_log_bytes` bytes together.
    pub fn new(most_log_bytes: usize, shards: usize, metrics: Arc<Metrics>) -> Self {
        Self {
            queue: EventQueue::default(),
            pending: Mutex::new(Pending { events: VecDeque::new(), since: Moment::now() }),
            topics: Mutex::default(),
            checks: Mutex::default(),
            log_bytes: Arc::default(),
            most_log_bytes,
            wake_lists: (0..shards).map(|_| Arc::default()).collect(),
            metrics,
        }
    }

    /// The metrics of the instance.
    pub(super) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// The wake list of each shard.
    pub(super) fn wake_lists(&self) -> &[Arc<WakeList>] {
        &self.wake_lists
    }

    /// The bytes of all logs.
    pub(super) fn log_bytes(&self) -> &Arc<AtomicUsize> {
        &self.log_bytes
    }

    /// Waits until there may be events or checks.
    pub(super) async fn woken(&self) {
        self.queue.arrived().await;
    }

    /// The topics whose history is to be read.
    pub(super) fn take_checks(&self) -> Vec<Arc<Topic>> {
        std::mem::take(&mut self.checks.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The table of channels.
    pub(super) fn topics(&self) -> MutexGuard<'_, HashMap<ChannelName, Arc<Topic>>> {
        // The table is whole after every line that holds it: a panic elsewhere does not spoil it.
        self.topics.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Processes the events that there are, and waits while another thread does.
    pub(super) fn process_all(&self) -> Progress {
        self.process_events(&mut self.pending.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Processes events on the calling thread, unless another thread is at it. `false` if some are left.
    fn try_process_here(&self) -> bool {
        let Ok(mut pending) = self.pending.try_lock() else { return false };
        self.process_events(&mut pending) != Progress::Blocked && self.queue.len() == 0
    }

    /// Processes what the last call left, or else what has come since.
    fn process_events(&self, pending: &mut Pending) -> Progress {
        if pending.events.is_empty() {
            let Some(Taken { dropped, since }) = self.queue.take(&mut pending.events) else { return Progress::Idle };
            self.metrics.intake_dropped.inc_by(dropped);
            pending.since = since;
        }
        let (mut progress, mut count) = (Progress::Done, Count::default());
        while let Some(event) = pending.events.pop_front() {
            if let Err(event) = self.handle(event, pending.since, &mut count) {
                pending.events.push_front(event);
                progress = Progress::Blocked;
                break;
            }
        }
        self.metrics.messages_in.inc_by(count.messages);
        self.metrics.bytes_in.inc_by(count.bytes);
        progress
    }

    /// Handles an event; gives it back if there is no room for its message.
    fn handle(&self, event: Event, since: Moment, count: &mut Count) -> Result<(), Event> {
        let (Event::Arrived(channel, _)
        | Event::Subscribed(channel)
        | Event::Missed(channel)
        | Event::Refused(channel)) = &event;
        if let Event::Refused(_) = event {
            self.refuse(channel);
            return Ok(());
        }
        let Some(topic) = self.topics().get(channel).cloned() else { return Ok(()) };
        // A new subscription asks the history as well, but nothing shows yet that anything is missing.
        let shows_gaps = !matches!(event, Event::Subscribed(_));
        let change = match event {
            Event::Arrived(..) if !topic.has_room() || !self.has_room() => return Err(event),
            Event::Arrived(_, message) => {
                count.messages += 1;
                count.bytes += message.payload.len() as u64;
                topic.arrive(message, since)
            }
            Event::Subscribed(_) | Event::Missed(_) | Event::Refused(_) => topic.suspect(),
        };
        if shows_gaps && change.next == Next::Check {
            self.metrics.gaps_found.inc();
        }
        self.apply(&topic, change);
        Ok(())
    }

    /// Removes a channel that the broker refuses. Closes its subscribers, and fails the joins that wait.
    fn refuse(&self, channel: &ChannelName) {
        let Some(topic) = self.topics().remove(channel) else { return };
        self.tell_refused(&topic);
    }

    /// Tells the subscribers of a forgotten topic that the broker refuses its channel.
    pub(super) fn tell_refused(&self, topic: &Arc<Topic>) {
        for shard in topic.refuse() {
            self.wake_lists[shard].push(topic.clone());
        }
    }

    pub(super) fn apply(&self, topic: &Arc<Topic>, change: Change) {
        self.metrics.plain_dropped.inc_by(change.dropped);
        for shard in change.wake {
            self.wake_lists[shard].push(topic.clone());
        }
        if change.next == Next::Check {
            // A task must read the history, and this thread may have no runtime.
            self.checks.lock().unwrap_or_else(PoisonError::into_inner).push(topic.clone());
            self.queue.wake();
        }
    }

    /// Whether all logs together are within their bound. Shortens the largest logs if they are not; entries that a shard
    /// has yet to serve stay.
    fn has_room(&self) -> bool {
        if self.log_bytes.load(Ordering::Relaxed) <= self.most_log_bytes {
            return true;
        }
        self.metrics.log_trims.inc();
        let topics: Vec<_> = self.topics().values().map(|topic| (topic.log_bytes(), topic.clone())).collect();
        // An eighth is freed at once, so that the next message does not look through all channels again.
        let level = level(topics.iter().map(|(bytes, _)| *bytes).collect(), self.most_log_bytes / 8 * 7);
        topics.iter().filter(|(bytes, _)| *bytes > level).for_each(|(_, topic)| topic.shrink_to(level));
        self.log_bytes.load(Ordering::Relaxed) <= self.most_log_bytes
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::broker::memory::MemoryBroker;
    use crate::broker::{Broker, Publication, RequestSize};
    use crate::hub::Hub;
    use crate::hub::log::LogBounds;
    use crate::message::Entry;
    use crate::rules::Rules;

    #[tokio::test]
    async fn what_one_thread_could_not_hear_for_want_of_room_is_not_overtaken() {
        let dispatcher = Arc::new(Dispatcher::new(usize::MAX, 1, Arc::new(Metrics::new(1))));
        let rules = Arc::new(Rules::parse("[[channel]]\nmatch = '*'\nhistory = false\n").expect("rules"));
        let broker = Arc::new(MemoryBroker::new(dispatcher.clone(), rules.clone()));
        let bounds = LogBounds { entries: 4, bytes: usize::MAX };
        let hub = Hub::new(dispatcher, broker.clone(), rules, bounds, Arc::default());
        tokio::spawn(hub.clone().run());
        let channel: ChannelName = "a".parse().expect("valid");
        let member = hub.join(&channel, RequestSize::Small).await.expect("joined");
        let topic = member.topic();
        topic.served(0, None);
        // The hub's own task has processed the subscription, and waits for more.
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        let publication = |number: u64| {
            let (channel, payload) = (channel.clone(), number.to_be_bytes().to_vec().into());
            Publication { channel, payload, key: None, remove: false, id: None }
        };
        for numbers in [0..2, 2..8] {
            let results = broker.publish(numbers.map(publication).collect()).await;
            assert!(results.iter().all(Result::is_ok));
        }
        // One thread, and no other task has run: this one has processed what there was room for.
        assert_eq!(topic.end(), 4);
        let delivered = async {
            while topic.end() < 8 {
                topic.served(0, Some(topic.end()));
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), delivered).await.expect("the hub's own task goes on");
        let mut payloads = Vec::new();
        let kept = topic.read(4, |entry| {
            let Entry::Message(message) = entry else { unreachable!("nothing was missed") };
            payloads.push(message.payload.clone());
            true
        });
        assert_eq!(kept, Ok(8));
        assert_eq!(payloads, (4..8_u64).map(|number| number.to_be_bytes().to_vec()).collect::<Vec<_>>());
    }
}
