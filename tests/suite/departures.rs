//! Clients stop reading, or vanish; an instance is told to stop.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::instance::{Instance, Options};
use crate::support::{channel, soon, until};

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
