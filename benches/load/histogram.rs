//! A histogram of latencies with buckets of about 1.6% width. Recording has a constant cost, and
//! the histograms of two readers can be added.

use serde_json::{Value, json};

/// The number of buckets per doubling.
const STEPS: u32 = 64;
const STEP_BITS: u32 = STEPS.trailing_zeros();

/// The counts of values in nanoseconds.
#[derive(Clone)]
pub(crate) struct Histogram {
    buckets: Vec<u64>,
    count: u64,
    largest: u64,
}

impl Histogram {
    pub(crate) fn new() -> Self {
        Self { buckets: vec![0; ((64 - STEP_BITS + 1) * STEPS) as usize], count: 0, largest: 0 }
    }

    pub(crate) fn record(&mut self, nanoseconds: u64) {
        self.buckets[bucket(nanoseconds)] += 1;
        self.count += 1;
        self.largest = self.largest.max(nanoseconds);
    }

    pub(crate) fn clear(&mut self) {
        self.buckets.fill(0);
        self.count = 0;
        self.largest = 0;
    }

    /// The value in milliseconds that a `share` (0 to 1) of all values do not exceed.
    pub(crate) fn milliseconds(&self, share: f64) -> f64 {
        let wanted = ((self.count as f64 * share).ceil() as u64).max(1);
        let mut passed = 0;
        for (index, count) in self.buckets.iter().enumerate() {
            passed += count;
            if passed >= wanted {
                return upper(index).min(self.largest) as f64 / 1e6;
            }
        }
        0.0
    }

    pub(crate) fn largest_milliseconds(&self) -> f64 {
        self.largest as f64 / 1e6
    }

    /// The buckets that are not empty, to pass from a reader to its parent.
    pub(crate) fn to_json(&self) -> Value {
        let filled: Vec<_> = self
            .buckets
            .iter()
            .enumerate()
            .filter(|(_, count)| **count > 0)
            .map(|(index, count)| json!([index, count]))
            .collect();
        json!({ "largest": self.largest, "buckets": filled })
    }

    /// Adds the buckets of [`Histogram::to_json`].
    pub(crate) fn add_json(&mut self, value: &Value) {
        self.largest = self.largest.max(value["largest"].as_u64().unwrap_or(0));
        for pair in value["buckets"].as_array().into_iter().flatten() {
            let (Some(index), Some(count)) = (pair[0].as_u64(), pair[1].as_u64()) else {
                continue;
            };
            if let Some(bucket) = self.buckets.get_mut(index as usize) {
                *bucket += count;
                self.count += count;
            }
        }
    }
}

fn bucket(value: u64) -> usize {
    if value < u64::from(STEPS) {
        return value as usize;
    }
    let shift = value.ilog2() - STEP_BITS;
    (((shift + 1) * STEPS) as u64 + (value >> shift) - u64::from(STEPS)) as usize
}

fn upper(index: usize) -> u64 {
    let (row, column) = (index as u64 / u64::from(STEPS), index as u64 % u64::from(STEPS));
    if row == 0 { column } else { ((column + u64::from(STEPS) + 1) << (row - 1)).saturating_sub(1) }
}
