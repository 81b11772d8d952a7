//! A well-behaved client: it publishes one message after the other and receives each over a WebSocket and an event stream
//! that it has had from the beginning. It measures how long that takes, quiet and beside an attack.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::instance::Instance;
use super::sse::Events;
use super::ws::Socket;
use super::{channel, soon, until};

/// How many messages a run has at least: the slowest of a hundred does not count.
const FEWEST: usize = 150;
/// Between two messages.
const PAUSE: Duration = Duration::from_millis(5);
/// A message that takes less than this is never late, however quick it was in the quiet run: others compete for the machine
/// meanwhile. The attacks delayed messages for seconds when nothing held them back.
const FLOOR: Duration = Duration::from_millis(2500);
/// How many times as long as in the quiet run a message may take.
const TIMES: u32 = 3;
/// How much memory an instance may have more after an attack than before it, in bytes: what the allocator keeps for itself.
const KEPT: usize = 24 << 20;

pub struct GoodClient<'a> {
    instance: &'a Instance,
    http: reqwest::Client,
    channel: String,
    socket: Socket,
    events: Events,
    number: u64,
    quiet: Duration,
    memory: usize,
}

impl<'a> GoodClient<'a> {
    /// Subscribes, and measures a quiet run.
    pub async fn of(instance: &'a Instance) -> Self {
        let channel = channel("good");
        let query = format!("channel={channel}");
        let (socket, events) = (instance.ws(&query).await, instance.events(&query).await);
        // One connection for each request: an idle one may end just when it is used again.
        let http = reqwest::Client::builder().pool_max_idle_per_host(0).build().unwrap();
        let (quiet, number) = (Duration::ZERO, 0);
        let mut client = Self { instance, http, channel, socket, events, number, quiet, memory: 0 };
        client.quiet = client.run(&AtomicBool::new(true)).await;
        client.memory = pss(instance);
        client
    }

    /// Goes on until an attack is over. Everything must arrive, in order, and no message may be late: at most three times
    /// the quiet run's 99th percentile. The instance is ready, and its memory is what it was.
    pub async fn beside<T>(&mut self, attack: impl Future<Output = T>) -> T {
        let over = AtomicBool::new(false);
        let attack = async {
            let outcome = attack.await;
            over.store(true, Ordering::Relaxed);
            outcome
        };
        let (outcome, late) = tokio::join!(attack, self.run(&over));
        let quiet = self.quiet.max(self.run(&over).await);
        let allowed = FLOOR.max(TIMES * quiet);
        assert!(late <= allowed, "p99 beside the attack: {late:?}; quiet: {quiet:?}, so that {allowed:?} is allowed");
        let (instance, most) = (self.instance, self.memory + KEPT);
        until("memory is back", || async { pss(instance) <= most }).await;
        outcome
    }

    /// Publishes and receives until `over`, and a few more; returns the 99th percentile of how long a message took.
    async fn run(&mut self, over: &AtomicBool) -> Duration {
        let mut times = Vec::new();
        while !over.load(Ordering::Relaxed) || times.len() < FEWEST {
            times.push(self.exchange().await);
            tokio::time::sleep(PAUSE).await;
        }
        assert_eq!(self.instance.get("/readyz").await.0, 200);
        times.sort_unstable();
        times[times.len() * 99 / 100]
    }

    /// Publishes a message; returns how long it took to be answered and to arrive everywhere.
    async fn exchange(&mut self) -> Duration {
        self.number += 1;
        let (text, began) = (self.number.to_string(), Instant::now());
        let url = self.instance.url(&format!("/publish?channel={}", self.channel));
        let answer = soon("an answer", self.http.post(url).body(text.clone()).send()).await.unwrap();
        assert_eq!(answer.status(), 200, "{}", answer.text().await.unwrap());
        assert_eq!(self.socket.text().await, text, "in order, none missing");
        assert_eq!(self.events.next().await.data, text, "in order, none missing");
        began.elapsed()
    }
}

/// The memory of a process that is its own, in bytes.
pub fn pss(instance: &Instance) -> usize {
    let path = format!("/proc/{}/smaps_rollup", instance.pid());
    let text = std::fs::read_to_string(path).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<usize>().unwrap() << 10
}
