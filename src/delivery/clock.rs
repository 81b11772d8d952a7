//! The clock of a thread. It advances about once a second, so that reading it needs no system call.

use std::time::Duration;

/// Seconds since the thread started.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Seconds(pub u32);

impl Seconds {
    /// The seconds since an earlier time; 0 for a later one.
    pub fn since(self, earlier: Self) -> u32 {
        self.0.saturating_sub(earlier.0)
    }

    /// The time since an earlier one; 0 for a later one.
    pub fn elapsed_since(self, earlier: Self) -> Duration {
        Duration::from_secs(self.since(earlier).into())
    }
}
