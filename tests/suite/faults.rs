//! Everything breaks, in an order that a seed decides, while producers publish and clients listen. Afterwards every
//! message that was answered 200 has been received exactly once, in order, by every client, and none was told a gap.
//!
//! The short form is a test like any other. `scripts/faults` runs it for longer, and again with a given seed.

mod client;
mod machines;

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

use crate::support::cluster::ClusterSet;
use crate::support::instance::{Instance, Options};
use crate::support::proxy::Proxy;
use crate::support::redis::Redis;
use crate::support::sse::Events;
use crate::support::until;

use self::client::*;
use self::machines::*;

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
    SlotsMoved,
    NodeJoinedAndLeft,
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

const FAULTS_OF_A_CLUSTER: [Fault; 6] = [
    Fault::InstanceKilled,
    Fault::PubsubKilled,
    Fault::RedisStoodStill,
    Fault::ClientsDawdled,
    Fault::SlotsMoved,
    Fault::NodeJoinedAndLeft,
];

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nothing_is_lost_and_nothing_doubled_whatever_breaks() {
    nothing_is_lost_on(Machines::on_one_redis().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nothing_is_lost_and_nothing_doubled_whatever_happens_to_a_cluster() {
    nothing_is_lost_on(Machines::on_a_cluster().await).await;
}

async fn nothing_is_lost_on(mut machines: Machines) {
    let seconds = from_environment("LIVEBRIDGE_FAULT_SECONDS").unwrap_or(SHORT);
    let seed = from_environment("LIVEBRIDGE_FAULT_SEED").unwrap_or_else(|| rand::random::<u32>().into());
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
