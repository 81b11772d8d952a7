//! Redis goes away and comes back, empty or not; it stands still, or drops its connections. One fault at a time, on each form in which
//! Redis is reached.

use std::time::{Duration, Instant};

use crate::support::instance::{Instance, Options};
use crate::support::proxy::Proxy;
use crate::support::redis::Redis;
use crate::support::servers::{Form, Servers, on_each_form};
use crate::support::{channel, until};

on_each_form!(
    clients_stay_while_redis_is_away_and_publishing_is_refused_until_it_is_back,
    what_was_published_while_an_instance_could_not_hear_arrives_in_order_afterwards,
    a_subscription_that_redis_cut_for_a_full_buffer_is_repaired,
    a_quiet_channel_is_checked_after_a_reconnect,
    a_redis_that_came_back_empty_is_told_as_a_gap,
    a_replica_that_lacked_the_tail_begins_a_new_epoch,
    a_redis_that_stands_still_is_noticed_and_nothing_is_accepted_and_dropped,
    an_instance_starts_without_redis_and_is_ready_when_it_comes,
    a_process_that_stood_still_drops_nothing_that_waits_in_its_socket,
    an_instance_comes_back_to_a_redis_that_is_full_and_what_is_kept_can_be_read,
    a_connection_that_redis_ended_meanwhile_is_not_published_on,
    a_subscription_outlives_the_connections_for_commands,
    a_flush_of_the_functions_is_noticed_by_publishers_and_readers,
);

async fn clients_stay_while_redis_is_away_and_publishing_is_refused_until_it_is_back(form: Form) {
    let mut redis = Servers::persistent(form).await;
    let instance = redis.options().start().await;
    let (one, two) = (channel("one"), channel("two"));
    let mut socket = instance.ws(&format!("channel={one}")).await;
    let mut events = instance.events(&format!("channel={two}")).await;
    redis.stop();
    instance.until_ready(false).await;
    let asked = Instant::now();
    let refused = reqwest::Client::new().post(instance.url("/publish")).body("x").send().await.unwrap();
    assert_eq!(refused.status(), 503);
    assert!(refused.headers().contains_key("retry-after"));
    assert!(asked.elapsed() < Duration::from_secs(5), "bounded");
    assert_eq!(instance.get("/healthz").await.0, 200, "alive, though not ready");
    redis.start_again().await;
    instance.until_ready(true).await;
    instance.publish(&one, "to the socket").await;
    instance.publish(&two, "to the stream").await;
    assert_eq!(socket.text().await, "to the socket");
    assert_eq!(events.next().await.data, "to the stream");
    let log = instance.log();
    assert!(log.contains("Redis is unavailable") && log.contains("connected to Redis"), "{log}");
    if [Form::One, Form::Tls].contains(&form) {
        assert_eq!(log.matches("Redis is unavailable").count(), 1, "{log}");
        assert_eq!(log.matches("connected to Redis").count(), 2, "{log}");
    }
}

async fn what_was_published_while_an_instance_could_not_hear_arrives_in_order_afterwards(form: Form) {
    let redis = Servers::start(form).await;
    let deaf = redis.options().start().await;
    let other = redis.options().start().await;
    let channel = channel("gap");
    let mut socket = deaf.ws(&format!("channel={channel}")).await;
    other.publish(&channel, "1").await;
    assert_eq!(socket.text().await, "1");
    // A stopped process hears nothing; meanwhile Redis drops its connections.
    deaf.signal("STOP");
    redis.cut_subscriptions();
    for number in 2..=50 {
        let published = async { other.post(&format!("/publish?channel={channel}"), number.to_string()).await.0 == 200 };
        // The other instance was cut off as well, and is back in a moment.
        if !published.await {
            until("published", || async {
                other.post(&format!("/publish?channel={channel}"), number.to_string()).await.0 == 200
            })
            .await;
        }
    }
    deaf.signal("CONT");
    for number in 2..=50 {
        assert_eq!(socket.text().await, number.to_string());
    }
    deaf.until_ready(true).await;
    other.publish(&channel, "live").await;
    assert_eq!(socket.text().await, "live");
    assert!(deaf.metric("livebridge_gaps_repaired_total").await >= 1.0);
}

