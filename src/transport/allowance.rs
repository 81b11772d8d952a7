//! How much a client may still send: its share of the limits on frames and bytes a second.

use crate::app::Rates;
use crate::rate::Bucket;

/// Who has sent ahead of the limits by more than so many seconds is closed. Bytes are read in pieces that are paid off sooner, so
/// it is who keeps sending frames that gets here.
pub const MOST_DEBT: f32 = 10.0;

/// What a client may still send, by the shard's clock (in tenths of a second).
#[derive(Clone, Copy, Debug)]
pub struct Allowance {
    frames: Option<Bucket>,
    bytes: Option<Bucket>,
}

impl Allowance {
    /// A full one.
    pub fn full(rates: Rates, now: u32) -> Self {
        Self {
            frames: rates.frames.map(|rate| Bucket::full(rate, now)),
            bytes: rates.bytes.map(|rate| Bucket::full(rate, now)),
        }
    }

    /// Counts what was read.
    pub fn charge(&mut self, rates: Rates, now: u32, frames: usize, bytes: usize) {
        for (bucket, rate, amount) in [(&mut self.frames, rates.frames, frames), (&mut self.bytes, rates.bytes, bytes)]
        {
            if let (Some(bucket), Some(rate)) = (bucket, rate) {
                bucket.charge(rate, now, amount);
            }
        }
    }

    /// For how many seconds the client must not be read.
    pub fn debt(&mut self, rates: Rates, now: u32) -> f32 {
        let debts = [(&mut self.frames, rates.frames), (&mut self.bytes, rates.bytes)]
            .map(|(bucket, rate)| bucket.as_mut().zip(rate).map_or(0.0, |(bucket, rate)| bucket.debt(rate, now)));
        debts[0].max(debts[1])
    }
}
