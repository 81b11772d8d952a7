//! Everything breaks, in an order that a seed decides, while producers publish and clients listen. Afterwards every
//! message that was answered 200 has been received exactly once, in order, by every client, and none was told a gap.
//!
//! The short form is a test like any other. `scripts/faults` runs it for longer, and again with a given seed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::future::join_all;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::sleep;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};
use tungstenite::Message;

use crate::support::instance::{Instance, Options};
use crate::support::proxy::Proxy;
use crate::support::redis::Redis;
use crate::support::sse::Events;
use crate::support::until;

const CHANNELS: usize = 4;
const PRODUCERS: usize = 6;
const CLIENTS: usize = 16;
const INSTANCES: usize = 3;
/// How long the short form breaks things, in seconds.
const SHORT: u64 = 16;
/// How long clients have, once everything is whole again, to receive what they lack.
const CATCH_UP: Duration = Duration::from_secs(60);
const RULES: &str = "[[channel]]\nmatch = '*'\nhistory = { messages = 10000, age = '1h' }\n";
/// Below the size of one [`LARGE`] message: each that is published overflows every subscription.
const TINY_BUFFER: &str = "pubsub 100kb 0 0";
const USUAL_BUFFER: &str = "pubsub 32mb 8mb 60";
const LARGE: usize = 150_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    InstanceKilled,
    PubsubKilled,
    RedisStoodStill,
    RedisRestarted,
    CutMidReply,
    BufferOverflowed,
    NetworkHeld,
    NetworkSliced,
    SubscriptionDeafened,
    ClientsDawdled,
}

const FAULTS: [Fault; 10] = [
    Fault::InstanceKilled,
    Fault::PubsubKilled,
    Fault::RedisStoodStill,
    Fault::RedisRestarted,
    Fault::CutMidReply,
    Fault::BufferOverflowed,
    Fault::NetworkHeld,
    Fault::NetworkSliced,
    Fault::SubscriptionDeafened,
    Fault::ClientsDawdled,
];

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nothing_is_lost_and_nothing_doubled_whatever_breaks() {
    let seconds = from_environment("LIVEBRIDGE_FAULT_SECONDS").unwrap_or(SHORT);
    let seed = from_environment("LIVEBRIDGE_FAULT_SEED").unwrap_or_else(|| rand::random::<u32>().into());
    let mut machines = Machines::start().await;
    let world = Arc::new(World::new(seed, &machines));
    let clients: Vec<_> = (0..CLIENTS).map(|index| tokio::spawn(Client::new(&world, index).run())).collect();
    let producers: Vec<_> = (0..PRODUCERS).map(|index| tokio::spawn(produce(world.clone(), index))).collect();
    let cutter = tokio::spawn(cut_clients(world.clone()));
    machines.break_things(&world, Duration::from_secs(seconds)).await;
    cutter.abort();
    machines.until_whole().await;
    world.ending.store(true, Ordering::Relaxed);
    join_all(producers).await.into_iter().for_each(Result::unwrap);
    let mut random = world.random("end");
    let mut ends = Vec::new();
    for channel in 0..CHANNELS {
        ends.push(world.publish(&mut random, channel, &format!("end-{channel}"), 0).await);
    }
    *world.ends.lock().unwrap() = Some(ends.clone());
    let mut received = Vec::new();
    match tokio::time::timeout(CATCH_UP, join_all(clients)).await {
        Ok(all) => received.extend(all.into_iter().map(Result::unwrap)),
        Err(_) => world.complain(format!("after {CATCH_UP:?} some clients still lack messages (of {ends:?})")),
    }
    world.judge(&ends, &received);
    world.report(&machines, &received).await;
}

#[expect(clippy::disallowed_methods, reason = "the long form is the script's business, not the program's")]
fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().filter(|text| !text.is_empty()).map(|text| text.parse().expect(name))
}

