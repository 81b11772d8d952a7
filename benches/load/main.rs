//! The load program: measures livebridge beside the naive program, the bare kernel and other servers, on loopback only.
//!
//! `cargo bench --bench load -- SCENARIO… [OPTIONS]`; without a scenario it explains itself and does nothing, so that
//! `cargo test --all-targets` may run it. docs/PERFORMANCE.md has the commands behind every figure.
//!
//! # Layout
//!
//! `scenario` says what is measured, on a `stage`: a server of `servers` (or `naive`, `bare`), the reader processes behind
//! `readers`, and `publishers`. Inside a reader process, `subscribers` drives the sockets, `dialect` and `frames` know the
//! bytes, `checks` judges every `message`. `ingest` is one scenario apart, `process` reads /proc, `report` prints.

mod bare;
mod checks;
mod dialect;
mod frames;
mod histogram;
mod ingest;
mod message;
mod naive;
mod process;
mod publishers;
mod readers;
mod report;
mod scenario;
mod servers;
mod stage;
mod subscribers;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use crate::dialect::Dialect;
use crate::report::Report;
use crate::scenario::{Play, Scenario, Via, Wishes};
use crate::servers::{Kind, Redis, Running, Setting};

/// A result whose error is only ever shown to a person.
pub(crate) type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// Measures livebridge and what it is compared with, on this machine's loopback only.
#[derive(Parser)]
#[command(name = "load", version, after_help = EXAMPLES)]
struct Options {
    /// What to measure; `compare` first: for several servers in turn
    scenarios: Vec<Scenario>,
    /// Servers: livebridge, naive, bare[:FRAMES[:WRITERS]], nchan, ws, socketio, running
    #[arg(long, value_delimiter = ',')]
    server: Vec<String>,
    /// How often to run everything, servers in turn
    #[arg(long)]
    rounds: Option<usize>,
    /// Append a JSON line per row to this file (`-`: standard output)
    #[arg(long)]
    json: Option<PathBuf>,
    /// The livebridge to start (default: beside this program)
    #[arg(long)]
    livebridge: Option<PathBuf>,
    /// NAME=VALUE for livebridge's environment
    #[arg(long = "env")]
    environment: Vec<String>,
    /// Redis for the servers: a URL, or `own` to start one for the run
    #[arg(long)]
    redis: Option<String>,
    /// Instances of the server, all on the Redis
    #[arg(long, default_value_t = 1)]
    instances: usize,
    /// How messages get in (default: post; ingest: all)
    #[arg(long)]
    via: Option<Via>,
    /// Server-Sent Events instead of WebSocket
    #[arg(long)]
    events: bool,
    /// Subscribers
    #[arg(long, short)]
    subscribers: Option<usize>,
    /// Messages outstanding per subscriber, comma-separated
    #[arg(long, short, value_delimiter = ',')]
    window: Vec<u64>,
    /// Seconds to measure for
    #[arg(long, short = 't')]
    seconds: Option<f64>,
    /// Deliveries a second, comma-separated (steady, slow)
    #[arg(long, short, value_delimiter = ',')]
    rate: Vec<f64>,
    /// Channels (channels)
    #[arg(long, short)]
    channels: Option<usize>,
    /// The most messages to publish (bursts); how many flood the stuck subscribers (slow)
    #[arg(long, short)]
    messages: Option<u64>,
    /// Publishing connections (ingest)
    #[arg(long, short)]
    links: Option<usize>,
    /// Messages a batch (ingest)
    #[arg(long, default_value_t = 100)]
    batch: usize,
    /// Bytes of a message
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u64).range(message::HEADER as u64..=message::LARGEST as u64))]
    size: u64,
    /// Handshakes at once
    #[arg(long, default_value_t = 200)]
    at_once: usize,
    /// Numbers of connections (growth)
    #[arg(long, value_delimiter = ',')]
    steps: Vec<usize>,
    /// A running server: where to subscribe, `ws://127.0.0.1:PORT/PATH?channel={channel}`
    #[arg(long, default_value = "")]
    url: String,
    /// A running server: where to POST
    #[arg(long, default_value = "")]
    publish_url: String,
    /// A running server: its processes, to count their CPU and memory
    #[arg(long, value_delimiter = ',')]
    pid: Vec<u32>,
    /// A running server: ws, sse or socketio
    #[arg(long)]
    dialect: Option<String>,
    /// Given by `cargo bench`; means nothing
    #[arg(long, hide = true)]
    bench: bool,
}

