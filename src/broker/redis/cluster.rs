//! Routes publishing, reading and subscriptions to the shards of a Redis Cluster. Follows the
//! topology: when a slot moves or a replica becomes master, the channels concerned move to their
//! new shard, which subscribes to them again. The hub then compares what it has delivered with the
//! history, so nothing is lost in between.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::cluster_url::ClusterUrl;
use super::connection::Role;
use super::endpoint::{RedisOptions, RedisOptionsError};
use super::error::Failure;
use super::finder::Finder;
use super::names::Names;
use super::shard::{Context, Shard};
use super::subscriber::NOT_YET;
use super::target::Target;
use super::topology::{SLOTS, Topology};
use crate::backoff::Backoff;
use crate::broker::{BrokerError, Event, Health, Page, Publication, ReadFrom, RequestSize, ShardCounts};
use crate::channel::ChannelName;
use crate::message::Position;
use crate::presence::{Everybody, Update, Updated};

/// How often the topology is queried without a reason, while not everything works, and at most.
const RECHECK: Duration = Duration::from_secs(2);
const RECHECK_BROKEN: Duration = Duration::from_millis(200);
const PAUSE: Duration = Duration::from_millis(50);
/// How long a publish or a read is tried again while its channel moves to another shard.
const PATIENCE: Duration = Duration::from_secs(4);

type Published = Result<Option<Position>, BrokerError>;

/// A Redis Cluster.
pub(super) struct Cluster {
    finder: Finder,
    instance: String,
    context: Context,
    routes: RwLock<Routes>,
    /// Counts how often the topology was queried.
    rounds: watch::Sender<u64>,
}

/// Which channels are where.
struct Routes {
    names: Names,
    topology: Topology,
    /// The shards, in the order of the masters.
    shards: Vec<Arc<Shard>>,
    /// Wanted channels whose slot no shard serves.
    unserved: HashMap<ChannelName, RequestSize>,
    /// Why the last query of the topology failed, if it did.
    failure: Option<String>,
    /// Whether every shard has been tried at least once.
    has_started: bool,
}

impl Cluster {
    /// Starts following the Cluster, on the current runtime, until the returned set is dropped.
    ///
    /// # Errors
    /// [`RedisOptionsError`] if a setting is not valid.
    pub(super) fn start(
        url: ClusterUrl,
        options: &RedisOptions,
        instance: &str,
        context: Context,
    ) -> Result<(Arc<Self>, JoinSet<()>), RedisOptionsError> {
        let routes = Routes {
            names: context.names.clone(),
            topology: Topology::empty(),
            shards: Vec::new(),
            unserved: HashMap::new(),
            failure: Some(NOT_YET.into()),
            has_started: false,
        };
        let cluster = Arc::new(Self {
            finder: Finder::new(url, options)?,
            instance: instance.to_owned(),
            context,
            routes: RwLock::new(routes),
            rounds: watch::Sender::new(0),
        });
        let mut task = JoinSet::new();
        task.spawn(cluster.clone().follow());
        Ok((cluster, task))
    }

    /// See [`crate::broker::Broker::publish`].
    pub(super) async fn publish(&self, batch: Vec<Publication>) -> Vec<Published> {
        let deadline = Instant::now() + PATIENCE;
        let mut outcomes: Vec<Option<Published>> = vec![None; batch.len()];
        let mut left: Vec<usize> = (0..batch.len()).collect();
        let mut backoff = Backoff::new(PAUSE, 4 * PAUSE);
        loop {
            let parts = self.parts(&batch, &left);
            let published = parts.into_iter().map(async |(shard, part)| {
                let publications = part.iter().map(|&index| batch[index].clone()).collect();
                (part, shard.publish(publications).await)
            });
            left.clear();
            for (part, results) in futures::future::join_all(published).await {
                for (index, result) in part.into_iter().zip(results) {
                    match result {
                        Err(Failure::Moved) if Instant::now() < deadline => left.push(index),
                        result => outcomes[index] = Some(result.map_err(BrokerError::from)),
                    }
                }
            }
            if left.is_empty() {
                break;
            }
            left.sort_unstable();
            self.next_round(&mut backoff).await;
        }
        let unserved = |publication: &Publication| Err(self.routes().unserved(&publication.channel));
        let outcomes = batch.iter().zip(outcomes);
        outcomes.map(|(publication, outcome)| outcome.unwrap_or_else(|| unserved(publication))).collect()
    }

    /// Splits messages by shard. Leaves out those without a shard.
    fn parts(&self, batch: &[Publication], indexes: &[usize]) -> Vec<(Arc<Shard>, Vec<usize>)> {
        let routes = self.routes();
        let mut parts: Vec<(usize, Vec<usize>)> = Vec::new();
        for &index in indexes {
            let Some(owner) = routes.owner(&batch[index].channel) else { continue };
            match parts.iter_mut().find(|(shard, _)| *shard == owner) {
                Some((_, part)) => part.push(index),
                None => parts.push((owner, vec![index])),
            }
        }
        parts.into_iter().map(|(owner, part)| (routes.shards[owner].clone(), part)).collect()
    }

