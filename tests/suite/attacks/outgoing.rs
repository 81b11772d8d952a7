//! Clients that ask for much and do not take it: what waits for them has a bound in all.

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{beside, read_through};
use crate::support::instance::{Instance, Options};
use crate::support::raw::{self, HANDSHAKE, connect_narrow, connect_narrow_from};
use crate::support::redis::Redis;
use crate::support::{channel, soon, until};

/// The least that can be set: room for three pages, and for frames.
const BUDGET: usize = 16 << 20;
const MIB: usize = 1 << 20;
/// A trusted proxy, whose clients come from public addresses.
const PROXY: &str = "127.0.2.1";
const CLIENT: &str = "X-Forwarded-For: 192.0.2.1\r\n";
const NEIGHBOUR: &str = "192.0.2.2";

async fn start(redis: &Redis) -> Instance {
    Options::redis(redis).flag(&format!("--outgoing-bytes-total {BUDGET}")).start().await
}

/// A channel whose page of history has nearly 4 MiB, and six times as much as JSON.
async fn large_channel(instance: &Instance) -> String {
    let channel = channel("large");
    for _ in 0..60 {
        instance.publish(&channel, vec![1; 64 << 10]).await;
    }
    channel
}

/// Asks for a page and takes no more than the head of the answer.
async fn ask_and_leave_it(instance: &Instance, channel: &str) -> (String, TcpStream) {
    let request = format!("GET {} HTTP/1.1\r\nHost: x\r\n\r\n", page_of(channel));
    leave(connect_narrow(instance).await, &request).await
}

/// The path of a page.
fn page_of(channel: &str) -> String {
    format!("/channels/{channel}/messages?limit=1000")
}

/// Sends a request and takes no more than the head of the answer.
async fn leave(mut stream: TcpStream, request: &str) -> (String, TcpStream) {
    stream.write_all(request.as_bytes()).await.unwrap();
    let head = read_through(&mut stream, b"\r\n\r\n").await;
    (String::from_utf8(head).unwrap(), stream)
}

/// A hundred WebSocket clients that read nothing after the handshake.
async fn stuck_subscribers(instance: &Instance, query: &str) -> Vec<TcpStream> {
    let mut stuck = Vec::new();
    for _ in 0..100 {
        let mut stream = connect_narrow(instance).await;
        stream.write_all(format!("GET /ws?{query} HTTP/1.1\r\n{HANDSHAKE}").as_bytes()).await.unwrap();
        let mut head = [0; 12];
        stream.read_exact(&mut head).await.unwrap();
        assert_eq!(&head, b"HTTP/1.1 101");
        stuck.push(stream);
    }
    stuck
}

/// The memory of an instance, in bytes.
fn memory(instance: &Instance) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", instance.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() << 10
}

