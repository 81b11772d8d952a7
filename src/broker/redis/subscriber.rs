//! The supervisor of the connection that hears messages: connects without end, subscribes what is wanted, and trusts the
//! connection only as long as a canary sent through Redis comes back on it.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use redis::RedisError;
use tokio::sync::Notify;
use tokio::time::{Instant, MissedTickBehavior};

use super::commands::Commands;
use super::connection::Address;
use super::decoder::SubscriptionDecoder;
use super::line::{Line, LineError};
use super::position_marker::{RUN_PREFIX, SINGLE_PREFIX};
use crate::backoff::Backoff;
use crate::broker::Health;
use crate::channel::ChannelName;
use crate::intake::Intake;
use crate::metrics::Metrics;

/// How often the canary flies.
const BEAT: Duration = Duration::from_secs(1);
/// After so many canaries in a row that did not come back the connection is taken for deaf: long enough for a slow command
/// of somebody else. Counted, not timed, so that a stall of this process itself proves nothing.
const DEAF_AFTER: u32 = 4;
/// A connection that lived so long was a good one: the next attempt after it comes at once.
const GOOD_AFTER: Duration = Duration::from_secs(4);
/// Why there is no connection at first.
const NOT_YET: &str = "not connected yet";
/// How many channels one SUBSCRIBE names.
const CHUNK: usize = 500;

/// What is to be heard, and whether it is.
pub(super) struct Subscriber {
    wanted: Mutex<Wanted>,
    changed: Notify,
    health: Mutex<Health>,
    /// The same in short, for those who ask at every publish.
    is_up: AtomicBool,
    intake: Arc<Intake>,
    metrics: Arc<Metrics>,
    canary: String,
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error(transparent)]
    Line(#[from] LineError),
    #[error("a canary could not be sent: {0}")]
    Canary(#[from] RedisError),
    #[error("the connection is deaf: messages sent through Redis do not come back")]
    Deaf,
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
            health: Mutex::new(Health::Down(NOT_YET.into())),
            is_up: AtomicBool::new(false),
            intake,
            metrics,
            canary: format!("livebridge:canary:{instance}"),
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
        if self.is_up.load(Ordering::Acquire) { Health::Up } else { lock(&self.health).clone() }
    }

    /// Keeps a connection for as long as the process lives.
    pub(super) async fn supervise(self: Arc<Self>, address: Address, commands: Arc<Commands>) {
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));
        loop {
            let began = Instant::now();
            self.set_down(&self.listen(&address, &commands).await.to_string());
            // Publishing shares the fate: a half-dead Redis must not take what it will lose.
            commands.disconnect().await;
            if began.elapsed() > GOOD_AFTER {
                backoff.reset();
            }
            tokio::time::sleep(backoff.next_delay()).await;
        }
    }

    /// One connection's life; returns why it ended.
    async fn listen(&self, address: &Address, commands: &Commands) -> Ended {
        let line = match Line::open(address).await {
            Ok(line) => line,
            Err(error) => return error.into(),
        };
        let unanswered = AtomicU32::new(0);
        tokio::select! {
            ended = self.hear(line, &unanswered) => ended.into(),
            ended = self.send_canaries(commands, &unanswered) => ended,
        }
    }

    /// Subscribes what is wanted and hands over what is heard, until the connection breaks.
    async fn hear(&self, mut line: Line, unanswered: &AtomicU32) -> LineError {
        line.send(&["SUBSCRIBE", &self.canary]);
        let all: Vec<_> = {
            let mut wanted = self.wanted();
            wanted.pending.clear();
            wanted.channels.iter().cloned().collect()
        };
        send(&mut line, &all, true);
        let mut decoder = SubscriptionDecoder::default();
        loop {
            let has_room = self.intake.has_room();
            tokio::select! {
                // With no room for more, Redis holds what follows, as much as it is configured to.
                () = self.intake.room(), if !has_room => {}
                () = self.changed.notified() => self.send_pending(&mut line),
                exchanged = line.exchange(), if has_room => {
                    let heard = exchanged.and_then(|()| {
                        let wanted = self.wanted();
                        // What a refusal concerned would never be heard.
                        line.frames(|frame| {
                            decoder.push(&frame.accepted()?, &wanted.channels, &self.canary);
                            Ok(())
                        })
                    });
                    let (events, canary) = decoder.take_events();
                    if canary {
                        unanswered.store(0, Ordering::Relaxed);
                        self.set_up(all.len());
                    }
                    self.intake.push_all(events);
                    if let Err(error) = heard {
                        return error;
                    }
                    // The hub works on the same thread.
                    tokio::task::yield_now().await;
                }
            }
        }
    }

    /// Sends canaries, until one can't be sent or too many did not come back.
    async fn send_canaries(&self, commands: &Commands, unanswered: &AtomicU32) -> Ended {
        let mut beats = tokio::time::interval(BEAT);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            beats.tick().await;
            if unanswered.fetch_add(1, Ordering::Relaxed) >= DEAF_AFTER {
                return Ended::Deaf;
            }
            if let Err(error) = commands.publish_plain(&self.canary, "beat").await {
                return error.into();
            }
        }
    }

    fn send_pending(&self, line: &mut Line) {
        let (wanted, unwanted): (Vec<_>, Vec<_>) = {
            let mut state = self.wanted();
            let pending: HashSet<_> = state.pending.drain(..).collect();
            pending.into_iter().partition(|channel| state.channels.contains(channel))
        };
        send(line, &unwanted, false);
        send(line, &wanted, true);
    }

    fn set_up(&self, channels: usize) {
        let before = self.set_health(Health::Up);
        if let Health::Down(why) = before {
            if why != NOT_YET {
                self.metrics.broker_reconnects.inc();
            }
            tracing::info!(channels, "Redis answers: publishing and receiving work");
        }
    }

    fn set_down(&self, why: &str) {
        let before = self.set_health(Health::Down(why.to_owned()));
        if before == Health::Up {
            self.metrics.broker_disconnects.inc();
        }
        // One line for each outage, however many attempts it takes.
        if before == Health::Up || before == Health::Down(NOT_YET.into()) {
            tracing::warn!(
                error = why,
                "Redis is unavailable: clients stay connected, publishing is refused, trying again"
            );
        }
    }

    fn set_health(&self, now: Health) -> Health {
        let mut health = lock(&self.health);
        self.is_up.store(now == Health::Up, Ordering::Release);
        std::mem::replace(&mut *health, now)
    }

    fn wanted(&self) -> MutexGuard<'_, Wanted> {
        lock(&self.wanted)
    }
}

/// Sends a subscription or its end for channels and the companions on which their positions come.
fn send(line: &mut Line, channels: &[ChannelName], wanted: bool) {
    for chunk in channels.chunks(CHUNK) {
        let mut command = vec![if wanted { "SUBSCRIBE" } else { "UNSUBSCRIBE" }.to_owned()];
        // Companions first: when the channel itself is confirmed, its markers are heard already.
        let names = |channel: &ChannelName| {
            [format!("{SINGLE_PREFIX}{channel}"), format!("{RUN_PREFIX}{channel}"), channel.to_string()]
        };
        command.extend(chunk.iter().flat_map(names));
        line.send(&command);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is behind these locks is whole after every line that holds one: a panic elsewhere does not spoil it.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
