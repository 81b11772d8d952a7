//! An instance without sockets, threads or a runtime: what the parsers of requests ask for their limits.

use std::sync::Arc;

use livebridge::access::Access;
use livebridge::access::origin::Origins;
use livebridge::app::{App, Limits, Rates};
use livebridge::broker::Broker;
use livebridge::broker::memory::MemoryBroker;
use livebridge::drain::Drain;
use livebridge::hub::Hub;
use livebridge::hub::dispatch::Dispatcher;
use livebridge::hub::log::LogBounds;
use livebridge::observability::log_throttle::LogThrottle;
use livebridge::observability::metrics::Metrics;
use livebridge::rules::Rules;
use livebridge::transport::admission::{AddressLimits, Admission, ConnectionLimits};
use livebridge::transport::byte_budget::Budget;

pub const MOST_CHANNELS: usize = 5;
pub const MOST_MESSAGES: usize = 8;
pub const MOST_BYTES: usize = 64;

pub fn app() -> Arc<App> {
    let limits = Limits {
        message_bytes: MOST_BYTES,
        channels: MOST_CHANNELS,
        batch_messages: MOST_MESSAGES,
        batch_bytes: 1 << 20,
        rates: Rates::default(),
        request_time: std::time::Duration::from_secs(1),
        heartbeat_seconds: 15,
        compression: true,
    };
    let metrics = Arc::new(Metrics::new(1));
    let rules = Arc::new(Rules::default());
    let dispatcher = Arc::new(Dispatcher::new(1 << 20, 1, metrics.clone()));
    let broker: Arc<dyn Broker> = Arc::new(MemoryBroker::new(dispatcher.clone(), rules.clone()));
    let outgoing = Budget::new(1 << 20);
    let bounds = LogBounds { entries: 16, bytes: 1024 };
    let hub = Hub::new(dispatcher, broker.clone(), rules.clone(), bounds, outgoing.clone());
    let nobody = || AddressLimits {
        connections: None,
        handshakes: None,
        published_messages: None,
        published_bytes: None,
        new_channels: None,
    };
    let bounds =
        ConnectionLimits { connections: None, public: nobody(), near: nobody(), proxies: Default::default() };
    let admission = Admission::new(bounds, 1024, 1, metrics.clone());
    Arc::new(App {
        instance: "fuzz".into(),
        default_channel: "live".parse().expect("a name"),
        limits,
        broker,
        hub,
        metrics,
        admission,
        access: Access::new(Vec::new(), None, Origins::default(), None, rules),
        incoming: Budget::new(1 << 20),
        outgoing,
        failures: LogThrottle::default(),
        drain: Drain::default(),
    })
}
