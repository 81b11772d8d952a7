//! The Protobuf form of the protocol: what the JSON form promises, in binary frames.

mod commands;
mod maps;

use serde_json::json;
use tungstenite::Message;
use tungstenite::client::IntoClientRequest;

use super::{
    RULES, a_client_on_an_empty_channel_misses_nothing, a_client_recovers_exactly_what_it_missed,
    a_client_says_where_to_begin_and_is_told_of_the_channel, a_client_subscribes_and_unsubscribes_at_any_time,
    a_keyed_channel_begins_with_its_values, the_history_is_read_forwards_and_backwards,
    what_the_history_no_longer_has_is_not_recovered,
};
use crate::support::brokers::{Setup, promises};
use crate::support::centrifuge_client::{Client, Form};
use crate::support::centrifuge_protobuf::{self as protobuf, delimited};
use crate::support::channel;
use crate::support::instance::{Instance, Options};
use crate::support::sse::Events;
use crate::support::tokens::{SECRET, token};
use crate::support::ws::Socket;

const PATH: &str = "/connection/websocket";

fn options() -> Options {
    Options::default().rules(RULES).form(Form::Protobuf)
}

promises!(
    options();
    a_client_subscribes_and_unsubscribes_at_any_time,
    a_client_recovers_exactly_what_it_missed,
    what_the_history_no_longer_has_is_not_recovered,
    a_client_on_an_empty_channel_misses_nothing,
    the_history_is_read_forwards_and_backwards,
    a_keyed_channel_begins_with_its_values,
    a_client_says_where_to_begin_and_is_told_of_the_channel,
    everybody_gets_the_same_message_whoever_published_it,
    a_client_publishes_and_removes_values_of_keys,
);

async fn embedded() -> Instance {
    options().start().await
}

/// What a payload is in the JSON form, and its encoding there.
fn as_json(payload: &[u8]) -> (serde_json::Value, Option<&'static str>) {
    use base64::Engine;
    match (serde_json::from_slice(payload), std::str::from_utf8(payload)) {
        (Ok(json), _) => (json, None),
        (_, Ok(text)) => (text.into(), None),
        _ => (base64::engine::general_purpose::STANDARD.encode(payload).into(), Some("base64")),
    }
}

/// The next frame that is no ping.
async fn next_frame(client: &mut Client) -> Vec<u8> {
    loop {
        let frame = client.socket.bytes().await;
        if frame != [0] {
            return frame;
        }
        client.socket.send(vec![0]).await;
    }
}

async fn everybody_gets_the_same_message_whoever_published_it(setup: Setup) {
    for kind in ["a", "bare"] {
        let channel = channel(kind);
        // Its first message begins the epoch, which ends the subscriptions of clients that may not know.
        setup.one.publish(&channel, "first").await;
        let mut sdk = Client::connect(setup.two()).await;
        sdk.ask("subscribe", json!({ "channel": channel })).await;
        let mut page = Client::open_at(setup.two(), PATH, Form::Json).await;
        page.ask("connect", json!({})).await;
        page.ask("subscribe", json!({ "channel": channel })).await;
        let mut raw = setup.two().ws(&format!("channel={channel}")).await;
        let url = setup.two().url(&format!("/events?channel={channel}&format=json"));
        let mut events = Events::try_connect(&url, None).await.unwrap();
        assert!(events.next().await.data.contains("welcome"));
        let mut publisher = Client::connect(&setup.one).await;
        for (number, payload) in
            [&b"{ \"n\":\n 1.50 }"[..], b"bare text", b"\"quoted\"", b"\xff\x00\x01", b"", b"0", "\u{20ac}".as_bytes()]
                .into_iter()
                .enumerate()
        {
            if number % 2 == 0 {
                setup.one.publish(&channel, payload.to_vec()).await;
            } else {
                publisher.socket.send(protobuf::publish(7, &channel, payload)).await;
                assert_eq!(publisher.next().await, json!({ "id": 7, "publish": {} }));
            }
            let frame = next_frame(&mut sdk).await;
            let is_there = payload.is_empty() || frame.windows(payload.len()).any(|part| part == payload);
            assert!(is_there, "the bytes as they are: {frame:02x?}");
            let push = protobuf::reply(&frame);
            let (data, encoding) = as_json(payload);
            assert_eq!((&push["push"]["pub"]["data"], &push["push"]["channel"]), (&data, &channel.clone().into()));
            let (_, publication) = page.publication().await;
            assert_eq!((&publication["data"], publication["tags"]["encoding"].as_str()), (&data, encoding));
            assert_eq!(push["push"]["pub"]["offset"], publication["offset"]);
            assert_eq!(publication.get("offset").is_some(), kind == "a");
            let is_text = std::str::from_utf8(payload).is_ok();
            let expected = if is_text {
                Message::text(String::from_utf8(payload.to_vec()).unwrap())
            } else {
                Message::binary(payload.to_vec())
            };
            assert_eq!(raw.next().await, expected);
            let envelope: serde_json::Value = serde_json::from_str(&events.next().await.data).unwrap();
            assert_eq!((&envelope["data"], envelope["encoding"].as_str()), (&data, encoding));
        }
        // A JSON client publishes JSON.
        page.ask("publish", json!({ "channel": channel, "data": "text" })).await;
        assert_eq!(raw.text().await, "\"text\"");
        assert_eq!(sdk.data(1).await, ["text"]);
    }
}

