//! The metrics of `/metrics`: a small number with conventional names, and no label per channel.
//! This file has those that are counted as events happen. `latency` has the durations, `sample` the
//! values that are sampled, `text` the output formats.

pub mod latency;
pub mod numbering;
mod process;
pub mod sample;
pub mod text;

use std::sync::{Mutex, PoisonError};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use self::latency::Latencies;
use self::numbering::NumberingMetrics;
use self::process::Process;
use self::sample::{Now, Sample, Samples};
use self::text::Format;
use crate::close::Code;

/// All metrics of an instance. Counters are atomics, so that counting is cheap.
pub struct Metrics {
    registry: Mutex<Registry>,
    /// Metrics of the process, whose names have no prefix.
    process: Registry,
    /// Durations.
    pub latency: Latencies,
    samples: Samples,
    /// Messages received from the broker.
    pub messages_in: Counter,
    /// Bytes of the payloads of these messages.
    pub bytes_in: Counter,
    /// Bytes written to subscribers' sockets.
    pub bytes_out: Counter,
    /// Messages handed to subscribers' connections.
    pub messages_out: Counter,
    /// Writes to subscribers' sockets, each a system call. `messages_out` divided by this is the
    /// average batch.
    pub writes: Counter,
    /// Messages that this instance accepted from publishers.
    pub published: Counter,
    /// Messages that this instance refused to publishers.
    pub publish_failed: Counter,
    /// Messages dropped because the event queue had no room.
    pub intake_dropped: Counter,
    /// Messages without a position that were dropped during the repair of a gap.
    pub plain_dropped: Counter,
    /// The numbering of plain messages.
    pub numbering: NumberingMetrics,
    /// How often a message showed that messages before it are missing.
    pub gaps_found: Counter,
    /// Gaps repaired from the history.
    pub gaps_repaired: Counter,
    /// Gaps that could not be repaired and were reported to subscribers.
    pub gaps_told: Counter,
    /// Stored messages that could not be read. Each was skipped and reported as a gap.
    pub unreadable: Counter,
    /// Lost connections to the broker.
    pub broker_disconnects: Counter,
    /// Restored connections to the broker.
    pub broker_reconnects: Counter,
    /// How often Sentinels named another master.
    pub failovers: Counter,
    /// How often livebridge read a client more slowly because it sent too fast.
    pub throttled: Counter,
    /// What went wrong with presence.
    pub presence: PresenceCounters,
    /// How often logs were shortened because of the bound on all logs.
    pub log_trims: Counter,
    /// Open accepted connections of any kind. The connection limit is compared with this value.
    pub sockets: Gauge,
    closes: Family<ReasonLabels, Counter>,
    refused: Family<ReasonLabels, Counter>,
    certificates: Family<CertificateLabels, Gauge>,
}

/// Whose certificate it is, on the connections to Redis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Certificate {
    /// That of Redis.
    Server,
    /// That of this instance.
    Client,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CertificateLabels {
    certificate: &'static str,
}

