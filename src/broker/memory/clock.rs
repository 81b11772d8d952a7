//! The embedded broker's time: microseconds since 1970 that never go back, whatever is done to the
//! machine's clock meanwhile.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

/// Microseconds: since 1970 where it is a time, else how long something takes.
pub(super) type Micros = u64;

/// Counts on from the machine's time at its creation.
#[derive(Clone, Copy)]
pub(super) struct Clock {
    created: Instant,
    created_at: Micros,
}

impl Clock {
    /// A clock that starts with the machine's time.
    pub(super) fn new() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { created: Instant::now(), created_at: micros(since) }
    }

    /// The time now.
    pub(super) fn now(self) -> Micros {
        self.created_at + micros(self.created.elapsed())
    }
}

/// A duration in microseconds; what is too long to be counted so counts as centuries.
pub(super) fn micros(duration: Duration) -> Micros {
    duration.as_micros().try_into().unwrap_or(Micros::MAX / 4)
}
