//! The Redis broker: any number of instances on one Redis relay the same. Publishing and history are atomic calls of
//! the Lua code in `functions/`; what is published is heard on one supervised connection.

mod calls;
mod commands;
mod connection;
mod decoder;
mod diagnosis;
mod endpoint;
mod history;
mod library;
mod pipeline;
mod position_marker;
pub mod probe;
mod reads;
pub mod resp;
mod subscriber;
mod subscriptions;
mod wanted;

use std::sync::Arc;

use futures::future::{BoxFuture, FutureExt};
use thread_local::ThreadLocal;

use self::commands::Commands;
use self::endpoint::Endpoint;
use self::pipeline::Pipeline;
use self::subscriber::Subscriber;
use super::{Broker, BrokerError, EventSink, Health, Page, Publication, ReadFrom, RequestSize};
use crate::channel::ChannelName;
use crate::message::Position;
use crate::observability::metrics::Metrics;
use crate::rules::Rules;

/// A broker behind a Redis URL.
pub struct RedisBroker {
    commands: Arc<Commands>,
    /// One for each thread that publishes.
    pipelines: ThreadLocal<Arc<Pipeline>>,
    subscriber: Arc<Subscriber>,
}

/// A Redis URL that can't be understood.
#[derive(Debug, thiserror::Error)]
#[error("cannot use the Redis URL: {0}; it looks like redis://user:password@host:6379/0")]
pub struct UrlError(#[source] redis::RedisError);

impl RedisBroker {
    /// Starts connecting, on the runtime that it is called on. `instance` must differ between instances.
    pub fn start(
        url: &str,
        instance: &str,
        sink: Arc<dyn EventSink>,
        rules: Arc<Rules>,
        metrics: Arc<Metrics>,
    ) -> Result<Self, UrlError> {
        let endpoint = Endpoint::parse(url).map_err(UrlError)?;
        let commands = Arc::new(Commands::new(endpoint.clone(), rules, metrics.clone()));
        let subscriber = Arc::new(Subscriber::new(instance, sink, metrics));
        tokio::spawn(subscriber.clone().supervise(endpoint, commands.clone()));
        Ok(Self { commands, pipelines: ThreadLocal::new(), subscriber })
    }

    /// This thread's pipeline; it runs on the thread's runtime.
    fn pipeline(&self) -> &Pipeline {
        self.pipelines.get_or(|| {
            let pipeline = Arc::new(Pipeline::default());
            tokio::spawn(pipeline.clone().run(self.commands.clone()));
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
        self.commands.read(channel, from, limit).boxed()
    }

    fn health(&self) -> Health {
        self.subscriber.health()
    }
}
