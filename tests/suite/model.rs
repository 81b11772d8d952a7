//! Random interleavings of what can happen to two channels of one instance, against a simple model. The hub, its logs,
//! sequencers and sessions are the real ones; broker, fan-out and sockets are simulated, so that a case takes a
//! millisecond and can be shrunk.
//!
//! Whatever happens, each subscriber's bytes decode to messages that follow each other without a hole, or to a notice
//! that is true; and once all is whole again each subscriber that is still there stands at the channel's end.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use livebridge::batch::Batch;
use livebridge::broker::{Broker, BrokerError, Event, From, Health, Page, Publication, Tail};
use livebridge::channel::ChannelName;
use livebridge::dialect::json::Json;
use livebridge::hub::{Doorbell, Hub, Membership};
use livebridge::intake::Intake;
use livebridge::log::Bounds;
use livebridge::message::{Gap, GapReason, Message, Position};
use livebridge::metrics::Metrics;
use livebridge::rules::Rules;
use livebridge::session::{Session, Waits};
use livebridge::topic::{Start, Topic};
use proptest::prelude::*;
use proptest::test_runner::Config;
use serde_json::Value;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

const CHANNELS: [&str; 2] = ["a", "b"];
const CLIENTS: usize = 4;
/// So short that whoever blocks for a few messages falls behind.
const LOG: Bounds = Bounds { entries: 6, bytes: 1 << 20 };

/// Something that happens.
#[derive(Clone, Debug)]
enum Op {
    Publish {
        channel: usize,
        size: usize,
    },
    /// A message without a position, as from a plain Redis client.
    PublishPlain {
        channel: usize,
    },
    /// A message that is stored but never heard. `told`: the broker knows (`Missed`), else only the offsets show it.
    PublishUnheard {
        channel: usize,
        told: bool,
    },
    Disconnect,
    Reconnect,
    /// So many answers of the history, which all wait, come back.
    Answer {
        count: usize,
    },
    /// From now on the history answers what it held when it was asked, or when the answer comes back.
    AnswerEarly {
        early: bool,
    },
    /// From now on a page holds so many messages.
    PageLimit {
        messages: usize,
    },
    Trim {
        channel: usize,
        kept: usize,
    },
    /// The history is lost.
    NewEpoch {
        channel: usize,
    },
    Join {
        client: usize,
        channels: Vec<usize>,
        start: How,
    },
    Leave {
        client: usize,
    },
    /// The fan-out has its turn.
    Serve,
    /// A client's socket takes so many bytes more.
    Read {
        client: usize,
        bytes: usize,
    },
    /// The hub and whoever else can run does.
    Run,
}

#[derive(Clone, Copy, Debug)]
enum How {
    Live,
    Last(usize),
    /// From what the client held before, if anything.
    Resume,
}

fn op() -> impl Strategy<Value = Op> {
    let channel = 0..CHANNELS.len();
    let client = 0..CLIENTS;
    let channels = prop_oneof![Just(vec![0]), Just(vec![1]), Just(vec![0, 1]), Just(vec![1, 0])];
    let how = prop_oneof![2 => Just(How::Live), 1 => (0_usize..6).prop_map(How::Last), 3 => Just(How::Resume)];
    prop_oneof![
        12 => (channel.clone(), 0_usize..300).prop_map(|(channel, size)| Op::Publish { channel, size }),
        3 => channel.clone().prop_map(|channel| Op::PublishPlain { channel }),
        3 => (channel.clone(), any::<bool>()).prop_map(|(channel, told)| Op::PublishUnheard { channel, told }),
        2 => Just(Op::Disconnect),
        3 => Just(Op::Reconnect),
        6 => (1_usize..4).prop_map(|count| Op::Answer { count }),
        1 => any::<bool>().prop_map(|early| Op::AnswerEarly { early }),
        1 => (1_usize..5).prop_map(|messages| Op::PageLimit { messages }),
        1 => (channel.clone(), 0_usize..5).prop_map(|(channel, kept)| Op::Trim { channel, kept }),
        1 => channel.prop_map(|channel| Op::NewEpoch { channel }),
        6 => (client.clone(), channels, how).prop_map(|(client, channels, start)| Op::Join { client, channels, start }),
        2 => client.clone().prop_map(|client| Op::Leave { client }),
        6 => Just(Op::Serve),
        6 => (client, 1_usize..800).prop_map(|(client, bytes)| Op::Read { client, bytes }),
        10 => Just(Op::Run),
    ]
}

