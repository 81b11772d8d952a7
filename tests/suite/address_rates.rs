//! What the clients of one address may use up: bytes that are published, times their channels, and new channels. Others, near
//! addresses and producers with a key go on.

use std::collections::HashMap;

use futures::{StreamExt, stream};
use tokio::io::AsyncWriteExt;

use crate::support::instance::{Instance, Options};
use crate::support::raw::{self, connect_from};
use crate::support::{channel, until};

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

/// A handshake over a trusted proxy: the status, and what is said instead of a WebSocket.
async fn subscribe(
    client: &str,
    instance: &Instance,
    query: &str,
) -> Result<crate::support::ws::Socket, (u16, String)> {
    raw::websocket(PROXY, instance, query, &[("x-forwarded-for", client)]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_subscribes_to_new_channels_at_a_rate() {
    let flags = format!("--trusted-proxy {PROXY} --max-new-channels-per-address 10");
    let instance = Options::default().flag(&flags).start().await;
    let known = channel("known");
    let _there = instance.ws(&format!("channel={known}")).await;
    let page = subscribe(CLIENT, &instance, &channels(60)).await;
    assert!(page.is_ok(), "a page of many channels passes: {:?}", page.err());
    let (status, body) = subscribe(CLIENT, &instance, "channel=another").await.err().unwrap();
    assert!(status == 429 && body.contains("too_many_new_channels"), "{status} {body}");
    let events = raw::get(PROXY, &instance, "/events?channel=another", "X-Forwarded-For: 192.0.2.1\r\n").await;
    assert!(events.starts_with("HTTP/1.1 200 ") && events.contains("event: livebridge:refused\n"), "{events}");
    assert!(events.contains("{\"code\":\"too_many_new_channels\",") && events.contains("retry: "), "{events}");
    assert_eq!(instance.refused("address_new_channels").await, 2.0);
    assert!(instance.log().contains("--max-new-channels-per-address"), "{}", instance.log());
    let query = format!("channel={known}&{}", channels(20));
    assert!(subscribe(CLIENT, &instance, &query).await.is_ok(), "channels with subscribers are not new");
    assert!(subscribe(NEIGHBOUR, &instance, "channel=another").await.is_ok(), "another address is another count");
    drop(page);
    let again = || async { subscribe(CLIENT, &instance, "channel=one-more").await.is_ok() };
    until("it may again after a pause", again).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_who_come_back_at_once_to_channels_of_their_own_are_all_served() {
    let instance = Options::default().flag(&format!("--trusted-proxy {PROXY}")).start().await;
    // Behind a load balancer, each from an address of its own; and as many from near by.
    let clients = (0..1500).map(|number| {
        let (instance, address) = (&instance, format!("192.0.{}.{}", number / 250, number % 250));
        async move {
            let far = subscribe(&address, instance, &format!("channel=far:{number}&channel=shared")).await;
            let own: String = (0..3).map(|own| format!("channel=near:{number}:{own}&")).collect();
            (far.is_ok(), instance.ws(&format!("{own}channel=shared")).await)
        }
    });
    let clients: Vec<_> = stream::iter(clients).buffer_unordered(200).collect().await;
    assert!(clients.len() == 1500 && clients.iter().all(|(far, _)| *far));
    // An office behind one public address, whose people have a channel each.
    let office = (0..1000).map(|number| {
        let instance = &instance;
        async move { subscribe(CLIENT, instance, &format!("channel=office:{number}&channel=shared")).await.is_ok() }
    });
    let office: Vec<_> = stream::iter(office).buffer_unordered(200).collect().await;
    assert!(office.iter().all(|served| *served), "a burst passes");
    assert_eq!(instance.refused("address_new_channels").await, 0.0);
}
