//! A client of the soak test. It connects with a WebSocket or an event stream, reads for a while,
//! and leaves with a close, with a reset, or by not reading any more. Then it connects again,
//! usually from its position, and checks that what it receives follows that position.
//! `soak_stream.rs` parses the bytes.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::Outcome;
use crate::message::Message;
use crate::soak_stream::{Event, EventStream, Position};

/// The first channels carry many more messages than the others, so that slow readers fall behind
/// there.
pub(crate) const BUSY_CHANNELS: usize = 2;

/// One in this many clients uses an event stream, and one in the other number stops reading now and
/// then.
const EVENTS_EVERY: usize = 4;
const SLOW_EVERY: usize = 40;

/// How long a slow reader does not read.
const STUCK: Duration = Duration::from_secs(30);

/// Time limit for receiving the last messages.
const LAST: Duration = Duration::from_secs(15);

/// The close code for a client that fell behind.
const FELL_BEHIND: u16 = 4001;
/// Stands for an end without a close frame: the server does not wait until a client that does not
/// read has room for one.
const CUT_OFF: u16 = 1006;

/// The state that all clients share.
pub(crate) struct SoakState {
    pub(crate) ports: Vec<u16>,
    /// Per channel, the last sequence that was published and confirmed.
    published: Vec<AtomicU32>,
    /// Per channel, offset minus sequence, which is the same for all its messages.
    shifts: Vec<AtomicI64>,
    over: watch::Sender<bool>,
    pub(crate) tally: Tally,
}

/// The counts of all clients.
#[derive(Default)]
pub(crate) struct Tally {
    pub(crate) published: AtomicU64,
    pub(crate) delivered: AtomicU64,
    connected: AtomicU64,
    resumed: AtomicU64,
    reset: AtomicU64,
    fell_behind: AtomicU64,
    gaps: AtomicU64,
    failed: AtomicU64,
    lost: AtomicU64,
    doubled: AtomicU64,
    changed: AtomicU64,
    /// Clients that did not end in time.
    pub(crate) late: AtomicU64,
}

impl SoakState {
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

    /// Records that the server has confirmed all messages up to these sequences.
    pub(crate) fn advance(&self, sequences: &[u32]) {
        self.published.iter().zip(sequences).for_each(|(last, sequence)| last.store(*sequence, Ordering::Relaxed));
    }

    /// Reports the end of publishing: connected clients receive the remaining messages and leave.
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
            ("gaps reported", number(&self.gaps)),
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
    // The sender lives as long as the state of the soak.
    over.wait_for(|over| *over).await.ok();
}

/// The state of a client.
pub(crate) struct SoakClient {
    state: Arc<SoakState>,
    random: StdRng,
    channel: usize,
    events: bool,
    slow: bool,
    position: Option<Position>,
}

impl SoakClient {
    pub(crate) fn new(number: usize, state: Arc<SoakState>) -> Self {
        let slow = number.is_multiple_of(SLOW_EVERY);
        let channel = if slow { number / SLOW_EVERY % BUSY_CHANNELS } else { number % state.channels() };
        let events = !slow && number.is_multiple_of(EVENTS_EVERY);
        let random = StdRng::seed_from_u64(number as u64);
        Self { state, random, channel, events, slow, position: None }
    }

    /// Connects and disconnects until the soak ends.
    pub(crate) async fn run(mut self) {
        let mut over = self.state.over.subscribe();
        while !*over.borrow() {
            let outcome = self.session(&mut over).await;
            if outcome.is_err() && !*over.borrow() {
                count(&self.state.tally.failed);
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
    async fn session(&mut self, over: &mut watch::Receiver<bool>) -> Outcome<()> {
        let port = self.state.ports[self.random.random_range(0..self.state.ports.len())];
        let mut stream = EventStream::open(port, self.channel, self.events, self.position.as_ref(), self.slow).await?;
        count(&self.state.tally.connected);
        if self.position.is_some() {
            count(&self.state.tally.resumed);
        }
        let seconds = if self.slow { 0.5 } else { self.random.random_range(1.0..20.0) };
        let leaves = Instant::now() + Duration::from_secs_f64(seconds);
        loop {
            tokio::select! {
                event = stream.next() => {
                    if self.take(event?)? {
                        return Ok(());
                    }
                }
                () = sleep_until(leaves) => break,
                () = ended(over) => return self.receive_the_rest(&mut stream).await,
            }
        }
        if self.slow {
            tokio::select! {
                () = sleep(STUCK) => {}
                () = ended(over) => {}
            }
            return self.read_to_end(&mut stream).await;
        }
        if self.random.random_bool(0.5) {
            count(&self.state.tally.reset);
            stream.reset();
            return Ok(());
        }
        stream.close().await?;
        self.read_to_end(&mut stream).await
    }

    /// Reads until the server closes; all messages count.
    async fn read_to_end(&mut self, stream: &mut EventStream) -> Outcome<()> {
        let all = async {
            while !self.take(stream.next().await?)? {}
            Ok(())
        };
        timeout(LAST, all).await.map_err(|_| "the server did not close")?
    }

    /// Receives all messages that were published, after the end of publishing.
    async fn receive_the_rest(&mut self, stream: &mut EventStream) -> Outcome<()> {
        let last = self.state.published[self.channel].load(Ordering::Relaxed);
        let all = async {
            // A client that connected after the last message, without a position, has nothing to
            // receive.
            while self.missing(last) > 0 && !self.take(stream.next().await?)? {}
            Ok(())
        };
        let outcome = timeout(LAST, all).await.unwrap_or(Ok(()));
        self.state.tally.lost.fetch_add(self.missing(last), Ordering::Relaxed);
        outcome
    }

    /// The number of messages that have yet to arrive, if `last` is the channel's last sequence.
    fn missing(&self, last: u32) -> u64 {
        let shift = self.state.shifts[self.channel].load(Ordering::Relaxed);
        match &self.position {
            None => 1, // the welcome is also missing
            Some(_) if shift == i64::MIN => 0,
            Some(position) => u64::try_from(i64::from(last) + shift - position.offset as i64).unwrap_or(0),
        }
    }

    /// Checks an event; true if it was the last one.
    fn take(&mut self, event: Event) -> Outcome<bool> {
        let tally = &self.state.tally;
        match event {
            Event::Welcome(position) => {
                // A client that resumes starts at its position; other clients start at the newest
                // position.
                if self.position.as_ref().is_some_and(|held| *held != position) {
                    count(&tally.changed);
                }
                self.position = Some(position);
            }
            Event::Gap(position) => {
                count(&tally.gaps);
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
        let tally = &self.state.tally;
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
                let known = self.state.shifts[self.channel].compare_exchange(
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
