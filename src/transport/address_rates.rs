//! Rate limits on the clients of one address: a token bucket for each address, in a bounded table.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use crate::transport::token_bucket::{Bucket, Rate, Tenths};

/// Maximum number of addresses in the table. Above it, all are dropped and start with a full burst
/// again.
const MOST_REMEMBERED: usize = 1 << 16;
/// The size of the table below which it is not swept.
const FEWEST_SWEPT: usize = 1 << 10;

/// The token buckets of all addresses, for one rate.
#[derive(Default)]
pub struct AddressRates {
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    buckets: HashMap<IpAddr, Bucket>,
    sweep_at: usize,
}

impl AddressRates {
    /// Charges an address. An amount above the remaining tokens passes and leaves a debt. Until the
    /// debt is paid, nothing passes.
    ///
    /// # Errors
    /// The seconds until the debt is paid.
    pub fn charge(&self, address: IpAddr, rate: Rate, now: Tenths, amount: usize) -> Result<(), f32> {
        // A panic while the lock is held cannot leave the table inconsistent.
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if table.buckets.len() >= table.sweep_at.max(FEWEST_SWEPT) {
            table.sweep(rate, now);
        }
        let bucket = table.buckets.entry(address).or_insert_with(|| Bucket::full(rate, now));
        let debt = bucket.debt(rate, now);
        if debt > 0.0 {
            return Err(debt);
        }
        bucket.charge(rate, now, amount);
        Ok(())
    }
}

impl Table {
    /// Drops the addresses whose bucket is full; drops all if the others are too many.
    fn sweep(&mut self, rate: Rate, now: Tenths) {
        self.buckets.retain(|_, bucket| !bucket.is_full(rate, now));
        if self.buckets.len() > MOST_REMEMBERED {
            self.buckets.clear();
        }
        self.sweep_at = 2 * self.buckets.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate { per_second: 10, burst: 20 };

    #[test]
    fn an_address_that_used_more_than_it_had_waits_until_that_is_paid() {
        let (rates, one, other) = (AddressRates::default(), IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 2]));
        assert_eq!(rates.charge(one, RATE, Tenths(0), 20), Ok(()));
        assert_eq!(rates.charge(one, RATE, Tenths(0), 30), Ok(()), "a large amount passes");
        assert_eq!(rates.charge(one, RATE, Tenths(10), 1), Err(2.0));
        assert_eq!(rates.charge(other, RATE, Tenths(10), 1), Ok(()));
        assert_eq!(rates.charge(one, RATE, Tenths(30), 1), Ok(()), "what was refused costs nothing");
    }

    #[test]
    fn the_table_forgets_the_addresses_whose_bucket_is_full() {
        let rates = AddressRates::default();
        let charge = |number: u32, now| rates.charge(std::net::Ipv4Addr::from_bits(number).into(), RATE, now, 15);
        (0..100_000).for_each(|number| assert_eq!(charge(number, Tenths(number)), Ok(())));
        assert!(rates.table.lock().expect("whole").buckets.len() <= FEWEST_SWEPT);
        // As many addresses in debt as possible: the bound holds.
        (0..200_000).for_each(|number| assert_eq!(charge(number, Tenths(100_000)), Ok(())));
        assert!(rates.table.lock().expect("whole").buckets.len() <= 4 * MOST_REMEMBERED);
    }
}