async fn a_subscription_that_redis_cut_for_a_full_buffer_is_repaired(form: Form) {
    let redis = Servers::start(form).await;
    let rules = "[[channel]]\nmatch = '*'\nhistory = { messages = 2000, age = '5m' }\n";
    let slow = redis.options().rules(rules).start().await;
    let channel = channel("overflow");
    let mut socket = slow.ws(&format!("channel={channel}")).await;
    redis.each(&["CONFIG", "SET", "client-output-buffer-limit", "pubsub 1mb 0 0"]);
    slow.signal("STOP");
    // More than the kernel holds; Valkey 9 counts no payloads of 16 KiB or more.
    let (payload, mut client) = ("x".repeat(15_000), redis.master_of(&channel).client());
    for number in 0..800 {
        let payload = format!("{number} {payload}");
        let answer = client.ask(&redis.words_of_call("livebridge_publish", &channel, &[&payload]));
        assert_eq!(answer.array()[1].text(), (number + 1).to_string());
    }
    assert_eq!(redis.listeners(&channel), 0, "Redis has cut the subscriber: else this tests nothing");
    slow.signal("CONT");
    for number in 0..800 {
        assert!(socket.text().await.starts_with(&format!("{number} ")));
    }
}

async fn a_quiet_channel_is_checked_after_a_reconnect(form: Form) {
    let redis = Servers::start(form).await;
    let instance = redis.options().start().await;
    let channel = channel("quiet");
    let mut socket = instance.ws(&format!("channel={channel}")).await;
    instance.signal("STOP");
    redis.cut_subscriptions();
    redis.call("livebridge_publish", &channel, &["the only one, and nothing after it"]);
    instance.signal("CONT");
    assert_eq!(socket.text().await, "the only one, and nothing after it");
}

async fn a_redis_that_came_back_empty_is_told_as_a_gap(form: Form) {
    let mut redis = Servers::start(form).await;
    let instance = redis.options().start().await;
    let channel = channel("empty");
    let mut raw = instance.ws(&format!("channel={channel}")).await;
    let mut json = instance.ws(&format!("channel={channel}&format=json")).await;
    json.json().await;
    let mut events = instance.events(&format!("channel={channel}")).await;
    instance.publish(&channel, "before").await;
    assert_eq!((raw.text().await.as_str(), &json.json().await["offset"]), ("before", &1.into()));
    assert_eq!(events.next().await.data, "before");
    redis.stop();
    redis.start_again().await;
    let (code, reason) = raw.closed().await;
    assert!(code == 4002 && reason.starts_with("gap"), "{code} {reason}");
    let gap = json.json().await;
    assert_eq!((&gap["event"], &gap["reason"]), (&"gap".into(), &"epoch_changed".into()), "{gap}");
    assert_eq!(events.next().await.kind, "livebridge:gap");
    instance.until_ready(true).await;
    instance.publish(&channel, "after").await;
    let envelope = json.json().await;
    assert_eq!((&envelope["data"], &envelope["offset"]), (&"after".into(), &1.into()));
    let number = |value: &serde_json::Value| value.as_str().unwrap().parse::<u64>().unwrap();
    assert!(
        number(&envelope["epoch"]) > number(&gap["epoch"]),
        "the gap was told before the new epoch's first message"
    );
    assert_eq!(events.next().await.data, "after");
}

async fn a_replica_that_lacked_the_tail_begins_a_new_epoch(form: Form) {
    let redis = Servers::start(form).await;
    let instance = redis.options().start().await;
    let channel = channel("failover");
    let mut json = instance.ws(&format!("channel={channel}&format=json")).await;
    json.json().await;
    let key = |what: &str| format!("livebridge:{{{channel}}}:{what}");
    let (mut third, mut epoch) = (String::new(), serde_json::Value::Null);
    for number in 1..=5 {
        instance.publish(&channel, number.to_string()).await;
        let envelope = json.json().await;
        assert_eq!(envelope["offset"], number);
        epoch = envelope["epoch"].clone();
        if number == 3 {
            third = redis.master_of(&channel).cli(&["GET", &key("head")]);
        }
    }
    // What a failover to a replica does that had not received the last two: the history is set back.
    instance.signal("STOP");
    redis.cut_subscriptions();
    redis.master_of(&channel).cli(&["SET", &key("head"), &third]);
    redis.master_of(&channel).cli(&["DEL", &key("history")]);
    redis.call("livebridge_publish", &channel, &["another fourth"]);
    instance.signal("CONT");
    let gap = json.json().await;
    assert_eq!(gap["reason"], "epoch_changed", "{gap}");
    assert_ne!(gap["epoch"], epoch, "or other positions would be taken for the same");
    let fourth = json.json().await;
    assert_eq!((&fourth["data"], &fourth["epoch"]), (&"another fourth".into(), &gap["epoch"]));
    instance.until_ready(true).await;
    instance.publish(&channel, "fifth").await;
    assert_eq!(json.json().await["data"], "fifth");
}

