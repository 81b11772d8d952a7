//! Channels with `plain = "numbered"`: what any client sends with `PUBLISH` has an offset, a history and a resume, in the
//! order of Redis, whatever breaks. `tests/numbering` explores the same code against a model of Redis.

mod servers;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::instance::{Instance, Options, position};
use crate::support::redis::Redis;
use crate::support::sse::Events;
use crate::support::ws::Socket;
use crate::support::{soon, until};

const RULES: &str =
    "[[channel]]\nmatch = 'orders:*'\nplain = 'numbered'\nhistory = { messages = 100000, age = '1h' }\n";

async fn instance(redis: &Redis) -> Instance {
    Options::redis(redis).rules(RULES).start().await
}

/// Waits until the history has as many messages, and returns their payloads and offsets.
async fn history(instance: &Instance, channel: &str, count: usize) -> Vec<(String, u64)> {
    let mut messages = Vec::new();
    let path = format!("/channels/{channel}/messages?limit=1000");
    until("all are in the history", || async {
        instance.get_json(&path).await["messages"].as_array().map(Vec::len) == Some(count)
    })
    .await;
    for message in instance.get_json(&path).await["messages"].as_array().expect("messages") {
        messages.push((message["data"].to_string(), message["offset"].as_u64().expect("an offset")));
    }
    messages
}

