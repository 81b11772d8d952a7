//! Event streams byte by byte: the head, the chunks, the end, heartbeats, and what a client is told that is refused for now.

use futures::StreamExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::instance::{Instance, Options};
use crate::support::redis::Redis;
use crate::support::sse::Events;
use crate::support::{channel, soon, until};

/// A stream that is read by hand.
struct Stream {
    socket: TcpStream,
    bytes: Vec<u8>,
}

impl Stream {
    async fn ask(instance: &Instance, query: &str, lines: &str) -> Self {
        Self::send(instance, &format!("GET /events?{query} HTTP/1.1\r\nHost: x\r\n{lines}\r\n")).await
    }

    async fn send(instance: &Instance, request: &str) -> Self {
        let mut socket = TcpStream::connect(&instance.address).await.unwrap();
        socket.write_all(request.as_bytes()).await.unwrap();
        Self { socket, bytes: Vec::new() }
    }

    /// Reads until this has come; returns all up to and with it.
    async fn until(&mut self, last: &str) -> String {
        loop {
            if let Some(at) = self.bytes.windows(last.len()).position(|window| window == last.as_bytes()) {
                return String::from_utf8(self.bytes.drain(..at + last.len()).collect()).unwrap();
            }
            let read = soon(last, self.socket.read_buf(&mut self.bytes)).await.unwrap();
            assert!(read > 0, "the stream ended: {:?}", String::from_utf8_lossy(&self.bytes));
        }
    }

    async fn head(&mut self) -> String {
        self.until("\r\n\r\n").await.to_ascii_lowercase()
    }

    /// The next chunk; empty at the end of the stream.
    async fn chunk(&mut self) -> String {
        let size = self.until("\r\n").await;
        let digits = size.trim_end();
        assert!(digits == "0" || !digits.starts_with('0'), "{size:?}");
        let size = usize::from_str_radix(digits, 16).unwrap();
        while self.bytes.len() < size + 2 {
            assert!(soon("a whole chunk", self.socket.read_buf(&mut self.bytes)).await.unwrap() > 0);
        }
        let chunk = String::from_utf8(self.bytes.drain(..size).collect()).unwrap();
        assert_eq!(self.bytes.drain(..2).collect::<Vec<_>>(), b"\r\n");
        chunk
    }

    async fn chunk_after_head(&mut self) -> String {
        self.head().await;
        self.chunk().await
    }

    /// The next event: comments are skipped.
    async fn event(&mut self) -> String {
        loop {
            let chunk = self.chunk().await;
            if !chunk.starts_with(':') {
                assert_event(&chunk);
                return chunk;
            }
        }
    }

    /// Whatever comes until the end of the connection.
    async fn rest(mut self) -> String {
        let _ = soon("the end", self.socket.read_to_end(&mut self.bytes)).await;
        String::from_utf8(self.bytes).unwrap()
    }
}

/// The value of a field of an event.
fn field<'a>(event: &'a str, name: &str) -> Option<&'a str> {
    event.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

/// Checks that a chunk is one event, whole, with data.
fn assert_event(chunk: &str) {
    assert!(chunk.ends_with("\n\n") && chunk.matches("\n\n").count() == 1, "{chunk:?}");
    assert!(field(chunk, "data").is_some(), "{chunk:?}");
}

fn retry(event: &str) -> u32 {
    field(event, "retry").and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no retry: {event:?}"))
}

#[tokio::test]
async fn each_event_is_a_chunk_and_the_end_of_the_stream_is_told() {
    for query in ["channel=a", "channel=a&channel=b"] {
        let mut instance = Instance::embedded().await;
        let mut stream = Stream::ask(&instance, query, "").await;
        let head = stream.head().await;
        for line in [
            "http/1.1 200 ok\r\n",
            "\r\ncontent-type: text/event-stream; charset=utf-8\r\n",
            "\r\ncache-control: no-cache, no-transform\r\n",
            "\r\ntransfer-encoding: chunked\r\n",
            "\r\nconnection: close\r\n",
            "\r\nx-accel-buffering: no\r\n",
        ] {
            assert!(head.contains(line), "{line:?}: {head}");
        }
        let date = head.split("\r\ndate: ").nth(1).expect("a date").split("\r\n").next().unwrap().to_owned();
        assert!(date.ends_with(" gmt") && date.len() == 29, "{date}");
        let welcome = stream.chunk().await;
        assert_event(&welcome);
        assert_eq!(field(&welcome, "event"), Some("livebridge:welcome"));
        assert!(field(&welcome, "id").is_some() && (2000..4000).contains(&retry(&welcome)), "{welcome:?}");
        instance.publish("a", "one").await;
        instance.publish("a", "two\nlines").await;
        instance.publish("a", "x".repeat(100_000)).await;
        for data in ["data: one\n", "data: two\ndata: lines\n", "data: xxxxx"] {
            let event = stream.chunk().await;
            assert_event(&event);
            assert!(event.contains(data) && field(&event, "retry").is_none(), "{data}");
        }
        instance.signal("TERM");
        let farewell = stream.chunk().await;
        assert_event(&farewell);
        assert_eq!(field(&farewell, "event"), Some("livebridge:restarting"));
        assert!((500..2500).contains(&retry(&farewell)), "{farewell:?}");
        assert!(field(&farewell, "data").unwrap().starts_with("{\"code\":\"restarting\",\"message\":"), "{farewell:?}");
        assert_eq!(stream.rest().await, "0\r\n\r\n");
        assert_eq!(instance.ended().await.code(), Some(0));
    }
}

