//! A promise that every broker must keep is written once and run six times: on the embedded broker with
//! one instance, and on Redis with two, publishers and subscribers on different ones; plain, as the user that
//! the documentation tells to create, with TLS and client certificates, with Sentinels that name the master,
//! as the documented users as well, and on a Cluster of three masters.
//!
//! With `LIVEBRIDGE_WHOLE_SETS=1`, there are three Sentinels and a replica, and a replica of each master of the Cluster.

use super::acl;
use super::certificates::Certificates;
use super::cluster::ClusterSet;
use super::instance::{Instance, Options};
use super::redis::Redis;
use super::sentinel::{self, SentinelSet};

/// Where publishers and subscribers are connected.
pub struct Setup {
    pub one: Instance,
    two: Option<Instance>,
    /// The one Redis, where there is one.
    pub redis: Option<Redis>,
    pub cluster: Option<ClusterSet>,
    /// What else must live as long.
    _others: Vec<Redis>,
}

impl Setup {
    pub async fn memory(options: Options) -> Self {
        Self { one: options.start().await, two: None, redis: None, cluster: None, _others: Vec::new() }
    }

    pub async fn redis(options: Options) -> Self {
        let redis = Redis::start().await;
        let options = Options { redis_url: Some(redis.url()), ..options };
        Self::on(redis, options).await
    }

    pub async fn redis_with_tls(options: Options) -> Self {
        let redis = Redis::with_tls(Certificates::new(), &[]).await;
        let options = redis.tls_options(options);
        Self::on(redis, options).await
    }

    pub async fn redis_as_its_user(options: Options) -> Self {
        let redis = Redis::start().await;
        acl::create_user(&redis);
        let url = format!("redis://livebridge:{}@127.0.0.1:{}/", acl::PASSWORD, redis.port);
        Self::on(redis, Options { redis_url: Some(url), ..options }).await
    }

    /// One Sentinel is enough where nothing fails over.
    pub async fn redis_with_sentinel(options: Options) -> Self {
        let (redis, sentinels, replica) = if whole_sets() {
            let SentinelSet { servers: [redis, replica], sentinels } = SentinelSet::start().await;
            (redis, sentinels, Some(replica))
        } else {
            let (redis, sentinel) = (Redis::start().await, Redis::sentinel().await);
            sentinel::monitor(&sentinel, redis.port, 1);
            (redis, vec![sentinel], None)
        };
        acl::create_user(&redis);
        sentinels.iter().for_each(acl::create_user_of_sentinel);
        let options = Options { redis_url: Some(acl::sentinel_url(&sentinels)), ..options };
        Self { _others: sentinels.into_iter().chain(replica).collect(), ..Self::on(redis, options).await }
    }

    pub async fn redis_cluster(options: Options) -> Self {
        let cluster = if whole_sets() { ClusterSet::with_replicas().await } else { ClusterSet::start().await };
        cluster.nodes.iter().for_each(acl::create_user_of_cluster);
        let url = cluster.url().replacen("://", &format!("://livebridge:{}@", acl::PASSWORD), 1);
        let options = Options { redis_url: Some(url), ..options };
        let one = options.clone().start().await;
        let two = Some(options.start().await);
        Self { one, two, redis: None, cluster: Some(cluster), _others: Vec::new() }
    }

    async fn on(redis: Redis, options: Options) -> Self {
        let one = options.clone().start().await;
        Self { one, two: Some(options.start().await), redis: Some(redis), cluster: None, _others: Vec::new() }
    }

    /// The other instance, where there is one.
    pub fn two(&self) -> &Instance {
        self.two.as_ref().unwrap_or(&self.one)
    }
}

fn whole_sets() -> bool {
    std::env::var_os("LIVEBRIDGE_WHOLE_SETS").is_some()
}

/// Runs each promise against every broker, with instances of the given options.
macro_rules! promises {
    ($options:expr; $($names:ident),* $(,)?) => {
        crate::support::brokers::promises!(on_the_embedded_broker, memory, $options; $($names),*);
        crate::support::brokers::promises!(on_redis, redis, $options; $($names),*);
        crate::support::brokers::promises!(on_redis_as_its_user, redis_as_its_user, $options; $($names),*);
        crate::support::brokers::promises!(on_redis_with_tls, redis_with_tls, $options; $($names),*);
        crate::support::brokers::promises!(on_redis_with_sentinel, redis_with_sentinel, $options; $($names),*);
        crate::support::brokers::promises!(on_a_redis_cluster, redis_cluster, $options; $($names),*);
    };
    // On one broker: the module of the tests, and the function of `Setup` that starts it.
    ($module:ident, $start:ident, $options:expr; $($name:ident),*) => {
        mod $module {
            #[allow(unused_imports, reason = "the options may need what the module has")]
            use super::*;
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() { super::$name(crate::support::brokers::Setup::$start($options).await).await; })*
        }
    };
}
pub(crate) use promises;
