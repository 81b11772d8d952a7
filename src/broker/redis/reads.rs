//! The connections on which histories are read, apart from the one that proves Redis alive: a page of
//! megabytes delays neither a canary nor a publisher, and a late one fails alone. So that a few
//! channels, or one, cannot take all of it, the reads in flight have a bound, and each channel a share.

use std::collections::HashMap;
use std::sync::{Arc, Mutex as SyncMutex, MutexGuard, PoisonError};
use std::time::Duration;

use redis::{Cmd, FromRedisValue};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, SemaphorePermit};
use tokio::time::timeout;

use super::error::ClientError;
use super::node::Node;
use super::shared::SharedConnection;
use crate::broker::{BrokerError, ReadFrom};
use crate::channel::ChannelName;
use crate::observability::metrics::latency::Moment;

/// How many reads of clients are in flight, and how many of one channel.
const READS_AT_ONCE: usize = 16;
const READS_OF_A_CHANNEL: usize = 4;
/// How many reads of the hub are in flight: as many as it begins at once.
const HUB_READS_AT_ONCE: usize = 64;
/// How long a read waits for its turn; after that it is answered as unavailable.
const TURN_TIMEOUT: Duration = Duration::from_secs(5);

/// The lanes: a read waits only for reads of its own kind.
pub(super) struct Reads {
    /// What clients ask for.
    clients: ReadLane,
    /// What the hub asks to prove the order of a channel: a join waits for it.
    hub: ReadLane,
}

/// One connection for reads, and the bounds on what is in flight there.
pub(super) struct ReadLane {
    turn_timeout: Duration,
    open: Mutex<Option<SharedConnection>>,
    permits: Semaphore,
    /// The shares of the channels that are being read, or wait for it.
    shares: SyncMutex<HashMap<ChannelName, Arc<Semaphore>>>,
}

/// The right to one read; given back when dropped.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    _any: SemaphorePermit<'a>,
    _own: OwnedSemaphorePermit,
    // Dropped last: it forgets the channel's share once nobody holds a part of it.
    _share: Share<'a>,
}

struct Share<'a> {
    lane: &'a ReadLane,
    channel: ChannelName,
    semaphore: Arc<Semaphore>,
}

impl Reads {
    /// Lanes on which nothing is open yet.
    pub(super) fn new() -> Self {
        Self {
            clients: ReadLane::new(READS_AT_ONCE, TURN_TIMEOUT),
            hub: ReadLane::new(HUB_READS_AT_ONCE, TURN_TIMEOUT),
        }
    }

    /// The lane of a read.
    pub(super) fn lane(&self, from: ReadFrom) -> &ReadLane {
        match from {
            ReadFrom::Tail | ReadFrom::AfterDelivered(_) => &self.hub,
            ReadFrom::Oldest | ReadFrom::Last(_) | ReadFrom::After(_) | ReadFrom::Keys => &self.clients,
        }
    }
}

impl ReadLane {
    fn new(at_once: usize, turn_timeout: Duration) -> Self {
        Self { turn_timeout, open: Mutex::new(None), permits: Semaphore::new(at_once), shares: SyncMutex::default() }
    }

