//! What else than a proper handshake might become a WebSocket, and what comes before and after one on its connection.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{ROGUE, assert_untouched, beside, read_through, responses};
use crate::support::instance::{Instance, Options};
use crate::support::raw::{self, HANDSHAKE};
use crate::support::{channel, soon};

/// A client's text frame, masked with zeros.
fn text(payload: &str) -> Vec<u8> {
    let mut frame = vec![0x81, 0x80 | u8::try_from(payload.len()).unwrap(), 0, 0, 0, 0];
    frame.extend_from_slice(payload.as_bytes());
    frame
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_get_over_http_1_1_without_a_body_becomes_a_websocket() {
    let instance = Options::default().flag("--request-seconds 2").start().await;
    let lines = HANDSHAKE.trim_end();
    let frame = String::from_utf8(vec![0x01, 0x02, 0x03]).unwrap();
    let body = format!("{lines}\r\nContent-Length: 3\r\n\r\n{frame}");
    let chunks = format!("{lines}\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n{frame}\r\n0\r\n\r\n");
    let attacks = [
        (format!("POST /ws HTTP/1.1\r\n{lines}\r\nContent-Length: 0\r\n\r\n"), "405", "method_not_allowed"),
        (format!("HEAD /ws HTTP/1.1\r\n{HANDSHAKE}"), "405", ""),
        (format!("PUT /events HTTP/1.1\r\n{HANDSHAKE}"), "405", "method_not_allowed"),
        (format!("GET /ws HTTP/1.0\r\n{HANDSHAKE}"), "426", "upgrade_required"),
        (format!("GET /ws HTTP/1.1\r\n{body}"), "400", "handshake_invalid"),
        (format!("GET /ws HTTP/1.1\r\n{chunks}"), "400", "handshake_invalid"),
        (format!("GET /ws HTTP/1.1\r\n{}", HANDSHAKE.replace(": 13", ": 8")), "426", "upgrade_required"),
        (format!("GET /ws HTTP/1.1\r\n{}", HANDSHAKE.replace("AAAA", "A")), "400", "handshake_invalid"),
        (format!("GET /ws HTTP/1.1\r\n{}", HANDSHAKE.replace("websocket", "h2c")), "426", "upgrade_required"),
        (
            format!("GET /ws HTTP/1.1\r\n{}", HANDSHAKE.replace("Connection: Upgrade", "Connection: close")),
            "426",
            "upgrade_required",
        ),
        (format!("GET /healthz HTTP/1.1\r\n{HANDSHAKE}"), "200", "ok"),
        (
            format!(
                "GET /healthz HTTP/1.1\r\n{}",
                HANDSHAKE.replace("websocket", "h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__")
            ),
            "200",
            "ok",
        ),
        (format!("GET /nowhere HTTP/1.1\r\n{HANDSHAKE}"), "404", "not_found"),
    ];
    beside(&instance, async {
        for (request, status, code) in &attacks {
            let mut bytes = request.clone().into_bytes();
            bytes.extend(text("smuggled"));
            let answer = raw::answer(ROGUE, &instance, &bytes).await;
            assert_eq!(answer.split(' ').nth(1), Some(*status), "{request:?}: {answer}");
            assert!(answer.contains(code) && !answer.contains("101 Switching"), "{request:?}: {answer}");
        }
    })
    .await;
    assert_untouched(&instance, "live").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_may_follow_other_requests_and_none_may_follow_it() {
    let instance = Instance::embedded().await;
    let name = channel("pipeline");
    beside(&instance, async {
        let mut stream = raw::connect_from(ROGUE, &instance).await;
        let mut bytes = format!(
            "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n\
             POST /publish?channel={name} HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\none\
             GET /ws?channel={name}&last=1 HTTP/1.1\r\n{HANDSHAKE}"
        )
        .into_bytes();
        bytes.extend(text("two"));
        bytes.extend(b"POST /publish?channel=smuggled HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx");
        stream.write_all(&bytes).await.unwrap();
        let answer = raw::rest(&mut stream).await;
        assert_eq!(responses(&answer), 3, "{answer}");
        let order: Vec<_> = answer.split("HTTP/1.1 ").skip(1).map(|response| &response[..3]).collect();
        assert_eq!(order, ["200", "200", "101"], "{answer}");
        assert!(answer.contains("protocol_error"), "what follows is a frame, and none that is allowed: {answer}");
    })
    .await;
    assert_eq!(instance.get_json(&format!("/channels/{name}/messages")).await["offset"], 2);
    assert_untouched(&instance, "smuggled").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_that_is_not_taken_yet_is_whole_before_the_subscription_that_follows_it() {
    let instance = Instance::embedded().await;
    let (large, name) = (channel("large"), channel("after"));
    let payload = "x".repeat(400_000);
    for _ in 0..10 {
        instance.publish(&large, payload.clone()).await;
    }
    beside(&instance, async {
        for follows in [format!("GET /ws?channel={name}"), format!("GET /events?channel={name}")] {
            let mut stream = raw::connect_narrow(&instance).await;
            let requests =
                format!("GET /channels/{large}/messages HTTP/1.1\r\nHost: x\r\n\r\n{follows} HTTP/1.1\r\n{HANDSHAKE}");
            stream.write_all(requests.as_bytes()).await.unwrap();
            // It has had the time to be answered: the other client's channel is one of many.
            for _ in 0..20 {
                instance.get("/healthz").await;
            }
            let head = String::from_utf8(read_through(&mut stream, b"\r\n\r\n").await).unwrap().to_lowercase();
            assert!(head.contains("transfer-encoding: chunked"), "{head}");
            let body = read_chunks(&mut stream).await;
            let page: serde_json::Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(page["messages"].as_array().unwrap().len(), 10);
            let next = read_through(&mut stream, b"\r\n\r\n").await;
            assert!(next.starts_with(b"HTTP/1.1 101 ") || next.starts_with(b"HTTP/1.1 200 "));
            instance.publish(&name, "heard").await;
            read_through(&mut stream, b"heard").await;
        }
    })
    .await;
}

/// Reads a body of chunks to its end.
async fn read_chunks(stream: &mut TcpStream) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let line = String::from_utf8(read_through(stream, b"\r\n").await).unwrap();
        let mut chunk = vec![0; usize::from_str_radix(line.trim_end(), 16).unwrap() + 2];
        soon("a chunk", stream.read_exact(&mut chunk)).await.unwrap();
        if chunk.len() == 2 {
            return body;
        }
        body.extend_from_slice(&chunk[..chunk.len() - 2]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn compression_is_declined_and_a_compressed_frame_is_refused() {
    let instance = Instance::embedded().await;
    beside(&instance, async {
        let mut stream = raw::connect_from(ROGUE, &instance).await;
        let offer = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits, x-webkit-deflate-frame\r\n\
                     Sec-WebSocket-Protocol: chat, superchat\r\n";
        stream.write_all(format!("GET /ws HTTP/1.1\r\n{offer}{HANDSHAKE}").as_bytes()).await.unwrap();
        let head = String::from_utf8(read_through(&mut stream, b"\r\n\r\n").await).unwrap().to_lowercase();
        assert!(head.starts_with("http/1.1 101 "), "{head}");
        assert!(!head.contains("sec-websocket-extensions"), "{head}");
        // A text of 'Hello', as RFC 7692 compresses it.
        stream.write_all(&[0xC1, 0x87, 0, 0, 0, 0, 0xF2, 0x48, 0xCD, 0xC9, 0xC9, 0x07, 0x00]).await.unwrap();
        let close = soon("a close", async { raw::rest(&mut stream).await }).await;
        assert!(close.contains("protocol_error"), "{close}");
    })
    .await;
    assert_untouched(&instance, "live").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slash_at_the_end_of_a_path_escapes_no_count() {
    let flags = "--trusted-proxy 127.0.2.1 --max-connections-per-address 2";
    let instance = Options::default().flag(flags).start().await;
    let mut held = Vec::new();
    let mut answers = Vec::new();
    for path in ["/ws/", "/events/", "/ws//", "//ws", "/ws", "/events", "/ws", "/ws/"] {
        let mut stream = raw::connect_from("127.0.2.1", &instance).await;
        let request = format!("GET {path} HTTP/1.1\r\nX-Forwarded-For: 192.0.2.1\r\n{HANDSHAKE}");
        stream.write_all(request.as_bytes()).await.unwrap();
        let head = String::from_utf8(read_through(&mut stream, b"\r\n\r\n").await).unwrap();
        answers.push(head.split(' ').nth(1).unwrap().to_owned());
        held.push(stream);
    }
    assert_eq!(answers, ["404", "404", "404", "404", "101", "200", "429", "404"]);
}
