//! Metrics that are sampled instead of counted. Each shard stores a sample once a second, and
//! `/metrics` reports the sum of the last samples. The values of the hub and the broker are read
//! when `/metrics` is requested.

use std::sync::{Mutex, MutexGuard, PoisonError};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// The current values of a shard.
#[derive(Clone, Copy, Default, Debug)]
pub struct Sample {
    /// Subscribers over WebSocket.
    pub websockets: usize,
    /// Subscribers over Server-Sent Events.
    pub event_streams: usize,
    /// The subscriptions of all subscribers.
    pub subscriptions: usize,
    /// Subscribers whose sockets are full.
    pub behind: usize,
    /// How many messages the slowest subscriber has yet to receive.
    pub backlog: u64,
}

/// The values that are read when `/metrics` is requested.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// Channels with subscribers.
    pub channels: usize,
    /// Channels with presence that have clients on this instance.
    pub presence_channels: usize,
    /// Bytes in the logs of all channels.
    pub log_bytes: usize,
    /// Bytes of incomplete bodies and messages from clients.
    pub incoming_bytes: usize,
    /// Bytes of pages of history and partly written frames.
    pub outgoing_bytes: usize,
    /// Whether the broker is reachable.
    pub broker_up: bool,
    /// The masters of a Redis Cluster that serve slots.
    pub redis_shards: usize,
    /// Those of them that answer.
    pub redis_shards_up: usize,
    /// The slots with a master.
    pub redis_slots: usize,
}

/// The last sample of each shard.
pub(super) struct Samples {
    by_shard: Mutex<Box<[Sample]>>,
    connections: Family<TransportLabels, Gauge>,
    subscriptions: Gauge,
    behind: Gauge,
    backlog: Gauge,
    channels: Gauge,
    presence_channels: Gauge,
    log_bytes: Gauge,
    incoming_bytes: Gauge,
    outgoing_bytes: Gauge,
    broker_up: Gauge,
    redis_shards: Gauge,
    redis_shards_up: Gauge,
    redis_slots: Gauge,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TransportLabels {
    transport: &'static str,
}

impl Samples {
    pub(super) fn register(registry: &mut Registry, shards: usize) -> Self {
        let connections = Family::default();
        registry.register("connections", "Connected subscribers, by transport", connections.clone());
        let mut gauge = |name: &str, help: &str| {
            let gauge = Gauge::default();
            registry.register(name, help, gauge.clone());
            gauge
        };
        Self {
            by_shard: Mutex::new(vec![Sample::default(); shards].into()),
            connections,
            subscriptions: gauge("subscriptions", "Channels of all connected subscribers together"),
            behind: gauge("subscribers_behind", "Subscribers whose sockets are full"),
            backlog: gauge("backlog_messages", "Messages that the slowest subscriber has yet to take"),
            channels: gauge("channels", "Channels with subscribers"),
            presence_channels: gauge("presence_channels", "Channels with presence that have clients on this instance"),
            log_bytes: gauge("log_bytes", "Bytes in the channels' logs"),
            incoming_bytes: gauge("incoming_bytes", "Bytes of bodies and unfinished messages on their way in"),
            outgoing_bytes: gauge(
                "outgoing_bytes",
                "Bytes of pages of history and partly written frames that clients have yet to receive",
            ),
            broker_up: gauge("broker_up", "Whether the broker answers"),
            redis_shards: gauge("redis_shards", "Masters of the Redis Cluster that serve slots"),
            redis_shards_up: gauge("redis_shards_up", "Masters of the Redis Cluster that answer"),
            redis_slots: gauge("redis_slots", "Hash slots of the Redis Cluster that have a master, of 16384"),
        }
    }

    pub(super) fn set(&self, shard: usize, sample: Sample) {
        self.by_shard()[shard] = sample;
    }

    /// Updates the gauges.
    pub(super) fn refresh(&self, now: Now) {
        self.channels.set(now.channels as i64);
        self.presence_channels.set(now.presence_channels as i64);
        self.log_bytes.set(now.log_bytes as i64);
        self.incoming_bytes.set(now.incoming_bytes as i64);
        self.outgoing_bytes.set(now.outgoing_bytes as i64);
        self.broker_up.set(i64::from(now.broker_up));
        self.redis_shards.set(now.redis_shards as i64);
        self.redis_shards_up.set(now.redis_shards_up as i64);
        self.redis_slots.set(now.redis_slots as i64);
        let by_shard = self.by_shard();
        let sum = |part: fn(&Sample) -> usize| by_shard.iter().map(part).sum::<usize>() as i64;
        for (transport, count) in
            [("websocket", sum(|shard| shard.websockets)), ("sse", sum(|shard| shard.event_streams))]
        {
            self.connections.get_or_create(&TransportLabels { transport }).set(count);
        }
        self.subscriptions.set(sum(|shard| shard.subscriptions));
        self.behind.set(sum(|shard| shard.behind));
        self.backlog.set(by_shard.iter().map(|shard| shard.backlog as i64).max().unwrap_or(0));
    }

    fn by_shard(&self) -> MutexGuard<'_, Box<[Sample]>> {
        // A panic while the lock is held cannot leave the table inconsistent.
        self.by_shard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
