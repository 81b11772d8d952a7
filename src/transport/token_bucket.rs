//! The token bucket: how often, or how much, on average and at once. Pure arithmetic; what is limited, whose clock counts and
//! what happens past the limit is decided where it is used.

/// So many a second on average. A bucket holds a few seconds' worth, so that a burst passes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rate {
    /// How many a second, on average.
    pub per_second: u32,
    /// How many at once, after a pause.
    pub burst: u32,
}

impl Rate {
    /// A rate whose burst is what `seconds` bring; `None`, no limit, for zero a second.
    pub fn new(per_second: u32, seconds: u32) -> Option<Self> {
        (per_second > 0).then(|| Self { per_second, burst: per_second.saturating_mul(seconds) })
    }
}

/// What is left of a [`Rate`] for one client. 8 bytes, since each connection has two: the time is in tenths of a second since
/// any beginning that its owner keeps to (13 years fit).
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    tokens: f32,
    at: u32,
}

impl Bucket {
    /// A full one.
    pub fn full(rate: Rate, now: u32) -> Self {
        Self { tokens: rate.burst as f32, at: now }
    }

    /// Takes a token, if there is one.
    pub fn try_take(&mut self, rate: Rate, now: u32) -> bool {
        self.refill(rate, now);
        let taken = self.tokens >= 1.0;
        if taken {
            self.tokens -= 1.0;
        }
        taken
    }

    /// Takes what was used already, and goes into debt for what is not there.
    pub fn charge(&mut self, rate: Rate, now: u32, amount: usize) {
        self.refill(rate, now);
        self.tokens -= amount as f32;
    }

    /// In how many seconds the debt is paid; 0 where there is none.
    pub fn debt(&mut self, rate: Rate, now: u32) -> f32 {
        self.refill(rate, now);
        (-self.tokens).max(0.0) / rate.per_second as f32
    }

    /// Whether it is as full as a new one: then it need not be remembered.
    pub fn is_full(&mut self, rate: Rate, now: u32) -> bool {
        self.refill(rate, now);
        self.tokens >= rate.burst as f32
    }

    fn refill(&mut self, rate: Rate, now: u32) {
        let tenths = now.saturating_sub(self.at) as f32;
        self.tokens = (self.tokens + tenths * rate.per_second as f32 / 10.0).min(rate.burst as f32);
        self.at = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate { per_second: 10, burst: 30 };

    fn taken(bucket: &mut Bucket, now: u32) -> usize {
        (0..1000).take_while(|_| bucket.try_take(RATE, now)).count()
    }

    #[test]
    fn a_burst_passes_and_then_the_rate() {
        let mut bucket = Bucket::full(RATE, 70);
        assert_eq!(taken(&mut bucket, 70), 30);
        assert_eq!(taken(&mut bucket, 70), 0);
        assert_eq!(taken(&mut bucket, 75), 5);
        assert_eq!(taken(&mut bucket, 10_000), 30, "a long pause brings no more than a burst");
        assert_eq!(taken(&mut bucket, 9_000), 0, "nor does a clock that goes back");
    }

    #[test]
    fn a_debt_is_paid_before_anything_is_left() {
        let mut bucket = Bucket::full(RATE, 0);
        bucket.charge(RATE, 0, 80);
        assert_eq!(bucket.debt(RATE, 0), 5.0);
        assert_eq!(bucket.debt(RATE, 30), 2.0);
        assert_eq!((bucket.debt(RATE, 50), taken(&mut bucket, 50)), (0.0, 0));
        assert!(!bucket.is_full(RATE, 79) && bucket.is_full(RATE, 80));
    }

    #[test]
    fn a_large_rate_keeps_its_count() {
        let rate = Rate { per_second: 1 << 30, burst: 1 << 31 };
        let mut bucket = Bucket::full(rate, 0);
        bucket.charge(rate, 0, 3 << 30);
        assert_eq!(bucket.debt(rate, 0), 1.0);
        assert_eq!(Rate::new(0, 5), None);
    }
}
