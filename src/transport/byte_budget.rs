//! A bound on bytes that many connections hold together: what is on its way in, and what is on its
//! way out. Each single body, frame and page has a limit of its own. This one holds when many of them
//! come at once, or never end.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;

/// So many bytes, shared.
#[derive(Debug)]
pub struct Budget {
    used: AtomicUsize,
    limit: usize,
}

impl Budget {
    /// A budget of which nothing is used.
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { used: AtomicUsize::new(0), limit })
    }

    /// How many bytes there are in all.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// What is used, in bytes.
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Whether more than half of it is used.
    pub fn is_scarce(&self) -> bool {
        self.used() > self.limit / 2
    }

    /// Takes bytes, whether or not there are so many. Returns whether there were. They must be given
    /// back.
    fn take_anyway(&self, bytes: usize) -> bool {
        self.used.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes) <= self.limit
    }

    /// Takes bytes, if there are so many. They must be given back.
    pub fn take(&self, bytes: usize) -> bool {
        self.take_within(bytes, self.limit)
    }

    /// Takes bytes, if no more than `limit` are used then. They must be given back.
    fn take_within(&self, bytes: usize, limit: usize) -> bool {
        let fits = self.used.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes) <= limit;
        if !fits {
            self.give(bytes);
        }
        fits
    }

    /// Gives bytes back.
    pub fn give(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Default for Budget {
    /// Without a limit.
    fn default() -> Self {
        Self { used: AtomicUsize::new(0), limit: usize::MAX }
    }
}

/// What one request or connection holds of a [`Budget`]; given back when dropped.
#[derive(Debug)]
pub struct Reservation {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Reservation {
    /// Nothing yet.
    pub fn new(budget: Arc<Budget>) -> Self {
        Self { budget, bytes: 0 }
    }

    /// The budget that it holds of.
    pub fn budget(&self) -> &Budget {
        &self.budget
    }

    /// Holds bytes of the first `limit` bytes of a budget: the rest is for others. `None` if there are
    /// not so many.
    pub fn within(limit: usize, bytes: usize, budget: Arc<Budget>) -> Option<Self> {
        budget.take_within(bytes, limit).then(|| Self { budget, bytes })
    }

    /// Holds so many bytes from now on, more or less than before. `false`, and no change, if there are not so many.
    #[must_use]
    pub fn set(&mut self, bytes: usize) -> bool {
        if bytes > self.bytes && !self.budget.take(bytes - self.bytes) {
            return false;
        }
        self.budget.give(self.bytes.saturating_sub(bytes));
        self.bytes = bytes;
        true
    }
}

/// Bytes that count against a [`Budget`] until the last handle to them is dropped, and whether there
/// was room for them. They are held in any case: a part of them is already written.
pub fn hold_anyway(bytes: Vec<u8>, budget: &Arc<Budget>) -> (Bytes, bool) {
    let fits = budget.take_anyway(bytes.len());
    let held = Reservation { budget: budget.clone(), bytes: bytes.len() };
    (Bytes::from_owner(HeldBytes { bytes, _held: held }), fits)
}

struct HeldBytes {
    bytes: Vec<u8>,
    _held: Reservation,
}

impl AsRef<[u8]> for HeldBytes {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.budget.give(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_together_hold_no_more_than_the_budget() {
        let budget = Budget::new(100);
        let (mut one, mut two) = (Reservation::new(budget.clone()), Reservation::new(budget.clone()));
        assert!(one.set(60) && two.set(40) && !one.set(61));
        assert_eq!(budget.used(), 100);
        assert!(one.set(10) && two.set(90));
        drop(two);
        assert_eq!(budget.used(), 10);
        drop(one);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn bytes_that_several_share_are_counted_once_and_until_the_last_has_them() {
        let budget = Budget::new(100);
        let (one, fits) = hold_anyway(vec![7; 60], &budget);
        let part = one.slice(50..);
        assert!(fits && budget.used() == 60 && budget.is_scarce());
        let (more, fits) = hold_anyway(vec![7; 60], &budget);
        assert!(!fits && budget.used() == 120, "they are held all the same");
        drop((one, more));
        assert_eq!((budget.used(), &part[..]), (60, &[7; 10][..]));
        drop(part);
        assert_eq!(budget.used(), 0);
    }
}
