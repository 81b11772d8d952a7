//! Compares what the clients received with what the producers were answered, and reports it.

use super::*;

impl World {
    /// Complains of everything that is not as promised.
    pub(super) fn judge(&self, ends: &[Position], received: &[Received]) {
        let answered = self.answered.lock().unwrap().clone();
        for (channel, answered) in answered.iter().enumerate() {
            self.judge_answers(channel, answered, ends[channel]);
            self.judge_agreement(channel, answered, received);
        }
        for Received { client, slots, .. } in received {
            for (channel, stretches) in slots {
                self.judge_client(&format!("client {client}, channel {channel}"), &answered[*channel], stretches);
            }
        }
    }

    /// What the producers were answered must be one order, without holes where nothing may be lost.
    fn judge_answers(&self, channel: usize, answered: &BTreeMap<Position, String>, end: Position) {
        let positions: Vec<_> = answered.keys().copied().collect();
        let all: Vec<_> = (1..=end.1).map(|offset| (end.0, offset)).collect();
        if !self.fails_over && positions != all {
            let strange: Vec<_> = all.iter().filter(|position| !answered.contains_key(position)).collect();
            self.complain(format!("channel {channel}: stored, but answered to nobody, so doubled: {strange:?}"));
        }
        let mut newest = BTreeMap::new();
        for (producer, number) in answered.values().filter_map(|id| id.rsplit_once('-')) {
            let number: u64 = number.parse().unwrap();
            if newest.insert(producer, number).is_some_and(|before| before >= number) {
                self.complain(format!("channel {channel}: {producer}'s message {number} is out of order"));
            }
        }
    }

    /// A position must mean the same message to everybody, but to those who were told a gap afterwards: a message that
    /// nobody was answered, and that was lost with a master, may have had the position of another one.
    fn judge_agreement(&self, channel: usize, answered: &BTreeMap<Position, String>, received: &[Received]) {
        let mut known: HashMap<Position, &str> = answered.iter().map(|(position, id)| (*position, &**id)).collect();
        let slots = received.iter().flat_map(|client| &client.slots).filter(|(theirs, _)| *theirs == channel);
        for (position, id) in slots.filter_map(|(_, stretches)| stretches.last()).flat_map(|last| &last.messages) {
            let first = *known.entry(*position).or_insert(id);
            if first != id {
                self.complain(format!("channel {channel}: {position:?} is {first} to one and {id} to another"));
            }
        }
    }

    /// The last stretch must have all that was answered since it began, once. What is missing before was told as a gap;
    /// only before it may a message come twice, if one of the two was lost with a master, so that nobody was answered.
    fn judge_client(&self, who: &str, answered: &BTreeMap<Position, String>, stretches: &[Stretch]) {
        for (index, stretch) in stretches.iter().enumerate() {
            let is_last = index + 1 == stretches.len();
            let mut firsts = HashMap::new();
            for (position, id) in &stretch.messages {
                let Some(first) = firsts.insert(id, position) else { continue };
                let is_answered = |position| answered.get(position) == Some(id);
                if is_last || first == position || (is_answered(first) && is_answered(position)) {
                    self.complain(format!("{who}: received {id} at {first:?} and again at {position:?}"));
                }
            }
        }
        let ids: HashSet<_> = stretches.iter().flat_map(|stretch| &stretch.messages).map(|(_, id)| id).collect();
        let (first, last) = (&stretches[0], &stretches[stretches.len() - 1]);
        let after =
            |from| answered.range((Bound::Excluded(from), Bound::Unbounded)).filter(|(_, id)| !ids.contains(id));
        let lost: Vec<_> = after(last.from).take(3).collect();
        if !lost.is_empty() {
            self.complain(format!("{who}: lost {lost:?} and perhaps more, without a gap"));
        }
        self.gaps.fetch_add(stretches.len() as u64 - 1, Ordering::Relaxed);
        self.told_missing.fetch_add(after(first.from).count() as u64, Ordering::Relaxed);
    }

    /// Prints the counts, and fails if anything went wrong.
    #[expect(clippy::print_stdout, reason = "the counts are for people")]
    pub(super) async fn report(&self, machines: &Machines, received: &[Received]) {
        let messages: usize = self.answered.lock().unwrap().iter().map(BTreeMap::len).sum();
        let stretches = received.iter().flat_map(|client| &client.slots).flat_map(|(_, stretches)| stretches);
        let deliveries: usize = stretches.map(|stretch| stretch.messages.len()).sum();
        let reconnects: usize = received.iter().map(|client| client.connections - 1).sum();
        let mut repaired = machines.repaired;
        for instance in &machines.instances {
            repaired += instance.metric("livebridge_gaps_repaired_total").await;
        }
        let number = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        println!(
            "faults: seed {}, {:.0} s; {messages} messages (published again: {}), {} clients, \
             {deliveries} deliveries, {reconnects} reconnects, {repaired} gaps repaired\n\
             faults: clients cut: {}, told that they fell behind: {}, subscriptions cut for a full buffer: {}, \
             told a gap: {} {:?}, answered messages in these gaps: {}, {:?}",
            self.seed,
            self.began.elapsed().as_secs_f64(),
            number(&self.retries),
            self.clients.len(),
            number(&self.cuts),
            number(&self.fell_behind),
            machines.overflowed,
            number(&self.gaps),
            self.reasons.lock().unwrap(),
            number(&self.told_missing),
            self.faults.lock().unwrap(),
        );
        let complaints = self.complaints.lock().unwrap().clone();
        if complaints.is_empty() {
            return;
        }
        println!("--- what was broken when\n{}", self.timeline.lock().unwrap());
        println!("{}", machines.logs_of_the_dead);
        let count = complaints.len();
        let first: Vec<_> = complaints.into_iter().take(20).collect();
        panic!(
            "{count} complaints; again with LIVEBRIDGE_FAULT_SEED={}, timing permitting:\n{}",
            self.seed,
            first.join("\n")
        );
    }
}
