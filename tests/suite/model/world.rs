//! The parts of livebridge under test, put together without sockets, threads or clocks.

use super::*;

/// A subscriber: its session, and what it understood so far.
#[derive(Default)]
pub(super) struct Client {
    pub(super) joining: Option<JoinHandle<Vec<Membership>>>,
    pub(super) starts: Vec<(usize, How, Start)>,
    pub(super) session: Option<Session>,
    pub(super) asking: Option<(usize, JoinHandle<Option<Arc<HeldPage>>>)>,
    pub(super) room: usize,
    pub(super) wire: Vec<u8>,
    pub(super) held: HashMap<usize, Held>,
    pub(super) last_plain: u64,
}

/// What the fan-out of the one shard knows of a topic.
pub(super) struct Feed {
    pub(super) topic: Arc<Topic>,
    pub(super) served: u64,
}

pub(super) struct World {
    pub(super) hub: Arc<Hub>,
    pub(super) wake_list: Arc<WakeList>,
    pub(super) broker: Arc<Script>,
    pub(super) names: Vec<ChannelName>,
    pub(super) clients: Vec<Client>,
    pub(super) feeds: HashMap<u64, Feed>,
    pub(super) chunk: usize,
    pub(super) published: u64,
}

pub(super) type Outcome = Result<(), String>;

impl World {
    pub(super) fn new(small_history: bool, chunk: usize) -> Self {
        let dispatcher = Arc::new(Dispatcher::new(usize::MAX, 1, Arc::new(Metrics::new(1))));
        let names: Vec<ChannelName> = CHANNELS.iter().map(|name| name.parse().unwrap()).collect();
        let truth = || Truth { epochs: BTreeMap::from([(1000, (Vec::new(), 0))]), wanted: false, silent_loss: false };
        let broker = Arc::new(Script {
            truths: Mutex::new(names.iter().map(|name| (name.clone(), truth())).collect()),
            switches: Mutex::new(Switches { connected: true, early: false, limit: 3 }),
            answers: Semaphore::new(0),
            sink: dispatcher.clone(),
        });
        let messages = if small_history { 100 } else { 5000 };
        let rules = format!("[[channel]]\nmatch = '*'\nhistory = {{ messages = {messages} }}\n");
        let rules = Arc::new(Rules::parse(&rules).unwrap());
        let hub = Hub::new(dispatcher, broker.clone(), rules, LOG, Arc::default());
        tokio::spawn(hub.clone().run());
        let clients = (0..CLIENTS).map(|_| Client::default()).collect();
        let wake_list = hub.wake_list(0);
        Self { hub, wake_list, broker, names, clients, feeds: HashMap::new(), chunk, published: 0 }
    }

    pub(super) async fn apply(&mut self, op: &Op) -> Outcome {
        match op {
            Op::Publish { channel, size } => self.publish(*channel, *size, Some(true), true),
            Op::PublishPlain { channel } => self.publish_plain(*channel),
            Op::PublishUnheard { channel, told } => self.publish(*channel, 10, None, *told),
            Op::Disconnect => self.broker.switches.lock().unwrap().connected = false,
            Op::Reconnect => self.reconnect(),
            Op::Answer { count } => self.broker.answers.add_permits(*count),
            Op::AnswerEarly { early } => self.broker.switches.lock().unwrap().early = *early,
            Op::PageLimit { messages } => self.broker.switches.lock().unwrap().limit = *messages,
            Op::Trim { channel, kept } => {
                self.truth(*channel, |truth| {
                    let (payloads, dropped) = truth.epochs.last_entry().unwrap().into_mut();
                    *dropped = payloads.len().saturating_sub(*kept).max(*dropped);
                });
            }
            Op::NewEpoch { channel } => self.begin_epoch(*channel),
            Op::Join { client, channels, start } => self.join(*client, channels, *start),
            Op::Leave { client } => self.leave(*client),
            Op::Serve => return self.serve(),
            Op::Read { client, bytes } => {
                // Its task learns of it when it runs next; the fan-out may come before.
                self.clients[*client].room += bytes;
            }
            Op::Run => return self.run().await,
        }
        Ok(())
    }

