//! One Redis server and all that livebridge does with it: publishing, reading and receiving. A
//! standalone server has all channels; a Redis Cluster has a shard for some of the hash slots each.
//! `cluster.rs` decides which channels belong to which shard.

use std::sync::Arc;

use thread_local::ThreadLocal;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::connection::Role;
use super::error::Failure;
use super::history::History;
use super::names::Names;
use super::node::Node;
use super::numberer::Numberer;
use super::pipeline::{Outcome, Pipeline};
use super::presence;
use super::reads::Reads;
use super::subscriber::Subscriber;
use super::target::Target;
use crate::broker::{BrokerError, EventSink, Health, Publication};
use crate::channel::ChannelName;
use crate::observability::metrics::Metrics;
use crate::presence::{Everybody, Update, Updated};
use crate::rules::Rules;

/// What all shards share.
#[derive(Clone)]
pub(super) struct Context {
    pub(super) names: Names,
    /// See [`super::RedisOptions::replicas`].
    pub(super) replicas: u32,
    pub(super) sink: Arc<dyn EventSink>,
    pub(super) rules: Arc<Rules>,
    pub(super) metrics: Arc<Metrics>,
    /// Notified when the shards may have changed.
    pub(super) stale: Arc<Notify>,
}

/// A server.
pub(super) struct Shard {
    node: Arc<Node>,
    rules: Arc<Rules>,
    replicas: u32,
    pub(super) history: History,
    reads: Arc<Reads>,
    /// One pipeline for each thread that publishes, and its task.
    pipelines: ThreadLocal<(Arc<Pipeline>, JoinSet<()>)>,
    pub(super) subscriber: Arc<Subscriber>,
    numberer: Option<Arc<Numberer>>,
    /// Dropping a set ends its tasks.
    _supervisor: JoinSet<()>,
}

impl Shard {
    /// Starts connecting, on the current runtime. The channel of the canary must be unique among
    /// the instances.
    pub(super) fn start(target: Target, role: Role, canary: String, context: &Context) -> Self {
        let Context { names, replicas, sink, rules, metrics, stale } = context.clone();
        let numberer = Numberer::new(rules.clone(), &names, metrics.clone()).map(Arc::new);
        let node = Arc::new(Node::new(target, role, names, &rules, metrics.clone()));
        let subscriber = Arc::new(Subscriber::new(canary, sink, metrics, stale, numberer.clone()));
        let mut supervisor = JoinSet::new();
        if let Some(numberer) = &numberer {
            supervisor.spawn(numberer.clone().run(node.clone()));
        }
        supervisor.spawn(subscriber.clone().supervise(node.clone()));
        let reads = Arc::new(Reads::new());
        let history = History::new(node.clone(), rules.clone(), reads.clone());
        let pipelines = ThreadLocal::new();
        Self { node, rules, replicas, history, reads, pipelines, subscriber, numberer, _supervisor: supervisor }
    }

    /// Publishes messages, and returns one outcome for each, in their order.
    pub(super) async fn publish(&self, batch: Vec<Publication>) -> Vec<Outcome> {
        if let Health::Down(why) = self.subscriber.health() {
            return batch.iter().map(|_| Err(BrokerError::Unavailable(why.clone()).into())).collect();
        }
        if batch.is_empty() { Vec::new() } else { self.pipeline().publish(batch).await }
    }

    /// Tells who is on a channel of this instance.
    pub(super) async fn write_presence(&self, instance: &str, update: &Update) -> Result<Updated, Failure> {
        self.check_health()?;
        presence::write(&self.node, &self.reads, instance, update).await
    }

    /// Reads who is on a channel.
    pub(super) async fn read_presence(&self, channel: &ChannelName) -> Result<Everybody, Failure> {
        self.check_health()?;
        presence::read(&self.node, &self.reads, channel).await
    }

    fn check_health(&self) -> Result<(), BrokerError> {
        match self.subscriber.health() {
            Health::Down(why) => Err(BrokerError::Unavailable(why)),
            _ => Ok(()),
        }
    }

    /// See [`crate::broker::Broker::leave`].
    pub(super) fn leave(&self) {
        if let Some(numberer) = &self.numberer {
            numberer.leave();
        }
    }

    /// The address for messages to people.
    pub(super) fn place(&self) -> String {
        self.node.place()
    }

    /// The pipeline of this thread. It runs on the runtime of the thread.
    fn pipeline(&self) -> &Pipeline {
        let (pipeline, _) = self.pipelines.get_or(|| {
            let (pipeline, mut task) = (Arc::new(Pipeline::default()), JoinSet::new());
            task.spawn(pipeline.clone().run(self.node.clone(), self.rules.clone(), self.replicas));
            (pipeline, task)
        });
        pipeline
    }
}
