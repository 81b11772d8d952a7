//! What the numbering of plain messages counts.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// The metrics of the numbering.
pub struct NumberingMetrics {
    /// Plain messages that this instance has received with a position.
    pub numbered: Counter,
    /// Plain messages that wait for their position.
    pub waiting: Gauge,
    /// How often this instance has become the one that appends plain messages.
    pub takeovers: Counter,
    /// Requests to append plain messages that had no success.
    pub refused: Counter,
    /// Plain messages that this instance has dropped, because there was no room or an older member was gone.
    pub lost: Counter,
}

impl NumberingMetrics {
    pub(super) fn new(registry: &mut Registry) -> Self {
        let mut counter = |name: &str, help: &str| {
            let counter = Counter::default();
            registry.register(name, help, counter.clone());
            counter
        };
        let numbered = counter("plain_numbered", "Plain messages received with a position");
        let takeovers = counter("numbering_takeovers", "Times that this instance began to append plain messages");
        let refused = counter("numbering_refused", "Requests to append plain messages that had no success");
        let lost = counter("plain_lost", "Plain messages dropped without a position");
        let waiting = Gauge::default();
        registry.register("plain_waiting", "Plain messages that wait for their position", waiting.clone());
        Self { numbered, waiting, takeovers, refused, lost }
    }
}
