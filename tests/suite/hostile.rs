//! Clients that mean no good, or behave as if. Others must notice nothing.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::support::instance::{Instance, Options};
use crate::support::raw;
use crate::support::redis::Redis;
use crate::support::{channel, soon, until};

/// A WebSocket connection by hand, with a receive buffer so small that it is full at once.
async fn raw_socket(instance: &Instance, query: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut stream = socket.connect(instance.address.parse().unwrap()).await.unwrap();
    let request = format!(
        "GET /ws?{query} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(soon("the head", stream.read_u8()).await.unwrap());
    }
    assert!(head.starts_with(b"HTTP/1.1 101 "));
    stream
}

/// A masked client frame, masked with zeros.
fn frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let length = u8::try_from(payload.len()).unwrap();
    assert!(length < 126);
    let mut frame = vec![0x80 | opcode, 0x80 | length, 0, 0, 0, 0];
    frame.extend_from_slice(payload);
    frame
}

/// Resident memory of a process, in bytes.
fn memory(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

/// Sends the same bytes for as long as they are taken, up to a bound. Returns how many were.
async fn flood(stream: &mut TcpStream, bytes: &[u8], most: usize) -> usize {
    let mut sent = 0;
    while sent < most {
        match tokio::time::timeout(Duration::from_secs(2), stream.write(bytes)).await {
            Ok(Ok(more)) => sent += more,
            _ => break,
        }
    }
    sent
}

#[tokio::test(flavor = "multi_thread")]
async fn every_ping_is_answered_in_order() {
    let instance = Instance::embedded().await;
    let mut stream = raw_socket(&instance, "").await;
    let pings: Vec<u8> = (0..500_u16).flat_map(|number| frame(0x9, &number.to_be_bytes())).collect();
    stream.write_all(&pings).await.unwrap();
    for number in 0..500_u16 {
        let mut pong = [0; 4];
        soon("a pong", stream.read_exact(&mut pong)).await.unwrap();
        assert_eq!((&pong[..2], &pong[2..]), (&[0x8A, 2][..], &number.to_be_bytes()[..]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_without_reading_the_answers_has_to_wait() {
    let mut redis = Redis::start().await;
    // What it sends is not limited otherwise here.
    let options = Options::redis(&redis).flag("--max-frames-per-second 0 --max-bytes-per-second 0");
    let instance = options.start().await;
    let mut pings = raw_socket(&instance, "").await;
    let mut errors = raw_socket(&instance, "format=json").await;
    redis.stop();
    until("not ready", || async { !instance.get("/readyz").await.0.is_success() }).await;
    let before = memory(instance.pid());
    let most = 64 << 20;
    let ping_frames = frame(0x9, &[b'x'; 125]).repeat(500);
    let message_frames = frame(0x1, b"x").repeat(5000);
    let (sent_pings, sent_messages) =
        tokio::join!(flood(&mut pings, &ping_frames, most), flood(&mut errors, &message_frames, most));
    assert!(sent_pings < most, "it was read on and on, although it does not read");
    let grown = memory(instance.pid()).saturating_sub(before);
    assert!(grown < 32 << 20, "{grown} bytes more after {sent_pings} bytes of pings and {sent_messages} of messages");
    assert_eq!(instance.get("/healthz").await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_after_a_protocol_error_delays_nobody() {
    let instance = Options::default().flag("--threads 1").start().await;
    let channel = channel("calm");
    let mut calm = instance.ws(&format!("channel={channel}")).await;
    let floods = (0..3).map(|_| {
        let instance = &instance;
        async move {
            let mut stream = raw_socket(instance, "").await;
            stream.write_all(&[0xFF, 0xFF]).await.unwrap();
            flood(&mut stream, &vec![0; 1 << 16], 256 << 20).await
        }
    });
    let listen = async {
        for number in 0..50 {
            let asked = Instant::now();
            instance.publish(&channel, number.to_string()).await;
            assert_eq!(calm.text().await, number.to_string());
            assert!(asked.elapsed() < Duration::from_secs(5));
        }
    };
    let (sent, ()) = tokio::join!(futures::future::join_all(floods), listen);
    assert!(sent.iter().all(|&sent| sent < 256 << 20), "they are cut off, not read for ever: {sent:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_clients_say_writes_no_lines_into_the_log_nor_headers_into_answers() {
    let instance = Options::default().flag("--log-format text").env("LIVEBRIDGE_LOG", "trace").start().await;
    let local = "127.0.0.1";
    for path in [
        "/ws?channel=a%0d%0aINFO%20forged",
        "/events?channel=%1b%5b31mforged",
        "/ws?since=1%0d%0aX-Forged:%20yes",
        "/channels/a%0aforged%1b/messages",
        "/forged%0d%0aSet-Cookie:%20forged=1",
    ] {
        let answer = raw::get(local, &instance, path, "").await;
        let (head, body) = answer.split_once("\r\n\r\n").expect(path);
        assert!(head.starts_with("HTTP/1.1 4"), "{path}: {answer}");
        assert!(!head.to_lowercase().contains("forged"), "{path}: {head}");
        assert!(!body.trim_end().contains(['\n', '\u{1b}']), "{path}: {body:?}");
    }
    // Raw bytes that HTTP does not allow where they stand, or does and a terminal would obey.
    for request in [
        &b"GET /events?channel=a\nINFO-forged HTTP/1.1\r\nHost: x\r\n\r\n"[..],
        b"GET /events HTTP/1.1\r\nHost: x\r\nX: a\rINFO forged\r\n\r\n",
        b"GET /ws HTTP/1.1\r\nHost: \x1b[31mforged\r\nOrigin: \x1b]0;forged\x07\r\n\r\n",
        b"FORGED\x1b[2J / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ] {
        let answer = raw::answer(local, &instance, request).await;
        assert!(answer.starts_with("HTTP/1.1 4"), "{request:?}: {answer}");
    }
    let (status, _) = instance.post_with("/publish", &[("idempotency-key", "forged\tkey")], "x").await;
    assert!(status.is_client_error() || status.is_success());
    let log = instance.log();
    for line in log.lines() {
        let is_a_line = line.starts_with("20") && line.as_bytes().get(10) == Some(&b'T');
        assert!(is_a_line && !line.contains('\u{1b}'), "{line:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_in_a_name_leads_nowhere_else() {
    let instance = Instance::embedded().await;
    for path in [
        "/../Cargo.toml",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/..%2f..%2fetc%2fpasswd",
        "/index.html%00.js",
        "/channels/../healthz",
        "/channels/%2e%2e/healthz",
        "//etc/passwd",
        "/\\..\\..\\etc\\passwd",
    ] {
        let answer = raw::get("127.0.0.1", &instance, path, "").await;
        assert!(answer.starts_with("HTTP/1.1 40"), "{path}: {answer}");
    }
    // A name is a name: nothing in it is a path, an escape, or another channel's.
    for (name, encoded) in [("../../a", "..%2f..%2fa"), ("%2e%2e/a", "%252e%252e/a"), ("a/./b", "a/./b"), ("..", "..")]
    {
        let mut socket = instance.ws(&format!("channel={encoded}")).await;
        instance.publish(encoded, name).await;
        assert_eq!(socket.text().await, name);
    }
    assert_eq!(instance.get_json("/channels/a/messages").await["offset"], 0);
    for name in ["a%00b", "%00", &"x".repeat(256), &"%c3%a9".repeat(128), "a%0ab", "%e2%80%a8"] {
        for path in [format!("/events?channel={name}"), format!("/channels/{name}/messages")] {
            let (status, body) = instance.get(&path).await;
            assert!(status == 400 && body.contains("channel_invalid"), "{path}: {status} {body}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_oversize_has_its_answer() {
    let instance = Options::default().flag("--max-channels 10 --max-message-bytes 1000").start().await;
    let mut calm = instance.ws("channel=calm").await;
    let long = "x".repeat(20_000);
    let many_lines = "X: y\r\n".repeat(100);
    let many_channels = (0..11).map(|number| format!("channel={number}&")).collect::<String>();
    for (path, lines, expected) in [
        (format!("/events?x={long}"), "", ["431", ""]),
        ("/events".into(), format!("X: {long}\r\n").as_str(), ["431", ""]),
        ("/events".into(), &many_lines, ["431", ""]),
        (format!("/ws?{many_channels}"), "", ["400", "parameter_invalid"]),
        (format!("/ws?since={}", "1".repeat(5000)), "", ["400", "parameter_invalid"]),
        ("/events?last=99999999999999999999".into(), "", ["400", "parameter_invalid"]),
        ("/channels/a/messages?limit=1000000".into(), "", ["400", "parameter_invalid"]),
    ] {
        let answer = raw::get("127.0.0.1", &instance, &path, lines).await;
        let path = &path[..path.len().min(60)];
        assert!(answer.starts_with(&format!("HTTP/1.1 {} ", expected[0])), "{path}: {answer}");
        assert!(answer.contains(expected[1]), "{path}: {answer}");
    }
    let (status, answer) = instance.post(&format!("/publish?key={}", "k".repeat(256)), "x").await;
    assert_eq!((status.as_u16(), &answer["error"]["code"]), (400, &"parameter_invalid".into()));
    let ndjson = [("content-type", "application/x-ndjson")];
    let (status, answer) = instance.post_with("/publish", &ndjson, "{\"data\":1}\n".repeat(10_001)).await;
    assert_eq!((status.as_u16(), &answer["error"]["line"]), (400, &10_001.into()), "{answer}");
    // Refused by what it announces, so the connection may end before all of it is sent: by hand, for an answer all the same.
    let head = format!(
        "POST /publish HTTP/1.1\r\nHost: x\r\nContent-Type: {}\r\nContent-Length: {}\r\n\r\n",
        ndjson[0].1,
        9 << 20
    );
    let request = [head.into_bytes(), vec![b'\n'; 9 << 20]].concat();
    let answer = raw::answer("127.0.0.1", &instance, &request).await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    assert_eq!(instance.refused("body_size").await, 1.0);
    assert_eq!(instance.refused("channels").await, 1.0);
    assert_eq!(instance.refused("head_size").await, 3.0);
    calm.send("still here").await;
    assert_eq!(calm.text().await, "still here");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_sends_a_body_to_its_end_before_reading_gets_the_answer_that_came_meanwhile() {
    let instance = Options::default().flag("--max-message-bytes 1000").start().await;
    // More than the buffers of both sides hold.
    let body = vec![b'x'; 12 << 20];
    for (lines, body) in [
        (format!("Content-Length: {}", body.len()), body.clone()),
        (
            "Transfer-Encoding: chunked".into(),
            [format!("{:x}\r\n", body.len()).as_bytes(), &body, b"\r\n0\r\n\r\n"].concat(),
        ),
    ] {
        let address = instance.address.clone();
        let ask = move || {
            let mut stream = std::net::TcpStream::connect(address)?;
            stream.write_all(format!("POST /publish HTTP/1.1\r\nHost: x\r\n{lines}\r\n\r\n").as_bytes())?;
            stream.write_all(&body)?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).map(|_| answer)
        };
        let answer: std::io::Result<String> = soon("the answer", tokio::task::spawn_blocking(ask)).await.unwrap();
        let answer = answer.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 413 "), "{answer}");
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(body["error"]["code"], "body_too_large");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_to_a_body_that_was_not_read_says_that_the_connection_ends() {
    let instance = Options::default().flag("--max-message-bytes 1000").start().await;
    let body = "x".repeat(500);
    for (request, line, status, ends) in [
        ("POST /publish?channel=a", "", "413", true),
        ("POST /publish?channel=*", "", "400", true),
        ("POST /publish?channel=a&remove=1", "", "400", false),
        ("POST /publish?channel=a", "", "200", false),
        ("POST /publish?channel=a", "Expect: more\r\n", "417", true),
        ("POST /publish?channel=a", "Host: y\r\n", "400", true),
        ("POST /nowhere", "", "404", true),
        ("PUT /publish", "", "405", true),
        ("GET /healthz", "", "200", true),
    ] {
        let body = if status == "413" { &body.repeat(4) } else { &body };
        let length = body.len();
        let request = format!("{request} HTTP/1.1\r\nHost: x\r\n{line}Content-Length: {length}\r\n\r\n{body}");
        let mut stream = TcpStream::connect(&instance.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(soon("the head", stream.read_u8()).await.unwrap());
        }
        let head = String::from_utf8(head).unwrap();
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{request}: {head}");
        assert_eq!(head.to_lowercase().contains("\r\nconnection: close\r\n"), ends, "{request}: {head}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_was_refused_is_not_read_for_ever() {
    let instance = Options::default().flag("--threads 1").start().await;
    let mut calm = instance.ws("channel=calm").await;
    let mut stream = TcpStream::connect(&instance.address).await.unwrap();
    let head = format!("POST /publish HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", 1_u64 << 40);
    stream.write_all(head.as_bytes()).await.unwrap();
    let flood = async {
        let began = Instant::now();
        (flood(&mut stream, &vec![0; 1 << 16], 256 << 20).await, began.elapsed())
    };
    let listen = async {
        for number in 0..20 {
            calm.send(number.to_string()).await;
            assert_eq!(calm.text().await, number.to_string());
        }
    };
    let ((sent, time), ()) = tokio::join!(flood, listen);
    assert!(sent < 256 << 20 && time < Duration::from_secs(10), "{sent} bytes in {time:?}");
}
