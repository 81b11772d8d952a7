//! Checks each delivery (lost, duplicated, out of order or changed) and counts it towards the
//! publisher's window. A message with a changed byte counts as changed and, since the correct
//! message never arrived, as lost.

use std::collections::{BTreeSet, HashMap};

use serde_json::{Value, json};

use crate::histogram::Histogram;
use crate::message::Message;

/// The number of messages whose bytes are kept to compare later deliveries with; more than any
/// window.
const REFERENCE: usize = 1024;

/// Maximum number of remembered gaps, in case a server loses nearly everything.
const HOLES: usize = 1_000_000;

/// The state of all subscribers of a reader process.
pub(crate) struct DeliveryCheck {
    streams: usize,
    /// Per subscriber and stream, the next expected sequence; 0 before the first message.
    next: Vec<u32>,
    /// Per stream, the first sequence that counts. Earlier messages belong to the warm-up.
    base: Vec<u32>,
    /// Channel → number of its subscribers in this process.
    subscribers: HashMap<u32, u32>,
    /// (channel, sequence) → number of subscribers that have received it, until all have.
    partly: HashMap<(u32, u32), u32>,
    /// For one channel and one stream: `partly` as a ring buffer, with the bytes of recent
    /// messages.
    ring: Vec<Slot>,
    holes: HashMap<usize, BTreeSet<u32>>,
    hole_count: usize,
    latencies: Histogram,
    /// Messages that all their subscribers in this process have received.
    pub(crate) completed: u64,
    pub(crate) delivered: u64,
    /// Subscribers that have received at least one message.
    pub(crate) seen: u64,
    doubled: u64,
    reordered: u64,
    changed: u64,
    lost: u64,
}

#[derive(Clone, Default)]
struct Slot {
    sequence: u32,
    due: u64,
    count: u32,
    payload: Vec<u8>,
}

impl DeliveryCheck {
    /// For subscribers of these channels, in order; `None` for a subscriber that never reads.
    pub(crate) fn new(channels: &[Option<u32>], streams: usize) -> Self {
        let mut subscribers = HashMap::new();
        for channel in channels.iter().flatten() {
            *subscribers.entry(*channel).or_insert(0) += 1;
        }
        let shared = subscribers.len() == 1 && streams == 1;
        Self {
            streams,
            next: vec![0; channels.len() * streams],
            base: vec![1; streams],
            ring: vec![Slot::default(); if shared { REFERENCE } else { 0 }],
            subscribers,
            partly: HashMap::new(),
            holes: HashMap::new(),
            hole_count: 0,
            latencies: Histogram::new(),
            completed: 0,
            delivered: 0,
            seen: 0,
            doubled: 0,
            reordered: 0,
            changed: 0,
            lost: 0,
        }
    }

    /// Checks a payload that `subscriber`, of `channel`, has received.
    pub(crate) fn deliver(&mut self, subscriber: usize, channel: u32, payload: &[u8], now: u64) {
        if !self.ring.is_empty() {
            // Usually the same message was already parsed for another subscriber, and only its
            // bytes are compared.
            let expected = self.next[subscriber];
            let slot = &self.ring[expected as usize % REFERENCE];
            if expected != 0 && slot.sequence == expected && slot.payload == payload {
                let due = slot.due;
                return self.accept(subscriber, channel, 0, expected, due, now);
            }
        }
        let Some(message) = Message::parse(payload) else {
            self.changed += 1;
            return;
        };
        if message.channel != channel || usize::from(message.stream) >= self.streams {
            self.changed += 1;
            return;
        }
        if !self.ring.is_empty() {
            let slot = &mut self.ring[message.sequence as usize % REFERENCE];
            if slot.sequence < message.sequence {
                slot.sequence = message.sequence;
                slot.due = message.due;
                slot.count = 0;
                slot.payload.clear();
                slot.payload.extend_from_slice(payload);
            }
        }
        self.accept(subscriber, channel, usize::from(message.stream), message.sequence, message.due, now);
    }

