//! All attacks at once: against three instances on one Redis, which fifty well-behaved clients and five producers use. The
//! clients receive everything, no instance is not ready, and memory is back afterwards.
//!
//! The short form is a test like any other. `scripts/siege` runs it for five minutes, and prints the table of docs/security.md.

mod attackers;
mod good;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::future::join_all;
use tokio::time::sleep;

use self::good::Received;
use crate::support::good::pss;
use crate::support::instance::{Instance, Options};
use crate::support::redis::Redis;
use crate::support::until;

const INSTANCES: usize = 3;
/// Of each, half over WebSocket and half over event streams.
const CLIENTS: usize = 50;
const PRODUCERS: usize = 5;
/// How long the short form lasts, in seconds.
const SHORT: u64 = 6;
/// How long clients have, once it is over, to receive what they lack.
const CATCH_UP: Duration = Duration::from_secs(30);
/// How much memory an instance may have at most during the siege, and more than before after it, in MiB.
const PEAK: f64 = 600.0;
const KEPT: f64 = 48.0;
/// Over it attackers come from public addresses: near ones have no limits.
const PROXY: &str = "127.0.2.1";
const RULES: &str = "[[channel]]\nmatch = 'many:*'\nhistory = { messages = 1 }\n\
                     [[channel]]\nmatch = 'keyed'\nkeyed = true\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn all_attacks_at_once_take_nothing_from_those_who_behave() {
    let seconds = from_environment("LIVEBRIDGE_SIEGE_SECONDS").map_or(SHORT, |text| text.parse().expect("a number"));
    let redis = Redis::start().await;
    let siege = Arc::new(Siege::start(&redis).await);
    let clients: Vec<_> = (0..CLIENTS).map(|index| tokio::spawn(good::listen(siege.clone(), index))).collect();
    until("all listen", || async { siege.listening.load(Ordering::Relaxed) == CLIENTS as u64 }).await;
    let before = siege.memory();
    let producers: Vec<_> = (0..PRODUCERS).map(|index| tokio::spawn(good::produce(siege.clone(), index))).collect();
    let watch = tokio::spawn(watch(siege.clone()));
    let attack = tokio::spawn(attackers::attack(siege.clone()));
    sleep(Duration::from_secs(seconds)).await;
    siege.over.store(true, Ordering::Relaxed);
    let counts = attack.await.unwrap();
    let published: Vec<u64> = join_all(producers).await.into_iter().map(Result::unwrap).collect();
    *siege.ends.lock().unwrap() = Some(published.clone());
    let received =
        tokio::time::timeout(CATCH_UP, join_all(clients)).await.expect("everybody receives what was published");
    let received: Vec<_> = received.into_iter().map(Result::unwrap).collect();
    let watched = watch.await.unwrap();
    let is_back = || siege.memory().iter().zip(&before).all(|(now, before)| *now < before + KEPT);
    until("memory is back", || async { is_back() }).await;
    let table = Table { seconds, before, published, received, watched, counts, after: siege.memory() };
    table.print();
    table.judge();
}

#[expect(clippy::disallowed_methods, reason = "the long form is the script's business, not the program's")]
fn from_environment(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|text| !text.is_empty())
}

/// What all tasks share.
struct Siege {
    instances: Vec<Instance>,
    http: reqwest::Client,
    began: Instant,
    over: AtomicBool,
    listening: AtomicU64,
    /// How many messages each producer published, once it has ended.
    ends: Mutex<Option<Vec<u64>>>,
}

impl Siege {
    async fn start(redis: &Redis) -> Self {
        // As an operator may have it: some channels are not livebridge's.
        let user =
            "ACL SETUSER siege on >secret +@all ~* resetchannels &good:* &fresh:* &many:* &large &keyed &livebridge:*";
        assert_eq!(redis.cli(&user.split(' ').collect::<Vec<_>>()), "OK");
        let options = Options {
            redis_url: Some(format!("redis://siege:secret@127.0.0.1:{}/", redis.port)),
            binary: from_environment("LIVEBRIDGE_SIEGE_BINARY"),
            ..Options::default().rules(RULES).flag(&format!("--trusted-proxy {PROXY}"))
        };
        let instances = join_all((0..INSTANCES).map(|_| options.clone().start())).await;
        for _ in 0..5 {
            instances[0].publish("large", "x".repeat(900_000)).await;
        }
        let http = reqwest::Client::builder().timeout(Duration::from_secs(10)).build().unwrap();
        let (began, over, listening) = (Instant::now(), AtomicBool::new(false), AtomicU64::new(0));
        Self { instances, http, began, over, listening, ends: Mutex::default() }
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// Microseconds since the beginning.
    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_micros()).unwrap()
    }

    /// Of each instance, in MiB.
    fn memory(&self) -> Vec<f64> {
        self.instances.iter().map(|instance| pss(instance) as f64 / f64::from(1 << 20)).collect()
    }
}

