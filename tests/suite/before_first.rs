//! Positions from before a channel's first message. Nothing is stored for a channel that nobody has published to, and
//! still nobody misses anything. Runs against both brokers.

use serde_json::Value;

use crate::support::brokers::{Setup, promises};
use crate::support::channel;
use crate::support::instance::{Instance, Options, position};
use crate::support::sse::Events;
use crate::support::ws::Socket;

const RULES: &str = "
[[channel]]
match = 'sheet:*'
keyed = true
";

/// Both kinds of channels.
const KINDS: [&str; 2] = ["plain", "sheet"];

promises!(
    Options::default().rules(RULES);
    a_client_that_left_before_the_first_message_comes_back_to_all_of_them,
    a_client_that_comes_back_to_an_empty_channel_waits_on,
    whoever_waits_on_an_empty_channel_receives_its_first_message_without_a_gap,
);

async fn joined(instance: &Instance, query: &str) -> (Socket, Value) {
    let mut socket = instance.ws(&format!("{query}&format=json")).await;
    let welcome = socket.json().await["channels"][0].clone();
    (socket, welcome)
}

async fn publish(instance: &Instance, channel: &str, number: u64) {
    let key = if channel.starts_with("sheet") { format!("&key=k{number}") } else { String::new() };
    let (status, answer) = instance.post(&format!("/publish?channel={channel}{key}"), number.to_string()).await;
    assert_eq!(status, 200, "{answer}");
}

/// What clients hold that were on an empty channel: over Server-Sent Events, and over a WebSocket.
async fn positions(instance: &Instance, channel: &str) -> [String; 2] {
    let events = instance.events(&format!("channel={channel}")).await;
    let (_socket, welcome) = joined(instance, &format!("channel={channel}")).await;
    assert_eq!((&welcome["offset"], &welcome["head"]), (&0.into(), &0.into()));
    [events.last_id.clone().expect("the welcome carries the position"), position(&welcome).unwrap()]
}

async fn a_client_that_left_before_the_first_message_comes_back_to_all_of_them(setup: Setup) {
    for kind in KINDS {
        let channel = channel(kind);
        let positions = positions(&setup.one, &channel).await;
        for number in 1..=3 {
            publish(&setup.one, &channel, number).await;
        }
        // Where it was as well as elsewhere.
        for instance in [setup.two(), &setup.one] {
            for since in &positions {
                let mut events =
                    Events::connect(&instance.url(&format!("/events?channel={channel}")), Some(since)).await;
                let (mut socket, _) = joined(instance, &format!("channel={channel}&since={since}")).await;
                let mut raw = instance.ws(&format!("channel={channel}&since={since}")).await;
                for number in 1..=3 {
                    let event = events.next().await;
                    assert_eq!((event.kind.as_str(), event.data), ("message", number.to_string()), "{kind}");
                    let envelope = socket.json().await;
                    assert_eq!(
                        (&envelope["data"], &envelope["offset"]),
                        (&number.into(), &number.into()),
                        "{envelope}"
                    );
                    assert_eq!(raw.text().await, number.to_string());
                }
                let (status, body) = instance.get(&format!("/channels/{channel}/messages?since={since}")).await;
                assert!(status == 200 && body.matches("\"data\"").count() == 3, "{status} {body}");
            }
        }
    }
}

async fn a_client_that_comes_back_to_an_empty_channel_waits_on(setup: Setup) {
    for kind in KINDS {
        let channel = channel(kind);
        let mut waiting = Vec::new();
        for since in positions(&setup.one, &channel).await {
            for instance in [setup.two(), &setup.one] {
                let (status, body) = instance.get(&format!("/channels/{channel}/messages?since={since}")).await;
                assert!(status == 200 && !body.contains("\"data\""), "{status} {body}");
                let (socket, welcome) = joined(instance, &format!("channel={channel}&since={since}")).await;
                // With the position that it may come back with once more.
                assert_eq!(position(&welcome).as_deref(), Some(since.as_str()), "{welcome}");
                waiting.push(socket);
            }
        }
        publish(&setup.one, &channel, 1).await;
        for socket in &mut waiting {
            let envelope = socket.json().await;
            assert_eq!((&envelope["data"], &envelope["offset"]), (&1.into(), &1.into()), "{envelope}");
        }
    }
}

async fn whoever_waits_on_an_empty_channel_receives_its_first_message_without_a_gap(setup: Setup) {
    for kind in KINDS {
        let channel = channel(kind);
        let (mut socket, _) = joined(setup.two(), &format!("channel={channel}")).await;
        let (mut last, _) = joined(setup.two(), &format!("channel={channel}&last=5")).await;
        let mut events = setup.two().events(&format!("channel={channel}")).await;
        for number in 1..=2 {
            publish(&setup.one, &channel, number).await;
            for socket in [&mut socket, &mut last] {
                let envelope = socket.json().await;
                assert_eq!((&envelope["data"], &envelope["offset"]), (&number.into(), &number.into()), "{envelope}");
            }
            assert_eq!(events.next().await.kind, "message");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_position_from_before_messages_that_got_lost_is_told_a_gap() {
    let setup = Setup::redis(Options::default().rules(RULES)).await;
    let redis = setup.redis.as_ref().unwrap();
    // Evicted, written by somebody else, removed by hand.
    for damage in [&["DEL", "head"][..], &["SET", "head", "x"], &["RPUSH", "history", "x"]] {
        for kind in KINDS {
            let channel = channel(kind);
            let positions = positions(&setup.one, &channel).await;
            publish(&setup.one, &channel, 1).await;
            let key = format!("livebridge:{{{channel}}}:{}", damage[1]);
            redis.cli(&[&damage[..1], &[key.as_str()], &damage[2..]].concat());
            publish(&setup.one, &channel, 2).await;
            for since in positions {
                let (mut socket, _) = joined(setup.two(), &format!("channel={channel}&since={since}")).await;
                let gap = socket.json().await;
                assert_eq!(
                    (&gap["event"], &gap["reason"]),
                    (&"gap".into(), &"epoch_changed".into()),
                    "{damage:?} {gap}"
                );
                assert_eq!(socket.json().await["data"], 2);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_position_from_before_a_flush_is_told_a_gap() {
    let setup = Setup::redis(Options::default().rules(RULES)).await;
    let redis = setup.redis.as_ref().unwrap();
    for kind in KINDS {
        for published in [false, true] {
            let channel = channel(kind);
            let positions = positions(&setup.one, &channel).await;
            if published {
                // What is flushed is what this client was to come back to.
                publish(&setup.one, &channel, 1).await;
            }
            redis.cli(&["FLUSHALL"]);
            for since in &positions {
                let (status, body) = setup.two().get(&format!("/channels/{channel}/messages?since={since}")).await;
                assert_eq!(status, 410, "{kind} {published} {body}");
            }
            publish(setup.two(), &channel, 2).await;
            for since in positions {
                let (mut socket, _) = joined(setup.two(), &format!("channel={channel}&since={since}")).await;
                let gap = socket.json().await;
                assert_eq!((&gap["event"], &gap["reason"]), (&"gap".into(), &"epoch_changed".into()), "{kind} {gap}");
                assert_eq!(socket.json().await["data"], 2);
                let url = setup.two().url(&format!("/events?channel={channel}"));
                let mut events = Events::connect(&url, Some(&since)).await;
                assert_eq!(events.next().await.kind, "livebridge:gap");
            }
        }
    }
}