#[tokio::test]
async fn a_stream_that_is_cut_has_no_last_chunk() {
    let instance = Instance::embedded().await;
    let mut stream = Stream::ask(&instance, "", "").await;
    stream.head().await;
    stream.chunk().await;
    instance.signal("KILL");
    assert_eq!(stream.rest().await, "");
}

#[tokio::test]
async fn over_http_1_0_a_stream_ends_with_its_connection_and_has_no_chunks() {
    let instance = Instance::embedded().await;
    let mut stream = Stream::send(&instance, "GET /events?channel=a HTTP/1.0\r\nHost: x\r\n\r\n").await;
    let head = stream.head().await;
    assert!(!head.contains("transfer-encoding") && head.contains("\r\nconnection: close\r\n"), "{head}");
    assert!(stream.until("\n\n").await.starts_with("retry: "));
    instance.publish("a", "hello").await;
    let event = stream.until("\n\n").await;
    assert!(event.starts_with("id: ") && event.ends_with("\ndata: hello\n\n"), "{event:?}");
    instance.signal("TERM");
    let farewell = stream.rest().await;
    assert_event(&farewell);
    assert_eq!(field(&farewell, "event"), Some("livebridge:restarting"));
}

#[tokio::test]
async fn a_heartbeat_is_a_comment_without_a_blank_line_and_comes_as_often_as_is_set() {
    let instance = Options::default().flag("--heartbeat-seconds 1").start().await;
    let mut socket = instance.ws("").await;
    let mut stream = Stream::ask(&instance, "", "").await;
    stream.head().await;
    stream.chunk().await;
    assert_eq!((stream.chunk().await, stream.chunk().await), (":\n".into(), ":\n".into()));
    let ping = soon("a ping", socket.0.next()).await;
    assert!(matches!(ping, Some(Ok(tungstenite::Message::Ping(_)))), "{ping:?}");
    let mut bare = Stream::send(&instance, "GET /events HTTP/1.0\r\nHost: x\r\n\r\n").await;
    bare.head().await;
    bare.until("\n\n").await;
    assert_eq!(bare.until("\n").await, ":\n");
    instance.publish("live", "hello").await;
    // The heartbeats before it do not end an event.
    let event = bare.until("\n\n").await;
    assert!(event.trim_start_matches(":\n").starts_with("id: ") && event.ends_with("data: hello\n\n"), "{event:?}");
}

#[tokio::test]
async fn a_websocket_handshake_says_the_date() {
    let instance = Instance::embedded().await;
    let request = format!("GET /ws HTTP/1.1\r\n{}", crate::support::raw::HANDSHAKE);
    let head = Stream::send(&instance, &request).await.head().await;
    assert!(head.starts_with("http/1.1 101 ") && head.contains("\r\ndate: "), "{head}");
}

