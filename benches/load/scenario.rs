//! The list of scenarios, and the fan-out scenarios: burst and steady. Each scenario starts its
//! server anew, warms up, measures, and returns a row per case. Other scenarios are in `idle`,
//! `growth`, `slow_readers`, `ingest` and `soak`.

use std::time::Duration;

use clap::ValueEnum;

use crate::Outcome;
use crate::harness::{Harness, Measured, PublisherOptions};
use crate::readers::ReaderSet;
use crate::report::Row;
use crate::servers::{Kind, Server, Setting};

/// Maximum number of outstanding messages in one channel; less than the number that a reader
/// remembers.
const LARGEST_WINDOW: u64 = 512;

/// The scenarios by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Scenario {
    /// Idle connections: the server's memory for each
    Memory,
    /// Idle connections held through rounds of pings: none closed, CPU while nothing happens
    Hold,
    /// One channel, as fast as the window allows
    Burst,
    /// A fixed rate: latency from when a message was due
    Steady,
    /// Many channels with one subscriber each
    Channels,
    /// The rate of publishing: POST, NDJSON batches, Redis PUBLISH
    Ingest,
    /// Batches without subscribers, history off and on; bare: pipelined PUBLISH on the same
    /// Redis
    Publish,
    /// Handshakes, 200 at once
    Connect,
    /// A tenth of the subscribers never reads
    Slow,
    /// Whether memory comes back: after large messages, and after slow readers
    Return,
    /// Cost per delivery as connections and channels grow, with and without history
    Growth,
    /// Minutes of connecting and disconnecting, with everything checked and sampled
    Soak,
    /// Runs the scenarios named after it for several servers in turn
    Compare,
}

/// How to publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Via {
    /// POST /publish
    Post,
    /// PUBLISH on the Redis of --redis
    Redis,
    /// POST /publish with NDJSON batches
    Batch,
}

/// The parameters from the command line; `None` selects the default of the scenario.
#[derive(Clone)]
pub(crate) struct Parameters {
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
    pub(crate) counted: bool,
    pub(crate) steps: Vec<usize>,
    pub(crate) minutes: f64,
}

/// Runs a scenario for a server.
pub(crate) struct Runner<'a> {
    pub(crate) name: &'a str,
    pub(crate) kind: &'a Kind,
    pub(crate) setting: &'a Setting,
    pub(crate) parameters: &'a Parameters,
}

impl Runner<'_> {
    pub(crate) fn run(&self, scenario: Scenario) -> Outcome<Vec<Row>> {
        match scenario {
            Scenario::Memory => self.memory(),
            Scenario::Burst => self.bursts(),
            Scenario::Steady => self.steady(),
            Scenario::Channels => self.channels(),
            Scenario::Ingest => self.ingest(),
            Scenario::Connect => self.connect(),
            Scenario::Publish => self.publish(),
            Scenario::Hold => self.hold(),
            Scenario::Slow => self.slow(),
            Scenario::Return => self.give_back(),
            Scenario::Growth => self.growth(),
            Scenario::Soak => self.soak(),
            Scenario::Compare => Ok(Vec::new()),
        }
    }

    pub(crate) fn start(&self) -> Outcome<Server> {
        Server::start(self.kind, self.setting, self.parameters.events)
    }

    pub(crate) fn seconds(&self, default: f64) -> Duration {
        Duration::from_secs_f64(self.parameters.seconds.unwrap_or(default).clamp(0.1, 120.0))
    }

    pub(crate) fn reader_set(&self, server: &Server, subscribers: usize, channels: usize) -> ReaderSet {
        ReaderSet {
            ports: server.ports.clone(),
            path: server.path.clone(),
            dialect: server.dialect,
            subscribers,
            channels,
            streams: 1,
            at_once: self.parameters.at_once,
            stuck_every: 0,
            counted: false,
        }
    }

    pub(crate) fn publisher_options(&self) -> PublisherOptions {
        let via = self.parameters.via.unwrap_or(Via::Post);
        PublisherOptions {
            links: if via == Via::Post { self.parameters.links.unwrap_or(self.setting.instances) } else { 1 },
            batch: false,
            redis: if via == Via::Redis { self.setting.redis.clone() } else { None },
            size: self.parameters.size,
        }
    }

    pub(crate) fn row(&self, scenario: &'static str, case: String, figures: Vec<(&'static str, f64)>) -> Row {
        Row { scenario, case, server: self.name.to_owned(), figures, at: Vec::new(), series: Default::default() }
    }

    /// A harness whose subscribers are connected and receive messages.
    pub(crate) fn harness<'s>(&self, server: &'s Server, reader_set: ReaderSet) -> Outcome<Harness<'s>> {
        let (mut harness, joined) = Harness::connect(server, reader_set)?;
        if joined.failed > 0 {
            return Err(format!("{} subscribers could not connect", joined.failed).into());
        }
        harness.start_publishers(&self.publisher_options())?;
        Ok(harness)
    }

    fn bursts(&self) -> Outcome<Vec<Row>> {
        let subscribers = self.parameters.subscribers.unwrap_or(1000);
        let windows = if self.parameters.window.is_empty() { vec![1, 16, 64] } else { self.parameters.window.clone() };
        let mut rows = Vec::new();
        for window in windows {
            let case = format!("{subscribers} subscribers, window {window}");
            let row = self.burst("burst", case, subscribers, 1, window.clamp(1, LARGEST_WINDOW))?;
            rows.push(row.at(&[("subscribers", subscribers as f64), ("window", window as f64)]));
        }
        Ok(rows)
    }

    pub(crate) fn burst(
        &self,
        scenario: &'static str,
        case: String,
        subscribers: usize,
        channels: usize,
        window: u64,
    ) -> Outcome<Row> {
        let server = self.start()?;
        let before = server.pss_bytes();
        let counted = self.parameters.counted && channels == 1;
        let reader_set = ReaderSet { counted, ..self.reader_set(&server, subscribers, channels) };
        let mut harness = self.harness(&server, reader_set)?;
        let memory = (server.pss_bytes() - before) / subscribers as f64;
        let messages = self.parameters.messages.unwrap_or(u64::MAX);
        let time = self.seconds(2.0);
        harness.restart()?;
        harness.burst(window, messages / 10, time / 5)?;
        harness.finish()?;
        harness.restart()?;
        harness.burst(window, messages, time)?;
        let measured = harness.finish()?;
        let mut figures = measured.figures(true);
        figures.push(("B/conn", memory));
        Ok(self.row(scenario, case, figures))
    }

    fn steady(&self) -> Outcome<Vec<Row>> {
        let subscribers = self.parameters.subscribers.unwrap_or(1000);
        let rates =
            if self.parameters.rate.is_empty() { vec![50_000.0, 150_000.0] } else { self.parameters.rate.clone() };
        let mut rows = Vec::new();
        for rate in rates {
            let server = self.start()?;
            let mut harness = self.harness(&server, self.reader_set(&server, subscribers, 1))?;
            let each = rate / subscribers as f64;
            harness.restart()?;
            harness.steady(each, Duration::from_millis(500))?;
            harness.finish()?;
            harness.restart()?;
            harness.steady(each, self.seconds(4.0))?;
            let measured = harness.finish()?;
            let row = self.row("steady", format!("{rate}/s to {subscribers} subscribers"), measured.figures(false));
            rows.push(row.at(&[("subscribers", subscribers as f64), ("rate", rate)]));
        }
        Ok(rows)
    }
}

impl Measured {
    /// The columns of a fan-out row, with the rate unless it was a parameter.
    pub(crate) fn figures(&self, rate: bool) -> Vec<(&'static str, f64)> {
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
