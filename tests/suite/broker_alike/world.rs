//! Both brokers, and what they have answered.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use livebridge::broker::memory::MemoryBroker;
use livebridge::broker::redis::{RedisBroker, RedisOptions};
use livebridge::broker::{Broker, BrokerError, Event, Health, Page, Publication, ReadFrom, RequestSize, Tail};
use livebridge::channel::ChannelName;
use livebridge::hub::event_queue::EventQueue;
use livebridge::message::{GapReason, Message, Position};
use livebridge::observability::metrics::Metrics;
use livebridge::rules::Rules;

use super::program::{Asked, At, Kind, Op, RULES, Sent};
use crate::support::redis::Redis;
use crate::support::{channel, until};

/// After this time what was published a moment ago is not compared any more: it may have aged meanwhile.
const FRESH: Duration = Duration::from_millis(800);
/// What is smaller goes to Redis in one call with the other messages of a batch.
const ONE_CALL: usize = 10_000;
const AGED: Duration = Duration::from_millis(1200);
const DROPPED: Duration = Duration::from_millis(2300);

/// An epoch by the order in which it appeared, and an offset.
type Place = (usize, u64);
type Seen = (Place, Option<String>, bool, Vec<u8>);
type Receipt = Result<Option<Place>, BrokerError>;

/// A page without what differs by nature.
#[derive(PartialEq, Eq, Debug)]
struct Read {
    gap: Option<(GapReason, Place)>,
    messages: Vec<Seen>,
    through: Place,
    tail: Place,
}

/// A message that arrived: where it stands, its key, whether it removes it, and its payload.
type Arrived = (Option<Place>, Option<String>, bool, Vec<u8>);

/// A broker, and the epochs that it has named so far.
struct Side {
    broker: Arc<dyn Broker>,
    queue: Arc<EventQueue>,
    epochs: RefCell<Vec<u64>>,
    arrived: RefCell<Vec<Arrived>>,
    subscribed: RefCell<bool>,
}

impl Side {
    fn new(broker: Arc<dyn Broker>, queue: Arc<EventQueue>) -> Self {
        let (epochs, arrived, subscribed) = Default::default();
        Self { broker, queue, epochs, arrived, subscribed }
    }

    fn place(&self, position: Position) -> Place {
        let mut epochs = self.epochs.borrow_mut();
        let known = epochs.iter().position(|&epoch| epoch == position.epoch);
        let index = known.unwrap_or_else(|| {
            epochs.push(position.epoch);
            epochs.len() - 1
        });
        (index, position.offset)
    }

    fn page(&self, page: &Page) -> Read {
        let seen = |message: &Arc<Message>| {
            let place = self.place(message.position.expect("what is stored has a position"));
            (place, message.key.as_deref().map(str::to_owned), message.removed, message.payload.to_vec())
        };
        Read {
            gap: page.gap.map(|gap| (gap.reason, self.place(gap.resumes_after))),
            messages: page.messages.iter().map(seen).collect(),
            through: self.place(page.through.position),
            tail: self.place(page.tail.position),
        }
    }

    /// Takes in what subscribers would receive.
    fn listen(&self, channel: &ChannelName) {
        let mut events = VecDeque::new();
        self.queue.take(&mut events);
        for event in events {
            match event {
                Event::Arrived(name, message) if name == *channel => {
                    let place = message.position.map(|position| self.place(position));
                    let key = message.key.as_deref().map(str::to_owned);
                    self.arrived.borrow_mut().push((place, key, message.removed, message.payload.to_vec()));
                }
                Event::Subscribed(name) if name == *channel => *self.subscribed.borrow_mut() = true,
                // Stragglers of the program before.
                Event::Arrived(..) | Event::Subscribed(_) | Event::Presence(..) => {}
                Event::Refused(name) => panic!("{name} is refused"),
                Event::Missed(name) => assert_ne!(name, *channel, "nothing gets lost here"),
            }
        }
    }

