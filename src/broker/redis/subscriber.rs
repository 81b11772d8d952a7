//! The connection that hears messages, and its supervisor: connects without end, subscribes what is wanted, and
//! trusts the connection only as long as a canary sent through Redis comes back on it.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use redis::aio::MultiplexedConnection;
use redis::{PushInfo, PushKind, RedisResult, Value};
use tokio::sync::Notify;
use tokio::time::{Instant, MissedTickBehavior};

use super::commands::Commands;
use super::connection::Address;
use super::note::{self, Note};
use crate::backoff::Backoff;
use crate::broker::{Event, Health};
use crate::channel::ChannelName;
use crate::intake::Intake;
use crate::message::Message;
use crate::metrics::Metrics;

/// How often the canary flies.
const BEAT: Duration = Duration::from_secs(1);
/// After so many canaries in a row that did not come back the connection is taken for deaf: long enough for a slow command
/// of somebody else. Counted, not timed, so that a stall of this process itself proves nothing.
const DEAF_AFTER: u32 = 4;
/// A connection that lived so long was a good one: the next attempt after it comes at once.
const GOOD_AFTER: Duration = Duration::from_secs(4);
/// How many channels one SUBSCRIBE names.
const CHUNK: usize = 500;

/// What is to be heard, and whether it is.
pub(super) struct Subscriber {
    wanted: Mutex<Wanted>,
    changed: Notify,
    health: Mutex<Health>,
    intake: Arc<Intake>,
    metrics: Arc<Metrics>,
    canary: String,
    /// Rung when a canary came back.
    heard: Notify,
}

#[derive(Default)]
struct Wanted {
    channels: HashSet<ChannelName>,
    /// Channels whose being wanted changed since they were last sent to Redis.
    pending: Vec<ChannelName>,
}

impl Subscriber {
    /// A subscriber that wants nothing yet. `instance` must differ between instances.
    pub(super) fn new(instance: &str, intake: Arc<Intake>, metrics: Arc<Metrics>) -> Self {
        Self {
            wanted: Mutex::default(),
            changed: Notify::new(),
            health: Mutex::new(Health::Down("not connected yet".into())),
            intake,
            metrics,
            canary: format!("livebridge:canary:{instance}"),
            heard: Notify::new(),
        }
    }

    pub(super) fn want(&self, channel: &ChannelName, wanted: bool) {
        let mut state = self.wanted();
        if wanted {
            state.channels.insert(channel.clone());
        } else {
            state.channels.remove(channel);
        }
        state.pending.push(channel.clone());
        drop(state);
        self.changed.notify_one();
    }

    pub(super) fn health(&self) -> Health {
        lock(&self.health).clone()
    }

    /// Keeps a connection for as long as the process lives.
    pub(super) async fn supervise(self: Arc<Self>, address: Address, commands: Arc<Commands>) {
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));
        loop {
            let began = Instant::now();
            let why = match self.clone().listen(&address, &commands).await {
                Ok(why) => why.to_owned(),
                Err(error) => error.to_string(),
            };
            self.set_down(&why);
            // Publishing shares the fate: a half-dead Redis must not take what it will lose.
            commands.disconnect().await;
            if began.elapsed() > GOOD_AFTER {
                backoff.reset();
            }
            tokio::time::sleep(backoff.next_delay()).await;
        }
    }

    /// One connection's life; returns why it ended.
    async fn listen(self: Arc<Self>, address: &Address, commands: &Commands) -> RedisResult<&'static str> {
        let ended = Arc::new(Notify::new());
        let ear = Ear { subscriber: self.clone(), note: Mutex::new(None), ended: ended.clone() };
        let mut connection = address.subscriptions(move |push| ear.hear(push)).await?;
        connection.subscribe(&self.canary).await?;
        self.wanted().pending.clear();
        let all: Vec<_> = self.wanted().channels.iter().cloned().collect();
        send(&mut connection, &all, true).await?;
        let mut beats = tokio::time::interval(BEAT);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut unanswered = 0;
        // What can happen: the connection ends; a canary is due, or overdue; one came back, which alone proves that
        // the connection hears; the wanted channels change.
        loop {
            tokio::select! {
                () = ended.notified() => return Ok("the connection was closed"),
                _ = beats.tick() => {
                    if unanswered >= DEAF_AFTER {
                        return Ok("the connection is deaf: messages sent through Redis do not come back");
                    }
                    unanswered += 1;
                    commands.publish_plain(&self.canary, "beat").await?;
                }
                () = self.heard.notified() => {
                    unanswered = 0;
                    self.set_up(all.len());
                }
                () = self.changed.notified() => self.send_pending(&mut connection).await?,
            }
        }
    }

    async fn send_pending(&self, connection: &mut MultiplexedConnection) -> RedisResult<()> {
        let (wanted, unwanted): (Vec<_>, Vec<_>) = {
            let mut state = self.wanted();
            let pending: HashSet<_> = state.pending.drain(..).collect();
            pending.into_iter().partition(|channel| state.channels.contains(channel))
        };
        send(connection, &unwanted, false).await?;
        send(connection, &wanted, true).await
    }

    fn set_up(&self, channels: usize) {
        let before = std::mem::replace(&mut *lock(&self.health), Health::Up);
        if let Health::Down(_) = before {
            tracing::info!(channels, "Redis answers: publishing and receiving work");
        }
    }

    fn set_down(&self, why: &str) {
        let before = std::mem::replace(&mut *lock(&self.health), Health::Down(why.to_owned()));
        if before == Health::Up {
            self.metrics.broker_disconnects.inc();
        }
        // One line for each outage, however many attempts it takes.
        if before == Health::Up || before == Health::Down("not connected yet".into()) {
            tracing::warn!(why, "Redis is unavailable: clients stay connected, publishing is refused, trying again");
        }
    }

    fn wanted(&self) -> MutexGuard<'_, Wanted> {
        lock(&self.wanted)
    }
}

