//! Where a Redis server is and who we are to it, from a URL; opens streams to it. The one place that
//! knows addresses and timeouts.

use std::io;
use std::time::Duration;

use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo, RedisConnectionInfo, RedisResult};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

/// How long connecting, authentication included, may take.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long an answer may take before the connection is given up: a publish ends within this and the time above.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// Where Redis is.
#[derive(Clone)]
pub(super) struct Endpoint {
    info: ConnectionInfo,
}

/// A connection as bytes.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

impl Endpoint {
    /// Reads a URL such as `redis://user:password@host:6379/0`.
    pub(super) fn parse(url: &str) -> RedisResult<Self> {
        Ok(Self { info: url.into_connection_info()? })
    }

    /// Opens a connection as bytes, on which nothing has been said yet.
    pub(super) async fn stream(&self) -> io::Result<Box<dyn Stream>> {
        match self.info.addr() {
            ConnectionAddr::Tcp(host, port) => {
                let stream = TcpStream::connect((host.as_str(), *port)).await?;
                stream.set_nodelay(true)?;
                Ok(Box::new(stream))
            }
            ConnectionAddr::Unix(path) => Ok(Box::new(UnixStream::connect(path).await?)),
            // Refused by `parse` already: the redis crate is built without TLS.
            _ => Err(io::Error::new(io::ErrorKind::Unsupported, "this kind of Redis URL")),
        }
    }

    /// Where Redis is, to people: without user and password.
    pub(super) fn place(&self) -> String {
        self.info.addr().to_string()
    }

    /// Who we are to Redis.
    pub(super) fn credentials(&self) -> &RedisConnectionInfo {
        self.info.redis_settings()
    }
}
