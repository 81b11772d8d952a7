//! What the clients of one address may use up: bytes that are published, times their channels, and new channels. Others, near
//! addresses and producers with a key go on.

use std::collections::HashMap;

use tokio::io::AsyncWriteExt;

use crate::support::instance::{Instance, Options};
use crate::support::raw::{self, connect_from};
use crate::support::until;

/// A trusted proxy, whose clients come from public addresses.
const PROXY: &str = "127.0.2.1";
const CLIENT: &str = "192.0.2.1";
const NEIGHBOUR: &str = "192.0.2.2";
const KEY: &str = "a-producer-of-the-operators-own";

/// An answer by its status, error code and `Retry-After`.
type Answer = (u16, String, Option<u32>);

fn parse(answer: &str) -> Answer {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no whole answer: {answer:?}"));
    let json: serde_json::Value = serde_json::from_str(body.trim_start_matches(|c: char| c != '{')).unwrap_or_default();
    let lines: HashMap<_, _> = head.lines().filter_map(|line| line.split_once(": ")).collect();
    let retry = lines.get("retry-after").map(|seconds| seconds.parse().unwrap());
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, json["error"]["code"].as_str().unwrap_or_default().to_owned(), retry)
}

/// A request to publish.
struct Post<'a> {
    client: &'a str,
    query: &'a str,
    lines: &'a str,
    body: Vec<u8>,
    chunked: bool,
}

impl<'a> Post<'a> {
    fn from(client: &'a str, query: &'a str, bytes: usize) -> Self {
        Self { client, query, lines: "", body: vec![b'x'; bytes], chunked: false }
    }

    /// Sends it over a trusted proxy.
    async fn send(self, instance: &Instance) -> Answer {
        let Self { client, query, lines, body, chunked } = self;
        let length = body.len();
        let (framing, body) = match chunked {
            false => (format!("Content-Length: {length}"), body),
            true => {
                let chunks = [format!("{length:x}\r\n").into_bytes(), body, b"\r\n0\r\n\r\n".to_vec()].concat();
                ("Transfer-Encoding: chunked".into(), chunks)
            }
        };
        let head = format!(
            "POST /publish?{query} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
             X-Forwarded-For: {client}\r\n{lines}{framing}\r\n\r\n"
        );
        parse(&raw::answer(PROXY, instance, &[head.as_bytes(), &body].concat()).await)
    }
}

fn channels(count: usize) -> String {
    (0..count).map(|number| format!("channel=c{number}")).collect::<Vec<_>>().join("&")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_counts_once_for_each_of_its_channels() {
    let instance = Options::default().flag("--incoming-bytes-total 10000000").start().await;
    let mut begun = connect_from("127.0.1.1", &instance).await;
    let head = format!("POST /publish?{} HTTP/1.1\r\nHost: x\r\nContent-Length: 100001\r\n\r\n", channels(60));
    begun.write_all(head.as_bytes()).await.unwrap();
    begun.write_all(&[b'x'; 100_000]).await.unwrap();
    until("it counts", || async { instance.metric("livebridge_incoming_bytes").await == 6_000_000.0 }).await;
    let path = format!("/publish?{}", channels(60));
    let (status, answer) = instance.post(&path, "x".repeat(100_000)).await;
    assert_eq!((status.as_u16(), answer["error"]["code"].as_str()), (503, Some("incoming_full")), "{answer}");
    assert_eq!(instance.post("/publish", "x".repeat(100_000)).await.0, 200, "to one channel there is room");
    let (status, answer) = instance.post(&path, "x".repeat(200_000)).await;
    assert_eq!((status.as_u16(), answer["error"]["code"].as_str()), (413, Some("body_too_large")), "never: {answer}");
    begun.write_all(b"x").await.unwrap();
    until("it is given back", || async { instance.metric("livebridge_incoming_bytes").await == 0.0 }).await;
    assert_eq!(instance.post(&path, "x".repeat(100_000)).await.0, 200);
}

/// An instance behind a proxy where everybody may publish, and a producer has a key.
async fn limited(flags: &str) -> Instance {
    let rules = "[[channel]]\nmatch = '*'\nanonymous = ['publish', 'subscribe']\n";
    let options = Options::default().rules(rules).env("LIVEBRIDGE_PUBLISH_KEY", KEY);
    options.flag(&format!("--trusted-proxy {PROXY} {flags}")).start().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_public_address_publishes_bytes_at_a_rate_and_a_producer_with_a_key_as_it_likes() {
    let instance = limited("--max-bytes-per-second 100000").await;
    let ten = channels(10);
    assert_eq!(Post::from(CLIENT, &ten, 100_000).send(&instance).await.0, 200, "a large one passes");
    // Half a million is left to pay.
    for chunked in [false, true] {
        let (status, code, retry) = Post { chunked, ..Post::from(CLIENT, "", 1) }.send(&instance).await;
        assert_eq!((status, code.as_str()), (429, "too_much_published"));
        assert!((3..=5).contains(&retry.unwrap()), "{retry:?}");
    }
    assert_eq!(instance.refused("address_published").await, 2.0);
    assert!(instance.log().contains("give it a publish key"), "{}", instance.log());
    let authorization = format!("Authorization: Bearer {KEY}\r\n");
    for _ in 0..3 {
        assert_eq!(Post { lines: &authorization, ..Post::from(CLIENT, &ten, 100_000) }.send(&instance).await.0, 200);
        assert_eq!(instance.post(&format!("/publish?{ten}"), "x".repeat(100_000)).await.0, 200, "a near address");
    }
    assert_eq!(Post { chunked: true, ..Post::from(NEIGHBOUR, &ten, 100_000) }.send(&instance).await.0, 200);
    assert_eq!(Post::from(NEIGHBOUR, "", 1).send(&instance).await.0, 429, "a body of unknown length is charged too");
    until("it may again", || async { Post::from(CLIENT, "", 1).send(&instance).await.0 == 200 }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_public_address_publishes_messages_at_a_rate() {
    let instance = limited("--max-frames-per-second 10").await;
    let body = "{\"channel\":\"a\",\"data\":1}\n".repeat(80).into_bytes();
    let batch = Post { lines: "Content-Type: application/x-ndjson\r\n", body, ..Post::from(CLIENT, "", 0) };
    assert_eq!(batch.send(&instance).await.0, 200);
    assert_eq!(Post::from(CLIENT, "", 1).send(&instance).await.1, "too_much_published");
    assert_eq!(Post::from(NEIGHBOUR, &channels(80), 1).send(&instance).await.0, 200);
    assert_eq!(Post::from(NEIGHBOUR, "", 1).send(&instance).await.1, "too_much_published");
    until("it may again", || async { Post::from(CLIENT, "", 1).send(&instance).await.0 == 200 }).await;
}