    pub(super) fn truth<T>(&self, channel: usize, act: impl FnOnce(&mut Truth) -> T) -> T {
        act(self.broker.truths.lock().unwrap().get_mut(&self.names[channel]).unwrap())
    }

    /// Publishes with a position; `heard` unless the message is lost on the way, `told` if the broker says so.
    pub(super) fn publish(&mut self, channel: usize, size: usize, heard: Option<bool>, told: bool) {
        self.published += 1;
        let payload = format!("no. {} {}", self.published, "x".repeat(size));
        let (wanted, message) = self.truth(channel, |truth| {
            truth.epochs.last_entry().unwrap().get_mut().0.push(payload);
            (truth.wanted, truth.message(truth.tail().offset))
        });
        if !wanted || !self.broker.switches.lock().unwrap().connected {
            return;
        }
        let name = self.names[channel].clone();
        match heard {
            Some(_) => self.broker.sink.push(Event::Arrived(name, message)),
            None if told => self.broker.sink.push(Event::Missed(name)),
            None => self.truth(channel, |truth| truth.silent_loss = true),
        }
    }

    pub(super) fn publish_plain(&mut self, channel: usize) {
        self.published += 1;
        if self.truth(channel, |truth| truth.wanted) && self.broker.switches.lock().unwrap().connected {
            let message = Message::plain(format!("no. {} plain", self.published));
            self.broker.sink.push(Event::Arrived(self.names[channel].clone(), message));
        }
    }

    pub(super) fn reconnect(&self) {
        self.broker.switches.lock().unwrap().connected = true;
        for (channel, name) in self.names.iter().enumerate() {
            if self.truth(channel, |truth| std::mem::take(&mut truth.silent_loss) || truth.wanted) {
                self.broker.sink.push(Event::Subscribed(name.clone()));
            }
        }
    }

    pub(super) fn begin_epoch(&self, channel: usize) {
        let lost = self.truth(channel, |truth| {
            let epoch = truth.tail().epoch + 1000;
            truth.epochs.insert(epoch, (Vec::new(), 0));
            truth.silent_loss
        });
        if lost {
            // No offset will show the loss any more: a broker may do this only with a connection that ended.
            self.broker.switches.lock().unwrap().connected = false;
        }
    }

    pub(super) fn join(&mut self, index: usize, channels: &[usize], how: How) {
        let client = &mut self.clients[index];
        if client.session.is_some() || client.joining.is_some() {
            return;
        }
        let start = |channel: &usize| match (how, client.held.get(channel)) {
            (How::Resume, Some(held)) => Start::After(held.position),
            (How::Last(count), _) => Start::Last(count),
            _ => Start::Live,
        };
        client.starts = channels.iter().map(|channel| (*channel, how, start(channel))).collect();
        client.wire.clear();
        client.last_plain = 0;
        client.room = 0;
        let hub = self.hub.clone();
        let names: Vec<_> = channels.iter().map(|&channel| self.names[channel].clone()).collect();
        client.joining = Some(tokio::spawn(async move {
            let mut memberships = Vec::new();
            for name in names {
                memberships.push(hub.join(&name, RequestSize::Small).await.unwrap());
            }
            memberships
        }));
    }

    pub(super) fn leave(&mut self, index: usize) {
        let client = &mut self.clients[index];
        if let Some(joining) = client.joining.take() {
            joining.abort();
        }
        client.asking = None;
        if let Some(session) = client.session.take() {
            for topic in topics(&session) {
                let read_by = |client: &Client| {
                    client.session.as_ref().is_some_and(|session| topics(session).any(|held| held.id == topic.id))
                };
                if !self.clients.iter().any(read_by) {
                    self.feeds.remove(&topic.id);
                    topic.record_no_subscribers(0);
                }
            }
        }
    }

