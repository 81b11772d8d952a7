//! Instances, a Redis, and everything that can happen between them: one step at a time, and after each the
//! promises are checked. The code of the instances is the code that runs in livebridge.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use livebridge::broker::Event;
use livebridge::broker::redis::numbering::{Answer, Append, Limits, Participant};
use livebridge::channel::ChannelName;
use livebridge::message::Position;

use crate::action::{Action, Budget};
use crate::ledger::{Guard, Ledger, Received, byte};

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum Request {
    Join { word: u64, highest: u64 },
    Append(Append),
    Renew(Vec<u64>),
    Remove(u64),
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct InFlight {
    instance: usize,
    /// Which of the processes that ran as this instance; `None` if nobody waits for the answer.
    process: Option<u64>,
    request: Request,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Instance {
    pub(crate) participant: Participant,
    process: u64,
    /// What Redis has sent on the subscription, unless it is cut.
    pub(crate) connection: Option<VecDeque<Received>>,
    /// The member of the present connection.
    pub(crate) since: Option<u64>,
    /// All members that this process has been.
    memberships: Vec<u64>,
    word: u64,
    pub(crate) delivered: Option<Position>,
    is_leaving: bool,
}

/// The whole system, and what the checks must remember.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct World {
    pub(crate) redis: Ledger,
    pub(crate) instances: Vec<Instance>,
    pub(crate) in_flight: Vec<InFlight>,
    pub(crate) budget: Budget,
    limits: Limits,
    broken: Option<Guard>,
    next_payload: u8,
    next_word: u64,
    /// Plain messages that have had a position.
    pub(crate) numbered: BTreeSet<u8>,
    /// Which members have received a plain message.
    pub(crate) received: BTreeMap<u8, BTreeSet<u64>>,
    /// Members that have not lived through: expired, killed, or forgotten by a Redis that lost its data.
    pub(crate) excused: BTreeSet<u64>,
    /// Plain messages that waited when an instance had no room for all of them.
    pub(crate) dropped: BTreeSet<u8>,
    /// The histories that were, by epoch.
    histories: Vec<Vec<u8>>,
    /// A marker that is not published yet, where the guard against it is broken.
    late_marker: Option<Received>,
}

pub(crate) type Checked = Result<(), String>;

fn channel() -> ChannelName {
    "orders".parse().expect("a valid name")
}

impl World {
    pub(crate) fn new(instances: usize, budget: Budget, limits: Limits, broken: Option<Guard>) -> Self {
        let instance = |number: usize| Instance {
            participant: Participant::new(limits),
            process: number as u64,
            connection: None,
            since: None,
            memberships: Vec::new(),
            word: 0,
            delivered: None,
            is_leaving: false,
        };
        Self {
            redis: Ledger::default(),
            instances: (0..instances).map(instance).collect(),
            in_flight: Vec::new(),
            budget,
            limits,
            broken,
            next_payload: 1,
            next_word: 100,
            numbered: BTreeSet::new(),
            received: BTreeMap::new(),
            excused: BTreeSet::new(),
            dropped: BTreeSet::new(),
            histories: Vec::new(),
            late_marker: None,
        }
    }

    /// Everything that can happen now.
    pub(crate) fn actions(&self) -> Vec<Action> {
        let mut actions = Vec::new();
        let faults = self.budget.faults > 0;
        let mut add = |possible: bool, action: Action| actions.extend(possible.then_some(action));
        add(self.budget.plain > 0, Action::Publish);
        add(self.budget.stored > 0, Action::PublishStored);
        for (index, instance) in self.instances.iter().enumerate() {
            add(instance.connection.is_none(), Action::Connect(index));
            add(instance.connection.as_ref().is_some_and(|buffer| !buffer.is_empty()), Action::Receive(index));
            add(faults && instance.connection.is_some(), Action::Cut(index));
            add(faults, Action::Kill(index));
            add(faults && !instance.is_leaving && instance.since.is_some(), Action::Leave(index));
            let renews = instance.participant.to_renew().iter().any(|member| !self.redis.members.contains(member));
            add(renews, Action::Renew(index));
            add(instance.participant.has_failed(), Action::Retry(index));
        }
        for (index, request) in self.in_flight.iter().enumerate() {
            add(true, Action::Execute(index));
            add(faults && request.process.is_some(), Action::ExecuteUnanswered(index));
            add(faults && request.process.is_some(), Action::GiveUp(index));
        }
        self.redis.members.iter().for_each(|member| add(faults, Action::Expire(*member)));
        add(self.budget.restarts > 0, Action::Restart);
        add(self.budget.empty_restarts > 0, Action::RestartEmpty);
        actions
    }

    /// Does one thing, and checks the promises.
    pub(crate) fn apply(&mut self, action: Action) -> Checked {
        if action.fault().is_some() {
            self.budget.faults = self.budget.faults.saturating_sub(1);
        }
        self.perform(action)?;
        self.send_requests();
        self.check_history()
    }

    fn perform(&mut self, action: Action) -> Checked {
        match action {
            Action::Publish => {
                self.budget.plain -= 1;
                let payload = self.take_payload();
                self.broadcast(&Received::Plain(payload));
            }
            Action::PublishStored => {
                self.budget.stored -= 1;
                let payload = self.take_payload();
                let stored = self.redis.publish(payload);
                self.broadcast(&stored);
            }
            Action::Connect(index) => self.connect(index),
            Action::Receive(index) => return self.receive(index),
            Action::Execute(index) => return self.execute(index, true),
            Action::ExecuteUnanswered(index) => return self.execute(index, false),
            Action::GiveUp(index) => {
                let request = self.in_flight[index].clone();
                self.in_flight[index].process = None;
                self.answer(&request, Answer::Failed);
            }
            Action::Cut(index) => self.cut(index),
            Action::Kill(index) => self.kill(index),
            Action::Expire(member) => {
                self.excused.insert(member);
                let removed = self.redis.remove(member);
                self.broadcast(&removed);
            }
            Action::Renew(index) => {
                let members = self.instances[index].participant.to_renew();
                self.send(index, Request::Renew(members));
            }
            Action::Leave(index) => self.leave(index),
            Action::Retry(index) => self.instances[index].participant.retry(),
            Action::Restart => {
                self.budget.restarts -= 1;
                (0..self.instances.len()).for_each(|index| self.cut(index));
            }
            Action::RestartEmpty => {
                self.budget.empty_restarts -= 1;
                (0..self.instances.len()).for_each(|index| self.cut(index));
                // What was under way was under way to the process that has ended.
                self.give_up_all();
                self.excused.extend(&self.redis.members);
                let all: Vec<u64> = self.received.values().flatten().copied().collect();
                self.excused.extend(all);
                self.histories.push(self.redis.history.clone());
                self.redis.lose_everything();
            }
        }
        Ok(())
    }

    fn leave(&mut self, index: usize) {
        self.next_word += 1;
        let word = self.next_word;
        let instance = &mut self.instances[index];
        instance.is_leaving = true;
        let (since, highest) = (instance.since, instance.participant.highest_barrier());
        if instance.participant.leave(word) {
            instance.word = word;
            self.send(index, Request::Join { word, highest });
            if self.broken == Some(Guard::LeavesLast) {
                since.into_iter().for_each(|since| self.send(index, Request::Remove(since)));
            }
        }
    }

    fn take_payload(&mut self) -> u8 {
        self.next_payload += 1;
        self.next_payload - 1
    }

    pub(crate) fn broadcast(&mut self, message: &Received) {
        self.instances.iter_mut().filter_map(|it| it.connection.as_mut()).for_each(|it| it.push_back(message.clone()));
    }

    fn connect(&mut self, index: usize) {
        self.next_word += 1;
        let word = self.next_word;
        let instance = &mut self.instances[index];
        instance.connection = Some(VecDeque::new());
        instance.word = word;
        instance.participant.on_connected(word);
        let highest = instance.participant.highest_barrier();
        self.send(index, Request::Join { word, highest });
    }

    fn send(&mut self, index: usize, request: Request) {
        let process = Some(self.instances[index].process);
        let request = InFlight { instance: index, process, request };
        if !self.in_flight.contains(&request) {
            self.in_flight.push(request);
        }
    }

    /// What the code of an instance wants to send after each step.
    fn send_requests(&mut self) {
        for index in 0..self.instances.len() {
            let participant = &mut self.instances[index].participant;
            let (appends, removes) = (participant.appends(), participant.to_remove());
            for append in appends {
                let (since, channel) = (append.since, append.channel.clone());
                let first = append.place.plus(append.payloads.len());
                self.send(index, Request::Append(append));
                if self.broken == Some(Guard::OneRequestAtATime) {
                    self.instances[index].participant.on_answer(since, &channel, Answer::Through(first));
                }
            }
            removes.into_iter().for_each(|member| self.send(index, Request::Remove(member)));
        }
    }

    fn receive(&mut self, index: usize) -> Checked {
        let instance = &mut self.instances[index];
        let received = instance.connection.as_mut().and_then(VecDeque::pop_front).expect("something has been sent");
        match received {
            Received::Plain(payload) => self.receive_plain(index, payload),
            Received::Stored(payload, position) => self.check_delivery(index, payload, position)?,
            Received::Announcement(mut announcement) => {
                let own = announcement.barrier.is_some_and(|(_, word)| word == instance.word);
                if own {
                    instance.since = announcement.barrier.map(|(number, _)| number);
                    instance.memberships.extend(instance.since);
                } else if self.broken == Some(Guard::EveryBarrierCounts) && index == 0 {
                    announcement.barrier = None;
                }
                if instance.participant.on_announcement(announcement).is_err()
                    && self.broken != Some(Guard::BarriersRise)
                {
                    self.cut(index);
                }
            }
            Received::Marker(marker) => {
                let mut events = Vec::new();
                instance.participant.on_marker(&marker, &mut |event| events.push(event));
                let lost = instance.participant.take_lost();
                if lost > 0 && self.excused.is_empty() && self.dropped.is_empty() {
                    return Err(format!("instance {index} holds {lost} messages that were passed over"));
                }
                for event in events {
                    if let Event::Arrived(_, message) = event {
                        let position = message.position.expect("a marker gives positions");
                        self.check_delivery(index, byte(&message.payload), position)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn receive_plain(&mut self, index: usize, payload: u8) {
        let broken = self.broken;
        let instance = &mut self.instances[index];
        if broken == Some(Guard::CountingBeginsAtABarrier) && instance.since.is_none() {
            // Takes the messages that it receives first for those after the last barrier.
            let (word, number) = (instance.word, self.next_word);
            let barrier = livebridge::broker::redis::numbering::Announcement {
                barrier: Some((self.redis.members.first().copied().unwrap_or(number), word)),
                members: Vec::new(),
            };
            instance.since = barrier.barrier.map(|(number, _)| number);
            _ = instance.participant.on_announcement(barrier);
        }
        let is_full = instance.participant.waiting_bytes() > self.limits.waiting_bytes;
        if is_full && broken == Some(Guard::DroppedMessagesHavePlaces) {
            return;
        }
        let since = instance.since;
        instance.participant.on_plain(&channel(), Bytes::copy_from_slice(&[payload]));
        if instance.participant.take_lost() > 0 {
            // The oldest of those that wait, which is counted.
            self.dropped.extend(self.received.keys().filter(|payload| !self.numbered.contains(payload)));
        }
        if let Some(since) = since {
            self.received.entry(payload).or_default().insert(since);
        }
    }

    /// No instance may deliver another message at a position than the history has, nor go back.
    fn check_delivery(&mut self, index: usize, payload: u8, position: Position) -> Checked {
        let history = self.histories.get(position.epoch as usize).unwrap_or(&self.redis.history);
        if history.get(position.offset as usize - 1) != Some(&payload) {
            return Err(format!("instance {index} delivers {payload} at {position}, but the history is {history:?}"));
        }
        let delivered = &mut self.instances[index].delivered;
        if delivered.is_some_and(|it| (it.epoch, it.offset) >= (position.epoch, position.offset)) {
            return Err(format!("instance {index} delivers {position} after {delivered:?}"));
        }
        *delivered = Some(position);
        Ok(())
    }

    fn execute(&mut self, index: usize, is_answered: bool) -> Checked {
        let request = self.in_flight.remove(index);
        let mut answer = Answer::Failed;
        let published = match &request.request {
            Request::Join { word, highest } => vec![self.redis.join(*word, *highest, self.broken)],
            Request::Renew(members) => vec![self.redis.renew(members)],
            Request::Remove(member) => vec![self.redis.remove(*member)],
            Request::Append(append) => {
                let outcome = self.redis.append(append, self.broken);
                answer = outcome.answer;
                self.numbered.extend(&outcome.appended);
                if let Some(first) = outcome.appended.first() {
                    self.check_passed_over(*first)?;
                }
                outcome.published
            }
        };
        if self.broken == Some(Guard::MarkerIsAtomic) && matches!(request.request, Request::Append(_)) {
            let late = std::mem::replace(&mut self.late_marker, published.into_iter().next());
            late.iter().for_each(|marker| self.broadcast(marker));
        } else {
            published.iter().for_each(|message| self.broadcast(message));
        }
        self.answer(&request, if is_answered { answer } else { Answer::Failed });
        Ok(())
    }

    fn answer(&mut self, request: &InFlight, answer: Answer) {
        let instance = &mut self.instances[request.instance];
        if request.process != Some(instance.process) {
            return;
        }
        match &request.request {
            // The broken rule takes each request for done as soon as it is sent.
            Request::Append(_) if self.broken == Some(Guard::OneRequestAtATime) => {}
            Request::Append(append) => instance.participant.on_answer(append.since, &append.channel, answer),
            // Only the barrier itself says that it has joined; a failure ends the connection.
            Request::Join { word, .. } if *word == instance.word && answer == Answer::Failed => {}
            _ => {}
        }
    }

    fn cut(&mut self, index: usize) {
        let broken = self.broken;
        let instance = &mut self.instances[index];
        if instance.connection.take().is_none() {
            return;
        }
        if broken == Some(Guard::EndedMembersAppend) {
            instance.participant = Participant::new(self.limits);
        } else {
            instance.participant.on_disconnected();
        }
        if instance.participant.take_lost() > 0 {
            // There was no room for the oldest of them, which is counted.
            self.excused.extend(&instance.memberships);
        }
        let since = instance.since.take();
        if broken == Some(Guard::EndedMembersAreRenewed) {
            since.into_iter().for_each(|since| self.send(index, Request::Remove(since)));
        }
    }

    fn kill(&mut self, index: usize) {
        let instance = &mut self.instances[index];
        self.excused.extend(&instance.memberships);
        let process = instance.process + 100;
        let participant = Participant::new(self.limits);
        let (connection, since, memberships, word) = Default::default();
        let (delivered, is_leaving) = Default::default();
        *instance = Instance { participant, process, connection, since, memberships, word, delivered, is_leaving };
    }

    fn give_up_all(&mut self) {
        for request in std::mem::take(&mut self.in_flight) {
            self.answer(&request, Answer::Failed);
        }
    }

    /// A plain message may be passed over only if no living member has received it, or one had no room for it.
    fn check_passed_over(&self, first: u8) -> Checked {
        let is_passed =
            |payload: &u8| *payload < first && !self.numbered.contains(payload) && !self.dropped.contains(payload);
        let passed = self.received.iter().filter(|(payload, _)| is_passed(payload));
        for (payload, members) in passed {
            if members.iter().any(|member| !self.excused.contains(member)) {
                return Err(format!("{payload} is passed over by {first}, although {members:?} have received it"));
            }
        }
        Ok(())
    }

    /// No message has two positions, and plain messages are in the order of Redis.
    fn check_history(&self) -> Checked {
        let history = &self.redis.history;
        let unique: BTreeSet<_> = history.iter().collect();
        if unique.len() != history.len() {
            return Err(format!("a message has two positions: {history:?}"));
        }
        let plain: Vec<_> = history.iter().filter(|payload| self.numbered.contains(payload)).collect();
        if !plain.is_sorted() {
            return Err(format!("the plain messages are not in the order of Redis: {history:?}"));
        }
        let over = self.instances.iter().find(|it| it.participant.waiting_bytes() > self.limits.waiting_bytes + 100);
        over.map_or(Ok(()), |instance| Err(format!("too much waits: {instance:?}")))
    }
}