/// Sends a subscription or its end for channels and their companions, and waits for the confirmations.
async fn send(connection: &mut MultiplexedConnection, channels: &[ChannelName], wanted: bool) -> RedisResult<()> {
    for chunk in channels.chunks(CHUNK) {
        // The companion first: when the channel itself is confirmed, its notes are heard already.
        let names: Vec<_> =
            chunk.iter().flat_map(|channel| [format!("{}{channel}", note::PREFIX), channel.to_string()]).collect();
        if wanted { connection.subscribe(&names).await? } else { connection.unsubscribe(&names).await? }
    }
    Ok(())
}

/// What hears the pushes of one connection, in their order, on the connection's own task.
struct Ear {
    subscriber: Arc<Subscriber>,
    /// A note whose payload is due next.
    note: Mutex<Option<(ChannelName, Note)>>,
    ended: Arc<Notify>,
}

impl Ear {
    #[expect(clippy::unnecessary_wraps, reason = "the signature is redis-rs'")]
    fn hear(&self, push: PushInfo) -> Result<(), redis::aio::SendError> {
        match push.kind {
            PushKind::Message => self.hear_message(push.data),
            PushKind::Subscribe => {
                if let Some(Value::BulkString(name)) = push.data.first()
                    && let Some(channel) = self.channel(name)
                {
                    self.subscriber.intake.push(Event::Subscribed(channel));
                }
            }
            PushKind::Disconnection => self.ended.notify_one(),
            _ => {}
        }
        Ok(())
    }

    fn hear_message(&self, data: Vec<Value>) {
        let Ok([Value::BulkString(name), Value::BulkString(payload)]) = <[Value; 2]>::try_from(data) else { return };
        if let Some(channel) = name.strip_prefix(note::PREFIX.as_bytes()) {
            if let (Some(channel), Some(note)) = (self.channel(channel), Note::parse(&payload)) {
                let unmatched = lock(&self.note).replace((channel, note));
                self.report_missed(unmatched);
            }
        } else if let Some(channel) = self.channel(&name) {
            let payload = Bytes::from(payload);
            let message = match lock(&self.note).take() {
                Some((noted, note)) if noted == channel => note.into_message(payload),
                unmatched => {
                    self.report_missed(unmatched);
                    Message::plain(payload)
                }
            };
            self.subscriber.intake.push(Event::Arrived(channel, message));
        } else if name == self.subscriber.canary.as_bytes() {
            self.subscriber.heard.notify_one();
        }
    }

    fn report_missed(&self, unmatched: Option<(ChannelName, Note)>) {
        if let Some((channel, _)) = unmatched {
            self.subscriber.intake.push(Event::Missed(channel));
        }
    }

    fn channel(&self, name: &[u8]) -> Option<ChannelName> {
        self.subscriber.wanted().channels.get(std::str::from_utf8(name).ok()?).cloned()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is behind these locks is whole after every line that holds one: a panic elsewhere does not spoil it.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
