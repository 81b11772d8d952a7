//! A promise that every broker must keep is written once and run four times: on the embedded broker with
//! one instance, and on Redis with two, publishers and subscribers on different ones; plain, with TLS and
//! client certificates, and with Sentinels that name the master.

use super::certificates::Certificates;
use super::instance::{Instance, Options};
use super::redis::Redis;
use super::sentinel;

/// Where publishers and subscribers are connected.
pub struct Setup {
    pub one: Instance,
    two: Option<Instance>,
    pub redis: Option<Redis>,
    /// What else must live as long.
    _sentinels: Vec<Redis>,
}

impl Setup {
    pub async fn memory(options: Options) -> Self {
        Self { one: options.start().await, two: None, redis: None, _sentinels: Vec::new() }
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

    /// One Sentinel is enough where nothing fails over.
    pub async fn redis_with_sentinel(options: Options) -> Self {
        let (redis, sentinel) = (Redis::start().await, Redis::sentinel().await);
        sentinel::monitor(&sentinel, redis.port, 1);
        let options = Options { redis_url: Some(sentinel::url([&sentinel])), ..options };
        Self { _sentinels: vec![sentinel], ..Self::on(redis, options).await }
    }

    async fn on(redis: Redis, options: Options) -> Self {
        let one = options.clone().start().await;
        Self { one, two: Some(options.start().await), redis: Some(redis), _sentinels: Vec::new() }
    }

    /// The other instance, where there is one.
    pub fn two(&self) -> &Instance {
        self.two.as_ref().unwrap_or(&self.one)
    }
}

/// Runs each promise against every broker, with instances of the given options.
macro_rules! promises {
    ($options:expr; $($names:ident),* $(,)?) => {
        crate::support::brokers::promises!(on_the_embedded_broker, memory, $options; $($names),*);
        crate::support::brokers::promises!(on_redis, redis, $options; $($names),*);
        crate::support::brokers::promises!(on_redis_with_tls, redis_with_tls, $options; $($names),*);
        crate::support::brokers::promises!(on_redis_with_sentinel, redis_with_sentinel, $options; $($names),*);
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
