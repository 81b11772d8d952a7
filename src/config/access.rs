//! The settings of access control, and their validation.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use futures::future::FutureExt;

use crate::access::Access;
use crate::access::jwks::{FETCH_TIMEOUT, Jwks, MOST_BYTES};
use crate::access::keys::{KeyError, PublishKey};
use crate::access::origin::{OriginError, Origins};
use crate::access::secret::Secret;
use crate::access::token::Tokens;
use crate::access::token_key::{Key, TokenKeyError};
use crate::http_client::{Url, UrlError};
use crate::rules::Rules;

/// Keys, tokens and origins.
#[derive(Args, Debug, Clone)]
pub struct AccessArgs {
    /// Publish key, which producers send as `Authorization: Bearer KEY`. Several keys, separated by
    /// commas, are all valid. Keys for certain channels are in the rules file.
    #[arg(long, env = "LIVEBRIDGE_PUBLISH_KEY", value_name = "KEY", value_delimiter = ',', hide_env_values = true)]
    pub publish_key: Vec<Secret>,
    /// Shared secret that verifies clients' tokens (HS256, HS384, HS512). Several, separated by
    /// commas, are all valid.
    #[arg(long, env = "LIVEBRIDGE_TOKEN_SECRET", value_name = "SECRET", value_delimiter = ',', hide_env_values = true)]
    pub token_secret: Vec<Secret>,
    /// PEM file with a public key that verifies clients' tokens: RSA, P-256, P-384 or Ed25519. May
    /// repeat.
    #[arg(long, env = "LIVEBRIDGE_TOKEN_PUBLIC_KEY", value_name = "FILE", value_delimiter = ',')]
    pub token_public_key: Vec<PathBuf>,
    /// URL of a JWK set with public keys that verify clients' tokens, http:// or https://.
    #[arg(long, env = "LIVEBRIDGE_TOKEN_JWKS_URL", value_name = "URL", hide_env_values = true)]
    pub token_jwks_url: Option<String>,
    /// Required audience of a token (`aud`). May repeat; one must match.
    #[arg(long, env = "LIVEBRIDGE_TOKEN_AUDIENCE", value_name = "AUDIENCE", value_delimiter = ',')]
    pub token_audience: Vec<String>,
    /// Required issuer of a token (`iss`). May repeat; one must match.
    #[arg(long, env = "LIVEBRIDGE_TOKEN_ISSUER", value_name = "ISSUER", value_delimiter = ',')]
    pub token_issuer: Vec<String>,
    /// Allowed difference to the clock of the token issuer, in seconds.
    #[arg(long, env = "LIVEBRIDGE_TOKEN_LEEWAY_SECONDS", default_value_t = 30, value_name = "SECONDS",
          value_parser = clap::value_parser!(u32).range(0..=600))]
    pub token_leeway_seconds: u32,
    /// Name of a cookie with a token. Counts only for pages of the same or a listed origin.
    #[arg(long, env = "LIVEBRIDGE_TOKEN_COOKIE", value_name = "NAME")]
    pub token_cookie: Option<String>,
    /// Origin whose pages may connect, such as `https://app.example.com`. May repeat; * allows any
    /// [default: the same origin].
    #[arg(long, env = "LIVEBRIDGE_ALLOWED_ORIGIN", value_name = "ORIGIN", value_delimiter = ',')]
    pub allowed_origin: Vec<String>,
    /// Allow listening beyond loopback without any access control.
    #[arg(long, env = "LIVEBRIDGE_INSECURE")]
    pub insecure: bool,
}

