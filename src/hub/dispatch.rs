//! The event sink of the broker. Queues events and processes them in order, on the hub's task
//! (`Hub::run`) or on the thread that published (memory broker only). Appends messages to the logs of
//! the topics and wakes the shards. It does not know the broker: the hub's task reads the history.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::future::BoxFuture;

use crate::broker::{Event, EventSink};
use crate::channel::ChannelName;
use crate::fair_share::fair_size;
use crate::hub::event_queue::{EventQueue, Taken};
use crate::hub::presence::Presence;
use crate::hub::sequence::Next;
use crate::hub::topic::{Change, Topic};
use crate::hub::wake_list::WakeList;
use crate::observability::metrics::Metrics;
use crate::observability::metrics::latency::Moment;

/// The maximum number of events that a publishing thread processes. If there are more, it leaves
/// them to the hub's task.
const MOST_ON_PUBLISHER: usize = 64;

/// The table of channels, and the events for them.
pub struct Dispatcher {
    queue: EventQueue,
    pending: Mutex<Pending>,
    topics: Mutex<HashMap<ChannelName, Arc<Topic>>>,
    /// Topics whose history must be read.
    checks: Mutex<Vec<Arc<Topic>>>,
    /// The size of all logs, in bytes.
    log_bytes: Arc<AtomicUsize>,
    most_log_bytes: usize,
    wake_lists: Vec<Arc<WakeList>>,
    presence: Arc<Presence>,
    metrics: Arc<Metrics>,
}

/// The events in processing. Only the holder of the lock on them processes events, which keeps
/// their order.
struct Pending {
    events: VecDeque<Event>,
    /// When the first of them arrived.
    since: Moment,
}

/// The result of processing events.
#[derive(PartialEq, Eq)]
pub(super) enum Progress {
    /// There were no events.
    Idle,
    /// Processed every event that was queued at the start.
    Done,
    /// Processed every event up to a message for which there is no room yet.
    Blocked,
}

