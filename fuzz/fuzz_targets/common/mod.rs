//! An instance without sockets, threads or a runtime: what the parsers of requests ask for their limits.

use std::sync::Arc;

use livebridge::access::Access;
use livebridge::access::origin::Origins;
use livebridge::admission::{self, Admission, AddressLimits};
use livebridge::app::{App, Limits, Rates};
use livebridge::broker::memory::MemoryBroker;
use livebridge::budget::Budget;
use livebridge::drain::Drain;
use livebridge::hub::Hub;
use livebridge::intake::Intake;
use livebridge::log;
use livebridge::metrics::Metrics;
use livebridge::rules::Rules;
use livebridge::sparing::Sparing;

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
    };
    let metrics = Arc::new(Metrics::new(1));
    let rules = Arc::new(Rules::default());
    let broker = Arc::new(MemoryBroker::new(Arc::new(Intake::default()), rules.clone()));
    let bounds = log::Bounds { entries: 16, bytes: 1024 };
    let hub = Hub::new(broker, rules.clone(), bounds, 1 << 20, 1, Arc::default(), metrics.clone());
    let nobody = || AddressLimits { connections: None, handshakes: None };
    let bounds =
        admission::Bounds { connections: None, public: nobody(), near: nobody(), proxies: Default::default() };
    let admission = Admission::new(bounds, 1024, 1, metrics.clone());
    Arc::new(App {
        instance: "fuzz".into(),
        default_channel: "live".parse().expect("a name"),
        limits,
        hub,
        metrics,
        admission,
        access: Access::new(Vec::new(), None, Origins::default(), None, rules),
        incoming: Budget::new(1 << 20),
        failures: Sparing::default(),
        drain: Drain::default(),
    })
}