    /// See [`crate::broker::Broker::read`].
    pub(super) async fn read(
        &self,
        channel: &ChannelName,
        from: ReadFrom,
        limit: usize,
    ) -> Result<Option<Page>, BrokerError> {
        self.read_on_shard_of(channel, |shard| async move { shard.history.read(channel, from, limit).await }).await
    }

    /// Reads on the shard of a channel, wherever that moves meanwhile.
    async fn read_on_shard_of<T, R: Future<Output = Result<T, Failure>>>(
        &self,
        channel: &ChannelName,
        read: impl Fn(Arc<Shard>) -> R,
    ) -> Result<T, BrokerError> {
        let deadline = Instant::now() + PATIENCE;
        let mut backoff = Backoff::new(PAUSE, 4 * PAUSE);
        loop {
            let shard = self.routes().shard(channel)?;
            match read(shard).await {
                Err(Failure::Moved) if Instant::now() < deadline => self.next_round(&mut backoff).await,
                result => return result.map_err(BrokerError::from),
            }
        }
    }

    /// See [`crate::broker::Broker::write_presence`]. What fails is tried again by the caller.
    pub(super) async fn write_presence(&self, update: &Update) -> Result<Updated, BrokerError> {
        let shard = self.routes().shard(&update.channel)?;
        let written = shard.write_presence(&self.instance, update).await;
        if matches!(written, Err(Failure::Moved)) {
            self.context.stale.notify_one();
        }
        written.map_err(BrokerError::from)
    }

    /// See [`crate::broker::Broker::read_presence`].
    pub(super) async fn read_presence(&self, channel: &ChannelName) -> Result<Everybody, BrokerError> {
        self.read_on_shard_of(channel, |shard| async move { shard.read_presence(channel).await }).await
    }

    /// See [`crate::broker::Broker::subscribe`].
    pub(super) fn subscribe(&self, channel: &ChannelName, request: RequestSize) -> Result<(), BrokerError> {
        // The lock keeps the channel from being added to a shard that it is just leaving.
        let mut routes = self.routes_mut();
        match routes.owner(channel) {
            Some(owner) => routes.shards[owner].subscriber.want(channel, request),
            None => {
                routes.unserved.insert(channel.clone(), request);
                Ok(())
            }
        }
    }

    /// See [`crate::broker::Broker::unsubscribe`].
    pub(super) fn unsubscribe(&self, channel: &ChannelName) {
        let mut routes = self.routes_mut();
        routes.unserved.remove(channel);
        if let Some(owner) = routes.owner(channel) {
            routes.shards[owner].subscriber.forget(channel);
        }
    }

    /// Whether the shard of a channel works.
    pub(super) fn health_of(&self, channel: &ChannelName) -> Health {
        match self.routes().shard(channel) {
            Ok(shard) => shard.subscriber.health(),
            Err(error) => Health::Down(error.to_string()),
        }
    }

    /// Whether all shards work, and all slots are served.
    pub(super) fn health(&self) -> Health {
        let routes = self.routes();
        let mut reasons = Vec::new();
        for shard in &routes.shards {
            if let Health::Down(why) = shard.subscriber.health() {
                reasons.push(format!("{}: {why}", shard.place()));
            }
        }
        let down = reasons.len();
        let unserved = SLOTS - routes.topology.served();
        if unserved > 0 && !routes.shards.is_empty() {
            reasons.push(format!("no master of the Redis Cluster serves {unserved} of {SLOTS} slots"));
        }
        if let Some(failure) = &routes.failure {
            reasons.push(failure.clone());
        }
        match reasons.join("; ") {
            // Until then, it is not known which channels can be served.
            text if routes.is_starting() && !text.is_empty() => Health::Down(text),
            text if down == routes.shards.len() => Health::Down(text),
            text if text.is_empty() => Health::Up,
            text => Health::Degraded(text),
        }
    }

    /// The numbers of shards and slots, for metrics.
    pub(super) fn counts(&self) -> ShardCounts {
        let routes = self.routes();
        let up = routes.shards.iter().filter(|shard| shard.subscriber.is_up()).count();
        ShardCounts { shards: routes.shards.len(), up, slots: routes.topology.served() }
    }

    /// Waits until the topology has been queried again, but not for long.
    async fn next_round(&self, backoff: &mut Backoff) {
        let mut rounds = self.rounds.subscribe();
        self.context.stale.notify_one();
        // Without news, a slot is still moving.
        let _ = timeout(4 * PAUSE, rounds.changed()).await;
        sleep(backoff.next_delay()).await;
    }

