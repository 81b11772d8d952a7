//! The settings for Redis, and their validation.

use std::path::{Path, PathBuf};

use clap::Args;

use crate::access::secret::Secret;
use crate::broker::redis::{RedisOptions, TlsOptions};

/// How to connect and authenticate to Redis.
#[derive(Args, Debug, Clone)]
pub struct RedisArgs {
    /// The Redis that instances share, such as redis://user:password@host:6379/0, rediss:// with
    /// TLS, unix:///run/redis.sock, redis+sentinel://host,host/MASTER or redis+cluster://host,host;
    /// without it the embedded broker.
    #[arg(long, env = "REDIS_URL", value_name = "URL", hide_env_values = true)]
    pub redis_url: Option<String>,
    /// The password for Redis, where the URL holds none.
    #[arg(long, env = "LIVEBRIDGE_REDIS_PASSWORD", value_name = "PASSWORD", hide_env_values = true)]
    pub redis_password: Option<Secret>,
    /// A file with the password for Redis.
    #[arg(long, env = "LIVEBRIDGE_REDIS_PASSWORD_FILE", value_name = "FILE")]
    pub redis_password_file: Option<PathBuf>,
    /// A PEM file with the authorities that may have signed the certificate of Redis [default:
    /// those of the system].
    #[arg(long, env = "LIVEBRIDGE_REDIS_CA", value_name = "FILE")]
    pub redis_ca: Option<PathBuf>,
    /// A PEM file with the client certificate that Redis is shown.
    #[arg(long, env = "LIVEBRIDGE_REDIS_CERT", value_name = "FILE")]
    pub redis_cert: Option<PathBuf>,
    /// A PEM file with the key of the client certificate.
    #[arg(long, env = "LIVEBRIDGE_REDIS_KEY", value_name = "FILE")]
    pub redis_key: Option<PathBuf>,
    /// The name that the certificate of Redis must be for [default: the host of the URL].
    #[arg(long, env = "LIVEBRIDGE_REDIS_SERVER_NAME", value_name = "NAME")]
    pub redis_server_name: Option<String>,
    /// A prefix for the channels, keys and functions in Redis, such as app1:, so that several
    /// applications can share it [default: none].
    #[arg(long, env = "LIVEBRIDGE_REDIS_PREFIX", value_name = "PREFIX")]
    pub redis_prefix: Option<String>,
    /// Answer a publisher only after this many replicas of Redis have the message too.
    #[arg(long, env = "LIVEBRIDGE_REDIS_WAIT_REPLICAS", value_name = "NUMBER", default_value_t = 0)]
    pub redis_wait_replicas: u32,
}

/// Why the settings for Redis are not valid. Never contains a password.
#[derive(Debug, thiserror::Error)]
pub enum RedisSettingsError {
    /// Settings for Redis are present, but no URL.
    #[error("{0} is set, but no Redis URL; set REDIS_URL or --redis-url")]
    NoUrl(&'static str),
    /// A file cannot be read.
    #[error("--redis-password-file {path}: {source}")]
    Unreadable {
        /// The path of the file.
        path: String,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// A file is empty.
    #[error("--redis-password-file {0}: there is no password in it")]
    Empty(String),
    /// More than one password is configured.
    #[error("a password for Redis is set, and a file with one; leave one of them out")]
    TwoPasswords,
}

impl RedisArgs {
    /// Validates the arguments, and reads the file with the password. Returns `None` without a URL.
    ///
    /// # Errors
    /// [`RedisSettingsError`] for a setting that has no effect, or a file that cannot be read.
    pub fn resolve(self) -> Result<Option<RedisOptions>, RedisSettingsError> {
        // A variable with an empty value counts as not set.
        let file = |path: Option<PathBuf>| path.filter(|path| !path.as_os_str().is_empty());
        let typed = self.redis_password.map(|password| password.reveal().to_owned()).filter(|it| !it.is_empty());
        let password_file = file(self.redis_password_file);
        let tls = TlsOptions {
            ca: file(self.redis_ca),
            certificate: file(self.redis_cert),
            key: file(self.redis_key),
            server_name: self.redis_server_name.filter(|name| !name.is_empty()),
        };
        let prefix = self.redis_prefix.unwrap_or_default();
        let Some(url) = self.redis_url.filter(|url| !url.is_empty()) else {
            let set = match (&typed, &password_file) {
                (Some(_), _) => Some("--redis-password"),
                (None, Some(_)) => Some("--redis-password-file"),
                (None, None) if !prefix.is_empty() => Some("--redis-prefix"),
                (None, None) if self.redis_wait_replicas > 0 => Some("--redis-wait-replicas"),
                (None, None) => tls.first_set(),
            };
            return set.map_or(Ok(None), |name| Err(RedisSettingsError::NoUrl(name)));
        };
        let password = match (typed, password_file) {
            (Some(_), Some(_)) => return Err(RedisSettingsError::TwoPasswords),
            (typed, None) => typed,
            (None, Some(path)) => Some(read_password(&path)?),
        };
        Ok(Some(RedisOptions { url, password, tls, prefix, replicas: self.redis_wait_replicas }))
    }
}

/// The content of the file without its line end.
fn read_password(path: &Path) -> Result<String, RedisSettingsError> {
    let name = || path.display().to_string();
    let text =
        std::fs::read_to_string(path).map_err(|source| RedisSettingsError::Unreadable { path: name(), source })?;
    let password = text.strip_suffix('\n').unwrap_or(&text);
    let password = password.strip_suffix('\r').unwrap_or(password);
    if password.is_empty() { Err(RedisSettingsError::Empty(name())) } else { Ok(password.to_owned()) }
}