    fn reset(&self) {
        self.epochs.borrow_mut().clear();
        self.arrived.borrow_mut().clear();
        *self.subscribed.borrow_mut() = false;
    }
}

/// What all programs share.
pub(super) struct World {
    rules: Arc<Rules>,
    redis: Side,
    server: Redis,
}

/// What a program has seen of its channel.
struct Run<'a> {
    redis: &'a Side,
    memory: &'a Side,
    kind: Kind,
    channel: ChannelName,
    /// Positions that both have answered, in Redis and in memory.
    seen: Vec<(Tail, Tail)>,
    /// What each id was first used for, at which offset, and whether that has aged.
    ids: HashMap<&'static str, (Sent, u64, bool)>,
    tail: u64,
    fresh_since: Instant,
}

impl World {
    /// A Redis, perhaps one that forbids functions, so that scripts are used in their place.
    pub(super) async fn new(functions: bool) -> Self {
        let server = Redis::start().await;
        let mut url = server.url();
        if !functions {
            let user = ["ACL", "SETUSER", "lb", "on", ">pw", "~*", "&*", "+@all", "-function", "-fcall"];
            assert_eq!(server.cli(&user), "OK");
            url = url.replace("redis://", "redis://lb:pw@");
        }
        let rules = Arc::new(Rules::parse(RULES).unwrap());
        let (queue, metrics) = (Arc::new(EventQueue::default()), Arc::new(Metrics::new(1)));
        let broker =
            RedisBroker::start(&RedisOptions::new(&url), "alike", queue.clone(), rules.clone(), metrics).unwrap();
        let redis = Side::new(Arc::new(broker), queue);
        until("Redis is up", || async { redis.broker.health() == Health::Up }).await;
        Self { rules, redis, server }
    }

    /// Runs a program on a channel of its own. The embedded broker is a new one each time, or it would come to its bound.
    pub(super) async fn run(&self, kind: Kind, ops: &[Op]) -> Result<(), String> {
        let channel: ChannelName = channel(kind.prefix()).parse().unwrap();
        let queue = Arc::new(EventQueue::default());
        let memory = Side::new(Arc::new(MemoryBroker::new(queue.clone(), self.rules.clone())), queue);
        self.redis.reset();
        for side in [&self.redis, &memory] {
            side.broker.subscribe(&channel, RequestSize::Small).unwrap();
            until("subscribed", || async {
                side.listen(&channel);
                *side.subscribed.borrow()
            })
            .await;
        }
        let fresh_since = Instant::now();
        let mut run = Run {
            redis: &self.redis,
            memory: &memory,
            kind,
            channel: channel.clone(),
            seen: Vec::new(),
            ids: HashMap::new(),
            tail: 0,
            fresh_since,
        };
        for (step, op) in ops.iter().enumerate() {
            match run.step(op).await {
                Ok(true) => {}
                Ok(false) => break,
                Err(what) => return Err(format!("step {} of {kind:?}, {op:?}: {what}", step + 1)),
            }
        }
        let outcome = run.compare_arrived().await;
        self.redis.broker.unsubscribe(&channel);
        for key in ["history", "values"] {
            self.server.cli(&["UNLINK", &format!("livebridge:{{{channel}}}:{key}")]);
        }
        outcome
    }
}

