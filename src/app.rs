//! What all parts of an instance share: its name, its limits, the hub, the metrics, and whether it is draining.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::broker::{BrokerError, Publication};
use crate::channel::ChannelName;
use crate::hub::Hub;
use crate::message::Position;
use crate::metrics::Metrics;

/// The bounds on what clients and producers may send.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The most bytes of a message, posted or sent as a WebSocket message.
    pub message_bytes: usize,
    /// The most channels of one connection or request.
    pub channels: usize,
    /// The most messages of a batch.
    pub batch_messages: usize,
    /// The most bytes of a batch.
    pub batch_bytes: usize,
}

/// An instance.
pub struct App {
    /// Tells instances apart, to people.
    pub instance: String,
    /// Where goes and comes what names no channel.
    pub default_channel: ChannelName,
    /// The bounds.
    pub limits: Limits,
    /// The channels with subscribers here.
    pub hub: Arc<Hub>,
    /// The numbers.
    pub metrics: Arc<Metrics>,
    draining: AtomicBool,
}

impl App {
    /// An instance that is not draining.
    pub fn new(
        instance: String,
        default_channel: ChannelName,
        limits: Limits,
        hub: Arc<Hub>,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        Arc::new(Self { instance, default_channel, limits, hub, metrics, draining: AtomicBool::new(false) })
    }

    /// Publishes, and counts. See [`crate::broker::Broker::publish`].
    pub async fn publish(&self, batch: Vec<Publication>) -> Vec<Result<Option<Position>, BrokerError>> {
        let results = self.hub.broker().publish(batch).await;
        let accepted = results.iter().filter(|result| result.is_ok()).count() as u64;
        self.metrics.published.inc_by(accepted);
        self.metrics.publish_failed.inc_by(results.len() as u64 - accepted);
        results
    }

    /// Whether the instance is about to stop.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// From now on the instance is about to stop.
    pub fn start_draining(&self) {
        self.draining.store(true, Ordering::Release);
    }
}
