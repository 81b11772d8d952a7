//! The keys that verify tokens. The type of a key decides which algorithms it verifies; the `alg`
//! of a JWK or the length of a secret restricts them further. The header of a token only selects
//! among these, so neither `none` nor a public key used as a shared secret verifies any token.

use std::fmt;

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyOperations, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use serde_json::Value;

use super::secret::Secret;

/// The supported algorithms, for messages.
pub(super) const ALGORITHMS: &str = "HS, RS and PS with 256, 384 or 512, ES256, ES384 or Ed25519";

/// A secret must be at least as long as the hash (RFC 7518, 3.2).
const FEWEST_SECRET_BYTES: usize = 32;

const HMAC: [Algorithm; 3] = [Algorithm::HS256, Algorithm::HS384, Algorithm::HS512];
/// The hash lengths of [`HMAC`], in bytes.
const HASH_BYTES: [usize; 3] = [FEWEST_SECRET_BYTES, 48, 64];
const RSA: &[Algorithm] =
    &[Algorithm::RS256, Algorithm::RS384, Algorithm::RS512, Algorithm::PS256, Algorithm::PS384, Algorithm::PS512];

/// A key that verifies tokens.
#[derive(Clone)]
pub struct Key {
    id: Option<String>,
    algorithms: Vec<Algorithm>,
    key: DecodingKey,
}

/// Why a key is not valid. Never contains the key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenKeyError {
    /// The secret is so short that it could be guessed.
    #[error(
        "a token secret needs at least {FEWEST_SECRET_BYTES} bytes and no comma (commas separate several secrets); \
         `openssl rand -hex 32` generates one"
    )]
    Short,
    /// Not a public key of a supported type.
    #[error("not a public key in PEM format: RSA, P-256, P-384 or Ed25519")]
    Pem,
}

/// The algorithm for an `alg` of a token's header or a JWK; `None` if it is not supported.
pub(super) fn algorithm(name: &str) -> Option<Algorithm> {
    match name {
        // RFC 9864 renames EdDSA with this curve, the only supported one.
        "Ed25519" => Some(Algorithm::EdDSA),
        name => name.parse().ok(),
    }
}

impl Key {
    /// A shared secret for HS256 and, if it is long enough, HS384 and HS512.
    ///
    /// # Errors
    /// [`TokenKeyError::Short`] if it is too short.
    pub fn shared(secret: &Secret) -> Result<Self, TokenKeyError> {
        let bytes = secret.reveal().as_bytes();
        let fitting = HMAC.into_iter().zip(HASH_BYTES).filter(|(_, hash)| bytes.len() >= *hash);
        let algorithms: Vec<_> = fitting.map(|(algorithm, _)| algorithm).collect();
        if algorithms.is_empty() {
            return Err(TokenKeyError::Short);
        }
        Ok(Self { id: None, algorithms, key: DecodingKey::from_secret(bytes) })
    }

    /// A public key in PEM format: RSA, P-256, P-384 or Ed25519.
    ///
    /// # Errors
    /// [`TokenKeyError::Pem`] if it is none of these.
    pub fn public(pem: &[u8]) -> Result<Self, TokenKeyError> {
        // A private key must not be here: anyone who can read this configuration could issue
        // tokens.
        if !pem.windows(11).any(|window| window == b" PUBLIC KEY") {
            return Err(TokenKeyError::Pem);
        }
        let (algorithms, key) = if let Ok(key) = DecodingKey::from_rsa_pem(pem) {
            (RSA, key)
        } else if let Ok(key) = DecodingKey::from_ec_pem(pem) {
            (of_point(&key), key)
        } else {
            let key = DecodingKey::from_ed_pem(pem).map_err(|_| TokenKeyError::Pem)?;
            (&[Algorithm::EdDSA][..], key)
        };
        if algorithms.is_empty() {
            return Err(TokenKeyError::Pem);
        }
        Ok(Self { id: None, algorithms: algorithms.to_vec(), key })
    }

    /// A key of a JWK set (RFC 7517); `None` if it does not verify signatures of a supported
    /// algorithm. Symmetric keys are not accepted, because a key that a URL publishes is not
    /// secret.
    pub fn of_set(mut jwk: Value) -> Option<Self> {
        // Removed, because the library rejects algorithm names that it does not know.
        let named = match jwk.as_object_mut()?.remove("alg") {
            None => None,
            Some(name) => Some(algorithm(name.as_str()?)?),
        };
        let jwk: Jwk = serde_json::from_value(jwk).ok()?;
        let algorithms = match &jwk.algorithm {
            AlgorithmParameters::RSA(_) => RSA,
            AlgorithmParameters::EllipticCurve(point) if point.curve == EllipticCurve::P256 => &[Algorithm::ES256],
            AlgorithmParameters::EllipticCurve(point) if point.curve == EllipticCurve::P384 => &[Algorithm::ES384],
            AlgorithmParameters::OctetKeyPair(point) if point.curve == EllipticCurve::Ed25519 => &[Algorithm::EdDSA],
            _ => return None,
        };
        let fits = |algorithm: &Algorithm| named.is_none_or(|named| named == *algorithm);
        let algorithms: Vec<_> = algorithms.iter().copied().filter(fits).collect();
        let meant = jwk.common.public_key_use.as_ref().is_none_or(|meant| *meant == PublicKeyUse::Signature);
        let operations = jwk.common.key_operations.as_ref();
        let verifies = operations.is_none_or(|operations| operations.contains(&KeyOperations::Verify));
        if algorithms.is_empty() || !meant || !verifies {
            return None;
        }
        let key = DecodingKey::from_jwk(&jwk).ok()?;
        Some(Self { id: jwk.common.key_id, algorithms, key })
    }

    /// Whether the key may have signed a token with this `alg` and `kid`. A key without an id is
    /// tried for all tokens, and all keys for a token without a `kid`.
    pub(super) fn fits(&self, algorithm: Algorithm, id: Option<&str>) -> bool {
        self.algorithms.contains(&algorithm) && self.is_named(id)
    }

    /// Whether the key has this id.
    pub fn is_named(&self, id: Option<&str>) -> bool {
        id.is_none() || self.id.is_none() || self.id.as_deref() == id
    }

    /// Whether the key made this base64 signature. `algorithm` must be one that the key
    /// [fits](Self::fits).
    pub(super) fn verifies(&self, algorithm: Algorithm, message: &str, signature: &str) -> bool {
        self.algorithms.contains(&algorithm)
            && jsonwebtoken::crypto::verify(signature, message.as_bytes(), &self.key, algorithm).unwrap_or(false)
    }
}

/// The algorithm of an elliptic curve, derived from the length of an uncompressed point in bytes.
fn of_point(key: &DecodingKey) -> &'static [Algorithm] {
    match key.try_get_as_bytes().map_or(0, <[u8]>::len) {
        65 => &[Algorithm::ES256],
        97 => &[Algorithm::ES384],
        _ => &[],
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key").field("algorithms", &self.algorithms).finish_non_exhaustive()
    }
}
