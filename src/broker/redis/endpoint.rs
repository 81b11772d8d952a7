//! The address of a Redis server and the login for it; opens streams to it. The only module that
//! knows addresses and timeouts.

use std::fmt;
use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use super::error::ClientError;
use super::names::{Names, PrefixError, check_prefix};
use super::tls::{self, Tls, TlsOptions, TlsSettingsError};
use super::url::{Address, Login, Url, UrlError};
use crate::observability::metrics::Metrics;

/// The time limit for connecting, including authentication.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// The time limit for a reply, after which the connection is closed. A publish completes within the
/// sum of both limits.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// The time limit for finding out which protocol a port speaks.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

/// How to reach a Redis.
#[derive(Clone)]
pub struct RedisOptions {
    /// The URL, as in `--redis-url`.
    pub url: String,
    /// The password, if the URL has none.
    pub password: Option<String>,
    /// TLS settings, for a URL with TLS.
    pub tls: TlsOptions,
    /// The prefix of this application's channels, keys and functions; empty for none.
    pub prefix: String,
    /// How many replicas must have a message before its publisher is answered.
    pub replicas: u32,
}

/// Why the Redis settings are not valid.
#[derive(Debug, thiserror::Error)]
pub enum RedisOptionsError {
    /// The URL is not valid.
    #[error(transparent)]
    Url(#[from] UrlError),
    /// The prefix is not valid.
    #[error(transparent)]
    Prefix(#[from] PrefixError),
    /// A certificate, a key or a server name is not valid.
    #[error(transparent)]
    Tls(#[from] TlsSettingsError),
    /// The URL and the options both have a password.
    #[error("the Redis URL has a password, and another one is set as well; remove one of them")]
    TwoPasswords,
    /// A TLS setting is used with a URL without TLS.
    #[error("{0} is set, but the Redis URL does not ask for TLS; use rediss://, or remove the setting")]
    WithoutTls(&'static str),
    /// A rule numbers plain messages, on a Redis Cluster.
    #[error(
        "the rule for {0:?} has `plain = \"numbered\"`, which a Redis Cluster cannot do, because its nodes send plain \
         messages in different orders; remove it, and publish with livebridge_publish"
    )]
    NumberedOnCluster(String),
}

/// The address of a server, with its login and TLS settings.
#[derive(Clone)]
pub(super) struct Endpoint {
    address: Address,
    login: Login,
    tls: Option<Tls>,
}

/// A byte stream to a server.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

impl RedisOptions {
    /// Options that consist of a URL alone.
    pub fn new(url: &str) -> Self {
        Self { url: url.to_owned(), password: None, tls: TlsOptions::default(), prefix: String::new(), replicas: 0 }
    }

    /// What things are called in Redis. `is_sharded`: on the nodes of a Redis Cluster.
    ///
    /// # Errors
    /// [`PrefixError`] if the prefix is neither empty nor valid.
    pub(super) fn names(&self, is_sharded: bool) -> Result<Names, PrefixError> {
        if !self.prefix.is_empty() {
            check_prefix(&self.prefix)?;
        }
        Ok(Names::new(&self.prefix, is_sharded))
    }
}

impl fmt::Debug for RedisOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The URL and the password are secret.
        f.debug_struct("RedisOptions").field("tls", &self.tls).finish_non_exhaustive()
    }
}

impl Endpoint {
    /// Parses the URL and reads the files that the options name.
    ///
    /// # Errors
    /// [`RedisOptionsError`] if the URL, a file or their combination is not valid.
    pub(super) fn new(options: &RedisOptions) -> Result<Self, RedisOptionsError> {
        Self::of(Url::parse(&options.url)?, options)
    }

