//! A promise that every broker must keep is written once and run twice: on the embedded broker with one instance, and on Redis
//! with two, publishers and subscribers on different ones.

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
        let one = options.clone().start().await;
        Self { one, two: Some(options.start().await), redis: Some(redis) }
    }

    /// The other instance, where there is one.
    pub fn two(&self) -> &Instance {
        self.two.as_ref().unwrap_or(&self.one)
    }
}

/// Runs each promise against both brokers, with instances of the given options.
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
    };
}
pub(crate) use promises;