proptest! {
    #![proptest_config(Config { cases: 1000, failure_persistence: None, max_shrink_iters: 4000, ..Config::default() })]

    #[test]
    fn every_subscriber_gets_all_in_order_or_is_told(
        ops in prop::collection::vec(op(), 1..120),
        small_history in any::<bool>(),
        chunk in 1_usize..400,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let outcome = runtime.block_on(async {
            let mut world = World::new(small_history, chunk);
            for op in &ops {
                world.apply(op).await?;
            }
            world.heal().await
        });
        prop_assert!(outcome.is_ok(), "{}", outcome.unwrap_err());
    }
}

/// Where a subscriber stands, as far as it was told. `exact`: the next message must follow right behind.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Held {
    position: Position,
    exact: bool,
}

/// One channel as the model knows it: everything that was ever published.
struct Truth {
    /// Per epoch, in order: the payloads, from offset 1 on, and how many of them the history has dropped.
    epochs: BTreeMap<u64, (Vec<String>, usize)>,
    wanted: bool,
    /// A message was lost without a word: the offsets must show it before the epoch ends.
    silent_loss: bool,
}

impl Truth {
    fn tail(&self) -> Position {
        let (&epoch, (payloads, _)) = self.epochs.last_key_value().unwrap();
        Position::new(epoch, payloads.len() as u64)
    }

    fn message(&self, offset: u64) -> Message {
        let (&epoch, (payloads, _)) = self.epochs.last_key_value().unwrap();
        let payload = payloads[offset as usize - 1].clone();
        Message { position: Some(Position::new(epoch, offset)), stamp: offset + 1, ..Message::plain(payload) }
    }

    fn held(&self, offset: u64) -> Tail {
        let epoch = self.tail().epoch;
        Tail { position: Position::new(epoch, offset), stamp: if offset == 0 { 0 } else { offset + 1 } }
    }

    /// What a history answers.
    fn read(&self, from: From, limit: usize) -> Page {
        let tail = self.tail();
        let dropped = self.epochs.last_key_value().unwrap().1.1 as u64;
        let mut gap = None;
        let after = match from {
            From::Tail | From::Keys => tail.offset,
            From::Oldest => dropped,
            From::Last(count) => dropped.max(tail.offset.saturating_sub(count.min(limit) as u64)),
            From::After(position) | From::AfterDelivered(Tail { position, .. }) => {
                let reason = if position.epoch != tail.epoch || position.offset > tail.offset {
                    Some(GapReason::EpochChanged)
                } else {
                    (position.offset < dropped).then_some(GapReason::HistoryTrimmed)
                };
                gap = reason.map(|reason| Gap { resumes_after: Position::new(tail.epoch, dropped), reason });
                if gap.is_some() { dropped } else { position.offset }
            }
        };
        let through = tail.offset.min(after + limit as u64);
        let messages = (after + 1..=through).map(|offset| Arc::new(self.message(offset))).collect();
        Page { gap, messages, through: self.held(through), tail: self.held(tail.offset) }
    }
}

/// A broker that does as it is told.
struct Script {
    truths: Mutex<HashMap<ChannelName, Truth>>,
    switches: Mutex<Switches>,
    answers: Semaphore,
    intake: Arc<Intake>,
}

#[derive(Clone, Copy)]
struct Switches {
    connected: bool,
    early: bool,
    limit: usize,
}

impl Broker for Script {
    fn publish(&self, _: Vec<Publication>) -> BoxFuture<'_, Vec<Result<Option<Position>, BrokerError>>> {
        async { Vec::new() }.boxed()
    }

    fn subscribe(&self, channel: &ChannelName) {
        self.truths.lock().unwrap().get_mut(channel).unwrap().wanted = true;
        if self.switches.lock().unwrap().connected {
            self.intake.push(Event::Subscribed(channel.clone()));
        }
    }

    fn unsubscribe(&self, channel: &ChannelName) {
        self.truths.lock().unwrap().get_mut(channel).unwrap().wanted = false;
    }

    fn read<'a>(
        &'a self,
        channel: &'a ChannelName,
        from: From,
        _: usize,
    ) -> BoxFuture<'a, Result<Option<Page>, BrokerError>> {
        let answer = move |limit| self.truths.lock().unwrap()[channel].read(from, limit);
        async move {
            let Switches { early, limit, .. } = *self.switches.lock().unwrap();
            let held = early.then(|| answer(limit));
            self.answers.acquire().await.unwrap().forget();
            Ok(Some(held.unwrap_or_else(|| answer(limit))))
        }
        .boxed()
    }

    fn health(&self) -> Health {
        Health::Up
    }
}

/// A subscriber: its session, and what it understood so far.
#[derive(Default)]
struct Client {
    joining: Option<JoinHandle<Vec<Membership>>>,
    starts: Vec<(usize, How, Start)>,
    session: Option<Session>,
    asking: Option<(usize, JoinHandle<Option<Arc<Page>>>)>,
    room: usize,
    wire: Vec<u8>,
    held: HashMap<usize, Held>,
    last_plain: u64,
}

