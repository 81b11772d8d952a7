//! A thread's pipeline for publishing. While one round trip is in flight, new messages queue for
//! the next one; an idle pipeline sends immediately. The batches therefore grow with the load. Each
//! thread has its own pipeline, so that neither a publish nor its result wakes another thread.
//! `calls.rs` builds the commands of a round trip.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, oneshot};
use tokio::time::{sleep, timeout};

use super::calls::{Answer, Call, group};
use super::connection::Connection;
use super::endpoint::{ANSWER_TIMEOUT, CONNECT_TIMEOUT};
use super::error::{ClientError, Failure, UNREPLICATED};
use super::library::is_missing;
use super::node::Node;
use super::resp::Frame;
use crate::broker::{BrokerError, Publication};
use crate::message::Position;
use crate::observability::metrics::latency::Moment;
use crate::rules::Rules;

/// Soft limits on the messages and bytes of one round trip.
const BATCH_MESSAGES: usize = 512;
const BATCH_BYTES: usize = 1 << 20;
/// A soft limit on the bytes of one caller in a round trip. The rest of a larger batch waits behind
/// other callers.
const SHARE_BYTES: usize = 256 << 10;
/// The maximum number of waiting messages. Further ones are refused.
const MOST_WAITING: usize = 65_536;
/// The time limit for a round trip, including connecting. Messages that have waited as long for
/// their round trip to start are refused.
const ROUND_TIMEOUT: Duration = CONNECT_TIMEOUT.saturating_add(ANSWER_TIMEOUT);
/// A connection that was idle for this long is closed, because a device in between may have dropped
/// it.
const IDLE: Duration = Duration::from_secs(30);

/// How long Redis waits for replicas, in milliseconds.
const REPLICAS_MILLISECONDS: &str = "1000";

const LATE: &str = "no answer in time";

/// What became of a message.
pub(super) type Outcome = Result<Option<Position>, Failure>;

/// The messages that wait for the next round trip.
#[derive(Default)]
pub(super) struct Pipeline {
    waiting: Mutex<Waiting>,
    arrived: Notify,
}

#[derive(Default)]
struct Waiting {
    callers: VecDeque<Caller>,
    messages: usize,
}

/// Messages that were published together, and the caller that waits for the outcomes.
struct Caller {
    batch: Vec<Publication>,
    /// The outcomes of messages from earlier round trips.
    outcomes: Vec<Outcome>,
    /// How many of the next messages the current round trip publishes.
    taken: usize,
    /// When it started to wait for a round trip.
    since: Instant,
    sender: oneshot::Sender<Vec<Outcome>>,
}

impl Pipeline {
    /// Publishes messages, and returns one outcome for each, in their order.
    pub(super) async fn publish(&self, batch: Vec<Publication>) -> Vec<Outcome> {
        let count = batch.len();
        let (sender, outcomes) = oneshot::channel();
        {
            let mut waiting = self.lock();
            if waiting.messages >= MOST_WAITING {
                return unavailable(count, "too many messages wait to be published");
            }
            waiting.messages += count;
            let outcomes = Vec::with_capacity(count);
            waiting.callers.push_back(Caller { batch, outcomes, taken: 0, since: Instant::now(), sender });
        }
        self.arrived.notify_one();
        outcomes.await.unwrap_or_else(|_| unavailable(count, "the connection to Redis has been closed"))
    }

    /// Sends batch after batch, as long as the thread runs.
    pub(super) async fn run(self: Arc<Self>, node: Arc<Node>, rules: Arc<Rules>, replicas: u32) {
        let mut worker = Worker { node, rules, replicas, connection: None };
        loop {
            let callers = self.take();
            if callers.is_empty() {
                worker.idle_until(self.arrived.notified()).await;
                continue;
            }
            let batch: Vec<_> = callers.iter().flat_map(Caller::in_flight).collect();
            let outcomes = timeout(ROUND_TIMEOUT, worker.publish(&batch)).await;
            let mut outcomes = outcomes.unwrap_or_else(|_| unavailable(batch.len(), LATE)).into_iter();
            for caller in callers {
                if let Some(unfinished) = caller.answered(&mut outcomes) {
                    self.lock().requeue_last(unfinished);
                }
            }
        }
    }

