//! What every broker must do. Each test is written once and runs twice: on the embedded broker with one instance, and on
//! Redis with two, publishers and subscribers on different ones.

use crate::support::brokers::{Setup, promises};
use crate::support::channel;
use crate::support::instance::Options;

promises!(
    Options::default();
    payloads_arrive_verbatim_and_utf8_is_text,
    ten_thousand_messages_arrive_in_order,
    order_holds_on_every_channel_of_a_connection,
    channels_are_told_apart,
    every_subscriber_receives_every_message,
    what_a_websocket_client_sends_is_published,
    a_client_that_names_several_channels_may_not_publish,
    without_a_channel_the_default_channel_is_meant,
    several_channels_in_one_post_each_get_the_message,
    a_batch_is_published_in_order,
    who_has_left_receives_nothing_and_is_forgotten,
    one_subscription_per_channel_and_instance,
    events_carry_multi_line_payloads_and_bytes,
    envelopes_carry_position_key_and_data,
);

async fn payloads_arrive_verbatim_and_utf8_is_text(setup: Setup) {
    let channel = channel("verbatim");
    let mut socket = setup.two().ws(&format!("channel={channel}")).await;
    let every_byte: Vec<u8> = (0..=255).collect();
    let mebibyte = "0123456789abcdef".repeat(1 << 16);
    let texts = [r#"{"cell":"B4","value":17}"#, "žluťoučký kůň 🐎 \u{0}", "", "a\r\nb\nc", &mebibyte];
    for text in texts {
        setup.one.publish(&channel, text.to_owned()).await;
        assert!(socket.text().await == text, "{} bytes of text", text.len());
    }
    let odd_mebibyte = vec![0xFE; 1 << 20];
    for bytes in [&every_byte, &vec![0xFF], &odd_mebibyte] {
        setup.one.publish(&channel, bytes.clone()).await;
        assert!(socket.bytes().await == *bytes, "{} bytes", bytes.len());
    }
}

async fn ten_thousand_messages_arrive_in_order(setup: Setup) {
    let channel = channel("order");
    let mut socket = setup.two().ws(&format!("channel={channel}")).await;
    let publish = async {
        for batch in 0..100 {
            let lines: String = (0..100)
                .map(|line| format!("{{\"channel\":\"{channel}\",\"data\":{}}}\n", batch * 100 + line))
                .collect();
            let (status, answer) =
                setup.one.post_with("/publish", &[("content-type", "application/x-ndjson")], lines).await;
            assert_eq!(status, 200, "{answer}");
        }
    };
    let receive = async {
        for expected in 0..10_000 {
            assert_eq!(socket.text().await, expected.to_string());
        }
    };
    tokio::join!(publish, receive);
}

async fn order_holds_on_every_channel_of_a_connection(setup: Setup) {
    let (one, two) = (channel("one"), channel("two"));
    let mut socket = setup.two().ws(&format!("channel={one}&channel={two}&format=json")).await;
    socket.json().await;
    for number in 0..500 {
        setup.one.publish(if number % 3 == 0 { &one } else { &two }, number.to_string()).await;
    }
    let (mut last_one, mut last_two) = (-1, -1);
    for _ in 0..500 {
        let envelope = socket.json().await;
        let last = if envelope["channel"] == one.as_str() { &mut last_one } else { &mut last_two };
        let number = envelope["data"].as_i64().unwrap();
        assert!(number > *last);
        *last = number;
    }
    assert_eq!((last_one, last_two), (498, 499));
}

async fn channels_are_told_apart(setup: Setup) {
    let (one, two, other) = (channel("one"), channel("two"), channel("other"));
    let mut only_one = setup.two().ws(&format!("channel={one}")).await;
    let mut events = setup.two().events(&format!("channel={one}&channel={two}")).await;
    for name in [&other, &two, &one] {
        setup.one.publish(name, format!("to {name}")).await;
    }
    assert_eq!(only_one.text().await, format!("to {one}"));
    let (first, second) = (events.next().await, events.next().await);
    // Each channel has an order of its own: which of the two comes first is not promised.
    let heard = std::collections::BTreeMap::from([(first.kind, first.data), (second.kind, second.data)]);
    assert_eq!(heard, [&one, &two].map(|name| (name.clone(), format!("to {name}"))).into());
}

async fn every_subscriber_receives_every_message(setup: Setup) {
    let channel = channel("fan");
    let mut sockets = Vec::new();
    for index in 0..100 {
        let instance = if index % 2 == 0 { &setup.one } else { setup.two() };
        sockets.push(instance.ws(&format!("channel={channel}")).await);
    }
    for number in 0..20 {
        setup.one.publish(&channel, number.to_string()).await;
    }
    let published = std::time::Instant::now();
    for socket in &mut sockets {
        for number in 0..20 {
            assert_eq!(socket.text().await, number.to_string());
        }
    }
    // Whoever the fan-out forgot is found by its next heartbeat: that must not be what delivered it.
    assert!(published.elapsed() < std::time::Duration::from_secs(10), "late by {:?}", published.elapsed());
}

async fn what_a_websocket_client_sends_is_published(setup: Setup) {
    let channel = channel("chat");
    let mut listener = setup.two().ws(&format!("channel={channel}")).await;
    let mut speaker = setup.one.ws(&format!("channel={channel}")).await;
    speaker.send("hello").await;
    speaker.send(vec![0xFF, 0x00]).await;
    speaker.send("").await;
    for socket in [&mut listener, &mut speaker] {
        assert_eq!(socket.text().await, "hello");
        assert_eq!(socket.bytes().await, [0xFF, 0x00]);
        assert_eq!(socket.text().await, "");
    }
    speaker.send("said while leaving").await;
    speaker.0.close(None).await.unwrap();
    assert_eq!(listener.text().await, "said while leaving");
}

async fn a_client_that_names_several_channels_may_not_publish(setup: Setup) {
    let (one, two) = (channel("one"), channel("two"));
    let mut speaker = setup.one.ws(&format!("channel={one}&channel={two}")).await;
    speaker.send("to whom?").await;
    let (code, reason) = speaker.closed().await;
    assert_eq!(code, 1008);
    assert!(reason.starts_with("publish_refused: "), "{reason}");
}

async fn without_a_channel_the_default_channel_is_meant(setup: Setup) {
    let mut socket = setup.two().ws("").await;
    let mut events = setup.two().events("").await;
    let (_, answer) = setup.one.post("/publish", "hello").await;
    assert_eq!(answer["messages"][0]["channel"], "live");
    assert_eq!(socket.text().await, "hello");
    assert_eq!(events.next().await.data, "hello");
}

async fn several_channels_in_one_post_each_get_the_message(setup: Setup) {
    let (one, two) = (channel("one"), channel("two"));
    let mut first = setup.two().ws(&format!("channel={one}")).await;
    let mut second = setup.two().ws(&format!("channel={two}")).await;
    let (_, answer) = setup.one.post(&format!("/publish?channel={one}&channel={two}"), "both").await;
    assert_eq!(answer["messages"][0]["channel"], one.as_str());
    assert_eq!(answer["messages"][1]["channel"], two.as_str());
    assert_eq!(answer["messages"][1]["offset"], 1);
    assert_eq!((first.text().await, second.text().await), ("both".into(), "both".into()));
}

async fn a_batch_is_published_in_order(setup: Setup) {
    let (one, two) = (channel("one"), channel("two"));
    let mut socket = setup.two().ws(&format!("channel={one}")).await;
    let mut other = setup.two().ws(&format!("channel={two}")).await;
    let batch = format!(
        "{{\"channel\":\"{one}\",\"data\":{{\"a\": 1}}}}\n\n{{\"channel\":\"{two}\",\"data\":\"text\\n\"}}\r\n{{\"channel\":\"{one}\",\"data\":\"AP8=\",\"encoding\":\"base64\"}}"
    );
    let (status, answer) =
        setup.one.post_with("/publish", &[("content-type", "application/x-ndjson; charset=utf-8")], batch).await;
    assert_eq!(status, 200, "{answer}");
    let offsets: Vec<_> = answer["messages"].as_array().unwrap().iter().map(|it| it["offset"].as_u64()).collect();
    assert_eq!(offsets, [Some(1), Some(1), Some(2)]);
    assert_eq!(socket.text().await, r#"{"a": 1}"#);
    assert_eq!(socket.bytes().await, [0x00, 0xFF]);
    assert_eq!(other.text().await, "text\n");
}

async fn who_has_left_receives_nothing_and_is_forgotten(setup: Setup) {
    let channel = channel("leaving");
    let instance = setup.two();
    let socket = instance.ws(&format!("channel={channel}")).await;
    let events = instance.events(&format!("channel={channel}")).await;
    crate::support::until("two connections", || async { instance.metric("livebridge_connections").await == 2.0 }).await;
    drop((socket, events));
    crate::support::until("no connection", || async { instance.metric("livebridge_connections").await == 0.0 }).await;
    crate::support::until("no channel", || async { instance.metric("livebridge_channels").await == 0.0 }).await;
    if let Some(redis) = &setup.redis {
        redis.until_listeners(&channel, 0).await;
    }
    if let Some(cluster) = &setup.cluster {
        crate::support::until("no listener", || async { cluster.listeners(&channel) == 0 }).await;
    }
}

async fn one_subscription_per_channel_and_instance(setup: Setup) {
    let channel = channel("shared");
    let mut sockets = Vec::new();
    for _ in 0..20 {
        sockets.push(setup.two().ws(&format!("channel={channel}")).await);
    }
    if let Some(redis) = &setup.redis {
        assert_eq!(redis.listeners(&channel), 1);
    }
    if let Some(cluster) = &setup.cluster {
        assert_eq!(cluster.listeners(&channel), 1);
    }
    assert_eq!(setup.two().metric("livebridge_channels").await, 1.0);
}

async fn events_carry_multi_line_payloads_and_bytes(setup: Setup) {
    let channel = channel("events");
    let mut events = setup.two().events(&format!("channel={channel}")).await;
    for (sent, received) in [
        (&b"one line"[..], "one line"),
        (b"two\nlines", "two\nlines"),
        (b"cr\r\nlf\rboth\n", "cr\nlf\nboth\n"),
        (b"data: no trick\n\nid: 7", "data: no trick\n\nid: 7"),
        (b"", ""),
        (&[0xFF, 0x00], "data:application/octet-stream;base64,/wA="),
    ] {
        let position = setup.one.publish(&channel, sent).await;
        let event = events.next().await;
        assert_eq!((event.data.as_str(), event.kind.as_str()), (received, "message"));
        assert_eq!(event.id, position);
    }
}

async fn envelopes_carry_position_key_and_data(setup: Setup) {
    let channel = channel("sheet");
    setup.one.publish(&channel, "the first message begins the epoch").await;
    let mut socket = setup.two().ws(&format!("channel={channel}&format=json&last=0")).await;
    let welcome = socket.json().await;
    assert_eq!(welcome["event"], "welcome");
    assert_eq!(welcome["channels"][0]["channel"], channel.as_str());
    assert_eq!(welcome["channels"][0]["offset"], 1);
    let bodies: [(&[u8], serde_json::Value); 5] = [
        (br#"{"a":[1,2]}"#, serde_json::json!({"a": [1, 2]})),
        (b"not json", "not json".into()),
        (b"17", 17.into()),
        (b"\"quoted\"", "quoted".into()),
        (&[0xFF], "/w==".into()),
    ];
    for (index, (body, data)) in bodies.into_iter().enumerate() {
        setup.one.publish(&channel, body).await;
        let envelope = socket.json().await;
        assert_eq!(envelope["data"], data);
        assert_eq!(envelope["channel"], channel.as_str());
        assert_eq!(envelope["epoch"], welcome["channels"][0]["epoch"]);
        assert_eq!(envelope["offset"], index as u64 + 2);
        assert_eq!(envelope.get("encoding").is_some(), body == [0xFF]);
    }
}
