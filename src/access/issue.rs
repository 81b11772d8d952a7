//! Makes tokens with the shared secret, for a trial: `livebridge token`. In earnest the backend makes them.

use std::time::Duration;

use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde::Serialize;

use super::secret::Secret;
use super::token::now;
use super::token_key::{Key, TokenKeyError};

/// What a token is to say.
#[derive(Debug, Serialize)]
pub struct TokenSpec {
    /// What it allows.
    pub livebridge: Patterns,
    /// Until when, in seconds since 1970.
    pub exp: u64,
    /// Whose it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sub: Option<String>,
    /// Whom it is for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aud: Option<String>,
    /// Who made it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iss: Option<String>,
}

/// Patterns as they are written.
#[derive(Debug, Serialize)]
pub struct Patterns {
    /// May be listened to.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub subscribe: Vec<String>,
    /// May be published to.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub publish: Vec<String>,
}

/// The `exp` of a token that is to hold for so long.
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