async fn outgoing(instance: &Instance) -> usize {
    instance.metric("livebridge_outgoing_bytes").await as usize
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_that_nobody_takes_have_a_bound_in_all() {
    let redis = Redis::start().await;
    let instance = start(&redis).await;
    let channel = large_channel(&instance).await;
    let before = memory(&instance);
    let kept = beside(&instance, async {
        let asked = futures::future::join_all((0..60).map(|_| ask_and_leave_it(&instance, &channel))).await;
        let given = asked.iter().filter(|(head, _)| head.starts_with("HTTP/1.1 200 ")).count();
        assert!((1..=3).contains(&given), "{given} of 60 were given a page");
        // On a slow machine some waited too long for their turn to be read.
        let refused = instance.refused("outgoing_bytes").await as usize;
        assert!(refused > 0 && refused <= 60 - given, "{refused} and {given} of 60");
        let used = outgoing(&instance).await;
        assert!(used > 3 * MIB && used <= BUDGET, "{used}");
        let grown = memory(&instance).saturating_sub(before);
        assert!(grown < BUDGET + 60 * MIB, "{} MiB more", grown / MIB);
        asked
    })
    .await;
    let (status, answer) = instance.get(&format!("/channels/{channel}/messages")).await;
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!((status.as_u16(), &answer["error"]["code"]), (503, &"outgoing_full".into()));
    assert!(kept.iter().any(|(head, _)| head.contains("\r\nretry-after: 1\r\n")));
    drop(kept);
    until("room again", || async { outgoing(&instance).await == 0 }).await;
    let answer = instance.get_json(&format!("/channels/{channel}/messages?limit=1000")).await;
    assert_eq!(answer["messages"].as_array().map(Vec::len), Some(60));
    assert!(answer["messages"][59]["data"].as_str().is_some_and(|data| data.len() == 64 << 10));
    until("memory is back", || async { memory(&instance) < before + 30 * MIB }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscriber_waits_a_while_for_room_and_is_told_to_come_back() {
    let redis = Redis::start().await;
    let instance = start(&redis).await;
    let large = large_channel(&instance).await;
    let small = channel("small");
    let position = instance.publish(&small, "1").await.unwrap();
    instance.publish(&small, "2").await;
    let mut asked = Vec::new();
    while asked.len() < 3 {
        let (head, stream) = ask_and_leave_it(&instance, &large).await;
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        asked.push(stream);
    }
    beside(&instance, async {
        let mut socket = instance.ws(&format!("channel={small}&since={position}")).await;
        let (code, reason) = socket.closed().await;
        assert!(code == 1013 && reason.starts_with("outgoing_full: "), "{code} {reason}");
        assert_eq!(instance.refused("outgoing_bytes").await, 1.0);
        let mut waiting = instance.ws(&format!("channel={small}&since={position}")).await;
        asked.clear();
        assert_eq!(waiting.text().await, "2");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn subscribers_that_leave_a_large_page_or_frame_share_it() {
    let redis = Redis::start().await;
    let instance = start(&redis).await;
    let channel = large_channel(&instance).await;
    let mut stuck = Vec::new();
    let before = memory(&instance);
    beside(&instance, async {
        stuck = stuck_subscribers(&instance, &format!("channel={channel}&since=earliest")).await;
        let mut live = stuck_subscribers(&instance, &format!("channel={channel}:live")).await;
        for _ in 0..6 {
            instance.publish(&format!("{channel}:live"), vec![b'x'; MIB]).await;
        }
        until("all are behind", || async { instance.metric("livebridge_subscribers_behind").await >= 200.0 }).await;
        let (used, grown) = (outgoing(&instance).await, memory(&instance).saturating_sub(before));
        assert!(used > 3 * MIB && used <= BUDGET, "{used}");
        // The log of the live channel, the batches and one page.
        assert!(grown < 60 * MIB, "{} MiB more", grown / MIB);
        stuck.append(&mut live);
    })
    .await;
    // One that reads again receives all of it.
    let (mut taken, mut buffer) = (0, vec![0; MIB]);
    while taken < 60 * (64 << 10) {
        taken += soon("the page", stuck[0].read(&mut buffer)).await.unwrap();
    }
    stuck.clear();
    until("nobody is there", || async { outgoing(&instance).await < MIB }).await;
    until("memory is back", || async { memory(&instance) < before + 30 * MIB }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_that_one_address_leaves_keep_room_for_others() {
    let redis = Redis::start().await;
    // A quarter of this, the share of an address, has room for four pages.
    let flags = format!("--trusted-proxy {PROXY} --outgoing-bytes-total {}", 4 * BUDGET);
    let instance = Options::redis(&redis).flag(&flags).start().await;
    let channels = futures::future::join_all((0..5).map(|_| large_channel(&instance))).await;
    let page = page_of(&channels[0]);
    beside(&instance, async {
        let mut left = Vec::new();
        for _ in 0..3 {
            let request = format!("GET {page} HTTP/1.1\r\n{CLIENT}Host: x\r\n\r\n");
            left.push(leave(connect_narrow_from(PROXY, &instance).await, &request).await);
        }
        for channel in &channels {
            let request = format!("GET /ws?channel={channel}&since=earliest HTTP/1.1\r\n{CLIENT}{HANDSHAKE}");
            left.push(leave(connect_narrow_from(PROXY, &instance).await, &request).await);
        }
        let codes: Vec<_> = left.iter().map(|(head, _)| &head[9..12]).collect();
        assert_eq!(codes, ["200", "200", "200", "101", "101", "101", "101", "101"]);
        until("it holds four pages", || async { outgoing(&instance).await > 14 * MIB }).await;
        let refused = raw::get(PROXY, &instance, &page, CLIENT).await;
        assert!(refused.contains("outgoing_full"), "{refused:.200}");
        // Others get pages, also of a channel that subscribers of the address ask for in vain.
        let lines = format!("X-Forwarded-For: {NEIGHBOUR}\r\n");
        let given = raw::get(PROXY, &instance, &page.replace("1000", "1"), &lines).await;
        assert!(given.starts_with("HTTP/1.1 200 "), "{given:.200}");
        for channel in &channels {
            let query = format!("channel={channel}&since=earliest");
            let lines = [("x-forwarded-for", NEIGHBOUR)];
            let mut socket = raw::websocket(PROXY, &instance, &query, &lines).await.unwrap();
            assert_eq!(socket.text().await.len(), 64 << 10);
        }
        drop(left);
        until("room again", || async { outgoing(&instance).await == 0 }).await;
        let given = raw::get(PROXY, &instance, &page, CLIENT).await;
        assert!(given.starts_with("HTTP/1.1 200 "), "{given:.200}");
    })
    .await;
}
