//! The codes with which a connection of the protocol ends. An SDK comes back after some and not after others.

use std::time::Duration;

use serde_json::json;

use crate::support::centrifuge_client::{Client, data_of};
use crate::support::instance::{Instance, Options};
use crate::support::{channel, raw, until};

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_command_closes_the_connection_for_good() {
    let instance = Instance::embedded().await;
    let connect = r#"{"id":1,"connect":{}}"#;
    for frame in ["", " \n ", "no JSON", "[1]", "[]", r#"{"id":-1,"connect":{}}"#, r#"{"id":1,"connect":[]}"#, "{}"] {
        let mut client = Client::open(&instance).await;
        client.socket.send(frame).await;
        assert_eq!(client.closed().await, 3501, "{frame:?} at first");
    }
    for frame in [
        connect,
        "",
        "no JSON",
        r#"{"id":2}"#,
        r#"{"id":2,"other":{}}"#,
        r#"{"subscribe":{"channel":"a"}}"#,
        r#"{"id":2,"subscribe":["a"]}"#,
        r#"{"id":2,"subscribe":{"channel":7}}"#,
        r#"{"id":2,"history":{"channel":"a","since":{"offset":-1}}}"#,
        "{}\n{}\nx",
    ] {
        let mut client = Client::connect(&instance).await;
        client.socket.send(frame).await;
        assert_eq!(client.closed().await, 3501, "{frame:?} later");
    }
    let mut client = Client::connect(&instance).await;
    client.socket.send(vec![0xff]).await;
    assert_eq!(client.closed().await, 3501, "no UTF-8");
    let mut client = Client::open(&instance).await;
    client.socket.send(r#"{"id":1,"subscribe":{"channel":"a"}}"#).await;
    assert_eq!(client.closed().await, 3501, "before the first command");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_must_connect_in_time_and_answer_pings() {
    let instance = Options::default().flag("--request-seconds 1 --heartbeat-seconds 1").start().await;
    let mut client = Client::open(&instance).await;
    assert_eq!(client.closed().await, 3502);
    // It sends all the time, and is pinged nevertheless: some SDKs count only pings.
    let (mut client, connected) = Client::connect_with(&instance, json!({})).await;
    assert_eq!(connected["ping"], 1);
    let mut pings = 0;
    while pings < 2 {
        client.socket.send(r#"{"id":7,"ping":{}}"#).await;
        while client.socket.text().await == "{}" {
            pings += 1;
        }
    }
    // Pongs that nobody asked for do no harm.
    client.socket.send("{}\n{}").await;
    client.ask("ping", json!({})).await;
    // Silence does.
    let code = loop {
        match client.socket.next().await {
            tungstenite::Message::Close(Some(frame)) => break u16::from(frame.code),
            other => assert_eq!(other, tungstenite::Message::text("{}")),
        }
    };
    assert_eq!(code, 3012);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_is_not_read_because_of_its_rate_is_not_taken_for_gone() {
    let options = Options::default().flag("--heartbeat-seconds 1 --max-frames-per-second 20");
    let instance = options.start().await;
    let mut client = Client::connect(&instance).await;
    // It may send 100 at once. For the others it is not read for six seconds, twice as long as its silence may last.
    client.send((1001..=1220).map(|id| json!({ "id": id, "ping": {} }))).await;
    for id in 1001..=1220 {
        assert_eq!(client.next().await["id"], id);
    }
    client.ask("ping", json!({})).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_tells_clients_to_come_back() {
    let mut instance = Options::default().flag("--drain-seconds 1").start().await;
    let mut client = Client::connect(&instance).await;
    client.ask("subscribe", json!({ "channel": "a" })).await;
    instance.signal("TERM");
    assert_eq!(client.closed().await, 3001);
    assert!(instance.ended().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_reads_too_slowly_comes_back_and_recovers() {
    let rules = "[[channel]]\nmatch = '*'\nhistory = { messages = 1000 }\n";
    let options = Options::default().rules(rules).flag("--log-messages 16 --log-bytes 65536");
    let instance = options.start().await;
    let channel = channel("a");
    let stream = raw::upgrade_narrow(&instance, "/connection/websocket").await;
    let socket = tokio_tungstenite::WebSocketStream::from_raw_socket(
        tokio_tungstenite::MaybeTlsStream::Plain(stream),
        tungstenite::protocol::Role::Client,
        None,
    )
    .await;
    let mut client = Client::over(crate::support::ws::Socket(socket));
    client.ask("connect", json!({})).await;
    instance.publish(&channel, "first").await;
    let result = client.ask("subscribe", json!({ "channel": channel })).await;
    for number in 1..=300 {
        instance.publish(&channel, format!("{number} {}", "x".repeat(20_000))).await;
    }
    let mut last = 1;
    let code = loop {
        match client.socket.next().await {
            tungstenite::Message::Close(Some(frame)) => break u16::from(frame.code),
            tungstenite::Message::Text(text) if text.as_str() != "{}" => {
                let push: serde_json::Value = serde_json::from_str(&text).unwrap();
                last = push["push"]["pub"]["offset"].as_u64().unwrap();
            }
            _ => {}
        }
    };
    assert_eq!(code, 3008);
    assert!((1..301).contains(&last), "{last}");
    let mut client = Client::connect(&instance).await;
    let request = json!({ "channel": channel, "recover": true, "epoch": result["epoch"], "offset": last });
    let recovered = client.ask("subscribe", request).await;
    assert_eq!(recovered["recovered"], true);
    let mut seen = data_of(&recovered).len() as u64;
    while last + seen < 301 {
        seen += 1;
        assert_eq!(client.publication().await.1["offset"], last + seen);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_over_the_limit_and_too_many_commands_have_their_answers() {
    let options = Options::default().flag("--max-message-bytes 4096 --max-frames-per-second 20");
    let instance = options.start().await;
    let mut client = Client::connect(&instance).await;
    let data = "x".repeat(4096 - 2);
    client.ask("publish", json!({ "channel": "a", "data": data })).await;
    assert_eq!(client.fail("publish", json!({ "channel": "a", "data": data + "y" })).await, (106, false));
    client.socket.send(json!({ "id": 9, "publish": { "channel": "a", "data": "x".repeat(9000) } }).to_string()).await;
    assert_eq!(client.closed().await, 1009);
    // The commands of a frame count as so many frames.
    let mut client = Client::connect(&instance).await;
    let frame: Vec<_> = (1..=1000).map(|id| json!({ "id": id, "ping": {} }).to_string()).collect();
    for part in frame.chunks(100) {
        client.socket.send(part.join("\n")).await;
    }
    let code = loop {
        match client.socket.next().await {
            tungstenite::Message::Close(Some(frame)) => break u16::from(frame.code),
            _ => tokio::time::sleep(Duration::ZERO).await,
        }
    };
    assert_eq!(code, 3013);
    until("the connections are gone", || async { instance.metric("livebridge_connections").await == 0.0 }).await;
}
