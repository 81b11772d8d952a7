//! Clients' tokens: JSON Web Tokens (RFC 7519), signed with HS256, RS256, ES256 or EdDSA. Each key is bound to one algorithm, so
//! that a token can't choose how it is verified: neither `none` nor a public key taken for a shared secret. Where keys come from by
//! URL is `jwks.rs`; making a token for a trial is `mint.rs`.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, Header, Validation, decode, decode_header};
use serde::Deserialize;

use super::jwks::Jwks;
use super::secret::Secret;
use crate::channel::ChannelName;
use crate::rules::Pattern;

/// RFC 7518, 3.2: a secret is at least as long as the hash.
pub(super) const FEWEST_SECRET_BYTES: usize = 32;

/// A key that verifies tokens of one algorithm.
#[derive(Clone)]
pub struct Key {
    id: Option<String>,
    algorithm: Algorithm,
    key: DecodingKey,
}

/// What is wrong with a key. Never shows it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenKeyError {
    /// A secret that could be found by trying.
    #[error(
        "a token secret has at least {FEWEST_SECRET_BYTES} bytes, none a comma, which separates several; `openssl rand -hex 32` makes one"
    )]
    Short,
    /// Not a public key of a kind that is spoken here.
    #[error("is not the PEM of a public key for RS256 (RSA), ES256 (P-256) or EdDSA (Ed25519)")]
    Pem,
}

impl Key {
    /// A shared secret, for HS256.
    pub fn shared(secret: &Secret) -> Result<Self, TokenKeyError> {
        let bytes = secret.reveal().as_bytes();
        if bytes.len() < FEWEST_SECRET_BYTES {
            return Err(TokenKeyError::Short);
        }
        Ok(Self { id: None, algorithm: Algorithm::HS256, key: DecodingKey::from_secret(bytes) })
    }

    /// A public key: RSA, P-256 or Ed25519.
    pub fn public(pem: &[u8]) -> Result<Self, TokenKeyError> {
        // A private key has no business here: whoever reads this configuration could sign.
        if !pem.windows(11).any(|window| window == b" PUBLIC KEY") {
            return Err(TokenKeyError::Pem);
        }
        let kinds = [
            (Algorithm::RS256, DecodingKey::from_rsa_pem(pem)),
            (Algorithm::ES256, DecodingKey::from_ec_pem(pem)),
            (Algorithm::EdDSA, DecodingKey::from_ed_pem(pem)),
        ];
        let key = kinds.into_iter().find_map(|(algorithm, key)| Some((algorithm, key.ok()?)));
        let (algorithm, key) = key.ok_or(TokenKeyError::Pem)?;
        // An uncompressed point of P-256 has 65 bytes; one of P-384 would never verify anything.
        if algorithm == Algorithm::ES256 && key.try_get_as_bytes().map_or(0, <[u8]>::len) != 65 {
            return Err(TokenKeyError::Pem);
        }
        Ok(Self { id: None, algorithm, key })
    }

    /// A key of a JWK set; `None` for what does not verify signatures of a kind that is spoken here. A symmetric key is none: what
    /// a URL tells everybody is no secret.
    pub fn of_set(jwk: &Jwk) -> Option<Self> {
        let algorithm = match &jwk.algorithm {
            AlgorithmParameters::RSA(_) => Algorithm::RS256,
            AlgorithmParameters::EllipticCurve(point) if point.curve == EllipticCurve::P256 => Algorithm::ES256,
            AlgorithmParameters::OctetKeyPair(point) if point.curve == EllipticCurve::Ed25519 => Algorithm::EdDSA,
            _ => return None,
        };
        let signs = jwk.common.public_key_use.as_ref().is_none_or(|meant| *meant == PublicKeyUse::Signature);
        let fits = jwk.common.key_algorithm.is_none_or(|named| named == KeyAlgorithm::from(algorithm));
        let key = DecodingKey::from_jwk(jwk).ok().filter(|_| signs && fits)?;
        Some(Self { id: jwk.common.key_id.clone(), algorithm, key })
    }

    fn fits(&self, header: &Header) -> bool {
        // A key without an id is tried for all; so is every key for a token that names none.
        let same_id = self.id.is_none() || header.kid.is_none() || self.id == header.kid;
        self.algorithm == header.alg && same_id
    }

    /// Whether this is the key that is asked for by name.
    pub fn is_named(&self, id: Option<&str>) -> bool {
        id.is_none() || self.id.is_none() || self.id.as_deref() == id
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key").field("algorithm", &self.algorithm).finish_non_exhaustive()
    }
}

/// How tokens are verified.
#[derive(Debug)]
pub struct Tokens {
    /// Keys of the configuration.
    pub keys: Vec<Key>,
    /// Keys of a URL.
    pub remote: Option<Arc<Jwks>>,
    /// Whom a token must be for, one of them; empty: a token must not name anybody.
    pub audience: Vec<String>,
    /// Who must have made it, one of them; empty: whoever has the key.
    pub issuer: Vec<String>,
    /// How far clocks may differ.
    pub leeway: Duration,
}

