//! One client of a soak: it connects by WebSocket or as an event stream, reads for a while, leaves politely or by a reset or by
//! not reading any more, and comes back, mostly from where it was. It checks what it receives against its position. The
//! bytes are read by `feed.rs`.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::Outcome;
use crate::feed::{Event, Feed, Position};
use crate::message::Message;

/// The first channels carry much more than the others: that is where slow readers fall behind.
pub(crate) const LOUD: usize = 2;

/// One client in so many is an event stream; in so many stops reading now and then.
const EVENTS_EVERY: usize = 4;
const SLOW_EVERY: usize = 40;

/// How long a slow reader reads nothing.
const STUCK: Duration = Duration::from_secs(30);

/// How long the last messages may take.
const LAST: Duration = Duration::from_secs(15);

/// The close code of a reader that fell behind.
const FELL_BEHIND: u16 = 4001;
/// An end without a close frame: one who does not read is not waited for until it has room for that.
const CUT_OFF: u16 = 1006;

/// What all clients share.
pub(crate) struct World {
    pub(crate) ports: Vec<u16>,
    /// Per channel, the last sequence that was published and answered for.
    published: Vec<AtomicU32>,
    /// Per channel, offset minus sequence: the same for all its messages.
    shifts: Vec<AtomicI64>,
    over: watch::Sender<bool>,
    pub(crate) tally: Tally,
}

/// What was counted.
#[derive(Default)]
pub(crate) struct Tally {
    pub(crate) published: AtomicU64,
    pub(crate) delivered: AtomicU64,
    connected: AtomicU64,
    resumed: AtomicU64,
    reset: AtomicU64,
    fell_behind: AtomicU64,
    told: AtomicU64,
    failed: AtomicU64,
    lost: AtomicU64,
    doubled: AtomicU64,
    changed: AtomicU64,
    /// Clients that did not end.
    pub(crate) late: AtomicU64,
}

impl World {
    pub(crate) fn new(ports: Vec<u16>, channels: usize) -> Self {
        Self {
            ports,
            published: (0..channels).map(|_| AtomicU32::new(0)).collect(),
            shifts: (0..channels).map(|_| AtomicI64::new(i64::MIN)).collect(),
            over: watch::Sender::new(false),
            tally: Tally::default(),
        }
    }

    pub(crate) fn channels(&self) -> usize {
        self.published.len()
    }

    /// The publisher had an answer for everything up to these sequences.
    pub(crate) fn advance(&self, sequences: &[u32]) {
        self.published.iter().zip(sequences).for_each(|(last, sequence)| last.store(*sequence, Ordering::Relaxed));
    }

    /// Nothing more is published: who is connected receives the rest and goes.
    pub(crate) fn end(&self) {
        self.over.send_replace(true);
    }
}