impl Run<'_> {
    /// Takes one step; `false` if what follows can't be compared.
    async fn step(&mut self, op: &Op) -> Result<bool, String> {
        match op {
            Op::Publish(batch) => self.publish(batch).await?,
            Op::Churn(keys) => self.churn(*keys).await?,
            Op::Read(asked, limit) => {
                let compared = self.read(asked, *limit).await;
                if self.is_stale() {
                    return Ok(false);
                }
                compared?;
            }
            Op::Age { long } => {
                tokio::time::sleep(if *long { DROPPED } else { AGED }).await;
                self.ids.values_mut().for_each(|(.., aged)| *aged = true);
                self.fresh_since = Instant::now();
            }
        }
        for side in [self.redis, self.memory] {
            side.listen(&self.channel);
        }
        Ok(!self.is_stale())
    }

    fn is_stale(&self) -> bool {
        self.kind == Kind::Brief && self.fresh_since.elapsed() > FRESH
    }

    async fn publish(&mut self, batch: &[Sent]) -> Result<(), String> {
        let most_trimmed = (self.tail + batch.len() as u64).saturating_sub(self.kind.messages());
        // One that does not fit into a call may find the first of its batch trimmed.
        let is_large = batch.iter().any(|sent| sent.size > ONE_CALL);
        let mut sent_before: Vec<Sent> = Vec::new();
        for sent in batch {
            let twin = sent_before.iter().find(|before| is_large && sent.id.is_some() && before.id == sent.id);
            sent_before.push(twin.cloned().unwrap_or_else(|| self.with_known_id(sent, most_trimmed)));
        }
        let batch = sent_before;
        let publications = batch.iter().map(|sent| publication(&self.channel, sent)).collect();
        let receipts = self.publish_both(publications).await?;
        for (sent, receipt) in batch.into_iter().zip(receipts) {
            if let (Some(id), Ok(Some((_, offset)))) = (sent.id, receipt) {
                self.ids.entry(id).or_insert((sent, offset, false));
            }
        }
        Ok(())
    }

    /// The message, or that which its id stands for if the brokers may differ on it.
    fn with_known_id(&self, sent: &Sent, most_trimmed: u64) -> Sent {
        match sent.id.and_then(|id| self.ids.get(id)) {
            Some((first, offset, aged)) if *aged || *offset <= most_trimmed => first.clone(),
            _ => sent.clone(),
        }
    }

    async fn churn(&mut self, keys: usize) -> Result<(), String> {
        let change = |number: usize, remove| Publication {
            channel: self.channel.clone(),
            payload: "x".into(),
            key: Some(format!("gone-{number}").into()),
            remove,
            id: None,
        };
        let batch = (0..keys).flat_map(|number| [change(number, false), change(number, true)]).collect();
        self.publish_both(batch).await.map(drop)
    }

    async fn publish_both(&mut self, batch: Vec<Publication>) -> Result<Vec<Receipt>, String> {
        let Self { redis, memory, .. } = *self;
        let theirs = (redis.broker.publish(batch.clone()).await, memory.broker.publish(batch).await);
        let mut receipts = Vec::new();
        for (one, two) in theirs.0.into_iter().zip(theirs.1) {
            if let (Ok(Some(one)), Ok(Some(two))) = (&one, &two) {
                self.seen.push((Tail { position: *one, stamp: 0 }, Tail { position: *two, stamp: 0 }));
                self.tail = self.tail.max(one.offset);
            }
            let place = |side: &Side, receipt: Result<Option<Position>, BrokerError>| -> Receipt {
                receipt.map(|position| position.map(|position| side.place(position)))
            };
            let receipt = place(redis, one);
            let other = place(memory, two);
            if receipt != other {
                return Err(format!("message {}: Redis {receipt:?}, memory {other:?}", receipts.len() + 1));
            }
            receipts.push(receipt);
        }
        Ok(receipts)
    }

    async fn read(&mut self, asked: &Asked, limit: usize) -> Result<(), String> {
        let Self { redis, memory, .. } = *self;
        let (one, two) = self.from(asked);
        let one = redis.broker.read(&self.channel, one, limit).await;
        let two = memory.broker.read(&self.channel, two, limit).await;
        let (one, two) = match (one, two) {
            (Ok(Some(one)), Ok(Some(two))) => (one, two),
            (Ok(None), Ok(None)) => return Ok(()),
            (one, two) => return Err(format!("Redis {one:?}, memory {two:?}")),
        };
        let (theirs, others) = (redis.page(&one), memory.page(&two));
        if theirs != others {
            return Err(format!("Redis {}, memory {}", brief(&theirs), brief(&others)));
        }
        self.seen.extend([(one.through, two.through), (one.tail, two.tail)]);
        let tail = |message: &Message| Some(Tail { position: message.position?, stamp: message.stamp });
        let pairs = one.messages.iter().zip(&two.messages);
        self.seen.extend(pairs.filter_map(|(one, two)| Some((tail(one)?, tail(two)?))));
        Ok(())
    }

    /// What that is to each broker.
    fn from(&self, asked: &Asked) -> (ReadFrom, ReadFrom) {
        let both = |from| (from, from);
        match asked {
            Asked::Tail => both(ReadFrom::Tail),
            Asked::Oldest => both(ReadFrom::Oldest),
            Asked::Last(count) => both(ReadFrom::Last(*count)),
            Asked::Keys => both(ReadFrom::Keys),
            Asked::After(at) => {
                let (one, two) = self.at(at);
                (ReadFrom::After(one.position), ReadFrom::After(two.position))
            }
            Asked::AfterIfKept(at) => {
                let (one, two) = self.at(at);
                (ReadFrom::AfterIfKept(one.position), ReadFrom::AfterIfKept(two.position))
            }
            Asked::AfterDelivered(at) => {
                let (one, two) = self.at(at);
                (ReadFrom::AfterDelivered(one), ReadFrom::AfterDelivered(two))
            }
        }
    }

    fn at(&self, at: &At) -> (Tail, Tail) {
        let fixed = |epoch, offset| {
            let tail = Tail { position: Position::new(epoch, offset), stamp: 0 };
            (tail, tail)
        };
        let index = match at {
            At::Past(offset) => return fixed(1, *offset),
            // A microsecond of the year 2096.
            At::Later(offset) => return fixed(4_000_000_000_000_000, *offset),
            At::Seen(index) | At::Before(index, _) | At::Ahead(index, _) | At::Zero(index) => index,
        };
        if self.seen.is_empty() {
            return fixed(1, 0);
        }
        let (one, two) = self.seen[index.index(self.seen.len())];
        let moved = |tail: Tail| {
            let Position { epoch, offset } = tail.position;
            let offset = match at {
                At::Seen(_) => return tail,
                At::Before(_, by) => offset.saturating_sub(*by),
                At::Ahead(_, by) => offset + by,
                _ => 0,
            };
            Tail { position: Position::new(epoch, offset), stamp: 0 }
        };
        (moved(one), moved(two))
    }

    async fn compare_arrived(&self) -> Result<(), String> {
        let Self { redis, memory, .. } = *self;
        memory.listen(&self.channel);
        let expected = memory.arrived.borrow().len();
        until("all has arrived from Redis", || async {
            redis.listen(&self.channel);
            redis.arrived.borrow().len() >= expected
        })
        .await;
        for (one, two) in redis.arrived.borrow().iter().zip(memory.arrived.borrow().iter()) {
            if one != two {
                return Err(format!("arrived from Redis {:?}, in memory {:?}", (&one.0, &one.1), (&two.0, &two.1)));
            }
        }
        Ok(())
    }
}

fn publication(channel: &ChannelName, sent: &Sent) -> Publication {
    let payload = format!("{}{}", sent.number, "x".repeat(sent.size));
    let (key, id) = (sent.key.map(Arc::from), sent.id.map(Arc::from));
    Publication { channel: channel.clone(), payload: payload.into(), key, remove: sent.remove, id }
}

/// The page without long payloads.
fn brief(read: &Read) -> String {
    let message = |(place, key, removed, payload): &Seen| format!("{place:?} {key:?} {removed} {}", payload.len());
    let messages: Vec<_> = read.messages.iter().map(message).collect();
    format!("gap {:?}, through {:?}, tail {:?}, {messages:?}", read.gap, read.through, read.tail)
}
