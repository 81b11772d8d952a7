//! A token bucket: a rate and a burst. Pure arithmetic: the caller decides which action costs
//! tokens, supplies the clock, and acts when tokens run out.

use std::time::Duration;

/// An average rate and a maximum burst.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rate {
    /// Tokens per second, on average.
    pub per_second: u32,
    /// Maximum number of tokens, available after a pause.
    pub burst: u32,
}

impl Rate {
    /// A rate whose burst is `seconds` times the rate; `None` (no limit) if `per_second` is 0.
    pub fn new(per_second: u32, seconds: u32) -> Option<Self> {
        (per_second > 0).then(|| Self { per_second, burst: per_second.saturating_mul(seconds) })
    }
}

/// Tenths of a second since a start that the owner of a bucket chooses. The range is 13 years.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Tenths(pub u32);

impl Tenths {
    /// Converts seconds since the start.
    pub fn from_seconds(seconds: u32) -> Self {
        Self(seconds.saturating_mul(10))
    }

    /// Converts the time since the start.
    pub fn from_elapsed(elapsed: Duration) -> Self {
        Self(u32::try_from(elapsed.as_millis() / 100).unwrap_or(u32::MAX))
    }
}

/// The remaining tokens of one client. 8 bytes, because each connection has two.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    tokens: f32,
    at: Tenths,
}

impl Bucket {
    /// A bucket with the full burst.
    pub fn full(rate: Rate, now: Tenths) -> Self {
        Self { tokens: rate.burst as f32, at: now }
    }

    /// Takes one token; false if there is none.
    pub fn try_take(&mut self, rate: Rate, now: Tenths) -> bool {
        self.refill(rate, now);
        let taken = self.tokens >= 1.0;
        if taken {
            self.tokens -= 1.0;
        }
        taken
    }

    /// Takes the tokens for an amount that was already used; the excess becomes a debt.
    pub fn charge(&mut self, rate: Rate, now: Tenths, amount: usize) {
        self.refill(rate, now);
        self.tokens -= amount as f32;
    }

    /// The seconds until the debt is paid; 0 if there is none.
    pub fn debt(&mut self, rate: Rate, now: Tenths) -> f32 {
        self.refill(rate, now);
        (-self.tokens).max(0.0) / rate.per_second as f32
    }

    /// Whether it is as full as a new bucket, and so can be dropped.
    pub fn is_full(&mut self, rate: Rate, now: Tenths) -> bool {
        self.refill(rate, now);
        self.tokens >= rate.burst as f32
    }

    fn refill(&mut self, rate: Rate, now: Tenths) {
        let tenths = now.0.saturating_sub(self.at.0) as f32;
        self.tokens = (self.tokens + tenths * rate.per_second as f32 / 10.0).min(rate.burst as f32);
        self.at = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate { per_second: 10, burst: 30 };

    fn taken(bucket: &mut Bucket, now: Tenths) -> usize {
        (0..1000).take_while(|_| bucket.try_take(RATE, now)).count()
    }

    #[test]
    fn a_burst_passes_and_then_the_rate() {
        let mut bucket = Bucket::full(RATE, Tenths(70));
        assert_eq!(taken(&mut bucket, Tenths(70)), 30);
        assert_eq!(taken(&mut bucket, Tenths(70)), 0);
        assert_eq!(taken(&mut bucket, Tenths(75)), 5);
        assert_eq!(taken(&mut bucket, Tenths(10_000)), 30, "a long pause brings no more than a burst");
        assert_eq!(taken(&mut bucket, Tenths(9_000)), 0, "nor does a clock that goes back");
    }

    #[test]
    fn a_debt_is_paid_before_anything_is_left() {
        let mut bucket = Bucket::full(RATE, Tenths(0));
        bucket.charge(RATE, Tenths(0), 80);
        assert_eq!(bucket.debt(RATE, Tenths(0)), 5.0);
        assert_eq!(bucket.debt(RATE, Tenths(30)), 2.0);
        assert_eq!((bucket.debt(RATE, Tenths(50)), taken(&mut bucket, Tenths(50))), (0.0, 0));
        assert!(!bucket.is_full(RATE, Tenths(79)) && bucket.is_full(RATE, Tenths(80)));
    }

    #[test]
    fn a_large_rate_keeps_its_count() {
        let rate = Rate { per_second: 1 << 30, burst: 1 << 31 };
        let mut bucket = Bucket::full(rate, Tenths(0));
        bucket.charge(rate, Tenths(0), 3 << 30);
        assert_eq!(bucket.debt(rate, Tenths(0)), 1.0);
        assert_eq!(Rate::new(0, 5), None);
    }
}