    /// Waits for a read's turn.
    ///
    /// # Errors
    /// [`BrokerError::Unavailable`] if it does not come within [`TURN_TIMEOUT`].
    pub(super) async fn turn(&self, channel: &ChannelName) -> Result<Turn<'_>, BrokerError> {
        let late = || BrokerError::Unavailable("too many histories are being read".into());
        let waiting = async {
            let share = self.share(channel);
            let own = share.semaphore.clone().acquire_owned().await.map_err(|_| late())?;
            let any = self.permits.acquire().await.map_err(|_| late())?;
            Ok(Turn { _any: any, _own: own, _share: share })
        };
        timeout(self.turn_timeout, waiting).await.unwrap_or_else(|_| Err(late()))
    }

    fn share(&self, channel: &ChannelName) -> Share<'_> {
        let new = || Arc::new(Semaphore::new(READS_OF_A_CHANNEL));
        let semaphore = self.shares().entry(channel.clone()).or_insert_with(new).clone();
        Share { lane: self, channel: channel.clone(), semaphore }
    }

    /// Sends a command and waits for its answer. A connection on which none came is given up, this one only.
    pub(super) async fn call<T: FromRedisValue>(&self, node: &Node, command: &Cmd) -> Result<T, ClientError> {
        let open = self.connection(node).await?;
        let asked = Moment::now();
        let answer = open.call(command).await;
        match &answer {
            Err(ClientError::Refused(said)) => node.reload_if_missing(said, open.generation()),
            Err(_) => {
                self.open.lock().await.take_if(|current| current.is_same(&open));
                return answer;
            }
            Ok(_) => {}
        }
        node.metrics.latency.redis_round_trip.observe(asked);
        answer
    }

    async fn connection(&self, node: &Node) -> Result<SharedConnection, ClientError> {
        let mut slot = self.open.lock().await;
        let generation = node.generation();
        if let Some(open) = slot.as_ref().filter(|open| open.generation() == generation) {
            return Ok(open.clone());
        }
        let open = node.connect_shared().await?;
        *slot = Some(open.clone());
        Ok(open)
    }

    fn shares(&self) -> MutexGuard<'_, HashMap<ChannelName, Arc<Semaphore>>> {
        // The table is whole after every line that holds it: a panic elsewhere does not spoil it.
        self.shares.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        let mut shares = self.lane.shares();
        // The table's and this one's.
        if Arc::strong_count(&self.semaphore) <= 2 {
            shares.remove(&self.channel);
        }
    }
}

impl std::fmt::Debug for Share<'_> {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "a share of {}", self.channel)
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn name(name: &str) -> ChannelName {
        name.parse().expect("valid")
    }

    #[tokio::test]
    async fn a_channel_has_a_share_of_the_reads_and_leaves_the_others_theirs() {
        let lane = ReadLane::new(READS_AT_ONCE, Duration::from_millis(20));
        let (busy, other) = (name("busy"), name("other"));
        let mut turns = Vec::new();
        for _ in 0..READS_OF_A_CHANNEL {
            turns.push(lane.turn(&busy).await.expect("within its share"));
        }
        assert!(lane.turn(&busy).now_or_never().is_none(), "more than its share has to wait");
        assert!(lane.turn(&other).now_or_never().is_some_and(|turn| turn.is_ok()), "others need not");
        assert!(matches!(lane.turn(&busy).await, Err(BrokerError::Unavailable(_))), "and not for ever");
        turns.pop();
        assert!(lane.turn(&busy).now_or_never().is_some_and(|turn| turn.is_ok()), "until one is over");
        turns.clear();
        assert!(lane.shares().is_empty(), "of a read that is over nothing stays");
    }

    #[tokio::test]
    async fn all_channels_together_have_a_bound() {
        let lane = ReadLane::new(READS_AT_ONCE, Duration::from_millis(20));
        let mut turns = Vec::new();
        for number in 0..READS_AT_ONCE {
            turns.push(lane.turn(&name(&format!("c{number}"))).await.expect("there is room"));
        }
        assert!(matches!(lane.turn(&name("more")).await, Err(BrokerError::Unavailable(_))));
        turns.clear();
        assert!(lane.turn(&name("more")).await.is_ok());
        assert!(lane.shares().is_empty(), "nor of one that did not get its turn");
    }

    #[test]
    fn what_proves_the_order_of_a_channel_waits_for_no_client() {
        let reads = Reads::new();
        assert!(std::ptr::eq(reads.lane(ReadFrom::Tail), &reads.hub));
        assert!(std::ptr::eq(reads.lane(ReadFrom::Oldest), &reads.clients));
        assert!(std::ptr::eq(reads.lane(ReadFrom::Keys), &reads.clients));
    }
}