    /// Queries the topology, again and again, and applies it.
    async fn follow(self: Arc<Self>) {
        loop {
            let known = self.routes().topology.nodes.clone();
            match self.finder.find(&known).await {
                Ok(topology) => self.apply(topology),
                Err(error) => {
                    let before = self.routes_mut().failure.replace(error.to_string());
                    // Logs one line per outage.
                    if before.is_none_or(|before| before == NOT_YET) {
                        tracing::warn!(%error, "cannot query the topology of the Redis Cluster");
                    }
                }
            }
            self.rounds.send_modify(|rounds| *rounds += 1);
            sleep(PAUSE).await;
            let recheck = if self.health() == Health::Up { RECHECK } else { RECHECK_BROKEN };
            let _ = timeout(recheck, self.context.stale.notified()).await;
        }
    }

    /// Starts shards for new masters, stops those that have gone, and moves channels to their
    /// shards.
    fn apply(&self, topology: Topology) {
        let mut routes = self.routes_mut();
        routes.failure = None;
        if routes.topology != topology {
            let shards = topology.masters.iter().enumerate().map(|(index, place)| {
                let known = routes.topology.masters.iter().position(|known| known == place);
                known.map_or_else(|| self.start_shard(&topology, index), |known| Ok(routes.shards[known].clone()))
            });
            let shards = match shards.collect::<Result<Vec<_>, RedisOptionsError>>() {
                Ok(shards) => shards,
                Err(error) => return routes.failure = Some(error.to_string()),
            };
            self.count_failovers(&routes.topology, &topology);
            routes.topology = topology;
            let before = std::mem::replace(&mut routes.shards, shards);
            self.move_channels(&mut routes, &before);
        }
        routes.has_started |= !routes.is_starting();
        for (index, shard) in routes.shards.iter().enumerate() {
            shard.subscriber.settle(self.canary(&routes.topology, index));
        }
    }

    /// Moves channels whose shard has changed. A channel that stays is not touched.
    fn move_channels(&self, routes: &mut Routes, before: &[Arc<Shard>]) {
        let mut moved: Vec<_> = routes.unserved.drain().collect();
        for shard in before {
            for (channel, request) in shard.subscriber.channels() {
                let owner = routes.owner(&channel).map(|owner| &routes.shards[owner]);
                if owner.is_none_or(|owner| !Arc::ptr_eq(owner, shard)) {
                    shard.subscriber.forget(&channel);
                    moved.push((channel, request));
                }
            }
        }
        for (channel, request) in moved {
            let Some(owner) = routes.owner(&channel) else {
                routes.unserved.insert(channel, request);
                continue;
            };
            if routes.shards[owner].subscriber.want(&channel, request).is_err() {
                self.context.sink.push(Event::Refused(channel));
            }
        }
    }

    fn start_shard(&self, topology: &Topology, index: usize) -> Result<Arc<Shard>, RedisOptionsError> {
        let (host, port) = &topology.masters[index];
        let target = Target::Server(self.finder.endpoint(host, *port)?);
        let canary = self.canary(topology, index);
        Ok(Arc::new(Shard::start(target, Role::Shard, canary, &self.context)))
    }

    /// The channel of a shard's canary, in one of its slots.
    fn canary(&self, topology: &Topology, shard: usize) -> String {
        topology
            .name_in(shard, &format!("livebridge:canary:{}:", self.context.names.channel(&self.instance)))
            .unwrap_or_default()
    }

    /// Counts the masters that have been replaced.
    fn count_failovers(&self, before: &Topology, now: &Topology) {
        for (index, master) in before.masters.iter().enumerate() {
            let heir = (0..SLOTS).find(|&slot| before.owner(slot) == Some(index)).and_then(|slot| now.owner(slot));
            if let Some(heir) = heir.map(|heir| &now.masters[heir])
                && !now.masters.contains(master)
                && !before.masters.contains(heir)
            {
                self.context.metrics.failovers.inc();
                tracing::info!(
                    master = format!("{}:{}", heir.0, heir.1),
                    "following the Redis Cluster to another master"
                );
            }
        }
    }

    fn routes(&self) -> RwLockReadGuard<'_, Routes> {
        // Every statement leaves the data consistent, so a poisoned lock is safe to use.
        self.routes.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn routes_mut(&self) -> RwLockWriteGuard<'_, Routes> {
        self.routes.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Routes {
    /// Whether some shard has not been tried yet, since the start.
    fn is_starting(&self) -> bool {
        let is_new = |shard: &Arc<Shard>| shard.subscriber.health() == Health::Down(NOT_YET.into());
        !self.has_started && (self.shards.is_empty() || self.shards.iter().any(is_new))
    }

    fn owner(&self, channel: &ChannelName) -> Option<usize> {
        self.topology.owner(self.names.slot(channel.as_str()))
    }

    fn shard(&self, channel: &ChannelName) -> Result<Arc<Shard>, BrokerError> {
        self.owner(channel).map(|owner| self.shards[owner].clone()).ok_or_else(|| self.unserved(channel))
    }

    /// The error for a channel whose slot no shard serves.
    fn unserved(&self, channel: &ChannelName) -> BrokerError {
        BrokerError::Unavailable(match &self.failure {
            Some(failure) if self.shards.is_empty() => failure.clone(),
            _ => format!("no master of the Redis Cluster serves the slot {}", self.names.slot(channel.as_str())),
        })
    }
}
