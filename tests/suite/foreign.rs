//! What stands in Redis that livebridge did not write, or not so, never ends a channel: what can't be read is skipped
//! and told as a gap, and no client is shown what Redis says about it.

use std::time::Duration;

use serde_json::Value;

use crate::support::brokers::Setup;
use crate::support::instance::{Instance, Options, position};
use crate::support::redis::Redis;
use crate::support::ws::Socket;
use crate::support::{channel, until};

const RULES: &str = "
[[channel]]
match = 'short:*'
history = { messages = 5, age = '5m' }
[[channel]]
match = 'sheet:*'
keyed = true
[[channel]]
match = 'cells:*'
history = { messages = 5, age = '5m' }
keyed = true
";

/// A channel of a kind with so many messages, and a client that has seen the first few of them.
#[derive(Clone, Copy)]
struct Case {
    kind: &'static str,
    messages: usize,
    seen: usize,
}

/// Within the history and beyond it, with keys and without.
const CASES: [Case; 5] = [
    Case { kind: "plain", messages: 3, seen: 2 },
    Case { kind: "sheet", messages: 3, seen: 2 },
    Case { kind: "short", messages: 40, seen: 39 },
    Case { kind: "short", messages: 12, seen: 2 },
    Case { kind: "cells", messages: 12, seen: 2 },
];

/// What is done to a channel: commands, in which `K` stands for the beginning of the channel's keys and `C` for its name.
const DAMAGES: [(&str, &[&str]); 22] = [
    ("the head is missing", &["DEL K:head"]),
    ("the head is of another type", &["DEL K:head", "RPUSH K:head x"]),
    ("the head is rubbish", &["SET K:head rubbish"]),
    ("the head is empty", &["SET K:head ''"]),
    ("the head is of another epoch", &["SET K:head 7|1|1|1"]),
    ("the history is missing", &["DEL K:history"]),
    ("the history is of another type", &["DEL K:history", "SET K:history x"]),
    ("one element follows the history", &["RPUSH K:history x"]),
    ("two elements follow the history", &["RPUSH K:history x y"]),
    ("one element precedes the history", &["LPUSH K:history x"]),
    ("two elements precede the history", &["LPUSH K:history x y"]),
    ("more elements than there are messages", &["RPUSH K:history 1 2 3 4 5 6 7 8 9 10 11 12"]),
    ("the oldest header is gone", &["LPOP K:history"]),
    ("the newest message is gone", &["RPOP K:history 2"]),
    ("a header is rubbish", &["LSET K:history -2 rubbish"]),
    ("the values are of another type", &["DEL K:values", "RPUSH K:values x"]),
    ("the values are missing", &["DEL K:values"]),
    ("the order of the keys is of another type", &["DEL K:order", "SET K:order x"]),
    ("the removed keys are of another type", &["DEL K:removed", "SET K:removed x"]),
    ("an id is of another type", &["SADD K:id:after x"]),
    ("a position marker is rubbish", &["PUBLISH livebridge:note:C rubbish", "PUBLISH livebridge:run:C rubbish"]),
    ("a position marker without its message", &["PUBLISH livebridge:run:C 7|1|1|3"]),
];

