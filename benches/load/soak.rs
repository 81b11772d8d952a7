//! A soak test of several minutes. Clients connect, disconnect in different ways, read too slowly,
//! and resume on any instance, while messages are published at a limited rate, through a real
//! Redis, in many channels with history. Each message is checked; memory, connections, log bytes
//! and descriptors are sampled. `soak_client.rs` is one client.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::Outcome;
use crate::message::{Message, now};
use crate::process;
use crate::publishers::{lines, post};
use crate::report::Row;
use crate::scenario::Runner;
use crate::servers::{Kind, Server, Setting};
use crate::soak_client::{BUSY_CHANNELS, SoakClient, SoakState};

/// The history of a channel, in messages: a slow reader that is closed because it fell behind by
/// the whole log can still resume.
const HISTORY: usize = 2000;

/// The interval of batches.
const TICK: Duration = Duration::from_millis(50);

/// The messages of each busy channel per tick, and their size in bytes: a reader that stops falls
/// behind by a whole log in about 15 seconds.
const BUSY_COUNT: u32 = 2;
const BUSY_SIZE: usize = 16 << 10;

const SAMPLE_EVERY: Duration = Duration::from_secs(5);

/// How long clients have to receive the last messages, and the server to forget clients that have
/// left.
const END: Duration = Duration::from_secs(20);
const AFTER: Duration = Duration::from_secs(8);

const COLUMNS: [&str; 6] = ["seconds", "PSS MB", "connections", "log MB", "descriptors", "deliveries/s"];

impl Runner<'_> {
    pub(crate) fn soak(&self) -> Outcome<Vec<Row>> {
        if *self.kind != Kind::Livebridge {
            return Ok(Vec::new()); // the checks need the positions of livebridge
        }
        if self.setting.redis.is_none() {
            return Err("a soak goes through a real Redis: --redis own".into());
        }
        let setting = Setting { history: Some(HISTORY), ..self.setting.clone() };
        let server = Runner { setting: &setting, ..*self }.start()?;
        let channels = self.parameters.channels.unwrap_or(100).max(BUSY_CHANNELS + 1);
        let clients = self.parameters.subscribers.unwrap_or(400);
        let rate = self.parameters.rate.first().copied().unwrap_or(1000.0);
        let time = Duration::from_secs_f64((self.parameters.minutes * 60.0).clamp(10.0, 24.0 * 3600.0));
        let state = Arc::new(SoakState::new(server.ports.clone(), channels));
        let base = server.pss_bytes();
        let samples = run_load(&server, &state, clients, rate, time)?;
        std::thread::park_timeout(AFTER);
        let mut figures = vec![("before MB", base / 1e6)];
        figures.extend(summary(&samples));
        figures
            .extend([("after MB", server.pss_bytes() / 1e6), ("left open", server.metric("livebridge_connections"))]);
        figures.extend(state.tally.figures());
        let case = format!("{:.0} min, {clients} clients, {channels} channels", time.as_secs_f64() / 60.0);
        let row = self.row("soak", case, figures);
        Ok(vec![Row { series: (COLUMNS.to_vec(), samples), ..row }])
    }
}

/// Runs clients and publisher for the configured time and samples. Then lets all clients receive
/// the last messages.
fn run_load(
    server: &Server,
    state: &Arc<SoakState>,
    clients: usize,
    rate: f64,
    time: Duration,
) -> Outcome<Vec<Vec<f64>>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let tasks: Vec<_> =
        (0..clients).map(|number| runtime.spawn(SoakClient::new(number, state.clone()).run())).collect();
    let stop = Arc::new(AtomicBool::new(false));
    let publisher = {
        let (state, stop) = (state.clone(), stop.clone());
        std::thread::spawn(move || publish(&state, rate, &stop))
    };
    let start = Instant::now();
    let every = SAMPLE_EVERY.min(time / 10);
    let mut samples = Vec::new();
    let mut delivered = (0, Instant::now());
    while start.elapsed() < time && !publisher.is_finished() {
        std::thread::park_timeout(every);
        let now = (state.tally.delivered.load(Ordering::Relaxed), Instant::now());
        let rate = (now.0 - delivered.0) as f64 / (now.1 - delivered.1).as_secs_f64();
        delivered = now;
        samples.push(sample(server, start.elapsed().as_secs_f64(), rate));
    }
    stop.store(true, Ordering::Relaxed);
    publisher.join().map_err(|_| "the publisher broke off")??;
    state.end();
    runtime.block_on(async {
        let all = async {
            for task in tasks {
                task.await.ok();
            }
        };
        if tokio::time::timeout(END, all).await.is_err() {
            state.tally.late.fetch_add(1, Ordering::Relaxed);
        }
    });
    runtime.shutdown_timeout(Duration::from_secs(1));
    Ok(samples)
}

