//! Each limit: what who exceeds it is answered, while a well-behaved client beside it receives everything.

use std::time::Duration;

use futures::StreamExt;
use futures::future::join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tungstenite::Message;

use crate::support::instance::{Instance, Options};
use crate::support::raw::{self, HANDSHAKE, connect_from, connect_narrow};
use crate::support::redis::Redis;
use crate::support::ws::Socket;
use crate::support::{channel, soon, until};

/// Where those come from who mean no good; the tests' own requests come from 127.0.0.1.
const ROGUE: &str = "127.0.1.1";

/// A client that says something and hears it, again and again, over one connection that it had from the beginning.
struct Calm {
    socket: Socket,
    said: u64,
}

impl Calm {
    async fn beside(instance: &Instance) -> Self {
        let query = format!("channel={}", channel("calm"));
        Self { socket: raw::websocket("127.0.0.77", instance, &query, &[]).await.unwrap(), said: 0 }
    }

    async fn goes_on(&mut self) {
        for _ in 0..5 {
            self.said += 1;
            self.socket.send(self.said.to_string()).await;
            assert_eq!(self.socket.text().await, self.said.to_string());
        }
    }
}

/// Status, code and `Retry-After` of a refusal.
fn refusal(answer: &str) -> (u16, String, Option<String>) {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no whole answer: {answer:?}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let json: serde_json::Value = serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {answer:?}"));
    assert!(!json["error"]["message"].as_str().unwrap().is_empty());
    let retry = head.lines().find_map(|line| line.to_lowercase().strip_prefix("retry-after: ").map(str::to_owned));
    (status, json["error"]["code"].as_str().unwrap().to_owned(), retry)
}

/// Subscribes until it is refused; the sockets so far, and the refusal's status and body.
async fn fill(instance: &Instance, most: usize) -> (Vec<Socket>, (u16, String)) {
    let mut held = Vec::new();
    loop {
        match raw::websocket(ROGUE, instance, "", &[]).await {
            Ok(socket) => held.push(socket),
            Err(refused) => return (held, refused),
        }
        assert!(held.len() < most, "it is never full");
    }
}

