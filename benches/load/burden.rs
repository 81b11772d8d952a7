//! What weighs on a server: readers that do not read, messages that are large; and whether its memory comes back.

use std::time::Duration;

use crate::Outcome;
use crate::process;
use crate::readers::Crowd;
use crate::report::Row;
use crate::scenario::Play;
use crate::servers::{Kind, Server, Setting};
use crate::stage::{Entrance, Measured, Stage};

/// The size of the messages that flood stuck subscribers.
const FLOOD_SIZE: usize = 16 * 1024;

/// Large messages: as large as livebridge takes them.
const LARGE_SIZE: usize = 1 << 20;

/// How long a server has after its subscribers have left: livebridge forgets a channel 5 seconds after its last one.
const AFTER: Duration = Duration::from_secs(14);

/// What bearing a burden came to: memory at its height and after it.
struct Borne {
    peak: f64,
    after: f64,
    closed: u64,
    measured: Measured,
}

impl Play<'_> {
    /// The same run twice: everybody reads, then a tenth never does.
    pub(crate) fn slow(&self) -> Outcome<Vec<Row>> {
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

    /// Memory before a burden, at its peak, and after its subscribers have left. livebridge keeps no history here, since that
    /// is meant to stay.
    pub(crate) fn give_back(&self) -> Outcome<Vec<Row>> {
        if let Kind::Bare(..) = self.kind {
            return Ok(Vec::new()); // it holds nothing
        }
        let setting = Setting { history: Some(0), ..self.setting.clone() };
        let play = Play { setting: &setting, ..*self };
        let subscribers = self.wishes.subscribers.unwrap_or(200);
        let broker = if setting.redis.is_some() { "Redis" } else { "embedded" };
        let large = self.wishes.messages.unwrap_or(128);
        Ok(vec![
            play.burden(
                format!("{large} of 1 MiB, {subscribers} subscribers, {broker}"),
                subscribers,
                0,
                LARGE_SIZE,
                large,
            )?,
            play.burden(format!("1 in 2 of {subscribers} never reads, {broker}"), subscribers, 2, FLOOD_SIZE, 3000)?,
        ])
    }

    fn burden(&self, case: String, subscribers: usize, stuck_every: usize, size: usize, messages: u64) -> Outcome<Row> {
        let server = self.start()?;
        // A first crowd comes and goes, so that what the server sets up once is not charged to the burden.
        drop(self.stage(&server, self.crowd(&server, subscribers, 1))?);
        std::thread::park_timeout(AFTER);
        let before = server.pss_bytes();
        let mut figures = vec![("before MB", before / 1e6)];
        let once = self.bear(&server, subscribers, stuck_every, size, messages)?;
        figures.extend([("peak MB", once.peak / 1e6), ("after MB", once.after / 1e6)]);
        // What an allocator keeps is used again, what leaks is not: only that would grow from one burden to the next.
        let again = self.bear(&server, subscribers, stuck_every, size, messages)?;
        figures.extend([("again MB", again.after / 1e6), ("kept MB", (again.after - before) / 1e6)]);
        figures.push(("stuck closed", once.closed as f64));
        figures.extend(once.measured.faults());
        if again.measured.faults().iter().any(|(_, count)| *count > 0.0) {
            return Err("the second time, messages were lost, doubled, reordered or changed".into());
        }
        Ok(self.row("return", case, figures))
    }

    fn bear(
        &self,
        server: &Server,
        subscribers: usize,
        stuck_every: usize,
        size: usize,
        messages: u64,
    ) -> Outcome<Borne> {
        let (mut stage, _) = Stage::gather(server, Crowd { stuck_every, ..self.crowd(server, subscribers, 1) })?;
        stage.enter(&Entrance { size, ..self.entrance() })?;
        stage.restart()?;
        let mut peak: f64 = 0.0;
        for part in 1..=16 {
            stage.burst(4, messages * part / 16, Duration::from_secs(60))?;
            peak = peak.max(server.pss_bytes());
        }
        let measured = stage.finish()?;
        let closed: u64 = server.ports.iter().map(|port| process::connections(*port).closed).sum();
        let closed = closed + measured.stuck_closed;
        peak = peak.max(server.pss_bytes());
        drop(stage);
        std::thread::park_timeout(AFTER);
        Ok(Borne { peak, after: server.pss_bytes(), closed, measured })
    }
}