async fn a_client_publishes_and_removes_values_of_keys(setup: Setup) {
    let [keyed, plain] = ["keyed", "a"].map(channel);
    let mut client = Client::connect(&setup.one).await;
    client.ask("publish", json!({ "channel": keyed, "data": 1, "key": "k" })).await;
    client.ask("subscribe", json!({ "channel": keyed })).await;
    assert_eq!(client.publication().await.1, json!({ "key": "k", "data": 1, "offset": 1 }));
    client.ask("publish", json!({ "channel": keyed, "key": "k", "removed": true })).await;
    assert_eq!(client.publication().await.1, json!({ "key": "k", "removed": true, "data": "", "offset": 2 }));
    for refused in [
        json!({ "channel": plain, "data": 1, "key": "k" }),
        json!({ "channel": keyed, "data": 1, "key": "a\u{0}" }),
        json!({ "channel": keyed, "removed": true }),
    ] {
        assert_eq!(client.fail("publish", refused.clone()).await, (107, false), "{refused}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_form_follows_from_the_subprotocol_or_the_query() {
    let instance = Instance::embedded().await;
    let (json, protobuf) = (Some("centrifuge-json"), Some("centrifuge-protobuf"));
    for (offer, query, answer, form) in [
        (None, "", None, Form::Json),
        (protobuf, "", protobuf, Form::Protobuf),
        (json, "", json, Form::Json),
        (Some("centrifuge-protobuf, centrifuge-json"), "", protobuf, Form::Protobuf),
        (Some("centrifuge-json, centrifuge-protobuf"), "", json, Form::Json),
        (None, "?format=protobuf", None, Form::Protobuf),
        (None, "?cf_protocol=protobuf", None, Form::Protobuf),
        (None, "?format=json", None, Form::Json),
        (json, "?format=protobuf", json, Form::Json),
        (Some("other"), "?format=protobuf", Some("other"), Form::Protobuf),
    ] {
        let mut request = format!("ws://{}{PATH}{query}", instance.address).into_client_request().unwrap();
        offer.iter().for_each(|offer| {
            request.headers_mut().insert("sec-websocket-protocol", offer.parse().unwrap());
        });
        let (socket, response) = tokio_tungstenite::connect_async(request).await.unwrap();
        let said = response.headers().get("sec-websocket-protocol").map(|value| value.to_str().unwrap());
        assert_eq!(said, answer, "{offer:?} {query}");
        let mut client = Client::over(Socket(socket)).in_form(form);
        client.ask("connect", json!({})).await;
        client.ask("ping", json!({})).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_command_closes_the_connection_for_good() {
    let instance = embedded().await;
    let connect = protobuf::command(&json!({ "id": 1, "connect": {} }));
    let ping = protobuf::command(&json!({ "id": 2, "ping": {} }));
    let invalid = |message: &[u8]| Message::binary(delimited(message));
    let frames = [
        Message::text(""),
        Message::text(r#"{"id":1,"connect":{}}"#),
        // Bytes that are a command, sent as text.
        Message::text(String::from_utf8(ping.clone()).unwrap()),
        Message::binary(vec![]),
        Message::binary(b"\x80".to_vec()),
        Message::binary(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff".to_vec()),
        Message::binary(b"\x05\x08\x01".to_vec()),
        Message::binary([&ping[..], b"\x03\x08"].concat()),
        // A method that is no message, a name that is no UTF-8, an id without a method, a method without an id, a wrong
        // wire type, a field without a number, the end of a group.
        invalid(b"\x08\x01\x28\x01"),
        invalid(b"\x08\x01\x2a\x03\x0a\x01\xff"),
        invalid(b"\x08\x01"),
        invalid(b"\x2a\x03\x0a\x01a"),
        invalid(b"\x0d\x01\x00\x00\x00"),
        invalid(b"\x00\x01"),
        invalid(b"\x0c"),
    ];
    for frame in &frames {
        let mut client = Client::open(&instance).await;
        client.socket.send(frame.clone()).await;
        assert_eq!(client.closed().await, 3501, "{frame:?} at first");
        let mut client = Client::connect(&instance).await;
        client.socket.send(frame.clone()).await;
        let code = loop {
            if let Message::Close(Some(frame)) = client.socket.next().await {
                break u16::from(frame.code);
            }
        };
        assert_eq!(code, 3501, "{frame:?} later");
    }
    for first in [vec![0], ping, protobuf::command(&json!({ "id": 1, "subscribe": { "channel": "a" } }))] {
        let mut client = Client::open(&instance).await;
        client.socket.send(first).await;
        assert_eq!(client.closed().await, 3501, "before the first command");
    }
    let mut client = Client::connect(&instance).await;
    client.socket.send(connect).await;
    assert_eq!(client.closed().await, 3501, "a second one");
}

#[tokio::test(flavor = "multi_thread")]
async fn fields_that_nobody_knows_are_skipped() {
    let instance = embedded().await;
    let mut client = Client::connect(&instance).await;
    let mut message = b"\x08\x05\x2a\x04".to_vec();
    message.extend(b"\x0a\x02ab");
    // A number, eight bytes, four bytes, a text and a group, with numbers that no field has.
    message.extend(b"\xf8\x07\x01\xf9\x07\0\0\0\0\0\0\0\0\xfd\x07\0\0\0\0\xfa\x07\x01x\xfb\x07\x08\x01\xfc\x07");
    client.socket.send(delimited(&message)).await;
    let reply = client.next().await;
    assert!(reply["id"] == 5 && reply["subscribe"]["recoverable"] == true, "{reply}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frame_has_many_commands_but_not_any_number() {
    let instance = Options::default().flag("--max-frames-per-second 0").form(Form::Protobuf).start().await;
    let mut client = Client::connect(&instance).await;
    client.send((1..=10_000).map(|id| json!({ "id": id, "ping": {} }))).await;
    for id in 1..=10_000 {
        assert_eq!(client.next().await, json!({ "id": id, "ping": {} }));
    }
    client.socket.send(vec![0; 10_001]).await;
    assert_eq!(client.closed().await, 3501);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ping_is_the_empty_reply_and_the_pong_the_empty_command() {
    let instance =
        Options::default().flag("--request-seconds 1 --heartbeat-seconds 1").form(Form::Protobuf).start().await;
    let mut client = Client::open(&instance).await;
    assert_eq!(client.closed().await, 3502, "without a command");
    let mut client = Client::connect(&instance).await;
    for _ in 0..5 {
        assert_eq!(client.socket.bytes().await, [0]);
        client.socket.send(vec![0]).await;
    }
    let code = loop {
        match client.socket.next().await {
            Message::Close(Some(frame)) => break u16::from(frame.code),
            other => assert_eq!(other, Message::binary(vec![0])),
        }
    };
    assert_eq!(code, 3012, "without a pong");
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_and_closes_have_the_numbers_of_the_json_form() {
    let rules = "[[channel]]\nmatch = 'open*'\nanonymous = ['subscribe', 'publish']\n";
    let flags = "--max-message-bytes 4096 --drain-seconds 1";
    let options = Options::default().rules(rules).flag(flags).form(Form::Protobuf);
    let mut instance = options.env("LIVEBRIDGE_TOKEN_SECRET", SECRET).start().await;
    let [a, b, open] = ["a", "b", "open"].map(channel);
    let all = token(&["a*", "b*"], &["a*"]);
    let (mut client, connected) = Client::connect_with(&instance, json!({ "token": all })).await;
    assert!(connected["expires"] == true && connected["ttl"].as_u64().unwrap() > 3000, "{connected}");
    client.ask("subscribe", json!({ "channel": a })).await;
    client.ask("subscribe", json!({ "channel": b, "flag": 1, "delta": "fossil" })).await;
    for (method, request, code) in [
        ("subscribe", json!({ "channel": "c" }), 103),
        ("subscribe", json!({ "channel": a }), 105),
        ("subscribe", json!({ "channel": "" }), 107),
        ("subscribe", json!({ "channel": a, "tf": { "key": "k" } }), 107),
        ("subscribe", json!({ "channel": "c", "token": "t" }), 103),
        ("subscribe", json!({ "channel": "c", "type": 2 }), 108),
        ("publish", json!({ "channel": b, "data": 1 }), 103),
        ("publish", json!({ "channel": a, "data": "x".repeat(4096) }), 106),
        ("presence", json!({ "channel": a }), 108),
        ("rpc", json!({ "method": "m" }), 108),
        ("sub_refresh", json!({ "channel": a }), 107),
        ("sub_refresh", json!({ "channel": a, "token": "t", "type": 1 }), 108),
        ("refresh", json!({}), 107),
    ] {
        assert_eq!(client.fail(method, request.clone()).await, (code, false), "{method} {request}");
    }
    client.send([json!({ "send": { "data": 1 } })]).await;
    client.ask("refresh", json!({ "token": token(&["b*"], &[]) })).await;
    let push = client.push().await;
    assert_eq!((push["channel"].as_str().unwrap(), &push["unsubscribe"]["code"]), (&*a, &2000.into()));
    client.socket.send(vec![0; 9000]).await;
    assert_eq!(client.closed().await, 1009);
    let mut client = Client::open(&instance).await;
    client.send([json!({ "id": 1, "connect": { "token": "no token" } })]).await;
    assert_eq!(client.closed().await, 3500);
    let mut client = Client::connect(&instance).await;
    client.ask("subscribe", json!({ "channel": open })).await;
    instance.signal("TERM");
    assert_eq!(client.closed().await, 3001);
    assert!(instance.ended().await.success());
}
