//! Instances and a Redis that go away and come back, and what presence costs Redis.

use std::time::{Duration, Instant};

use serde_json::json;
use tungstenite::Message;

use super::{
    GRACE, RULES, connect, is_told_nothing, join, joined, options, sorted, stats, told, until_stats, until_there_are,
};
use crate::support::cluster::ClusterSet;
use crate::support::instance::{Instance, Options};
use crate::support::redis::Redis;
use crate::support::{channel, until};

async fn two_instances() -> (Redis, Instance, Instance) {
    let redis = Redis::start().await;
    let options = Options { redis_url: Some(redis.url()), ..options() };
    let (one, two) = (options.clone().start().await, options.start().await);
    (redis, one, two)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_clients_of_a_killed_instance_are_gone_within_30_seconds() {
    let (_redis, one, two) = two_instances().await;
    let room = channel("room");
    let (mut here, here_id) = join(&one, Some("here"), &room).await;
    let (_there, there_id) = join(&two, Some("there"), &room).await;
    assert_eq!(joined(&mut here, 2).await, sorted([&here_id, &there_id]));
    let began = Instant::now();
    two.signal("KILL");
    let (kind, info) = told(&mut here).await;
    assert_eq!((kind, info["client"].as_str()), ("leave", Some(&there_id[..])));
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    assert_eq!(stats(&mut here, &room).await, (1, 1));
    assert_eq!(until_there_are(&one, &room, 1).await["clients"][0]["client"], here_id[..]);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_comes_or_goes_while_the_slot_of_a_channel_moves() {
    let set = ClusterSet::start().await;
    let options = Options { redis_url: Some(set.url()), ..options() };
    let (one, two) = (options.clone().start().await, options.start().await);
    let room = channel("room");
    let (mut here, here_id) = join(&one, Some("here"), &room).await;
    let (_there, there_id) = join(&two, Some("there"), &room).await;
    assert_eq!(joined(&mut here, 2).await, sorted([&here_id, &there_id]));
    let (slot, home) = (set.slot(&room), set.owner(&room));
    let away = (home + 1) % 3;
    set.begin_move(slot, home, away);
    let (_late, late_id) = join(&two, Some("late"), &room).await;
    set.move_keys(slot, home, away);
    set.end_move(slot, away);
    assert_eq!(joined(&mut here, 1).await, [late_id]);
    is_told_nothing(&mut here, &one, &room).await;
    until_there_are(&one, &room, 3).await;
    until_there_are(&two, &room, 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_place_that_was_taken_over_elsewhere_is_not_taken_again() {
    let (redis, one, two) = two_instances().await;
    let room = channel("room");
    let (mut here, here_id) = join(&two, None, &room).await;
    let (first, first_id) = join(&one, Some("ada"), &room).await;
    assert_eq!(joined(&mut here, 2).await, sorted([&here_id, &first_id]));
    let until_listed = async |is_leaving: bool| {
        let key = format!("livebridge:{{{room}}}:presence");
        let is_hers = |line: &str| line.contains(&first_id) && line.starts_with("0 ") != is_leaving;
        until("she is listed so", || async { redis.cli(&["HVALS", &key]).lines().any(is_hers) }).await;
    };
    drop(first);
    until_listed(true).await;
    let (_back, _) = join(&two, Some("ada"), &room).await;
    until_listed(false).await;
    // The first instance still counts on her to come back.
    let (mut second, _) = join(&one, Some("ada"), &room).await;
    let second_id = joined(&mut here, 1).await.remove(0);
    assert!(second_id != first_id && second_id.len() == first_id.len(), "{second_id}");
    assert_eq!(stats(&mut here, &room).await, (3, 2));
    tokio::time::sleep(GRACE).await;
    until_there_are(&one, &room, 3).await;
    second.ask("unsubscribe", json!({ "channel": room })).await;
    let (kind, info) = told(&mut here).await;
    assert_eq!((kind, info["client"].as_str()), ("leave", Some(&second_id[..])));
    assert_eq!(stats(&mut here, &room).await, (2, 2));
    is_told_nothing(&mut here, &two, &room).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_grace_goes_on_when_an_instance_stops() {
    let (_redis, one, mut two) = two_instances().await;
    let room = channel("room");
    let (mut here, here_id) = join(&one, None, &room).await;
    let (mut moving, moving_id) = join(&two, Some("moving"), &room).await;
    let (_going, going_id) = join(&two, Some("going"), &room).await;
    assert_eq!(joined(&mut here, 3).await, sorted([&here_id, &moving_id, &going_id]));
    two.signal("TERM");
    // The joins come before it.
    while !matches!(moving.socket.next().await, Message::Close(_)) {}
    assert!(two.ended().await.success());
    let stopped = Instant::now();
    assert_eq!(stats(&mut here, &room).await, (3, 3), "nobody is gone yet");
    let (mut moved, _) = join(&one, Some("moving"), &room).await;
    let (kind, info) = told(&mut here).await;
    assert_eq!((kind, info["client"].as_str()), ("leave", Some(&going_id[..])));
    assert!(stopped.elapsed() < GRACE + Duration::from_secs(3), "{:?}", stopped.elapsed());
    is_told_nothing(&mut here, &one, &room).await;
    let presence = moved.ask("presence", json!({ "channel": room })).await["presence"].clone();
    assert_eq!(presence.as_object().unwrap().keys().cloned().collect::<Vec<_>>(), sorted([&here_id, &moving_id]));
}

/// How many commands of presence Redis was sent in some seconds.
async fn calls(redis: &Redis, seconds: u64) -> u64 {
    redis.reset_counts();
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    redis.usage().get("fcall").map_or(0, |usage| usage.calls)
}

#[tokio::test(flavor = "multi_thread")]
async fn presence_costs_redis_by_channels_and_not_by_connections() {
    let redis = Redis::start().await;
    let instance = Options { redis_url: Some(redis.url()), ..options() }.start().await;
    let [few, many] = ["quiet", "quiet"].map(channel);
    let mut sockets = vec![instance.ws(&format!("channel={few}")).await];
    until_there_are(&instance, &few, 1).await;
    // Twice the interval at which records are renewed.
    let of_one = calls(&redis, 21).await;
    redis.reset_counts();
    for _ in 0..100 {
        sockets.push(instance.ws(&format!("channel={many}")).await);
    }
    until("all are seen", || async {
        redis.cli(&["HVALS", &format!("livebridge:{{{many}}}:presence")]).contains(" 100 1")
    })
    .await;
    let fields = redis.cli(&["HLEN", &format!("livebridge:{{{many}}}:presence")]);
    assert_eq!(fields, "1", "an instance has one field");
    let of_both = calls(&redis, 21).await;
    assert!((2..=3).contains(&of_one), "{of_one} for a channel with one connection");
    assert!((4..=6).contains(&of_both), "{of_both} for this and a channel with a hundred");
    // The hash goes by itself.
    drop(instance);
    assert!(
        (1..=60).contains(&redis.cli(&["TTL", &format!("livebridge:{{{many}}}:presence")]).parse::<i64>().unwrap())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_come_together_are_written_together() {
    let redis = Redis::start().await;
    let instance = Options { redis_url: Some(redis.url()), ..options() }.start().await;
    let quiet = channel("quiet");
    let (mut client, _) = join(&instance, None, &quiet).await;
    until_there_are(&instance, &quiet, 1).await;
    redis.reset_counts();
    let began = Instant::now();
    let query = format!("channel={quiet}");
    let sockets = futures::future::join_all((0..100).map(|_| instance.ws(&query))).await;
    until_stats(&mut client, &quiet, (101, 1)).await;
    let windows = began.elapsed().as_millis() as u64 / 100 + 2;
    let writes = redis.usage().get("hset").map_or(0, |usage| usage.calls);
    assert!(writes <= windows, "{writes} writes in {windows} windows for {} clients", sockets.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn everybody_is_there_again_when_redis_is_back_and_empty() {
    let (mut redis, one, two) = two_instances().await;
    // Without a history, which would begin anew and end the subscriptions.
    let room = channel("bare");
    let (mut here, here_id) = join(&one, Some("here"), &room).await;
    let (_there, there_id) = join(&two, Some("there"), &room).await;
    assert_eq!(joined(&mut here, 2).await, sorted([&here_id, &there_id]));
    redis.stop();
    one.until_ready(false).await;
    assert_eq!(here.fail("presence", json!({ "channel": room })).await, (100, true));
    assert_eq!(here.fail("presence_stats", json!({ "channel": room })).await, (100, true));
    let (status, body) = one.get(&format!("/channels/{room}/presence")).await;
    assert!(status == 503 && body.contains("broker_unavailable"), "{status} {body}");
    redis.start_again().await;
    let back = Instant::now();
    one.until_ready(true).await;
    two.until_ready(true).await;
    let all = until_there_are(&one, &room, 2).await;
    assert_eq!(all["num_users"], 2);
    assert!(back.elapsed() < Duration::from_secs(8), "{:?}: they need not wait for the next renewal", back.elapsed());
    // An outage is no news of anybody.
    tokio::time::sleep(GRACE).await;
    is_told_nothing(&mut here, &two, &room).await;
    // A Redis that loses its data without an outage.
    redis.cli(&["FLUSHALL"]);
    until_there_are(&two, &room, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_put_in_its_place_is_replaced() {
    let (redis, one, two) = two_instances().await;
    let room = channel("room");
    let key = format!("livebridge:{{{room}}}:presence");
    redis.cli(&["SET", &key, "rubbish"]);
    let mut nobody = connect(&one, None).await.0;
    assert_eq!(stats(&mut nobody, &room).await, (0, 0));
    let (mut here, here_id) = join(&one, Some("here"), &room).await;
    joined(&mut here, 1).await;
    for rubbish in ["", "x", "9999999999999 1 1 1", "9999999999999 1 1 1\nx\n", "9999999999999 1 1 1\n0 u \n"] {
        redis.cli(&["HSET", &key, "another", rubbish]);
        let presence = here.ask("presence", json!({ "channel": room })).await["presence"].clone();
        assert!(presence.get(&here_id).is_some(), "{rubbish:?}: {presence}");
    }
    let (_there, there_id) = join(&two, None, &room).await;
    assert_eq!(joined(&mut here, 1).await, [&there_id[..]]);
    redis.cli(&["PUBLISH", &format!("livebridge:run:{room}"), "presence rubbish"]);
    is_told_nothing(&mut here, &two, &room).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn presence_works_with_a_prefix_and_with_scripts() {
    let redis = Redis::start().await;
    assert_eq!(redis.cli(&["ACL", "SETUSER", "default", "-function"]), "OK");
    let options = Options::redis(&redis).rules(RULES).flag("--redis-prefix app1:");
    let (one, two) = (options.clone().start().await, options.start().await);
    let room = channel("room");
    let (mut here, here_id) = join(&one, None, &room).await;
    let (_there, there_id) = join(&two, None, &room).await;
    assert_eq!(joined(&mut here, 2).await, sorted([&here_id, &there_id]));
    assert_eq!(redis.cli(&["HLEN", &format!("livebridge:{{app1:{room}}}:presence")]), "2");
    assert!(redis.usage().contains_key("evalsha") && !redis.usage().contains_key("fcall"));
}
