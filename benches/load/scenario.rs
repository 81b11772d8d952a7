//! What can be measured. Each scenario starts its server anew, warms up, measures, and returns a row per case.

use std::time::Duration;

use clap::ValueEnum;

use crate::Outcome;
use crate::process;
use crate::readers::Crowd;
use crate::report::Row;
use crate::servers::{Kind, Server, Setting};
use crate::stage::{Entrance, Measured, Stage};

/// Messages outstanding altogether where many channels would multiply the window.
const MANY_OUTSTANDING: u64 = 4096;

/// The most that may be outstanding in one channel: fewer than a reader remembers.
const LARGEST_WINDOW: u64 = 512;

/// The size of the messages that flood stuck subscribers.
const FLOOD_SIZE: usize = 16 * 1024;

/// The scenarios by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Scenario {
    /// Idle connections: the server's memory for each
    Memory,
    /// One channel, as fast as the window allows
    Burst,
    /// A fixed rate: latency from when a message was due
    Steady,
    /// Many channels with one subscriber each
    Channels,
    /// How fast messages get in: POST, NDJSON batches, Redis PUBLISH
    Ingest,
    /// Handshakes, 200 at once
    Connect,
    /// A tenth of the subscribers never reads
    Slow,
    /// Cost per delivery as connections and channels grow
    Growth,
    /// Runs the scenarios named after it for several servers in turn
    Compare,
}

/// How messages get in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Via {
    /// POST /publish
    Post,
    /// PUBLISH on the Redis of --redis
    Redis,
    /// POST /publish with NDJSON batches
    Batch,
}

/// What was asked for; `None` takes the scenario's own default.
#[derive(Clone)]
pub(crate) struct Wishes {
    pub(crate) subscribers: Option<usize>,
    pub(crate) window: Vec<u64>,
    pub(crate) seconds: Option<f64>,
    pub(crate) rate: Vec<f64>,
    pub(crate) channels: Option<usize>,
    pub(crate) messages: Option<u64>,
    pub(crate) links: Option<usize>,
    pub(crate) batch: usize,
    pub(crate) size: usize,
    pub(crate) via: Option<Via>,
    pub(crate) events: bool,
    pub(crate) at_once: usize,
    pub(crate) steps: Vec<usize>,
}

/// One scenario for one server.
pub(crate) struct Play<'a> {
    pub(crate) name: &'a str,
    pub(crate) kind: &'a Kind,
    pub(crate) setting: &'a Setting,
    pub(crate) wishes: &'a Wishes,
}

