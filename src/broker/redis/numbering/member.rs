//! The plain messages that one subscription has received, from its barrier on, and whose markers have not
//! arrived.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;

use super::request::{Append, Marker, Place};
use crate::broker::Event;
use crate::channel::ChannelName;
use crate::message::{Message, Position};

/// The size of a message that waits without its payload, in bytes.
const FIXED_WEIGHT: usize = size_of::<(Place, Bytes)>();

/// The limits of an instance.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Limits {
    /// The size of all messages that wait, in bytes.
    pub waiting_bytes: usize,
    /// The number of messages in one [`Append`], and a soft limit on its bytes.
    pub append_messages: usize,
    /// See `append_messages`.
    pub append_bytes: usize,
}

/// What became of an [`Append`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Answer {
    /// All messages before this place have been appended, now or earlier.
    Through(Place),
    /// An older member may have messages that come first.
    Older,
    /// Redis refused the request, or the answer was lost.
    Failed,
}

/// One uninterrupted subscription.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Member {
    /// The barrier with which it begins, which identifies it.
    since: u64,
    /// The barrier from which on it is a member anew, as soon as all messages before it have been appended.
    next: Option<u64>,
    /// The earlier membership, which answers may still name.
    earlier: Option<u64>,
    /// The last barrier that it has received.
    barrier: u64,
    channels: BTreeMap<ChannelName, Waiting>,
    /// Channels with messages that no request in flight contains.
    due: BTreeSet<ChannelName>,
    /// Channels whose last request had no success. They are due after [`Member::retry`].
    failed: BTreeSet<ChannelName>,
    /// How many channels were left after the last barrier.
    left_at_barrier: usize,
    weight: usize,
    count: usize,
}

/// The messages of a channel.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
struct Waiting {
    /// The place of the next message.
    next: Place,
    /// All messages before this place have been appended, as a marker or an answer said.
    appended: Place,
    messages: VecDeque<(Place, Bytes)>,
    /// The size of the messages, in bytes.
    weight: usize,
    in_flight: bool,
}

impl Waiting {
    fn push(&mut self, place: Place, payload: Bytes) {
        self.weight += weight_of(&payload);
        self.messages.push_back((place, payload));
    }

    /// Drops the oldest messages as long as `is_dropped` says so of their place and of the size of all. Returns
    /// their weight and number.
    fn drop_while(&mut self, is_dropped: impl Fn(Place, usize) -> bool) -> (usize, usize) {
        let (before, mut count) = (self.weight, 0);
        while let Some((_, payload)) = self.messages.pop_front_if(|(at, _)| is_dropped(*at, self.weight)) {
            self.weight -= weight_of(&payload);
            count += 1;
        }
        (before - self.weight, count)
    }

    fn is_due(&self) -> bool {
        !self.in_flight && self.messages.back().is_some_and(|(place, _)| *place >= self.appended)
    }

    /// The next request; `None` if there is nothing to append.
    fn append(&self, channel: &ChannelName, since: u64, limits: &Limits) -> Option<Append> {
        let from = self.messages.partition_point(|(place, _)| *place < self.appended);
        let (place, _) = *self.messages.get(from)?;
        let mut bytes = 0;
        let fits = |(at, payload): &&(Place, Bytes)| {
            bytes += payload.len();
            at.barrier == place.barrier && (bytes <= limits.append_bytes || *at == place)
        };
        let messages = self.messages.range(from..).take(limits.append_messages).take_while(fits);
        let payloads = messages.map(|(_, payload)| payload.clone()).collect();
        Some(Append { channel: channel.clone(), since, place, payloads })
    }
}

fn weight_of(payload: &Bytes) -> usize {
    FIXED_WEIGHT + payload.len()
}

impl Member {
    /// Begins with a barrier.
    pub(super) fn new(since: u64) -> Self {
        let (channels, due, failed) = Default::default();
        let (next, earlier, left_at_barrier, weight, count) = Default::default();
        Self { since, next, earlier, barrier: since, channels, due, failed, left_at_barrier, weight, count }
    }

    pub(super) fn since(&self) -> u64 {
        self.since
    }

    /// Whether it is, or was, this member.
    pub(super) fn was(&self, since: u64) -> bool {
        self.since == since || self.earlier == Some(since)
    }

    /// The barrier from which on it is to be a member anew.
    pub(super) fn next(&self) -> Option<u64> {
        self.next
    }

    /// The size of the messages, in bytes.
    pub(super) fn weight(&self) -> usize {
        self.weight
    }

    /// How many messages there are.
    pub(super) fn len(&self) -> usize {
        self.count
    }

    /// Whether it remembers so many channels that another barrier, which lets it forget them, is worth it.
    pub(super) fn has_many_channels(&self, most: usize) -> bool {
        self.channels.len() >= most + 2 * self.left_at_barrier
    }

    /// Handles a barrier of its own. If it is not the first one, a new membership begins with it.
    pub(super) fn on_own_barrier(&mut self, number: u64) {
        if number != self.since {
            self.next = Some(number);
            self.on_barrier(number);
        }
    }

    /// Handles a barrier: counting starts again.
    pub(super) fn on_barrier(&mut self, number: u64) {
        self.barrier = number;
        self.channels.retain(|_, waiting| !waiting.messages.is_empty() || waiting.in_flight);
        self.left_at_barrier = self.channels.len();
    }

