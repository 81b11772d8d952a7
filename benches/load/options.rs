//! The command line, and its conversion into the parameters of scenarios.

use std::path::PathBuf;

use clap::Parser;

use crate::Outcome;
use crate::dialect::Dialect;
use crate::message;
use crate::scenario::{Parameters, Scenario, Via};
use crate::servers::{Running, Setting};

/// Measures livebridge and what it is compared with, on this machine's loopback only.
#[derive(Parser)]
#[command(name = "load", version, after_help = EXAMPLES)]
pub(crate) struct Options {
    /// Scenarios; with `compare` first, for several servers in turn
    pub(crate) scenarios: Vec<Scenario>,
    /// Servers: livebridge, naive, bare[:FRAMES[:WRITERS]], nchan, ws, socketio, sockudo, centrifugo, running
    #[arg(long, value_delimiter = ',')]
    pub(crate) server: Vec<String>,
    /// How often to run everything, servers in turn
    #[arg(long)]
    pub(crate) rounds: Option<usize>,
    /// Append a JSON line per row to this file (`-`: standard output)
    #[arg(long)]
    pub(crate) json: Option<PathBuf>,
    /// The livebridge to start (default: beside this program)
    #[arg(long)]
    pub(crate) livebridge: Option<PathBuf>,
    /// NAME=VALUE for livebridge's environment
    #[arg(long = "env")]
    pub(crate) environment: Vec<String>,
    /// Redis for the servers: a URL, or `own` to start one for the run
    #[arg(long)]
    pub(crate) redis: Option<String>,
    /// Instances of the server, all on the Redis
    #[arg(long, default_value_t = 1)]
    pub(crate) instances: usize,
    /// How to publish (default: post; ingest: all)
    #[arg(long)]
    pub(crate) via: Option<Via>,
    /// Server-Sent Events instead of WebSocket
    #[arg(long)]
    pub(crate) events: bool,
    /// Subscribers
    #[arg(long, short)]
    pub(crate) subscribers: Option<usize>,
    /// Messages outstanding per subscriber, comma-separated
    #[arg(long, short, value_delimiter = ',')]
    pub(crate) window: Vec<u64>,
    /// Seconds to measure for
    #[arg(long, short = 't')]
    pub(crate) seconds: Option<f64>,
    /// Deliveries a second, comma-separated (steady, slow)
    #[arg(long, short, value_delimiter = ',')]
    pub(crate) rate: Vec<f64>,
    /// Channels (channels)
    #[arg(long, short)]
    pub(crate) channels: Option<usize>,
    /// The most messages to publish (bursts); how many flood the stuck subscribers (slow)
    #[arg(long, short)]
    pub(crate) messages: Option<u64>,
    /// Publishing connections (ingest)
    #[arg(long, short)]
    pub(crate) links: Option<usize>,
    /// Messages a batch (ingest)
    #[arg(long, default_value_t = 100)]
    pub(crate) batch: usize,
    /// Bytes of a message
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u64).range(message::HEADER as u64..=message::LARGEST as u64))]
    pub(crate) size: u64,
    /// Handshakes at once
    #[arg(long, default_value_t = 200)]
    pub(crate) at_once: usize,
    /// Check the messages of one subscriber of each reader process, and count the bytes of the others, which the
    /// kernel discards (burst; livebridge, naive and bare, whose subscribers all get the same bytes)
    #[arg(long)]
    pub(crate) counted: bool,
    /// Numbers of connections (growth, memory)
    #[arg(long, value_delimiter = ',')]
    pub(crate) steps: Vec<usize>,
    /// Messages of history that livebridge keeps for a channel (default: its own; growth, publish:
    /// without and with)
    #[arg(long)]
    pub(crate) history: Option<usize>,
    /// Minutes of a soak
    #[arg(long, default_value_t = 20.0)]
    pub(crate) minutes: f64,
    /// A running server: where to subscribe, `ws://127.0.0.1:PORT/PATH?channel={channel}`
    #[arg(long, default_value = "")]
    pub(crate) url: String,
    /// A running server: where to POST
    #[arg(long, default_value = "")]
    pub(crate) publish_url: String,
    /// A running server: its processes, to count their CPU and memory
    #[arg(long, value_delimiter = ',')]
    pub(crate) pid: Vec<u32>,
    /// A running server: ws, sse, socketio, pusher or centrifuge; livebridge: only the latter
    #[arg(long)]
    pub(crate) dialect: Option<String>,
    /// Given by `cargo bench`; means nothing
    #[arg(long, hide = true)]
    pub(crate) bench: bool,
}

const EXAMPLES: &str = "Examples:
  load burst                                    livebridge, 1,000 subscribers, windows 1, 16 and 64
  load burst -s 5000 -w 16 --server bare:8      8 ready frames a write
  load steady -r 50000,150000 --server naive
  load memory -s 19000 [--events]
  load ingest --redis own                       POST, batches, Redis PUBLISH
  load hold --redis own                         50,000 connections, over three instances
  load soak --redis own --minutes 20
  load compare burst steady --rounds 3 --json results.jsonl
  load plot results.jsonl --out docs/images";

impl Options {
    pub(crate) fn setting(&self, redis: Option<String>) -> Outcome<Setting> {
        let pairs = self.environment.iter().filter_map(|pair| pair.split_once('='));
        Ok(Setting {
            livebridge: self.livebridge.clone(),
            environment: pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
            redis,
            instances: self.instances.max(1),
            history: self.history,
            running: Running {
                url: self.url.clone(),
                publish_url: self.publish_url.clone(),
                pids: self.pid.clone(),
                dialect: self.dialect.as_deref().map(Dialect::parse).transpose()?,
            },
        })
    }

    pub(crate) fn parameters(&self) -> Parameters {
        Parameters {
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
            counted: self.counted,
            steps: self.steps.clone(),
            minutes: self.minutes,
        }
    }
}