impl Play<'_> {
    pub(crate) fn run(&self, scenario: Scenario) -> Outcome<Vec<Row>> {
        match scenario {
            Scenario::Memory => self.memory(),
            Scenario::Burst => self.bursts(),
            Scenario::Steady => self.steady(),
            Scenario::Channels => self.channels(),
            Scenario::Ingest => self.ingest(),
            Scenario::Connect => self.connect(),
            Scenario::Slow => self.slow(),
            Scenario::Growth => self.growth(),
            Scenario::Compare => Ok(Vec::new()),
        }
    }

    pub(crate) fn start(&self) -> Outcome<Server> {
        Server::start(self.kind, self.setting, self.wishes.events)
    }

    pub(crate) fn seconds(&self, default: f64) -> Duration {
        Duration::from_secs_f64(self.wishes.seconds.unwrap_or(default).clamp(0.1, 120.0))
    }

    pub(crate) fn crowd(&self, server: &Server, subscribers: usize, channels: usize) -> Crowd {
        Crowd {
            ports: server.ports.clone(),
            path: server.path.clone(),
            dialect: server.dialect,
            subscribers,
            channels,
            streams: 1,
            at_once: self.wishes.at_once,
            stuck_every: 0,
        }
    }

    pub(crate) fn entrance(&self) -> Entrance {
        let via = self.wishes.via.unwrap_or(Via::Post);
        Entrance {
            links: if via == Via::Post { self.wishes.links.unwrap_or(self.setting.instances) } else { 1 },
            batch: false,
            redis: if via == Via::Redis { self.setting.redis.clone() } else { None },
            size: self.wishes.size,
        }
    }

    pub(crate) fn row(&self, scenario: &'static str, case: String, figures: Vec<(&'static str, f64)>) -> Row {
        Row { scenario, case, server: self.name.to_owned(), figures }
    }

    /// A crowd that has joined and hears.
    fn stage<'s>(&self, server: &'s Server, crowd: Crowd) -> Outcome<Stage<'s>> {
        let (mut stage, joined) = Stage::gather(server, crowd)?;
        if joined.failed > 0 {
            return Err(format!("{} subscribers could not connect", joined.failed).into());
        }
        stage.enter(&self.entrance())?;
        Ok(stage)
    }

    fn memory(&self) -> Outcome<Vec<Row>> {
        if let Kind::Bare(..) = self.kind {
            return Ok(Vec::new()); // a descriptor in a list: the limit is nothing
        }
        let subscribers = self.wishes.subscribers.unwrap_or(10_000);
        let transport = if self.wishes.events { "SSE" } else { "WebSocket" };
        let mut rows = Vec::new();
        for _ in 0..2 {
            let server = self.start()?;
            // A first crowd comes and goes, so that what the server sets up once is not charged to connections.
            drop(self.stage(&server, self.crowd(&server, 20, 1))?);
            std::thread::park_timeout(Duration::from_millis(500));
            let before = server.pss_bytes();
            let (mut stage, joined) = Stage::gather(&server, self.crowd(&server, subscribers, 1))?;
            stage.rest(Duration::from_secs(1))?;
            let idle = server.pss_bytes();
            stage.enter(&self.entrance())?;
            stage.rest(Duration::from_millis(500))?;
            let each = |bytes: f64| (bytes - before) / (subscribers as f64 - joined.failed as f64);
            let figures = vec![
                ("idle B/conn", each(idle)),
                ("after a message", each(server.pss_bytes())),
                ("base MB", before / 1e6),
                ("failed", joined.failed as f64),
            ];
            rows.push(self.row("memory", format!("{subscribers} idle, {transport}"), figures));
        }
        Ok(rows)
    }

    fn bursts(&self) -> Outcome<Vec<Row>> {
        let subscribers = self.wishes.subscribers.unwrap_or(1000);
        let windows = if self.wishes.window.is_empty() { vec![1, 16, 64] } else { self.wishes.window.clone() };
        let mut rows = Vec::new();
        for window in windows {
            let case = format!("{subscribers} subscribers, window {window}");
            rows.push(self.burst("burst", case, subscribers, 1, window.clamp(1, LARGEST_WINDOW))?);
        }
        Ok(rows)
    }

    fn burst(
        &self,
        scenario: &'static str,
        case: String,
        subscribers: usize,
        channels: usize,
        window: u64,
    ) -> Outcome<Row> {
        let server = self.start()?;
        let before = server.pss_bytes();
        let mut stage = self.stage(&server, self.crowd(&server, subscribers, channels))?;
        let memory = (server.pss_bytes() - before) / subscribers as f64;
        let messages = self.wishes.messages.unwrap_or(u64::MAX);
        let time = self.seconds(2.0);
        stage.restart()?;
        stage.burst(window, messages / 10, time / 5)?;
        stage.finish()?;
        stage.restart()?;
        stage.burst(window, messages, time)?;
        let measured = stage.finish()?;
        let mut figures = measured.figures(true);
        figures.push(("B/conn", memory));
        Ok(self.row(scenario, case, figures))
    }

    fn steady(&self) -> Outcome<Vec<Row>> {
        let subscribers = self.wishes.subscribers.unwrap_or(1000);
        let rates = if self.wishes.rate.is_empty() { vec![50_000.0, 150_000.0] } else { self.wishes.rate.clone() };
        let mut rows = Vec::new();
        for rate in rates {
            let server = self.start()?;
            let mut stage = self.stage(&server, self.crowd(&server, subscribers, 1))?;
            let each = rate / subscribers as f64;
            stage.restart()?;
            stage.steady(each, Duration::from_millis(500))?;
            stage.finish()?;
            stage.restart()?;
            stage.steady(each, self.seconds(4.0))?;
            let measured = stage.finish()?;
            rows.push(self.row("steady", format!("{rate}/s to {subscribers} subscribers"), measured.figures(false)));
        }
        Ok(rows)
    }

    /// Beside the many channels, one channel with as many subscribers, one message at a time: as many writes to as many
    /// sockets, so what differs is what a channel costs.
    fn channels(&self) -> Outcome<Vec<Row>> {
        let channels = self.wishes.channels.unwrap_or(10_000);
        let messages = self.wishes.messages.unwrap_or(100_000);
        let window = (self.wishes.window.first().copied().unwrap_or(16) * channels as u64).min(MANY_OUTSTANDING);
        let time = Some(self.seconds(10.0).as_secs_f64());
        let limit = |messages| Wishes { messages: Some(messages), seconds: time, ..self.wishes.clone() };
        let one = limit((messages / channels as u64).max(1));
        let one = Play { wishes: &one, ..*self };
        let many = limit(messages);
        let many = Play { wishes: &many, ..*self };
        Ok(vec![
            one.burst("channels", format!("1 channel, {channels} subscribers"), channels, 1, 1)?,
            many.burst("channels", format!("{channels} channels, 1 subscriber each"), channels, channels, window)?,
        ])
    }

    fn connect(&self) -> Outcome<Vec<Row>> {
        let subscribers = self.wishes.subscribers.unwrap_or(5000);
        let server = self.start()?;
        drop(Stage::gather(&server, self.crowd(&server, 200, 1))?);
        let before = server.cpu_seconds();
        let (_stage, joined) = Stage::gather(&server, self.crowd(&server, subscribers, 1))?;
        let figures = vec![
            ("handshakes/s", subscribers as f64 / joined.seconds),
            ("p50 ms", joined.handshakes.milliseconds(0.5)),
            ("p99 ms", joined.handshakes.milliseconds(0.99)),
            ("max ms", joined.handshakes.largest_milliseconds()),
            ("CPU µs/handshake", (server.cpu_seconds() - before) * 1e6 / subscribers as f64),
            ("failed", joined.failed as f64),
        ];
        Ok(vec![self.row("connect", format!("{subscribers}, {} at once", self.wishes.at_once), figures)])
    }

    /// The same run twice: everybody reads, then a tenth never does.
    fn slow(&self) -> Outcome<Vec<Row>> {
        if let Kind::Bare(..) = self.kind {
            return Ok(Vec::new()); // its blocking writes would wait for the stuck ones
        }
        let subscribers = self.wishes.subscribers.unwrap_or(500);
        let rate = self.wishes.rate.first().copied().unwrap_or(25_000.0);
        let flood = self.wishes.messages.unwrap_or(320);
        let mut rows = Vec::new();
        for stuck_every in [0, 10] {
            let server = self.start()?;
            let (mut stage, _) = Stage::gather(&server, Crowd { stuck_every, ..self.crowd(&server, subscribers, 1) })?;
            let before = server.pss_bytes();
            stage.enter(&Entrance { size: FLOOD_SIZE, ..self.entrance() })?;
            stage.restart()?;
            stage.burst(8, flood, Duration::from_secs(10))?;
            stage.finish()?;
            let fullest = server.ports.iter().map(|port| process::connections(*port).fullest).max().unwrap_or(0);
            stage.restart()?;
            stage.steady(rate / subscribers as f64, self.seconds(3.0))?;
            let measured = stage.finish()?;
            let closed: u64 = server.ports.iter().map(|port| process::connections(*port).closed).sum();
            let mut figures = measured.figures(false);
            figures.extend([
                ("MB grown", (server.pss_bytes() - before) / 1e6),
                ("flood MB", flood as f64 * FLOOD_SIZE as f64 / 1e6),
                ("kernel MB", fullest as f64 / 1e6),
                ("stuck closed", (closed + measured.stuck_closed) as f64),
            ]);
            let stuck = if stuck_every == 0 { "all read" } else { "1 in 10 never reads" };
            rows.push(self.row("slow", format!("{subscribers} subscribers, {stuck}"), figures));
        }
        Ok(rows)
    }

    fn growth(&self) -> Outcome<Vec<Row>> {
        let wishes = Wishes { seconds: Some(self.seconds(1.0).as_secs_f64()), ..self.wishes.clone() };
        let play = Play { wishes: &wishes, ..*self };
        let steps = if self.wishes.steps.is_empty() { vec![1000, 3000, 10_000] } else { self.wishes.steps.clone() };
        let largest = steps.iter().copied().max().unwrap_or(1000);
        let mut rows = Vec::new();
        for subscribers in &steps {
            rows.push(play.burst("growth", format!("{subscribers} connections, 1 channel"), *subscribers, 1, 16)?);
        }
        // As many as one reader process holds, so that the curve of channels has one reader throughout.
        let connections = largest.min(10_000);
        for channels in [10, 100, 1000, 10_000].into_iter().filter(|channels| connections.is_multiple_of(*channels)) {
            let case = format!("{connections} connections, {channels} channels");
            rows.push(play.burst(
                "growth",
                case,
                connections,
                channels,
                (16 * channels as u64).min(MANY_OUTSTANDING),
            )?);
        }
        Ok(rows)
    }
}

impl Measured {
    /// The columns of a fan-out row; the rate only where it was not given.
    fn figures(&self, rate: bool) -> Vec<(&'static str, f64)> {
        let delivered = (self.delivered as f64).max(1.0);
        let mut figures = Vec::new();
        if rate {
            figures.push(("deliveries/s", self.delivered as f64 / self.seconds));
        }
        figures.extend([
            ("CPU µs/delivery", self.server_cpu * 1e6 / delivered),
            ("reader µs", self.reader_cpu * 1e6 / delivered),
            ("p50 ms", self.latencies.milliseconds(0.5)),
            ("p99 ms", self.latencies.milliseconds(0.99)),
            ("max ms", self.latencies.largest_milliseconds()),
        ]);
        figures.extend(self.faults());
        figures
    }

    pub(crate) fn faults(&self) -> [(&'static str, f64); 4] {
        [
            ("lost", self.lost as f64),
            ("doubled", self.doubled as f64),
            ("reordered", self.reordered as f64),
            ("changed", self.changed as f64 + self.closed as f64),
        ]
    }
}
