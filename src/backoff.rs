//! How long to wait before trying again: exponential, with full jitter, so that many who failed together do not
//! come back together.

use std::time::Duration;

use rand::Rng;

/// Grows with every failure, up to a bound.
#[derive(Debug)]
pub struct Backoff {
    base: Duration,
    most: Duration,
    failures: u32,
}

impl Backoff {
    /// The first delay lies between nothing and `base`, no later one exceeds `most`.
    pub fn new(base: Duration, most: Duration) -> Self {
        Self { base, most, failures: 0 }
    }

    /// The delay after another failure.
    pub fn next_delay(&mut self) -> Duration {
        let bound = self.base.saturating_mul(1 << self.failures.min(16)).min(self.most);
        self.failures += 1;
        rand::rng().random_range(Duration::ZERO..=bound)
    }

    /// It worked: the next failure starts from the beginning.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}
