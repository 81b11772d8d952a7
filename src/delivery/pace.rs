//! How much of a thread's time goes to clients that catch up. Writing them a page of history costs a
//! hundred times as much as a delivery, and ten thousand of them may come at once. Each writes one
//! batch in a turn, and the thread grants a few turns each time that it has looked for new messages,
//! connections and requests.

use std::cell::Cell;

use tokio::sync::{Notify, Semaphore};

/// How many turns are granted at once. With 64 KiB in each they take about half a millisecond.
const TURNS: usize = 4;

/// The turns of the clients of a thread that catch up, in the order in which they asked.
pub struct Pace {
    turns: Semaphore,
    /// How many turns were used since they were last granted.
    used: Cell<usize>,
    changed: Notify,
}

impl Pace {
    pub(super) fn new() -> Self {
        Self { turns: Semaphore::new(TURNS), used: Cell::new(0), changed: Notify::new() }
    }

    /// Waits for a turn, which the caller uses at once.
    pub(super) async fn turn(&self) {
        // Closed never.
        if let Ok(turn) = self.turns.acquire().await {
            turn.forget();
        }
        self.used.set(self.used.get() + 1);
        self.changed.notify_one();
    }

    /// Grants turns, for as long as the thread lives. To be polled between the rounds of the thread's tasks.
    pub async fn grant(&self) {
        loop {
            self.changed.notified().await;
            self.turns.add_permits(self.used.take());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures::FutureExt;

    use super::*;

    #[test]
    fn no_more_than_a_few_turns_are_used_before_others_run() {
        let pace = Pace::new();
        let mut grant = pin!(pace.grant());
        assert!((0..TURNS).all(|_| pace.turn().now_or_never().is_some()));
        let mut first = pin!(pace.turn());
        let mut second = Box::pin(pace.turn());
        assert!(first.as_mut().now_or_never().is_none() && second.as_mut().now_or_never().is_none());
        assert!(grant.as_mut().now_or_never().is_none());
        // One that has gone meanwhile takes no turn from others.
        drop(second);
        assert!(first.now_or_never().is_some());
        assert!((1..TURNS).all(|_| pace.turn().now_or_never().is_some()) && pace.turn().now_or_never().is_none());
        assert!(grant.now_or_never().is_none());
        assert!((0..TURNS).all(|_| pace.turn().now_or_never().is_some()) && pace.turn().now_or_never().is_none());
    }
}
