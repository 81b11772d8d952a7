//! The state that all parts of an instance share: its name, its limits, the hub, the metrics, and
//! the state of the drain.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::access::Access;
use crate::broker::{Broker, BrokerError, Publication, ReadFrom};
use crate::channel::ChannelName;
use crate::drain::Drain;
use crate::hub::Hub;
use crate::hub::held_page::{HeldPage, PageError};
use crate::message::Position;
use crate::observability::log_throttle::LogThrottle;
use crate::observability::metrics::Metrics;
use crate::observability::metrics::latency::Moment;
use crate::transport::address::ClientAddress;
use crate::transport::admission::{Admission, Charge};
use crate::transport::byte_budget::Budget;
use crate::transport::refusal::Refusal;
use crate::transport::token_bucket::Rate;

/// Limits on the requests and messages of clients and producers.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Maximum size of a message in bytes, whether posted or sent over a WebSocket.
    pub message_bytes: usize,
    /// Maximum number of channels of a connection or a request.
    pub channels: usize,
    /// Maximum number of messages in a batch.
    pub batch_messages: usize,
    /// Maximum size of a batch in bytes.
    pub batch_bytes: usize,
    /// Limits on the sending rate of a WebSocket client.
    pub rates: Rates,
    /// Time limit for the head of a request, and again for its body.
    pub request_time: Duration,
    /// Seconds of silence after which a subscriber gets a heartbeat.
    pub heartbeat_seconds: u32,
    /// Whether messages to WebSocket clients are compressed if the client offers it.
    pub compression: bool,
}

/// The sending rates that a WebSocket client may have; `None` for no limit.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rates {
    /// Frames, including fragments and pings.
    pub frames: Option<Rate>,
    /// Bytes, as read from the socket.
    pub bytes: Option<Rate>,
}

/// The shared state of an instance.
pub struct App {
    /// The name of the instance, for logs and clients.
    pub instance: String,
    /// The channel of requests that do not name one.
    pub default_channel: ChannelName,
    /// Limits on requests and messages.
    pub limits: Limits,
    /// The broker, which carries messages between instances.
    pub broker: Arc<dyn Broker>,
    /// The channels that have subscribers on this instance.
    pub hub: Arc<Hub>,
    /// The metrics of this instance.
    pub metrics: Arc<Metrics>,
    /// The limits on connections, and on the rates of each address.
    pub admission: Arc<Admission>,
    /// The access configuration.
    pub access: Arc<Access>,
    /// The budget for incomplete request bodies and WebSocket messages, in bytes.
    pub incoming: Arc<Budget>,
    /// The budget for pages of history and partly written frames, in bytes.
    pub outgoing: Arc<Budget>,
    /// Rate-limits log lines of failed requests.
    pub failures: LogThrottle,
    /// The state of the drain.
    pub drain: Drain,
}

impl App {
    /// Charges a client's address for the channels that have no subscriber on this instance yet,
    /// because each of them costs requests to Redis.
    ///
    /// # Errors
    /// The refusal, if the address subscribes to too many new channels.
    pub fn charge_new_channels(&self, client: ClientAddress, channels: &[ChannelName]) -> Result<(), Refusal> {
        // Most clients of a deployment behind a proxy without `--trusted-proxy` have no limit.
        if !self.admission.limits_new_channels(client) {
            return Ok(());
        }
        match self.hub.count_new(channels) {
            0 => Ok(()),
            new => self.admission.charge(Charge::NewChannels, client, new),
        }
    }

    /// Reads a page of history for a request of a client, and counts a refusal. See [`Hub::page`].
    ///
    /// # Errors
    /// As [`Hub::page`].
    pub async fn read_page(
        &self,
        channel: &ChannelName,
        from: ReadFrom,
        limit: usize,
        client: Option<IpAddr>,
    ) -> Result<Option<Arc<HeldPage>>, PageError> {
        self.hub.page(channel, from, limit, client).await.inspect_err(|error| {
            if *error == PageError::OutgoingFull {
                self.metrics.count_refused("outgoing_bytes");
            }
        })
    }

    /// Publishes a batch through the broker and counts the results. See
    /// [`crate::broker::Broker::publish`].
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
