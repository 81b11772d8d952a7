//! How far an instance is with stopping. One signal for all of its parts: readiness, handshakes, connections, threads.
//! How a thread then closes its subscribers is `delivery/drain.rs`.

use tokio::sync::watch;

/// How far an instance is with stopping.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Debug)]
enum Phase {
    #[default]
    Serving,
    Leaving,
    Draining,
}

/// The signal. Phases follow each other and never go back.
#[derive(Default)]
pub struct Drain(watch::Sender<Phase>);

impl Drain {
    /// Whether load balancers should send nobody here any more.
    pub fn is_leaving(&self) -> bool {
        *self.0.borrow() >= Phase::Leaving
    }

    /// Whether the instance is about to stop: nothing new is begun.
    pub fn is_draining(&self) -> bool {
        *self.0.borrow() >= Phase::Draining
    }

    /// From now on load balancers should send nobody here; clients that come are still served.
    pub fn start_leaving(&self) {
        self.advance(Phase::Leaving);
    }

    /// From now on the instance is about to stop.
    pub fn start_draining(&self) {
        self.advance(Phase::Draining);
    }

    /// Waits until the instance is about to stop.
    pub async fn draining(&self) {
        // An error would mean that `self` is gone.
        let _ = self.0.subscribe().wait_for(|phase| *phase >= Phase::Draining).await;
    }

    fn advance(&self, to: Phase) {
        self.0.send_if_modified(|phase| {
            let later = to > *phase;
            *phase = to.max(*phase);
            later
        });
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn an_instance_first_leaves_and_then_drains_and_never_goes_back() {
        let drain = Drain::default();
        assert!(!drain.is_leaving() && !drain.is_draining());
        drain.start_leaving();
        assert!(drain.is_leaving() && !drain.is_draining() && drain.draining().now_or_never().is_none());
        drain.start_draining();
        drain.start_leaving();
        assert!(drain.is_leaving() && drain.is_draining() && drain.draining().now_or_never().is_some());
    }
}