/// What all tasks share.
struct World {
    seed: u64,
    began: Instant,
    http: reqwest::Client,
    addresses: Vec<String>,
    channels: Vec<String>,
    /// Per channel: which message was answered to stand at which offset.
    answered: Mutex<Vec<BTreeMap<u64, String>>>,
    /// What went wrong.
    complaints: Mutex<Vec<String>>,
    /// What was broken when.
    timeline: Mutex<String>,
    faults: Mutex<BTreeMap<Fault, usize>>,
    ending: AtomicBool,
    /// Per channel: the newest offset, once no more is published.
    ends: Mutex<Option<Vec<u64>>>,
    clients: Vec<Control>,
    cuts: AtomicU64,
    retries: AtomicU64,
    fell_behind: AtomicU64,
}

/// What is done to a client.
#[derive(Default)]
struct Control {
    cut: Notify,
    dawdle: Notify,
}

impl World {
    fn new(seed: u64, machines: &Machines) -> Self {
        Self {
            seed,
            began: Instant::now(),
            http: reqwest::Client::builder().timeout(Duration::from_secs(10)).build().unwrap(),
            addresses: machines.instances.iter().map(|instance| instance.address.clone()).collect(),
            channels: (0..CHANNELS).map(|index| format!("faults:{index}")).collect(),
            answered: Mutex::new(vec![BTreeMap::new(); CHANNELS]),
            complaints: Mutex::default(),
            timeline: Mutex::default(),
            faults: Mutex::default(),
            ending: AtomicBool::new(false),
            ends: Mutex::default(),
            clients: (0..CLIENTS).map(|_| Control::default()).collect(),
            cuts: AtomicU64::new(0),
            retries: AtomicU64::new(0),
            fell_behind: AtomicU64::new(0),
        }
    }

    /// The random numbers of one task: those of others do not change them.
    fn random(&self, whose: &str) -> StdRng {
        let salt = whose.bytes().fold(0_u64, |salt, byte| salt.wrapping_mul(31).wrapping_add(byte.into()));
        StdRng::seed_from_u64(self.seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ salt)
    }

    fn note(&self, what: &str) {
        let _ = writeln!(self.timeline.lock().unwrap(), "{:>7.3} {what}", self.began.elapsed().as_secs_f64());
    }

    fn complain(&self, what: String) {
        self.note(&format!("WRONG: {what}"));
        self.complaints.lock().unwrap().push(what);
    }

    /// Publishes through any instance until it is answered; returns the offset.
    async fn publish(&self, random: &mut StdRng, channel: usize, id: &str, padding: usize) -> u64 {
        let body = json!({ "id": id, "padding": "x".repeat(padding) }).to_string();
        loop {
            let address = self.addresses.choose(random).unwrap();
            let url = format!("http://{address}/publish?channel={}", self.channels[channel]);
            let sent = self.http.post(url).header("idempotency-key", id).body(body.clone()).send().await;
            if let Ok(response) = sent {
                let status = response.status();
                let answer = response.text().await;
                match (status.as_u16(), answer) {
                    (200, Ok(answer)) => return self.note_answer(channel, id, &answer),
                    // Unknown, and thus tried again.
                    (200 | 503, _) => {}
                    (_, answer) => self.complain(format!("{id} was answered {status}: {answer:?}")),
                }
            }
            self.retries.fetch_add(1, Ordering::Relaxed);
            sleep(Duration::from_millis(random.random_range(10..100))).await;
        }
    }

    fn note_answer(&self, channel: usize, id: &str, answer: &str) -> u64 {
        let answer: Value = serde_json::from_str(answer).unwrap();
        let offset = answer["messages"][0]["offset"].as_u64().unwrap();
        if let Some(other) = self.answered.lock().unwrap()[channel].insert(offset, id.to_owned()) {
            self.complain(format!("{id} and {other} were both answered offset {offset}"));
        }
        offset
    }