async fn a_redis_that_stands_still_is_noticed_and_nothing_is_accepted_and_dropped(form: Form) {
    let redis = Servers::start(form).await;
    let instance = redis.options().start().await;
    let channel = channel("still");
    let mut socket = instance.ws(&format!("channel={channel}")).await;
    redis.stand_still();
    let asked = Instant::now();
    let (status, _) = instance.post(&format!("/publish?channel={channel}"), "unknown").await;
    assert_eq!(status, 503);
    assert!(asked.elapsed() < Duration::from_secs(10), "bounded");
    instance.until_ready(false).await;
    redis.go_on();
    instance.until_ready(true).await;
    let path = format!("/publish?channel={channel}");
    // Nodes that stood still may take one another for dead, for a moment.
    let publish = || async { instance.post_with(&path, &[("idempotency-key", "x")], "known").await.0 == 200 };
    until("published", publish).await;
    // The unanswered one may have taken effect: 503 says that it is unknown, never that it was dropped.
    let mut received = socket.text().await;
    if received == "unknown" {
        received = socket.text().await;
    }
    assert_eq!(received, "known");
}

async fn an_instance_starts_without_redis_and_is_ready_when_it_comes(form: Form) {
    let mut redis = Servers::start(form).await;
    redis.stop();
    let instance = redis.options().start_unready();
    instance.until_ready(false).await;
    let mut early = crate::support::sse::Events::try_connect(&instance.url("/events"), None).await.unwrap();
    let refused = crate::support::raw::websocket("127.0.0.1", &instance, "", &[]).await;
    assert_eq!(refused.err().map(|refused| refused.0), Some(503), "a subscription that would hear nothing is refused");
    redis.start_again().await;
    instance.until_ready(true).await;
    let mut socket = instance.ws("").await;
    assert_eq!(early.next().await.kind, "livebridge:welcome");
    instance.publish("live", "hello").await;
    assert_eq!(socket.text().await, "hello");
    assert_eq!(early.next().await.data, "hello");
}

async fn a_process_that_stood_still_drops_nothing_that_waits_in_its_socket(form: Form) {
    let redis = Servers::start(form).await;
    let rules = "[[channel]]\nmatch = 'plain:*'\nhistory = false\n";
    let instance = redis.options().rules(rules).start().await;
    let channel = channel("plain");
    let mut events = instance.events(&format!("channel={channel}")).await;
    instance.signal("STOP");
    for number in 0..10 {
        redis.master_of(&channel).cli(&["PUBLISH", &channel, &number.to_string()]);
    }
    // Longer than the canary may stay away: time that this process did not have must not count against Redis.
    tokio::time::sleep(Duration::from_secs(6)).await;
    instance.signal("CONT");
    for number in 0..10 {
        assert_eq!(events.next().await.data, number.to_string());
    }
    assert!(!instance.log().contains("receives nothing"));
}

/// Waits until an instance has lost each server once, and has it again.
async fn until_connected_again(instance: &Instance, form: Form) {
    let servers = if form == Form::Cluster { 3.0 } else { 1.0 };
    until("had again", || async { instance.metric("livebridge_broker_reconnects_total").await == servers }).await;
    instance.until_ready(true).await;
}

async fn an_instance_comes_back_to_a_redis_that_is_full_and_what_is_kept_can_be_read(form: Form) {
    let redis = Servers::start(form).await;
    let instance = redis.options().start().await;
    let channel = channel("full");
    instance.publish(&channel, "kept").await;
    redis.each(&["CONFIG", "SET", "maxmemory", "1"]);
    redis.cut_subscriptions();
    redis.each(&["CLIENT", "KILL", "TYPE", "normal"]);
    until_connected_again(&instance, form).await;
    assert_eq!(instance.ws(&format!("channel={channel}&last=1")).await.text().await, "kept");
    let (status, answer) = instance.post(&format!("/publish?channel={channel}"), "too much").await;
    assert_eq!((status.as_u16(), &answer["error"]["code"]), (503, &"broker_refused".into()));
}

async fn a_connection_that_redis_ended_meanwhile_is_not_published_on(form: Form) {
    let redis = Servers::start(form).await;
    let instance = redis.options().start().await;
    let channel = channel("idle");
    instance.publish(&channel, "on the first").await;
    redis.each(&["CLIENT", "KILL", "TYPE", "normal"]);
    let master = redis.master_of(&channel);
    until("a canary on another", || async { master.cli(&["CLIENT", "LIST", "TYPE", "normal"]).contains("publish") })
        .await;
    instance.publish(&channel, "on the second").await;
    assert_eq!(instance.metric("livebridge_publish_failed_total").await, 0.0);
}

