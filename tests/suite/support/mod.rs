//! Starts and stops what the tests need. Everything has a port and a folder of its own, and is gone when dropped.

pub mod acl;
pub mod balancer;
pub mod brokers;
pub mod browser;
pub mod centrifuge_client;
pub mod centrifuge_protobuf;
pub mod certificates;
pub mod cluster;
pub mod format1;
pub mod good;
pub mod instance;
pub mod network;
pub mod producers;
pub mod proxy;
pub mod raw;
pub mod redis;
pub mod resp;
pub mod sentinel;
pub mod servers;
pub mod sse;
pub mod tokens;
pub mod ws;

use std::future::Future;
use std::time::Duration;

/// No single step of a test takes longer than this, on the slowest machine: a hang becomes a failure.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Waits for something that is bound to happen.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("not within {PATIENCE:?}: {what}"))
}

/// Asks again and again until the answer is yes.
pub async fn until<F: Future<Output = bool>>(what: &str, mut ask: impl FnMut() -> F) {
    soon(what, async {
        while !ask().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

/// A channel name that no other test uses, so that tests may share a Redis.
pub fn channel(name: &str) -> String {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{name}:{}", NEXT.fetch_add(1, Ordering::Relaxed))
}
