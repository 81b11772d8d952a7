//! The end of a thread's subscribers: they are told one after the other, in a random order and evenly over a window, so that
//! they come back to other instances evenly. What the whole instance does meanwhile is `server.rs`.

use std::time::Duration;

use rand::seq::SliceRandom;
use tokio::time::{Instant, sleep};

use super::shard::Shard;
use crate::close::{Close, Code};

/// Few subscribers are no storm: the window is no longer than this for each.
const PACE: Duration = Duration::from_millis(100);
/// How often those whose turn it is are told.
const TICK: Duration = Duration::from_millis(10);

/// Closes all subscribers within `window`. `share`: of how many threads this is one.
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
    // Those who came in at the last moment are not in the list.
    while !shard.is_empty() {
        shard.close_all(&close);
        sleep(TICK).await;
    }
}

/// How many of `count` are to be told so long after the beginning; the first at once.
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
