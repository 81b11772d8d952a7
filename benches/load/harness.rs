//! A server, its subscribers and its publishers, driven from one thread. Each scenario uses a
//! harness.

use std::io::Write;
use std::time::{Duration, Instant};

use mio::{Events, Poll};
use serde_json::{Value, json};

use crate::Outcome;
use crate::histogram::Histogram;
use crate::message::{Message, now};
use crate::own_redis::redis_address;
use crate::publishers::{Path, Publishers};
use crate::readers::{ReaderSet, Readers};
use crate::servers::{Kind, Server};

/// Readers use the tokens below, publishers those from here on.
const FIRST_PUBLISHER: usize = 1000;

/// If no message is delivered and no request answered for this long, the run ends. Messages that
/// were answered and not delivered count as lost then; if answers are missing, there is no row.
const STALL: Duration = Duration::from_secs(3);

/// Time limit for connecting.
const CONNECT_LIMIT: Duration = Duration::from_secs(60);

/// How messages are published.
pub(crate) struct PublisherOptions {
    pub(crate) links: usize,
    pub(crate) batch: bool,
    /// The Redis for `PUBLISH`; `None` to publish through the server.
    pub(crate) redis: Option<String>,
    pub(crate) size: usize,
}

/// The result of connecting.
pub(crate) struct Joined {
    pub(crate) seconds: f64,
    pub(crate) failed: u64,
    pub(crate) handshakes: Histogram,
}

/// The result of a measurement.
pub(crate) struct Measured {
    pub(crate) seconds: f64,
    pub(crate) delivered: u64,
    pub(crate) lost: u64,
    pub(crate) doubled: u64,
    pub(crate) reordered: u64,
    pub(crate) changed: u64,
    pub(crate) closed: u64,
    pub(crate) stuck_closed: u64,
    pub(crate) server_cpu: f64,
    pub(crate) reader_cpu: f64,
    pub(crate) latencies: Histogram,
}

pub(crate) struct Harness<'a> {
    poll: Poll,
    events: Events,
    readers: Readers,
    publishers: Option<Publishers>,
    server: &'a Server,
    reader_set: ReaderSet,
    size: usize,
    /// The last sequence of each channel or, with several streams, of each stream.
    sequences: Vec<u32>,
    published: u64,
    next_channel: u32,
    since: Instant,
    cpu_before: (f64, f64),
}

impl<'a> Harness<'a> {
    /// Starts the readers and connects their subscribers.
    pub(crate) fn connect(server: &'a Server, reader_set: ReaderSet) -> Outcome<(Self, Joined)> {
        let poll = Poll::new()?;
        let readers = Readers::start(&reader_set, poll.registry())?;
        let sequences = vec![0; if reader_set.streams > 1 { reader_set.streams } else { reader_set.channels }];
        let mut harness = Self {
            poll,
            events: Events::with_capacity(256),
            readers,
            publishers: None,
            server,
            reader_set,
            size: 0,
            sequences,
            published: 0,
            next_channel: 0,
            since: Instant::now(),
            cpu_before: (0.0, 0.0),
        };
        let replies = harness.replies(CONNECT_LIMIT)?;
        let mut joined = Joined { seconds: 0.0, failed: 0, handshakes: Histogram::new() };
        for reply in &replies {
            joined.seconds = joined.seconds.max(reply["seconds"].as_f64().unwrap_or(0.0));
            joined.failed += reply["failed"].as_u64().unwrap_or(0);
            joined.handshakes.add_json(&reply["handshakes"]);
        }
        Ok((harness, joined))
    }

    /// Connects the publishers and sends probes until each subscriber receives messages, because
    /// some servers answer before they have subscribed.
    pub(crate) fn start_publishers(&mut self, publisher_options: &PublisherOptions) -> Outcome<()> {
        let (path, addresses) = match &publisher_options.redis {
            Some(url) if !matches!(self.server.kind, Kind::Bare(..)) => (Path::Redis, vec![redis_address(url)]),
            _ => self.server.publish_path(publisher_options.batch),
        };
        let links = if let Kind::Bare(_, writers) = self.server.kind { writers } else { publisher_options.links };
        self.size = publisher_options.size;
        self.publishers = Some(Publishers::connect(&addresses, links, path, self.poll.registry(), FIRST_PUBLISHER)?);
        let readers = self.listening();
        let deadline = Instant::now() + CONNECT_LIMIT;
        let mut timeout = Instant::now();
        // No message may be under way, because it would delay the messages that are measured.
        while self.readers.seen() < readers || self.unanswered()? > 0 {
            if Instant::now() > deadline {
                let (seen, unanswered) = (self.readers.seen(), self.unanswered()?);
                let error = format!(
                    "{seen} of {readers} subscribers ever received a message, {unanswered} publishes unanswered"
                );
                return Err(error.into());
            }
            if Instant::now() >= timeout && self.unanswered()? == 0 {
                self.publish_round()?;
                timeout = Instant::now() + Duration::from_millis(500);
            }
            self.poll_once(Duration::from_millis(50))?;
        }
        self.idle_for(Duration::from_millis(100))
    }