/// Why the access settings are not valid. Never contains a key.
#[derive(Debug, thiserror::Error)]
pub enum AccessSettingsError {
    /// Protected mode: the instance would be reachable without access control.
    #[error(
        "refusing to listen on {0} without access control: every client that reaches it could publish and subscribe. \
         Set LIVEBRIDGE_PUBLISH_KEY for producers or LIVEBRIDGE_TOKEN_SECRET (or another key for clients' tokens, see \
         --help), listen on 127.0.0.1, or use --insecure if something in front restricts access"
    )]
    Unprotected(SocketAddr),
    /// A publish key is not valid.
    #[error(transparent)]
    PublishKey(#[from] KeyError),
    /// A shared secret is not valid.
    #[error("LIVEBRIDGE_TOKEN_SECRET: {0}")]
    Secret(#[source] TokenKeyError),
    /// A public key is not valid.
    #[error("--token-public-key {path}: {source}")]
    PublicKey {
        /// The path of the file.
        path: String,
        /// The error of the key.
        source: TokenKeyError,
    },
    /// A file cannot be read.
    #[error("--token-public-key {path}: {source}")]
    Unreadable {
        /// The path of the file.
        path: String,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// The URL of the JWK set is not valid.
    #[error("--token-jwks-url: {0}")]
    Url(#[from] UrlError),
    /// Token settings are present, but no key that verifies tokens.
    #[error(
        "{0} is set, but no key verifies tokens: set LIVEBRIDGE_TOKEN_SECRET, --token-public-key or --token-jwks-url"
    )]
    NoTokenKey(&'static str),
    /// The name is not a valid name of a cookie.
    #[error("--token-cookie: a cookie's name has letters, digits, `-`, `_` and `.`")]
    Cookie,
    /// An allowed origin is not valid.
    #[error("--allowed-origin: {0}")]
    Origin(#[from] OriginError),
}

impl AccessArgs {
    /// Validates the arguments together with the keys of the rules file, and reads the files that
    /// they name.
    ///
    /// # Errors
    /// [`AccessSettingsError`] for the first invalid setting, or for an instance that would listen
    /// beyond loopback without access control.
    pub fn resolve(&self, listen: SocketAddr, rules: &Arc<Rules>) -> Result<Arc<Access>, AccessSettingsError> {
        let typed = self.publish_key.iter().filter(|key| !key.reveal().is_empty());
        let mut keys =
            typed.map(|key| PublishKey::new(key, "LIVEBRIDGE_PUBLISH_KEY")).collect::<Result<Vec<_>, _>>()?;
        for (index, written) in rules.publish_keys().iter().enumerate() {
            let place = format!("[[publish_key]] number {} of the rules file", index + 1);
            keys.push(PublishKey::written(written, &place)?);
        }
        let tokens = self.tokens()?;
        let origins = Origins::new(&self.allowed_origin)?;
        let named = |character: char| character.is_ascii_alphanumeric() || "-_.".contains(character);
        let cookie = self.token_cookie.clone().filter(|name| !name.is_empty());
        if cookie.as_ref().is_some_and(|name| !name.chars().all(named)) {
            return Err(AccessSettingsError::Cookie);
        }
        if tokens.is_none() && cookie.is_some() {
            return Err(AccessSettingsError::NoTokenKey("--token-cookie"));
        }
        let access = Access::new(keys, tokens, origins, cookie, rules.clone());
        if access.is_open() && !self.insecure && !listen.ip().to_canonical().is_loopback() {
            return Err(AccessSettingsError::Unprotected(listen));
        }
        if !access.is_open() && !access.lets_anybody_subscribe() {
            tracing::warn!(
                "no client can subscribe: configure a key for tokens, or add `anonymous = [\"subscribe\"]` to a rule"
            );
        }
        Ok(access)
    }

    fn tokens(&self) -> Result<Option<Tokens>, AccessSettingsError> {
        let secrets = self.token_secret.iter().filter(|secret| !secret.reveal().is_empty());
        let mut keys = secrets.map(Key::shared).collect::<Result<Vec<_>, _>>().map_err(AccessSettingsError::Secret)?;
        for file in &self.token_public_key {
            let path = file.display().to_string();
            let pem =
                std::fs::read(file).map_err(|source| AccessSettingsError::Unreadable { path: path.clone(), source })?;
            keys.push(Key::public(&pem).map_err(|source| AccessSettingsError::PublicKey { path, source })?);
        }
        let remote = match self.token_jwks_url.as_deref().filter(|url| !url.is_empty()) {
            None => None,
            Some(url) => {
                let url = Arc::new(Url::parse(url)?);
                let fetch = move || {
                    let url = url.clone();
                    async move { url.fetch_json(MOST_BYTES, FETCH_TIMEOUT).await }.boxed()
                };
                Some(Jwks::new(Box::new(fetch)))
            }
        };
        let (audience, issuer) = (named(&self.token_audience), named(&self.token_issuer));
        if keys.is_empty() && remote.is_none() {
            return match (audience.is_empty(), issuer.is_empty()) {
                (true, true) => Ok(None),
                (false, _) => Err(AccessSettingsError::NoTokenKey("--token-audience")),
                (true, false) => Err(AccessSettingsError::NoTokenKey("--token-issuer")),
            };
        }
        Ok(Some(Tokens {
            keys,
            remote,
            audience,
            issuer,
            leeway: Duration::from_secs(self.token_leeway_seconds.into()),
        }))
    }
}

/// Removes empty values: a variable with an empty value counts as not set.
fn named(list: &[String]) -> Vec<String> {
    list.iter().filter(|name| !name.is_empty()).cloned().collect()
}
