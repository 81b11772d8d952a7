//! Gathers what is published at about the same time into one round trip. While one batch is under way the next collects
//! itself, so nothing waits when there is nothing to wait for, and the more load, the larger the batches.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, oneshot};

use super::commands::Commands;
use crate::broker::{BrokerError, Publication};
use crate::message::Position;

/// The most messages, and about the most bytes, of one round trip.
const BATCH_MESSAGES: usize = 512;
const BATCH_BYTES: usize = 1 << 20;
/// The most messages that wait; more are refused.
const MOST_WAITING: usize = 65_536;

type Outcome = Result<Option<Position>, BrokerError>;

/// Publications that wait for the next round trip, each with whoever waits for it.
#[derive(Default)]
pub(super) struct Gather {
    waiting: Mutex<Vec<(Publication, oneshot::Sender<Outcome>)>>,
    arrived: Notify,
}

impl Gather {
    /// Publishes one message together with others.
    pub(super) async fn publish(&self, publication: Publication) -> Outcome {
        let (sender, outcome) = oneshot::channel();
        let others = {
            let mut waiting = self.lock();
            if waiting.len() >= MOST_WAITING {
                return Err(BrokerError::Unavailable("too many messages wait to be published".into()));
            }
            waiting.push((publication, sender));
            waiting.len() - 1
        };
        // Whoever finds the list empty has to ring; the others are seen with it.
        if others == 0 {
            self.arrived.notify_one();
        }
        outcome.await.unwrap_or_else(|_| Err(BrokerError::Unavailable("this instance is stopping".into())))
    }

    /// Sends batch after batch, for as long as the process lives.
    pub(super) async fn run(self: Arc<Self>, commands: Arc<Commands>) {
        let mut batch = Vec::new();
        let mut senders = Vec::new();
        loop {
            self.take(&mut batch, &mut senders);
            if batch.is_empty() {
                self.arrived.notified().await;
                continue;
            }
            let outcomes = commands.publish(&batch).await;
            for (sender, outcome) in senders.drain(..).zip(outcomes) {
                // Who has gone meanwhile does not want to know.
                let _ = sender.send(outcome);
            }
            batch.clear();
        }
    }

    /// Takes a batch of what waits, in its order, less what nobody waits for any more.
    fn take(&self, batch: &mut Vec<Publication>, senders: &mut Vec<oneshot::Sender<Outcome>>) {
        let mut waiting = self.lock();
        let mut bytes = 0;
        let fits = |(publication, _): &&(Publication, _)| {
            bytes += publication.payload.len();
            bytes <= BATCH_BYTES
        };
        let count = waiting.iter().take(BATCH_MESSAGES).take_while(fits).count().max(1).min(waiting.len());
        for (publication, sender) in waiting.drain(..count).filter(|(_, sender)| !sender.is_closed()) {
            batch.push(publication);
            senders.push(sender);
        }
        if batch.is_empty() && !waiting.is_empty() {
            self.arrived.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(Publication, oneshot::Sender<Outcome>)>> {
        // The list is whole after every line that holds it: a panic elsewhere does not spoil it.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