fn damage(redis: &Redis, channel: &str, commands: &[&str]) {
    for command in commands {
        let (key, blank) = (format!("livebridge:{{{channel}}}"), |word: &str| word.replace('|', " ").replace("''", ""));
        let place = |word: &str| match word.split_once(':') {
            Some(("K", what)) => format!("{key}:{what}"),
            Some(_) => word.replace(":C", &format!(":{channel}")),
            None => blank(word),
        };
        let words: Vec<_> = command.split(' ').map(place).collect();
        let answer = redis.cli(&words.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(!answer.contains("ERR"), "{words:?}: {answer}");
    }
}

/// Publishes, and insists on it; with an id but for the plain channels, since Redis takes another way where there is none.
async fn publish(instance: &Instance, channel: &str, data: &str) -> String {
    let key = if channel.starts_with("sheet") || channel.starts_with("cells") {
        format!("&key={data}")
    } else {
        String::new()
    };
    let id = [("idempotency-key", data)];
    let headers = if channel.starts_with("plain") { &[][..] } else { &id };
    let path = format!("/publish?channel={channel}{key}");
    let (status, answer) = instance.post_with(&path, headers, data.to_owned()).await;
    assert_eq!(status, 200, "{answer}");
    position(&answer["messages"][0]).unwrap()
}

/// Publishes numbers; returns the position of the last that was seen.
async fn publish_numbers(setup: &Setup, channel: &str, case: Case) -> String {
    let mut since = String::new();
    for number in 1..=case.messages {
        let position = publish(&setup.one, channel, &number.to_string()).await;
        if number == case.seen {
            since = position;
        }
    }
    since
}

/// What a client receives up to some data: the data, or the reason of a gap.
async fn received(socket: &mut Socket, last: &str) -> Vec<String> {
    let mut received = Vec::new();
    while received.last().is_none_or(|data| data != last) {
        received.push(next(socket).await);
    }
    received
}

/// What a client receives next, after the welcome.
async fn next(socket: &mut Socket) -> String {
    loop {
        let envelope: Value = socket.json().await;
        if envelope["event"] == "gap" {
            return format!("gap: {}", envelope["reason"].as_str().unwrap());
        } else if envelope["event"] != "welcome" {
            return envelope["data"].to_string().trim_matches('"').to_owned();
        }
    }
}

fn gaps(received: &[String]) -> usize {
    received.iter().filter(|data| data.starts_with("gap")).count()
}

/// A client is told at most one gap, and receives what is published from now on.
fn goes_on(received: &[String], what: &str) {
    assert!(gaps(received) <= most_gaps(what), "{what}: {received:?}");
    for data in ["after", "again"] {
        assert_eq!(received.iter().filter(|seen| *seen == data).count(), 1, "{what}: {received:?}");
    }
}

/// How often a client may be told that something is missing.
fn most_gaps(what: &str) -> usize {
    // An epoch that can be read is one of its own, and ends when the rest does not fit. And values that can't be read are
    // missing at once, while others follow only when something is published.
    let of_values = ["values", "order", "removed"].iter().any(|keys| what.contains(keys));
    // And what is trimmed and what can't be read are two holes.
    let of_both = what.contains("short");
    let may_be_two = what.contains("another epoch") || of_values && what.contains("cells") || of_both;
    if may_be_two { 2 } else { 1 }
}

/// Requests for the history are answered, and not with what Redis says.
async fn read(instance: &Instance, channel: &str, since: &str, what: &str) {
    for query in [String::new(), format!("?since={since}"), "?limit=1".to_owned()] {
        let (status, body) = instance.get(&format!("/channels/{channel}/messages{query}")).await;
        assert!(status == 200 || status == 410 && query.contains("since"), "{what}: {status} {body}");
        for word in ["WRONGTYPE", "ERR", "UNREADABLE", "script", "livebridge:", ".lua", "user_function"] {
            assert!(!body.contains(word), "{what}: {body}");
        }
    }
}

/// One subscriber is connected all the time, another comes back when the damage is done, a third later.
async fn survives(setup: &Setup, case: Case, what: &str, commands: &[&str]) {
    let Case { kind, messages, .. } = case;
    let (redis, channel) = (setup.redis.as_ref().unwrap(), channel(kind));
    let what = format!("{what}, {channel}");
    let json = format!("channel={channel}&format=json");
    let mut connected = setup.two().ws(&json).await;
    let since = publish_numbers(setup, &channel, case).await;
    assert_eq!(received(&mut connected, &messages.to_string()).await.len(), messages);
    damage(redis, &channel, commands);
    let mut resuming = setup.one.ws(&format!("{json}&since={since}")).await;
    read(&setup.one, &channel, &since, &what).await;
    for data in ["after", "again"] {
        publish(&setup.one, &channel, data).await;
        read(setup.two(), &channel, &since, &what).await;
    }
    goes_on(&received(&mut connected, "again").await, &what);
    goes_on(&received(&mut resuming, "again").await, &what);
    // The gap is not told again and again.
    publish(&setup.one, &channel, "last").await;
    for socket in [&mut connected, &mut resuming] {
        assert_eq!(received(socket, "last").await, ["last"], "{what}");
    }
    // The other instance would answer from its log, and for the same position this one from a page that it has read.
    let first = format!("{}:1", since.split(':').next().unwrap());
    let mut later = setup.one.ws(&format!("{json}&since={first}")).await;
    let told = received_while_publishing(&setup.one, &channel, &mut later).await;
    let told_all = ["after", "again", "last"].iter().all(|data| told.iter().any(|seen| seen == data));
    assert!(gaps(&told) > 0 || told_all && told.contains(&messages.to_string()), "{what}: {told:?}");
    assert!(gaps(&told) <= most_gaps(&what), "{what}: {told:?}");
}

/// What a client receives until it is up to date. What can't be read may hide what follows it, and then a gap includes that.
async fn received_while_publishing(instance: &Instance, channel: &str, socket: &mut Socket) -> Vec<String> {
    let mut told: Vec<String> = Vec::new();
    for number in 0..30 {
        publish(instance, channel, &format!("end{number}")).await;
        let up_to_date = async {
            while told.last().is_none_or(|data| !data.starts_with("end")) {
                told.push(next(socket).await);
            }
        };
        if tokio::time::timeout(Duration::from_secs(1), up_to_date).await.is_ok() {
            return told;
        }
    }
    panic!("{channel} has ended: {told:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_history_with_foreign_elements_in_it_can_soon_be_read_again() {
    let setup = Setup::redis(Options::default().rules(RULES)).await;
    let (redis, channel) = (setup.redis.as_ref().unwrap(), channel("plain"));
    // So many that Redis cannot tell by their number.
    publish_numbers(&setup, &channel, Case { kind: "plain", messages: 130, seen: 1 }).await;
    damage(redis, &channel, &["RPUSH K:history x y"]);
    let path = format!("/channels/{channel}/messages");
    let mut published = 0;
    let mut before = String::new();
    while setup.two().get_json(&path).await["messages"].as_array().unwrap().is_empty() {
        before = publish(&setup.one, &channel, &format!("no. {published}")).await;
        published += 1;
        assert!(published < 50, "not before it is trimmed");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    publish(&setup.one, &channel, "next").await;
    let page = setup.two().get_json(&format!("{path}?since={before}")).await;
    assert_eq!(page["messages"][0]["data"], "next", "{page}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_goes_on_whatever_stands_in_its_keys() {
    let setup = Setup::redis(Options::default().rules(RULES)).await;
    for (what, commands) in DAMAGES {
        for case in CASES {
            survives(&setup, case, what, commands).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_waits_on_an_unreadable_channel_does_not_keep_redis_busy() {
    let setup = Setup::redis(Options::default().rules(RULES)).await;
    let redis = setup.redis.as_ref().unwrap();
    let mut waiting = Vec::new();
    for (_, commands) in DAMAGES {
        for case in CASES {
            let channel = channel(case.kind);
            let since = publish_numbers(&setup, &channel, case).await;
            damage(redis, &channel, commands);
            for start in [format!("&since={since}"), "&since=1:1".to_owned(), "&last=2".to_owned(), String::new()] {
                waiting.push(setup.one.ws(&format!("channel={channel}&format=json{start}")).await);
            }
        }
    }
    // All have got what there is to get. That nothing happens any more takes a while to see.
    let plans_in = async |milliseconds| {
        redis.reset_counts();
        tokio::time::sleep(Duration::from_millis(milliseconds)).await;
        redis.calls("fcall")
    };
    until("the clients have come to rest", || async { plans_in(100).await == 0 }).await;
    assert!(plans_in(1000).await < 10, "{:?}", redis.usage());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stored_key_that_is_no_utf_8_is_skipped_counted_and_told_as_a_gap() {
    let setup = Setup::redis(Options::default().rules(RULES)).await;
    let redis = setup.redis.as_ref().unwrap();
    let channel = channel("plain");
    let json = format!("channel={channel}&format=json");
    let mut connected = setup.two().ws(&json).await;
    let mut positions = Vec::new();
    for number in 1..=5 {
        positions.push(publish(&setup.one, &channel, &number.to_string()).await);
    }
    let (key, mut client) = (format!("livebridge:{{{channel}}}:history"), redis.client());
    for (index, answers) in
        [(4, ["2", "gap: history_trimmed", "4", "5"]), (2, ["gap: history_trimmed", "gap", "4", "5"])]
    {
        let mut header = client.ask(&["LINDEX", &key, &index.to_string()]).text().into_bytes();
        header.extend(b" 0 \xff");
        client.ask(&[b"LSET", key.as_bytes(), index.to_string().as_bytes(), &header]);
        // Where the log of a subscriber does not hold them.
        let mut resuming = setup.one.ws(&format!("{json}&since={}", positions[0])).await;
        let mut received = received(&mut resuming, "5").await;
        // Two that stand next to each other may be told as one gap or two.
        received.dedup();
        let answers: Vec<_> = answers.into_iter().filter(|answer| *answer != "gap").collect();
        assert_eq!(received, answers);
    }
    assert!(setup.one.metric("livebridge_unreadable_messages_total").await >= 2.0);
    until("it is in the log", || async {
        let log = setup.one.log();
        log.contains("skipped an unreadable stored message") && log.contains(&channel)
    })
    .await;
    let page = setup.one.get_json(&format!("/channels/{channel}/messages")).await;
    assert_eq!(page["messages"][0]["data"], 1, "what precedes it is answered: {page}");
    // The oldest: who asks for all that there is has missed nothing.
    let header = [client.ask(&["LINDEX", &key, "0"]).text().as_bytes(), b" 0 \xff"].concat();
    client.ask(&[b"LSET", key.as_bytes(), b"0", &header]);
    let (status, body) = setup.one.get(&format!("/channels/{channel}/messages")).await;
    assert!(status == 200 && body.contains("\"data\":4"), "{status} {body}");
    publish(&setup.one, &channel, "after").await;
    assert_eq!(received(&mut connected, "after").await, ["1", "2", "3", "4", "5", "after"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_whose_key_is_no_utf_8_is_left_out_of_the_snapshot() {
    let setup = Setup::redis(Options::default().rules(RULES)).await;
    let channel = channel("sheet");
    for data in ["1", "2"] {
        publish(&setup.one, &channel, data).await;
    }
    let (key, mut client) = (format!("livebridge:{{{channel}}}:"), setup.redis.as_ref().unwrap().client());
    let (values, order) = (format!("{key}values"), format!("{key}order"));
    let value = [format!("{:016}{:013}0", 2, 1).as_bytes(), b"x"].concat();
    client.ask(&[b"HSET", values.as_bytes(), b"\xff", &value]);
    client.ask(&[b"ZADD", order.as_bytes(), b"2", b"\xff"]);
    let mut socket = setup.two().ws(&format!("channel={channel}&format=json")).await;
    let mut snapshot = received(&mut socket, "2").await;
    publish(&setup.one, &channel, "after").await;
    snapshot.extend(received(&mut socket, "after").await);
    assert_eq!(snapshot, ["1", "2", "after"]);
}
