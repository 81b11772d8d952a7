//! How an instance ends: who is told what and when, and that a rolling restart under load loses nothing for those who resume.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures::StreamExt;
use serde_json::Value;
use tungstenite::Message;

use crate::support::balancer::Balancer;
use crate::support::instance::{Instance, Options, position};
use crate::support::redis::Redis;
use crate::support::sse::Events;
use crate::support::ws::Socket;
use crate::support::{channel, soon, until};

async fn until_draining(instance: &Instance) {
    until("it has begun to stop", || async { instance.log().contains("stopping") }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_are_told_one_after_the_other_and_served_until_then() {
    let redis = Redis::start().await;
    let mut instance = Options::redis(&redis).flag("--drain-seconds 6").start().await;
    let other = Options::redis(&redis).start().await;
    let channel = channel("spread");
    let mut sockets = Vec::new();
    for _ in 0..60 {
        sockets.push(instance.ws(&format!("channel={channel}")).await);
    }
    instance.signal("TERM");
    let published = Arc::new(AtomicBool::new(false));
    let clients = sockets.into_iter().map(|mut socket| {
        let (published, other, channel) = (published.clone(), &other, &channel);
        async move {
            let mut received = 0;
            loop {
                match socket.next().await {
                    Message::Text(_) => received += 1,
                    Message::Close(Some(frame)) => {
                        assert_eq!(u16::from(frame.code), 1012);
                        assert!(frame.reason.starts_with("restarting: "), "{}", frame.reason);
                        // The first to go says so to all others.
                        if !published.swap(true, Ordering::SeqCst) {
                            other.publish(channel, "somebody left").await;
                        }
                        return received;
                    }
                    unexpected => panic!("{unexpected:?}"),
                }
            }
        }
    });
    let received: Vec<usize> = futures::future::join_all(clients).await;
    let after: usize = received.iter().sum();
    assert!(after >= 10, "only {after} of 60 were still there after the first had gone");
    assert!(received.contains(&0));
    assert_eq!(instance.ended().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_stream_ends_after_a_hint_when_to_come_back() {
    let mut instance = Instance::embedded().await;
    let mut one = instance.events("").await;
    let mut several = instance.events("channel=a&channel=b").await;
    instance.signal("TERM");
    for events in [&mut one, &mut several] {
        assert_eq!(events.next().await.kind, "livebridge:restarting");
        assert_eq!(soon("the end", events.try_next()).await, None);
        let retry = events.retry.expect("a hint");
        assert!((500..2500).contains(&retry), "{retry}");
    }
    assert_eq!(instance.ended().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_at_once() {
    let mut instance = Options::default().flag("--drain-seconds 3600").start().await;
    let mut sockets = Vec::new();
    for _ in 0..400 {
        sockets.push(instance.ws("").await);
    }
    instance.signal("INT");
    until_draining(&instance).await;
    instance.signal("TERM");
    assert_eq!(instance.ended().await.code(), Some(1), "some clients were not told");
    assert!(instance.log().contains("stopped at once"));
}

#[tokio::test(flavor = "multi_thread")]
async fn during_the_notice_it_serves_as_before_but_is_not_ready() {
    let mut instance = Options::default().flag("--drain-notice-seconds 3600").start().await;
    instance.signal("TERM");
    until("not ready", || async { instance.get("/readyz").await.0 == 503 }).await;
    assert_eq!(instance.get_json("/readyz").await["status"], "draining");
    let mut socket = instance.ws("channel=late").await;
    instance.publish("late", "still here").await;
    assert_eq!(socket.text().await, "still here");
    instance.signal("TERM");
    assert_eq!(instance.ended().await.code(), Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn after_the_notice_the_drain_follows() {
    let mut instance = Options::default().flag("--drain-notice-seconds 1").start().await;
    let mut socket = instance.ws("").await;
    instance.signal("TERM");
    assert_eq!(socket.closed().await.0, 1012);
    assert_eq!(instance.ended().await.code(), Some(0));
}

const ROLLING_CLIENTS: usize = 24;

/// What the clients of the rolling restart share.
struct Rolling {
    balancer: Balancer,
    channel: String,
    /// How many messages there are; `usize::MAX` until that is known.
    total: AtomicUsize,
    reconnects: AtomicUsize,
}

impl Rolling {
    /// Takes the next message, which must be the one that is due.
    fn take(&self, received: &mut usize, data: &Value) {
        assert_eq!(data.as_u64(), Some(*received as u64 + 1), "none is lost, doubled or out of order");
        *received += 1;
    }

    fn has_all(&self, received: usize) -> bool {
        received >= self.total.load(Ordering::SeqCst)
    }

    async fn listen_by_socket(&self) {
        let (mut received, mut held) = (0, None::<String>);
        while !self.has_all(received) {
            let since = held.as_ref().map_or("last=0".into(), |held| format!("since={held}"));
            let url = format!("ws://{}/ws?channel={}&format=json&{since}", self.balancer.address, self.channel);
            let Ok((stream, _)) = soon("a handshake", tokio_tungstenite::connect_async(url)).await else {
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            };
            let mut socket = Socket(stream);
            loop {
                let next = tokio::time::timeout(Duration::from_millis(200), socket.0.next()).await;
                match next {
                    Err(_) if self.has_all(received) => return,
                    Err(_) => {}
                    Ok(Some(Ok(Message::Text(text)))) => {
                        let json: Value = serde_json::from_str(&text).unwrap();
                        if json["event"] == "welcome" {
                            held = held.or_else(|| position(&json["channels"][0]));
                            continue;
                        }
                        assert!(json.get("event").is_none(), "{json}");
                        self.take(&mut received, &json["data"]);
                        held = position(&json);
                    }
                    Ok(Some(Ok(Message::Close(frame)))) => {
                        assert_eq!(frame.map(|frame| u16::from(frame.code)), Some(1012));
                        self.reconnects.fetch_add(1, Ordering::SeqCst);
                        break;
                    }
                    Ok(Some(Ok(_))) => {}
                    Ok(Some(Err(_)) | None) => break,
                }
            }
        }
    }

    async fn listen_by_events(&self) {
        let (mut received, mut held) = (0, None::<String>);
        while !self.has_all(received) {
            let url = format!("http://{}/events?channel={}", self.balancer.address, self.channel);
            let Ok(mut events) = Events::try_connect(&url, held.as_deref()).await else {
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            };
            loop {
                match tokio::time::timeout(Duration::from_millis(200), events.try_next()).await {
                    Err(_) if self.has_all(received) => return,
                    Err(_) => {}
                    Ok(Some(event)) => {
                        if event.kind == "message" {
                            self.take(&mut received, &event.data.parse::<u64>().unwrap().into());
                        } else {
                            let known = ["livebridge:welcome", "livebridge:restarting"];
                            assert!(known.contains(&event.kind.as_str()), "{}: {}", event.kind, event.data);
                        }
                        held = event.id;
                    }
                    Ok(None) => {
                        self.reconnects.fetch_add(1, Ordering::SeqCst);
                        break;
                    }
                }
            }
        }
    }

    /// Publishes a number until it is accepted: a retry with the same key appears once.
    async fn publish(&self, number: usize) {
        let client = reqwest::Client::new();
        until("published", || async {
            let url = format!("http://{}/publish?channel={}", self.balancer.address, self.channel);
            let request = client.post(url).header("idempotency-key", number.to_string()).body(number.to_string());
            request.send().await.is_ok_and(|response| response.status() == 200)
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_restart_of_three_instances_loses_nothing_for_those_who_resume() {
    let redis = Redis::start().await;
    let rules = "[[channel]]\nmatch = '*'\nhistory = { messages = 100000, age = '1h' }\n";
    let options = Options::redis(&redis).rules(rules).flag("--drain-seconds 4");
    let mut instances = Vec::new();
    for _ in 0..3 {
        instances.push(options.clone().start().await);
    }
    let balancer = Balancer::start(instances.iter().map(|instance| instance.address.clone()).collect()).await;
    let total = AtomicUsize::new(usize::MAX);
    let rolling = Rolling { balancer, channel: channel("rolling"), total, reconnects: AtomicUsize::new(0) };
    let listening =
        futures::future::join_all(
            (0..ROLLING_CLIENTS).map(|index| {
                let rolling = &rolling;
                async move {
                    if index % 2 == 0 { rolling.listen_by_socket().await } else { rolling.listen_by_events().await }
                }
            }),
        );
    let (begun, restarted) = (AtomicBool::new(false), AtomicBool::new(false));
    let restart = async {
        until("all are there", || async {
            let mut connected = 0.0;
            for instance in &instances {
                connected += instance.metric("livebridge_connections").await;
            }
            connected == ROLLING_CLIENTS as f64
        })
        .await;
        begun.store(true, Ordering::SeqCst);
        for instance in &mut instances {
            instance.signal("TERM");
            assert_eq!(instance.ended().await.code(), Some(0));
            let again = options.clone().listen(&instance.address);
            *instance = again.start().await;
        }
        restarted.store(true, Ordering::SeqCst);
    };
    let load = async {
        // Who comes later would not begin with the first.
        until("all are there", || async { begun.load(Ordering::SeqCst) }).await;
        let mut number = 0;
        while !restarted.load(Ordering::SeqCst) {
            number += 1;
            rolling.publish(number).await;
        }
        rolling.publish(number + 1).await;
        rolling.total.store(number + 1, Ordering::SeqCst);
    };
    tokio::join!(listening, restart, load);
    assert!(rolling.reconnects.load(Ordering::SeqCst) >= ROLLING_CLIENTS, "each was closed at least once");
}