    /// Lets all tasks run, and begins sessions and answers questions as connections would.
    pub(super) async fn run(&mut self) -> Outcome {
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
        for index in 0..CLIENTS {
            if self.clients[index].joining.as_ref().is_some_and(JoinHandle::is_finished) {
                let joined = self.clients[index].joining.take().unwrap().await.unwrap();
                self.open(index, joined)?;
            }
            if self.clients[index].asking.as_ref().is_some_and(|(_, asking)| asking.is_finished()) {
                let (slot, asking) = self.clients[index].asking.take().unwrap();
                let page = asking.await.unwrap();
                let session = self.clients[index].session.as_mut().unwrap();
                let topic = session.subscription(slot).unwrap().topic().clone();
                session.set_page(slot, &topic, page);
                self.pump(index)?;
            }
            if self.clients[index].room > 0 {
                self.pump(index)?;
            }
        }
        Ok(())
    }

    pub(super) fn open(&mut self, index: usize, memberships: Vec<Membership>) -> Outcome {
        for membership in &memberships {
            let topic = membership.topic();
            self.feeds.entry(topic.id).or_insert_with(|| {
                topic.record_served(0, None);
                Feed { topic: topic.clone(), served: topic.end() }
            });
        }
        let starts = self.clients[index].starts.iter().map(|(_, _, start)| *start);
        let mut session = Session::new(&WEBSOCKET_JSON, Vec::new(), memberships.len());
        let new = |(membership, start)| NewSubscription {
            membership,
            start,
            rights: Rights::default(),
            page: None,
            attendance: None,
        };
        let made: Vec<_> = memberships.into_iter().zip(starts).map(|pair| session.subscribe(new(pair))).collect();
        session.write_connected("model", &made);
        self.clients[index].session = Some(session);
        self.pump(index)
    }

    /// What `shard.rs` does when it is woken.
    pub(super) fn serve(&mut self) -> Outcome {
        let mut topics = Vec::new();
        if self.wake_list.wait(&mut topics).now_or_never().is_none() {
            return Ok(());
        }
        let mut batch = EncodedBatch::default();
        for topic in topics {
            topic.take_notification(0);
            let Some(mut served) = self.feeds.get(&topic.id).map(|feed| feed.served) else { continue };
            while batch.fill(&topic, served, &WEBSOCKET_JSON) {
                for index in 0..CLIENTS {
                    self.offer(index, &topic, &batch)?;
                }
                served = batch.resume_at();
            }
            if let Some(feed) = self.feeds.get_mut(&topic.id) {
                feed.served = served;
                feed.topic.record_served(0, Some(served));
            }
        }
        Ok(())
    }

    pub(super) fn offer(&mut self, index: usize, topic: &Topic, batch: &EncodedBatch) -> Outcome {
        let chunk = self.chunk;
        let Client { session: Some(session), room, wire, .. } = &mut self.clients[index] else { return Ok(()) };
        let slot = topics(session).position(|held| held.id == topic.id);
        let Some(slot) = slot else { return Ok(()) };
        if session.offer(slot, batch, &mut EncodedBatch::default(), &mut |bytes| write(bytes, chunk, room, wire)) {
            return self.decode(index);
        }
        self.pump(index)
    }

    pub(super) fn pump(&mut self, index: usize) -> Outcome {
        let chunk = self.chunk;
        let hub = self.hub.clone();
        let Client { session: Some(session), room, wire, asking, .. } = &mut self.clients[index] else { return Ok(()) };
        let waits = session.pump(&mut EncodedBatch::default(), &mut |bytes| write(bytes, chunk, room, wire));
        if let (Waits::History(slot, from), None) = (&waits, &*asking) {
            let (topic, from) = (session.subscription(*slot).unwrap().topic().clone(), *from);
            *asking = Some((*slot, tokio::spawn(async move { hub.history(&topic, from, None).await.unwrap() })));
        }
        self.decode(index)?;
        if waits == Waits::End {
            self.leave(index);
        }
        Ok(())
    }

