//! The channels that an instance wants to be subscribed to, the order of subscribing, and the
//! channels that Redis has refused recently. This module does no I/O.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use tokio::time::Instant;

use crate::broker::RequestSize;
use crate::channel::ChannelName;

/// How long a refused channel is refused again without asking Redis.
const REFUSED_FOR: Duration = Duration::from_secs(30);
/// How many refused channels are remembered. Beyond that, those older than [`REFUSED_FOR`] are
/// dropped, or all if none is; livebridge then asks Redis again.
const MOST_REFUSED: usize = 10_000;

/// The number of kinds of channels in the order of subscribing.
pub(super) const KINDS: usize = 4;
/// Channels to subscribe to, by kind. Channels that were subscribed before a reconnect come before
/// those that clients have requested since. Of each group, those of small requests come first.
pub(super) type ByKind = [Vec<ChannelName>; KINDS];

/// The wanted channels and their state.
#[derive(Default)]
pub(super) struct Wanted {
    channels: HashMap<ChannelName, Interest>,
    /// Channels that were added or removed since the last command to Redis. `None` while there is
    /// no connection; the next one starts with all channels.
    pending: Option<Vec<ChannelName>>,
    /// Channels that Redis refused, and when.
    refused: HashMap<ChannelName, Instant>,
    /// On a Cluster: channels whose subscription ended because their slot is moving.
    moved: Vec<ChannelName>,
}

#[derive(Clone, Copy)]
struct Interest {
    /// The size of the first request for the channel.
    request: RequestSize,
    /// Whether Redis has confirmed the subscription at least once, so that its clients are served.
    is_live: bool,
}

impl Interest {
    fn kind(self) -> usize {
        2 * usize::from(!self.is_live) + usize::from(self.request == RequestSize::Large)
    }
}

impl Wanted {
    /// Adds a channel, for a client's request of that size.
    pub(super) fn insert(&mut self, channel: &ChannelName, request: RequestSize) {
        self.channels.entry(channel.clone()).or_insert(Interest { request, is_live: false });
        self.changed(channel);
    }

    /// Removes a channel.
    pub(super) fn remove(&mut self, channel: &ChannelName) {
        self.channels.remove(channel);
        self.changed(channel);
    }

    fn changed(&mut self, channel: &ChannelName) {
        if let Some(pending) = &mut self.pending {
            pending.push(channel.clone());
        }
    }

    /// Handles the end of a subscription that nobody asked for. Returns whether the channel is
    /// wanted.
    pub(super) fn on_moved(&mut self, name: &[u8]) -> bool {
        let Some(channel) = self.get(name).cloned() else { return false };
        self.moved.push(channel);
        true
    }

    /// Subscribes again to those channels whose slot seemed to move, and did not.
    pub(super) fn restore_moved(&mut self) {
        let moved = std::mem::take(&mut self.moved);
        for channel in moved {
            if self.contains(&channel) {
                self.changed(&channel);
            }
        }
    }

    /// All wanted channels, and the size of the request for each.
    pub(super) fn all(&self) -> Vec<(ChannelName, RequestSize)> {
        self.channels.iter().map(|(channel, interest)| (channel.clone(), interest.request)).collect()
    }

    /// Whether the channel is wanted.
    pub(super) fn contains(&self, channel: &ChannelName) -> bool {
        self.channels.contains_key(channel)
    }

    /// The wanted channel with this name.
    pub(super) fn get(&self, name: &[u8]) -> Option<&ChannelName> {
        let (channel, _) = self.channels.get_key_value(std::str::from_utf8(name).ok()?)?;
        Some(channel)
    }

    /// Handles the confirmation of a subscription.
    pub(super) fn confirm(&mut self, channel: &ChannelName) {
        if let Some(interest) = self.channels.get_mut(channel) {
            interest.is_live = true;
        }
    }