    /// The number of subscribers that read.
    fn listening(&self) -> u64 {
        let stuck = if self.reader_set.stuck_every > 0 {
            self.reader_set.subscribers.div_ceil(self.reader_set.stuck_every)
        } else {
            0
        };
        (self.reader_set.subscribers - stuck) as u64
    }

    fn publishers(&mut self) -> Outcome<&mut Publishers> {
        self.publishers.as_mut().ok_or_else(|| "no publishers yet".into())
    }

    /// The number of requests to publish that wait for an answer.
    fn unanswered(&mut self) -> Outcome<usize> {
        Ok(self.publishers()?.all_unanswered())
    }

    /// A sum of counters that grows while messages or answers arrive.
    fn moved(&mut self) -> Outcome<u64> {
        Ok(self.readers.delivered() + self.publishers()?.answered())
    }

    /// Processes events of readers and publishers once; waits for at most `timeout`.
    pub(crate) fn poll_once(&mut self, timeout: Duration) -> Outcome<()> {
        if let Err(error) = self.poll.poll(&mut self.events, Some(timeout)) {
            return if error.kind() == std::io::ErrorKind::Interrupted { Ok(()) } else { Err(error.into()) };
        }
        for event in &self.events {
            let token = event.token().0;
            if token < FIRST_PUBLISHER {
                self.readers.read_output(token)?;
            } else if let Some(publishers) = &mut self.publishers {
                publishers.handle(token)?;
            }
        }
        Ok(())
    }

    /// Processes events for this long, so that messages under way arrive.
    pub(crate) fn idle_for(&mut self, time: Duration) -> Outcome<()> {
        let end = Instant::now() + time;
        while let Some(left) = end.checked_duration_since(Instant::now()) {
            self.poll_once(left.max(Duration::from_millis(1)))?;
        }
        Ok(())
    }

