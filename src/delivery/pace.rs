//! Limits the time that a thread spends on clients that catch up. Writing a page of history costs a
//! hundred times as much as a delivery, and ten thousand such clients may connect at once. A client
//! writes one batch per permit. The thread adds a few permits each time that it has polled its
//! other tasks.

use std::cell::Cell;

use tokio::sync::{Notify, Semaphore};

/// The number of permits added at once. With 64 KiB each, they take about half a millisecond.
const PERMITS: usize = 4;

/// Permits for the clients of a thread that catch up, in the order of their requests.
pub struct Pace {
    permits: Semaphore,
    /// The number of permits used since the last grant.
    used: Cell<usize>,
    changed: Notify,
}

impl Pace {
    pub(super) fn new() -> Self {
        Self { permits: Semaphore::new(PERMITS), used: Cell::new(0), changed: Notify::new() }
    }

    /// Waits for a permit, which the caller uses immediately.
    pub(super) async fn acquire(&self) {
        // The semaphore is never closed.
        if let Ok(permit) = self.permits.acquire().await {
            permit.forget();
        }
        self.used.set(self.used.get() + 1);
        self.changed.notify_one();
    }

    /// Adds permits as long as the thread runs. Poll it once per round of the tasks of the thread.
    pub async fn grant(&self) {
        loop {
            self.changed.notified().await;
            self.permits.add_permits(self.used.take());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures::FutureExt;

    use super::*;

    #[test]
    fn only_a_few_permits_are_used_before_other_tasks_run() {
        let pace = Pace::new();
        let mut grant = pin!(pace.grant());
        assert!((0..PERMITS).all(|_| pace.acquire().now_or_never().is_some()));
        let mut first = pin!(pace.acquire());
        let mut second = Box::pin(pace.acquire());
        assert!(first.as_mut().now_or_never().is_none() && second.as_mut().now_or_never().is_none());
        assert!(grant.as_mut().now_or_never().is_none());
        // A dropped waiter uses no permit.
        drop(second);
        assert!(first.now_or_never().is_some());
        assert!(
            (1..PERMITS).all(|_| pace.acquire().now_or_never().is_some()) && pace.acquire().now_or_never().is_none()
        );
        assert!(grant.now_or_never().is_none());
        assert!(
            (0..PERMITS).all(|_| pace.acquire().now_or_never().is_some()) && pace.acquire().now_or_never().is_none()
        );
    }
}
