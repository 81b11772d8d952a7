//! The share that the clients of one address hold of a common budget in bytes.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The bytes held for each address. Only addresses that hold bytes have an entry.
#[derive(Debug)]
pub struct AddressShares {
    share: usize,
    held: Mutex<HashMap<IpAddr, usize>>,
}

/// Bytes held for an address; returned when dropped.
#[derive(Debug)]
pub struct HeldShare {
    shares: Arc<AddressShares>,
    address: IpAddr,
    bytes: usize,
}

impl AddressShares {
    /// Allows each address at most `share` bytes.
    pub fn new(share: usize) -> Arc<Self> {
        Arc::new(Self { share, held: Mutex::default() })
    }

    /// Whether [`AddressShares::take`] would succeed now.
    pub fn has_room(&self, address: IpAddr, bytes: usize) -> bool {
        self.fits(&self.held(), address, bytes)
    }

    /// Holds bytes for an address; `None` if they exceed its share. An address that holds nothing
    /// may exceed its share with one request, because it could otherwise never get anything that
    /// large.
    pub fn take(self: &Arc<Self>, address: IpAddr, bytes: usize) -> Option<HeldShare> {
        let mut table = self.held();
        self.fits(&table, address, bytes).then(|| {
            *table.entry(address).or_default() += bytes;
            HeldShare { shares: self.clone(), address, bytes }
        })
    }

    fn fits(&self, table: &HashMap<IpAddr, usize>, address: IpAddr, bytes: usize) -> bool {
        let held = table.get(&address).copied().unwrap_or(0);
        held == 0 || held.saturating_add(bytes) <= self.share
    }

    fn held(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        // A panic while the lock is held cannot leave the table inconsistent.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for HeldShare {
    fn drop(&mut self) {
        let mut table = self.shares.held();
        let Some(held) = table.get_mut(&self.address) else { return };
        *held -= self.bytes;
        if *held == 0 {
            table.remove(&self.address);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_holds_its_share_or_one_large_thing_and_others_have_theirs() {
        let shares = AddressShares::new(100);
        let [one, other] = [1, 2].map(|last| IpAddr::from([192, 0, 2, last]));
        let first = shares.take(one, 60).expect("room");
        assert!(shares.take(one, 41).is_none() && !shares.has_room(one, 41) && shares.has_room(one, 40));
        let second = shares.take(one, 40).expect("room");
        assert!(!shares.has_room(one, 1) && shares.has_room(other, 1000));
        let large = shares.take(other, 1000).expect("the only one");
        assert!(shares.take(other, 1).is_none());
        drop((first, second, large));
        assert!(shares.held().is_empty(), "an address that holds nothing is forgotten");
    }
}
