//! What all parts of an instance share: its name, its limits, the hub, the metrics, and whether it is draining.

use std::sync::Arc;
use std::time::Duration;

use crate::access::Access;
use crate::broker::{Broker, BrokerError, Publication};
use crate::channel::ChannelName;
use crate::drain::Drain;
use crate::hub::Hub;
use crate::message::Position;
use crate::observability::log_throttle::LogThrottle;
use crate::observability::metrics::Metrics;
use crate::observability::metrics::latency::Moment;
use crate::transport::admission::Admission;
use crate::transport::byte_budget::Budget;
use crate::transport::token_bucket::Rate;

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
    /// How fast a WebSocket client may send.
    pub rates: Rates,
    /// How long a client has for the head of a request, and again for its body.
    pub request_time: Duration,
    /// Silence after which a subscriber is sent a heartbeat, in seconds.
    pub heartbeat_seconds: u32,
}

/// How fast a WebSocket client may send; `None` for no limit.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rates {
    /// Frames, fragments and pings included.
    pub frames: Option<Rate>,
    /// Bytes, as they come from the socket.
    pub bytes: Option<Rate>,
}

/// An instance.
pub struct App {
    /// The name of the instance, for people.
    pub instance: String,
    /// The channel of requests that name none.
    pub default_channel: ChannelName,
    /// The bounds on what clients and producers may send.
    pub limits: Limits,
    /// Carries messages between instances.
    pub broker: Arc<dyn Broker>,
    /// The channels with subscribers here.
    pub hub: Arc<Hub>,
    /// The metrics of this instance.
    pub metrics: Arc<Metrics>,
    /// The limits on connections and on what an address may do.
    pub admission: Arc<Admission>,
    /// Authorization.
    pub access: Arc<Access>,
    /// The budget for incomplete bodies and WebSocket messages, in bytes.
    pub incoming: Arc<Budget>,
    /// The budget for pages of history and partly written frames, in bytes.
    pub outgoing: Arc<Budget>,
    /// Rate-limits log lines of failed requests.
    pub failures: LogThrottle,
    /// Whether the instance is stopping.
    pub drain: Drain,
}

impl App {
    /// Publishes, and counts. See [`crate::broker::Broker::publish`].
    pub async fn publish(&self, batch: Vec<Publication>) -> Vec<Result<Option<Position>, BrokerError>> {
        let asked = Moment::now();
        let results = self.broker.publish(batch).await;
        self.metrics.latency.publish.observe(asked);
        let accepted = results.iter().filter(|result| result.is_ok()).count() as u64;
        self.metrics.published.inc_by(accepted);
        self.metrics.publish_failed.inc_by(results.len() as u64 - accepted);
        results
    }
}
