//! Everything breaks, in an order that a seed decides, while producers publish and clients listen. Afterwards every
//! message that was answered 200 has been received exactly once, in order, by every client, and none was told a gap.
//! Where masters are killed, a message that nobody was answered may be lost with one; that alone is told as a gap.
//!
//! The short form is a test like any other. `scripts/faults` runs it for longer, and again with a given seed.

mod client;
mod judge;
mod machines;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt::Write;
use std::ops::Bound;
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
use crate::support::network::Host;
use crate::support::proxy::Proxy;
use crate::support::redis::Redis;
use crate::support::sentinel::SentinelSet;
use crate::support::sse::Events;
use crate::support::until;

use self::client::*;
use self::machines::*;

const CHANNELS: usize = 4;
const PRODUCERS: usize = 6;
/// Half of them listen to one channel, the others to three.
const CLIENTS: usize = 16;
const INSTANCES: usize = 3;
/// How long the short form breaks things, in seconds.
const SHORT: u64 = 16;
/// How long clients have, once everything is whole again, to receive what they lack.
const CATCH_UP: Duration = Duration::from_secs(60);
const RULES: &str = "[[channel]]\nmatch = '*'\nhistory = { messages = 100000, age = '1h' }\n";
/// Below the size of one [`LARGE`] message: each that is published overflows every subscription.
const TINY_BUFFER: &str = "pubsub 100kb 0 0";
const USUAL_BUFFER: &str = "pubsub 32mb 8mb 60";
const LARGE: usize = 150_000;
/// A publish is answered when a replica has it, so no failover loses it.
const WAIT_FOR_REPLICAS: &str = "--redis-wait-replicas 1";

/// EPOCH and OFFSET.
type Position = (u64, u64);

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
    MasterKilled,
    MasterStoodStill,
    SentinelsGone,
    ShardCutOff,
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

/// Beside these, an instance that has a host of its own is cut off from a shard.
const FAULTS_WITH_REPLICAS: [Fault; 7] = [
    Fault::InstanceKilled,
    Fault::PubsubKilled,
    Fault::ClientsDawdled,
    Fault::SlotsMoved,
    Fault::NodeJoinedAndLeft,
    Fault::MasterKilled,
    Fault::MasterStoodStill,
];

