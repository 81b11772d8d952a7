//! Opens connections to Redis: the one place that knows addresses and timeouts. Sentinel and Cluster belong here.

use std::io;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::io::tcp::TcpSettings;
use redis::{AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, ProtocolVersion};
use redis::{RedisConnectionInfo, RedisResult};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::runtime::Handle;

/// How long connecting, authentication included, may take.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long an answer may take before the connection is given up: a publish ends within this and the time above.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// Where Redis is.
#[derive(Clone)]
pub(super) struct Endpoint {
    client: Client,
    /// Where connections live, whichever thread asks for one.
    runtime: Handle,
}

/// A connection as bytes.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

impl Endpoint {
    /// Reads a URL such as `redis://user:password@host:6379/0`. Must be called on the runtime that is to own the
    /// connections.
    pub(super) fn parse(url: &str) -> RedisResult<Self> {
        let info = url.into_connection_info()?;
        // RESP3, as on the connection that hears; no delay, since each message is due now.
        let redis = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
        let info = info.set_redis_settings(redis).set_tcp_settings(TcpSettings::default().set_nodelay(true));
        Ok(Self { client: Client::open(info)?, runtime: Handle::current() })
    }

    /// Opens a connection for commands.
    pub(super) async fn commands(&self) -> RedisResult<MultiplexedConnection> {
        let client = self.client.clone();
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(ANSWER_TIMEOUT));
        let opening =
            self.runtime.spawn(async move { client.get_multiplexed_async_connection_with_config(&config).await });
        opening.await.unwrap_or_else(|error| Err(io::Error::other(error).into()))
    }

    /// Opens a connection as bytes, on which nothing has been said yet.
    pub(super) async fn stream(&self) -> io::Result<Box<dyn Stream>> {
        match self.info().addr() {
            ConnectionAddr::Tcp(host, port) => {
                let stream = TcpStream::connect((host.as_str(), *port)).await?;
                stream.set_nodelay(true)?;
                Ok(Box::new(stream))
            }
            ConnectionAddr::Unix(path) => Ok(Box::new(UnixStream::connect(path).await?)),
            // Refused by `parse` already: the client is built without TLS.
            _ => Err(io::Error::new(io::ErrorKind::Unsupported, "this kind of Redis URL")),
        }
    }

    /// Where Redis is, to people: without user and password.
    pub(super) fn place(&self) -> String {
        self.info().addr().to_string()
    }

    /// Who we are to Redis.
    pub(super) fn credentials(&self) -> &RedisConnectionInfo {
        self.info().redis_settings()
    }

    fn info(&self) -> &ConnectionInfo {
        self.client.get_connection_info()
    }
}
