//! The rate of publishing: `POST /publish`, NDJSON batches, and Redis `PUBLISH`, with one
//! subscriber or none.

use std::time::{Duration, Instant};

use mio::{Events, Poll};

use crate::Outcome;
use crate::harness::{Harness, PublisherOptions};
use crate::message::{Message, now};
use crate::own_redis::redis_address;
use crate::process;
use crate::publishers::{Path, Publishers};
use crate::readers::ReaderSet;
use crate::report::Row;
use crate::scenario::{Runner, Via};
use crate::servers::{Kind, Setting};

/// Maximum number of messages under way from Redis to the one subscriber. It is below the backlog
/// of the naive program, which loses messages beyond its backlog.
const OUTSTANDING: u64 = 1000;

/// Unanswered commands when only Redis is measured.
const PIPELINE: usize = 1000;

impl Runner<'_> {
    pub(crate) fn ingest(&self) -> Outcome<Vec<Row>> {
        let every = [Via::Post, Via::Batch, Via::Redis];
        let mut rows = Vec::new();
        for via in every.into_iter().filter(|via| self.parameters.via.is_none_or(|wanted| wanted == *via)) {
            match (self.kind, via, &self.setting.redis) {
                (Kind::Bare(..), Via::Redis, Some(url)) => rows.push(self.redis_itself(url)?),
                (Kind::Bare(..), ..) | (_, Via::Redis, None) => {}
                // These servers use Redis with a protocol of their own instead of plain PUBLISH.
                (Kind::Alternative(name), Via::Redis, _) if name != "ws" => {}
                (Kind::Livebridge | Kind::Running, Via::Batch, _) => {
                    rows.push(self.posts(self.parameters.batch, 4, true)?)
                }
                (_, Via::Batch, _) => {}
                (_, Via::Post, _) => rows.push(self.posts(1, 64, false)?),
                (_, Via::Redis, Some(url)) => rows.push(self.relay(url)?),
            }
        }
        Ok(rows)
    }

    /// Each connection waits for its answer before it publishes again.
    fn posts(&self, batch: usize, links: usize, lines: bool) -> Outcome<Row> {
        let links = self.parameters.links.unwrap_or(links);
        let server = self.start()?;
        let reader_set = ReaderSet { streams: links + 1, ..self.reader_set(&server, 1, 1) };
        let (mut harness, _) = Harness::connect(&server, reader_set)?;
        harness.start_publishers(&PublisherOptions { links, batch: lines, redis: None, size: self.parameters.size })?;
        harness.ask(batch, Duration::from_millis(500))?;
        harness.idle_for(Duration::from_millis(500))?;
        harness.restart()?;
        let before = process::own_cpu_seconds();
        harness.ask(batch, self.seconds(3.0))?;
        let own_cpu = process::own_cpu_seconds() - before;
        let (published, answers) = (harness.published(), harness.answer_times()?);
        let measured = harness.finish()?;
        let mut figures = vec![
            ("messages/s", published as f64 / measured.seconds),
            ("CPU µs/message", measured.server_cpu * 1e6 / published as f64),
            ("publisher µs", own_cpu * 1e6 / published as f64),
            ("answer p50 ms", answers.milliseconds(0.5)),
            ("answer p99 ms", answers.milliseconds(0.99)),
        ];
        figures.extend(measured.faults());
        let case = if lines {
            format!("batches of {batch}, {links} connections")
        } else {
            format!("POST, {links} connections")
        };
        Ok(self.row("ingest", case, figures))
    }

    fn relay(&self, url: &str) -> Outcome<Row> {
        let window = self.parameters.window.first().copied().unwrap_or(OUTSTANDING);
        let server = self.start()?;
        let mut harness = Harness::connect(&server, self.reader_set(&server, 1, 1))?.0;
        harness.start_publishers(&PublisherOptions {
            links: 1,
            batch: false,
            redis: Some(url.to_owned()),
            size: self.parameters.size,
        })?;
        harness.restart()?;
        harness.burst(window, u64::MAX, Duration::from_millis(500))?;
        harness.finish()?;
        harness.restart()?;
        harness.burst(window, u64::MAX, self.seconds(3.0))?;
        let (published, measured) = (harness.published(), harness.finish()?);
        let mut figures = vec![
            ("messages/s", published as f64 / measured.seconds),
            ("CPU µs/message", measured.server_cpu * 1e6 / published as f64),
            ("p50 ms", measured.latencies.milliseconds(0.5)),
            ("p99 ms", measured.latencies.milliseconds(0.99)),
        ];
        figures.extend(measured.faults());
        Ok(self.row("ingest", "Redis PUBLISH, one subscriber".to_owned(), figures))
    }

    /// Publishes batches in channels without subscribers, to measure accepting messages without
    /// delivering them. Each message gets an answer; with a history, the server's count of messages
    /// is compared too.
    pub(crate) fn publish(&self) -> Outcome<Vec<Row>> {
        match (self.kind, &self.setting.redis) {
            (Kind::Bare(..), Some(url)) => Ok(vec![Row { scenario: "publish", ..self.redis_itself(url)? }]),
            (Kind::Livebridge, _) => {
                let both = match self.setting.history {
                    None => vec![0, 100],
                    Some(history) => vec![history],
                };
                both.into_iter().map(|history| self.publish_to_nobody(history)).collect()
            }
            _ => Ok(Vec::new()),
        }
    }

    fn publish_to_nobody(&self, history: usize) -> Outcome<Row> {
        let setting = Setting { history: Some(history), ..self.setting.clone() };
        let runner = Runner { setting: &setting, ..*self };
        let (links, batch) = (self.parameters.links.unwrap_or(4), self.parameters.batch);
        let server = runner.start()?;
        let reader_set = ReaderSet { streams: links + 1, ..runner.reader_set(&server, 0, 1) };
        let (mut harness, _) = Harness::connect(&server, reader_set)?;
        harness.start_publishers(&PublisherOptions { links, batch: true, redis: None, size: self.parameters.size })?;
        harness.ask(batch, Duration::from_millis(500))?;
        let before = (history > 0).then(|| server.newest_offset()).transpose()?;
        harness.restart()?;
        harness.ask(batch, self.seconds(3.0))?;
        let (published, answers) = (harness.published(), harness.answer_times()?);
        let measured = harness.finish()?;
        let lost = match before {
            Some(before) => published as f64 - (server.newest_offset()? - before),
            None => 0.0,
        };
        let figures = vec![
            ("messages/s", published as f64 / measured.seconds),
            ("CPU µs/message", measured.server_cpu * 1e6 / published as f64),
            ("answer p50 ms", answers.milliseconds(0.5)),
            ("answer p99 ms", answers.milliseconds(0.99)),
            ("lost", lost.max(0.0)),
            ("doubled", (0.0 - lost).max(0.0)),
        ];
        let said = if history > 0 { "history" } else { "no history" };
        let broker = if setting.redis.is_some() { "Redis" } else { "embedded" };
        Ok(self.row("publish", format!("batches of {batch}, {links} links, {said}, {broker}"), figures))
    }

    /// The upper limit for these measurements: pipelined PUBLISH on one connection, without a
    /// server that subscribes.
    fn redis_itself(&self, url: &str) -> Outcome<Row> {
        let mut poll = Poll::new()?;
        let mut events = Events::with_capacity(16);
        let mut publishers = Publishers::connect(&[redis_address(url)], 1, Path::Redis, poll.registry(), 0)?;
        let start = Instant::now();
        let mut sequence = 0;
        while start.elapsed() < self.seconds(3.0) {
            while publishers.unanswered(0) < PIPELINE {
                sequence += 1;
                publishers.publish(0, &[Message { channel: 0, stream: 0, sequence, due: now() }], self.parameters.size);
            }
            publishers.flush()?;
            poll.poll(&mut events, Some(Duration::from_millis(100)))?;
            if !events.is_empty() {
                publishers.handle(0)?;
            }
        }
        let rate = publishers.answered() as f64 / start.elapsed().as_secs_f64();
        Ok(self.row("ingest", "Redis itself, PUBLISH pipelined".to_owned(), vec![("messages/s", rate)]))
    }
}
