//! Redis with Sentinel: livebridge finds the master, follows it through a failover, and never
//! publishes to a replica.

use crate::support::instance::{Options, command};
use crate::support::producers::{Outcome, Run};
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

/// Producers publish and a client listens while `fail` makes another server the master; then what was answered
/// must have arrived once and in order, but for what the new master lacks, which is told.
async fn nothing_is_lost_through(fail: impl AsyncFnOnce(&mut SentinelSet)) {
    let Outcome { lost, gaps } = outcome_of(Options::default(), fail).await;
    assert!(lost.is_empty() || gaps > 0, "lost without a word: {lost:?}");
}

async fn outcome_of(more: Options, fail: impl AsyncFnOnce(&mut SentinelSet)) -> Outcome {
    let mut set = SentinelSet::start().await;
    let options = || Options { redis_url: Some(set.url()), ..more.clone() }.rules(RULES);
    let (one, two) = (options().start().await, options().start().await);
    let run = Run::start([&one, &two], &channel("failover")).await;
    let before = set.master_port().unwrap();
    fail(&mut set).await;
    set.until_failed_over(before).await;
    run.finish([&one, &two]).await
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
async fn what_was_answered_survives_a_killed_master_if_replicas_are_waited_for() {
    let waiting = Options::default().flag("--redis-wait-replicas 1");
    let fail = async |set: &mut SentinelSet| {
        let before = set.master_port().unwrap();
        set.master().stop();
        set.until_failed_over(before).await;
        // Without a replica, nothing is answered.
        set.servers[0].start_again().await;
    };
    let Outcome { lost, .. } = outcome_of(waiting, fail).await;
    assert_eq!(lost, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn while_no_replica_confirms_a_publish_is_not_answered_200_and_a_retry_stores_it_once() {
    let set = SentinelSet::start().await;
    let instance = options(&set).flag("--redis-wait-replicas 1").start().await;
    let channel = channel("waits");
    instance.publish(&channel, "1").await;
    let path = format!("/publish?channel={channel}");
    let publish = async || instance.post_with(&path, &[("idempotency-key", "x")], "2").await;
    set.servers[1].signal("STOP");
    for _ in 0..2 {
        let (status, answer) = publish().await;
        assert!(status == 503 && answer["error"]["message"].as_str().unwrap().contains("replicas"), "{answer}");
    }
    set.servers[1].signal("CONT");
    until("the replica confirms", async || publish().await.0 == 200).await;
    let page = instance.get_json(&format!("/channels/{channel}/messages")).await;
    assert_eq!(page["messages"].as_array().unwrap().len(), 2, "{page}");
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
