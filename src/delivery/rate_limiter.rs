//! The rate limits of one client, in frames and bytes per second, and its reservation in the budget
//! for incomplete messages. Decides how long the client is not read and when it is closed;
//! `task.rs` acts.

use std::sync::Arc;
use std::time::Duration;

use crate::app::Rates;
use crate::close::{Close, Code};
use crate::delivery::clock::Seconds;
use crate::transport::byte_budget::{Budget, Reservation};
use crate::transport::token_bucket::{Bucket, Tenths};

/// Clients that exceed a limit by more than this many seconds are closed. Bytes are read in smaller
/// pieces, so only clients that keep sending frames reach this.
const MOST_DEBT: f32 = 10.0;

/// The state of the limits for one client.
pub(super) struct RateLimiter {
    /// Stored without their rates, which all clients share, to save memory.
    frames: Option<Bucket>,
    bytes: Option<Bucket>,
    incoming: Reservation,
}

/// The amounts received by one read.
pub(super) struct Received {
    pub(super) frames: usize,
    pub(super) bytes: usize,
    /// Bytes of messages that are not complete, or not published yet.
    pub(super) held: usize,
}

/// The limit for which a client must be closed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Excess {
    /// The budget of all clients for incoming bytes is used up.
    IncomingBytes,
    /// The client keeps sending faster than its rate.
    Rate,
}

impl RateLimiter {
    /// Creates the limits of a client that has sent nothing yet.
    pub(super) fn new(rates: Rates, incoming: Arc<Budget>, now: Seconds) -> Self {
        let full = |rate| Bucket::full(rate, tenths(now));
        Self { frames: rates.frames.map(full), bytes: rates.bytes.map(full), incoming: Reservation::new(incoming) }
    }

    /// Sets the reservation in the budget of all clients, in bytes. Returns `false`, without a
    /// change, if they do not fit.
    pub(super) fn hold(&mut self, bytes: usize) -> bool {
        self.incoming.set(bytes)
    }

    /// Counts received bytes and frames. Returns how long the client must not be read.
    ///
    /// # Errors
    /// [`Excess`] if the client must be closed.
    pub(super) fn count(&mut self, rates: Rates, now: Seconds, received: &Received) -> Result<Duration, Excess> {
        if !self.hold(received.held) {
            return Err(Excess::IncomingBytes);
        }
        if let (Some(bucket), Some(rate)) = (&mut self.frames, rates.frames) {
            bucket.charge(rate, tenths(now), received.frames);
        }
        if let (Some(bucket), Some(rate)) = (&mut self.bytes, rates.bytes) {
            bucket.charge(rate, tenths(now), received.bytes);
        }
        let debt = self.debt(rates, now);
        if debt > Duration::from_secs_f32(MOST_DEBT) { Err(Excess::Rate) } else { Ok(debt) }
    }

    /// How long the client must not be read.
    pub(super) fn debt(&mut self, rates: Rates, now: Seconds) -> Duration {
        let frames =
            self.frames.as_mut().zip(rates.frames).map_or(0.0, |(bucket, rate)| bucket.debt(rate, tenths(now)));
        let bytes = self.bytes.as_mut().zip(rates.bytes).map_or(0.0, |(bucket, rate)| bucket.debt(rate, tenths(now)));
        Duration::try_from_secs_f32(frames.max(bytes)).unwrap_or(Duration::MAX)
    }
}

impl Excess {
    /// The close for the client.
    pub(super) fn close(self) -> Close {
        match self {
            Self::IncomingBytes => {
                Close::new(Code::PublishFailed, "too many unfinished messages; try again in a moment")
            }
            Self::Rate => Close::new(Code::TooFast, "too many frames; connect again after a moment, and send fewer"),
        }
    }
}

/// Converts the time of the thread to the unit of the buckets.
fn tenths(now: Seconds) -> Tenths {
    Tenths::from_seconds(now.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::token_bucket::Rate;

    const RATES: Rates =
        Rates { frames: Some(Rate { per_second: 10, burst: 20 }), bytes: Some(Rate { per_second: 100, burst: 100 }) };

    fn received(frames: usize, bytes: usize) -> Received {
        Received { frames, bytes, held: 0 }
    }

    #[test]
    fn a_burst_is_read_and_what_exceeds_it_pauses_reading_until_it_is_paid_off() {
        let mut limiter = RateLimiter::new(RATES, Budget::new(0), Seconds(5));
        assert_eq!(limiter.count(RATES, Seconds(5), &received(20, 100)), Ok(Duration::ZERO));
        assert_eq!(limiter.count(RATES, Seconds(5), &received(30, 0)), Ok(Duration::from_secs(3)), "frames");
        assert_eq!(limiter.count(RATES, Seconds(5), &received(0, 450)), Ok(Duration::from_millis(4500)), "bytes");
        assert_eq!(limiter.debt(RATES, Seconds(9)), Duration::from_millis(500));
        assert_eq!(limiter.debt(RATES, Seconds(10)), Duration::ZERO);
    }

    #[test]
    fn a_client_that_is_ahead_of_its_limits_by_too_much_is_closed() {
        let mut limiter = RateLimiter::new(RATES, Budget::new(0), Seconds(5));
        assert_eq!(limiter.count(RATES, Seconds(5), &received(120, 0)), Ok(Duration::from_secs(10)));
        assert_eq!(limiter.count(RATES, Seconds(5), &received(1, 0)), Err(Excess::Rate));
        assert_eq!(Excess::Rate.close().code, Code::TooFast);
    }

    #[test]
    fn without_limits_nothing_is_counted_but_incomplete_bytes_have_a_budget() {
        let budget = Budget::new(100);
        let mut limiter = RateLimiter::new(Rates::default(), budget.clone(), Seconds(0));
        let held = |held| Received { frames: 1 << 20, bytes: 1 << 30, held };
        assert_eq!(limiter.count(Rates::default(), Seconds(0), &held(100)), Ok(Duration::ZERO));
        assert_eq!(limiter.count(Rates::default(), Seconds(0), &held(101)), Err(Excess::IncomingBytes));
        assert!(limiter.hold(40));
        assert_eq!(budget.used(), 40);
        drop(limiter);
        assert_eq!(budget.used(), 0);
    }
}
