//! A broker that loses, delays and cuts what it says as the script wants, and the truth that it keeps.

use super::*;

/// Where a subscriber stands, as far as it was told. `exact`: the next message must follow right behind.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Held {
    pub(super) position: Position,
    pub(super) exact: bool,
}

/// One channel as the model knows it: everything that was ever published.
pub(super) struct Truth {
    /// Per epoch, in order: the payloads, from offset 1 on, and how many of them the history has dropped.
    pub(super) epochs: BTreeMap<u64, (Vec<String>, usize)>,
    pub(super) wanted: bool,
    /// A message was lost without a word: the offsets must show it before the epoch ends.
    pub(super) silent_loss: bool,
}

impl Truth {
    pub(super) fn tail(&self) -> Position {
        let (&epoch, (payloads, _)) = self.epochs.last_key_value().unwrap();
        Position::new(epoch, payloads.len() as u64)
    }

    pub(super) fn message(&self, offset: u64) -> Message {
        let (&epoch, (payloads, _)) = self.epochs.last_key_value().unwrap();
        let payload = payloads[offset as usize - 1].clone();
        Message { position: Some(Position::new(epoch, offset)), stamp: offset + 1, ..Message::plain(payload) }
    }

    pub(super) fn held(&self, offset: u64) -> Tail {
        let epoch = self.tail().epoch;
        Tail { position: Position::new(epoch, offset), stamp: if offset == 0 { 0 } else { offset + 1 } }
    }

    /// What a history answers.
    pub(super) fn read(&self, from: ReadFrom, limit: usize) -> Page {
        let tail = self.tail();
        let dropped = self.epochs.last_key_value().unwrap().1.1 as u64;
        let mut gap = None;
        let after = match from {
            ReadFrom::Tail | ReadFrom::Keys => tail.offset,
            ReadFrom::Oldest => dropped,
            ReadFrom::Last(count) => dropped.max(tail.offset.saturating_sub(count.min(limit) as u64)),
            ReadFrom::After(position)
            | ReadFrom::AfterIfKept(position)
            | ReadFrom::AfterDelivered(Tail { position, .. }) => {
                let reason = if position.epoch != tail.epoch || position.offset > tail.offset {
                    Some(GapReason::EpochChanged)
                } else {
                    (position.offset < dropped).then_some(GapReason::HistoryTrimmed)
                };
                gap = reason.map(|reason| Gap { resumes_after: Position::new(tail.epoch, dropped), reason });
                if gap.is_some() { dropped } else { position.offset }
            }
        };
        let through = tail.offset.min(after + limit as u64);
        let messages = (after + 1..=through).map(|offset| Arc::new(self.message(offset))).collect();
        Page { gap, messages, through: self.held(through), tail: self.held(tail.offset) }
    }
}

/// A broker that does as it is told.
pub(super) struct Script {
    pub(super) truths: Mutex<HashMap<ChannelName, Truth>>,
    pub(super) switches: Mutex<Switches>,
    pub(super) answers: Semaphore,
    pub(super) sink: Arc<Dispatcher>,
}

#[derive(Clone, Copy)]
pub(super) struct Switches {
    pub(super) connected: bool,
    pub(super) early: bool,
    pub(super) limit: usize,
}

impl Broker for Script {
    fn publish(&self, _: Vec<Publication>) -> BoxFuture<'_, Vec<Result<Option<Position>, BrokerError>>> {
        async { Vec::new() }.boxed()
    }

    fn subscribe(&self, channel: &ChannelName, _: RequestSize) -> Result<(), BrokerError> {
        self.truths.lock().unwrap().get_mut(channel).unwrap().wanted = true;
        if self.switches.lock().unwrap().connected {
            self.sink.push(Event::Subscribed(channel.clone()));
        }
        Ok(())
    }

    fn unsubscribe(&self, channel: &ChannelName) {
        self.truths.lock().unwrap().get_mut(channel).unwrap().wanted = false;
    }

    fn read<'a>(
        &'a self,
        channel: &'a ChannelName,
        from: ReadFrom,
        _: usize,
    ) -> BoxFuture<'a, Result<Option<Page>, BrokerError>> {
        let answer = move |limit| self.truths.lock().unwrap()[channel].read(from, limit);
        async move {
            let Switches { early, limit, .. } = *self.switches.lock().unwrap();
            let held = early.then(|| answer(limit));
            self.answers.acquire().await.unwrap().forget();
            Ok(Some(held.unwrap_or_else(|| answer(limit))))
        }
        .boxed()
    }

    fn health(&self) -> Health {
        Health::Up
    }
}
