//! The state of a keyed channel: the newest message of each key, ordered by offset. Reading the
//! changes since an offset costs only as much as the number of changes.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::broker::BrokerError;
use crate::message::Message;
use crate::rules::Keyed;

/// How many removals are remembered, for clients that resume and still show the removed keys.
const MOST_REMOVALS: usize = 1000;
/// The estimated memory of a key without its text and its value: its entries in the two maps,
/// including spare capacity, and the fixed size of the message.
const KEY_BYTES: usize = 256;

/// The keys of one channel.
#[derive(Default)]
pub(super) struct Keys {
    /// The offset of each key's newest message.
    offsets: HashMap<Arc<str>, u64>,
    values: BTreeMap<u64, Arc<Message>>,
    removals: BTreeMap<u64, Arc<Message>>,
    /// Bytes of keys and payloads, as the channel's rule counts them.
    size: usize,
    /// Removals up to this offset may have been forgotten.
    forgotten: u64,
}

impl Keys {
    /// The memory of all keys, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.size + self.offsets.len() * KEY_BYTES
    }

    /// The memory of all keys after the key has another value, in bytes.
    pub(super) fn bytes_with(&self, key: &str, payload: usize) -> usize {
        let old = self.find(key).map_or(0, |old| old.size() + KEY_BYTES);
        self.bytes() - old + key.len() + payload + KEY_BYTES
    }

    /// Whether the rule allows another value for the key. Removing a key is always allowed.
    pub(super) fn check(&self, key: &str, payload: usize, bounds: Keyed) -> Result<(), BrokerError> {
        let old = self.find(key);
        let count = self.values.len() + usize::from(old.is_none_or(|old| old.removed));
        if count > bounds.keys {
            return Err(BrokerError::KeyedChannelFull(format!("{} keys", bounds.keys)));
        }
        if self.size - old.map_or(0, |old| old.size()) + key.len() + payload > bounds.bytes {
            return Err(BrokerError::KeyedChannelFull(format!("{} bytes", bounds.bytes)));
        }
        Ok(())
    }

    /// Applies a message, which must be newer than all others: sets or removes its key.
    pub(super) fn set(&mut self, key: Arc<str>, offset: u64, message: Arc<Message>) {
        self.size += message.size();
        let order = if message.removed { &mut self.removals } else { &mut self.values };
        order.insert(offset, message);
        if let Some(old) = self.offsets.insert(key, offset) {
            self.take(old);
        }
        if self.removals.len() > MOST_REMOVALS
            && let Some((&oldest, _)) = self.removals.first_key_value()
            && let Some(key) = self.take(oldest).and_then(|message| message.key.clone())
        {
            self.forgotten = oldest;
            self.offsets.remove(&key);
        }
    }

    /// The values of all keys, in the order of their offsets.
    pub(super) fn values(&self) -> Vec<Arc<Message>> {
        self.values.values().cloned().collect()
    }

    /// The values and removals after an offset, in the order of their offsets. `None` if a removal
    /// after it has been forgotten.
    pub(super) fn changed_since(&self, offset: u64) -> Option<Vec<Arc<Message>>> {
        if offset < self.forgotten {
            return None;
        }
        let after = offset.saturating_add(1)..;
        let (values, removals) = (self.values.range(after.clone()), self.removals.range(after));
        let mut changed: Vec<_> = values.chain(removals).map(|(_, message)| message.clone()).collect();
        // Both ranges are sorted, so this sort merges them in linear time.
        changed.sort_by_key(|message| message.position.map(|position| position.offset));
        Some(changed)
    }

    fn find(&self, key: &str) -> Option<&Message> {
        let offset = self.offsets.get(key)?;
        self.values.get(offset).or_else(|| self.removals.get(offset)).map(Arc::as_ref)
    }

    /// Removes the message at an offset.
    fn take(&mut self, offset: u64) -> Option<Arc<Message>> {
        let message = self.values.remove(&offset).or_else(|| self.removals.remove(&offset))?;
        self.size -= message.size();
        Some(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Position;

    fn set(keys: &mut Keys, key: &str, offset: u64, removed: bool) {
        let key: Arc<str> = key.into();
        let position = Some(Position::new(1, offset));
        let message = Message { position, key: Some(key.clone()), removed, ..Message::plain("value") };
        keys.set(key, offset, Arc::new(message));
    }

    fn offsets(messages: &[Arc<Message>]) -> Vec<u64> {
        messages.iter().filter_map(|message| Some(message.position?.offset)).collect()
    }

    #[test]
    fn the_oldest_removal_alone_is_forgotten_when_there_is_one_too_many() {
        let mut keys = Keys::default();
        set(&mut keys, "stays", 1, false);
        for number in 0..1000 {
            set(&mut keys, &format!("gone-{number}"), 2 + number, true);
        }
        assert_eq!(keys.changed_since(0).map(|changed| changed.len()), Some(1001));
        set(&mut keys, "one more", 1002, true);
        assert_eq!((keys.removals.len(), keys.offsets.len(), keys.forgotten), (1000, 1001, 2));
        assert!(keys.changed_since(1).is_none());
        let changed = offsets(&keys.changed_since(2).expect("all removals after the second are remembered"));
        assert_eq!(changed, (3..=1002).collect::<Vec<_>>());
        // A key that is set again no longer counts as a removal.
        set(&mut keys, "gone-500", 1003, false);
        set(&mut keys, "another", 1004, true);
        assert_eq!((keys.removals.len(), keys.forgotten), (1000, 2));
        assert_eq!(offsets(&keys.values()), [1, 1003]);
    }

    #[test]
    fn each_key_has_one_value_and_counts_once() {
        let mut keys = Keys::default();
        for offset in 1..=100 {
            set(&mut keys, if offset % 2 == 0 { "even" } else { "odd" }, offset, offset % 10 == 0);
        }
        assert_eq!(offsets(&keys.changed_since(0).expect("none is forgotten")), [99, 100]);
        assert_eq!(offsets(&keys.values()), [99]);
        assert_eq!(keys.size, "evenoddvaluevalue".len());
        assert_eq!(keys.bytes_with("odd", 5), keys.bytes());
        assert_eq!(keys.bytes_with("new", 5), keys.bytes() + KEY_BYTES + 8);
        set(&mut keys, "odd", 101, false);
        assert_eq!(offsets(&keys.changed_since(99).expect("none is forgotten")), [100, 101]);
    }
}
