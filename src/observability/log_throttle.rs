//! Rate-limits repeated log lines: each kind of line is logged at most once every 10 seconds, with
//! the number of its occurrences.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The minimum time between two log lines of the same kind.
const PAUSE: Duration = Duration::from_secs(10);

/// For each kind of line: when it was last logged, and its occurrences since then.
#[derive(Default)]
pub struct LogThrottle(Mutex<HashMap<&'static str, (Option<Instant>, u64)>>);

impl LogThrottle {
    /// Counts an occurrence. Returns the number of occurrences since the last log line if a line is
    /// due now, and `None` otherwise.
    pub fn happened(&self, what: &'static str) -> Option<u64> {
        // A panic while the lock is held cannot leave the table inconsistent.
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (said, times) = table.entry(what).or_default();
        *times += 1;
        if said.is_some_and(|said| said.elapsed() < PAUSE) {
            return None;
        }
        *said = Some(Instant::now());
        Some(std::mem::take(times))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_is_said_once_and_something_else_as_well() {
        let throttle = LogThrottle::default();
        assert_eq!(throttle.happened("full"), Some(1));
        assert_eq!(throttle.happened("full"), None);
        assert_eq!(throttle.happened("empty"), Some(1));
    }
}