async fn a_subscription_outlives_the_connections_for_commands(form: Form) {
    let redis = Servers::start(form).await;
    let rules = "[[channel]]\nmatch = 'plain:*'\nhistory = false\n";
    let instance = redis.options().rules(rules).start().await;
    let channel = channel("plain");
    let mut events = instance.events(&format!("channel={channel}")).await;
    let mut number = 0;
    for _ in 0..3 {
        redis.each(&["CLIENT", "KILL", "TYPE", "normal"]);
        let mut client = redis.master_of(&channel).client();
        let killed = Instant::now();
        // Until after the next canary. A message without a position is lost while nobody is subscribed.
        while killed.elapsed() < Duration::from_millis(1300) {
            drop(client.ask(&["PUBLISH", &channel, &number.to_string()]));
            number += 1;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    for expected in 0..number {
        assert_eq!(events.next().await.data, expected.to_string());
    }
    assert_eq!(instance.metric("livebridge_broker_disconnects_total").await, 0.0);
}

async fn a_flush_of_the_functions_is_noticed_by_publishers_and_readers(form: Form) {
    let redis = Servers::start(form).await;
    let instance = redis.options().start().await;
    let channel = channel("functions");
    instance.publish(&channel, "1").await;
    assert_eq!(instance.ws(&format!("channel={channel}&last=1")).await.text().await, "1");
    redis.each(&["FUNCTION", "FLUSH"]);
    let history = instance.get_json(&format!("/channels/{channel}/messages")).await;
    assert_eq!(history["messages"][0]["data"], 1, "{history}");
    redis.each(&["FUNCTION", "FLUSH"]);
    instance.publish(&channel, "2").await.expect("a position");
    assert_eq!(instance.metric("livebridge_broker_disconnects_total").await, 0.0, "that is no outage");
}
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_looks_alive_and_is_deaf_is_replaced() {
    let redis = Redis::start().await;
    let proxy = Proxy::start(redis.port).await;
    let mut options = Options::redis(&redis);
    options.redis_url = Some(format!("redis://127.0.0.1:{}/", proxy.port));
    let deaf = options.start().await;
    let channel = channel("deaf");
    let mut socket = deaf.ws(&format!("channel={channel}")).await;
    deaf.publish(&channel, "heard").await;
    assert_eq!(socket.text().await, "heard");
    // What Redis says on the connections that are open now vanishes on the way; new ones work.
    proxy.deafen();
    redis.cli(&["FCALL", "livebridge_publish", "1", &channel, "not heard"]);
    assert_eq!(socket.text().await, "not heard", "the canary was missed, and the gap repaired");
    deaf.until_ready(true).await;
    deaf.publish(&channel, "heard again").await;
    assert_eq!(socket.text().await, "heard again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deaf_connection_is_replaced_even_if_those_for_commands_end_all_the_time() {
    let redis = Redis::start().await;
    let proxy = Proxy::start(redis.port).await;
    let mut options = Options::redis(&redis);
    options.redis_url = Some(format!("redis://127.0.0.1:{}/", proxy.port));
    let deaf = options.start().await;
    proxy.deafen();
    let began = Instant::now();
    until("noticed", || async {
        redis.cli(&["CLIENT", "KILL", "TYPE", "normal"]);
        deaf.metric("livebridge_broker_disconnects_total").await == 1.0
    })
    .await;
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    deaf.until_ready(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_is_not_ready_until_it_is_the_master() {
    let master = Redis::start().await;
    drop(Options::redis(&master).start().await);
    let redis = Redis::start_with(&["--save", "", "--replicaof", "127.0.0.1", &master.port.to_string()]).await;
    // It needs no write of ours to have the functions.
    until("replicated", || async { redis.cli(&["FUNCTION", "LIST"]).contains("livebridge") }).await;
    let instance = Options::redis(&redis).start_unready();
    until("the reason", || async { instance.get("/readyz").await.1.contains("is a replica at the moment") }).await;
    let (status, answer) = instance.post("/publish", "x").await;
    assert_eq!((status.as_u16(), &answer["error"]["code"]), (503, &"broker_unavailable".into()));
    redis.cli(&["REPLICAOF", "NO", "ONE"]);
    instance.until_ready(true).await;
    instance.publish(&channel("promoted"), "x").await.expect("a position");
}
