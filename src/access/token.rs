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
    /// Verifies a token: with the keys of the configuration first, and where none of them made it, with those of the URL, which are
    /// fetched anew if it names one that is not known yet.
    pub async fn verify(&self, token: &Secret) -> Result<Claims, TokenError> {
        let token = token.reveal();
        let header = decode_header(token).map_err(|_| TokenError::Malformed)?;
        // RFC 7515, 4.1.11: what must be understood and is not makes a token invalid.
        if header.crit.is_some() {
            return Err(TokenError::Malformed);
        }
        let verified = self.verify_with_any(token, &header, &self.keys);
        let (Err(TokenError::Signature), Some(remote)) = (&verified, &self.remote) else { return verified };
        match remote.find(header.kid.as_deref()).await {
            Some(known) => self.verify_with_any(token, &header, &known),
            None if self.keys.iter().any(|key| key.fits(&header)) => verified,
            None => Err(TokenError::NoKeys),
        }
    }

    /// With the key that made it, if that is one of those that fit. Any other answer than `Signature` is of that key.
    fn verify_with_any(&self, token: &str, header: &Header, keys: &[Key]) -> Result<Claims, TokenError> {
        let fitting = keys.iter().filter(|key| key.fits(header));
        let mut answers = fitting.map(|key| self.verify_with(token, key));
        answers.find(|answer| *answer != Err(TokenError::Signature)).unwrap_or(Err(TokenError::Signature))
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

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use jsonwebtoken::{EncodingKey, encode};
    use serde_json::json;

    use super::*;

    const OURS: &str = "a secret that is as long as HS256 wants";
    const THEIRS: &str = "another one that is as long as HS256 wants";

    /// With a URL that nobody fetches: who asks for its keys waits.
    fn with_a_url(keys: Vec<Key>) -> Tokens {
        Tokens { remote: Some(Jwks::new("http://127.0.0.1/")), ..without_a_url(keys) }
    }

    fn without_a_url(keys: Vec<Key>) -> Tokens {
        Tokens { keys, remote: None, audience: Vec::new(), issuer: Vec::new(), leeway: Duration::ZERO }
    }

    fn secret() -> Key {
        Key::shared(&Secret::new(OURS)).expect("long enough")
    }

    /// A token of HS256 that names a key which nobody knows.
    fn token(secret: &str, exp: u64) -> Secret {
        let header = Header { kid: Some("unknown".into()), ..Header::new(Algorithm::HS256) };
        let key = EncodingKey::from_secret(secret.as_bytes());
        Secret::new(encode(&header, &json!({ "exp": exp }), &key).expect("signing does not fail"))
    }

    /// What is answered at once; `None` where the keys of the URL are waited for.
    fn at_once(tokens: &Tokens, token: &Secret) -> Option<Result<u64, TokenError>> {
        tokens.verify(token).now_or_never().map(|verified| verified.map(|claims| claims.exp))
    }

    #[tokio::test]
    async fn the_url_is_asked_only_where_no_key_of_the_configuration_made_the_token() {
        let tokens = with_a_url(vec![secret()]);
        let exp = now() + 60;
        assert_eq!(at_once(&tokens, &token(OURS, exp)), Some(Ok(exp)));
        assert_eq!(at_once(&tokens, &token(OURS, 1)), Some(Err(TokenError::Expired)));
        assert_eq!(at_once(&tokens, &token(THEIRS, exp)), None);
    }

    #[test]
    fn without_a_url_an_unknown_id_neither_helps_nor_hinders() {
        let tokens = without_a_url(vec![secret()]);
        let exp = now() + 60;
        assert_eq!(at_once(&tokens, &token(OURS, exp)), Some(Ok(exp)));
        assert_eq!(at_once(&tokens, &token(OURS, 1)), Some(Err(TokenError::Expired)));
        assert_eq!(at_once(&tokens, &token(THEIRS, exp)), Some(Err(TokenError::Signature)));
    }

    #[tokio::test]
    async fn a_public_key_is_no_secret() {
        let pem = rcgen::KeyPair::generate().expect("a key pair").public_key_pem();
        let keys = vec![Key::public(pem.as_bytes()).expect("a public key")];
        let forged = token(&pem, now() + 60);
        assert_eq!(at_once(&without_a_url(keys.clone()), &forged), Some(Err(TokenError::Signature)));
        assert_eq!(at_once(&with_a_url(keys), &forged), None);
    }
}
