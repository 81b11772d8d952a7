//! Says the same thing at most once in ten seconds: what befalls a thousand requests at once is worth one line, not a thousand.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long the same thing is not said again.
const PAUSE: Duration = Duration::from_secs(10);

/// When each thing was last said, and how often it happened since.
#[derive(Default)]
pub struct LogThrottle(Mutex<HashMap<&'static str, (Option<Instant>, u64)>>);

impl LogThrottle {
    /// It happened once more. If it is to be said now: how often it happened since that was last so.
    pub fn happened(&self, what: &'static str) -> Option<u64> {
        // The table is whole after every line that holds it: a panic elsewhere does not spoil it.
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