    /// Takes a batch from the queue in order, without messages whose callers have gone. Takes only
    /// a share of a large batch.
    fn take(&self) -> Vec<Caller> {
        let now = Instant::now();
        let mut waiting = self.lock();
        let mut taken = Vec::with_capacity(waiting.callers.len().min(BATCH_MESSAGES));
        let (mut messages, mut bytes) = (0, 0);
        while messages < BATCH_MESSAGES
            && bytes < BATCH_BYTES
            && let Some(mut caller) = waiting.callers.pop_front()
        {
            waiting.messages -= caller.rest().len();
            if now.duration_since(caller.since) > ROUND_TIMEOUT {
                caller.give_up(&BrokerError::Unavailable(LATE.into()).into());
            } else if !caller.sender.is_closed() {
                bytes += caller.take_share();
                messages += caller.taken;
                taken.push(caller);
            }
        }
        // Frees the memory that a burst used; does nothing if the queue is small.
        waiting.callers.shrink_to(BATCH_MESSAGES);
        taken
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // Every statement leaves the queue consistent, so a poisoned lock is safe to use.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    /// Queues a caller with unpublished messages again, behind the others.
    fn requeue_last(&mut self, caller: Caller) {
        self.messages += caller.rest().len();
        self.callers.push_back(caller);
    }
}

impl Caller {
    /// The messages that are not published yet.
    fn rest(&self) -> &[Publication] {
        &self.batch[self.outcomes.len()..]
    }

    /// The messages of the current round trip.
    fn in_flight(&self) -> &[Publication] {
        &self.rest()[..self.taken]
    }

    /// Decides how many of its messages the next round trip publishes. Returns their bytes.
    fn take_share(&mut self) -> usize {
        let (mut taken, mut bytes) = (0, 0);
        for publication in self.rest() {
            if bytes >= SHARE_BYTES {
                break;
            }
            bytes += publication.payload.len();
            taken += 1;
        }
        self.taken = taken;
        bytes
    }

    /// Takes the outcomes of its messages in a round trip. Sends all outcomes if none is missing;
    /// otherwise returns itself.
    fn answered(mut self, outcomes: &mut impl Iterator<Item = Outcome>) -> Option<Self> {
        self.outcomes.extend(outcomes.take(self.taken));
        if self.rest().is_empty() {
            // The receiver is gone if the caller has disconnected.
            let _ = self.sender.send(self.outcomes);
            return None;
        }
        // If Redis may not have stored a message, do not publish those after it.
        let failed = self.outcomes.iter().rev().take(self.taken).find_map(|outcome| match outcome {
            Err(failure) if failure.is_temporary() => Some(failure.clone()),
            _ => None,
        });
        if let Some(failure) = failed {
            self.give_up(&failure);
            return None;
        }
        self.since = Instant::now();
        Some(self)
    }

    /// Answers that the rest was not published.
    fn give_up(mut self, failure: &Failure) {
        self.outcomes.resize(self.batch.len(), Err(failure.clone()));
        let _ = self.sender.send(self.outcomes);
    }
}

/// The connection of a pipeline.
struct Worker {
    node: Arc<Node>,
    rules: Arc<Rules>,
    /// How many replicas must have a message before its publisher is answered.
    replicas: u32,
    connection: Option<Connection>,
}

impl Worker {
    /// Waits for new messages, and notices when the connection ends in the meantime.
    async fn idle_until(&mut self, arrived: impl Future<Output = ()>) {
        let Some(connection) = &mut self.connection else { return arrived.await };
        tokio::select! {
            biased;
            () = arrived => return,
            // No reply is pending, so this returns only when the connection ends.
            _ = connection.read_or_write() => {}
            () = sleep(IDLE) => {}
        }
        self.connection = None;
    }

    /// Publishes a batch in one round trip.
    async fn publish(&mut self, batch: &[&Publication]) -> Vec<Outcome> {
        let mut answers = match self.send(batch).await {
            Ok(answers) => answers,
            Err(error) => return vec![Err(error.into()); batch.len()],
        };
        // After a restart or a flush of Redis, the library is missing, and calls of it have had no
        // effect.
        let missing = |answer: &Answer| answer.as_ref().is_err_and(|said| is_missing(said));
        let again: Vec<_> = (0..batch.len()).filter(|&index| missing(&answers[index])).collect();
        if !again.is_empty() {
            if let Some(connection) = &self.connection {
                self.node.give_up(connection.generation);
            }
            let publications: Vec<_> = again.iter().map(|&index| batch[index]).collect();
            match self.send(&publications).await {
                Ok(second) => again.into_iter().zip(second).for_each(|(index, answer)| answers[index] = answer),
                Err(error) => return vec![Err(error.into()); batch.len()],
            }
        }
        let outcomes: Vec<Outcome> =
            answers.into_iter().map(|answer| answer.map_err(|said| Failure::of_reply(&said))).collect();
        // This server may no longer be the master.
        if outcomes.iter().any(|outcome| matches!(outcome, Err(Failure::Broker(BrokerError::Unavailable(_))))) {
            self.connection = None;
        }
        outcomes
    }

