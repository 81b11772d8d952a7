//! Redis and instances go away and come back; clients stop reading, or vanish. One fault at a time.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::instance::{Instance, Options};
use crate::support::proxy::Proxy;
use crate::support::redis::Redis;
use crate::support::{channel, soon, until};

#[tokio::test(flavor = "multi_thread")]
async fn clients_stay_while_redis_is_away_and_publishing_is_refused_until_it_is_back() {
    let mut redis = Redis::persistent().await;
    let instance = Options::redis(&redis).start().await;
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
    assert_eq!(log.matches("Redis is unavailable").count(), 1, "{log}");
    assert_eq!(log.matches("connected to Redis").count(), 2, "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_published_while_an_instance_could_not_hear_arrives_in_order_afterwards() {
    let redis = Redis::start().await;
    let deaf = Options::redis(&redis).start().await;
    let other = Options::redis(&redis).start().await;
    let channel = channel("gap");
    let mut socket = deaf.ws(&format!("channel={channel}")).await;
    other.publish(&channel, "1").await;
    assert_eq!(socket.text().await, "1");
    // A stopped process hears nothing; meanwhile Redis drops its connections.
    deaf.signal("STOP");
    redis.cli(&["CLIENT", "KILL", "TYPE", "pubsub"]);
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

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_that_redis_cut_for_a_full_buffer_is_repaired() {
    let redis = Redis::start().await;
    let rules = "[[channel]]\nmatch = '*'\nhistory = { messages = 2000, age = '5m' }\n";
    let slow = Options::redis(&redis).rules(rules).start().await;
    let channel = channel("overflow");
    let mut socket = slow.ws(&format!("channel={channel}")).await;
    redis.cli(&["CONFIG", "SET", "client-output-buffer-limit", "pubsub 1mb 0 0"]);
    slow.signal("STOP");
    // More than the kernel holds; Valkey 9 counts no payloads of 16 KiB or more.
    let (payload, mut client) = ("x".repeat(15_000), redis.client());
    for number in 0..800 {
        let payload = format!("{number} {payload}");
        let answer = client.call("livebridge_publish", channel.as_bytes(), &[payload.as_bytes()]);
        assert_eq!(answer.array()[1].text(), (number + 1).to_string());
    }
    assert_eq!(redis.listeners(&channel), 0, "Redis has cut the subscriber: else this tests nothing");
    slow.signal("CONT");
    for number in 0..800 {
        assert!(socket.text().await.starts_with(&format!("{number} ")));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quiet_channel_is_checked_after_a_reconnect() {
    let redis = Redis::start().await;
    let instance = Options::redis(&redis).start().await;
    let channel = channel("quiet");
    let mut socket = instance.ws(&format!("channel={channel}")).await;
    instance.signal("STOP");
    redis.cli(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    redis.cli(&["FCALL", "livebridge_publish", "1", &channel, "the only one, and nothing after it"]);
    instance.signal("CONT");
    assert_eq!(socket.text().await, "the only one, and nothing after it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_came_back_empty_is_told_as_a_gap() {
    let mut redis = Redis::start().await;
    let instance = Options::redis(&redis).start().await;
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

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_lacked_the_tail_begins_a_new_epoch() {
    let redis = Redis::start().await;
    let instance = Options::redis(&redis).start().await;
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
            third = redis.cli(&["GET", &key("head")]);
        }
    }
    // What a failover to a replica does that had not received the last two: the history is set back.
    instance.signal("STOP");
    redis.cli(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    redis.cli(&["SET", &key("head"), &third]);
    redis.cli(&["DEL", &key("history")]);
    redis.cli(&["FCALL", "livebridge_publish", "1", &channel, "another fourth"]);
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

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_stands_still_is_noticed_and_nothing_is_accepted_and_dropped() {
    let redis = Redis::start().await;
    let instance = Options::redis(&redis).start().await;
    let channel = channel("still");
    let mut socket = instance.ws(&format!("channel={channel}")).await;
    redis.signal("STOP");
    let asked = Instant::now();
    let (status, _) = instance.post(&format!("/publish?channel={channel}"), "unknown").await;
    assert_eq!(status, 503);
    assert!(asked.elapsed() < Duration::from_secs(10), "bounded");
    instance.until_ready(false).await;
    redis.signal("CONT");
    instance.until_ready(true).await;
    instance.publish(&channel, "known").await;
    // The unanswered one may have taken effect: 503 says that it is unknown, never that it was dropped.
    let mut received = socket.text().await;
    if received == "unknown" {
        received = socket.text().await;
    }
    assert_eq!(received, "known");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_starts_without_redis_and_is_ready_when_it_comes() {
    let mut redis = Redis::start().await;
    redis.stop();
    let instance = Options::redis(&redis).start_unready();
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

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_subscriber_is_closed_and_does_not_delay_others() {
    let instance = Options::default().flag("--log-messages 32").start().await;
    let channel = channel("slow");
    let mut slow = instance.ws(&format!("channel={channel}")).await;
    let mut quick = instance.ws(&format!("channel={channel}")).await;
    let large = "x".repeat(200_000);
    let mut last = String::new();
    for number in 0..100 {
        last = instance.publish(&channel, format!("{number} {large}")).await.unwrap();
        assert!(quick.text().await.starts_with(&format!("{number} ")));
    }
    let mut received = 0;
    let (code, reason) = loop {
        match slow.next().await {
            tungstenite::Message::Text(text) => {
                assert!(text.starts_with(&format!("{received} ")), "in order, none missing");
                received += 1;
            }
            tungstenite::Message::Close(Some(frame)) => break (u16::from(frame.code), frame.reason.to_string()),
            other => panic!("{other:?}"),
        }
    };
    assert!(received < 100);
    assert_eq!(code, 4001);
    let since = reason.split("since=").nth(1).expect(&reason);
    assert!(last.starts_with(since.split(':').next().unwrap()));
    let mut resumed = instance.ws(&format!("channel={channel}&since={since}")).await;
    assert!(resumed.text().await.starts_with(&format!("{received} ")), "resumed from {since}");
    until("its memory is counted out", || async { instance.metric("livebridge_connections").await == 2.0 }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_vanished_without_a_fin_is_gone_within_a_minute() {
    let instance = Instance::embedded().await;
    let mut stream = tokio::net::TcpStream::connect(&instance.address).await.unwrap();
    let request = "GET /ws HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let connected = Instant::now();
    // It reads, as a kernel would acknowledge, but never says anything: no pong, no close.
    let mut received = Vec::new();
    let end = tokio::time::timeout(Duration::from_secs(60), stream.read_to_end(&mut received)).await;
    assert!(end.is_ok(), "still open after a minute");
    assert!(connected.elapsed() > Duration::from_secs(30), "given up too soon");
    assert!(received.ends_with(&[0x89, 0x00]) || received.contains(&0x89), "it was asked by a ping");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_tells_everybody_and_ends_within_its_bound() {
    for signal in ["TERM", "INT"] {
        let mut instance = Instance::embedded().await;
        let mut socket = instance.ws("").await;
        let mut events = instance.events("").await;
        // A client that never reads nor answers must not hold the stop up.
        let mut stuck = tokio::net::TcpStream::connect(&instance.address).await.unwrap();
        stuck.write_all(b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let mut idle = tokio::net::TcpStream::connect(&instance.address).await.unwrap();
        idle.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        instance.publish("live", "x").await;
        assert_eq!(socket.text().await, "x");
        let asked = Instant::now();
        instance.signal(signal);
        let (code, reason) = socket.closed().await;
        assert!(code == 1012 && reason.starts_with("restarting"), "{code} {reason}");
        assert_eq!(events.next().await.data, "x");
        assert_eq!(events.next().await.kind, "livebridge:restarting");
        assert_eq!(soon("the stream ends", events.try_next()).await, None);
        let status = instance.ended().await;
        assert_eq!(status.code(), Some(0), "{signal}");
        assert!(asked.elapsed() < Duration::from_secs(12), "{:?}", asked.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_on_its_way_at_a_stop_is_answered() {
    let mut instance = Instance::embedded().await;
    let mut connected = Vec::new();
    for _ in 0..20 {
        connected.push(tokio::net::TcpStream::connect(&instance.address).await.unwrap());
    }
    instance.signal("TERM");
    until("draining is logged", || async { instance.log().contains("draining") }).await;
    for stream in &mut connected {
        stream.write_all(b"POST /publish HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx").await.unwrap();
    }
    for stream in &mut connected {
        let mut answer = String::new();
        soon("an answer", stream.read_to_string(&mut answer)).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("draining"), "{answer:?}");
    }
    assert_eq!(instance.ended().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_stood_still_drops_nothing_that_waits_in_its_socket() {
    let redis = Redis::start().await;
    let rules = "[[channel]]\nmatch = 'plain:*'\nhistory = false\n";
    let instance = Options::redis(&redis).rules(rules).start().await;
    let channel = channel("plain");
    let mut events = instance.events(&format!("channel={channel}")).await;
    instance.signal("STOP");
    for number in 0..10 {
        redis.cli(&["PUBLISH", &channel, &number.to_string()]);
    }
    // Longer than the canary may stay away: time that this process did not have must not count against Redis.
    tokio::time::sleep(Duration::from_secs(6)).await;
    instance.signal("CONT");
    for number in 0..10 {
        assert_eq!(events.next().await.data, number.to_string());
    }
    assert!(!instance.log().contains("receives nothing"));
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
async fn an_instance_comes_back_to_a_redis_that_is_full_and_what_is_kept_can_be_read() {
    let redis = Redis::start().await;
    let instance = Options::redis(&redis).start().await;
    let channel = channel("full");
    instance.publish(&channel, "kept").await;
    redis.cli(&["CONFIG", "SET", "maxmemory", "1"]);
    redis.cli(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    redis.cli(&["CLIENT", "KILL", "TYPE", "normal"]);
    until("had again", || async { instance.metric("livebridge_broker_reconnects_total").await == 1.0 }).await;
    instance.until_ready(true).await;
    assert_eq!(instance.ws(&format!("channel={channel}&last=1")).await.text().await, "kept");
    let (status, answer) = instance.post(&format!("/publish?channel={channel}"), "too much").await;
    assert_eq!((status.as_u16(), &answer["error"]["code"]), (503, &"broker_refused".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_redis_ended_meanwhile_is_not_published_on() {
    let redis = Redis::start().await;
    let instance = Options::redis(&redis).start().await;
    let channel = channel("idle");
    instance.publish(&channel, "on the first").await;
    redis.cli(&["CLIENT", "KILL", "TYPE", "normal"]);
    until("had again", || async { instance.metric("livebridge_broker_reconnects_total").await == 1.0 }).await;
    instance.until_ready(true).await;
    instance.publish(&channel, "on the second").await;
    assert_eq!(instance.metric("livebridge_publish_failed_total").await, 0.0);
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

#[tokio::test(flavor = "multi_thread")]
async fn a_flush_of_the_functions_is_noticed_by_publishers_and_readers() {
    let redis = Redis::start().await;
    let instance = Options::redis(&redis).start().await;
    let channel = channel("functions");
    instance.publish(&channel, "1").await;
    assert_eq!(instance.ws(&format!("channel={channel}&last=1")).await.text().await, "1");
    redis.cli(&["FUNCTION", "FLUSH"]);
    let history = instance.get_json(&format!("/channels/{channel}/messages")).await;
    assert_eq!(history["messages"][0]["data"], 1, "{history}");
    redis.cli(&["FUNCTION", "FLUSH"]);
    instance.publish(&channel, "2").await.expect("a position");
    assert_eq!(instance.metric("livebridge_broker_disconnects_total").await, 0.0, "that is no outage");
}
