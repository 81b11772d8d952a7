//! The server to connect to: always the same one, or the master that Sentinels name.

use std::sync::Arc;

use super::endpoint::{Endpoint, RedisOptions, RedisOptionsError};
use super::error::ClientError;
use super::sentinel::Sentinels;
use super::sentinel_url::SentinelUrl;
use crate::observability::metrics::Metrics;

/// The kind of the Redis URL.
pub(super) enum Target {
    /// A fixed server.
    Server(Endpoint),
    /// The master of some Sentinels.
    Sentinels(Box<Sentinels>),
}

impl Target {
    /// Parses the URL and reads the files that the options name.
    ///
    /// # Errors
    /// [`RedisOptionsError`] if the URL, a file or their combination is not valid.
    pub(super) fn new(options: &RedisOptions, metrics: Arc<Metrics>) -> Result<Self, RedisOptionsError> {
        let Some(parsed) = SentinelUrl::parse(&options.url) else {
            return Endpoint::new(options).map(Self::Server);
        };
        let SentinelUrl { sentinels, login, master, name } = parsed?;
        let template = Endpoint::of(master, options)?;
        let sentinels = sentinels.iter().map(|(host, port)| Ok(template.at(host, *port)?.with_login(login.clone())));
        let sentinels = sentinels.collect::<Result<_, RedisOptionsError>>()?;
        Ok(Self::Sentinels(Box::new(Sentinels::new(sentinels, name, template, metrics))))
    }

    /// The server to connect to now.
    ///
    /// # Errors
    /// As [`Sentinels::master`].
    pub(super) async fn endpoint(&self) -> Result<Endpoint, ClientError> {
        match self {
            Self::Server(endpoint) => Ok(endpoint.clone()),
            Self::Sentinels(sentinels) => sentinels.master().await,
        }
    }

    /// The master may have changed, so the next connection asks the Sentinels again.
    pub(super) fn forget(&self) {
        if let Self::Sentinels(sentinels) = self {
            sentinels.forget();
        }
    }

    /// Resolves when the Sentinels name another master.
    pub(super) async fn switched(&self) {
        match self {
            Self::Server(_) => std::future::pending().await,
            Self::Sentinels(sentinels) => sentinels.switched().await,
        }
    }

    /// The address for messages to people, without user and password.
    pub(super) fn place(&self) -> String {
        match self {
            Self::Server(endpoint) => endpoint.place(),
            Self::Sentinels(sentinels) => sentinels.place(),
        }
    }
}
