//! Gives memory back after a peak. The process runs on mimalloc (see `main.rs`), which returns what was free for a second to the
//! system, but looks for it only when it frees a page of its own: an instance that has become quiet would keep its peak.

use std::hint::black_box;
use std::time::Duration;

/// How often to look.
const INTERVAL: Duration = Duration::from_secs(1);
/// A piece so large that it has pages of its own. Nothing is ever written to it, so that it costs addresses and no memory.
const PIECE: usize = 1 << 20;

/// Makes the allocator look, for as long as the thread lives that this runs on: each has pages of its own.
pub async fn give_back() {
    let mut ticks = tokio::time::interval(INTERVAL);
    loop {
        ticks.tick().await;
        drop(black_box(Vec::<u8>::with_capacity(PIECE)));
    }
}
