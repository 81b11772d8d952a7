//! Where a Redis server is, and who we are to it; opens streams to it. The one place that knows addresses
//! and timeouts.

use std::fmt;
use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use super::error::ClientError;
use super::tls::{self, Tls, TlsOptions, TlsSettingsError};
use super::url::{Address, Login, Url, UrlError};

/// How long connecting, authentication included, may take.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long an answer may take before the connection is given up: a publish ends within this and the time above.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// How long it may take to find out what speaks at a port.
const PROBE_TIMEOUT: Duration = Duration::from_millis(500);

/// How to reach a Redis.
#[derive(Clone)]
pub struct RedisOptions {
    /// Its URL.
    pub url: String,
    /// The password, where the URL holds none.
    pub password: Option<String>,
    /// TLS, for a URL that asks for it.
    pub tls: TlsOptions,
}

/// Why a Redis can't be reached as the settings say.
#[derive(Debug, thiserror::Error)]
pub enum RedisOptionsError {
    /// The URL can't be understood.
    #[error(transparent)]
    Url(#[from] UrlError),
    /// A certificate, a key or a name.
    #[error(transparent)]
    Tls(#[from] TlsSettingsError),
    /// Two passwords.
    #[error("the Redis URL holds a password, and another is set beside it; leave one of them out")]
    TwoPasswords,
    /// Settings of TLS for a URL without.
    #[error("{0} is set, but the Redis URL asks for no TLS; write rediss:// in it, or leave the setting out")]
    WithoutTls(&'static str),
}

/// A server's address, and what it takes to be let in.
#[derive(Clone)]
pub(super) struct Endpoint {
    address: Address,
    login: Login,
    tls: Option<Tls>,
}

/// A connection as bytes.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

impl RedisOptions {
    /// A URL that says everything.
    pub fn new(url: &str) -> Self {
        Self { url: url.to_owned(), password: None, tls: TlsOptions::default() }
    }
}

impl fmt::Debug for RedisOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The rest is secret, or may be.
        f.debug_struct("RedisOptions").field("tls", &self.tls).finish_non_exhaustive()
    }
}

impl Endpoint {
    /// Reads the URL, and the files that the options name.
    pub(super) fn new(options: &RedisOptions) -> Result<Self, RedisOptionsError> {
        let Url { address, tls, mut login } = Url::parse(&options.url)?;
        let given = options.password.clone();
        if given.is_some_and(|password| login.password.replace(password).is_some()) {
            return Err(RedisOptionsError::TwoPasswords);
        }
        let tls = match &address {
            Address::Tcp { host, .. } if tls => Some(Tls::new(&options.tls, host)?),
            _ => match set_without_tls(&options.tls) {
                Some(setting) => return Err(RedisOptionsError::WithoutTls(setting)),
                None => None,
            },
        };
        Ok(Self { address, login, tls })
    }

    /// Opens a connection as bytes, on which nothing has been said yet but the TLS handshake.
    pub(super) async fn stream(&self) -> Result<Box<dyn Stream>, ClientError> {
        let (host, port) = match &self.address {
            Address::Tcp { host, port } => (host, *port),
            Address::Unix(path) => return Ok(Box::new(UnixStream::connect(path).await?)),
        };
        let stream = TcpStream::connect((host.as_str(), port)).await?;
        // Each message is due now.
        stream.set_nodelay(true)?;
        match &self.tls {
            None => Ok(Box::new(stream)),
            Some(tls) => Ok(Box::new(tls.connect(stream).await?)),
        }
    }

    /// The better reason, where an error of connecting looks as if the port spoke TLS and the URL did not,
    /// or the reverse: asks the port.
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

    /// Where Redis is, to people: without user and password.
    pub(super) fn place(&self) -> String {
        match &self.address {
            Address::Tcp { host, port } if host.contains(':') => format!("[{host}]:{port}"),
            Address::Tcp { host, port } => format!("{host}:{port}"),
            Address::Unix(path) => path.display().to_string(),
        }
    }

    /// Who we are to Redis.
    pub(super) fn login(&self) -> &Login {
        &self.login
    }
}

/// The first setting that counts only with TLS.
fn set_without_tls(options: &TlsOptions) -> Option<&'static str> {
    let TlsOptions { ca, certificate, key, server_name } = options;
    let settings = [
        (ca.is_some(), "--redis-ca"),
        (certificate.is_some(), "--redis-cert"),
        (key.is_some(), "--redis-key"),
        (server_name.is_some(), "--redis-server-name"),
    ];
    settings.into_iter().find_map(|(is_set, name)| is_set.then_some(name))
}

/// Whether a PING is answered as Redis does, be it with a refusal.
async fn speaks_plain(mut stream: TcpStream) -> io::Result<bool> {
    stream.write_all(b"PING\r\n").await?;
    Ok(matches!(stream.read_u8().await?, b'+' | b'-'))
}
