//! A promise that every broker must keep is written once and run three times: on the embedded broker with
//! one instance, and on Redis with two, publishers and subscribers on different ones; plain, and with TLS
//! and client certificates.

use super::certificates::Certificates;
use super::instance::{Instance, Options};
use super::redis::Redis;

/// Where publishers and subscribers are connected.
pub struct Setup {
    pub one: Instance,
    two: Option<Instance>,
    pub redis: Option<Redis>,
}

impl Setup {
    pub async fn memory(options: Options) -> Self {
        Self { one: options.start().await, two: None, redis: None }
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

    async fn on(redis: Redis, options: Options) -> Self {
        let one = options.clone().start().await;
        Self { one, two: Some(options.start().await), redis: Some(redis) }
    }

    /// The other instance, where there is one.
    pub fn two(&self) -> &Instance {
        self.two.as_ref().unwrap_or(&self.one)
    }
}

/// Runs each promise against every broker, with instances of the given options.
macro_rules! promises {
    ($options:expr; $($name:ident),* $(,)?) => {
        mod on_the_embedded_broker {
            #[allow(unused_imports, reason = "the options may need what the module has")]
            use super::*;
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() { super::$name(crate::support::brokers::Setup::memory($options).await).await; })*
        }
        mod on_redis {
            #[allow(unused_imports, reason = "the options may need what the module has")]
            use super::*;
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() { super::$name(crate::support::brokers::Setup::redis($options).await).await; })*
        }
        mod on_redis_with_tls {
            #[allow(unused_imports, reason = "the options may need what the module has")]
            use super::*;
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() { super::$name(crate::support::brokers::Setup::redis_with_tls($options).await).await; })*
        }
    };
}
pub(crate) use promises;