/// Checks that a stream says why it is refused, when to come back, and ends.
async fn assert_refused(mut stream: Stream, code: &str) {
    let head = stream.head().await;
    assert!(head.starts_with("http/1.1 200 ") && head.contains("\r\ncontent-type: text/event-stream"), "{head}");
    let refused = stream.chunk().await;
    assert_event(&refused);
    assert_eq!(field(&refused, "event"), Some("livebridge:refused"));
    assert!((1000..5000).contains(&retry(&refused)) && field(&refused, "id").is_none(), "{refused:?}");
    let data: serde_json::Value = serde_json::from_str(field(&refused, "data").unwrap()).unwrap();
    assert!(data["code"] == code && data["message"].is_string(), "{data}");
    assert_eq!(stream.rest().await, "0\r\n\r\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_back_while_the_broker_is_away_is_kept_and_misses_nothing() {
    let mut redis = Redis::persistent().await;
    let one = Options::redis(&redis).start().await;
    let (channel, quiet) = (channel("kept"), channel("quiet"));
    let held = one.publish(&channel, "seen").await.unwrap();
    one.publish(&channel, "missed").await;
    redis.stop();
    drop(one);
    let other = Options::redis(&redis).flag("--heartbeat-seconds 1").start_unready();
    let line = format!("Last-Event-ID: {held}\r\n");
    let mut resumed = Stream::ask(&other, &format!("channel={channel}"), &line).await;
    let mut several = Stream::ask(&other, &format!("channel={channel}&channel={quiet}"), "").await;
    for stream in [&mut resumed, &mut several] {
        assert!(stream.head().await.starts_with("http/1.1 200 "));
        let comment = stream.chunk().await;
        assert!(comment.starts_with(": the broker is unavailable") && !comment.contains("\n\n"), "{comment:?}");
        assert_eq!((stream.chunk().await, stream.chunk().await), (":\n".into(), ":\n".into()));
    }
    // One that leaves is counted out.
    let mut left = Stream::ask(&other, &format!("channel={quiet}"), "").await;
    left.chunk_after_head().await;
    until("three wait", || async { other.metric("livebridge_connections").await == 3.0 }).await;
    drop(left);
    until("two wait", || async { other.metric("livebridge_connections").await == 2.0 }).await;
    redis.start_again().await;
    let mut event = resumed.event().await;
    assert_eq!(field(&event, "event"), Some("livebridge:welcome"));
    assert_eq!(field(&event, "id"), Some(held.as_str()));
    event = resumed.event().await;
    assert_eq!(field(&event, "data"), Some("missed"));
    assert_eq!(field(&several.event().await, "event"), Some("livebridge:welcome"));
    other.until_ready(true).await;
    other.publish(&quiet, "live").await;
    assert_eq!(field(&several.event().await, "data"), Some("live"));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_the_broker_is_told_when_the_instance_stops() {
    let mut redis = Redis::start().await;
    redis.stop();
    let mut instance = Options::redis(&redis).start_unready();
    let mut stream = Stream::ask(&instance, "", "").await;
    stream.chunk_after_head().await;
    instance.signal("TERM");
    assert_eq!(field(&stream.event().await, "event"), Some("livebridge:restarting"));
    assert_eq!(stream.rest().await, "0\r\n\r\n");
    assert_eq!(instance.ended().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_to_an_instance_that_stops_is_told_on_the_stream_when_to_come_back() {
    let mut instance = Instance::embedded().await;
    let mut connected = Vec::new();
    for _ in 0..3 {
        connected.push(TcpStream::connect(&instance.address).await.unwrap());
    }
    instance.signal("TERM");
    until("draining is logged", || async { instance.log().contains("draining") }).await;
    for socket in &mut connected {
        socket.write_all(b"GET /events?channel=a&channel=b HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    }
    for socket in connected {
        assert_refused(Stream { socket, bytes: Vec::new() }, "draining").await;
    }
    assert_eq!(instance.ended().await.code(), Some(0));
}

#[tokio::test]
async fn a_client_behind_a_proxy_that_has_its_share_is_told_on_the_stream_when_to_come_back() {
    let flags = "--trusted-proxy 127.0.0.1 --max-connections-per-address 1";
    let instance = Options::default().flag(flags).start().await;
    let client = "X-Forwarded-For: 192.0.2.1\r\n";
    let mut first = Stream::ask(&instance, "", client).await;
    first.chunk_after_head().await;
    assert_refused(Stream::ask(&instance, "", client).await, "too_many_connections").await;
    assert_eq!(instance.refused("address_connections").await, 1.0);
    // What lasts is answered by the status.
    drop(first);
    until("it may come again", || async {
        Stream::ask(&instance, "channel=a%20b", client).await.head().await.starts_with("http/1.1 400 ")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_json_has_the_objects_of_a_websocket_on_any_number_of_channels() {
    let instance = Instance::embedded().await;
    let mut events =
        Events::try_connect(&instance.url("/events?channel=a&channel=sheet:q3&format=json"), None).await.unwrap();
    let mut socket = instance.ws("channel=a&channel=sheet:q3&format=json").await;
    let mut same = async || {
        let event = events.next().await;
        assert_eq!((&*event.kind, event.id.as_deref()), ("message", None));
        let object: serde_json::Value = serde_json::from_str(&event.data).unwrap();
        assert_eq!(object, socket.json().await);
        object
    };
    assert_eq!(same().await["event"], "welcome");
    for payload in [&b"{\r\n\"a\":\n1}"[..], b"text\n", &[0, 255]] {
        instance.publish("a", payload.to_vec()).await;
        assert_eq!(same().await["channel"], "a");
    }
    assert_eq!(instance.post("/publish?channel=sheet:q3&key=B4", "1").await.0, 200);
    assert_eq!(same().await["key"], "B4");
    assert_eq!(instance.get("/events?channel=a&format=xml").await.0, 400);
}
