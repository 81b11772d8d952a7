//! The bounded queue between a broker and the hub. A broker adds events in the order in which it
//! received them. The hub takes all of them at once, so the batches grow with the load.

use std::collections::{HashSet, VecDeque};
use std::sync::Mutex;

use futures::future::{BoxFuture, FutureExt};
use tokio::sync::Notify;

use crate::broker::{Event, EventSink};
use crate::channel::ChannelName;
use crate::observability::metrics::latency::Moment;

/// As large as Redis' default hard limit for the output buffer of a subscriber.
const MOST_BYTES: usize = 32 << 20;
/// The size of an event without its payload, in bytes.
const EVENT_BYTES: usize = 128;

/// Events in transit from a broker to the hub.
#[derive(Default)]
pub struct EventQueue {
    queue: Mutex<Queue>,
    arrived: Notify,
    room: Notify,
}

#[derive(Default)]
struct Queue {
    events: VecDeque<Event>,
    bytes: usize,
    /// Channels of which a message found no room; the queue has an [`Event::Missed`] for each.
    missed: HashSet<ChannelName>,
    dropped: u64,
    /// When the oldest event arrived.
    since: Option<Moment>,
}

/// Information about the events taken.
#[derive(Debug)]
pub struct Taken {
    /// How many messages were dropped before them.
    pub dropped: u64,
    /// When the oldest of them arrived.
    pub since: Moment,
}

impl EventSink for EventQueue {
    fn add(&self, event: Event) {
        self.lock().push(event);
    }

    fn add_all(&self, events: &mut Vec<Event>) {
        let mut queue = self.lock();
        events.drain(..).for_each(|event| queue.push(event));
    }

    fn wake(&self) {
        self.arrived.notify_one();
    }

    fn has_room(&self) -> bool {
        self.lock().bytes < MOST_BYTES / 2
    }

    fn room(&self) -> BoxFuture<'_, ()> {
        async {
            loop {
                let freed = self.room.notified();
                if self.has_room() {
                    return;
                }
                freed.await;
            }
        }
        .boxed()
    }
}

impl EventQueue {
    /// Waits until there may be events to take.
    pub async fn arrived(&self) {
        self.arrived.notified().await;
    }

    /// The number of events in the queue.
    pub(super) fn len(&self) -> usize {
        self.lock().events.len()
    }

    /// Takes all events; `None` if there are none.
    pub fn take(&self, events: &mut VecDeque<Event>) -> Option<Taken> {
        let mut queue = self.lock();
        if queue.events.is_empty() {
            return None;
        }
        std::mem::swap(&mut queue.events, events);
        queue.bytes = 0;
        queue.missed.clear();
        let dropped = std::mem::take(&mut queue.dropped);
        let since = queue.since.take().unwrap_or_else(Moment::now);
        drop(queue);
        self.room.notify_waiters();
        Some(Taken { dropped, since })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Queue> {
        // Every statement leaves the queue consistent, so a poisoned lock is safe to use.
        self.queue.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Queue {
    fn push(&mut self, event: Event) {
        let weight = weight(&event);
        let must_stay = matches!(event, Event::Refused(_));
        if self.bytes + weight > MOST_BYTES && !self.events.is_empty() && !must_stay {
            if matches!(event, Event::Presence(..)) {
                // The next list of everybody makes up for it.
                return;
            }
            self.dropped += 1;
            let (Event::Arrived(channel, _)
            | Event::Subscribed(channel)
            | Event::Missed(channel)
            | Event::Presence(channel, _)
            | Event::Refused(channel)) = event;
            // In place of the dropped message, so that the next one does not appear to follow the
            // one before.
            if self.missed.insert(channel.clone()) {
                self.events.push_back(Event::Missed(channel));
            }
            return;
        }
        self.bytes += weight;
        // Read the clock once for all events that the hub takes at once.
        self.since.get_or_insert_with(Moment::now);
        self.events.push_back(event);
    }
}

fn weight(event: &Event) -> usize {
    match event {
        Event::Arrived(_, message) => EVENT_BYTES + message.payload.len(),
        Event::Presence(_, news) => EVENT_BYTES + news.weight(),
        Event::Subscribed(_) | Event::Missed(_) | Event::Refused(_) => EVENT_BYTES,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Message;

    #[test]
    fn a_message_that_finds_no_room_is_reported_as_missed() {
        let queue = EventQueue::default();
        let channel: ChannelName = "a".parse().expect("valid");
        for _ in 0..33 {
            queue.push(Event::Arrived(channel.clone(), Message::plain(vec![0; 1 << 20])));
        }
        assert!(!queue.has_room());
        let mut events = VecDeque::new();
        let Taken { dropped, .. } = queue.take(&mut events).expect("events");
        assert_eq!((events.len() as u64 - 1) + dropped, 33);
        assert!(dropped > 0 && matches!(events.back(), Some(Event::Missed(_))));
        assert!(queue.has_room());
    }
}
