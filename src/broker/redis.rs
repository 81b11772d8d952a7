//! The Redis broker: any number of instances on one Redis relay the same. Publishing and history are atomic calls of
//! the Lua code in `functions/`; what is published is heard on one supervised connection.

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
mod shared;
mod subscriber;
mod subscriptions;
mod tls;
mod url;
mod wanted;

use std::sync::Arc;

use futures::future::{BoxFuture, FutureExt};
use thread_local::ThreadLocal;

use self::connection::Role;
use self::endpoint::Endpoint;
pub use self::endpoint::{RedisOptions, RedisOptionsError};
use self::history::History;
use self::node::Node;
use self::pipeline::Pipeline;
use self::subscriber::Subscriber;
pub use self::tls::{TlsOptions, TlsSettingsError};
pub use self::url::UrlError;
use super::{Broker, BrokerError, EventSink, Health, Page, Publication, ReadFrom, RequestSize};
use crate::channel::ChannelName;
use crate::message::Position;
use crate::observability::metrics::Metrics;
use crate::rules::Rules;

/// A broker in a Redis.
pub struct RedisBroker {
    node: Arc<Node>,
    rules: Arc<Rules>,
    history: History,
    /// One for each thread that publishes.
    pipelines: ThreadLocal<Arc<Pipeline>>,
    subscriber: Arc<Subscriber>,
}

impl RedisBroker {
    /// Starts connecting, on the current runtime. `instance` must be unique among the instances.
    ///
    /// # Errors
    /// [`RedisOptionsError`] if the URL or a file that it needs is not valid. [`Broker::health`] says
    /// whether Redis answers.
    pub fn start(
        options: &RedisOptions,
        instance: &str,
        sink: Arc<dyn EventSink>,
        rules: Arc<Rules>,
        metrics: Arc<Metrics>,
    ) -> Result<Self, RedisOptionsError> {
        let endpoint = Endpoint::new(options)?;
        let node = Arc::new(Node::new(endpoint, Role::Master, &rules, metrics.clone()));
        let subscriber = Arc::new(Subscriber::new(instance, sink, metrics));
        tokio::spawn(subscriber.clone().supervise(node.clone()));
        let history = History::new(node.clone(), rules.clone());
        Ok(Self { node, rules, history, pipelines: ThreadLocal::new(), subscriber })
    }

    /// This thread's pipeline; it runs on the thread's runtime.
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
