//! A limit on the bytes that all connections hold together, incoming or outgoing. Each body, frame
//! and page has a limit of its own; this limit is for all of them together.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;

/// A shared number of bytes.
#[derive(Debug)]
pub struct Budget {
    used: AtomicUsize,
    limit: usize,
}

impl Budget {
    /// Creates an unused budget of `limit` bytes.
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { used: AtomicUsize::new(0), limit })
    }

    /// The limit, in bytes.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// The used bytes.
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Whether more than half of the budget is used.
    pub fn is_scarce(&self) -> bool {
        self.used() > self.limit / 2
    }

    /// Takes bytes even over the limit. Returns whether they were within it. Give them back with
    /// [`Budget::give`].
    fn take_anyway(&self, bytes: usize) -> bool {
        self.used.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes) <= self.limit
    }

    /// Takes bytes if total use then stays within the limit. Give them back with [`Budget::give`].
    pub fn take(&self, bytes: usize) -> bool {
        self.take_within(bytes, self.limit)
    }

    /// Takes bytes if total use then stays within `limit`. Give them back with [`Budget::give`].
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

/// The bytes that one request or connection holds of a [`Budget`]; given back when dropped.
#[derive(Debug)]
pub struct Reservation {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Reservation {
    /// Creates a reservation of 0 bytes.
    pub fn new(budget: Arc<Budget>) -> Self {
        Self { budget, bytes: 0 }
    }

    /// The budget of this reservation.
    pub fn budget(&self) -> &Budget {
        &self.budget
    }

    /// Reserves bytes if total use then stays within `limit`.
    pub fn within(limit: usize, bytes: usize, budget: Arc<Budget>) -> Option<Self> {
        budget.take_within(bytes, limit).then(|| Self { budget, bytes })
    }

    /// Changes the reservation to `bytes`. Returns `false`, without a change, if they do not fit.
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

/// Turns bytes into shared bytes that count against a [`Budget`] until the last handle is dropped.
/// Counts the bytes even over the limit, because the frame is already partly sent. Returns also
/// whether they fit.
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
