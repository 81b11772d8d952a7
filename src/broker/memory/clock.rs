//! The clock of the embedded broker: microseconds since 1970. It never goes back, even if the
//! system clock does.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

/// Microseconds: a time since 1970, or a duration.
pub(super) type Micros = u64;

/// Reads the system clock once, and then counts monotonically.
#[derive(Clone, Copy)]
pub(super) struct Clock {
    created: Instant,
    created_at: Micros,
}

impl Clock {
    /// Creates a clock that starts at the system time.
    pub(super) fn new() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { created: Instant::now(), created_at: micros(since) }
    }

    /// The time now.
    pub(super) fn now(self) -> Micros {
        self.created_at + micros(self.created.elapsed())
    }
}

/// A duration in microseconds, limited to some centuries if it is longer.
pub(super) fn micros(duration: Duration) -> Micros {
    duration.as_micros().try_into().unwrap_or(Micros::MAX / 4)
}
