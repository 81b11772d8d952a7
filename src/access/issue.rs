//! Issues tokens with the shared secret for tests: `livebridge token`. In production, the backend
//! issues tokens.

use std::time::Duration;

use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde::Serialize;

use super::secret::Secret;
use super::token::now;
use super::token_key::{Key, TokenKeyError};

/// The claims of a new token.
#[derive(Debug, Serialize)]
pub struct TokenSpec {
    /// The channels that it allows.
    pub livebridge: Patterns,
    /// The time of expiry, in seconds since 1970.
    pub exp: u64,
    /// The subject.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sub: Option<String>,
    /// The audience.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aud: Option<String>,
    /// The issuer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iss: Option<String>,
}

/// Channel patterns, not yet parsed.
#[derive(Debug, Serialize)]
pub struct Patterns {
    /// Channels to subscribe to.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub subscribe: Vec<String>,
    /// Channels to publish to.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub publish: Vec<String>,
}

/// The `exp` of a token with this lifetime.
pub fn expiry(after: Duration) -> u64 {
    now().saturating_add(after.as_secs())
}

/// Signs a token with HS256.
///
/// # Errors
/// [`TokenKeyError`] if the secret is too short.
pub fn issue(spec: &TokenSpec, secret: &Secret) -> Result<String, TokenKeyError> {
    Key::shared(secret)?;
    let key = EncodingKey::from_secret(secret.reveal().as_bytes());
    // Signing with a secret does not fail.
    encode(&Header::new(Algorithm::HS256), spec, &key).map_err(|_| TokenKeyError::Short)
}