    /// Holds a message until its marker arrives.
    pub(super) fn on_plain(&mut self, channel: &ChannelName, payload: Bytes) {
        self.weight += weight_of(&payload);
        self.count += 1;
        let barrier = self.barrier;
        let waiting = match self.channels.get_mut(channel) {
            Some(waiting) => waiting,
            None => self.channels.entry(channel.clone()).or_default(),
        };
        let place = if waiting.next.barrier == barrier { waiting.next } else { Place::new(barrier, 0) };
        waiting.next = place.plus(1);
        waiting.push(place, payload);
        // If it is not the first one, the channel is due already, or in flight.
        if waiting.is_due() && !self.due.contains(channel) && !self.failed.contains(channel) {
            self.due.insert(channel.clone());
        }
    }

    /// Tries again what had no success.
    pub(super) fn retry(&mut self) {
        self.due.append(&mut self.failed);
    }

    /// Whether a request had no success.
    pub(super) fn has_failed(&self) -> bool {
        !self.failed.is_empty()
    }

    /// Passes on the messages that a marker announces, or reports that some have not been received here.
    /// Returns how many messages it drops because the marker leaves them out.
    pub(super) fn on_marker(&mut self, marker: &Marker, out: &mut dyn FnMut(Event)) -> u64 {
        let Some(waiting) = self.channels.get_mut(&marker.channel) else {
            out(Event::Missed(marker.channel.clone()));
            return 0;
        };
        let end = marker.place.plus(marker.count);
        waiting.appended = waiting.appended.max(end);
        let (mut freed, passed) = waiting.drop_while(|at, _| at < marker.place);
        let count = waiting.messages.partition_point(|(place, _)| *place < end);
        let bytes = waiting.messages.range(..count).map(|(_, payload)| payload.len()).sum::<usize>();
        let is_complete = count == marker.count && bytes == marker.bytes;
        waiting.weight -= count * FIXED_WEIGHT + bytes;
        freed += count * FIXED_WEIGHT + bytes;
        let mut position = marker.first;
        for (_, payload) in waiting.messages.drain(..count) {
            if is_complete {
                let message = Message { position: Some(position), stamp: marker.stamp, ..Message::plain(payload) };
                out(Event::Arrived(marker.channel.clone(), message));
                position = Position::next(position);
            }
        }
        if !is_complete {
            out(Event::Missed(marker.channel.clone()));
        }
        self.weight -= freed;
        self.count -= count + passed;
        if !waiting.is_due() {
            self.due.remove(&marker.channel);
            self.failed.remove(&marker.channel);
        }
        passed as u64
    }

    /// The size of the messages of each channel, in bytes.
    pub(super) fn weights(&self) -> impl Iterator<Item = usize> {
        self.channels.values().map(|waiting| waiting.weight)
    }

    /// Drops the oldest messages of each channel that has more than so many bytes. Returns how many. The others
    /// keep their places.
    pub(super) fn shorten_to(&mut self, most: usize) -> u64 {
        let before = self.count;
        for waiting in self.channels.values_mut().filter(|waiting| waiting.weight > most) {
            let (weight, count) = waiting.drop_while(|_, weight| weight > most);
            self.weight -= weight;
            self.count -= count;
        }
        (before - self.count) as u64
    }

    /// The next request of each channel that has none in flight.
    pub(super) fn appends(&mut self, limits: &Limits) -> Vec<Append> {
        let mut appends = Vec::new();
        for channel in std::mem::take(&mut self.due) {
            let Some(waiting) = self.channels.get_mut(&channel) else { continue };
            if let Some(append) = waiting.append(&channel, self.since, limits) {
                waiting.in_flight = true;
                appends.push(append);
            }
        }
        appends
    }

    /// Handles the answer to a request.
    pub(super) fn on_answer(&mut self, channel: &ChannelName, answer: Answer) {
        let Some(waiting) = self.channels.get_mut(channel) else { return };
        waiting.in_flight = false;
        let is_done = if let Answer::Through(place) = answer {
            waiting.appended = waiting.appended.max(place);
            true
        } else {
            false
        };
        if waiting.is_due() {
            if is_done { &mut self.due } else { &mut self.failed }.insert(channel.clone());
        }
    }

    /// After the end of the subscription, when no markers arrive any more: drops what has been appended.
    pub(super) fn drop_appended(&mut self) {
        for waiting in self.channels.values_mut() {
            let appended = waiting.appended;
            let (weight, count) = waiting.drop_while(|at, _| at < appended);
            self.weight -= weight;
            self.count -= count;
        }
        self.channels.retain(|_, waiting| !waiting.messages.is_empty() || waiting.in_flight);
    }

    /// Ends the earlier membership, if there is a later one and all messages before it have been appended.
    /// Returns the earlier one.
    pub(super) fn become_younger(&mut self) -> Option<u64> {
        let place = Place::new(self.next?, 0);
        let is_before = |waiting: &Waiting| {
            let from = waiting.messages.partition_point(|(at, _)| *at < waiting.appended);
            waiting.messages.get(from).is_some_and(|(at, _)| *at < place)
        };
        if self.channels.values().any(is_before) {
            return None;
        }
        self.earlier = Some(self.since);
        self.since = self.next.take()?;
        self.earlier
    }

    /// Whether there is nothing to append and no request in flight.
    pub(super) fn is_done(&self) -> bool {
        self.channels.values().all(|waiting| waiting.messages.is_empty() && !waiting.in_flight)
    }
}
