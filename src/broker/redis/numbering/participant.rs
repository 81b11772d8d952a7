//! The part of one instance in the numbering: its present member, and earlier ones whose subscription has
//! ended and which still hold messages.

use std::collections::VecDeque;

use bytes::Bytes;

use super::member::{Answer, Limits, Member};
use super::request::{Announcement, Append, Marker};
use crate::broker::Event;
use crate::channel::ChannelName;
use crate::fair_share::fair_size;

/// The maximum number of members whose subscription has ended. Beyond it, the oldest is dropped.
const MOST_ENDED: usize = 4;
/// See [`Member::has_many_channels`].
const MANY_CHANNELS: usize = 10_000;

/// A barrier had no higher number than the one before it, so places would not be unique. The connection
/// must be replaced.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the barriers of the numbering are out of order")]
pub struct Disorder;

/// The part of one instance.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Participant {
    limits: Limits,
    /// The word of the barrier that it waits for.
    joining: Option<u64>,
    current: Option<Member>,
    ended: VecDeque<Member>,
    /// The members, as announced last.
    members: Vec<u64>,
    /// The highest barrier that it knows of.
    highest: u64,
    lost: u64,
}

impl Participant {
    /// Creates an instance without a connection.
    pub fn new(limits: Limits) -> Self {
        let (ended, members) = Default::default();
        Self { limits, joining: None, current: None, ended, members, highest: 0, lost: 0 }
    }

    /// A new connection is subscribed, and asks Redis for a barrier with this word, which is unique. Until the
    /// barrier arrives, it cannot know the places of the messages that it receives, and ignores them.
    pub fn on_connected(&mut self, word: u64) {
        self.joining = Some(word);
    }

    /// The highest barrier that it knows of. Redis must give the next one a higher number.
    pub fn highest_barrier(&self) -> u64 {
        self.highest
    }

    /// Handles what Redis tells all members.
    ///
    /// # Errors
    /// [`Disorder`] if the connection must be replaced.
    pub fn on_announcement(&mut self, announcement: Announcement) -> Result<(), Disorder> {
        self.members = announcement.members;
        self.retry();
        let Some((number, word)) = announcement.barrier else { return Ok(()) };
        let is_in_order = number > self.highest;
        self.highest = self.highest.max(number);
        if !is_in_order {
            return Err(Disorder);
        }
        if self.joining == Some(word) {
            self.joining = None;
            self.current.get_or_insert_with(|| Member::new(number)).on_own_barrier(number);
        } else if let Some(member) = &mut self.current {
            member.on_barrier(number);
        }
        Ok(())
    }

    /// Holds a plain message until its marker arrives.
    pub fn on_plain(&mut self, channel: &ChannelName, payload: Bytes) {
        self.make_room();
        if let Some(member) = &mut self.current {
            member.on_plain(channel, payload);
        }
    }

    /// If too much waits, the channels with the most drop their oldest messages, down to a common size. So a
    /// channel that Redis refuses costs the others nothing. Makes more room than needed, so that the next messages
    /// do not have to look through all channels again.
    fn make_room(&mut self) {
        let most = self.limits.waiting_bytes;
        if self.waiting_bytes() <= most {
            return;
        }
        let sizes = self.ended.iter().chain(&self.current).flat_map(Member::weights).collect();
        let size = fair_size(sizes, most - most / 64);
        let members = self.ended.iter_mut().chain(&mut self.current);
        self.lost += members.map(|member| member.shorten_to(size)).sum::<u64>();
    }

    /// Passes on the messages that a marker announces.
    pub fn on_marker(&mut self, marker: &Marker, out: &mut dyn FnMut(Event)) {
        match &mut self.current {
            Some(member) => self.lost += member.on_marker(marker, out),
            None => out(Event::Missed(marker.channel.clone())),
        }
    }

    /// The connection has ended. Its member still appends what it holds, because other members may not have
    /// received it.
    pub fn on_disconnected(&mut self) {
        self.joining = None;
        self.members.clear();
        let Some(mut member) = self.current.take() else { return };
        member.drop_appended();
        self.ended.push_back(member);
        while self.ended.len() > MOST_ENDED {
            self.lost += self.ended.pop_front().map_or(0, |member| member.len() as u64);
        }
    }

    /// Whether its present member is the leader.
    pub fn is_leader(&self) -> bool {
        self.current.as_ref().is_some_and(|member| self.members.first() == Some(&member.since()))
    }

    /// The requests to send now.
    pub fn appends(&mut self) -> Vec<Append> {
        let is_leader = self.is_leader();
        let current = self.current.iter_mut().filter(|_| is_leader);
        self.ended.iter_mut().chain(current).flat_map(|member| member.appends(&self.limits)).collect()
    }