    fn replies(&mut self, limit: Duration) -> Outcome<Vec<Value>> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(replies) = self.readers.replies() {
                return Ok(replies);
            }
            if Instant::now() > deadline {
                return Err(format!("{} readers did not answer in time", self.readers.count()).into());
            }
            self.poll_once(Duration::from_millis(100))?;
        }
    }

    /// Publishes `count` messages in the next channel, round-robin.
    pub(crate) fn publish(&mut self, count: usize, due: u64) -> Outcome<()> {
        let channel = self.next_channel;
        self.next_channel = (channel + 1) % self.reader_set.channels as u32;
        let last =
            if self.reader_set.streams > 1 { &mut self.sequences[0] } else { &mut self.sequences[channel as usize] };
        let messages: Vec<_> =
            (1..=count as u32).map(|ahead| Message { channel, stream: 0, sequence: *last + ahead, due }).collect();
        *last += count as u32;
        self.published += count as u64;
        let size = self.size;
        self.publishers()?.publish(channel as usize, &messages, size);
        Ok(())
    }

    /// Publishes one message in each channel, a thousand at a time.
    fn publish_round(&mut self) -> Outcome<()> {
        for index in 0..self.reader_set.channels {
            self.publish(1, now())?;
            if index % 1000 == 999 {
                self.flush()?;
                self.poll_once(Duration::from_millis(1))?;
            }
        }
        self.flush()
    }

    pub(crate) fn flush(&mut self) -> Outcome<()> {
        self.publishers()?.flush()
    }

    /// Restarts all counts: the measurement starts here.
    pub(crate) fn restart(&mut self) -> Outcome<()> {
        let streams = self.reader_set.streams;
        let base: Vec<u32> = self.sequences[..streams].iter().map(|last| last + 1).collect();
        self.readers.command(&json!({ "do": "restart", "base": base }))?;
        self.replies(STALL)?;
        self.published = 0;
        self.publishers()?.answer_times.clear();
        self.cpu_before = (self.server.cpu_seconds(), self.readers.cpu_seconds());
        self.since = Instant::now();
        Ok(())
    }

    /// Waits for outstanding messages and returns the result.
    pub(crate) fn finish(&mut self) -> Outcome<Measured> {
        let (last_arrival, missing) = self.settle()?;
        let seconds = (last_arrival - self.since).as_secs_f64();
        let server_cpu = self.server.cpu_seconds() - self.cpu_before.0;
        let reader_cpu = self.readers.cpu_seconds() - self.cpu_before.1;
        if missing > 0 && self.unanswered()? > 0 {
            return Err(format!("given up: {} publishes were never answered", self.unanswered()?).into());
        }
        let last = &self.sequences[..self.reader_set.streams];
        self.readers.command(&json!({ "do": "finish", "last": last }))?;
        let replies = self.replies(STALL)?;
        let sum = |name: &str| replies.iter().filter_map(|reply| reply[name].as_u64()).sum();
        let mut latencies = Histogram::new();
        replies.iter().for_each(|reply| latencies.add_json(&reply["latencies"]));
        Ok(Measured {
            seconds,
            delivered: sum("delivered"),
            lost: sum("lost"),
            doubled: sum("doubled"),
            reordered: sum("reordered"),
            changed: sum("changed"),
            closed: sum("closed"),
            stuck_closed: sum("stuck_closed"),
            server_cpu,
            reader_cpu,
            latencies,
        })
    }

    /// Waits until everything has arrived or nothing has moved for a while. Returns the time of the
    /// last arrival and the number of missing messages.
    fn settle(&mut self) -> Outcome<(Instant, u64)> {
        let expected = self.published * self.listening() / self.reader_set.channels as u64;
        let (mut delivered, mut last_arrival) = (self.readers.delivered(), Instant::now());
        let (mut moved, mut since) = (self.moved()?, last_arrival);
        while delivered < expected && since.elapsed() < STALL {
            self.poll_once(Duration::from_millis(50))?;
            if self.readers.delivered() > delivered {
                (delivered, last_arrival) = (self.readers.delivered(), Instant::now());
            }
            if self.moved()? > moved {
                (moved, since) = (self.moved()?, Instant::now());
            }
        }
        Ok((last_arrival, expected.saturating_sub(delivered)))
    }

    /// Publishes as fast as `window` outstanding messages allow, until `messages` are published or
    /// `time` has passed.
    pub(crate) fn burst(&mut self, window: u64, messages: u64, time: Duration) -> Outcome<()> {
        let each = (window / self.reader_set.channels as u64).max(1);
        let step = if let Kind::Bare(frames, _) = self.server.kind { each.min(frames as u64) } else { 1 };
        let end = Instant::now() + time;
        let (mut moved, mut since) = (self.moved()?, Instant::now());
        loop {
            // Only whole rounds: all channels must end at the same sequence.
            let in_round = self.next_channel != 0;
            if !in_round && (self.published >= messages || Instant::now() > end) {
                return Ok(());
            }
            let mut room = window.saturating_sub(self.published - self.readers.completed());
            while room >= step && (self.published < messages || self.next_channel != 0) {
                self.publish(step as usize, now())?;
                room -= step;
            }
            self.flush()?;
            self.poll_once(Duration::from_millis(100))?;
            if self.moved()? > moved {
                (moved, since) = (self.moved()?, Instant::now());
            } else if since.elapsed() > STALL {
                return self.give_up(step as usize);
            }
        }
    }

    /// Prints a message and completes the round, so that channels that got no message yet do not
    /// count as lost.
    fn give_up(&mut self, step: usize) -> Outcome<()> {
        let (published, completed, unanswered) = (self.published, self.readers.completed(), self.unanswered()?);
        let message = format!(
            "given up after {STALL:?}: {published} published, {completed} with all their subscribers, {unanswered} unanswered"
        );
        writeln!(std::io::stderr(), "load: {message}")?;
        while self.next_channel != 0 {
            self.publish(step, now())?;
        }
        self.flush()
    }

    /// Publishes `rate` messages per second, each with the time at which it was due, whether or not
    /// the server keeps up.
    pub(crate) fn steady(&mut self, rate: f64, time: Duration) -> Outcome<()> {
        let interval = 1e9 / rate;
        let start = now() + 1_000_000;
        let rounds = self.reader_set.channels as u64;
        let count = ((time.as_secs_f64() * rate) as u64).div_ceil(rounds) * rounds;
        for index in 0..count {
            let due = start + (index as f64 * interval) as u64;
            while let Some(left) = due.checked_sub(now()).filter(|left| *left > 0) {
                // The milliseconds of poll() are too coarse for this rate.
                std::thread::park_timeout(Duration::from_nanos(left));
            }
            self.publish(1, due)?;
            self.flush()?;
            self.poll_once(Duration::ZERO)?;
        }
        Ok(())
    }

    /// On each connection, publishes `batch` messages per request and waits for the answer before
    /// the next request.
    pub(crate) fn ask(&mut self, batch: usize, time: Duration) -> Outcome<()> {
        let end = Instant::now() + time;
        let size = self.size;
        loop {
            let over = Instant::now() > end;
            let publishers = self.publishers.as_mut().ok_or("no publishers yet")?;
            if over && publishers.all_unanswered() == 0 {
                return Ok(());
            }
            if Instant::now() > end + STALL {
                return Err("publishes are not answered".into());
            }
            for link in 0..publishers.count() {
                if !over && publishers.unanswered(link) == 0 {
                    let last = &mut self.sequences[link + 1];
                    let due = now();
                    let messages: Vec<_> = (1..=batch as u32)
                        .map(|ahead| Message { channel: 0, stream: link as u16 + 1, sequence: *last + ahead, due })
                        .collect();
                    *last += batch as u32;
                    self.published += batch as u64;
                    publishers.publish(link, &messages, size);
                }
            }
            publishers.flush()?;
            self.poll_once(Duration::from_millis(100))?;
        }
    }

    pub(crate) fn published(&self) -> u64 {
        self.published
    }

    /// The times from request to answer since the last restart.
    pub(crate) fn answer_times(&mut self) -> Outcome<Histogram> {
        Ok(self.publishers()?.answer_times.clone())
    }
}
