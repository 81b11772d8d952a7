//! The connections for reading histories. They are separate from the one with the canary, so that a
//! page of several megabytes delays neither a canary nor a publish, and a slow read fails alone.
//! The number of reads in flight is limited, in all and per channel, so that a few channels cannot
//! use all of it.

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

/// The maximum number of reads in flight for clients, and of those for one channel.
const READS_AT_ONCE: usize = 16;
const READS_OF_A_CHANNEL: usize = 4;
/// The maximum number of reads in flight for the hub: as many as it starts at once.
const HUB_READS_AT_ONCE: usize = 64;
/// How long a read waits for its turn before it fails as unavailable.
const TURN_TIMEOUT: Duration = Duration::from_secs(5);

/// The lanes. A read waits only for reads of its own kind.
pub(super) struct Reads {
    /// Reads for clients.
    clients: ReadLane,
    /// Reads of the hub, which prove the order of a channel. A join waits for one.
    hub: ReadLane,
}

/// One connection for reads, and the limits on the reads in flight.
pub(super) struct ReadLane {
    turn_timeout: Duration,
    open: Mutex<Option<SharedConnection>>,
    permits: Semaphore,
    /// The shares of the channels that have reads in flight or waiting.
    shares: SyncMutex<HashMap<ChannelName, Arc<Semaphore>>>,
}

/// The permit for one read, returned on drop.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    _any: SemaphorePermit<'a>,
    _own: OwnedSemaphorePermit,
    // Dropped last: it removes the channel's entry when no other permit uses it.
    _share: Share<'a>,
}

struct Share<'a> {
    lane: &'a ReadLane,
    channel: ChannelName,
    semaphore: Arc<Semaphore>,
}

impl Reads {
    /// Creates lanes without connections.
    pub(super) fn new() -> Self {
        Self {
            clients: ReadLane::new(READS_AT_ONCE, TURN_TIMEOUT),
            hub: ReadLane::new(HUB_READS_AT_ONCE, TURN_TIMEOUT),
        }
    }

    /// The lane for a read.
    pub(super) fn lane(&self, from: ReadFrom) -> &ReadLane {
        match from {
            ReadFrom::Tail | ReadFrom::AfterDelivered(_) => &self.hub,
            ReadFrom::Oldest | ReadFrom::Last(_) | ReadFrom::After(_) | ReadFrom::AfterIfKept(_) | ReadFrom::Keys => {
                &self.clients
            }
        }
    }

    /// The lane for what clients ask.
    pub(super) fn clients(&self) -> &ReadLane {
        &self.clients
    }

    /// The lane of the hub.
    pub(super) fn hub(&self) -> &ReadLane {
        &self.hub
    }
}

impl ReadLane {
    fn new(at_once: usize, turn_timeout: Duration) -> Self {
        Self { turn_timeout, open: Mutex::new(None), permits: Semaphore::new(at_once), shares: SyncMutex::default() }
    }

    /// Waits for the turn of a read.
    ///
    /// # Errors
    /// [`BrokerError::Unavailable`] if the turn does not come within [`TURN_TIMEOUT`].
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

    /// Sends a command and waits for its reply. If none arrives, gives up this connection, but no
    /// other.
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
        // Every statement leaves the table consistent, so a poisoned lock is safe to use.
        self.shares.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        let mut shares = self.lane.shares();
        // The two references are in the table and in `self`.
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
