//! Readers that do not read, and large messages: their cost for other readers and in memory, and
//! whether the server returns that memory.

use std::time::Duration;

use crate::Outcome;
use crate::harness::{Harness, Measured, PublisherOptions};
use crate::process;
use crate::readers::ReaderSet;
use crate::report::Row;
use crate::scenario::Runner;
use crate::servers::{Kind, Server, Setting};

/// The size of the messages sent to stuck subscribers, in bytes.
const FLOOD_SIZE: usize = 16 * 1024;

/// The size of large messages, in bytes: the default maximum of livebridge.
const LARGE_SIZE: usize = 1 << 20;

/// How long the server has after its subscribers have left. livebridge forgets a channel 5 seconds
/// after its last subscriber.
const AFTER: Duration = Duration::from_secs(14);

/// The memory of the server at its peak under load and afterwards, in bytes, and the measurement.
struct MemoryUse {
    peak: f64,
    after: f64,
    closed: u64,
    measured: Measured,
}

impl Runner<'_> {
    /// Two runs: first all subscribers read, then a tenth of them never does.
    pub(crate) fn slow(&self) -> Outcome<Vec<Row>> {
        if let Kind::Bare(..) = self.kind {
            return Ok(Vec::new()); // its blocking writes would wait for stuck subscribers
        }
        let subscribers = self.parameters.subscribers.unwrap_or(500);
        let rate = self.parameters.rate.first().copied().unwrap_or(25_000.0);
        let flood = self.parameters.messages.unwrap_or(320);
        let mut rows = Vec::new();
        for stuck_every in [0, 10] {
            let server = self.start()?;
            let (mut harness, _) =
                Harness::connect(&server, ReaderSet { stuck_every, ..self.reader_set(&server, subscribers, 1) })?;
            let before = server.pss_bytes();
            harness.start_publishers(&PublisherOptions { size: FLOOD_SIZE, ..self.publisher_options() })?;
            harness.restart()?;
            harness.burst(8, flood, Duration::from_secs(10))?;
            harness.finish()?;
            let fullest = server.ports.iter().map(|port| process::connections(*port).fullest).max().unwrap_or(0);
            harness.restart()?;
            harness.steady(rate / subscribers as f64, self.seconds(3.0))?;
            let measured = harness.finish()?;
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

    /// The memory before a load, at its peak, and after the subscribers have left. livebridge keeps
    /// no history here, because history stays in memory by design.
    pub(crate) fn give_back(&self) -> Outcome<Vec<Row>> {
        if let Kind::Bare(..) = self.kind {
            return Ok(Vec::new()); // it keeps no data
        }
        let setting = Setting { history: Some(0), ..self.setting.clone() };
        let runner = Runner { setting: &setting, ..*self };
        let subscribers = self.parameters.subscribers.unwrap_or(200);
        let broker = if setting.redis.is_some() { "Redis" } else { "embedded" };
        let large = self.parameters.messages.unwrap_or(128);
        Ok(vec![
            runner.memory_under_load(
                format!("{large} of 1 MiB, {subscribers} subscribers, {broker}"),
                subscribers,
                0,
                LARGE_SIZE,
                large,
            )?,
            runner.memory_under_load(
                format!("1 in 2 of {subscribers} never reads, {broker}"),
                subscribers,
                2,
                FLOOD_SIZE,
                3000,
            )?,
        ])
    }

    fn memory_under_load(
        &self,
        case: String,
        subscribers: usize,
        stuck_every: usize,
        size: usize,
        messages: u64,
    ) -> Outcome<Row> {
        let server = self.start()?;
        // A first set of readers connects and disconnects, so that one-time allocations do not
        // count as load.
        drop(self.harness(&server, self.reader_set(&server, subscribers, 1))?);
        std::thread::park_timeout(AFTER);
        let before = server.pss_bytes();
        let mut figures = vec![("before MB", before / 1e6)];
        let once = self.load_and_leave(&server, subscribers, stuck_every, size, messages)?;
        figures.extend([("peak MB", once.peak / 1e6), ("after MB", once.after / 1e6)]);
        // The allocator reuses memory that it keeps, but leaked memory is lost: only a leak grows
        // from one load to the next.
        let again = self.load_and_leave(&server, subscribers, stuck_every, size, messages)?;
        figures.extend([("again MB", again.after / 1e6), ("kept MB", (again.after - before) / 1e6)]);
        figures.push(("stuck closed", once.closed as f64));
        figures.extend(once.measured.faults());
        if again.measured.faults().iter().any(|(_, count)| *count > 0.0) {
            return Err("the second time, messages were lost, doubled, reordered or changed".into());
        }
        Ok(self.row("return", case, figures))
    }

    fn load_and_leave(
        &self,
        server: &Server,
        subscribers: usize,
        stuck_every: usize,
        size: usize,
        messages: u64,
    ) -> Outcome<MemoryUse> {
        let (mut harness, _) =
            Harness::connect(server, ReaderSet { stuck_every, ..self.reader_set(server, subscribers, 1) })?;
        harness.start_publishers(&PublisherOptions { size, ..self.publisher_options() })?;
        harness.restart()?;
        let mut peak: f64 = 0.0;
        for part in 1..=16 {
            harness.burst(4, messages * part / 16, Duration::from_secs(60))?;
            peak = peak.max(server.pss_bytes());
        }
        let measured = harness.finish()?;
        let closed: u64 = server.ports.iter().map(|port| process::connections(*port).closed).sum();
        let closed = closed + measured.stuck_closed;
        peak = peak.max(server.pss_bytes());
        drop(harness);
        std::thread::park_timeout(AFTER);
        Ok(MemoryUse { peak, after: server.pss_bytes(), closed, measured })
    }
}
