//! How much the clients of one address use of what has a rate: a bucket for each address, of a table that has a bound.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use crate::transport::token_bucket::{Bucket, Rate, Tenths};

/// At most so many addresses are remembered; beyond, all are forgotten, and may begin with a full burst again.
const MOST_REMEMBERED: usize = 1 << 16;
/// The table is not swept before it has so many entries.
const FEWEST_SWEPT: usize = 1 << 10;

/// What each address has left of a rate.
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
    /// Charges an address. An amount that is larger than what is left passes and leaves a debt; until that is paid, nothing
    /// passes.
    ///
    /// # Errors
    /// In how many seconds the debt is paid.
    pub fn charge(&self, address: IpAddr, rate: Rate, now: Tenths, amount: usize) -> Result<(), f32> {
        // The table is whole after every line that holds it: a panic elsewhere does not spoil it.
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
    /// Forgets the addresses whose bucket is full; all, if the others are too many.
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
        // As many in debt as there can be: the bound holds.
        (0..200_000).for_each(|number| assert_eq!(charge(number, Tenths(100_000)), Ok(())));
        assert!(rates.table.lock().expect("whole").buckets.len() <= 4 * MOST_REMEMBERED);
    }
}
