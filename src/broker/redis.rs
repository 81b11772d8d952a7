//! The Redis broker: any number of instances share one Redis and relay the same messages.
//! Publishing is one atomic call of the Lua code in `functions/`. A read of the history asks Lua for a
//! plan and then fetches what the plan names. One supervised connection for each server receives the
//! published messages. In reading order:
//!
//! * A server: `shard`. Several of them, in a Redis Cluster: `cluster`, `finder`, `topology`.
//! * Receive: `subscriber`, `wanted`, `subscriptions`, `connection`, `resp`, `decoder`,
//!   `position_marker` (the markers come from `announce` in `functions/publish.lua`).
//! * Publish: `pipeline`, `calls`, `names`, `library`, then `functions/channel.lua` and
//!   `functions/publish.lua`.
//! * Read: `history`, `reads`, `functions/plan.lua`; `shared` and `reply` carry its commands.
//! * Who is on a channel: `presence`, `functions/presence.lua`.
//! * Connect: `node`, `target`, `endpoint`, `url`, `tls`, `sentinel`, `sentinel_url`,
//!   `cluster_url`, `error`.
//! * Positions for plain messages: `numbering`, `numberer`, `functions/number.lua`.
//! * `livebridge check`: `probe`, `diagnosis`.

mod calls;
mod certificate;
mod cluster;
mod cluster_url;
mod connection;
mod decoder;
mod diagnosis;
mod endpoint;
mod error;
mod finder;
mod history;
mod library;
mod names;
mod node;
mod numberer;
pub mod numbering;
mod pipeline;
mod position_marker;
mod presence;
pub mod probe;
mod reads;
mod reply;
pub mod resp;
mod sentinel;
mod sentinel_url;
mod shard;
mod shared;
mod subscriber;
mod subscriptions;
mod target;
mod tls;
mod topology;
mod url;
mod wanted;

use std::sync::Arc;

use futures::future::{BoxFuture, FutureExt, join_all};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use self::cluster::Cluster;
use self::cluster_url::ClusterUrl;
use self::connection::Role;
pub use self::endpoint::{RedisOptions, RedisOptionsError};
pub use self::names::PrefixError;
use self::shard::{Context, Shard};
use self::target::Target;
pub use self::tls::{TlsOptions, TlsSettingsError};
pub use self::url::UrlError;
use super::{Broker, BrokerError, EventSink, Health, Page, Publication, ReadFrom, RequestSize, ShardCounts};
use crate::channel::ChannelName;
use crate::message::Position;
use crate::observability::metrics::Metrics;
use crate::presence::{Everybody, Update, Updated};
use crate::rules::Rules;

/// A broker that uses Redis.
pub struct RedisBroker {
    servers: Servers,
    /// The unique name of this instance.
    instance: String,
}

enum Servers {
    /// A standalone server, or the master of Sentinels.
    One(Box<Shard>),
    /// A Redis Cluster, and the task that follows its topology until it is dropped.
    Cluster(Arc<Cluster>, #[expect(dead_code, reason = "dropping it ends the task")] JoinSet<()>),
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
        let url = ClusterUrl::parse(&options.url);
        let names = options.names(url.is_some())?;
        let numbered = rules.iter().find(|(_, rule)| rule.numbered).map(|(pattern, _)| pattern.as_str().to_owned());
        if let Some(pattern) = numbered.filter(|_| url.is_some()) {
            return Err(RedisOptionsError::NumberedOnCluster(pattern));
        }
        let context =
            Context { names, replicas: options.replicas, sink, rules, metrics, stale: Arc::new(Notify::new()) };
        let servers = match url {
            Some(url) => {
                let (cluster, task) = Cluster::start(url?, options, instance, context)?;
                Servers::Cluster(cluster, task)
            }
            None => {
                let target = Target::new(options, context.metrics.clone())?;
                let canary = format!("livebridge:canary:{}", context.names.channel(instance));
                Servers::One(Box::new(Shard::start(target, Role::Master, canary, &context)))
            }
        };
        Ok(Self { servers, instance: instance.to_owned() })
    }
}

impl RedisBroker {
    async fn write_presence_of(&self, update: Update) -> Result<Updated, BrokerError> {
        match &self.servers {
            Servers::One(shard) => Ok(shard.write_presence(&self.instance, &update).await?),
            Servers::Cluster(cluster, _) => cluster.write_presence(&update).await,
        }
    }
}

impl Broker for RedisBroker {
    fn publish(&self, batch: Vec<Publication>) -> BoxFuture<'_, Vec<Result<Option<Position>, BrokerError>>> {
        match &self.servers {
            Servers::One(shard) => async move {
                let outcomes = shard.publish(batch).await;
                outcomes.into_iter().map(|outcome| outcome.map_err(BrokerError::from)).collect()
            }
            .boxed(),
            Servers::Cluster(cluster, _) => cluster.publish(batch).boxed(),
        }
    }

    fn subscribe(&self, channel: &ChannelName, request: RequestSize) -> Result<(), BrokerError> {
        match &self.servers {
            Servers::One(shard) => shard.subscriber.want(channel, request),
            Servers::Cluster(cluster, _) => cluster.subscribe(channel, request),
        }
    }

    fn unsubscribe(&self, channel: &ChannelName) {
        match &self.servers {
            Servers::One(shard) => shard.subscriber.forget(channel),
            Servers::Cluster(cluster, _) => cluster.unsubscribe(channel),
        }
    }

    fn read<'a>(
        &'a self,
        channel: &'a ChannelName,
        from: ReadFrom,
        limit: usize,
    ) -> BoxFuture<'a, Result<Option<Page>, BrokerError>> {
        match &self.servers {
            Servers::One(shard) => async move { Ok(shard.history.read(channel, from, limit).await?) }.boxed(),
            Servers::Cluster(cluster, _) => cluster.read(channel, from, limit).boxed(),
        }
    }

    fn write_presence(&self, updates: Vec<Update>) -> BoxFuture<'_, Vec<Result<Updated, BrokerError>>> {
        join_all(updates.into_iter().map(|update| self.write_presence_of(update))).boxed()
    }

    fn read_presence<'a>(&'a self, channel: &'a ChannelName) -> BoxFuture<'a, Result<Everybody, BrokerError>> {
        match &self.servers {
            Servers::One(shard) => async move { Ok(shard.read_presence(channel).await?) }.boxed(),
            Servers::Cluster(cluster, _) => cluster.read_presence(channel).boxed(),
        }
    }

    fn leave(&self) {
        if let Servers::One(shard) = &self.servers {
            shard.leave();
        }
    }

    fn health(&self) -> Health {
        match &self.servers {
            Servers::One(shard) => shard.subscriber.health(),
            Servers::Cluster(cluster, _) => cluster.health(),
        }
    }

    fn health_of(&self, channel: &ChannelName) -> Health {
        match &self.servers {
            Servers::One(shard) => shard.subscriber.health(),
            Servers::Cluster(cluster, _) => cluster.health_of(channel),
        }
    }

    fn shards(&self) -> Option<ShardCounts> {
        match &self.servers {
            Servers::One(_) => None,
            Servers::Cluster(cluster, _) => Some(cluster.counts()),
        }
    }
}
