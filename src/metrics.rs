//! What the operator sees in `/metrics`: a few numbers with the field's names, never a label per channel.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::close::Code;

/// All numbers of an instance. Counters are atomics: counting costs nothing worth counting.
pub struct Metrics {
    registry: Mutex<Registry>,
    /// Messages heard from the broker.
    pub messages_in: Counter,
    /// Messages handed to subscribers.
    pub messages_out: Counter,
    /// Writes to subscribers' sockets, each a system call: with `messages_out`, how large the batches are.
    pub writes: Counter,
    /// Messages that publishers of this instance had accepted.
    pub published: Counter,
    /// Messages that publishers of this instance had refused.
    pub publish_failed: Counter,
    /// Messages for which the intake had no room.
    pub intake_dropped: Counter,
    /// Messages without a position that were dropped while a gap was being repaired.
    pub plain_dropped: Counter,
    /// Gaps that were repaired from the history.
    pub gaps_repaired: Counter,
    /// Gaps that could not be repaired, so that subscribers were told.
    pub gaps_told: Counter,
    /// How often the broker's connection was lost.
    pub broker_disconnects: Counter,
    /// How often a client was read more slowly because it sent too fast.
    pub throttled: Counter,
    /// How often logs were shortened for the bound on all of them.
    pub log_trims: Counter,
    /// Accepted connections, whatever they are used for. The very count that the limit is compared with.
    pub sockets: Gauge,
    connections: Gauge,
    by_shard: Vec<AtomicU64>,
    channels: Gauge,
    log_bytes: Gauge,
    broker_up: Gauge,
    closes: Family<ReasonLabels, Counter>,
    refused: Family<ReasonLabels, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

impl Metrics {
    /// All at zero, for so many shards.
    pub fn new(shards: usize) -> Self {
        let mut registry = Registry::with_prefix("livebridge");
        let mut counter = |name: &str, help: &str| {
            let counter = Counter::default();
            registry.register(name, help, counter.clone());
            counter
        };
        let messages_in = counter("messages_in", "Messages heard from the broker");
        let messages_out = counter("messages_out", "Messages handed to subscribers");
        let writes = counter("writes", "Writes to subscribers' sockets, each a system call");
        let published = counter("published", "Messages accepted from publishers");
        let publish_failed = counter("publish_failed", "Messages refused to publishers");
        let intake_dropped = counter("intake_dropped", "Messages for which the intake had no room");
        let plain_dropped = counter("plain_dropped", "Messages without a position dropped during a repair");
        let gaps_repaired = counter("gaps_repaired", "Gaps repaired from the history");
        let gaps_told = counter("gaps_told", "Gaps that subscribers had to be told");
        let broker_disconnects = counter("broker_disconnects", "Lost connections to the broker");
        let throttled = counter("throttled", "Clients that were read more slowly because they sent too fast");
        let log_trims = counter("log_trims", "Times that logs were shortened for the bound on all of them");
        let closes = Family::default();
        let refused = Family::default();
        registry.register("refused", "What was refused at a limit, by reason", refused.clone());
        registry.register("closes", "Closed subscribers by reason", closes.clone());
        let mut gauge = |name: &str, help: &str| {
            let gauge = Gauge::default();
            registry.register(name, help, gauge.clone());
            gauge
        };
        let sockets = gauge("sockets", "Accepted connections");
        let connections = gauge("connections", "Connected subscribers");
        let channels = gauge("channels", "Channels with subscribers");
        let log_bytes = gauge("log_bytes", "Bytes in the channels' logs");
        let broker_up = gauge("broker_up", "Whether the broker answers");
        Self {
            registry: Mutex::new(registry),
            messages_in,
            messages_out,
            writes,
            published,
            publish_failed,
            intake_dropped,
            plain_dropped,
            gaps_repaired,
            gaps_told,
            broker_disconnects,
            throttled,
            log_trims,
            sockets,
            connections,
            by_shard: (0..shards).map(|_| AtomicU64::new(0)).collect(),
            channels,
            log_bytes,
            broker_up,
            closes,
            refused,
        }
    }

    /// How many subscribers a shard has.
    pub fn set_connections(&self, shard: usize, connections: usize) {
        self.by_shard[shard].store(connections as u64, Ordering::Relaxed);
    }

    /// How many subscribers there are, as of the last second.
    pub fn connections(&self) -> u64 {
        self.by_shard.iter().map(|shard| shard.load(Ordering::Relaxed)).sum()
    }

    /// A subscriber was closed, or left.
    pub fn count_close(&self, code: Code) {
        self.closes.get_or_create(&ReasonLabels { reason: code.name() }).inc();
    }

    /// Something was refused at a limit.
    pub fn count_refused(&self, reason: &'static str) {
        self.refused.get_or_create(&ReasonLabels { reason }).inc();
    }

    /// The Prometheus text, with what is counted elsewhere filled in.
    pub fn render(&self, channels: usize, log_bytes: usize, broker_up: bool) -> String {
        self.connections.set(self.connections() as i64);
        self.channels.set(channels as i64);
        self.log_bytes.set(log_bytes as i64);
        self.broker_up.set(i64::from(broker_up));
        let mut out = String::new();
        // Writing to a String does not fail.
        let _ = text::encode(&mut out, &self.registry.lock().unwrap_or_else(PoisonError::into_inner));
        out
    }
}