    /// Handles the answer to a request of a member.
    pub fn on_answer(&mut self, since: u64, channel: &ChannelName, answer: Answer) {
        if let Some(member) = self.current.as_mut().filter(|member| member.was(since)) {
            member.on_answer(channel, answer);
        }
        if let Some(member) = self.ended.iter_mut().find(|member| member.was(since)) {
            member.on_answer(channel, answer);
            member.drop_appended();
        }
    }

    /// Tries again what had no success: the present member after each announcement by itself, ended ones
    /// after this.
    pub fn retry(&mut self) {
        self.ended.iter_mut().chain(&mut self.current).for_each(Member::retry);
    }

    /// Whether a request had no success.
    pub fn has_failed(&self) -> bool {
        self.ended.iter().chain(&self.current).any(Member::has_failed)
    }

    /// Gives up the lead, because the instance is about to stop: it joins once more, as the youngest member, with
    /// a barrier with this word, and its earlier membership ends as soon as all messages before the barrier have
    /// been appended. Returns whether to ask Redis for the barrier.
    pub fn leave(&mut self, word: u64) -> bool {
        let can_leave = self.current.is_some() && self.joining.is_none();
        if can_leave {
            self.joining = Some(word);
        }
        can_leave
    }

    /// The members to renew in Redis, regularly.
    pub fn to_renew(&self) -> Vec<u64> {
        let next = self.current.iter().filter_map(Member::next);
        self.ended.iter().chain(&self.current).map(Member::since).chain(next).collect()
    }

    /// The members to remove from Redis now. Each is returned once.
    pub fn to_remove(&mut self) -> Vec<u64> {
        let done: Vec<_> = self.ended.iter().filter(|member| member.is_done()).map(Member::since).collect();
        self.ended.retain(|member| !done.contains(&member.since()));
        done.into_iter().chain(self.current.as_mut().and_then(Member::become_younger)).collect()
    }

    /// Whether the leader should ask for a barrier, so that all members can forget channels.
    pub fn wants_barrier(&self) -> bool {
        self.is_leader() && self.current.as_ref().is_some_and(|member| member.has_many_channels(MANY_CHANNELS))
    }

    /// The size of the messages that wait, in bytes.
    pub fn waiting_bytes(&self) -> usize {
        self.ended.iter().chain(&self.current).map(Member::weight).sum()
    }

    /// How many messages wait for their markers.
    pub fn waiting(&self) -> usize {
        self.ended.iter().chain(&self.current).map(Member::len).sum()
    }

    /// How many messages were dropped without a position, since the last call.
    pub fn take_lost(&mut self) -> u64 {
        std::mem::take(&mut self.lost)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::redis::numbering::Place;
    use crate::message::Position;

    const LIMITS: Limits = Limits { waiting_bytes: 100_000, append_messages: 10, append_bytes: 1000 };

    fn leader() -> Participant {
        let mut participant = Participant::new(LIMITS);
        participant.on_connected(5);
        let announcement = Announcement { barrier: Some((7, 5)), members: vec![7] };
        participant.on_announcement(announcement).expect("the first barrier");
        participant
    }

    #[test]
    fn a_channel_that_is_refused_loses_its_oldest_messages_and_the_others_none() {
        let channel = |name: &str| name.parse::<ChannelName>().expect("valid");
        let (good, bad) = (channel("good"), channel("bad"));
        let mut leader = leader();
        let payload = |number: usize| Bytes::from(format!("{number:01000}"));
        for number in 0..300 {
            leader.on_plain(&bad, payload(number));
            if number % 30 == 0 {
                leader.on_plain(&good, payload(number));
            }
            assert!(leader.waiting_bytes() < LIMITS.waiting_bytes + 1100, "{}", leader.waiting_bytes());
        }
        let lost = leader.take_lost() as usize;
        assert_eq!(leader.waiting(), 310 - lost);
        assert!((200..220).contains(&lost), "{lost}");
        let appends = leader.appends();
        let first = |channel: &ChannelName| {
            let append = appends.iter().find(|append| append.channel == *channel).expect("it is due");
            (append.place, append.payloads[0].clone())
        };
        assert_eq!(first(&good), (Place::new(7, 0), payload(0)));
        assert_eq!(first(&bad), (Place::new(7, lost as u64), payload(lost)), "the others keep their places");
        let first = Position::new(1, 1);
        let marker =
            Marker { channel: good.clone(), first, stamp: 1, place: Place::new(7, 0), count: 10, bytes: 10_000 };
        let mut arrived = 0;
        leader.on_marker(&marker, &mut |event| arrived += u64::from(matches!(event, Event::Arrived(..))));
        assert_eq!((arrived, leader.take_lost(), leader.waiting()), (10, 0, 300 - lost));
    }
}