impl Tally {
    pub(crate) fn figures(&self) -> Vec<(&'static str, f64)> {
        let number = |counter: &AtomicU64| counter.load(Ordering::Relaxed) as f64;
        vec![
            ("published", number(&self.published)),
            ("delivered", number(&self.delivered)),
            ("connects", number(&self.connected)),
            ("resumes", number(&self.resumed)),
            ("resets", number(&self.reset)),
            ("fell behind", number(&self.fell_behind)),
            ("gaps told", number(&self.told)),
            ("failed", number(&self.failed) + number(&self.late)),
            ("lost", number(&self.lost)),
            ("doubled", number(&self.doubled)),
            ("changed", number(&self.changed)),
        ]
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

async fn ended(over: &mut watch::Receiver<bool>) {
    // The sender lives as long as the world.
    over.wait_for(|over| *over).await.ok();
}

/// One client.
pub(crate) struct Life {
    world: Arc<World>,
    random: StdRng,
    channel: usize,
    events: bool,
    slow: bool,
    position: Option<Position>,
}

impl Life {
    pub(crate) fn new(number: usize, world: Arc<World>) -> Self {
        let slow = number.is_multiple_of(SLOW_EVERY);
        let channel = if slow { number / SLOW_EVERY % LOUD } else { number % world.channels() };
        let events = !slow && number.is_multiple_of(EVENTS_EVERY);
        let random = StdRng::seed_from_u64(number as u64);
        Self { world, random, channel, events, slow, position: None }
    }

    /// Comes and goes until the world ends.
    pub(crate) async fn live(mut self) {
        let mut over = self.world.over.subscribe();
        while !*over.borrow() {
            let outcome = self.visit(&mut over).await;
            if outcome.is_err() && !*over.borrow() {
                count(&self.world.tally.failed);
            }
            if self.random.random_bool(0.3) {
                self.position = None;
            }
            let away = Duration::from_millis(self.random.random_range(10..2000));
            tokio::select! {
                () = sleep(away) => {}
                () = ended(&mut over) => {}
            }
        }
    }

    /// One connection, from its request to its end.
    async fn visit(&mut self, over: &mut watch::Receiver<bool>) -> Outcome<()> {
        let port = self.world.ports[self.random.random_range(0..self.world.ports.len())];
        let mut feed = Feed::open(port, self.channel, self.events, self.position.as_ref(), self.slow).await?;
        count(&self.world.tally.connected);
        if self.position.is_some() {
            count(&self.world.tally.resumed);
        }
        let seconds = if self.slow { 0.5 } else { self.random.random_range(1.0..20.0) };
        let leaves = Instant::now() + Duration::from_secs_f64(seconds);
        loop {
            tokio::select! {
                event = feed.next() => {
                    if self.take(event?)? {
                        return Ok(());
                    }
                }
                () = sleep_until(leaves) => break,
                () = ended(over) => return self.receive_the_rest(&mut feed).await,
            }
        }
        if self.slow {
            tokio::select! {
                () = sleep(STUCK) => {}
                () = ended(over) => {}
            }
            return self.read_out(&mut feed).await;
        }
        if self.random.random_bool(0.5) {
            count(&self.world.tally.reset);
            feed.reset();
            return Ok(());
        }
        feed.say_goodbye().await?;
        self.read_out(&mut feed).await
    }

    /// Reads what is still on its way until the server closes; all of it counts.
    async fn read_out(&mut self, feed: &mut Feed) -> Outcome<()> {
        let all = async {
            while !self.take(feed.next().await?)? {}
            Ok(())
        };
        timeout(LAST, all).await.map_err(|_| "the server did not close")?
    }

    /// The world has ended: everything that was published is due.
    async fn receive_the_rest(&mut self, feed: &mut Feed) -> Outcome<()> {
        let last = self.world.published[self.channel].load(Ordering::Relaxed);
        let all = async {
            // Who came after the last message, and without a position, has nothing to receive.
            while self.missing(last) > 0 && !self.take(feed.next().await?)? {}
            Ok(())
        };
        let outcome = timeout(LAST, all).await.unwrap_or(Ok(()));
        self.world.tally.lost.fetch_add(self.missing(last), Ordering::Relaxed);
        outcome
    }

    /// How many messages are still to come, if the channel's last sequence is `last`.
    fn missing(&self, last: u32) -> u64 {
        let shift = self.world.shifts[self.channel].load(Ordering::Relaxed);
        match &self.position {
            None => 1, // not even welcomed
            Some(_) if shift == i64::MIN => 0,
            Some(position) => u64::try_from(i64::from(last) + shift - position.offset as i64).unwrap_or(0),
        }
    }

    /// Checks an event; true where it was the last.
    fn take(&mut self, event: Event) -> Outcome<bool> {
        let tally = &self.world.tally;
        match event {
            Event::Welcome(position) => {
                // Who resumes starts where it was; who does not, where the channel is.
                if self.position.as_ref().is_some_and(|held| *held != position) {
                    count(&tally.changed);
                }
                self.position = Some(position);
            }
            Event::Gap(position) => {
                count(&tally.told);
                self.position = Some(position);
            }
            Event::Message(position, payload) => self.check(position, &payload),
            Event::Closed(FELL_BEHIND | CUT_OFF) if self.slow => {
                count(&tally.fell_behind);
                return Ok(true);
            }
            Event::Closed(1000) => return Ok(true),
            Event::Closed(code) => return Err(format!("closed with {code}").into()),
            Event::Nothing => {}
        }
        Ok(false)
    }

    fn check(&mut self, position: Position, payload: &[u8]) {
        let tally = &self.world.tally;
        count(&tally.delivered);
        let Some(held) = &self.position else {
            count(&tally.changed); // a message before the welcome
            return;
        };
        if held.epoch != position.epoch {
            count(&tally.changed);
        } else if position.offset <= held.offset {
            count(&tally.doubled);
        } else {
            tally.lost.fetch_add(position.offset - held.offset - 1, Ordering::Relaxed);
        }
        match Message::parse(payload) {
            Some(message) if message.channel as usize == self.channel => {
                let shift = position.offset as i64 - i64::from(message.sequence);
                let known = self.world.shifts[self.channel].compare_exchange(
                    i64::MIN,
                    shift,
                    Ordering::Relaxed,
                    Ordering::Relaxed,
                );
                if known.is_err_and(|known| known != shift) {
                    count(&tally.changed);
                }
            }
            _ => count(&tally.changed),
        }
        self.position = Some(position);
    }
}
