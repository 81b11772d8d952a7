//! What Redis does for the numbering, as `functions/number.lua` does it: the table of members, barriers, and the
//! appending of messages. Each guard can be taken away, to see that the explorer notices.

use std::collections::BTreeSet;

use bytes::Bytes;
use livebridge::broker::redis::numbering::{Announcement, Answer, Append, Marker, Place};
use livebridge::message::Position;

/// A rule of the algorithm that can be broken on purpose.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Guard {
    /// The function appends only what lies behind the place up to which it has appended.
    PlacesAreCompared,
    /// The function passes messages over only if no older member is left.
    OlderMembersFirst,
    /// A barrier makes its member known in the same step.
    BarrierRegisters,
    /// A subscription counts messages only after its own barrier.
    CountingBeginsAtABarrier,
    /// All members start to count again at each barrier.
    EveryBarrierCounts,
    /// A member whose subscription has ended appends what it holds.
    EndedMembersAppend,
    /// A member leaves only when it holds nothing that others may lack.
    LeavesLast,
    /// An ended member is renewed until it has appended what it holds.
    EndedMembersAreRenewed,
    /// The marker is published in the same step as the messages are appended.
    MarkerIsAtomic,
    /// What is dropped because there is no room is the oldest, and has a place.
    DroppedMessagesHavePlaces,
    /// What is sent next says that everything before is appended only if that is known.
    OneRequestAtATime,
    /// The number of a barrier is higher than all that an instance has seen.
    BarriersRise,
}

/// What a subscriber receives.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Received {
    Plain(u8),
    /// A payload that livebridge_publish has stored at a position.
    Stored(u8, Position),
    Marker(Marker),
    Announcement(Announcement),
}

/// The data in Redis.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub(crate) struct Ledger {
    pub(crate) members: BTreeSet<u64>,
    barrier: u64,
    /// The clock of Redis, which goes on when the data is lost. It is the least number of the next barrier.
    clock: u64,
    appended: Option<Place>,
    pub(crate) epoch: u64,
    pub(crate) history: Vec<u8>,
}

/// What a call does.
pub(crate) struct Outcome {
    pub(crate) answer: Answer,
    /// The messages that it has appended.
    pub(crate) appended: Vec<u8>,
    pub(crate) published: Vec<Received>,
}

impl Ledger {
    fn announce(&self, barrier: Option<(u64, u64)>) -> Received {
        Received::Announcement(Announcement { barrier, members: self.members.iter().copied().collect() })
    }

    /// Gives a barrier to a new member.
    pub(crate) fn join(&mut self, word: u64, highest: u64, broken: Option<Guard>) -> Received {
        let least = if broken == Some(Guard::BarriersRise) { 0 } else { highest.max(self.clock) };
        self.barrier = self.barrier.max(least) + 1;
        self.clock = self.barrier;
        if broken != Some(Guard::BarrierRegisters) {
            self.members.insert(self.barrier);
        }
        self.announce(Some((self.barrier, word)))
    }

    pub(crate) fn renew(&mut self, members: &[u64]) -> Received {
        self.members.extend(members);
        self.announce(None)
    }

    pub(crate) fn remove(&mut self, member: u64) -> Received {
        self.members.remove(&member);
        self.announce(None)
    }

    /// Redis comes back without data.
    pub(crate) fn lose_everything(&mut self) {
        *self = Self { epoch: self.epoch + 1, clock: self.clock, ..Self::default() };
    }

    /// livebridge_publish.
    pub(crate) fn publish(&mut self, payload: u8) -> Received {
        self.history.push(payload);
        Received::Stored(payload, self.tail())
    }

    fn tail(&self) -> Position {
        Position::new(self.epoch, self.history.len() as u64)
    }

    /// livebridge_number.
    pub(crate) fn append(&mut self, request: &Append, broken: Option<Guard>) -> Outcome {
        let appended = self.appended.unwrap_or_default();
        let end = request.place.plus(request.payloads.len());
        let nothing = |answer| Outcome { answer, appended: Vec::new(), published: Vec::new() };
        let compares = broken != Some(Guard::PlacesAreCompared);
        if compares && appended >= end {
            return nothing(Answer::Through(appended));
        }
        let is_older = self.members.iter().any(|member| *member < request.since);
        if appended.barrier < request.since && is_older && broken != Some(Guard::OlderMembersFirst) {
            return nothing(Answer::Older);
        }
        let is_here = compares && appended.barrier == request.place.barrier;
        let skip = if is_here { appended.index.saturating_sub(request.place.index) as usize } else { 0 };
        let new: Vec<u8> = request.payloads[skip..].iter().map(byte).collect();
        let first = self.tail().next();
        self.history.extend(&new);
        self.appended = Some(end);
        let (place, count, bytes) = (request.place.plus(skip), new.len(), new.len());
        let marker = Marker { channel: request.channel.clone(), first, stamp: 1, place, count, bytes };
        Outcome { answer: Answer::Through(end), appended: new, published: vec![Received::Marker(marker)] }
    }
}

/// The payload of a message is its number.
pub(crate) fn byte(payload: &Bytes) -> u8 {
    payload[0]
}