fn code(body: &str) -> String {
    serde_json::from_str::<serde_json::Value>(body).unwrap()["error"]["code"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_has_so_many_connections_and_gets_another_when_one_ends() {
    let instance = Options::default().flag("--max-connections-per-address 20").start().await;
    let mut calm = Calm::beside(&instance).await;
    let mut sockets = Vec::new();
    for _ in 0..20 {
        sockets.push(raw::websocket(ROGUE, &instance, "", &[]).await.unwrap());
    }
    let (status, body) = raw::websocket(ROGUE, &instance, "", &[]).await.err().unwrap();
    assert_eq!((status, code(&body).as_str()), (429, "too_many_connections"));
    let (status, code, retry) = refusal(&raw::get(ROGUE, &instance, "/healthz", "").await);
    assert_eq!((status, code.as_str(), retry.as_deref()), (429, "too_many_connections", Some("5")));
    calm.goes_on().await;
    assert!(raw::websocket("127.0.1.2", &instance, "", &[]).await.is_ok(), "another address is another count");
    assert_eq!(instance.refused("address_connections").await, 2.0);
    drop(sockets.pop());
    until("one may come again", || async { raw::websocket(ROGUE, &instance, "", &[]).await.is_ok() }).await;
    assert!(instance.log().contains("--trusted-proxy"), "the operator is told what to do: {}", instance.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_connections_from_one_address_harm_nobody() {
    const ATTEMPTS: usize = 10_000;
    const MOST: usize = 1000;
    let instance = Options::default().flag(&format!("--max-connections-per-address {MOST}")).start().await;
    let mut calm = Calm::beside(&instance).await;
    let mut held = Vec::new();
    let request = format!("GET /ws HTTP/1.1\r\n{HANDSHAKE}");
    let attempt = async || {
        let mut stream = connect_from(ROGUE, &instance).await;
        let _ = stream.write_all(request.as_bytes()).await;
        let mut status = [0; 12];
        let read = soon("an answer", stream.read_exact(&mut status)).await;
        (stream, read.map(|_| status))
    };
    let (mut refused, mut cut) = (0, 0);
    for _ in 0..ATTEMPTS / 100 {
        for (stream, answer) in join_all((0..100).map(|_| attempt())).await {
            match answer.as_ref().map(|status| &status[9..]) {
                Ok(b"101") => {}
                Ok(b"429") => refused += 1,
                Ok(other) => panic!("{:?}", String::from_utf8_lossy(other)),
                Err(_) => cut += 1,
            }
            held.push(stream);
        }
        calm.goes_on().await;
    }
    assert_eq!(refused + cut, ATTEMPTS - MOST);
    assert!(refused > cut, "most are told why: {refused} were, {cut} were not");
    assert_eq!(instance.refused("address_connections").await, (ATTEMPTS - MOST) as f64);
    until("those who got in are counted", || async {
        instance.metric("livebridge_connections").await == (MOST + 1) as f64
    })
    .await;
    drop(held);
    until("all are forgotten", || async { instance.metric("livebridge_connections").await == 1.0 }).await;
    calm.goes_on().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_opens_connections_at_a_rate() {
    let instance = Options::default().flag("--max-handshakes-per-address 1").start().await;
    let mut calm = Calm::beside(&instance).await;
    let mut taken = 0;
    let refused = loop {
        let answer = raw::get(ROGUE, &instance, "/healthz", "").await;
        if !answer.starts_with("HTTP/1.1 200 ") {
            break refusal(&answer);
        }
        taken += 1;
        assert!(taken < 1000, "it is never refused");
    };
    assert_eq!((refused.0, refused.1.as_str(), refused.2.as_deref()), (429, "too_many_handshakes", Some("1")));
    assert!(taken >= 10, "a burst passes: {taken}");
    calm.goes_on().await;
    assert!(raw::get("127.0.1.2", &instance, "/healthz", "").await.starts_with("HTTP/1.1 200 "));
    let again = || async { raw::get(ROGUE, &instance, "/healthz", "").await.starts_with("HTTP/1.1 200 ") };
    until("it may again after a pause", again).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_setting_loopback_is_not_limited() {
    let instance = Instance::embedded().await;
    let mut held = Vec::new();
    for _ in 0..30 {
        held.extend(join_all((0..100).map(|_| connect_from("127.0.0.1", &instance))).await);
    }
    assert!(instance.get("/healthz").await.0.is_success());
    until("all are in", || async { instance.metric("livebridge_sockets").await >= 3000.0 }).await;
    assert!(!instance.get("/metrics").await.1.contains("livebridge_refused_total{"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_instance_says_so_and_those_who_are_there_stay() {
    let instance = Options::default().flag("--max-connections 50").start().await;
    let mut calm = Calm::beside(&instance).await;
    // Fewer where the tests' own requests linger.
    let (mut held, refused) = fill(&instance, 50).await;
    assert_eq!((refused.0, code(&refused.1).as_str()), (503, "server_full"));
    assert_eq!(refusal(&raw::get(ROGUE, &instance, "/healthz", "").await).2.as_deref(), Some("5"));
    calm.goes_on().await;
    drop(held.pop());
    until("there is room again", || async { raw::websocket(ROGUE, &instance, "", &[]).await.is_ok() }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_descriptors_are_kept_for_redis() {
    let redis = Redis::start().await;
    let options = Options { descriptors: Some(200), ..Options::redis(&redis) };
    let instance = options.start().await;
    let channel = channel("reserve");
    let mut there = instance.ws(&format!("channel={channel}&format=json")).await;
    there.json().await;
    let (mut held, refused) = fill(&instance, 200).await;
    assert_eq!((refused.0, code(&refused.1).as_str()), (503, "server_full"));
    // Its connections to Redis must be opened anew, while clients take each descriptor that they are given.
    redis.cli(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    redis.cli(&["CLIENT", "KILL", "TYPE", "normal"]);
    for _ in 0..20 {
        held.extend(raw::websocket(ROGUE, &instance, "", &[]).await.ok());
    }
    redis.cli(&["FCALL", "livebridge_publish", "1", &channel, "after"]);
    assert_eq!(there.json().await["data"], "after");
    assert!(!instance.log().contains("out of descriptors"), "{}", instance.log());
}

/// Sends a byte now and then, for ever; resolves to what the server says before it hangs up.
async fn dribble(mut stream: TcpStream, begin: &str) -> String {
    stream.write_all(begin.as_bytes()).await.unwrap();
    let (mut read, mut write) = stream.split();
    let drip = async {
        while write.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        std::future::pending::<()>().await;
    };
    let mut answer = Vec::new();
    tokio::select! {
        _ = soon("to be hung up on", read.read_to_end(&mut answer)) => {}
        () = drip => {}
    }
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn heads_and_bodies_that_dribble_are_cut_off() {
    let instance = Options::default().flag("--request-seconds 2").start().await;
    let mut calm = Calm::beside(&instance).await;
    let heads = (0..50).map(|_| async {
        dribble(connect_from(ROGUE, &instance).await, "GET /healthz HTTP/1.1\r\nHost: x\r\nX-Slow: ").await
    });
    let bodies = (0..50).map(|index| {
        let length = if index % 2 == 0 { "Content-Length: 100000" } else { "Transfer-Encoding: chunked" };
        let instance = &instance;
        async move {
            let begin = format!("POST /publish HTTP/1.1\r\nHost: x\r\n{length}\r\n\r\n");
            // Of a chunk of a million bytes, too.
            let begin = if index % 2 == 0 { begin } else { format!("{begin}F4240\r\n") };
            dribble(connect_from(ROGUE, instance).await, &begin).await
        }
    });
    let (heads, bodies) = tokio::join!(join_all(heads), join_all(bodies));
    assert!(heads.iter().all(String::is_empty), "{heads:?}");
    for body in &bodies {
        let (status, code, _) = refusal(body);
        assert_eq!((status, code.as_str()), (408, "body_too_slow"));
    }
    assert_eq!((instance.refused("head_time").await, instance.refused("body_time").await), (50.0, 50.0));
    calm.goes_on().await;
    assert_eq!(instance.get_json("/channels/live/messages").await["offset"], 0, "nothing was published by halves");
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_say_nothing_are_ended() {
    let instance = Options::default().flag("--request-seconds 1").start().await;
    let mut calm = Calm::beside(&instance).await;
    let silent = join_all((0..200).map(|_| connect_from(ROGUE, &instance))).await;
    let answered = (0..200).map(|_| async {
        let mut stream = connect_from(ROGUE, &instance).await;
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        stream
    });
    let idle = join_all(answered).await;
    for mut stream in silent {
        assert_eq!(raw::rest(&mut stream).await, "");
    }
    for mut stream in idle {
        assert!(raw::rest(&mut stream).await.starts_with("HTTP/1.1 200 "));
    }
    calm.goes_on().await;
    assert_eq!(instance.refused("head_time").await, 0.0, "an idle connection is no attack");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_take_the_response_is_cut_off() {
    let instance = Options::default().flag("--request-seconds 1").start().await;
    let mut calm = Calm::beside(&instance).await;
    let channel = channel("large");
    for _ in 0..60 {
        instance.publish(&channel, "x".repeat(200_000)).await;
    }
    let mut stream = connect_narrow(&instance).await;
    let request = format!("GET /channels/{channel}/messages?limit=60 HTTP/1.1\r\nHost: x\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    until("it is given up", || async { instance.refused("response_time").await == 1.0 }).await;
    calm.goes_on().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_of_frames_is_slowed_down_and_loses_nothing() {
    let instance = Options::default().flag("--max-frames-per-second 20").start().await;
    let channel = channel("burst");
    let mut socket = instance.ws(&format!("channel={channel}")).await;
    for number in 0..150 {
        socket.send(number.to_string()).await;
    }
    for number in 0..150 {
        assert_eq!(socket.text().await, number.to_string());
    }
    assert!(instance.metric("livebridge_throttled_total").await >= 1.0);
    socket.send("and goes on").await;
    assert_eq!(socket.text().await, "and goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_keeps_sending_too_many_frames_is_closed() {
    let instance = Options::default().flag("--max-frames-per-second 20").start().await;
    // It has to keep to the same limit.
    let mut calm = Calm::beside(&instance).await;
    let mut stream = connect_from(ROGUE, &instance).await;
    // Fragments that never make a message, and pings, are frames as well.
    let frames = [0x01, 0x80, 0, 0, 0, 0, 0x89, 0x80, 0, 0, 0, 0];
    let fragments = [0x00, 0x80, 0, 0, 0, 0].repeat(1000);
    stream.write_all(format!("GET /ws HTTP/1.1\r\n{HANDSHAKE}").as_bytes()).await.unwrap();
    stream.write_all(&frames).await.unwrap();
    stream.write_all(&fragments).await.unwrap();
    let answer = raw::rest(&mut stream).await;
    assert!(answer.contains("too_fast: "), "{answer:?}");
    calm.goes_on().await;
    let (_, metrics) = instance.get("/metrics").await;
    assert!(metrics.contains("livebridge_closes_total{reason=\"too_fast\"} 1"), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_bytes_are_read_at_the_rate_and_lose_nothing() {
    let instance = Options::default().flag("--max-bytes-per-second 131072").start().await;
    let mut calm = Calm::beside(&instance).await;
    let mut socket = instance.ws(&format!("channel={}", channel("bytes"))).await;
    let large = "x".repeat(100_000);
    for number in 0..10 {
        socket.send(format!("{number} {large}")).await;
    }
    calm.goes_on().await;
    for number in 0..10 {
        assert!(socket.text().await.starts_with(&format!("{number} ")));
    }
    assert!(instance.metric("livebridge_throttled_total").await >= 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_and_frames_that_never_end_have_a_bound_in_all() {
    let instance = Options::default().flag("--incoming-bytes-total 1048576").start().await;
    let mut calm = Calm::beside(&instance).await;
    let half = vec![b'x'; 600_000];
    let mut begun = connect_from(ROGUE, &instance).await;
    begun.write_all(b"POST /publish HTTP/1.1\r\nHost: x\r\nContent-Length: 600001\r\n\r\n").await.unwrap();
    begun.write_all(&half).await.unwrap();
    until("the first half is in", || async { instance.metric("livebridge_incoming_bytes").await == 600_000.0 }).await;
    let response = reqwest::Client::new().post(instance.url("/publish")).body(half.clone()).send().await.unwrap();
    assert!(response.headers().contains_key("retry-after"));
    assert_eq!(response.status(), 503);
    assert_eq!(code(&response.text().await.unwrap()), "incoming_full");
    let mut stream = connect_from(ROGUE, &instance).await;
    stream.write_all(format!("GET /ws HTTP/1.1\r\n{HANDSHAKE}").as_bytes()).await.unwrap();
    stream.write_all(&[0x82, 0xFF, 0, 0, 0, 0, 0, 0x0A, 0, 0, 0, 0, 0, 0]).await.unwrap();
    let _ = stream.write_all(&half).await;
    let answer = raw::rest(&mut stream).await;
    assert!(answer.contains("too many unfinished messages"), "{answer:?}");
    calm.goes_on().await;
    begun.write_all(b"x").await.unwrap();
    let mut answer = [0; 12];
    soon("an answer", begun.read_exact(&mut answer)).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200", "who was in time is served");
    assert_eq!(instance.post("/publish", half.clone()).await.0, 200, "and there is room again");
}

#[tokio::test(flavor = "multi_thread")]
async fn all_logs_together_have_a_bound_and_who_is_too_slow_for_it_is_told() {
    const BOUND: f64 = 1_000_000.0;
    let rules = "[[channel]]\nmatch = '*'\nhistory = false\n";
    let options = Options::default().rules(rules).flag(&format!("--log-bytes-total {BOUND}"));
    let instance = options.start().await;
    let channels: Vec<_> = (0..8).map(|_| channel("log")).collect();
    let listen = async |name: &String| instance.ws(&format!("channel={name}")).await;
    let mut slow = listen(&channels[0]).await;
    let mut readers = join_all(channels.iter().map(listen)).await;
    let payload = "x".repeat(100_000);
    for number in 0..100 {
        for (name, reader) in channels.iter().zip(&mut readers) {
            instance.publish(name, format!("{number} {payload}")).await;
            assert!(reader.text().await.starts_with(&format!("{number} ")));
        }
        let bytes = instance.metric("livebridge_log_bytes").await;
        assert!(bytes <= BOUND + 101_000.0, "{bytes} bytes of logs");
    }
    assert!(instance.metric("livebridge_log_trims_total").await >= 1.0);
    let (mut received, mut close) = (0, None);
    while let Some(Ok(message)) = soon("a message", slow.0.next()).await {
        match message {
            Message::Text(text) => {
                assert!(text.starts_with(&format!("{received} ")), "in order, none missing");
                received += 1;
            }
            Message::Close(frame) => close = frame,
            _ => {}
        }
    }
    assert!(received < 100);
    assert_eq!(close.map(|frame| u16::from(frame.code)), Some(4001));
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_a_trusted_proxy_the_client_is_who_it_says_and_nobody_else_is_believed() {
    let flags = "--trusted-proxy 127.0.2.0/24 --max-connections-per-address 3";
    let instance = Options::default().flag(flags).start().await;
    let (proxy, other_proxy) = ("127.0.2.1", "127.0.2.2");
    let mut sockets = Vec::new();
    for claim in ["192.0.2.1", "6.6.6.6, 192.0.2.1", "192.0.2.1, 127.0.2.9"] {
        sockets.push(raw::websocket(proxy, &instance, "", &[("x-forwarded-for", claim)]).await.unwrap());
    }
    for (name, claim) in [("x-forwarded-for", "7.7.7.7, 192.0.2.1"), ("forwarded", "for=7.7.7.7, for=192.0.2.1")] {
        let (status, body) = raw::websocket(other_proxy, &instance, "", &[(name, claim)]).await.err().unwrap();
        assert_eq!((status, code(&body).as_str()), (429, "too_many_connections"), "{claim}");
    }
    let events = raw::get(proxy, &instance, "/events", "X-Forwarded-For: 192.0.2.1\r\n").await;
    assert!(events.starts_with("HTTP/1.1 200 ") && events.contains("event: livebridge:refused\n"), "{events}");
    assert!(events.contains("{\"code\":\"too_many_connections\","), "{events}");
    let healthy = raw::get(proxy, &instance, "/healthz", "X-Forwarded-For: 192.0.2.1\r\n").await;
    assert!(healthy.starts_with("HTTP/1.1 200 "), "a request is no connection of the client's: {healthy}");
    assert!(raw::websocket(proxy, &instance, "", &[("x-forwarded-for", "192.0.2.2")]).await.is_ok());
    drop(sockets.pop());
    let again = || async { raw::websocket(proxy, &instance, "", &[("x-forwarded-for", "192.0.2.1")]).await };
    until("one may come again", || async { again().await.is_ok() }).await;
    // Whoever is no proxy is counted by its own address, whatever it claims.
    let mut direct = Vec::new();
    for claim in ["192.0.2.11", "192.0.2.12", "192.0.2.13"] {
        direct.push(raw::websocket(ROGUE, &instance, "", &[("x-forwarded-for", claim)]).await.unwrap());
    }
    let (status, _) = raw::websocket(ROGUE, &instance, "", &[("x-forwarded-for", "192.0.2.14")]).await.err().unwrap();
    assert_eq!(status, 429);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_becomes_no_subscription_leaves_no_trace_in_the_count() {
    let flags = "--trusted-proxy 127.0.2.1 --max-connections-per-address 2";
    let instance = Options::default().flag(flags).start().await;
    let mut stream = connect_from("127.0.2.1", &instance).await;
    for _ in 0..10 {
        stream.write_all(b"GET /ws HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 192.0.2.1\r\n\r\n").await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"}}\n") {
            head.push(soon("an answer", stream.read_u8()).await.unwrap());
        }
        assert!(head.starts_with(b"HTTP/1.1 426 "), "{}", String::from_utf8_lossy(&head));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_history_that_is_sipped_is_taken_away() {
    let instance = Options::default().flag("--request-seconds 1").start().await;
    let mut calm = Calm::beside(&instance).await;
    let channel = channel("sipped");
    for _ in 0..100 {
        instance.publish(&channel, "x".repeat(100_000)).await;
    }
    // By a byte now and then, so that the kernel does not take it for gone.
    let sip = async |request: String| {
        let mut stream = connect_narrow(&instance).await;
        stream.write_all(request.as_bytes()).await.unwrap();
        while stream.read_u8().await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let query = format!("channel={channel}&last=100");
    let events = sip(format!("GET /events?{query} HTTP/1.1\r\nHost: x\r\n\r\n"));
    let socket = sip(format!("GET /ws?{query} HTTP/1.1\r\n{HANDSHAKE}"));
    let closes = "livebridge_closes_total{reason=\"fell_behind\"} 2";
    let closed = async || instance.get("/metrics").await.1.contains(closes);
    // What the kernel holds for them takes them much longer.
    tokio::select! {
        _ = futures::future::join(events, socket) => {}
        () = until("both are closed", closed) => {}
    }
    assert!(closed().await);
    calm.goes_on().await;
}