fn sample(server: &Server, seconds: f64, rate: f64) -> Vec<f64> {
    vec![
        seconds,
        server.pss_bytes() / 1e6,
        server.metric("livebridge_connections"),
        server.metric("livebridge_log_bytes") / 1e6,
        process::descriptors(&server.pids) as f64,
        rate,
    ]
}

/// Memory at the start, at the end, and at its peak. The first two are averages over a fifth of the
/// samples, so that slow growth shows.
fn summary(samples: &[Vec<f64>]) -> [(&'static str, f64); 4] {
    let fifth = (samples.len() / 5).max(1).min(samples.len());
    let mean = |part: &[Vec<f64>], column: usize| {
        part.iter().map(|sample| sample[column]).sum::<f64>() / part.len().max(1) as f64
    };
    // Logs and caches still fill up during the first fifth, so the second one counts as the start.
    let early = samples.get(fifth..2 * fifth).unwrap_or(samples);
    let late = &samples[samples.len() - fifth..];
    [
        ("early MB", mean(early, 1)),
        ("late MB", mean(late, 1)),
        ("peak MB", samples.iter().map(|sample| sample[1]).fold(0.0, f64::max)),
        ("descriptors", mean(late, 4)),
    ]
}

/// Publishes batches to the instances in turn, and waits for each answer before the next batch.
fn publish(state: &SoakState, rate: f64, stop: &AtomicBool) -> Outcome<()> {
    let mut links =
        state.ports.iter().map(|port| TcpStream::connect(("127.0.0.1", *port))).collect::<Result<Vec<_>, _>>()?;
    for link in &mut links {
        link.set_nodelay(true)?;
        link.set_read_timeout(Some(Duration::from_secs(10)))?;
    }
    let each = (rate * TICK.as_secs_f64()).ceil() as usize;
    let quiet = state.channels() - BUSY_CHANNELS;
    let mut sequences = vec![0; state.channels()];
    let mut next = 0;
    let mut due = Instant::now();
    for turn in 0.. {
        if stop.load(Ordering::Relaxed) {
            return Ok(());
        }
        std::thread::park_timeout(due.saturating_duration_since(Instant::now()));
        due = (due + TICK).max(Instant::now() - TICK);
        let mut message = |channel: usize| {
            sequences[channel] += 1;
            Message { channel: channel as u32, stream: 0, sequence: sequences[channel], due: now() }
        };
        let small: Vec<_> = (0..each).map(|index| message(BUSY_CHANNELS + (next + index) % quiet)).collect();
        next = (next + each) % quiet;
        let large: Vec<_> =
            (0..BUSY_COUNT as usize * BUSY_CHANNELS).map(|index| message(index % BUSY_CHANNELS)).collect();
        let mut body = lines(&small, 128);
        body.extend(lines(&large, BUSY_SIZE));
        let mut request = Vec::new();
        post("/publish", 0, "application/x-ndjson", &body, &mut request);
        let count = links.len();
        exchange(&mut links[turn % count], &request)?;
        state.tally.published.fetch_add((small.len() + large.len()) as u64, Ordering::Relaxed);
        state.advance(&sequences);
    }
    Ok(())
}

/// Sends a request and reads the whole response, which must have status 200.
fn exchange(link: &mut TcpStream, request: &[u8]) -> Outcome<()> {
    link.write_all(request)?;
    let mut answer = Vec::new();
    let mut buffer = [0; 64 << 10];
    loop {
        let count = link.read(&mut buffer)?;
        if count == 0 {
            return Err("the publishing connection was closed".into());
        }
        answer.extend_from_slice(&buffer[..count]);
        if answer.ends_with(b"]}\n") || answer.ends_with(b"}}\n") {
            break;
        }
    }
    if answer.get(9..12) == Some(b"200") { Ok(()) } else { Err(String::from_utf8_lossy(&answer).into()) }
}