impl From<Certificate> for CertificateLabels {
    fn from(certificate: Certificate) -> Self {
        match certificate {
            Certificate::Server => Self { certificate: "server" },
            Certificate::Client => Self { certificate: "client" },
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BuildLabels {
    version: &'static str,
}

impl Metrics {
    /// All metrics at zero, with room for the samples of this many shards.
    pub fn new(shards: usize) -> Self {
        let mut registry = Registry::with_prefix("livebridge");
        let (latency, samples) = (Latencies::register(&mut registry), Samples::register(&mut registry, shards));
        let (bytes_in, bytes_out) = register_bytes(&mut registry);
        let presence = PresenceCounters::register(&mut registry);
        register_build(&mut registry);
        let certificates = register_certificates(&mut registry);
        let mut counter = |name: &str, help: &str| {
            let counter = Counter::default();
            registry.register(name, help, counter.clone());
            counter
        };
        let messages_in = counter("messages_in", "Messages received from the broker");
        let messages_out = counter("messages_out", "Messages handed to subscribers");
        let writes = counter("writes", "Writes to subscribers' sockets, each a system call");
        let published = counter("published", "Messages accepted from publishers");
        let publish_failed = counter("publish_failed", "Messages refused to publishers");
        let intake_dropped = counter("intake_dropped", "Messages for which the queue had no room");
        let plain_dropped = counter("plain_dropped", "Messages without a position dropped during a repair");
        let gaps_found = counter("gaps_found", "Times that a message did not follow the one before it");
        let gaps_repaired = counter("gaps_repaired", "Gaps repaired from the history");
        let gaps_told = counter("gaps_told", "Gaps that were reported to subscribers");
        let unreadable = counter("unreadable_messages", "Stored messages that could not be read and were skipped");
        let broker_disconnects = counter("broker_disconnects", "Lost connections to the broker");
        let broker_reconnects = counter("broker_reconnects", "Restored connections to the broker");
        let failovers = counter("redis_failovers", "Switches to another master that Sentinels or a Cluster named");
        let throttled = counter("throttled", "Clients that were read more slowly because they sent too fast");
        let log_trims = counter("log_trims", "Times that logs were shortened for the bound on all of them");
        let (numbering, sockets) = (NumberingMetrics::new(&mut registry), register_sockets(&mut registry));
        let (closes, refused) = register_reasons(&mut registry);
        Self {
            registry: Mutex::new(registry),
            process: process_registry(),
            latency,
            samples,
            messages_in,
            bytes_in,
            bytes_out,
            messages_out,
            writes,
            published,
            publish_failed,
            intake_dropped,
            plain_dropped,
            numbering,
            gaps_found,
            gaps_repaired,
            gaps_told,
            unreadable,
            broker_disconnects,
            broker_reconnects,
            failovers,
            throttled,
            presence,
            log_trims,
            sockets,
            closes,
            refused,
            certificates,
        }
    }

    /// Stores the current sample of a shard.
    pub fn set_sample(&self, shard: usize, sample: Sample) {
        self.samples.set(shard, sample);
    }

    /// Counts a subscriber that was closed or left.
    pub fn count_close(&self, code: Code) {
        self.closes.get_or_create(&ReasonLabels { reason: code.name() }).inc();
    }

    /// Counts a refusal at a limit.
    pub fn count_refused(&self, reason: &'static str) {
        self.refused.get_or_create(&ReasonLabels { reason }).inc();
    }

    /// Stores when a certificate expires, in seconds since 1970.
    pub fn set_certificate_expiry(&self, certificate: Certificate, at: i64) {
        self.certificates.get_or_create(&certificate.into()).set(at);
    }

    /// When a certificate expires, in seconds since 1970; `None` if there is none.
    pub fn certificate_expiry(&self, certificate: Certificate) -> Option<i64> {
        self.certificates.get(&certificate.into()).map(|at| at.get())
    }

    /// The text of `/metrics`, including the values in `now`.
    pub fn render(&self, format: Format, now: Now) -> String {
        self.samples.refresh(now);
        let mut out = String::new();
        // Writing to a String does not fail.
        let _ = encode_registry(&mut out, &self.registry.lock().unwrap_or_else(PoisonError::into_inner))
            .and_then(|()| encode_registry(&mut out, &self.process))
            .and_then(|()| encode_eof(&mut out));
        match format {
            Format::OpenMetrics => out,
            Format::Prometheus => text::to_prometheus(&out),
        }
    }
}

/// Counters of presence.
pub struct PresenceCounters {
    /// How often this instance could not tell the broker who is on a channel.
    pub failed: Counter,
    /// Joins and leaves that subscribers were not told of, because they do not read what was sent.
    pub dropped: Counter,
}

impl PresenceCounters {
    fn register(registry: &mut Registry) -> Self {
        let (failed, dropped) = (Counter::default(), Counter::default());
        let help = "Times that the broker could not be told who is on a channel";
        registry.register("presence_failed", help, failed.clone());
        registry.register("presence_dropped", "Joins and leaves that subscribers had no room for", dropped.clone());
        Self { failed, dropped }
    }
}

fn register_sockets(registry: &mut Registry) -> Gauge {
    let sockets = Gauge::default();
    registry.register("sockets", "Accepted connections", sockets.clone());
    sockets
}

fn register_reasons(registry: &mut Registry) -> (Family<ReasonLabels, Counter>, Family<ReasonLabels, Counter>) {
    let (closes, refused) = (Family::default(), Family::default());
    registry.register("refused", "What was refused at a limit, by reason", refused.clone());
    registry.register("closes", "Closed subscribers by reason", closes.clone());
    (closes, refused)
}

fn register_bytes(registry: &mut Registry) -> (Counter, Counter) {
    let (bytes_in, bytes_out) = (Counter::default(), Counter::default());
    registry.register_with_unit("messages_in", "Payloads received from the broker", Unit::Bytes, bytes_in.clone());
    registry.register_with_unit("messages_out", "Bytes that subscribers took", Unit::Bytes, bytes_out.clone());
    (bytes_in, bytes_out)
}

fn register_certificates(registry: &mut Registry) -> Family<CertificateLabels, Gauge> {
    let certificates = Family::default();
    let help = "When a certificate of the connections to Redis expires, in seconds since 1970";
    registry.register("redis_certificate_expiry_timestamp_seconds", help, certificates.clone());
    certificates
}

fn register_build(registry: &mut Registry) {
    // Not the library's `Info` metric, which the older text format does not support.
    let build: Family<BuildLabels, Gauge> = Family::default();
    build.get_or_create(&BuildLabels { version: env!("CARGO_PKG_VERSION") }).set(1);
    registry.register("build_info", "Always 1; the labels say what runs", build);
}

fn process_registry() -> Registry {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Process::new()));
    registry
}