/// Why a token is refused. Says nothing of what is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not a token, or a header that asks for what is not spoken here.
    #[error("it is not a signed JSON Web Token (HS256, RS256, ES256 or EdDSA)")]
    Malformed,
    /// No key for it, or its signature is wrong.
    #[error("its signature is not of a key that is known here")]
    Signature,
    /// It was valid.
    #[error("it has expired; get a fresh one")]
    Expired,
    /// It is not valid yet.
    #[error("it is not valid yet (`nbf`); do the clocks agree?")]
    NotYet,
    /// It is for somebody else.
    #[error("it is not for this audience (`aud`)")]
    Audience,
    /// Somebody else made it.
    #[error("it is not of the expected issuer (`iss`)")]
    Issuer,
    /// `exp`, `aud` or `iss` is missing, or a claim can't be understood.
    #[error("a claim is missing or malformed: `exp`, and `aud` and `iss` where they are configured, are required")]
    Claims,
    /// No key could be had yet.
    #[error("the keys to verify it could not be fetched yet; try again in a moment")]
    NoKeys,
}

/// What a token allows.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Claims {
    /// Until when, in seconds since 1970.
    #[serde(deserialize_with = "seconds")]
    pub exp: u64,
    /// What it allows.
    #[serde(default)]
    pub livebridge: Allowed,
}

/// Patterns of channels, by what may be done with them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Allowed {
    /// May be listened to, and their history read.
    #[serde(default)]
    pub subscribe: Vec<Pattern>,
    /// May be published to.
    #[serde(default)]
    pub publish: Vec<Pattern>,
}

impl Allowed {
    /// Whether one of the patterns is the channel's.
    pub fn covers(patterns: &[Pattern], channel: &ChannelName) -> bool {
        patterns.iter().any(|pattern| pattern.matches(channel))
    }
}

/// A number of seconds, which may have a fraction (RFC 7519, 2).
fn seconds<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let seconds = f64::deserialize(deserializer)?;
    Ok(seconds.clamp(0.0, u32::MAX.into()) as u64)
}

impl Tokens {
    /// Verifies a token, fetching the keys anew if it names one that is not known yet.
    pub async fn verify(&self, token: &Secret) -> Result<Claims, TokenError> {
        let token = token.reveal();
        let header = decode_header(token).map_err(|_| TokenError::Malformed)?;
        // RFC 7515, 4.1.11: what must be understood and is not makes a token invalid.
        if header.crit.is_some() {
            return Err(TokenError::Malformed);
        }
        let mut keys: Vec<Key> = self.keys.iter().filter(|key| key.fits(&header)).cloned().collect();
        if let Some(remote) = &self.remote {
            let known = remote.find(header.kid.as_deref()).await;
            match known {
                Some(known) => keys.extend(known.iter().filter(|key| key.fits(&header)).cloned()),
                None if keys.is_empty() => return Err(TokenError::NoKeys),
                None => {}
            }
        }
        let mut refused = TokenError::Signature;
        for key in &keys {
            match self.verify_with(token, key) {
                Err(TokenError::Signature) => {}
                Err(other) => refused = other,
                Ok(claims) => return Ok(claims),
            }
        }
        Err(refused)
    }

    fn verify_with(&self, token: &str, key: &Key) -> Result<Claims, TokenError> {
        let mut validation = Validation::new(key.algorithm);
        validation.leeway = self.leeway.as_secs();
        validation.validate_nbf = true;
        let mut required = vec!["exp"];
        if !self.audience.is_empty() {
            validation.set_audience(&self.audience);
            required.push("aud");
        }
        if !self.issuer.is_empty() {
            validation.set_issuer(&self.issuer);
            required.push("iss");
        }
        validation.set_required_spec_claims(&required);
        match decode::<Claims>(token, &key.key, &validation) {
            Ok(valid) => Ok(valid.claims),
            Err(error) => Err(match error.kind() {
                ErrorKind::ExpiredSignature => TokenError::Expired,
                ErrorKind::ImmatureSignature => TokenError::NotYet,
                ErrorKind::InvalidAudience => TokenError::Audience,
                ErrorKind::InvalidIssuer => TokenError::Issuer,
                ErrorKind::MissingRequiredClaim(_) | ErrorKind::InvalidClaimFormat(_) | ErrorKind::Json(_) => {
                    TokenError::Claims
                }
                _ => TokenError::Signature,
            }),
        }
    }

    /// For how many seconds from now the claims hold.
    pub fn holds_for(&self, claims: &Claims) -> u64 {
        claims.exp.saturating_add(self.leeway.as_secs()).saturating_sub(now())
    }
}

/// Seconds since 1970.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