const FAULTS_WITH_SENTINELS: [Fault; 6] = [
    Fault::InstanceKilled,
    Fault::PubsubKilled,
    Fault::ClientsDawdled,
    Fault::MasterKilled,
    Fault::MasterStoodStill,
    Fault::SentinelsGone,
];

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nothing_is_lost_and_nothing_doubled_whatever_breaks() {
    nothing_is_lost_on(Machines::on_one_redis().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nothing_is_lost_and_nothing_doubled_whatever_happens_to_a_cluster() {
    nothing_is_lost_on(Machines::on_a_cluster().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_was_answered_is_not_lost_whichever_master_of_a_cluster_dies() {
    nothing_is_lost_on(Machines::on_a_cluster_with_replicas().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_was_answered_is_not_lost_whichever_server_or_sentinel_dies() {
    nothing_is_lost_on(Machines::on_sentinels().await).await;
}

async fn nothing_is_lost_on(mut machines: Machines) {
    let seconds = from_environment("LIVEBRIDGE_FAULT_SECONDS").unwrap_or(SHORT);
    let seed = from_environment("LIVEBRIDGE_FAULT_SEED").unwrap_or_else(|| rand::random::<u32>().into());
    let world = Arc::new(World::new(seed, &machines));
    let indexes = 0..world.clients.len();
    let clients: Vec<_> = indexes.map(|index| tokio::spawn(Client::new(&world, index).run())).collect();
    let producers: Vec<_> = (0..PRODUCERS).map(|index| tokio::spawn(produce(world.clone(), index))).collect();
    let cutter = tokio::spawn(cut_clients(world.clone()));
    machines.break_things(&world, Duration::from_secs(seconds)).await;
    cutter.abort();
    machines.until_whole().await;
    world.ending.store(true, Ordering::Relaxed);
    let ends = tokio::time::timeout(CATCH_UP, async {
        join_all(producers).await.into_iter().for_each(Result::unwrap);
        let (mut random, mut ends) = (world.random("end"), Vec::new());
        for channel in 0..CHANNELS {
            ends.extend(world.publish(&mut random, channel, &[format!("end-{channel}")], 0).await);
        }
        ends
    });
    let Ok(ends) = ends.await else {
        world.complain(format!("after {CATCH_UP:?} some messages are still not answered 200"));
        return world.report(&machines, &[]).await;
    };
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
    /// How many messages a producer publishes at once.
    batch: usize,
    /// How many messages are published at least.
    messages: usize,
    /// Whether a replica may become the master that lacks what nobody was answered.
    fails_over: bool,
    began: Instant,
    http: reqwest::Client,
    addresses: Vec<String>,
    channels: Vec<String>,
    /// Per channel: which message was answered to stand at which position.
    answered: Mutex<Vec<BTreeMap<Position, String>>>,
    /// What went wrong.
    complaints: Mutex<Vec<String>>,
    /// What was broken when.
    timeline: Mutex<String>,
    faults: Mutex<BTreeMap<Fault, usize>>,
    ending: AtomicBool,
    /// Per channel: the newest position, once no more is published.
    ends: Mutex<Option<Vec<Position>>>,
    clients: Vec<Control>,
    cuts: AtomicU64,
    retries: AtomicU64,
    fell_behind: AtomicU64,
    /// Gaps that clients were told, and what they thus missed of what was answered.
    gaps: AtomicU64,
    told_missing: AtomicU64,
    /// How many gaps were told for which reason.
    reasons: Mutex<BTreeMap<String, usize>>,
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
            batch: from_environment("LIVEBRIDGE_FAULT_BATCH").map_or(1, |batch| batch.try_into().unwrap()),
            messages: from_environment("LIVEBRIDGE_FAULT_MESSAGES").map_or(0, |count| count.try_into().unwrap()),
            fails_over: machines.fails_over,
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
            clients: (0..from_environment("LIVEBRIDGE_FAULT_CLIENTS").unwrap_or(CLIENTS as u64))
                .map(|_| Control::default())
                .collect(),
            cuts: AtomicU64::new(0),
            retries: AtomicU64::new(0),
            fell_behind: AtomicU64::new(0),
            gaps: AtomicU64::new(0),
            told_missing: AtomicU64::new(0),
            reasons: Mutex::default(),
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

    /// Whether each fault was there, and enough was published.
    fn has_seen_enough(&self, faults: usize) -> bool {
        let published = self.answered.lock().unwrap().iter().map(BTreeMap::len).sum::<usize>();
        self.faults.lock().unwrap().len() == faults && published >= self.messages
    }

    /// Publishes through any instance until it is answered; returns the positions.
    async fn publish(&self, random: &mut StdRng, channel: usize, ids: &[String], padding: usize) -> Vec<Position> {
        let name = &self.channels[channel];
        let message = |id| json!({ "id": id, "padding": "x".repeat(padding) });
        let lines = ids.iter().map(|id| json!({ "channel": name, "data": message(id), "id": id }).to_string() + "\n");
        let body: String = lines.collect();
        loop {
            let url = format!("http://{}/publish", self.addresses.choose(random).unwrap());
            let request = self.http.post(url).header("content-type", "application/x-ndjson").body(body.clone());
            if let Ok(response) = request.send().await {
                let status = response.status();
                let answer = response.text().await;
                match (status.as_u16(), answer) {
                    (200, Ok(answer)) => return self.note_answer(channel, ids, &answer),
                    // Unknown, and thus tried again.
                    (200 | 503, _) => {}
                    (_, answer) => self.complain(format!("{ids:?} were answered {status}: {answer:?}")),
                }
            }
            self.retries.fetch_add(1, Ordering::Relaxed);
            sleep(Duration::from_millis(random.random_range(10..100))).await;
        }
    }

    fn note_answer(&self, channel: usize, ids: &[String], answer: &str) -> Vec<Position> {
        let answer: Value = serde_json::from_str(answer).unwrap();
        let positions = answer["messages"].as_array().unwrap().iter().map(position_of).collect::<Vec<_>>();
        for (id, position) in ids.iter().zip(&positions) {
            if let Some(other) = self.answered.lock().unwrap()[channel].insert(*position, id.to_owned()) {
                self.complain(format!("{id} and {other} were both answered position {position:?}"));
            }
        }
        positions
    }
}

fn position_of(message: &Value) -> Position {
    (message["epoch"].as_str().unwrap().parse().unwrap(), message["offset"].as_u64().unwrap())
}

async fn produce(world: Arc<World>, index: usize) {
    let mut random = world.random(&format!("producer {index}"));
    for batch in 0.. {
        if world.ending.load(Ordering::Relaxed) {
            return;
        }
        let numbers = batch * world.batch..(batch + 1) * world.batch;
        let ids: Vec<_> = numbers.map(|number| format!("producer{index}-{number}")).collect();
        world.publish(&mut random, index % CHANNELS, &ids, 0).await;
        // The clients, in this process, must keep up, or they lag behind the history.
        let most = 30 + 3 * world.batch as u64 / 2;
        sleep(Duration::from_millis(random.random_range(0..most))).await;
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