/// What the fan-out of the one shard knows of a topic.
struct Feed {
    topic: Arc<Topic>,
    served: u64,
}

struct World {
    hub: Arc<Hub>,
    doorbell: Arc<Doorbell>,
    broker: Arc<Script>,
    names: Vec<ChannelName>,
    clients: Vec<Client>,
    feeds: HashMap<u64, Feed>,
    chunk: usize,
    published: u64,
}

type Outcome = Result<(), String>;

impl World {
    fn new(small_history: bool, chunk: usize) -> Self {
        let intake = Arc::new(Intake::default());
        let names: Vec<ChannelName> = CHANNELS.iter().map(|name| name.parse().unwrap()).collect();
        let truth = || Truth { epochs: BTreeMap::from([(1000, (Vec::new(), 0))]), wanted: false, silent_loss: false };
        let broker = Arc::new(Script {
            truths: Mutex::new(names.iter().map(|name| (name.clone(), truth())).collect()),
            switches: Mutex::new(Switches { connected: true, early: false, limit: 3 }),
            answers: Semaphore::new(0),
            intake: intake.clone(),
        });
        let messages = if small_history { 100 } else { 5000 };
        let rules = format!("[[channel]]\nmatch = '*'\nhistory = {{ messages = {messages} }}\n");
        let rules = Arc::new(Rules::parse(&rules).unwrap());
        let hub = Hub::new(broker.clone(), rules, LOG, 1, Arc::new(Metrics::new(1)));
        tokio::spawn(hub.clone().run(intake));
        let clients = (0..CLIENTS).map(|_| Client::default()).collect();
        let doorbell = hub.doorbell(0);
        Self { hub, doorbell, broker, names, clients, feeds: HashMap::new(), chunk, published: 0 }
    }

    async fn apply(&mut self, op: &Op) -> Outcome {
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

    fn truth<T>(&self, channel: usize, act: impl FnOnce(&mut Truth) -> T) -> T {
        act(self.broker.truths.lock().unwrap().get_mut(&self.names[channel]).unwrap())
    }

    /// Publishes with a position; `heard` unless the message is lost on the way, `told` if the broker says so.
    fn publish(&mut self, channel: usize, size: usize, heard: Option<bool>, told: bool) {
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
            Some(_) => self.broker.intake.push(Event::Arrived(name, message)),
            None if told => self.broker.intake.push(Event::Missed(name)),
            None => self.truth(channel, |truth| truth.silent_loss = true),
        }
    }

    fn publish_plain(&mut self, channel: usize) {
        self.published += 1;
        if self.truth(channel, |truth| truth.wanted) && self.broker.switches.lock().unwrap().connected {
            let message = Message::plain(format!("no. {} plain", self.published));
            self.broker.intake.push(Event::Arrived(self.names[channel].clone(), message));
        }
    }

    fn reconnect(&self) {
        self.broker.switches.lock().unwrap().connected = true;
        for (channel, name) in self.names.iter().enumerate() {
            if self.truth(channel, |truth| std::mem::take(&mut truth.silent_loss) || truth.wanted) {
                self.broker.intake.push(Event::Subscribed(name.clone()));
            }
        }
    }

