//! The embedded broker: the same semantics as Redis, within one process and for as long as it lives.
//! What a channel's history answers is `history.rs`.

mod history;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt, ready};
use tokio::time::Instant;

use self::history::ChannelHistory;
use super::{Broker, BrokerError, Event, From, Health, Page, Publication};
use crate::channel::ChannelName;
use crate::intake::Intake;
use crate::message::{Message, Position};
use crate::rules::Rules;

/// How long a channel's position and keyed state outlive its last message, as in Redis.
const RETAIN: Duration = Duration::from_secs(24 * 3600);
/// The most bytes in all histories together: this broker has no `maxmemory` of its own to lean on.
const MOST_BYTES: usize = 256 << 20;
/// How often what has aged is dropped.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// A broker in this process's memory.
pub struct MemoryBroker {
    state: Mutex<State>,
    intake: Arc<Intake>,
    rules: Arc<Rules>,
}

#[derive(Default)]
struct State {
    channels: HashMap<ChannelName, ChannelHistory>,
    subscribed: HashSet<ChannelName>,
    bytes: usize,
    swept: Option<Instant>,
}

impl MemoryBroker {
    /// A broker without channels that reports to `intake`.
    pub fn new(intake: Arc<Intake>, rules: Arc<Rules>) -> Self {
        Self { state: Mutex::default(), intake, rules }
    }

    fn publish_one(&self, publication: Publication) -> Result<Option<Position>, BrokerError> {
        let rule = self.rules.of(&publication.channel);
        let mut state = self.lock();
        state.sweep();
        if (publication.key.is_some() || publication.remove) && rule.keyed.is_none() {
            return Err(BrokerError::NotKeyed);
        }
        let Publication { channel, payload, key, remove, id } = publication;
        let message = match rule.history {
            None => Message::plain(payload),
            Some(bounds) => {
                if state.bytes + payload.len() > MOST_BYTES {
                    return Err(BrokerError::Refused(format!(
                        "the embedded broker holds {MOST_BYTES} bytes of history, its bound; keep less, or use Redis"
                    )));
                }
                let history = state.channels.entry(channel.clone()).or_default();
                let before = history.bytes();
                if let Some(position) = id.as_ref().and_then(|id| history.known(id)) {
                    return Ok(Some(position));
                }
                let message = history.publish(payload, key, remove, bounds, rule.keyed)?;
                if let (Some(id), Some(position)) = (id, message.position) {
                    history.remember(id, position);
                }
                let after = history.bytes();
                state.bytes = state.bytes + after - before;
                message
            }
        };
        let position = message.position;
        if state.subscribed.contains(&channel) {
            self.intake.add(Event::Arrived(channel, message));
        }
        Ok(position)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is whole after every line that holds it: a panic elsewhere does not spoil it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn sweep(&mut self) {
        if self.swept.is_some_and(|swept| swept.elapsed() < SWEEP_EVERY) {
            return;
        }
        self.swept = Some(Instant::now());
        self.channels.retain(|_, history| history.idle() < RETAIN);
        self.channels.values_mut().for_each(ChannelHistory::drop_aged);
        self.bytes = self.channels.values().map(ChannelHistory::bytes).sum();
    }
}

impl Broker for MemoryBroker {
    fn publish(&self, batch: Vec<Publication>) -> BoxFuture<'_, Vec<Result<Option<Position>, BrokerError>>> {
        async move {
            // As Redis would: who publishes faster than this instance relays has to wait.
            self.intake.room().await;
            let results = batch.into_iter().map(|publication| self.publish_one(publication)).collect();
            self.intake.deliver();
            results
        }
        .boxed()
    }

    fn subscribe(&self, channel: &ChannelName) {
        let mut state = self.lock();
        state.subscribed.insert(channel.clone());
        self.intake.push(Event::Subscribed(channel.clone()));
    }

    fn unsubscribe(&self, channel: &ChannelName) {
        self.lock().subscribed.remove(channel);
    }

    fn read<'a>(
        &'a self,
        channel: &'a ChannelName,
        from: From,
        limit: usize,
    ) -> BoxFuture<'a, Result<Option<Page>, BrokerError>> {
        let rule = self.rules.of(channel);
        let page = rule.history.map(|bounds| {
            let mut state = self.lock();
            let history = state.channels.entry(channel.clone()).or_default();
            history.bound(bounds);
            history.read(from, limit, rule.keyed.is_some())
        });
        ready(Ok(page)).boxed()
    }

    fn health(&self) -> Health {
        Health::Up
    }
}
