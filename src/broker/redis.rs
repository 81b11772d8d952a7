//! The Redis broker: any number of instances share one Redis and relay the same messages.
//! Publishing is one atomic call of the Lua code in `functions/`. A read of the history asks Lua for a
//! plan and then fetches what the plan names. One supervised connection receives the published
//! messages. In reading order:
//!
//! * Receive: `subscriber`, `wanted`, `subscriptions`, `connection`, `resp`, `decoder`,
//!   `position_marker` (the markers come from `announce` in `functions/publish.lua`).
//! * Publish: `pipeline`, `calls`, `library`, then `functions/channel.lua` and
//!   `functions/publish.lua`.
//! * Read: `history`, `reads`, `functions/plan.lua`; `shared` and `reply` carry its commands.
//! * Connect: `node`, `target`, `endpoint`, `url`, `tls`, `sentinel`, `sentinel_url`, `error`.
//! * `livebridge check`: `probe`, `diagnosis`.

mod calls;
mod connection;
mod decoder;
mod diagnosis;
mod endpoint;
mod error;
mod history;
mod library;
mod node;
mod pipeline;
mod position_marker;
pub mod probe;
mod reads;
mod reply;
pub mod resp;
mod sentinel;
mod sentinel_url;
mod shared;
mod subscriber;
mod subscriptions;
mod target;
mod tls;
mod url;
mod wanted;

use std::sync::Arc;

use futures::future::{BoxFuture, FutureExt};
use thread_local::ThreadLocal;

use self::connection::Role;
pub use self::endpoint::{RedisOptions, RedisOptionsError};
use self::history::History;
use self::node::Node;
use self::pipeline::Pipeline;
use self::subscriber::Subscriber;
use self::target::Target;
pub use self::tls::{TlsOptions, TlsSettingsError};
pub use self::url::UrlError;
use super::{Broker, BrokerError, EventSink, Health, Page, Publication, ReadFrom, RequestSize};
use crate::channel::ChannelName;
use crate::message::Position;
use crate::observability::metrics::Metrics;
use crate::rules::Rules;

/// A broker that uses Redis.
pub struct RedisBroker {
    node: Arc<Node>,
    rules: Arc<Rules>,
    history: History,
    /// One pipeline for each thread that publishes.
    pipelines: ThreadLocal<Arc<Pipeline>>,
    subscriber: Arc<Subscriber>,
}

impl RedisBroker {
    /// Starts connecting, on the current runtime. `instance` must be unique among the instances.
    /// [`Broker::health`] reports whether Redis answers.
    ///
    /// # Errors
    /// [`RedisOptionsError`] if the URL or a file that it needs is not valid.
    pub fn start(
        options: &RedisOptions,
        instance: &str,
        sink: Arc<dyn EventSink>,
        rules: Arc<Rules>,
        metrics: Arc<Metrics>,
    ) -> Result<Self, RedisOptionsError> {
        let target = Target::new(options, metrics.clone())?;
        let node = Arc::new(Node::new(target, Role::Master, &rules, metrics.clone()));
        let subscriber = Arc::new(Subscriber::new(instance, sink, metrics));
        tokio::spawn(subscriber.clone().supervise(node.clone()));
        let history = History::new(node.clone(), rules.clone());
        Ok(Self { node, rules, history, pipelines: ThreadLocal::new(), subscriber })
    }

    /// The pipeline of this thread. It runs on the runtime of the thread.
    fn pipeline(&self) -> &Pipeline {
        self.pipelines.get_or(|| {
            let pipeline = Arc::new(Pipeline::default());
            tokio::spawn(pipeline.clone().run(self.node.clone(), self.rules.clone()));
            pipeline
        })
    }
}

impl Broker for RedisBroker {
    fn publish(&self, batch: Vec<Publication>) -> BoxFuture<'_, Vec<Result<Option<Position>, BrokerError>>> {
        async move {
            if let Health::Down(why) = self.health() {
                return batch.iter().map(|_| Err(BrokerError::Unavailable(why.clone()))).collect();
            }
            if batch.is_empty() { Vec::new() } else { self.pipeline().publish(batch).await }
        }
        .boxed()
    }

    fn subscribe(&self, channel: &ChannelName, request: RequestSize) -> Result<(), BrokerError> {
        self.subscriber.want(channel, request)
    }

    fn unsubscribe(&self, channel: &ChannelName) {
        self.subscriber.forget(channel);
    }

    fn read<'a>(
        &'a self,
        channel: &'a ChannelName,
        from: ReadFrom,
        limit: usize,
    ) -> BoxFuture<'a, Result<Option<Page>, BrokerError>> {
        self.history.read(channel, from, limit).boxed()
    }

    fn health(&self) -> Health {
        self.subscriber.health()
    }
}
