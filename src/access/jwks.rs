//! Keys that are published at a URL as a JWK set (RFC 7517): fetched at start, refreshed at
//! intervals and when a token names an unknown key, and kept while the URL cannot be fetched. The
//! caller supplies the function that fetches.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout};

use super::token_key::Key;
use crate::backoff::Backoff;
use crate::json::Object;

/// Refresh interval. A revoked key stays valid for at most this long.
const REFRESH: Duration = Duration::from_secs(600);
/// Minimum time between two fetches, whatever keys tokens name.
const COOL_DOWN: Duration = Duration::from_secs(5);
/// How long a client waits for a key that is being fetched.
const PATIENCE: Duration = Duration::from_secs(6);
/// Maximum number of keys that are used from a set.
const MOST_KEYS: usize = 100;

/// Fetches a JWK set. The error describes the failure, for the log.
pub type Fetch = Box<dyn Fn() -> BoxFuture<'static, Result<Bytes, String>> + Send + Sync>;

/// Maximum size of a JWK set, in bytes.
pub const MOST_BYTES: usize = 256 << 10;
/// Time limit for a fetch.
pub const FETCH_TIMEOUT: Duration = Duration::from_secs(5);

/// The keys of the last successful fetch.
pub struct Jwks {
    fetch: Fetch,
    keys: RwLock<Option<Arc<[Key]>>>,
    /// Notified when a token names an unknown key.
    wanted: Notify,
    /// Whether the last fetch was less than [`COOL_DOWN`] ago.
    cooling: AtomicBool,
    /// The number of finished attempts.
    attempts: watch::Sender<u64>,
}

impl fmt::Debug for Jwks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Jwks")
    }
}

#[derive(Deserialize)]
struct Set {
    keys: Vec<Value>,
}

impl Jwks {
    /// Starts without keys; [`Jwks::keep_fresh`] fetches them. `fetch` should enforce
    /// [`MOST_BYTES`] and [`FETCH_TIMEOUT`].
    pub fn new(fetch: Fetch) -> Arc<Self> {
        Arc::new(Self {
            fetch,
            keys: RwLock::default(),
            wanted: Notify::new(),
            cooling: AtomicBool::new(false),
            attempts: watch::Sender::new(0),
        })
    }

    /// The keys of the set. If none of them has this id, waits for another fetch first, unless one
    /// has just ended. `None` if no fetch has succeeded yet.
    pub async fn find(&self, id: Option<&str>) -> Option<Arc<[Key]>> {
        let known = self.known();
        if known.as_ref().is_some_and(|keys| keys.iter().any(|key| key.is_named(id))) {
            return known;
        }
        let mut attempts = self.attempts.subscribe();
        self.wanted.notify_one();
        if !self.cooling.load(Ordering::Acquire) {
            let _ = timeout(PATIENCE, attempts.changed()).await;
        }
        self.known()
    }

    fn known(&self) -> Option<Arc<[Key]>> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Fetches the keys, for as long as the instance runs.
    pub async fn keep_fresh(self: Arc<Self>) {
        let mut backoff = Backoff::new(COOL_DOWN, REFRESH / 10);
        let mut failed = false;
        loop {
            let outcome = (self.fetch)().await.and_then(|body| parse(&body));
            let succeeded = outcome.is_ok();
            match outcome {
                Ok(keys) => {
                    if std::mem::take(&mut failed) {
                        tracing::info!(keys = keys.len(), "fetching --token-jwks-url works again");
                    }
                    *self.keys.write().unwrap_or_else(PoisonError::into_inner) = Some(keys);
                    backoff.reset();
                }
                Err(error) if !std::mem::replace(&mut failed, true) => {
                    tracing::warn!(%error, "cannot fetch --token-jwks-url; known keys stay valid");
                }
                Err(error) => tracing::debug!(%error, "still cannot fetch --token-jwks-url"),
            }
            self.cooling.store(true, Ordering::Release);
            self.attempts.send_modify(|attempts| *attempts += 1);
            if succeeded {
                sleep(COOL_DOWN).await;
                self.cooling.store(false, Ordering::Release);
                let _ = timeout(REFRESH, self.wanted.notified()).await;
            } else {
                sleep(backoff.next_delay().max(COOL_DOWN / 5)).await;
                self.cooling.store(false, Ordering::Release);
            }
        }
    }
}

/// The supported keys of a set. Others are skipped, because sets contain keys for other purposes.
fn parse(body: &[u8]) -> Result<Arc<[Key]>, String> {
    let Object(set): Object<Set> =
        serde_json::from_slice(body).map_err(|error| format!("this is not a JWK set: {error}"))?;
    let keys: Arc<[Key]> = set.keys.into_iter().take(MOST_KEYS).filter_map(Key::of_set).collect();
    if keys.is_empty() {
        return Err("the JWK set holds no RSA, P-256, P-384 or Ed25519 key that verifies signatures".into());
    }
    Ok(keys)
}
