//! Redis with Sentinel: livebridge finds the master, follows it through a failover, and never
//! publishes to a replica.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::Value;

use crate::support::instance::{Options, command, position};
use crate::support::sentinel::{MASTER, SentinelSet};
use crate::support::{channel, until};

const RULES: &str = "[[channel]]\nmatch = '*'\nhistory = { messages = 10000, age = '1h' }\n";

fn options(set: &SentinelSet) -> Options {
    Options { redis_url: Some(set.url()), ..Options::default() }.rules(RULES)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_master_that_sentinels_name_is_used() {
    let mut set = SentinelSet::start().await;
    let (one, two) = (options(&set).start().await, options(&set).start().await);
    let channel = channel("sentinel");
    let mut socket = two.ws(&format!("channel={channel}")).await;
    one.publish(&channel, "hello").await;
    assert_eq!(socket.text().await, "hello");
    set.master().cli(&["PUBLISH", &channel, "plain"]);
    assert_eq!(socket.text().await, "plain");
}

#[tokio::test(flavor = "multi_thread")]
async fn sentinels_that_do_not_answer_are_passed_over() {
    let mut set = SentinelSet::start().await;
    set.sentinels[0].stop();
    set.sentinels[1].signal("STOP");
    let instance = options(&set).start().await;
    instance.publish(&channel("one-left"), "hello").await;
    set.sentinels[1].signal("CONT");
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_master_lives_nobody_misses_the_sentinels() {
    let mut set = SentinelSet::start().await;
    let instance = options(&set).start().await;
    let channel = channel("alone");
    let mut socket = instance.ws(&format!("channel={channel}")).await;
    set.sentinels.iter_mut().for_each(|sentinel| sentinel.stop());
    for number in 0..20 {
        instance.publish(&channel, number.to_string()).await;
        assert_eq!(socket.text().await, number.to_string());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_master_that_lives_but_is_not_named_any_more_is_left() {
    let set = SentinelSet::start().await;
    let instance = options(&set).start().await;
    let channel = channel("left");
    let mut socket = instance.ws(&format!("channel={channel}&format=json")).await;
    assert_eq!(socket.json().await["event"], "welcome");
    let other = &set.servers[1];
    assert_eq!(other.cli(&["REPLICAOF", "NO", "ONE"]), "OK");
    for sentinel in &set.sentinels {
        assert_eq!(sentinel.cli(&["SENTINEL", "REMOVE", MASTER]), "OK");
        let port = other.port.to_string();
        assert_eq!(sentinel.cli(&["SENTINEL", "MONITOR", MASTER, "127.0.0.1", &port, "2"]), "OK");
    }
    until("the other server is used", || async { other.listeners(&channel) == 1 }).await;
    assert_eq!(set.servers[0].listeners(&channel), 0);
    instance.until_ready(true).await;
    instance.publish(&channel, "there").await;
    let key = format!("livebridge:{{{channel}}}:head");
    assert_eq!((other.cli(&["EXISTS", &key]), set.servers[0].cli(&["EXISTS", &key])), ("1".into(), "0".into()));
    assert_eq!(instance.metric("livebridge_redis_failovers_total").await, 1.0);
}

#[tokio::test]
async fn check_finds_the_master_and_says_what_is_wrong() {
    let set = SentinelSet::start().await;
    let check = |url: &str| {
        let folder = tempfile::tempdir().unwrap();
        let output = command(folder.path()).args(["check", "--redis-url", url]).output().unwrap();
        (output.status.success(), String::from_utf8(output.stdout).unwrap())
    };
    let (fine, text) = check(&set.url());
    assert!(fine && text.contains("Redis answers at the master \"sheets\" of the Sentinels"), "{text}");
    let (fine, text) = check(&set.url().replace(MASTER, "sheet"));
    assert!(!fine && text.contains("know no master named \"sheet\""), "{text}");
    let (fine, text) = check("redis+sentinel://127.0.0.1:1/sheets");
    assert!(!fine && text.contains("no Sentinel names the master (127.0.0.1:1"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_master_name_is_said() {
    let set = SentinelSet::start().await;
    let url = set.url().replace(MASTER, "sheet");
    let instance = Options { redis_url: Some(url), ..Options::default() }.start_unready();
    until("the reason", || async { instance.get("/readyz").await.1.contains("the Sentinels know no master named") })
        .await;
}

/// Publishes numbered messages, several at once, until told to stop; returns which message was answered to
/// stand where. What was not answered 200 is tried again with the same id.
async fn produce(address: String, channel: String, producer: usize, stop: Arc<AtomicBool>) -> BTreeMap<String, String> {
    let http = reqwest::Client::new();
    let mut answered = BTreeMap::new();
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let text = format!("{producer}-{number}");
        loop {
            let request = http.post(format!("http://{address}/publish?channel={channel}")).body(text.clone());
            let request = request.header("idempotency-key", &text).timeout(Duration::from_secs(10));
            if let Ok(response) = request.send().await
                && response.status() == 200
            {
                let answer: Value = serde_json::from_str(&response.text().await.unwrap()).unwrap();
                answered.insert(text, position(&answer["messages"][0]).expect("a position"));
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    answered
}

/// Producers publish and a client listens while `fail` makes another server the master; then what was answered
/// must have arrived once and in order, but for what the new master lacks, which is told.
async fn nothing_is_lost_through(fail: impl AsyncFnOnce(&mut SentinelSet)) {
    let mut set = SentinelSet::start().await;
    let (one, two) = (options(&set).start().await, options(&set).start().await);
    let channel = channel("failover");
    let mut socket = two.ws(&format!("channel={channel}&format=json")).await;
    assert_eq!(socket.json().await["event"], "welcome");
    let stop = Arc::new(AtomicBool::new(false));
    let producers: Vec<_> = [one.address.clone(), two.address.clone()]
        .into_iter()
        .enumerate()
        .map(|(index, address)| tokio::spawn(produce(address, channel.clone(), index, stop.clone())))
        .collect();
    let before = set.master_port().unwrap();
    let mut received: Vec<String> = Vec::new();
    while received.len() < 20 {
        received.push(socket.json().await["data"].to_string());
    }
    fail(&mut set).await;
    set.until_failed_over(before).await;
    one.until_ready(true).await;
    two.until_ready(true).await;
    stop.store(true, Ordering::Relaxed);
    let mut answered = BTreeMap::new();
    for producer in producers {
        answered.extend(producer.await.unwrap());
    }
    until("published", || async { one.post(&format!("/publish?channel={channel}"), "end").await.0 == 200 }).await;
    let (mut seen, mut gaps) = (BTreeMap::new(), 0);
    loop {
        let message = socket.json().await;
        match message["event"].as_str() {
            Some("gap") => gaps += 1,
            _ if message["data"] == "end" => break,
            _ => {
                let before = seen.insert(message["data"].as_str().unwrap().to_owned(), position(&message));
                assert_eq!(before, None, "doubled: {message}");
            }
        }
    }
    let received: Vec<_> = received.iter().map(|text| text.trim_matches('"').to_owned()).collect();
    let lost: Vec<_> = answered.keys().filter(|text| !seen.contains_key(*text) && !received.contains(text)).collect();
    assert!(lost.is_empty() || gaps > 0, "lost without a word: {lost:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_in_a_failover_that_somebody_asked_for() {
    nothing_is_lost_through(async |set| {
        assert_eq!(set.sentinels[0].cli(&["SENTINEL", "FAILOVER", MASTER]), "OK");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_lost_with_a_killed_master_is_told() {
    nothing_is_lost_through(async |set| set.master().stop()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_master_that_stands_still_and_comes_back_as_a_replica_is_not_published_to() {
    let mut set = SentinelSet::start().await;
    let instance = options(&set).start().await;
    let channel = channel("still");
    let mut socket = instance.ws(&format!("channel={channel}")).await;
    let before = set.master_port().unwrap();
    set.master().signal("STOP");
    set.until_failed_over(before).await;
    until("published again", || async {
        instance.post(&format!("/publish?channel={channel}"), "on the new master").await.0 == 200
    })
    .await;
    assert_eq!(socket.text().await, "on the new master");
    set.servers[0].signal("CONT");
    until("the old master follows", || async { set.servers[0].cli(&["ROLE"]).starts_with("slave") }).await;
    instance.publish(&channel, "still there").await;
    assert_eq!(socket.text().await, "still there");
}