    /// Counts a message that another subscriber has parsed before.
    pub(crate) fn count(&mut self, subscriber: usize, channel: u32, sequence: u32, now: u64) {
        let due = self.ring.get(sequence as usize % REFERENCE).map_or(now, |slot| slot.due);
        self.accept(subscriber, channel, 0, sequence, due, now);
    }

    /// The newest sequence that a subscriber has received; 0 before the first message.
    pub(crate) fn newest(&self, subscriber: usize) -> u32 {
        self.next[subscriber * self.streams].saturating_sub(1)
    }

    fn accept(&mut self, subscriber: usize, channel: u32, stream: usize, sequence: u32, due: u64, now: u64) {
        let index = subscriber * self.streams + stream;
        let next = &mut self.next[index];
        if *next == sequence {
            *next += 1;
        } else if *next == 0 {
            *next = sequence + 1;
            self.seen += 1;
        } else if !self.out_of_line(index, stream, sequence) {
            return;
        }
        if sequence < self.base[stream] {
            return;
        }
        self.delivered += 1;
        self.latencies.record(now.saturating_sub(due));
        self.complete(channel, sequence);
    }

    /// Handles an unexpected sequence; true if it still counts as a delivery.
    fn out_of_line(&mut self, index: usize, stream: usize, sequence: u32) -> bool {
        let next = self.next[index];
        if sequence > next {
            if self.hole_count < HOLES {
                self.holes.entry(index).or_default().extend(next..sequence);
                self.hole_count += (sequence - next) as usize;
            } else {
                self.lost += u64::from(sequence - next);
            }
            self.next[index] = sequence + 1;
            return true;
        }
        if self.holes.get_mut(&index).is_some_and(|holes| holes.remove(&sequence)) {
            self.hole_count -= 1;
            self.reordered += 1;
            return true;
        }
        if sequence >= self.base[stream] {
            self.doubled += 1;
        }
        false
    }

    fn complete(&mut self, channel: u32, sequence: u32) {
        if self.streams > 1 {
            return;
        }
        let wanted = self.subscribers.get(&channel).copied().unwrap_or(0);
        if wanted == 1 {
            self.completed += 1;
            return;
        }
        if !self.ring.is_empty() {
            let slot = &mut self.ring[sequence as usize % REFERENCE];
            slot.count += 1;
            self.completed += u64::from(slot.count == wanted);
            return;
        }
        let count = self.partly.entry((channel, sequence)).or_insert(0);
        *count += 1;
        if *count == wanted {
            self.partly.remove(&(channel, sequence));
            self.completed += 1;
        }
    }

    /// Resets all counts. From here on, each stream must deliver everything from its sequence in
    /// `base`.
    pub(crate) fn restart(&mut self, base: &[u32]) {
        self.base = base.to_vec();
        for (index, next) in self.next.iter_mut().enumerate() {
            *next = base[index % self.streams];
        }
        self.partly.clear();
        self.ring.fill(Slot::default());
        self.holes.clear();
        self.hole_count = 0;
        self.latencies.clear();
        (self.completed, self.delivered) = (0, 0);
        (self.doubled, self.reordered, self.changed, self.lost) = (0, 0, 0, 0);
    }

    /// The counts of lost and changed messages, given the last sequence of each stream. `reads`
    /// says which subscribers count.
    pub(crate) fn summary(&self, last: &[u32], reads: impl Fn(usize) -> bool) -> Value {
        let mut lost = self.lost + self.hole_count as u64;
        for (index, next) in self.next.iter().enumerate() {
            if reads(index / self.streams) {
                lost += u64::from((last[index % self.streams] + 1).saturating_sub(*next));
            }
        }
        json!({
            "delivered": self.delivered,
            "lost": lost,
            "doubled": self.doubled,
            "reordered": self.reordered,
            "changed": self.changed,
            "latencies": self.latencies.to_json(),
        })
    }
}
