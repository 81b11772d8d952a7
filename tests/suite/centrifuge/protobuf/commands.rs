//! Arbitrary commands and arbitrary bytes: each command has one answer, or the connection ends with a documented code. Nobody
//! sees messages of a channel that they are not subscribed to.

use std::collections::BTreeSet;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseResult, TestRunner};
use serde_json::{Value, json};
use tungstenite::Message;

use crate::support::centrifuge_protobuf as protobuf;
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
const CHANNELS: [&str; 3] = ["fuzz:a", "fuzz:b", "sheet:fuzz"];
const LAST_ID: u32 = u32::MAX;

/// What a client sends: a command of which everything but the id is known, or the bytes of a message to publish.
#[derive(Clone, Debug)]
enum Sent {
    Command(&'static str, Value),
    Publish(String, Vec<u8>),
    Pong,
}

/// A frame, and the byte of it that is changed.
type Frame = (Vec<Sent>, Option<(prop::sample::Index, u8)>);

fn channel() -> impl Strategy<Value = String> {
    prop_oneof![
        8 => prop::sample::select(&CHANNELS[..]).prop_map(str::to_owned),
        1 => prop::sample::select(vec!["".to_owned(), "a b".to_owned(), "livebridge:x".to_owned(), "x".repeat(300)]),
        1 => ".{0,8}",
    ]
}

fn position() -> impl Strategy<Value = Value> {
    let epoch =
        prop_oneof![Just(String::new()), Just("_".to_owned()), any::<u64>().prop_map(|epoch| epoch.to_string())];
    (epoch, prop_oneof![0..9_u64, any::<u64>()]).prop_map(|(epoch, offset)| json!({ "epoch": epoch, "offset": offset }))
}

fn sent() -> impl Strategy<Value = Sent> {
    let flags = (any::<bool>(), any::<bool>(), any::<u64>(), -1..2_i32);
    let data = prop_oneof![Just(json!("text")), Just(json!({ "livebridge": { "start": 2, "describe": true } }))];
    let subscribe = (channel(), flags, position(), data).prop_map(
        |(channel, (recover, join_leave, flag, kind), position, data)| {
            let mut request = json!({ "channel": channel, "recover": recover, "join_leave": join_leave, "flag": flag });
            request["type"] = kind.into();
            request["epoch"] = position["epoch"].clone();
            request["offset"] = position["offset"].clone();
            request["data"] = data;
            ("subscribe", request)
        },
    );
    let history = (channel(), any::<i32>(), prop::option::of(position()), any::<bool>()).prop_map(
        |(channel, limit, since, reverse)| {
            let mut request = json!({ "channel": channel, "limit": limit, "reverse": reverse });
            since.into_iter().for_each(|since| request["since"] = since);
            ("history", request)
        },
    );
    let of_channel = prop::sample::select(vec!["presence", "presence_stats", "unsubscribe", "sub_refresh"]);
    let other = prop::sample::select(vec!["rpc", "ping", "refresh", "connect", "send"]);
    let command = prop_oneof![
        4 => subscribe,
        2 => history,
        4 => (of_channel, channel()).prop_map(|(method, channel)| (method, json!({ "channel": channel }))),
        1 => other.prop_map(|method| (method, json!({}))),
    ];
    prop_oneof![
        20 => command.prop_map(|(method, request)| Sent::Command(method, request)),
        6 => (channel(), prop::collection::vec(any::<u8>(), 0..40)).prop_map(|(channel, data)| Sent::Publish(channel, data)),
        1 => Just(Sent::Pong),
    ]
}

fn frames() -> impl Strategy<Value = Vec<Frame>> {
    let change = prop::option::weighted(0.1, (any::<prop::sample::Index>(), any::<u8>()));
    prop::collection::vec((prop::collection::vec(sent(), 1..6), change), 1..6)
}

/// The bytes of frames, and the ids that must be answered; `None` if a byte of them was changed.
fn encode(frames: Vec<Frame>) -> (Vec<Vec<u8>>, Option<BTreeSet<u32>>) {
    let (mut ids, mut id, mut is_changed) = (BTreeSet::new(), 1, false);
    let mut encoded = Vec::new();
    for (sent, change) in frames {
        let mut frame = Vec::new();
        for sent in sent {
            id += 1;
            frame.extend(match sent {
                Sent::Pong => protobuf::command(&json!({})),
                Sent::Command("send", request) => protobuf::command(&json!({ "send": request })),
                Sent::Command(method, request) => {
                    ids.insert(id);
                    protobuf::command(&json!({ "id": id, method: request }))
                }
                Sent::Publish(channel, data) => {
                    ids.insert(id);
                    protobuf::publish(id, &channel, &data)
                }
            });
        }
        if let Some((index, byte)) = change {
            is_changed = true;
            *index.get_mut(&mut frame) = byte;
        }
        encoded.push(frame);
    }
    (encoded, (!is_changed).then_some(ids))
}

/// Connects, sends the frames, and looks at everything that comes.
async fn run(instance: &Instance, frames: Vec<Vec<u8>>, ids: Option<BTreeSet<u32>>) -> TestCaseResult {
    let mut socket = Socket::connect(&format!("ws://{}/connection/websocket?format=protobuf", instance.address)).await;
    socket.send(protobuf::command(&json!({ "id": 1, "connect": {} }))).await;
    for frame in frames {
        socket.send(frame).await;
        // Others publish meanwhile, to a channel that is not this client's.
        instance.publish("fuzz:never", "a secret").await;
    }
    // Its answer comes last.
    socket.send(protobuf::command(&json!({ "id": LAST_ID, "ping": {} }))).await;
    let mut answered = BTreeSet::new();
    while !answered.contains(&LAST_ID) {
        match socket.next().await {
            Message::Binary(frame) => {
                let reply = protobuf::reply(&frame);
                prop_assert!(!reply.to_string().contains("a secret"), "{reply}");
                if let Some(id) = reply["id"].as_u64() {
                    prop_assert!(answered.insert(id as u32) || ids.is_none(), "an answer too many: {reply}");
                    prop_assert_eq!(reply.as_object().unwrap().len(), 2);
                } else if reply != json!({}) {
                    prop_assert!(reply["push"]["channel"] != "fuzz:never", "{reply}");
                }
            }
            Message::Close(Some(frame)) => {
                prop_assert!([3500, 3501].contains(&u16::from(frame.code)), "{frame:?}");
                return Ok(());
            }
            other => prop_assert!(false, "{other:?}"),
        }
    }
    for id in ids.iter().flatten() {
        prop_assert!(answered.contains(id), "{id} has no answer");
    }
    Ok(())
}

#[test]
fn every_command_has_its_answer_or_a_documented_close_in_protobuf_too() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let instance = runtime.block_on(Options::default().rules(RULES).start());
    let config = || Config { cases: 200, failure_persistence: None, ..Config::default() };
    let outcome = TestRunner::new(config()).run(&frames(), |frames| {
        let (frames, ids) = encode(frames);
        runtime.block_on(run(&instance, frames, ids))
    });
    outcome.unwrap_or_else(|failure| panic!("{failure}"));
    let noise = prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 1..4);
    let outcome = TestRunner::new(config()).run(&noise, |frames| runtime.block_on(run(&instance, frames, None)));
    outcome.unwrap_or_else(|failure| panic!("{failure}"));
    assert_eq!(runtime.block_on(instance.get("/readyz")).0, 200);
}
