//! Redis Cluster: every channel is served by its own shard, and follows its slot.

use crate::support::cluster::ClusterSet;
use crate::support::instance::{Instance, Options, command};
use crate::support::producers::{Outcome, Run};
use crate::support::sse::Events;
use crate::support::{channel, until};

const RULES: &str = "[[channel]]\nmatch = 'sheet*'\nkeyed = true\n
[[channel]]\nmatch = '*'\nhistory = { messages = 10000, age = '1h' }\n";

fn options(set: &ClusterSet) -> Options {
    Options { redis_url: Some(set.url()), ..Options::default() }.rules(RULES)
}

async fn two_instances(set: &ClusterSet) -> [Instance; 2] {
    [options(set).start().await, options(set).start().await]
}

/// A channel of each master.
fn channel_of_each(set: &ClusterSet) -> Vec<String> {
    let channels = (0..).map(|number| format!("each:{number}"));
    let mut found = vec![None; 3];
    for channel in channels {
        let owner = set.owner(&channel);
        found[owner] = Some(channel);
        if found.iter().all(Option::is_some) {
            break;
        }
    }
    found.into_iter().flatten().collect()
}

/// What a function call names on a Cluster.
fn keys(channel: &str) -> [String; 2] {
    ["head", "history"].map(|key| format!("livebridge:{{{channel}}}:{key}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn channels_of_all_shards_are_served_at_once() {
    let set = ClusterSet::start().await;
    let [one, two] = two_instances(&set).await;
    let channels = channel_of_each(&set);
    let query: Vec<_> = channels.iter().map(|channel| format!("channel={channel}")).collect();
    let mut socket = two.ws(&format!("{}&format=json", query.join("&"))).await;
    assert_eq!(socket.json().await["event"], "welcome");
    let lines: String = channels.iter().map(|channel| format!("{{\"channel\":\"{channel}\",\"data\":1}}\n")).collect();
    let (status, answer) = one.post_with("/publish", &[("content-type", "application/x-ndjson")], lines).await;
    assert_eq!(status, 200, "{answer}");
    let mut received = Vec::new();
    for _ in &channels {
        received.push(socket.json().await["channel"].as_str().unwrap().to_owned());
    }
    received.sort();
    assert_eq!(received, channels);
    assert_eq!(one.metric("livebridge_redis_shards_up").await, 3.0);
    assert_eq!(one.metric("livebridge_redis_slots").await, 16384.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_redis_clients_publish_is_heard() {
    let set = ClusterSet::start().await;
    let instance = options(&set).start().await;
    let channel = channel("heard");
    let mut socket = instance.ws(&format!("channel={channel}")).await;
    // Any node takes a plain PUBLISH.
    for node in &set.nodes {
        node.cli(&["PUBLISH", &channel, "plain"]);
        assert_eq!(socket.text().await, "plain");
    }
    let owner = &set.nodes[set.owner(&channel)];
    owner.cli(&["SPUBLISH", &channel, "sharded"]);
    assert_eq!(socket.text().await, "sharded");
    let [head, history] = keys(&channel);
    owner.cli(&["FCALL", "livebridge_publish", "2", &head, &history, "stored"]);
    assert_eq!(socket.text().await, "stored");
    let refused = owner.cli(&["FCALL", "livebridge_publish", "1", &channel, "stored"]);
    assert!(refused.contains("call it with 2 livebridge:{CHANNEL}:head"), "{refused}");
    let page = instance.get_json(&format!("/channels/{channel}/messages")).await;
    assert_eq!(page["messages"].as_array().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_slot_that_moves_to_and_fro_loses_and_doubles_nothing() {
    let set = ClusterSet::start().await;
    let [one, two] = two_instances(&set).await;
    let channel = channel("moving");
    let mut run = Run::start([&one, &two], &channel).await;
    let (slot, home) = (set.slot(&channel), set.owner(&channel));
    let away = (home + 1) % 3;
    for (from, to) in [(home, away), (away, home), (home, away)] {
        set.move_slot(slot, from, to);
        run.receive(20).await;
    }
    let Outcome { lost, gaps } = run.finish([&one, &two]).await;
    assert_eq!((lost, gaps), (Vec::new(), 0));
    until("the new shard is listened to", || async { set.listeners(&channel) == 1 }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_a_slot_moves_a_call_is_served_only_where_all_its_data_is() {
    let set = ClusterSet::start().await;
    let [one, two] = two_instances(&set).await;
    let (plain, sheet) = (channel("plain"), channel("sheet"));
    for channel in [&plain, &sheet] {
        let path = format!("/publish?channel={channel}{}", if channel == &sheet { "&key=a" } else { "" });
        assert_eq!(one.post(&path, "1").await.0, 200);
        let (slot, home) = (set.slot(channel), set.owner(channel));
        let away = (home + 1) % 3;
        set.begin_move(slot, home, away);
        let [waits, with_id] = [path.clone(), path.clone()].map(|path| {
            let (url, http) = (one.url(&path), reqwest::Client::new());
            tokio::spawn(async move {
                http.post(url).body("3").header("idempotency-key", "x").send().await.unwrap().status().as_u16()
            })
        });
        if channel == &plain {
            // Its data is still in one place.
            assert_eq!(two.post(&path, "2").await.0, 200);
        }
        set.move_keys(slot, home, away);
        set.end_move(slot, away);
        assert_eq!((waits.await.unwrap(), with_id.await.unwrap()), (200, 200));
        let page = two.get_json(&format!("/channels/{channel}/messages")).await;
        let expected: &[&str] = if channel == &plain { &["1", "2", "3"] } else { &["1", "3"] };
        let data: Vec<_> =
            page["messages"].as_array().unwrap().iter().map(|message| message["data"].to_string()).collect();
        assert_eq!(data, expected, "{page}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_joins_gets_the_functions_and_its_channels() {
    let mut set = ClusterSet::start().await;
    let [one, two] = two_instances(&set).await;
    let channel = channel("joins");
    let mut run = Run::start([&one, &two], &channel).await;
    let new = set.join().await;
    set.until_whole().await;
    set.move_slot(set.slot(&channel), set.owner(&channel), new);
    run.receive(20).await;
    let Outcome { lost, gaps } = run.finish([&one, &two]).await;
    assert_eq!((lost, gaps), (Vec::new(), 0));
    assert_eq!(set.owner(&channel), new);
    assert_eq!(one.metric("livebridge_redis_shards").await, 4.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_lost_with_a_killed_master_is_told_and_its_replica_is_followed() {
    let mut set = ClusterSet::with_replicas().await;
    let [one, two] = two_instances(&set).await;
    let channel = channel("killed");
    let run = Run::start([&one, &two], &channel).await;
    let master = set.owner(&channel);
    set.nodes[master].stop();
    until("its replica is the master", || async { set.nodes[master + 3].cli(&["ROLE"]).starts_with("master") }).await;
    let Outcome { lost, gaps } = run.finish([&one, &two]).await;
    assert!(lost.is_empty() || gaps > 0, "lost without a word: {lost:?}");
    assert_eq!(one.metric("livebridge_redis_failovers_total").await, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn channels_of_healthy_shards_go_on_and_readyz_names_the_deaf_one() {
    let set = ClusterSet::start().await;
    for node in &set.nodes {
        assert_eq!(node.cli(&["CONFIG", "SET", "cluster-require-full-coverage", "no"]), "OK");
    }
    let instance = options(&set).start().await;
    let channels = channel_of_each(&set);
    let mut sockets = Vec::new();
    for channel in &channels {
        sockets.push(instance.ws(&format!("channel={channel}")).await);
    }
    set.nodes[0].signal("STOP");
    let deaf = format!("127.0.0.1:{}", set.nodes[0].port);
    until("the deaf shard is named", || async {
        let (status, text) = instance.get("/readyz").await;
        status == 200 && text.contains(&deaf)
    })
    .await;
    for index in [1, 2] {
        until("published", || async {
            instance.post(&format!("/publish?channel={}", channels[index]), "on").await.0 == 200
        })
        .await;
        assert_eq!(sockets[index].text().await, "on");
    }
    let (status, answer) = instance.post(&format!("/publish?channel={}", channels[0]), "off").await;
    assert_eq!(status, 503, "{answer}");
    set.nodes[0].signal("CONT");
    instance.until_ready(true).await;
    until("published again", || async {
        instance.post(&format!("/publish?channel={}", channels[0]), "back").await.0 == 200
    })
    .await;
    assert_eq!(sockets[0].text().await, "back");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_stays_up_while_the_slot_of_its_canary_moves() {
    let set = ClusterSet::start().await;
    let instance = options(&set).start().await;
    let canaries = |node: usize| {
        let names = set.nodes[node].cli(&["PUBSUB", "SHARDCHANNELS", "livebridge:canary:*"]);
        names.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let canary = canaries(0)[0].clone();
    set.move_slot(set.slot(&canary), 0, 1);
    until("a canary in another slot", || async { canaries(0).len() == 1 && canaries(0)[0] != canary }).await;
    assert_eq!(instance.metric("livebridge_broker_disconnects_total").await, 0.0);
    let channel = channel_of_each(&set).remove(0);
    instance.publish(&channel, "still up").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_position_from_before_messages_that_got_lost_is_told_a_gap() {
    let set = ClusterSet::start().await;
    let instance = options(&set).start().await;
    let channel = channel("lost");
    let events = instance.events(&format!("channel={channel}")).await;
    let before = events.last_id.clone().expect("the welcome carries the position");
    drop(events);
    instance.publish(&channel, "1").await;
    let [head, _] = keys(&channel);
    assert_eq!(set.nodes[set.owner(&channel)].cli(&["DEL", &head]), "1");
    instance.publish(&channel, "2").await;
    let mut events = Events::connect(&instance.url(&format!("/events?channel={channel}")), Some(&before)).await;
    assert_eq!(events.next().await.kind, "livebridge:gap");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_url_of_the_wrong_kind_is_said_with_the_right_one() {
    let set = ClusterSet::start().await;
    let one_node = Options { redis_url: Some(set.nodes[0].url()), ..Options::default() }.start_unready();
    until("it is a Cluster", || async { one_node.get("/readyz").await.1.contains("write redis+cluster://") }).await;
    let redis = crate::support::redis::Redis::start().await;
    let url = redis.url().replace("redis://", "redis+cluster://");
    let no_cluster = Options { redis_url: Some(url), ..Options::default() }.start_unready();
    until("it is none", || async { no_cluster.get("/readyz").await.1.contains("no node of a Redis Cluster") }).await;
    assert!(no_cluster.log().contains("no node of a Redis Cluster"), "{}", no_cluster.log());
    let url = Some("redis+cluster://127.0.0.1:1".to_owned());
    let nobody = Options { redis_url: url, ..Options::default() }.start_unready();
    until("nobody answers, and why", || async { nobody.get("/readyz").await.1.contains("127.0.0.1:1: ") }).await;
    assert!(nobody.log().contains("127.0.0.1:1: "), "{}", nobody.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_commands_for_a_message_are_as_many_as_on_one_server() {
    let set = ClusterSet::start().await;
    let instance = options(&set).start().await;
    let channel = channel("counted");
    instance.publish(&channel, "first").await;
    let owner = &set.nodes[set.owner(&channel)];
    owner.reset_counts();
    for _ in 0..50 {
        instance.publish(&channel, "message").await;
    }
    let calls = ["fcall", "rpush", "spublish"].map(|name| owner.calls(name));
    // A canary each second is a SPUBLISH too.
    assert!(calls[..2] == [50, 50] && (100..110).contains(&calls[2]), "{calls:?}");
}

#[tokio::test]
async fn check_names_every_shard() {
    let set = ClusterSet::start().await;
    let folder = tempfile::tempdir().unwrap();
    let output = command(folder.path()).args(["check", "--redis-url", &set.url()]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    for node in &set.nodes {
        assert!(text.contains(&format!("Redis answers at 127.0.0.1:{}", node.port)), "{text}");
    }
    assert!(text.contains("all 16384 slots have a master"), "{text}");
    let slot = set.slot("open").to_string();
    let owner = set.owner("open");
    set.begin_move(slot.parse().unwrap(), owner, (owner + 1) % 3);
    let output = command(folder.path()).args(["check", "--redis-url", &set.url()]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("1 slot is moving"), "{text}");
}
