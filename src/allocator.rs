//! Gives memory back after a peak. The process runs on mimalloc (see `main.rs`), which returns what was free for a second to the
//! system, but looks for it only when it frees a page of its own: an instance that has become quiet would keep its peak.

use std::hint::black_box;
use std::time::Duration;

/// How often to look for pages that are due to go back.
const INTERVAL: Duration = Duration::from_secs(1);
/// A piece so large that it has pages of its own. Nothing is ever written to it, so that it costs addresses and no memory.
const LARGE: usize = 1 << 20;
/// Every so many looks all pages of the thread are looked through, for those that other threads have emptied. While there is much
/// to do this costs something: what is emptied is filled again soon.
const COLLECT_EVERY: u32 = 5;
/// How many allocations that are not small mimalloc takes for a reason to do so (its option `generic_collect`).
const ALLOCATIONS: usize = 10_000;
/// The least that is not small. Each is given back at once, so it is always the same piece: 0.2 ms for all.
const NOT_SMALL: usize = 2 << 10;

/// Makes the allocator look, for as long as the thread lives that this runs on: each has pages of its own.
pub async fn give_back() {
    let mut ticks = tokio::time::interval(INTERVAL);
    for look in 1_u32.. {
        ticks.tick().await;
        take_and_free(LARGE);
        if look.is_multiple_of(COLLECT_EVERY) {
            (0..ALLOCATIONS).for_each(|_| take_and_free(NOT_SMALL));
        }
    }
}

fn take_and_free(bytes: usize) {
    drop(black_box(Vec::<u8>::with_capacity(bytes)));
}
