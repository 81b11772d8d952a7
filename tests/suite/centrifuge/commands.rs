//! Arbitrary commands in arbitrary order: each has one answer, or the connection ends with a documented code. Nobody sees
//! messages of a channel that they are not subscribed to.

use std::collections::BTreeSet;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseResult, TestRunner};
use serde_json::{Value, json};
use tungstenite::Message;

use crate::support::instance::{Instance, Options};
use crate::support::ws::Socket;

const RULES: &str = "
[[channel]]
match = 'fuzz:*'
presence = true
join_leave = true

[[channel]]
match = 'sheet:*'
keyed = true
";
const CHANNELS: [&str; 4] = ["fuzz:a", "fuzz:b", "sheet:fuzz", "fuzz:never"];

fn channel() -> impl Strategy<Value = Value> {
    prop_oneof![
        8 => (0..3_usize).prop_map(|index| json!(CHANNELS[index])),
        1 => prop::sample::select(vec![json!(""), json!("a b"), json!("livebridge:x"), json!("x".repeat(300))]),
        1 => value(),
    ]
}

/// Any JSON value that is not deep.
fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(|number| json!(number)),
        ".{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(2, 8, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::btree_map("[a-z]{0,4}", inner, 0..3).prop_map(|map| json!(map)),
        ]
    })
}

fn position() -> impl Strategy<Value = Value> {
    let epoch = prop_oneof![Just(json!("")), Just(json!("_")), any::<u64>().prop_map(|epoch| json!(epoch.to_string()))];
    (epoch, prop_oneof![0..9_u64, any::<u64>()]).prop_map(|(epoch, offset)| json!({ "epoch": epoch, "offset": offset }))
}

/// A method and its request, mostly as the protocol has them.
fn request() -> impl Strategy<Value = (&'static str, Value)> {
    let flags = (any::<bool>(), any::<bool>(), 0..4_u8);
    let subscribe = (channel(), flags, position(), prop::option::of(0..5_i8)).prop_map(
        |(channel, (recover, join_leave, flag), position, kind)| {
            let mut request = json!({ "channel": channel, "recover": recover, "join_leave": join_leave, "flag": flag });
            request["epoch"] = position["epoch"].clone();
            request["offset"] = position["offset"].clone();
            kind.filter(|kind| *kind > 2).iter().for_each(|kind| request["type"] = json!(kind));
            ("subscribe", request)
        },
    );
    let history = (channel(), -2..5_i64, prop::option::of(position()), any::<bool>()).prop_map(
        |(channel, limit, since, reverse)| {
            ("history", json!({ "channel": channel, "limit": limit, "since": since, "reverse": reverse }))
        },
    );
    let presence = (channel(), any::<bool>()).prop_map(|(channel, is_list)| {
        (if is_list { "presence" } else { "presence_stats" }, json!({ "channel": channel }))
    });
    let other = prop::sample::select(vec![
        "presence",
        "presence_stats",
        "rpc",
        "sub_refresh",
        "refresh",
        "ping",
        "connect",
        "unsubscribe",
        "subscribe",
        "other",
    ]);
    prop_oneof![
        4 => subscribe,
        2 => channel().prop_map(|channel| ("unsubscribe", json!({ "channel": channel }))),
        3 => (channel(), value()).prop_map(|(channel, data)| ("publish", json!({ "channel": channel, "data": data }))),
        2 => history,
        2 => presence,
        1 => value().prop_map(|data| ("send", json!({ "data": data }))),
        1 => (other, value()),
    ]
}

/// What a client sends: frames of commands, some of them without an id, and now and then anything.
fn frames() -> impl Strategy<Value = Vec<String>> {
    let command = (prop::bool::weighted(0.97), request());
    let line = prop_oneof![30 => command.prop_map(Some), 1 => Just(None)];
    prop::collection::vec(prop::collection::vec(line, 1..6), 1..6).prop_map(|frames| {
        let mut id = 1;
        let mut write = |line: Option<(bool, (&'static str, Value))>| match line {
            None => "{}".to_owned(),
            Some((has_id, (method, request))) => {
                id += 1;
                let mut command = json!({ method: request });
                if has_id && method != "send" {
                    command["id"] = id.into();
                }
                command.to_string()
            }
        };
        frames.into_iter().map(|frame| frame.into_iter().map(&mut write).collect::<Vec<_>>().join("\n")).collect()
    })
}

/// Runs a case: connects, sends the frames, and looks at everything that comes.
async fn run(instance: &Instance, frames: Vec<String>) -> TestCaseResult {
    let mut socket = Socket::connect(&format!("ws://{}/connection/websocket", instance.address)).await;
    socket.send(r#"{"id":1,"connect":{}}"#).await;
    let mut awaited = BTreeSet::from([1]);
    for line in frames.iter().flat_map(|frame| frame.split('\n')) {
        let command: Value = serde_json::from_str(line).unwrap();
        awaited.extend(command["id"].as_u64());
    }
    for frame in frames {
        socket.send(frame).await;
        // Others publish meanwhile, to channels of this client and to another.
        instance.publish("fuzz:never", "a secret").await;
    }
    // Its answer comes last.
    socket.send(r#"{"id":1000000,"ping":{}}"#).await;
    awaited.insert(1_000_000);
    while !awaited.is_empty() {
        match socket.next().await {
            Message::Text(text) if text.as_str() == "{}" => {}
            Message::Text(text) => {
                let message: Value = serde_json::from_str(&text).unwrap();
                prop_assert!(!text.contains("a secret"), "{text}");
                if let Some(id) = message["id"].as_u64() {
                    prop_assert!(awaited.remove(&id), "an answer too many: {text}");
                    prop_assert_eq!(message.as_object().unwrap().len(), 2);
                } else {
                    prop_assert!(CHANNELS[..3].contains(&message["push"]["channel"].as_str().unwrap()), "{text}");
                }
            }
            Message::Close(Some(frame)) => {
                prop_assert_eq!(u16::from(frame.code), 3501, "{}", frame.reason);
                return Ok(());
            }
            other => prop_assert!(false, "{other:?}"),
        }
    }
    Ok(())
}

#[test]
fn every_command_has_its_answer_or_a_documented_close() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let instance = runtime.block_on(Options::default().rules(RULES).start());
    let mut runner = TestRunner::new(Config { cases: 300, failure_persistence: None, ..Config::default() });
    let outcome = runner.run(&frames(), |frames| runtime.block_on(run(&instance, frames)));
    assert_eq!(outcome, Ok(()));
    assert_eq!(runtime.block_on(instance.get("/readyz")).0, 200);
}