const EXAMPLES: &str = "Examples:
  load burst                                    livebridge, 1,000 subscribers, windows 1, 16 and 64
  load burst -s 5000 -w 16 --server bare:8      8 ready frames a write
  load steady -r 50000,150000 --server naive
  load memory -s 19000 [--events]
  load ingest --redis own                       POST, batches, Redis PUBLISH
  load compare burst steady --rounds 3 --json results.jsonl";

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            writeln!(std::io::stderr(), "load: messages were lost, doubled, reordered or changed").ok();
            ExitCode::FAILURE
        }
        Err(error) => {
            writeln!(std::io::stderr(), "load: {error}").ok();
            ExitCode::FAILURE
        }
    }
}

/// Everything; false where a server failed or a delivery was wrong.
fn run() -> Outcome<bool> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    // The program starts itself in these parts; they are no user's business.
    match arguments[..] {
        ["--read"] => return subscribers::run().map(|()| true),
        ["--serve-naive", port, redis] => {
            return naive::serve(port.parse()?, Some(redis).filter(|url| !url.is_empty())).map(|()| true);
        }
        ["--serve-bare", port, frames, writers] => {
            return bare::serve(port.parse()?, frames.parse()?, writers.parse()?).map(|()| true);
        }
        _ => {}
    }
    let mut options = Options::parse();
    if options.scenarios.is_empty() {
        writeln!(std::io::stdout(), "{}", Options::command().render_help())?;
        return Ok(true);
    }
    let compare = options.scenarios[0] == Scenario::Compare;
    options.scenarios.retain(|scenario| *scenario != Scenario::Compare);
    if options.server.is_empty() {
        let names: &[&str] = match (compare, options.url.is_empty()) {
            (true, _) => &["livebridge", "naive", "bare", "bare:8"],
            (false, true) => &["livebridge"],
            (false, false) => &["running"],
        };
        options.server = names.iter().map(|name| (*name).to_owned()).collect();
    }
    perform(&options, compare)
}

fn perform(options: &Options, compare: bool) -> Outcome<bool> {
    let own = if options.redis.as_deref() == Some("own") { Some(Redis::start()?) } else { None };
    let redis = own.as_ref().map(|redis| redis.url.clone()).or_else(|| options.redis.clone());
    let setting = options.setting(redis)?;
    let wishes = options.wishes();
    let kinds =
        options.server.iter().map(|name| Ok((name.as_str(), Kind::parse(name)?))).collect::<Outcome<Vec<_>>>()?;
    let mut report = Report::new(options.json.clone());
    let mut failed = false;
    for scenario in &options.scenarios {
        for _ in 0..options.rounds.unwrap_or(if compare { 3 } else { 1 }) {
            for (name, kind) in &kinds {
                let play = Play { name, kind, setting: &setting, wishes: &wishes };
                match play.run(*scenario) {
                    Ok(rows) => rows.into_iter().try_for_each(|row| report.add(row))?,
                    // One server's failure is a result too; the others are still measured.
                    Err(error) => {
                        failed = true;
                        writeln!(std::io::stderr(), "load: {scenario:?}, {name}: {error}")?;
                    }
                }
            }
        }
    }
    if compare {
        report.compare()?;
    }
    if report.faults() {
        writeln!(std::io::stderr(), "load: messages were lost, doubled, reordered or changed")?;
        failed = true;
    }
    Ok(!failed)
}

impl Options {
    fn setting(&self, redis: Option<String>) -> Outcome<Setting> {
        let pairs = self.environment.iter().filter_map(|pair| pair.split_once('='));
        Ok(Setting {
            livebridge: self.livebridge.clone(),
            environment: pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
            redis,
            instances: self.instances.max(1),
            running: Running {
                url: self.url.clone(),
                publish_url: self.publish_url.clone(),
                pids: self.pid.clone(),
                dialect: self.dialect.as_deref().map(Dialect::parse).transpose()?,
            },
        })
    }

    fn wishes(&self) -> Wishes {
        Wishes {
            subscribers: self.subscribers,
            window: self.window.clone(),
            seconds: self.seconds,
            rate: self.rate.clone(),
            channels: self.channels,
            messages: self.messages,
            links: self.links,
            batch: self.batch,
            size: self.size as usize,
            via: self.via,
            events: self.events,
            at_once: self.at_once,
            steps: self.steps.clone(),
        }
    }
}
