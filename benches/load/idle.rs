//! Idle connections: how fast they connect, the cost of each, and whether they stay open.

use std::time::Duration;

use crate::Outcome;
use crate::harness::Harness;
use crate::report::Row;
use crate::scenario::Runner;
use crate::servers::Kind;

/// How long idle connections are held, in seconds. livebridge pings after 15 quiet seconds and
/// closes a connection after 45 without an answer, so this covers three rounds of pings and that
/// limit.
const HELD: f64 = 50.0;

impl Runner<'_> {
    pub(crate) fn memory(&self) -> Outcome<Vec<Row>> {
        if let Kind::Bare(..) = self.kind {
            return Ok(Vec::new()); // it keeps only a descriptor per connection: nothing to measure
        }
        let steps = if self.parameters.steps.is_empty() {
            vec![self.parameters.subscribers.unwrap_or(10_000); 2]
        } else {
            self.parameters.steps.clone()
        };
        let transport = if self.parameters.events { "SSE" } else { "WebSocket" };
        let mut rows = Vec::new();
        for subscribers in steps {
            let server = self.start()?;
            // A first set of readers connects and disconnects, so that one-time allocations do not
            // count as cost of the connections.
            drop(self.harness(&server, self.reader_set(&server, 20, 1))?);
            std::thread::park_timeout(Duration::from_millis(500));
            let before = server.pss_bytes();
            let (mut harness, joined) = Harness::connect(&server, self.reader_set(&server, subscribers, 1))?;
            harness.idle_for(Duration::from_secs(1))?;
            let idle = server.pss_bytes();
            harness.start_publishers(&self.publisher_options())?;
            harness.idle_for(Duration::from_millis(500))?;
            let each = |bytes: f64| (bytes - before) / (subscribers as f64 - joined.failed as f64);
            let figures = vec![
                ("idle B/conn", each(idle)),
                ("after a message", each(server.pss_bytes())),
                ("base MB", before / 1e6),
                ("failed", joined.failed as f64),
            ];
            let row = self.row("memory", format!("{subscribers} idle, {transport}"), figures);
            rows.push(row.at(&[("connections", subscribers as f64)]));
        }
        Ok(rows)
    }

    pub(crate) fn connect(&self) -> Outcome<Vec<Row>> {
        let subscribers = self.parameters.subscribers.unwrap_or(5000);
        let server = self.start()?;
        drop(Harness::connect(&server, self.reader_set(&server, 200, 1))?);
        let before = server.cpu_seconds();
        let (_stage, joined) = Harness::connect(&server, self.reader_set(&server, subscribers, 1))?;
        let figures = vec![
            ("handshakes/s", subscribers as f64 / joined.seconds),
            ("p50 ms", joined.handshakes.milliseconds(0.5)),
            ("p99 ms", joined.handshakes.milliseconds(0.99)),
            ("max ms", joined.handshakes.largest_milliseconds()),
            ("CPU µs/handshake", (server.cpu_seconds() - before) * 1e6 / subscribers as f64),
            ("failed", joined.failed as f64),
        ];
        Ok(vec![self.row("connect", format!("{subscribers}, {} at once", self.parameters.at_once), figures)])
    }

    /// Opens all connections at once, on as many instances as needed, and holds them through
    /// several rounds of pings. Then sends one message to all.
    pub(crate) fn hold(&self) -> Outcome<Vec<Row>> {
        if let Kind::Bare(..) = self.kind {
            return Ok(Vec::new()); // it sends no pings
        }
        let subscribers = self.parameters.subscribers.unwrap_or(50_000);
        let runner = self.spread(subscribers)?;
        let runner = runner.as_runner(self);
        let server = runner.start()?;
        drop(runner.harness(&server, runner.reader_set(&server, 20 * server.ports.len(), 1))?);
        std::thread::park_timeout(Duration::from_millis(500));
        let before = server.pss_bytes();
        let (mut harness, joined) = Harness::connect(&server, runner.reader_set(&server, subscribers, 1))?;
        harness.idle_for(Duration::from_secs(2))?;
        let idle = server.pss_bytes();
        let cpu = server.cpu_seconds();
        let time = self.seconds(HELD);
        harness.idle_for(time)?;
        let cpu = (server.cpu_seconds() - cpu) / time.as_secs_f64();
        let after = server.pss_bytes();
        harness.start_publishers(&runner.publisher_options())?;
        harness.restart()?;
        harness.burst(1, 3, Duration::from_secs(10))?;
        let measured = harness.finish()?;
        let each = |bytes: f64| (bytes - before) / subscribers as f64;
        let mut figures = vec![
            ("B/conn", each(idle)),
            ("B/conn later", each(after)),
            ("total MB", after / 1e6),
            ("idle CPU %", cpu * 100.0),
            ("seconds", time.as_secs_f64()),
            ("failed", joined.failed as f64),
            ("closed", measured.closed as f64),
            ("p99 ms", measured.latencies.milliseconds(0.99)),
        ];
        figures.extend(measured.faults());
        let case = format!("{subscribers} held, {} instances", server.ports.len());
        Ok(vec![self.row("hold", case, figures).at(&[("connections", subscribers as f64)])])
    }
}
