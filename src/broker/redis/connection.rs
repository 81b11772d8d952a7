//! Opens connections to Redis: the one place that knows addresses and timeouts. Sentinel and Cluster belong here.

use std::time::Duration;

use redis::aio::{AsyncPushSender, MultiplexedConnection};
use redis::io::tcp::TcpSettings;
use redis::{AsyncConnectionConfig, Client, IntoConnectionInfo, ProtocolVersion, RedisResult};
use tokio::runtime::Handle;

/// How long connecting, authentication included, may take.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long an answer may take before the connection is given up: a publish ends within this and the time above.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// Where Redis is.
#[derive(Clone)]
pub(super) struct Address {
    client: Client,
    /// Where connections live, whichever thread asks for one.
    runtime: Handle,
}

impl Address {
    /// Reads a URL such as `redis://user:password@host:6379/0`. Must be called on the runtime that is to own the
    /// connections.
    pub(super) fn parse(url: &str) -> RedisResult<Self> {
        let info = url.into_connection_info()?;
        // RESP3, so that subscriptions and commands share connections; no delay, since each message is due now.
        let redis = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
        let info = info.set_redis_settings(redis).set_tcp_settings(TcpSettings::default().set_nodelay(true));
        Ok(Self { client: Client::open(info)?, runtime: Handle::current() })
    }

    /// Opens a connection for commands.
    pub(super) async fn commands(&self) -> RedisResult<MultiplexedConnection> {
        self.open(config()).await
    }

    /// Opens a connection for subscriptions, whose messages go to `pushes`. That must not block, and bounds them itself.
    pub(super) async fn subscriptions(&self, pushes: impl AsyncPushSender) -> RedisResult<MultiplexedConnection> {
        self.open(config().set_push_sender(pushes)).await
    }

    async fn open(&self, config: AsyncConnectionConfig) -> RedisResult<MultiplexedConnection> {
        let client = self.client.clone();
        let opening =
            self.runtime.spawn(async move { client.get_multiplexed_async_connection_with_config(&config).await });
        opening.await.unwrap_or_else(|error| Err(std::io::Error::other(error).into()))
    }
}

fn config() -> AsyncConnectionConfig {
    AsyncConnectionConfig::new()
        .set_connection_timeout(Some(CONNECT_TIMEOUT))
        .set_response_timeout(Some(ANSWER_TIMEOUT))
}
