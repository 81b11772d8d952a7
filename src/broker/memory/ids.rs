//! The idempotency ids of one channel, in the order of their age. Each is kept for ten minutes with
//! the result of its message.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use super::clock::Micros;

/// How long an idempotency id is remembered.
const REMEMBER: Micros = 600_000_000;
/// The estimated memory of an id without its text: its entries in the map and in the queue,
/// including spare capacity, and the reference counts of its `Arc`.
const ID_BYTES: usize = 144;
/// A queue or a map with a smaller capacity is never shrunk.
const SMALL: usize = 64;

/// The remembered ids.
#[derive(Default)]
pub(super) struct Ids {
    known: HashMap<Arc<str>, Known>,
    by_age: VecDeque<(Arc<str>, Micros)>,
    bytes: usize,
}

/// The message that an id was used for.
#[derive(Clone, Copy)]
pub(super) struct Known {
    /// The offset of the message.
    pub(super) offset: u64,
    /// Distinguishes the message from others.
    pub(super) digest: u64,
    at: Micros,
}

impl Ids {
    /// The memory of an id, in bytes.
    pub(super) fn weight(id: &str) -> usize {
        ID_BYTES + id.len()
    }

    /// The memory of all ids, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The message that the id was used for within the last ten minutes.
    pub(super) fn find(&self, id: &str, now: Micros) -> Option<Known> {
        self.known.get(id).filter(|known| now < known.at + REMEMBER).copied()
    }

    /// Remembers the message that an id was used for.
    pub(super) fn remember(&mut self, id: Arc<str>, offset: u64, digest: u64, now: Micros) {
        self.bytes += Self::weight(&id);
        self.by_age.push_back((id.clone(), now));
        self.known.insert(id, Known { offset, digest, at: now });
    }

    /// When the oldest id expires.
    pub(super) fn next_expiry(&self) -> Option<Micros> {
        self.by_age.front().map(|(_, at)| at + REMEMBER)
    }

    /// Drops expired ids, at most `most` of them. Returns how many.
    pub(super) fn expire(&mut self, now: Micros, most: usize) -> usize {
        let mut count = 0;
        while count < most && self.next_expiry().is_some_and(|expiry| expiry <= now) {
            let Some((id, at)) = self.by_age.pop_front() else { break };
            self.bytes -= Self::weight(&id);
            // An id that was used again after it had expired has a second entry in the queue.
            if self.known.get(&id).is_some_and(|known| known.at == at) {
                self.known.remove(&id);
            }
            count += 1;
        }
        if count > 0 && self.by_age.capacity() > SMALL && self.by_age.len() < self.by_age.capacity() / 4 {
            self.by_age.shrink_to(self.by_age.len() * 2);
            self.known.shrink_to(self.by_age.len() * 2);
        }
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u64) -> Arc<str> {
        format!("id-{number}").into()
    }

    #[test]
    fn forty_thousand_ids_stay_in_the_order_of_their_age_and_only_the_expired_are_touched() {
        let mut ids = Ids::default();
        for number in 0..40_000 {
            assert_eq!(ids.expire(number, usize::MAX), 0);
            ids.remember(id(number), number, 0, number);
        }
        assert_eq!((ids.known.len(), ids.by_age.len()), (40_000, 40_000));
        for number in 0..40_000 {
            // Each microsecond one id expires, and one entry is visited.
            assert_eq!(ids.expire(REMEMBER + number, usize::MAX), 1);
            assert!(ids.find(&id(number), REMEMBER + number).is_none());
            assert_eq!(ids.find(&id(number + 1), REMEMBER + number).is_some(), number + 1 < 40_000);
        }
        assert_eq!((ids.bytes, ids.known.len(), ids.by_age.len()), (0, 0, 0));
        assert!(ids.by_age.capacity().max(ids.known.capacity()) <= 4 * SMALL, "the memory is given back");
    }

    #[test]
    fn an_id_counts_with_its_length_and_no_more_than_asked_are_forgotten_at_once() {
        let mut ids = Ids::default();
        ids.remember("x".repeat(200).into(), 1, 0, 0);
        ids.remember("y".into(), 2, 0, 0);
        assert_eq!(ids.bytes(), 2 * ID_BYTES + 201);
        assert_eq!(ids.expire(REMEMBER, 1), 1);
        assert_eq!(ids.bytes(), ID_BYTES + 1);
    }

    #[test]
    fn an_id_that_is_used_again_after_it_expired_is_remembered_anew() {
        let mut ids = Ids::default();
        ids.remember(id(1), 1, 0, 0);
        assert!(ids.find(&id(1), REMEMBER - 1).is_some() && ids.find(&id(1), REMEMBER).is_none());
        ids.remember(id(1), 2, 0, REMEMBER);
        assert_eq!(ids.expire(REMEMBER, usize::MAX), 1);
        assert_eq!(ids.find(&id(1), REMEMBER).map(|known| known.offset), Some(2));
        assert_eq!(ids.expire(2 * REMEMBER, usize::MAX), 1);
        assert_eq!((ids.bytes, ids.known.len()), (0, 0));
    }
}
