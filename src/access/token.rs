//! Clients' tokens: JSON Web Tokens (RFC 7519). `claims.rs` holds their claims, `token_key.rs` and
//! (for a URL) `jwks.rs` the keys that verify them; `issue.rs` issues tokens for tests.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;

use super::claims::{Claims, Present, present};
use super::jwks::Jwks;
use super::secret::Secret;
use super::token_key::{ALGORITHMS, Key, algorithm};
use crate::json::Object;

/// The settings that verify tokens.
#[derive(Debug)]
pub struct Tokens {
    /// Keys from the configuration.
    pub keys: Vec<Key>,
    /// Keys from a URL.
    pub remote: Option<Arc<Jwks>>,
    /// The accepted audiences, of which a token must name one. If empty, a token must not name an
    /// audience.
    pub audience: Vec<String>,
    /// The accepted issuers. If empty, any issuer that has a valid key is accepted.
    pub issuer: Vec<String>,
    /// Allowed difference between clocks.
    pub leeway: Duration,
}

/// Why a token is refused. Never contains any of its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not a token, or its header asks for something that is not supported.
    #[error("it is not a signed JSON Web Token ({ALGORITHMS})")]
    Malformed,
    /// No key fits, or the signature is wrong.
    #[error("no known key verifies its signature")]
    Signature,
    /// It has expired.
    #[error("it has expired; get a fresh one")]
    Expired,
    /// It is not valid yet.
    #[error("it is not valid yet (`nbf`); compare the clocks")]
    NotYet,
    /// It is for another audience.
    #[error("it is not for this audience (`aud`)")]
    Audience,
    /// It is from another issuer.
    #[error("it is not from the expected issuer (`iss`)")]
    Issuer,
    /// `exp`, `aud` or `iss` is missing, or a claim has a wrong type.
    #[error(
        "a claim is missing or of a wrong type: `exp`, and `aud` and `iss` where they are configured, are required; \
         times are numbers, `iss` and `sub` strings, `aud` a string or a list of strings, `livebridge` an object"
    )]
    Claims,
    /// The keys could not be fetched yet.
    #[error("the keys to verify it could not be fetched yet; try again in a moment")]
    NoKeys,
}

/// The relevant members of a token's header (RFC 7515, 4.1).
#[derive(Deserialize)]
struct Header {
    alg: String,
    #[serde(default, deserialize_with = "present")]
    kid: Option<String>,
    #[serde(default)]
    crit: Present,
}

impl Tokens {
    /// Verifies a token, first with the keys of the configuration, then with those of the URL.
    /// Waits for a fetch if the token names a key that is not known yet.
    ///
    /// # Errors
    /// [`TokenError`] that says why it is refused.
    pub async fn verify(&self, token: &Secret) -> Result<Claims, TokenError> {
        let (message, signature) = token.reveal().rsplit_once('.').ok_or(TokenError::Malformed)?;
        let (head, payload) = message.split_once('.').ok_or(TokenError::Malformed)?;
        let Object(header): Object<Header> = json(head).ok_or(TokenError::Malformed)?;
        let algorithm = algorithm(&header.alg).ok_or(TokenError::Malformed)?;
        // A token with critical extensions that are not understood is not valid (RFC 7515, 4.1.11).
        if header.crit.0 {
            return Err(TokenError::Malformed);
        }
        let id = header.kid.as_deref();
        let fits = |key: &&Key| key.fits(algorithm, id);
        let made_by = |keys: &[Key]| keys.iter().filter(fits).any(|key| key.verifies(algorithm, message, signature));
        if made_by(&self.keys) {
            return self.check(payload);
        }
        let Some(remote) = &self.remote else { return Err(TokenError::Signature) };
        match remote.find(id).await {
            Some(known) if made_by(&known) => self.check(payload),
            None if !self.keys.iter().any(|key| fits(&key)) => Err(TokenError::NoKeys),
            _ => Err(TokenError::Signature),
        }
    }

    /// Checks the claims of a token whose signature is valid.
    fn check(&self, payload: &str) -> Result<Claims, TokenError> {
        let Object(claims): Object<Claims> = json(payload).ok_or(TokenError::Claims)?;
        let (now, leeway) = (now() as f64, self.leeway.as_secs_f64());
        if now >= claims.exp + leeway {
            return Err(TokenError::Expired);
        }
        if claims.nbf.is_some_and(|nbf| now + leeway < nbf) {
            return Err(TokenError::NotYet);
        }
        match (&claims.aud, self.audience.is_empty()) {
            (None, true) => {}
            (None, false) => return Err(TokenError::Claims),
            // A token for another audience is refused (RFC 7519, 4.1.3), even if no audience is
            // configured.
            (Some(named), _) if named.names().iter().any(|name| self.audience.contains(name)) => {}
            (Some(_), _) => return Err(TokenError::Audience),
        }
        match (&claims.iss, self.issuer.is_empty()) {
            (_, true) => {}
            (None, false) => return Err(TokenError::Claims),
            (Some(issuer), false) if self.issuer.contains(issuer) => {}
            (Some(_), false) => return Err(TokenError::Issuer),
        }
        Ok(claims)
    }

    /// The seconds until the claims expire, including the leeway.
    pub fn holds_for(&self, claims: &Claims) -> u64 {
        let until = claims.exp + self.leeway.as_secs_f64();
        // The conversion saturates for values beyond the range of a u64.
        (until.ceil() as u64).saturating_sub(now())
    }
}

/// Decodes a part of a token.
fn json<T: serde::de::DeserializeOwned>(part: &str) -> Option<T> {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).ok()?).ok()
}

/// The current time in seconds since 1970.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
    use serde_json::json;

    use super::{Jwks, Key, Secret, TokenError, Tokens, now};
    use std::time::Duration;

    const OURS: &str = "a secret that is as long as HS256 wants";
    const THEIRS: &str = "another one that is as long as HS256 wants";

    /// With a URL that is never fetched: a lookup of its keys waits.
    fn with_a_url(keys: Vec<Key>) -> Tokens {
        Tokens { remote: Some(Jwks::new(Box::new(|| std::future::pending().boxed()))), ..without_a_url(keys) }
    }

    fn without_a_url(keys: Vec<Key>) -> Tokens {
        Tokens { keys, remote: None, audience: Vec::new(), issuer: Vec::new(), leeway: Duration::ZERO }
    }

    fn secret() -> Key {
        Key::shared(&Secret::new(OURS)).expect("long enough")
    }

    /// An HS256 token that names an unknown key.
    fn token(secret: &str, exp: u64) -> Secret {
        let header = Header { kid: Some("unknown".into()), ..Header::new(Algorithm::HS256) };
        let key = EncodingKey::from_secret(secret.as_bytes());
        Secret::new(encode(&header, &json!({ "exp": exp }), &key).expect("signing does not fail"))
    }

    /// The result that is available at once; `None` if it waits for the keys of the URL.
    fn at_once(tokens: &Tokens, token: &Secret) -> Option<Result<u64, TokenError>> {
        tokens.verify(token).now_or_never().map(|verified| verified.map(|claims| claims.exp as u64))
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