    /// Starts a connection. Returns all channels to subscribe to.
    pub(super) fn on_connected(&mut self) -> ByKind {
        self.pending = Some(Vec::new());
        self.moved.clear();
        self.by_kind(self.channels.keys().cloned())
    }

    /// Ends the connection.
    pub(super) fn on_disconnected(&mut self) {
        self.pending = None;
    }

    /// The changes since the last call: channels to subscribe to, and channels to unsubscribe from.
    pub(super) fn take_pending(&mut self) -> (ByKind, Vec<ChannelName>) {
        let pending: HashSet<_> = self.pending.replace(Vec::new()).into_iter().flatten().collect();
        let (wanted, unwanted): (Vec<_>, Vec<_>) = pending.into_iter().partition(|channel| self.contains(channel));
        (self.by_kind(wanted.into_iter()), unwanted)
    }

    fn by_kind(&self, channels: impl Iterator<Item = ChannelName>) -> ByKind {
        let mut kinds = ByKind::default();
        for channel in channels {
            let kind = self.channels.get(&channel).map_or(KINDS - 1, |interest| interest.kind());
            kinds[kind].push(channel);
        }
        kinds
    }

    /// Whether Redis has refused the channel recently.
    pub(super) fn is_refused(&self, channel: &ChannelName) -> bool {
        self.refused.get(channel).is_some_and(|since| since.elapsed() < REFUSED_FOR)
    }

    /// Removes a channel that Redis refused, and remembers the refusal.
    pub(super) fn refuse(&mut self, channel: &ChannelName) {
        self.channels.remove(channel);
        if self.refused.len() >= MOST_REFUSED {
            self.refused.retain(|_, since| since.elapsed() < REFUSED_FOR);
        }
        if self.refused.len() >= MOST_REFUSED {
            self.refused.clear();
        }
        self.refused.insert(channel.clone(), Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> ChannelName {
        name.parse().expect("valid")
    }

    #[test]
    fn without_a_connection_nothing_is_queued() {
        let mut wanted = Wanted::default();
        for number in 0..10 {
            let channel = name(&format!("c{number}"));
            wanted.insert(&channel, RequestSize::Large);
            wanted.remove(&channel);
        }
        assert!(wanted.channels.is_empty() && wanted.pending.is_none());
    }

    #[test]
    fn after_a_reconnect_channels_that_were_live_come_first_and_of_each_kind_small_requests() {
        let mut wanted = Wanted::default();
        wanted.insert(&name("live-large"), RequestSize::Large);
        wanted.insert(&name("live-small"), RequestSize::Small);
        assert_eq!(wanted.on_connected()[..2], [vec![], vec![]], "at first none is live");
        wanted.confirm(&name("live-large"));
        wanted.confirm(&name("live-small"));
        wanted.on_disconnected();
        wanted.insert(&name("new-small"), RequestSize::Small);
        wanted.insert(&name("new-large"), RequestSize::Large);
        wanted.insert(&name("live-small"), RequestSize::Large);
        let kinds = wanted.on_connected().map(|kind| kind.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(kinds, [["live-small"], ["live-large"], ["new-small"], ["new-large"]]);
    }

    #[test]
    fn a_refused_channel_is_asked_for_again_after_a_while_and_memory_has_a_bound() {
        let mut wanted = Wanted::default();
        let channel = name("a");
        wanted.insert(&channel, RequestSize::Small);
        wanted.refuse(&channel);
        assert!(wanted.is_refused(&channel) && wanted.channels.is_empty());
        let before = Instant::now().checked_sub(REFUSED_FOR).expect("the clock has run for that long");
        wanted.refused.insert(channel.clone(), before);
        assert!(!wanted.is_refused(&channel));
        (0..=MOST_REFUSED).for_each(|number| wanted.refuse(&name(&format!("c{number}"))));
        assert!(wanted.refused.len() <= MOST_REFUSED && !wanted.refused.contains_key(&channel));
    }
}
