//! The end of a run: what is under way comes to its end, and then nothing may be missing.

use std::collections::{BTreeSet, VecDeque};

use livebridge::message::Position;

use crate::action::{Action, Budget};
use crate::world::{Checked, World};

impl World {
    /// Lets everything that is under way come to its end, without further faults. Then nothing that a living
    /// member has received may be missing, and a new message must reach all.
    pub(crate) fn settle(mut self) -> Checked {
        self.budget = Budget { plain: 2, stored: 0, faults: 0, restarts: 0, empty_restarts: 0 };
        self.run_dry()?;
        for (payload, members) in &self.received {
            let may_be_missing = self.numbered.contains(payload) || self.dropped.contains(payload);
            if !may_be_missing && members.iter().any(|member| !self.excused.contains(member)) {
                return Err(format!("{payload} is lost, although {members:?} have received it"));
            }
        }
        if let Some(instance) = self.instances.iter().find(|instance| instance.participant.waiting() > 0) {
            return Err(format!("messages wait for ever: {instance:?}"));
        }
        self.apply(Action::Publish)?;
        self.run_dry()?;
        let tail = Position::new(self.redis.epoch, self.redis.history.len() as u64);
        let behind = self.instances.iter().find(|instance| instance.delivered != Some(tail));
        behind.map_or(Ok(()), |instance| Err(format!("the last message {tail} has not arrived: {instance:?}")))
    }

    fn run_dry(&mut self) -> Checked {
        for round in 0..200 {
            if self.in_flight.is_empty() && round > 0 && self.is_quiet() {
                return Ok(());
            }
            for index in 0..self.instances.len() {
                if self.instances[index].connection.is_none() {
                    self.apply(Action::Connect(index))?;
                }
            }
            for index in 0..self.instances.len() {
                self.apply(Action::Renew(index))?;
                self.apply(Action::Retry(index))?;
            }
            while !self.in_flight.is_empty() {
                self.apply(Action::Execute(0))?;
            }
            for index in 0..self.instances.len() {
                while self.instances[index].connection.as_ref().is_some_and(|buffer| !buffer.is_empty()) {
                    self.apply(Action::Receive(index))?;
                }
            }
            self.expire_the_dead();
        }
        Err(format!("it does not come to rest: {self:?}"))
    }

    fn is_quiet(&self) -> bool {
        self.instances.iter().all(|instance| {
            instance.since.is_some()
                && instance.participant.waiting() == 0
                && instance.connection.as_ref().is_some_and(VecDeque::is_empty)
        })
    }

    fn expire_the_dead(&mut self) {
        let alive: BTreeSet<u64> = self.instances.iter().flat_map(|it| it.participant.to_renew()).collect();
        let dead: Vec<u64> = self.redis.members.difference(&alive).copied().collect();
        for member in dead {
            let removed = self.redis.remove(member);
            self.broadcast(&removed);
        }
    }
}