    /// Sends the batch and returns the replies; an error if there are none.
    async fn send(&mut self, batch: &[&Publication]) -> Result<Vec<Answer>, BrokerError> {
        let Self { node, rules, replicas, connection: slot } = self;
        let mut connection = match slot.take().filter(|connection| connection.generation == node.generation()) {
            Some(connection) => connection,
            None => node.connect_prepared().await.map_err(|error| BrokerError::from(&error))?,
        };
        let calls = group(batch, rules);
        calls.iter().for_each(|call| call.write(batch, node.library(), connection.outgoing()));
        if *replicas > 0 {
            connection.send(&["WAIT", &replicas.to_string(), REPLICAS_MILLISECONDS]);
        }
        let asked = Moment::now();
        let answers = timeout(ANSWER_TIMEOUT, answers(&mut connection, &calls, batch.len(), *replicas)).await;
        let answers = answers.unwrap_or_else(|_| Err(ClientError::timed_out()));
        let answers = answers.map_err(|error| BrokerError::from(&error))?;
        node.metrics.latency.redis_round_trip.observe(asked);
        // Reuse the connection only if no reply is pending on it.
        *slot = Some(connection);
        Ok(answers)
    }
}

/// Sends the queued calls and waits for their replies, and for that to `WAIT` if there are
/// `replicas`. Returns one for each of `count` messages.
async fn answers(
    connection: &mut Connection,
    calls: &[Call],
    count: usize,
    replicas: u32,
) -> Result<Vec<Answer>, ClientError> {
    let mut answers = vec![Ok(None); count];
    let replies = calls.len() + usize::from(replicas > 0);
    let mut answered = 0;
    while answered < replies {
        connection.read_or_write().await?;
        connection.frames(|frame| {
            match (calls.get(answered), &frame) {
                (Some(call), _) => call.answer(&frame, &mut answers),
                (None, Frame::Number(number)) if *number >= replicas.into() => {}
                (None, Frame::Refused(why)) => fail_all(&mut answers, &String::from_utf8_lossy(why)),
                (None, _) => fail_all(&mut answers, UNREPLICATED),
            }
            answered += 1;
            Ok(())
        })?;
    }
    Ok(answers)
}

/// Replaces the answers to messages that Redis has stored.
fn fail_all(answers: &mut [Answer], why: &str) {
    answers.iter_mut().filter(|answer| answer.is_ok()).for_each(|answer| *answer = Err(why.to_owned()));
}

fn unavailable(count: usize, why: &str) -> Vec<Outcome> {
    vec![Err(Failure::Broker(BrokerError::Unavailable(why.into()))); count]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(channel: &str, messages: usize, bytes: usize) -> Vec<Publication> {
        let channel: crate::channel::ChannelName = channel.parse().expect("valid");
        let payload = bytes::Bytes::from(vec![b'x'; bytes]);
        let publication =
            || Publication { channel: channel.clone(), payload: payload.clone(), key: None, remove: false, id: None };
        (0..messages).map(|_| publication()).collect()
    }

    /// Runs a round trip in which every message gets `outcome`. Returns its channels, each with the
    /// number of its messages.
    fn round(pipeline: &Pipeline, outcome: &Outcome) -> Vec<(String, usize)> {
        let callers = pipeline.take();
        let published =
            callers.iter().map(|caller| (caller.in_flight()[0].channel.to_string(), caller.taken)).collect();
        let mut outcomes = std::iter::repeat(outcome.clone());
        for unfinished in callers.into_iter().filter_map(|caller| caller.answered(&mut outcomes)) {
            pipeline.lock().requeue_last(unfinished);
        }
        published
    }

    #[tokio::test]
    async fn a_large_batch_is_split_by_bytes_and_the_others_go_between() {
        let pipeline = Pipeline::default();
        let mut large = std::pin::pin!(pipeline.publish(batch("large", 5, 1 << 20)));
        let mut small = std::pin::pin!(pipeline.publish(batch("small", 300, 10)));
        assert!(futures::poll!(&mut large).is_pending() && futures::poll!(&mut small).is_pending());
        assert_eq!(pipeline.lock().messages, 305);
        assert_eq!(round(&pipeline, &Ok(None)), [("large".into(), 1)]);
        assert_eq!(round(&pipeline, &Ok(None)), [("small".into(), 300), ("large".into(), 1)]);
        assert_eq!(small.await, vec![Ok(None); 300]);
        (0..3).for_each(|_| assert_eq!(round(&pipeline, &Ok(None)), [("large".into(), 1)]));
        assert_eq!(large.await, vec![Ok(None); 5]);
        assert!(pipeline.take().is_empty() && pipeline.lock().messages == 0);
    }

    #[tokio::test]
    async fn what_follows_a_message_without_an_answer_is_not_published() {
        let pipeline = Pipeline::default();
        let mut large = std::pin::pin!(pipeline.publish(batch("large", 3, 1 << 20)));
        assert!(futures::poll!(&mut large).is_pending());
        round(&pipeline, &Ok(None));
        let lost = Err(BrokerError::Unavailable("away".into()).into());
        round(&pipeline, &lost);
        assert_eq!(large.await, [Ok(None), lost.clone(), lost]);
        assert!(pipeline.take().is_empty() && pipeline.lock().messages == 0);
    }
}