    /// Reads the frames that have arrived whole, and compares them with the truth.
    pub(super) fn decode(&mut self, index: usize) -> Outcome {
        while let Some((opcode, payload)) = take_frame(&mut self.clients[index].wire)? {
            let text = String::from_utf8_lossy(&payload).into_owned();
            if opcode == 8 {
                return self.check_close(index, u16::from_be_bytes([payload[0], payload[1]]), &text);
            }
            let said: Value =
                serde_json::from_str(&text).map_err(|error| format!("client {index}: {error}: {text}"))?;
            let checked = match said["event"].as_str() {
                None => self.check_message(index, &said),
                Some("welcome") => self.check_welcome(index, &said),
                Some("gap") => self.check_gap(index, &said),
                Some(_) => Err("an unknown event".into()),
            };
            checked.map_err(|what| format!("client {index} (held {:?}): {what}: {text}", self.clients[index].held))?;
        }
        Ok(())
    }

    pub(super) fn check_close(&self, index: usize, code: u16, reason: &str) -> Outcome {
        let since = reason.split("since=").nth(1).unwrap_or_default();
        let held = self.clients[index].held.values().any(|held| held.position.to_string() == since || !held.exact);
        if code == 4001 && held { Ok(()) } else { Err(format!("client {index} was closed: {code} {reason}")) }
    }

    pub(super) fn check_welcome(&mut self, index: usize, said: &Value) -> Outcome {
        let client = &mut self.clients[index];
        for ((channel, how, start), told) in client.starts.iter().zip(said["channels"].as_array().unwrap()) {
            let position = position(told);
            if let Start::After(asked) = start
                && *asked != position
            {
                return Err(format!("asked for {asked}, welcomed to {position}"));
            }
            // The last few are the last few of what there is when the history answers.
            client.held.insert(*channel, Held { position, exact: !matches!(how, How::Last(1..)) });
        }
        Ok(())
    }

    pub(super) fn check_message(&mut self, index: usize, said: &Value) -> Outcome {
        let channel = channel(said);
        let payload = said["data"].as_str().unwrap();
        if said.get("offset").is_none() {
            let number = payload.split(' ').nth(1).unwrap().parse().unwrap();
            let before = std::mem::replace(&mut self.clients[index].last_plain, number);
            let both_channels = self.clients[index].starts.len() > 1;
            return if before < number || both_channels { Ok(()) } else { Err(format!("came after {before}")) };
        }
        let position = position(said);
        let held = self.clients[index].held[&channel];
        let (follows, known) = self.truth(channel, |truth| {
            let had_all = truth.epochs[&held.position.epoch].0.len() as u64 == held.position.offset;
            let between = held.position.epoch + 1..position.epoch.max(held.position.epoch + 1);
            let begins_next = position.offset == 1 && truth.epochs.range(between).all(|(_, (all, _))| all.is_empty());
            let follows = position == held.position.next()
                || (position.epoch > held.position.epoch && had_all && begins_next)
                || (!held.exact && position != held.position);
            let known = truth.epochs.get(&position.epoch).and_then(|(all, _)| all.get(position.offset as usize - 1));
            (follows, known.is_some_and(|known| known == payload))
        });
        if !follows || !known {
            return Err(format!("follows: {follows}, is what was published: {known}"));
        }
        self.clients[index].held.insert(channel, Held { position, exact: true });
        Ok(())
    }

    pub(super) fn check_gap(&mut self, index: usize, said: &Value) -> Outcome {
        let channel = channel(said);
        let position = position(said);
        let Held { position: held, exact } = self.clients[index].held[&channel];
        let is_true = self.truth(channel, |truth| match said["reason"].as_str().unwrap() {
            _ if !exact => true,
            "epoch_changed" => position.epoch > held.epoch,
            _ => position.epoch == held.epoch && truth.epochs[&held.epoch].1 as u64 > held.offset,
        });
        self.clients[index].held.insert(channel, Held { position, exact: true });
        if is_true { Ok(()) } else { Err("nothing is missing".into()) }
    }

