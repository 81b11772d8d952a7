//! The state of shutting down, a signal to all parts of the instance: readiness, handshakes,
//! connections, threads. `delivery/drain.rs` closes the subscribers of a thread.

use tokio::sync::watch;

/// The phases of a shutdown.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Debug)]
enum Phase {
    #[default]
    Serving,
    Leaving,
    Draining,
}

/// The phase of the shutdown, which all parts can watch. It only moves forward.
#[derive(Default)]
pub struct Drain(watch::Sender<Phase>);

impl Drain {
    /// Whether load balancers should stop sending clients here.
    pub fn is_leaving(&self) -> bool {
        *self.0.borrow() >= Phase::Leaving
    }

    /// Whether the instance is draining: it starts nothing new.
    pub fn is_draining(&self) -> bool {
        *self.0.borrow() >= Phase::Draining
    }

    /// Reports the instance as not ready. New clients are still served.
    pub fn start_leaving(&self) {
        self.advance(Phase::Leaving);
    }

    /// Starts the drain.
    pub fn start_draining(&self) {
        self.advance(Phase::Draining);
    }

    /// Waits until the drain starts.
    pub async fn draining(&self) {
        // The only possible error is a dropped sender, and `self` holds the sender.
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
