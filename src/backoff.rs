//! Delays between attempts: exponential backoff with full jitter, so that clients that failed
//! together do not all return at the same time.

use std::time::Duration;

use rand::Rng;

/// A delay that grows with every failure, up to a maximum.
#[derive(Debug)]
pub struct Backoff {
    base: Duration,
    most: Duration,
    failures: u32,
}

impl Backoff {
    /// The first delay is at most `base`; no later delay exceeds `most`.
    pub fn new(base: Duration, most: Duration) -> Self {
        Self { base, most, failures: 0 }
    }

    /// The delay after the next failure.
    pub fn next_delay(&mut self) -> Duration {
        let bound = self.base.saturating_mul(1 << self.failures.min(16)).min(self.most);
        self.failures += 1;
        rand::rng().random_range(Duration::ZERO..=bound)
    }

    /// Resets after a success: the next failure starts with `base` again.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}