/// The next message, after the envelope that says where the client starts.
async fn message(socket: &mut Socket) -> Value {
    loop {
        let envelope = socket.json().await;
        if !envelope["data"].is_null() {
            return envelope;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_messages_have_offsets_and_a_history_even_if_nobody_listens() {
    let redis = Redis::start().await;
    let (one, two) = (instance(&redis).await, instance(&redis).await);
    until("both are members", || async { redis.listeners("livebridge:numbered:") == 2 }).await;
    let mut client = redis.client();
    (1..=3).for_each(|number| drop(client.ask(&["PUBLISH", "orders:1", &number.to_string()])));
    let expected: Vec<_> = (1..=3).map(|number: u64| (number.to_string(), number)).collect();
    assert_eq!(history(&two, "orders:1", 3).await, expected);
    let mut events = one.events("channel=orders:1").await;
    let mut socket = two.ws("channel=orders:1&format=json").await;
    drop(client.ask(&["PUBLISH", "orders:1", "4"]));
    let live = message(&mut socket).await;
    assert_eq!((&live["data"], &live["offset"]), (&Value::from(4), &Value::from(4)));
    assert_eq!(events.next().await.data, "4");
    let since = position(&live).expect("a position");
    drop(socket);
    drop(client.ask(&["PUBLISH", "orders:1", "5"]));
    let mut resumed = one.ws(&format!("channel=orders:1&format=json&since={since}")).await;
    assert_eq!(message(&mut resumed).await["offset"], 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plain_message_after_a_call_of_the_function_stands_behind_it() {
    let redis = Redis::start().await;
    let one = instance(&redis).await;
    let mut client = redis.client();
    for number in 0..50 {
        let publish = if number % 2 == 0 {
            vec!["FCALL", "livebridge_publish", "1", "orders:1"]
        } else {
            vec!["PUBLISH", "orders:1"]
        };
        let text = number.to_string();
        drop(client.ask(&publish.into_iter().chain([text.as_str()]).collect::<Vec<_>>()));
    }
    let offsets: HashMap<String, u64> = history(&one, "orders:1", 50).await.into_iter().collect();
    for number in (0..49).step_by(2) {
        assert!(offsets[&number.to_string()] < offsets[&(number + 1).to_string()], "{number}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_gives_the_positions_is_replaced_within_two_seconds_of_its_death_and_at_once_if_it_leaves() {
    let redis = Redis::start().await;
    let mut first = instance(&redis).await;
    let mut second = instance(&redis).await;
    let third = instance(&redis).await;
    let mut client = redis.client();
    drop(client.ask(&["PUBLISH", "orders:1", "0"]));
    history(&third, "orders:1", 1).await;
    first.signal("KILL");
    first.ended().await;
    let killed = Instant::now();
    drop(client.ask(&["PUBLISH", "orders:1", "1"]));
    history(&third, "orders:1", 2).await;
    assert!(killed.elapsed() < Duration::from_secs(3), "{:?}", killed.elapsed());
    let mut socket = second.ws("").await;
    second.signal("TERM");
    until("it has begun to stop", || async { second.log().contains("draining") }).await;
    drop(client.ask(&["PUBLISH", "orders:1", "2"]));
    let left = Instant::now();
    history(&third, "orders:1", 3).await;
    assert!(left.elapsed() < Duration::from_secs(1), "{:?}", left.elapsed());
    assert_eq!(socket.closed().await.0, 1012);
    second.ended().await;
}

#[test]
fn an_append_that_is_repeated_late_or_not_next_appends_nothing_twice() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let redis = runtime.block_on(Redis::start());
    let _instance = runtime.block_on(instance(&redis));
    let mut client = redis.client();
    let members = "livebridge:{}:members";
    let mut number = |since: u64, barrier: u64, index: u64, payloads: &[&str]| {
        let words = [since, barrier, index].map(|word| word.to_string());
        let head = ["FCALL", "livebridge_number", "1", "orders:9"].into_iter();
        let words: Vec<&str> = head.chain(words.iter().map(String::as_str)).chain(payloads.iter().copied()).collect();
        client.ask(&words).array().iter().map(|answer| answer.text()).collect::<Vec<_>>()
    };
    // The instance is an older member than these.
    let later: u64 = 9_000_000_000_000_000;
    assert_eq!(number(later, later, 0, &["x"]), Vec::<String>::new(), "an older member may have others");
    let place = |index: u64| vec!["100".to_owned(), index.to_string()];
    assert_eq!(number(50, 100, 0, &["a", "b"]), place(2));
    assert_eq!(number(50, 100, 0, &["a", "b"]), place(2), "repeated");
    assert_eq!(number(60, 100, 1, &["b", "c"]), place(3), "with one that is new");
    assert_eq!(number(50, 99, 7, &["old"]), place(3), "late");
    assert_eq!(
        redis
            .cli(&["LRANGE", "livebridge:{orders:9}:history", "0", "-1"])
            .lines()
            .skip(1)
            .step_by(2)
            .collect::<Vec<_>>(),
        ["a", "b", "c"]
    );
    assert!(!redis.cli(&["HGETALL", members]).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_messages_are_stored_while_the_connections_for_commands_end() {
    let redis = Redis::start().await;
    let (one, two) = (instance(&redis).await, instance(&redis).await);
    until("both are members", || async { redis.listeners("livebridge:numbered:") == 2 }).await;
    let mut expected = Vec::new();
    for _ in 0..3 {
        redis.cli(&["CLIENT", "KILL", "TYPE", "normal"]);
        let (mut client, killed) = (redis.client(), Instant::now());
        // Until after the next canary of both.
        while killed.elapsed() < Duration::from_millis(1300) {
            let number = expected.len() as u64 + 1;
            drop(client.ask(&["PUBLISH", "orders:1", &number.to_string()]));
            expected.push((number.to_string(), number));
            tokio::time::sleep(Duration::from_millis(8)).await;
        }
    }
    assert_eq!(history(&two, "orders:1", expected.len()).await, expected);
    for instance in [&one, &two] {
        assert_eq!(instance.metric("livebridge_broker_disconnects_total").await, 0.0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_whose_plain_messages_redis_refuses_costs_the_others_none() {
    let redis = Redis::start().await;
    let user =
        ["ACL", "SETUSER", "narrow", "on", ">secret", "+@all", "&*", "~livebridge:{}:members", "~livebridge:life"];
    assert_eq!(redis.cli(&[&user[..], &["~orders:good", "~livebridge:{orders:good}:*"]].concat()), "OK");
    // The messages come faster than an instance under test may read them.
    redis.cli(&["CONFIG", "SET", "client-output-buffer-limit", "pubsub 0 0 0"]);
    let mut options = Options::redis(&redis).rules(RULES);
    options.redis_url = Some(format!("redis://narrow:secret@127.0.0.1:{}/", redis.port));
    let one = options.start().await;
    until("it is a member", || async { redis.listeners("livebridge:numbered:") == 1 }).await;
    let (mut client, large, mut good) = (redis.client(), "x".repeat(100_000), Vec::new());
    // More than 64 MiB.
    for number in 0..900u64 {
        drop(client.ask(&["PUBLISH", "orders:bad", &large]));
        if number % 9 == 0 {
            let next = good.len() as u64 + 1;
            drop(client.ask(&["PUBLISH", "orders:good", &next.to_string()]));
            good.push((next.to_string(), next));
        }
    }
    assert_eq!(history(&one, "orders:good", good.len()).await, good);
    until("all is read", || async { one.metric("livebridge_plain_lost_total").await > 200.0 }).await;
    let waiting = one.metric("livebridge_plain_waiting").await;
    assert!((600.0..=671.0).contains(&waiting), "{waiting}");
    assert_eq!(one.metric("livebridge_broker_disconnects_total").await, 0.0);
    assert!(one.log().contains("dropped plain messages"), "{}", one.log());
    // What is kept is stored as soon as Redis allows it.
    assert_eq!(redis.cli(&["ACL", "SETUSER", "narrow", "~*"]), "OK");
    until("all are stored", || async { one.metric("livebridge_plain_waiting").await == 0.0 }).await;
}

/// What a client has received that resumes on any instance whenever its stream ends.
async fn receive(urls: Arc<std::sync::Mutex<Vec<String>>>, which: usize, count: usize) -> Vec<(u64, String)> {
    let (mut last, mut received) = (None::<String>, Vec::new());
    let mut attempt = which;
    while received.len() < count {
        let url = urls.lock().expect("no panic")[attempt % 3].clone();
        attempt += 1;
        let url = format!("{url}/events?channel=orders:1&{}", if last.is_none() { "last=1000" } else { "" });
        let Ok(mut events) = Events::try_connect(&url, last.as_deref()).await else {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        while let Ok(Some(event)) = tokio::time::timeout(Duration::from_secs(3), events.try_next()).await {
            assert!(!event.kind.contains("gap"), "{event:?}");
            if let Some(id) = event.id.filter(|_| event.kind == "message") {
                let offset = id.rsplit(':').next().and_then(|text| text.parse().ok()).expect("an offset");
                received.push((offset, event.data));
                last = Some(id);
            }
            if received.len() == count {
                break;
            }
        }
    }
    received
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_messages_arrive_once_in_the_order_of_redis_whatever_happens_to_instances_and_subscriptions() {
    const EACH: usize = 1000;
    let redis = Redis::start().await;
    let mut instances = Vec::new();
    for _ in 0..3 {
        instances.push(instance(&redis).await);
    }
    until("all are members", || async { redis.listeners("livebridge:numbered:") == 3 }).await;
    let urls = Arc::new(std::sync::Mutex::new(instances.iter().map(|it| it.url("")).collect::<Vec<_>>()));
    let mut witness = redis.client();
    drop(witness.ask(&["SUBSCRIBE", "orders:1"]));
    let receivers: Vec<_> = (0..3).map(|which| tokio::spawn(receive(urls.clone(), which, 4 * EACH))).collect();
    let publishers: Vec<_> = (0..4)
        .map(|publisher| {
            let mut client = redis.client();
            tokio::spawn(async move {
                for number in 0..EACH {
                    drop(client.ask(&["PUBLISH", "orders:1", &format!("{publisher}-{number}")]));
                    // Slow enough for something to break in between.
                    tokio::time::sleep(Duration::from_millis(8)).await;
                }
            })
        })
        .collect();
    let mut round = 0;
    while !publishers.iter().all(|publisher| publisher.is_finished()) {
        // The second one always lives, so that whatever happens, somebody has received everything.
        match round % 3 {
            0 => {
                instances[0].signal("STOP");
                tokio::time::sleep(Duration::from_millis(1800)).await;
                instances[0].signal("CONT");
            }
            1 => {
                let mut killed = std::mem::replace(&mut instances[2], instance(&redis).await);
                urls.lock().expect("no panic")[2] = instances[2].url("");
                killed.signal("KILL");
                killed.ended().await;
            }
            _ => {
                let list = redis.cli(&["CLIENT", "LIST", "TYPE", "pubsub"]);
                let is_ours = |line: &&str| !line.contains("psub=0");
                let id = list
                    .lines()
                    .find(is_ours)
                    .and_then(|line| line.split("id=").nth(1)?.split(' ').next().map(str::to_owned));
                if let Some(id) = id {
                    redis.cli(&["CLIENT", "KILL", "ID", &id]);
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
        round += 1;
    }
    let expected: Vec<String> = (0..4 * EACH).map(|_| String::from_utf8(witness.message().1).expect("text")).collect();
    for receiver in receivers {
        let received = soon("all messages", receiver).await.expect("no panic");
        assert!(received.windows(2).all(|pair| pair[1].0 == pair[0].0 + 1), "the offsets have holes");
        assert_eq!(received.into_iter().map(|(_, data)| data).collect::<Vec<_>>(), expected);
    }
}