    /// The same for a URL that is parsed already, whatever URL the options have.
    ///
    /// # Errors
    /// [`RedisOptionsError`] if a file or the combination of settings is not valid.
    pub(super) fn of(url: Url, options: &RedisOptions) -> Result<Self, RedisOptionsError> {
        let Url { address, tls, mut login } = url;
        let given = options.password.clone();
        if given.is_some_and(|password| login.password.replace(password).is_some()) {
            return Err(RedisOptionsError::TwoPasswords);
        }
        let tls = match &address {
            Address::Tcp { host, .. } if tls => Some(Tls::new(&options.tls, host)?),
            _ => match options.tls.first_set() {
                Some(setting) => return Err(RedisOptionsError::WithoutTls(setting)),
                None => None,
            },
        };
        Ok(Self { address, login, tls })
    }

    /// Opens a byte stream to the server, and completes the TLS handshake if the URL asks for TLS.
    pub(super) async fn stream(&self) -> Result<Box<dyn Stream>, ClientError> {
        let (host, port) = match &self.address {
            Address::Tcp { host, port } => (host, *port),
            Address::Unix(path) => return Ok(Box::new(UnixStream::connect(path).await?)),
        };
        let stream = TcpStream::connect((host.as_str(), port)).await?;
        // Send each message immediately.
        stream.set_nodelay(true)?;
        match &self.tls {
            None => Ok(Box::new(stream)),
            Some(tls) => Ok(Box::new(tls.connect(stream).await?)),
        }
    }

    /// Replaces a connection error by a clearer one, if it looks as if the port speaks TLS and the
    /// URL does not, or the reverse. Probes the port to find out.
    pub(super) async fn explain(&self, error: ClientError) -> ClientError {
        let Address::Tcp { host, port } = &self.address else { return error };
        if !error.is_of_the_wire() {
            return error;
        }
        let probe = async {
            let stream = TcpStream::connect((host.as_str(), *port)).await?;
            Ok::<_, io::Error>(if self.tls.is_some() {
                speaks_plain(stream).await?
            } else {
                tls::is_spoken(stream).await
            })
        };
        match (timeout(PROBE_TIMEOUT, probe).await, &self.tls) {
            (Ok(Ok(true)), Some(_)) => ClientError::Tls(tls::speaks_plain()),
            (Ok(Ok(true)), None) => ClientError::Tls(tls::speaks_tls()),
            _ => error,
        }
    }

    /// The same login and TLS settings at another address.
    ///
    /// # Errors
    /// [`TlsSettingsError::ServerName`] if the host is not valid as the name in a certificate.
    pub(super) fn at(&self, host: &str, port: u16) -> Result<Self, TlsSettingsError> {
        let tls = self.tls.as_ref().map(|tls| tls.for_host(host)).transpose()?;
        Ok(Self { address: Address::Tcp { host: host.to_owned(), port }, login: self.login.clone(), tls })
    }

    /// The same address with another login.
    pub(super) fn with_login(self, login: Login) -> Self {
        Self { login, ..self }
    }

    /// Whether this is the server at a host and port.
    pub(super) fn is_at(&self, host: &str, port: u16) -> bool {
        matches!(&self.address, Address::Tcp { host: own, port: own_port } if own == host && *own_port == port)
    }

    /// The address of Redis for messages to people, without user and password.
    pub(super) fn place(&self) -> String {
        match &self.address {
            Address::Tcp { host, port } if host.contains(':') => format!("[{host}]:{port}"),
            Address::Tcp { host, port } => format!("{host}:{port}"),
            Address::Unix(path) => path.display().to_string(),
        }
    }

    /// The host, unless this is a Unix socket.
    pub(super) fn host(&self) -> Option<&str> {
        match &self.address {
            Address::Tcp { host, .. } => Some(host),
            Address::Unix(_) => None,
        }
    }

    /// Reports until when the certificates of both sides are valid, if the URL asks for TLS.
    pub(super) fn report_certificates(&self, metrics: &Metrics) {
        if let Some(tls) = &self.tls {
            tls.report_expiry(metrics);
        }
    }

    /// The login.
    pub(super) fn login(&self) -> &Login {
        &self.login
    }
}

/// Whether the server answers a plain PING like Redis, even with an error.
async fn speaks_plain(mut stream: TcpStream) -> io::Result<bool> {
    stream.write_all(b"PING\r\n").await?;
    Ok(matches!(stream.read_u8().await?, b'+' | b'-'))
}
