//! What a client sends, counted against the limits on frames and bytes a second, and on what is on its way in. It says when the
//! client must wait and when it must go; not reading it, and closing it, is `connection.rs`.

use std::cell::{Cell, RefCell};

use crate::app::{App, Rates};
use crate::budget::Held;
use crate::close::{Close, Code};
use crate::rate::Bucket;

/// Who has sent ahead of the limits by more than so many seconds is closed. Bytes are read in pieces that are paid off sooner, so
/// it is who keeps sending frames that gets here.
const MOST_DEBT: f32 = 10.0;

/// What one client has sent. Times are the shard's, in seconds.
pub(super) struct Meter {
    allowance: Cell<Allowance>,
    holds_back: Cell<bool>,
    incoming: RefCell<Held>,
}

/// What one read brought.
pub(super) struct Read {
    pub(super) frames: usize,
    pub(super) bytes: usize,
    /// Bytes of messages that are not complete, or not published yet.
    pub(super) held: usize,
}

#[derive(Clone, Copy)]
struct Allowance {
    frames: Option<Bucket>,
    bytes: Option<Bucket>,
}

impl Meter {
    /// Of a client that has sent nothing yet.
    pub(super) fn new(app: &App, now: u32) -> Self {
        let rates = app.limits.rates;
        let full = |rate| Bucket::full(rate, tenths(now));
        let allowance = Allowance { frames: rates.frames.map(full), bytes: rates.bytes.map(full) };
        Self {
            allowance: Cell::new(allowance),
            holds_back: Cell::new(false),
            incoming: RefCell::new(Held::new(app.incoming.clone())),
        }
    }

    /// Whether the client must not be read now.
    pub(super) fn holds_back(&self) -> bool {
        self.holds_back.get()
    }

    /// Lets the client be read again if it has waited for long enough; says whether it has.
    pub(super) fn pay_off(&self, app: &App, now: u32) -> bool {
        let mut allowance = self.allowance.get();
        let paid = allowance.debt(app.limits.rates, now) == 0.0;
        self.allowance.set(allowance);
        self.holds_back.set(!paid);
        paid
    }

    /// Holds so many bytes of the budget of all clients. `false` if there are not so many.
    pub(super) fn hold(&self, bytes: usize) -> bool {
        self.incoming.borrow_mut().set(bytes)
    }

    /// Counts what was read. An error ends the connection.
    pub(super) fn count(&self, app: &App, now: u32, read: &Read) -> Result<(), Close> {
        if !self.hold(read.held) {
            app.metrics.count_refused("incoming_bytes");
            return Err(Close::new(Code::PublishFailed, "too much is on its way in; try again in a moment"));
        }
        let mut allowance = self.allowance.get();
        allowance.charge(app.limits.rates, now, read);
        let debt = allowance.debt(app.limits.rates, now);
        self.allowance.set(allowance);
        if debt > MOST_DEBT {
            return Err(Close::new(Code::TooFast, "too many frames; connect again after a moment, and send fewer"));
        }
        if debt > 0.0 && !self.holds_back.replace(true) {
            app.metrics.throttled.inc();
        }
        Ok(())
    }
}

impl Allowance {
    fn charge(&mut self, rates: Rates, now: u32, read: &Read) {
        let buckets = [(&mut self.frames, rates.frames, read.frames), (&mut self.bytes, rates.bytes, read.bytes)];
        for (bucket, rate, amount) in buckets {
            if let (Some(bucket), Some(rate)) = (bucket, rate) {
                bucket.charge(rate, tenths(now), amount);
            }
        }
    }

    /// For how many seconds the client must not be read.
    fn debt(&mut self, rates: Rates, now: u32) -> f32 {
        let [frames, bytes] =
            [(&mut self.frames, rates.frames), (&mut self.bytes, rates.bytes)].map(|(bucket, rate)| {
                bucket.as_mut().zip(rate).map_or(0.0, |(bucket, rate)| bucket.debt(rate, tenths(now)))
            });
        frames.max(bytes)
    }
}

/// The shard's clock as a bucket counts.
fn tenths(seconds: u32) -> u32 {
    seconds.saturating_mul(10)
}
