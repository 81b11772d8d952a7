//! How the hub hears the broker: event by event, in their order, on its own task or on the thread of whoever published.

use std::collections::VecDeque;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;

use super::Hub;
use crate::broker::Event;
use crate::intake::{Intake, Taken};
use crate::metrics::latency::Moment;
use crate::sequence::Next;

/// The events that are being heard. Who holds it is the one who hears: they are heard in the order in which they came.
pub(super) struct Turn {
    events: VecDeque<Event>,
    /// When the first of them came.
    since: Moment,
}

/// How far hearing came.
#[derive(PartialEq, Eq)]
enum Heard {
    /// There was nothing.
    Nothing,
    /// All that was there when it began.
    All,
    /// Up to one for which there is no room yet.
    Full,
}

/// What was heard in one turn, counted before the atomics are.
#[derive(Default)]
struct Count {
    messages: u64,
    bytes: u64,
}

impl Turn {
    /// Nothing yet.
    pub(super) fn new() -> Self {
        Self { events: VecDeque::new(), since: Moment::now() }
    }
}

impl Hub {
    /// Hears the broker for as long as the process lives.
    pub async fn run(self: Arc<Self>, intake: Arc<Intake>) {
        let (hub, here) = (Arc::downgrade(&self), Handle::current());
        intake.taken_at_once_by(move |intake| {
            // What follows from it, reading the history, is a task of the hub's own thread.
            let _here = here.enter();
            hub.upgrade().is_some_and(|hub| hub.hear_at_once(intake))
        });
        loop {
            let heard = self.hear(&intake, &mut self.turn.lock().unwrap_or_else(PoisonError::into_inner));
            match heard {
                Heard::Nothing => intake.arrived().await,
                // A turn can be long: let the others on this thread run.
                Heard::All => tokio::task::yield_now().await,
                // Shards never wait for sockets, so there soon is room: until then the intake fills, then Redis.
                Heard::Full => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        }
    }

    /// Hears the broker on whatever thread this is, unless another one is at it. `false` if something is left to be heard.
    fn hear_at_once(self: &Arc<Self>, intake: &Intake) -> bool {
        let Ok(mut turn) = self.turn.try_lock() else { return false };
        self.hear(intake, &mut turn) != Heard::Full && intake.is_empty()
    }

    /// Hears what is left of the last turn, or else what has come since.
    fn hear(self: &Arc<Self>, intake: &Intake, turn: &mut Turn) -> Heard {
        if turn.events.is_empty() {
            let Some(Taken { dropped, since }) = intake.take(&mut turn.events) else { return Heard::Nothing };
            self.metrics.intake_dropped.inc_by(dropped);
            turn.since = since;
        }
        let (mut heard, mut count) = (Heard::All, Count::default());
        while let Some(event) = turn.events.pop_front() {
            if let Err(event) = self.handle(event, turn.since, &mut count) {
                turn.events.push_front(event);
                heard = Heard::Full;
                break;
            }
        }
        self.metrics.messages_in.inc_by(count.messages);
        self.metrics.bytes_in.inc_by(count.bytes);
        heard
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
    use crate::log::Bounds;
    use crate::message::Entry;
    use crate::metrics::Metrics;
    use crate::rules::Rules;

    #[tokio::test]
    async fn what_one_thread_could_not_hear_for_want_of_room_is_not_overtaken() {
        let (intake, metrics) = (Arc::new(Intake::default()), Arc::new(Metrics::new(1)));
        let rules = Arc::new(Rules::parse("[[channel]]\nmatch = '*'\nhistory = false\n").expect("rules"));
        let broker = Arc::new(MemoryBroker::new(intake.clone(), rules.clone()));
        let bounds = Bounds { entries: 4, bytes: usize::MAX };
        let hub = Hub::new(broker.clone(), rules, bounds, usize::MAX, 1, metrics);
        tokio::spawn(hub.clone().run(intake.clone()));
        let channel: ChannelName = "a".parse().expect("valid");
        let member = hub.join(&channel).await.expect("joined");
        let topic = member.topic();
        topic.served(0, None);
        // Its own task has heard of the subscription, and waits for more.
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
        // One thread, and nobody else has had a turn: this one has heard what there was room for.
        assert_eq!(topic.end(), 4);
        let heard = async {
            while topic.end() < 8 {
                topic.served(0, Some(topic.end()));
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), heard).await.expect("the hub's own task goes on");
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