    fn begin_epoch(&self, channel: usize) {
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

    fn join(&mut self, index: usize, channels: &[usize], how: How) {
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
                memberships.push(hub.join(&name).await.unwrap());
            }
            memberships
        }));
    }

    fn leave(&mut self, index: usize) {
        let client = &mut self.clients[index];
        if let Some(joining) = client.joining.take() {
            joining.abort();
        }
        client.asking = None;
        if let Some(session) = client.session.take() {
            for topic in session.topics() {
                let read_by = |client: &Client| {
                    client.session.as_ref().is_some_and(|session| session.topics().any(|held| held.id == topic.id))
                };
                if !self.clients.iter().any(read_by) {
                    self.feeds.remove(&topic.id);
                    topic.abandoned(0);
                }
            }
        }
    }

    /// Lets all tasks run, and begins sessions and answers questions as connections would.
    async fn run(&mut self) -> Outcome {
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
                self.clients[index].session.as_mut().unwrap().answered(slot, page);
                self.pump(index)?;
            }
            if self.clients[index].room > 0 {
                self.pump(index)?;
            }
        }
        Ok(())
    }

    fn open(&mut self, index: usize, memberships: Vec<Membership>) -> Outcome {
        for membership in &memberships {
            let topic = membership.topic();
            self.feeds.entry(topic.id).or_insert_with(|| {
                topic.served(0, None);
                Feed { topic: topic.clone(), served: topic.end() }
            });
        }
        let starts = self.clients[index].starts.iter().map(|(_, _, start)| *start);
        let session = Session::new(&Json, memberships.into_iter().zip(starts).collect(), Vec::new(), "model");
        self.clients[index].session = Some(session);
        self.pump(index)
    }

    /// What `shard.rs` does when the doorbell rang.
    fn serve(&mut self) -> Outcome {
        let mut topics = Vec::new();
        if self.doorbell.wait(&mut topics).now_or_never().is_none() {
            return Ok(());
        }
        let mut batch = Batch::default();
        for topic in topics {
            topic.unmark(0);
            let Some(mut served) = self.feeds.get(&topic.id).map(|feed| feed.served) else { continue };
            while batch.fill(&topic, served, &Json) {
                for index in 0..CLIENTS {
                    self.offer(index, &topic, &batch)?;
                }
                served = batch.next();
            }
            if let Some(feed) = self.feeds.get_mut(&topic.id) {
                feed.served = served;
                feed.topic.served(0, Some(served));
            }
        }
        Ok(())
    }

    fn offer(&mut self, index: usize, topic: &Topic, batch: &Batch) -> Outcome {
        let chunk = self.chunk;
        let Client { session: Some(session), room, wire, .. } = &mut self.clients[index] else { return Ok(()) };
        let slot = session.topics().position(|held| held.id == topic.id);
        let Some(slot) = slot else { return Ok(()) };
        if session.offer(slot, batch, &mut |bytes| write(bytes, chunk, room, wire)) {
            return self.decode(index);
        }
        self.pump(index)
    }

    fn pump(&mut self, index: usize) -> Outcome {
        let chunk = self.chunk;
        let hub = self.hub.clone();
        let Client { session: Some(session), room, wire, asking, .. } = &mut self.clients[index] else { return Ok(()) };
        let waits = session.pump(&mut Vec::new(), &mut |bytes| write(bytes, chunk, room, wire));
        if let (Waits::History(slot, from), None) = (&waits, &*asking) {
            let (topic, from) = (session.topics().nth(*slot).unwrap().clone(), *from);
            *asking = Some((*slot, tokio::spawn(async move { hub.history(&topic, from).await.unwrap() })));
        }
        self.decode(index)?;
        if waits == Waits::End {
            self.leave(index);
        }
        Ok(())
    }

    /// Reads the frames that have arrived whole, and compares them with the truth.
    fn decode(&mut self, index: usize) -> Outcome {
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

    fn check_close(&self, index: usize, code: u16, reason: &str) -> Outcome {
        let since = reason.split("since=").nth(1).unwrap_or_default();
        let held = self.clients[index].held.values().any(|held| held.position.to_string() == since || !held.exact);
        if code == 4001 && held { Ok(()) } else { Err(format!("client {index} was closed: {code} {reason}")) }
    }

    fn check_welcome(&mut self, index: usize, said: &Value) -> Outcome {
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

    fn check_message(&mut self, index: usize, said: &Value) -> Outcome {
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

    fn check_gap(&mut self, index: usize, said: &Value) -> Outcome {
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
    async fn heal(&mut self) -> Outcome {
        self.broker.answers.add_permits(1 << 20);
        self.reconnect();
        self.settle(false).await?;
        // Also those who asked for the last few of a history that held none in the end.
        (0..CHANNELS.len()).for_each(|channel| self.publish(channel, 0, Some(true), true));
        self.settle(true).await
    }

    /// Until all clients stand at the end; `all`: also those who wait for their first message.
    async fn settle(&mut self, all: bool) -> Outcome {
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

    fn stands_at_the_end(&self, client: &Client, all: bool) -> bool {
        let reached = |(channel, _, _): &(usize, How, Start)| {
            let tail = self.truth(*channel, |truth| truth.tail());
            client.held.get(channel).is_some_and(|held| held.position == tail || (!all && !held.exact))
        };
        client.joining.is_none() && (client.session.is_none() || client.starts.iter().all(reached))
    }
}

/// A socket that takes at most `chunk` bytes at once, and no more than there is room for.
fn write(bytes: &[u8], chunk: usize, room: &mut usize, wire: &mut Vec<u8>) -> io::Result<usize> {
    let taken = bytes.len().min(chunk).min(*room);
    if taken == 0 {
        return Err(io::ErrorKind::WouldBlock.into());
    }
    *room -= taken;
    wire.extend_from_slice(&bytes[..taken]);
    Ok(taken)
}

/// Takes a whole frame from the front (RFC 6455, 5.2; a server's are neither masked nor fragmented).
fn take_frame(wire: &mut Vec<u8>) -> Result<Option<(u8, Vec<u8>)>, String> {
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

fn position(place: &Value) -> Position {
    Position::new(place["epoch"].as_str().unwrap().parse().unwrap(), place["offset"].as_u64().unwrap())
}

fn channel(said: &Value) -> usize {
    CHANNELS.iter().position(|name| said["channel"] == *name).unwrap()
}
