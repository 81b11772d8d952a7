//! Closes the subscribers of a thread when the instance stops: one after the other, in random order
//! and evenly over a window, so that they reconnect to other instances evenly. `server.rs` stops
//! the rest of the instance.

use std::time::Duration;

use rand::seq::SliceRandom;
use tokio::time::{Instant, sleep};

use super::shard::Shard;
use crate::close::{Close, Code};

/// The window is at most this long per subscriber, as a few subscribers need no spreading.
const PACE: Duration = Duration::from_millis(100);
/// The interval between closes.
const TICK: Duration = Duration::from_millis(10);

/// Closes all subscribers within `window`. `share`: the number of threads.
pub async fn close_evenly(shard: &Shard, window: Duration, share: usize) {
    let close = Close::new(Code::Restarting, "this instance is stopping; connect again after a moment");
    let mut order = shard.keys();
    order.shuffle(&mut rand::rng());
    let window = window.min(PACE * u32::try_from(order.len() * share).unwrap_or(u32::MAX));
    let began = Instant::now();
    let mut told = 0;
    while told < order.len() && !shard.is_empty() {
        let due = due(order.len(), began.elapsed(), window);
        order[told..due].iter().for_each(|&key| shard.close(key, &close));
        told = due;
        sleep(TICK).await;
    }
    // Connections added meanwhile are not in the list.
    while !shard.is_empty() {
        shard.close_all(&close);
        sleep(TICK).await;
    }
}

/// The number of subscribers, of `count`, to close until `elapsed` after the start. The first is
/// closed immediately.
fn due(count: usize, elapsed: Duration, window: Duration) -> usize {
    let share = elapsed.as_secs_f64() / window.as_secs_f64().max(f64::MIN_POSITIVE);
    ((share * count as f64) as usize).saturating_add(1).min(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closes_are_spread_evenly() {
        let window = Duration::from_secs(6);
        let after = |milliseconds| due(600, Duration::from_millis(milliseconds), window);
        assert_eq!([after(0), after(1000), after(3000), after(5999), after(7000)], [1, 101, 301, 600, 600]);
        assert_eq!(due(600, Duration::from_millis(1), Duration::ZERO), 600);
        assert_eq!(due(0, Duration::ZERO, Duration::ZERO), 0);
    }
}