    /// Compares what the clients received with what was answered.
    fn judge(&self, ends: &[u64], received: &[Received]) {
        let answered = self.answered.lock().unwrap().clone();
        for (channel, answered) in answered.iter().enumerate() {
            let offsets: Vec<_> = answered.keys().copied().collect();
            if offsets != (1..=ends[channel]).collect::<Vec<_>>() {
                let strange: Vec<_> = (1..=ends[channel]).filter(|offset| !answered.contains_key(offset)).collect();
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
        for Received { client, slots, .. } in received {
            for (channel, first, ids) in slots {
                let wanted: Vec<_> = answered[*channel].range(first + 1..).map(|(_, id)| id).collect();
                if let Some(at) = (0..wanted.len().max(ids.len())).find(|&at| wanted.get(at).copied() != ids.get(at)) {
                    self.complain(format!(
                        "client {client}, channel {channel}, from {first}: received {:?} where {:?} was due; {} of {}",
                        ids.get(at),
                        wanted.get(at),
                        ids.len(),
                        wanted.len(),
                    ));
                }
            }
        }
    }

    /// Prints the counts, and fails if anything went wrong.
    #[expect(clippy::print_stdout, reason = "the counts are for people")]
    async fn report(&self, machines: &Machines, received: &[Received]) {
        let messages: usize = self.answered.lock().unwrap().iter().map(BTreeMap::len).sum();
        let deliveries: usize = received.iter().flat_map(|client| &client.slots).map(|(_, _, ids)| ids.len()).sum();
        let reconnects: usize = received.iter().map(|client| client.connections - 1).sum();
        let mut repaired = machines.repaired;
        for instance in &machines.instances {
            repaired += instance.metric("livebridge_gaps_repaired_total").await;
        }
        let number = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        println!(
            "faults: seed {}, {:.0} s; {messages} messages (published again: {}), {CLIENTS} clients, \
             {deliveries} deliveries, {reconnects} reconnects, {repaired} gaps repaired\n\
             faults: clients cut: {}, told that they fell behind: {}, subscriptions cut for a full buffer: {}, {:?}",
            self.seed,
            self.began.elapsed().as_secs_f64(),
            number(&self.retries),
            number(&self.cuts),
            number(&self.fell_behind),
            machines.overflowed,
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

async fn produce(world: Arc<World>, index: usize) {
    let mut random = world.random(&format!("producer {index}"));
    for number in 0.. {
        if world.ending.load(Ordering::Relaxed) {
            return;
        }
        world.publish(&mut random, index % CHANNELS, &format!("producer{index}-{number}"), 0).await;
        sleep(Duration::from_millis(random.random_range(0..30))).await;
    }
}

async fn cut_clients(world: Arc<World>) {
    let mut random = world.random("cutter");
    loop {
        sleep(Duration::from_millis(random.random_range(0..500))).await;
        world.clients.choose(&mut random).unwrap().cut.notify_one();
        world.cuts.fetch_add(1, Ordering::Relaxed);
    }
}

/// What runs, and is broken.
struct Machines {
    redis: Redis,
    proxies: Vec<Proxy>,
    instances: Vec<Instance>,
    options: Vec<Options>,
    logs_of_the_dead: String,
    /// How many gaps instances had repaired that are dead.
    repaired: f64,
    /// How many subscriptions Redis cut for their full buffer.
    overflowed: usize,
}

impl Machines {
    /// One instance beside Redis, the others behind a proxy each.
    async fn start() -> Self {
        let redis = Redis::persistent().await;
        let mut machines = Self {
            redis,
            proxies: Vec::new(),
            instances: Vec::new(),
            options: Vec::new(),
            logs_of_the_dead: String::new(),
            repaired: 0.0,
            overflowed: 0,
        };
        for index in 0..INSTANCES {
            let mut port = machines.redis.port;
            if index > 0 {
                let proxy = Proxy::start(port).await;
                port = proxy.port;
                machines.proxies.push(proxy);
            }
            let mut options = Options::redis(&machines.redis).rules(RULES).flag(&format!("--instance-name lb-{index}"));
            options.redis_url = Some(format!("redis://127.0.0.1:{port}/"));
            let instance = options.clone().start().await;
            machines.options.push(options.listen(&instance.address));
            machines.instances.push(instance);
        }
        machines
    }

    /// Until the time is over, and each fault was there at least once.
    async fn break_things(&mut self, world: &World, time: Duration) {
        let mut random = world.random("faults");
        let began = Instant::now();
        while began.elapsed() < time {
            let mut deck = FAULTS;
            deck.shuffle(&mut random);
            for (dealt, fault) in deck.into_iter().enumerate() {
                let whole_deck_was_dealt = world.faults.lock().unwrap().len() == FAULTS.len();
                if (began.elapsed() >= time && whole_deck_was_dealt) || !world.complaints.lock().unwrap().is_empty() {
                    return;
                }
                sleep(Duration::from_millis(random.random_range(50..600))).await;
                world.note(&format!("{dealt} {fault:?}"));
                *world.faults.lock().unwrap().entry(fault).or_default() += 1;
                self.inject(fault, world, &mut random).await;
                world.note("over");
            }
        }
    }

    async fn inject(&mut self, fault: Fault, world: &World, random: &mut StdRng) {
        let mut milliseconds = |range| Duration::from_millis(random.random_range(range));
        let (moment, while_) = (milliseconds(0..800), milliseconds(1000..3000));
        match fault {
            Fault::InstanceKilled => self.kill_instance(random.random_range(0..INSTANCES), moment).await,
            Fault::PubsubKilled => {
                self.redis.cli(&["CLIENT", "KILL", "TYPE", "pubsub"]);
            }
            Fault::RedisStoodStill => {
                self.redis.signal("STOP");
                sleep(while_).await;
                self.redis.signal("CONT");
            }
            Fault::RedisRestarted => {
                self.redis.stop();
                sleep(moment).await;
                self.redis.start_again().await;
            }
            Fault::CutMidReply => self.proxies.iter().for_each(Proxy::cut),
            Fault::BufferOverflowed => self.overflow(world, random).await,
            Fault::NetworkHeld => {
                let proxy = self.proxies.choose(random).unwrap();
                proxy.hold(true);
                sleep(while_).await;
                proxy.hold(false);
            }
            Fault::NetworkSliced => {
                self.proxies.iter().for_each(|proxy| proxy.slice(true));
                sleep(while_).await;
                self.proxies.iter().for_each(|proxy| proxy.slice(false));
            }
            Fault::SubscriptionDeafened => self.proxies.choose(random).unwrap().deafen(),
            Fault::ClientsDawdled => {
                world.clients.iter().filter(|_| random.random()).for_each(|client| client.dawdle.notify_one());
            }
        }
    }

    async fn overflow(&mut self, world: &World, random: &mut StdRng) {
        let listened = || async { self.redis.listeners(&world.channels[0]) > 0 };
        until("somebody listens", listened).await;
        self.redis.cli(&["CONFIG", "SET", "client-output-buffer-limit", TINY_BUFFER]);
        let before = self.subscriptions();
        for channel in 0..3 {
            let id = format!("large{channel}-{}", world.began.elapsed().as_micros());
            world.publish(random, channel, &id, LARGE).await;
        }
        let cut = before.difference(&self.subscriptions()).count();
        self.redis.cli(&["CONFIG", "SET", "client-output-buffer-limit", USUAL_BUFFER]);
        if cut == 0 {
            world.complain("a large message overflowed no subscription: this tests nothing".into());
        }
        self.overflowed += cut;
    }

    /// The connections to Redis that hear messages.
    fn subscriptions(&self) -> BTreeSet<String> {
        let list = self.redis.cli(&["CLIENT", "LIST", "TYPE", "pubsub"]);
        list.lines().filter_map(|line| Some(line.split_once(' ')?.0.to_owned())).collect()
    }

    async fn kill_instance(&mut self, index: usize, pause: Duration) {
        let instance = self.instances.remove(index);
        self.repaired += instance.metric("livebridge_gaps_repaired_total").await;
        let log = instance.log();
        let lines: Vec<_> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(40)..].join("\n");
        let _ = writeln!(self.logs_of_the_dead, "--- end of the log of {}, killed\n{tail}", instance.address);
        drop(instance);
        sleep(pause).await;
        self.instances.insert(index, self.options[index].clone().start_unready());
    }

    async fn until_whole(&self) {
        for instance in &self.instances {
            until("ready again", || async { instance.get("/readyz").await.0.is_success() }).await;
        }
    }
}

/// What a client received: per channel from which offset on, and the messages' ids.
struct Received {
    client: usize,
    slots: Vec<(usize, u64, Vec<String>)>,
    connections: usize,
}

struct Client {
    world: Arc<World>,
    index: usize,
    channels: Vec<usize>,
    sse: bool,
    /// Per channel: the position it holds, none before the first welcome.
    held: Vec<Option<(u64, u64)>>,
    received: Vec<(usize, u64, Vec<String>)>,
    connections: usize,
    random: StdRng,
}

enum Stream {
    Events(Events),
    Socket(Box<WebSocketStream<MaybeTlsStream<TcpStream>>>),
}

/// What a client is told.
enum Told {
    Welcome(Vec<(u64, u64)>),
    /// Which of its channels, the positions that it now holds (with a WebSocket only that channel's), and which message.
    Message(usize, Vec<(u64, u64)>, String),
    Gap(String),
    End,
}

impl Client {
    /// Half of them listen to one channel, the others to several; half to events, the others on a WebSocket.
    fn new(world: &Arc<World>, index: usize) -> Self {
        let count = [1, 3][index / 2 % 2];
        let channels: Vec<_> = (0..count).map(|number| (index / 4 + number) % CHANNELS).collect();
        Self {
            world: world.clone(),
            index,
            held: vec![None; channels.len()],
            received: channels.iter().map(|&channel| (channel, 0, Vec::new())).collect(),
            channels,
            sse: index.is_multiple_of(2),
            connections: 0,
            random: world.random(&format!("client {index}")),
        }
    }

    async fn run(mut self) -> Received {
        // Some come later than others.
        let late = if self.index < CLIENTS / 2 { 0 } else { self.random.random_range(0..8000) };
        sleep(Duration::from_millis(late)).await;
        while !self.has_all() {
            match self.connect().await {
                Some(stream) => self.listen(stream).await,
                None => sleep(Duration::from_millis(self.random.random_range(20..200))).await,
            }
        }
        Received { client: self.index, slots: self.received, connections: self.connections }
    }

    fn has_all(&self) -> bool {
        let ends = self.world.ends.lock().unwrap();
        let Some(ends) = &*ends else { return false };
        let reached =
            |(channel, held): (&usize, &Option<(u64, u64)>)| held.is_some_and(|held| held.1 >= ends[*channel]);
        self.channels.iter().zip(&self.held).all(reached)
    }

    async fn connect(&mut self) -> Option<Stream> {
        let address = self.world.addresses.choose(&mut self.random).unwrap();
        let names = self.channels.iter().map(|&channel| format!("channel={}", self.world.channels[channel]));
        let query = names.collect::<Vec<_>>().join("&");
        let positions = self.held.iter().map(|held| held.map_or(String::new(), |(epoch, at)| format!("{epoch}:{at}")));
        let positions = positions.collect::<Vec<_>>().join(",");
        let known = self.held[0].is_some();
        if self.sse {
            let id = known.then_some(positions.as_str());
            return Events::try_connect(&format!("http://{address}/events?{query}"), id).await.ok().map(Stream::Events);
        }
        let since = if known { format!("&since={positions}") } else { String::new() };
        let connecting = tokio_tungstenite::connect_async(format!("ws://{address}/ws?{query}&format=json{since}"));
        let connected = tokio::time::timeout(Duration::from_secs(15), connecting).await.ok()?;
        Some(Stream::Socket(Box::new(connected.ok()?.0)))
    }

    /// Until the stream ends, or it is cut, or there is nothing more to come.
    async fn listen(&mut self, mut stream: Stream) {
        let world = self.world.clone();
        self.connections += 1;
        while !self.has_all() {
            tokio::select! {
                () = world.clients[self.index].cut.notified() => return,
                () = world.clients[self.index].dawdle.notified() => {
                    sleep(Duration::from_millis(self.random.random_range(500..2500))).await;
                }
                () = sleep(Duration::from_millis(200)) => {}
                told = self.next(&mut stream) => if !self.take(told) { return },
            }
        }
    }

    /// Takes in what it is told. `false` at the end of the stream.
    fn take(&mut self, told: Told) -> bool {
        let who = format!("client {} ({})", self.index, if self.sse { "events" } else { "WebSocket" });
        match told {
            Told::End => return false,
            Told::Gap(what) => self.world.complain(format!("{who} was told a gap: {what}; held {:?}", self.held)),
            Told::Welcome(positions) => {
                for (slot, position) in positions.into_iter().enumerate() {
                    let held = *self.held[slot].get_or_insert(position);
                    if held != position {
                        self.world.complain(format!("{who} held {held:?} and was welcomed to {position:?}"));
                    }
                    if self.received[slot].2.is_empty() {
                        self.received[slot].1 = held.1;
                    }
                }
            }
            Told::Message(slot, positions, id) => {
                let before = self.held.clone();
                let due = self.held[slot].map(|(epoch, offset)| (epoch, offset + 1));
                self.held[slot] = due;
                let agrees = match positions.as_slice() {
                    [one] => Some(*one) == due,
                    all => all.iter().copied().map(Some).eq(self.held.iter().copied()),
                };
                if !agrees {
                    let channel = self.channels[slot];
                    self.world
                        .complain(format!("{who} got {positions:?} ({id}) of channel {channel} after {before:?}"));
                    return false;
                }
                self.received[slot].2.push(id);
            }
        }
        true
    }

    async fn next(&self, stream: &mut Stream) -> Told {
        match stream {
            Stream::Events(events) => {
                let Some(event) = events.try_next().await else { return Told::End };
                if event.kind == "livebridge:gap" {
                    return Told::Gap(event.data);
                }
                let id = event.id.unwrap();
                let positions = id.split(',').map(|text| parse(text).expect(&id)).collect();
                if event.kind == "livebridge:welcome" {
                    return Told::Welcome(positions);
                }
                let slot = if self.channels.len() == 1 { 0 } else { self.slot(&event.kind) };
                Told::Message(slot, positions, payload_id(&serde_json::from_str(&event.data).unwrap()))
            }
            Stream::Socket(socket) => match socket.next().await {
                Some(Ok(Message::Text(text))) => self.envelope(&serde_json::from_str(&text).unwrap()),
                Some(Ok(Message::Close(Some(frame)))) => match u16::from(frame.code) {
                    1012 => Told::End,
                    4001 => {
                        self.world.fell_behind.fetch_add(1, Ordering::Relaxed);
                        Told::End
                    }
                    code => Told::Gap(format!("closed with {code} {}", frame.reason)),
                },
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => Told::Welcome(Vec::new()),
                _ => Told::End,
            },
        }
    }

    fn envelope(&self, envelope: &Value) -> Told {
        let position =
            |place: &Value| (place["epoch"].as_str().unwrap().parse().unwrap(), place["offset"].as_u64().unwrap());
        match envelope["event"].as_str() {
            Some("welcome") => Told::Welcome(envelope["channels"].as_array().unwrap().iter().map(position).collect()),
            Some(_) => Told::Gap(envelope.to_string()),
            None => {
                let slot = self.slot(envelope["channel"].as_str().unwrap());
                Told::Message(slot, vec![position(envelope)], payload_id(&envelope["data"]))
            }
        }
    }

    fn slot(&self, channel: &str) -> usize {
        self.channels.iter().position(|&index| self.world.channels[index] == channel).expect(channel)
    }
}

fn parse(position: &str) -> Option<(u64, u64)> {
    let (epoch, offset) = position.split_once(':')?;
    Some((epoch.parse().ok()?, offset.parse().ok()?))
}

fn payload_id(payload: &Value) -> String {
    payload["id"].as_str().unwrap().to_owned()
}
