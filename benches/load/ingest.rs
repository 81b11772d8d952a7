//! How fast messages get in: `POST /publish`, NDJSON batches, and Redis `PUBLISH` to one subscriber.

use std::time::{Duration, Instant};

use mio::{Events, Poll};

use crate::Outcome;
use crate::message::{Message, now};
use crate::process;
use crate::publishers::{Path, Publishers};
use crate::readers::Crowd;
use crate::report::Row;
use crate::scenario::{Play, Via};
use crate::servers::Kind;
use crate::stage::{Entrance, Stage, redis_address};

/// Messages on their way from Redis to the one subscriber: fewer than the naive program's backlog, past which it loses some.
const OUTSTANDING: u64 = 1000;

/// Unanswered commands when Redis itself is measured.
const PIPELINE: usize = 1000;

impl Play<'_> {
    pub(crate) fn ingest(&self) -> Outcome<Vec<Row>> {
        let every = [Via::Post, Via::Batch, Via::Redis];
        let mut rows = Vec::new();
        for via in every.into_iter().filter(|via| self.wishes.via.is_none_or(|wanted| wanted == *via)) {
            match (self.kind, via, &self.setting.redis) {
                (Kind::Bare(..), Via::Redis, Some(url)) => rows.push(self.redis_itself(url)?),
                (Kind::Bare(..), ..) | (_, Via::Redis, None) => {}
                // Theirs is another protocol on Redis than a plain PUBLISH.
                (Kind::Alternative(name), Via::Redis, _) if name != "ws" => {}
                (Kind::Livebridge | Kind::Running, Via::Batch, _) => {
                    rows.push(self.posts(self.wishes.batch, 4, true)?)
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
        let links = self.wishes.links.unwrap_or(links);
        let server = self.start()?;
        let crowd = Crowd { streams: links + 1, ..self.crowd(&server, 1, 1) };
        let (mut stage, _) = Stage::gather(&server, crowd)?;
        stage.enter(&Entrance { links, batch: lines, redis: None, size: self.wishes.size })?;
        stage.ask(batch, Duration::from_millis(500))?;
        stage.rest(Duration::from_millis(500))?;
        stage.restart()?;
        let before = process::own_cpu_seconds();
        stage.ask(batch, self.seconds(3.0))?;
        let own_cpu = process::own_cpu_seconds() - before;
        let (published, answers) = (stage.published(), stage.answer_times()?);
        let measured = stage.finish()?;
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
        let window = self.wishes.window.first().copied().unwrap_or(OUTSTANDING);
        let server = self.start()?;
        let mut stage = Stage::gather(&server, self.crowd(&server, 1, 1))?.0;
        stage.enter(&Entrance { links: 1, batch: false, redis: Some(url.to_owned()), size: self.wishes.size })?;
        stage.restart()?;
        stage.burst(window, u64::MAX, Duration::from_millis(500))?;
        stage.finish()?;
        stage.restart()?;
        stage.burst(window, u64::MAX, self.seconds(3.0))?;
        let (published, measured) = (stage.published(), stage.finish()?);
        let mut figures = vec![
            ("messages/s", published as f64 / measured.seconds),
            ("CPU µs/message", measured.server_cpu * 1e6 / published as f64),
            ("p50 ms", measured.latencies.milliseconds(0.5)),
            ("p99 ms", measured.latencies.milliseconds(0.99)),
        ];
        figures.extend(measured.faults());
        Ok(self.row("ingest", "Redis PUBLISH, one subscriber".to_owned(), figures))
    }

    /// The limit for all of these: pipelined PUBLISH on one connection, with no server listening.
    fn redis_itself(&self, url: &str) -> Outcome<Row> {
        let mut poll = Poll::new()?;
        let mut events = Events::with_capacity(16);
        let mut publishers = Publishers::connect(&[redis_address(url)], 1, Path::Redis, poll.registry(), 0)?;
        let start = Instant::now();
        let mut sequence = 0;
        while start.elapsed() < self.seconds(3.0) {
            while publishers.unanswered(0) < PIPELINE {
                sequence += 1;
                publishers.publish(0, &[Message { channel: 0, stream: 0, sequence, due: now() }], self.wishes.size);
            }
            publishers.flush()?;
            poll.poll(&mut events, Some(Duration::from_millis(100)))?;
            if !events.is_empty() {
                publishers.turn(0)?;
            }
        }
        let rate = publishers.answered() as f64 / start.elapsed().as_secs_f64();
        Ok(self.row("ingest", "Redis itself, PUBLISH pipelined".to_owned(), vec![("messages/s", rate)]))
    }
}