/// The messages of one call, which are added to the shared counters at its end.
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
    /// Creates a dispatcher without channels. All logs together may hold `most_log_bytes` bytes.
    pub fn new(most_log_bytes: usize, shards: usize, metrics: Arc<Metrics>) -> Self {
        Self {
            queue: EventQueue::default(),
            pending: Mutex::new(Pending { events: VecDeque::new(), since: Moment::now() }),
            topics: Mutex::default(),
            checks: Mutex::default(),
            log_bytes: Arc::default(),
            most_log_bytes,
            wake_lists: (0..shards).map(|_| Arc::default()).collect(),
            presence: Presence::new(shards, metrics.clone()),
            metrics,
        }
    }

    /// The metrics of the instance.
    pub(super) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Who is on the channels.
    pub(super) fn presence(&self) -> &Arc<Presence> {
        &self.presence
    }

    /// The wake list of each shard.
    pub(super) fn wake_lists(&self) -> &[Arc<WakeList>] {
        &self.wake_lists
    }

    /// The size of all logs, in bytes.
    pub(super) fn log_bytes(&self) -> &Arc<AtomicUsize> {
        &self.log_bytes
    }

    /// Waits until there may be events or topics to check.
    pub(super) async fn woken(&self) {
        self.queue.arrived().await;
    }

    /// Takes the topics whose history must be read.
    pub(super) fn take_checks(&self) -> Vec<Arc<Topic>> {
        std::mem::take(&mut self.checks.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The table of channels.
    pub(super) fn topics(&self) -> MutexGuard<'_, HashMap<ChannelName, Arc<Topic>>> {
        // Every statement leaves the table consistent, so a poisoned lock is safe to use.
        self.topics.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Processes the queued events. Waits while another thread does.
    pub(super) fn process_all(&self) -> Progress {
        self.process_events(&mut self.pending.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Processes events on the calling thread, unless another thread does. Returns `false` if some
    /// are left.
    fn try_process_here(&self) -> bool {
        let Ok(mut pending) = self.pending.try_lock() else { return false };
        self.process_events(&mut pending) != Progress::Blocked && self.queue.len() == 0
    }

    /// Continues with events left from the last call. If there are none, takes the queued ones.
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

    /// Handles an event. Returns it if there is no room for its message.
    fn handle(&self, event: Event, since: Moment, count: &mut Count) -> Result<(), Event> {
        let (Event::Arrived(channel, _)
        | Event::Subscribed(channel)
        | Event::Missed(channel)
        | Event::Presence(channel, _)
        | Event::Refused(channel)) = &event;
        if let Event::Refused(_) = event {
            self.refuse(channel);
            return Ok(());
        }
        let Some(topic) = self.topics().get(channel).cloned() else { return Ok(()) };
        if topic.rule.presence && matches!(event, Event::Subscribed(_)) {
            self.presence.on_subscribed(channel);
        }
        // A new subscription needs a check too, but is no sign of missing messages.
        let shows_gaps = !matches!(event, Event::Subscribed(_));
        let change = match event {
            Event::Arrived(..) if !topic.has_room() || !self.logs_have_room() => return Err(event),
            Event::Arrived(_, message) => {
                count.messages += 1;
                count.bytes += message.payload.len() as u64;
                topic.arrive(message, since)
            }
            Event::Subscribed(_) | Event::Missed(_) | Event::Refused(_) => topic.require_check(),
            Event::Presence(channel, news) => {
                self.presence.hear(&channel, &news);
                return Ok(());
            }
        };
        if shows_gaps && change.next == Next::Check {
            self.metrics.gaps_found.inc();
        }
        self.apply(&topic, change);
        Ok(())
    }

    /// Removes a channel that the broker refuses. Closes its subscribers, and fails pending joins.
    fn refuse(&self, channel: &ChannelName) {
        let Some(topic) = self.topics().remove(channel) else { return };
        self.tell_refused(&topic);
    }

    /// Reports to the subscribers of a removed topic that the broker refuses its channel.
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
            // The hub's task reads the history, because this thread may have no runtime.
            self.checks.lock().unwrap_or_else(PoisonError::into_inner).push(topic.clone());
            self.queue.wake();
        }
    }

    /// Whether all logs together are within their limit. If not, shortens the largest logs, but
    /// keeps entries that a shard has not served yet.
    fn logs_have_room(&self) -> bool {
        if self.log_bytes.load(Ordering::Relaxed) <= self.most_log_bytes {
            return true;
        }
        self.metrics.log_trims.inc();
        let topics: Vec<_> = self.topics().values().map(|topic| (topic.log_bytes(), topic.clone())).collect();
        // Free an eighth at once, so that the next message does not look through all channels
        // again.
        let size = fair_size(topics.iter().map(|(bytes, _)| *bytes).collect(), self.most_log_bytes / 8 * 7);
        topics.iter().filter(|(bytes, _)| *bytes > size).for_each(|(_, topic)| topic.shrink_to(size));
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
    async fn events_blocked_by_a_full_log_stay_in_order() {
        let dispatcher = Arc::new(Dispatcher::new(usize::MAX, 1, Arc::new(Metrics::new(1))));
        let rules = Arc::new(Rules::parse("[[channel]]\nmatch = '*'\nhistory = false\n").expect("rules"));
        let broker = Arc::new(MemoryBroker::new(dispatcher.clone(), rules.clone()));
        let bounds = LogBounds { entries: 4, bytes: usize::MAX };
        let hub = Hub::new(dispatcher, broker.clone(), rules, bounds, Arc::default());
        tokio::spawn(hub.clone().run());
        let channel: ChannelName = "a".parse().expect("valid");
        let member = hub.join(&channel, RequestSize::Small).await.expect("joined");
        let topic = member.topic();
        topic.record_served(0, None);
        // The hub's task has processed the subscription, and waits for more.
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
        // In this single-threaded test, no other task has run, so this thread has processed the
        // events.
        assert_eq!(topic.end(), 4);
        let delivered = async {
            while topic.end() < 8 {
                topic.record_served(0, Some(topic.end()));
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