/// What an onlooker saw, once a second.
#[derive(Default)]
struct Watched {
    looked: usize,
    unready: Vec<String>,
    peak: Vec<f64>,
}

async fn watch(siege: Arc<Siege>) -> Watched {
    let mut watched = Watched { peak: siege.memory(), ..Watched::default() };
    while !siege.is_over() {
        for instance in &siege.instances {
            let answer = siege.http.get(instance.url("/readyz")).send().await;
            watched.looked += 1;
            match answer {
                Ok(answer) if answer.status() == 200 => {}
                Ok(answer) => watched.unready.push(answer.text().await.unwrap_or_default()),
                Err(error) => watched.unready.push(error.to_string()),
            }
        }
        for (peak, now) in watched.peak.iter_mut().zip(siege.memory()) {
            *peak = peak.max(now);
        }
        sleep(Duration::from_millis(500)).await;
    }
    watched
}

/// What became of it.
struct Table {
    seconds: u64,
    published: Vec<u64>,
    received: Vec<Received>,
    watched: Watched,
    /// Of each attack, how often each answer came.
    counts: BTreeMap<&'static str, BTreeMap<String, u64>>,
    before: Vec<f64>,
    after: Vec<f64>,
}

impl Table {
    #[expect(clippy::print_stdout, reason = "the table is for people")]
    fn print(&self) {
        let mut late: Vec<_> = self.received.iter().flat_map(|received| &received.late).copied().collect();
        late.sort_unstable();
        let at = |share: usize| late[(late.len() * share / 1000).min(late.len() - 1)] as f64 / 1000.0;
        let (published, deliveries): (u64, u64) = (self.published.iter().sum(), late.len() as u64);
        println!("\n{} s, {INSTANCES} instances, {CLIENTS} clients, {PRODUCERS} producers", self.seconds);
        println!("\n| attack | what came of it |\n| --- | --- |");
        for (attack, counts) in &self.counts {
            let counts: Vec<_> = counts.iter().map(|(answer, count)| format!("{answer}: {count}")).collect();
            println!("| {attack} | {} |", counts.join(", "));
        }
        println!("\n| clients | |\n| --- | --- |");
        println!("| messages published, delivered | {published}, {deliveries} |");
        println!("| lost, doubled or out of order | {} |", self.wrong().len());
        println!(
            "| from publishing to delivery | p50 {:.1} ms, p99 {:.1} ms, p99.9 {:.1} ms, most {:.1} ms |",
            at(500),
            at(990),
            at(999),
            at(1000)
        );
        println!("| not ready, of times looked | {} of {} |", self.watched.unready.len(), self.watched.looked);
        let list = |values: &[f64]| values.iter().map(|value| format!("{value:.0}")).collect::<Vec<_>>().join(", ");
        let (before, peak, after) = (list(&self.before), list(&self.watched.peak), list(&self.after));
        println!("| memory of the instances, MiB (PSS): before; peak; after | {before}; {peak}; {after} |");
    }

    fn wrong(&self) -> Vec<&String> {
        self.received.iter().filter_map(|received| received.wrong.as_ref()).collect()
    }

    fn judge(&self) {
        assert!(self.wrong().is_empty(), "{:?}", self.wrong());
        assert!(self.watched.unready.is_empty(), "not ready: {:?}", self.watched.unready);
        assert!(self.watched.peak.iter().all(|peak| *peak < PEAK), "{:?} MiB at the peak", self.watched.peak);
        let idle: Vec<_> =
            self.counts.iter().filter(|(_, counts)| counts.is_empty()).map(|(attack, _)| attack).collect();
        assert!(idle.is_empty(), "attacks that did nothing: {idle:?}");
    }
}
