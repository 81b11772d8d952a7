//! Returns free memory to the system after a peak. The process runs on mimalloc (see `main.rs`),
//! which returns pages that were free for a second, but looks for them only when it frees another
//! page. An idle instance would therefore keep the memory of its peak.

use std::hint::black_box;
use std::time::Duration;

/// How often to look for free pages.
const INTERVAL: Duration = Duration::from_secs(1);
/// The size of an allocation that gets pages of its own. It is never written to, so it takes
/// address space but no memory.
const LARGE: usize = 1 << 20;
/// After this many intervals, mimalloc searches all pages of the thread for those that other
/// threads have emptied. This is rare because it costs time under load, where emptied pages are
/// soon filled again.
const COLLECT_EVERY: u32 = 5;
/// The number of larger allocations after which mimalloc collects free pages (its option
/// `generic_collect`).
const ALLOCATIONS: usize = 10_000;
/// The smallest size that counts as a larger allocation, in bytes. Each one is freed at once, so
/// all of them reuse the same block and take 0.2 ms together.
const NOT_SMALL: usize = 2 << 10;

/// Makes the allocator return free memory, for as long as the current thread lives. Each thread has
/// pages of its own, so each thread runs this.
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
