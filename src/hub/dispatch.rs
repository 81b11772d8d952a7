//! Processes the broker's events in their order: on the hub's own task, or on the thread that published.

use std::collections::VecDeque;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;

use super::Hub;
use crate::broker::Event;
use crate::hub::event_queue::{EventQueue, Taken};
use crate::hub::sequence::Next;
use crate::observability::metrics::latency::Moment;

/// Events being processed. The lock around them keeps their order: only its holder processes events.
pub(super) struct Pending {
    events: VecDeque<Event>,
    /// When the first of them came.
    since: Moment,
}

/// How far processing came.
#[derive(PartialEq, Eq)]
enum Progress {
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

impl Pending {
    /// Nothing yet.
    pub(super) fn new() -> Self {
        Self { events: VecDeque::new(), since: Moment::now() }
    }
}

impl Hub {
    /// Processes events for as long as the process lives.
    pub async fn run(self: Arc<Self>, queue: Arc<EventQueue>) {
        let (hub, here) = (Arc::downgrade(&self), Handle::current());
        queue.taken_at_once_by(move |queue| {
            // What follows from it, reading the history, is a task of the hub's own thread.
            let _here = here.enter();
            hub.upgrade().is_some_and(|hub| hub.try_process_here(queue))
        });
        loop {
            let progress = self.process(&queue, &mut self.pending.lock().unwrap_or_else(PoisonError::into_inner));
            match progress {
                Progress::Idle => queue.arrived().await,
                // A run can be long: let the others on this thread run.
                Progress::Done => tokio::task::yield_now().await,
                // Shards never wait for sockets, so there soon is room: until then the queue fills, then Redis.
                Progress::Blocked => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        }
    }

    /// Processes events on the calling thread, unless another thread is at it. `false` if some are left.
    fn try_process_here(self: &Arc<Self>, queue: &EventQueue) -> bool {
        let Ok(mut pending) = self.pending.try_lock() else { return false };
        self.process(queue, &mut pending) != Progress::Blocked && queue.is_empty()
    }

    /// Processes what the last call left, or else what has come since.
    fn process(self: &Arc<Self>, queue: &EventQueue, pending: &mut Pending) -> Progress {
        if pending.events.is_empty() {
            let Some(Taken { dropped, since }) = queue.take(&mut pending.events) else { return Progress::Idle };
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
    fn handle(self: &Arc<Self>, event: Event, since: Moment, count: &mut Count) -> Result<(), Event> {
        let (Event::Arrived(channel, _)
        | Event::Subscribed(channel)
        | Event::Missed(channel)
        | Event::Refused(channel)) = &event;
        if let Event::Refused(_) = event {
            self.refuse(channel);
            return Ok(());
        }
        let Some(topic) = self.lock().get(channel).cloned() else { return Ok(()) };
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::memory::MemoryBroker;
    use crate::broker::{Broker, Publication};
    use crate::channel::ChannelName;
    use crate::hub::log::Bounds;
    use crate::message::Entry;
    use crate::observability::metrics::Metrics;
    use crate::rules::Rules;

    #[tokio::test]
    async fn what_one_thread_could_not_hear_for_want_of_room_is_not_overtaken() {
        let (queue, metrics) = (Arc::new(EventQueue::default()), Arc::new(Metrics::new(1)));
        let rules = Arc::new(Rules::parse("[[channel]]\nmatch = '*'\nhistory = false\n").expect("rules"));
        let broker = Arc::new(MemoryBroker::new(queue.clone(), rules.clone()));
        let bounds = Bounds { entries: 4, bytes: usize::MAX };
        let hub = Hub::new(broker.clone(), rules, bounds, usize::MAX, 1, Arc::default(), metrics);
        tokio::spawn(hub.clone().run(queue.clone()));
        let channel: ChannelName = "a".parse().expect("valid");
        let member = hub.join(&channel).await.expect("joined");
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
