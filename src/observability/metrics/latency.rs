//! Durations: a clock value that fits into an atomic, and a histogram of atomics. (The histogram of
//! the library takes a lock for each observation, and shards observe often.) [`Latencies`] says
//! what is measured.

use std::fmt;
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

/// The upper bounds of the buckets, in microseconds: from a delivery on an idle machine to a Redis
/// that does not respond.
const BOUNDS: [u64; 15] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000,
    5_000_000,
];

/// A point in time, in microseconds since the first use of the clock in this process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Moment(NonZeroU64);

impl Moment {
    /// The current time.
    pub fn now() -> Self {
        static BEGAN: LazyLock<Instant> = LazyLock::new(Instant::now);
        Self(NonZeroU64::MIN.saturating_add(micros(BEGAN.elapsed())))
    }

    /// The time since then.
    pub fn elapsed(self) -> Duration {
        Duration::from_micros(Self::now().0.get().saturating_sub(self.0.get()))
    }

    /// A representation that is never 0.
    pub fn to_bits(self) -> u64 {
        self.0.get()
    }

    /// The inverse of [`Moment::to_bits`]; `None` for 0.
    pub fn from_bits(bits: u64) -> Option<Self> {
        NonZeroU64::new(bits).map(Self)
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// A histogram of durations. Clones share their counts.
#[derive(Clone, Debug, Default)]
pub struct Latency(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    /// One count for each bound, and one for larger values.
    buckets: [AtomicU64; BOUNDS.len() + 1],
    micros: AtomicU64,
}

impl Latency {
    /// Adds the time since `since`.
    pub fn observe(&self, since: Moment) {
        let took = micros(since.elapsed());
        self.0.buckets[BOUNDS.partition_point(|&bound| bound < took)].fetch_add(1, Ordering::Relaxed);
        self.0.micros.fetch_add(took, Ordering::Relaxed);
    }
}

impl EncodeMetric for Latency {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), fmt::Error> {
        // The library expects infinity as the last bound.
        let bounds = BOUNDS.iter().map(|&bound| bound as f64 / 1e6).chain([f64::MAX]);
        let counts = self.0.buckets.iter().map(|count| count.load(Ordering::Relaxed));
        let buckets: Vec<_> = bounds.zip(counts).collect();
        let count = buckets.iter().map(|(_, count)| count).sum();
        let seconds = self.0.micros.load(Ordering::Relaxed) as f64 / 1e6;
        encoder.encode_histogram::<NoLabelSet>(seconds, count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

/// The measured durations.
#[derive(Debug, Default)]
pub struct Latencies {
    /// From a complete publication to the broker's answer, once for each request or for each read
    /// from a WebSocket.
    pub publish: Latency,
    /// From the arrival of a message from the broker until a shard has offered it to all of its
    /// subscribers, once for each batch and shard, for the oldest message of the batch.
    pub delivery: Latency,
    /// From a command to Redis to its reply.
    pub redis_round_trip: Latency,
}

impl Latencies {
    /// Registers all of them.
    pub(super) fn register(registry: &mut Registry) -> Self {
        let this = Self::default();
        for (name, help, latency) in [
            ("publish", "From a whole publication to the answer of the broker", &this.publish),
            ("delivery", "From the arrival of a message to the end of its fan-out on a shard", &this.delivery),
            ("redis_round_trip", "From a command to Redis to its answer", &this.redis_round_trip),
        ] {
            registry.register_with_unit(name, help, Unit::Seconds, latency.clone());
        }
        this
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_observation_is_counted_in_the_first_bucket_that_holds_it() {
        let latency = Latency::default();
        latency.observe(Moment::now());
        let long_ago = Moment::from_bits(1).expect("not 0");
        std::iter::repeat_with(Moment::now).find(|now| now.to_bits() > 300);
        latency.observe(long_ago);
        let counts: Vec<_> = latency.0.buckets.iter().map(|count| count.load(Ordering::Relaxed)).collect();
        assert_eq!((counts.iter().sum::<u64>(), counts[0]), (2, 1), "{counts:?}");
    }

    #[test]
    fn no_moment_is_zero() {
        assert_eq!(Moment::from_bits(0), None);
        assert!(Moment::from_bits(Moment::now().to_bits()).is_some());
    }
}
