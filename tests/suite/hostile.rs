//! Clients that mean no good, or behave as if. Others must notice nothing.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::support::instance::{Instance, Options};
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
    let instance = Options::redis(&redis).start().await;
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