    /// Everything works again: all who are still there must come to the end.
    pub(super) async fn heal(&mut self) -> Outcome {
        self.broker.answers.add_permits(1 << 20);
        self.reconnect();
        self.settle(false).await?;
        // Also those who asked for the last few of a history that held none in the end.
        (0..CHANNELS.len()).for_each(|channel| self.publish(channel, 0, Some(true), true));
        self.settle(true).await
    }

    /// Until all clients stand at the end; `all`: also those who wait for their first message.
    pub(super) async fn settle(&mut self, all: bool) -> Outcome {
        for round in 0..300 {
            self.run().await?;
            self.serve()?;
            for index in 0..CLIENTS {
                self.clients[index].room = usize::MAX / 2;
                self.pump(index)?;
            }
            if self.clients.iter().all(|client| self.stands_at_the_end(client, all)) {
                return Ok(());
            }
            if round > 20 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        let stand =
            |client: &Client| format!("{:?} {:?} joining: {}", client.starts, client.held, client.joining.is_some());
        let all: Vec<_> = self.clients.iter().map(stand).collect();
        let tails: Vec<_> = (0..CHANNELS.len()).map(|channel| self.truth(channel, |truth| truth.tail())).collect();
        Err(format!("some never come to the end, {tails:?}:\n{}", all.join("\n")))
    }

    pub(super) fn stands_at_the_end(&self, client: &Client, all: bool) -> bool {
        let reached = |(channel, _, _): &(usize, How, Start)| {
            let tail = self.truth(*channel, |truth| truth.tail());
            client.held.get(channel).is_some_and(|held| held.position == tail || (!all && !held.exact))
        };
        client.joining.is_none() && (client.session.is_none() || client.starts.iter().all(reached))
    }
}

/// A socket that takes at most `chunk` bytes at once, and no more than there is room for.
pub(super) fn write(bytes: &[u8], chunk: usize, room: &mut usize, wire: &mut Vec<u8>) -> io::Result<usize> {
    let taken = bytes.len().min(chunk).min(*room);
    if taken == 0 {
        return Err(io::ErrorKind::WouldBlock.into());
    }
    *room -= taken;
    wire.extend_from_slice(&bytes[..taken]);
    Ok(taken)
}

/// Takes a whole frame from the front (RFC 6455, 5.2; a server's are neither masked nor fragmented).
pub(super) fn take_frame(wire: &mut Vec<u8>) -> Result<Option<(u8, Vec<u8>)>, String> {
    let [first, second, ..] = wire[..] else { return Ok(None) };
    if !matches!(first, 0x81 | 0x88) || second > 126 {
        return Err(format!("not a frame of ours: {:?}", &wire[..wire.len().min(80)]));
    }
    let (header, length) = match (second, &wire[2..]) {
        (126, [high, low, ..]) => (4, usize::from(u16::from_be_bytes([*high, *low]))),
        (126, _) => return Ok(None),
        (length, _) => (2, length.into()),
    };
    if wire.len() < header + length {
        return Ok(None);
    }
    let frame: Vec<u8> = wire.drain(..header + length).collect();
    Ok(Some((first & 0x0F, frame[header..].to_vec())))
}

pub(super) fn position(place: &Value) -> Position {
    Position::new(place["epoch"].as_str().unwrap().parse().unwrap(), place["offset"].as_u64().unwrap())
}

pub(super) fn channel(said: &Value) -> usize {
    CHANNELS.iter().position(|name| said["channel"] == *name).unwrap()
}

fn topics(session: &Session) -> impl Iterator<Item = &Arc<Topic>> {
    session.subscriptions().map(|(_, subscription)| subscription.topic())
}
