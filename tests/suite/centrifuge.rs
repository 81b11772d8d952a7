//! The Centrifuge client protocol on the wire. The SDKs themselves run in scripts/clients.

mod access;
mod channel_tokens;
mod closes;
mod commands;
mod full_outbox;
mod maps;
mod protobuf;

use serde_json::{Value, json};

use crate::support::brokers::{Setup, promises};
use crate::support::centrifuge_client::{Client, data_of};
use crate::support::channel;
use crate::support::instance::Options;

const RULES: &str = "
[[channel]]
match = 'bare*'
history = false

[[channel]]
match = 'short*'
history = { messages = 3 }

[[channel]]
match = 'large*'
history = { messages = 1000 }

[[channel]]
match = 'keyed*'
keyed = true
";

promises!(
    Options::default().rules(RULES);
    a_client_subscribes_and_unsubscribes_at_any_time,
    a_client_recovers_exactly_what_it_missed,
    what_the_history_no_longer_has_is_not_recovered,
    a_client_on_an_empty_channel_misses_nothing,
    the_history_is_read_forwards_and_backwards,
    a_large_history_is_read_backwards_from_its_end,
    a_keyed_channel_begins_with_its_values,
    a_client_publishes_values_of_keys_and_learns_where_they_stand,
    a_client_says_where_to_begin_and_is_told_of_the_channel,
);

/// The position in a result, as a request has it.
fn position(result: &Value) -> Value {
    let offset = result.get("offset").cloned().unwrap_or_else(|| 0.into());
    json!({ "recover": true, "epoch": result["epoch"], "offset": offset })
}

/// The request to subscribe to a channel from a position.
fn from(channel: &str, position: &Value) -> Value {
    let mut request = position.clone();
    request["channel"] = channel.into();
    request
}

async fn a_client_subscribes_and_unsubscribes_at_any_time(setup: Setup) {
    let (mut client, connected) = Client::connect_with(&setup.one, json!({ "name": "js" })).await;
    assert!(connected["client"].as_str().is_some_and(|name| !name.is_empty()), "{connected}");
    assert_eq!((&connected["ping"], &connected["pong"], connected.get("expires")), (&15.into(), &true.into(), None));
    let [a, b] = ["a", "b"].map(channel);
    client.ask("subscribe", json!({ "channel": a, "flag": 1 })).await;
    setup.two().publish(&a, r#"{"n":1}"#).await;
    assert_eq!(client.publication().await, (a.clone(), json!({ "data": { "n": 1 }, "offset": 1 })));
    // Several commands in a frame.
    let frame = [
        json!({ "id": 100, "subscribe": { "channel": b } }),
        json!({ "id": 101, "publish": { "channel": b, "data": null } }),
        json!({ "id": 102, "unsubscribe": { "channel": a } }),
        json!({ "id": 103, "unsubscribe": { "channel": a } }),
    ];
    client.send(frame).await;
    let mut answers = Vec::new();
    while answers.len() < 5 {
        answers.push(client.next().await);
    }
    let subscribed = answers.iter().position(|answer| answer["id"] == 100).unwrap();
    let pushed = answers.iter().position(|answer| answer.get("push").is_some()).unwrap();
    assert!(subscribed < pushed, "{answers:?}");
    assert_eq!(
        (&answers[pushed]["push"]["channel"], &answers[pushed]["push"]["pub"]["data"]),
        (&b[..].into(), &Value::Null)
    );
    assert!(answers.iter().any(|answer| answer["id"] == 101 && answer.get("publish").is_some()), "{answers:?}");
    assert!(answers.contains(&json!({ "id": 103, "unsubscribe": {} })), "{answers:?}");
    setup.two().publish(&a, "2").await;
    setup.two().publish(&b, "3").await;
    assert_eq!(client.data(1).await, [3]);
    client.ask("subscribe", json!({ "channel": a })).await;
    setup.two().publish(&a, "4").await;
    assert_eq!(client.publication().await, (a, json!({ "data": 4, "offset": 3 })));
    assert_eq!(client.ask("ping", json!({})).await, json!({}));
}

async fn a_client_recovers_exactly_what_it_missed(setup: Setup) {
    let channel = channel("a");
    setup.one.publish(&channel, "1").await;
    let mut client = Client::connect(&setup.one).await;
    let first = client.ask("subscribe", json!({ "channel": channel })).await;
    assert_eq!((&first["recoverable"], &first["positioned"]), (&true.into(), &true.into()));
    assert_eq!((&first["offset"], first.get("was_recovering"), data_of(&first)), (&1.into(), None, vec![]));
    let held = position(&first);
    drop(client);
    for number in 2..=4 {
        setup.one.publish(&channel, number.to_string()).await;
    }
    for instance in [setup.two(), &setup.one] {
        let mut client = Client::connect(instance).await;
        let recovered = client.ask("subscribe", from(&channel, &held)).await;
        assert_eq!((&recovered["was_recovering"], &recovered["recovered"]), (&true.into(), &true.into()));
        assert_eq!((&recovered["epoch"], &recovered["offset"]), (&held["epoch"], &held["offset"]), "the request's");
        assert_eq!(data_of(&recovered), [2, 3, 4]);
        assert_eq!(recovered["publications"][2]["offset"], 4);
        // Any epoch, and nothing missed.
        client.ask("unsubscribe", json!({ "channel": channel })).await;
        let request = json!({ "channel": channel, "recover": true, "offset": 4 });
        let recovered = client.ask("subscribe", request).await;
        assert_eq!((&recovered["recovered"], &recovered["offset"]), (&true.into(), &4.into()));
        assert_eq!(data_of(&recovered), [] as [Value; 0]);
        // The channels of the first command are subscribed to on the server's side.
        let (mut client, connected) = Client::connect_with(instance, json!({ "subs": { &channel: held } })).await;
        assert_eq!(data_of(&connected["subs"][&channel]), [2, 3, 4]);
        assert_eq!(client.fail("subscribe", json!({ "channel": channel })).await, (105, false));
    }
}

async fn what_the_history_no_longer_has_is_not_recovered(setup: Setup) {
    let [channel, bare] = ["short", "bare"].map(channel);
    let mut client = Client::connect(&setup.one).await;
    let held = position(&client.ask("subscribe", json!({ "channel": channel })).await);
    for number in 1..=5 {
        setup.two().publish(&channel, number.to_string()).await;
    }
    client.data(1).await;
    drop(client);
    let mut client = Client::connect(setup.two()).await;
    for epoch in [json!("_"), json!("1"), held["epoch"].clone()] {
        let request = json!({ "channel": channel, "recover": true, "epoch": epoch });
        let refused = json!({ "channel": channel, "recover": true, "epoch": epoch, "flag": 3 });
        assert_eq!(client.fail("subscribe", refused).await, (112, false), "{epoch}");
        let lost = client.ask("subscribe", request).await;
        assert_eq!((&lost["was_recovering"], lost.get("recovered")), (&true.into(), None), "{epoch}: {lost}");
        assert_eq!((data_of(&lost), &lost["offset"]), (vec![], &5.into()), "{epoch}: the newest");
        client.ask("unsubscribe", json!({ "channel": channel })).await;
    }
    let request = json!({ "channel": bare, "recover": true, "offset": 4 });
    assert_eq!(client.ask("subscribe", request).await, json!({ "was_recovering": true }), "no history");
    setup.one.publish(&bare, "x").await;
    assert_eq!(client.publication().await, (bare, json!({ "data": "x" })));
}

/// Follows a channel as an SDK does: it moves by the offsets of publications, and by their epochs if it reads them, and
/// subscribes again when it is told to.
async fn follow(client: &mut Client, channel: &str, held: &mut Value, reads_epochs: bool, count: usize) -> Vec<Value> {
    let mut found = Vec::new();
    while found.len() < count {
        let push = client.push().await;
        assert_eq!(push["channel"], channel);
        if let Some(publication) = push.get("pub") {
            held["offset"] = publication["offset"].clone();
            publication.get("epoch").filter(|_| reads_epochs).iter().for_each(|epoch| held["epoch"] = (*epoch).clone());
            found.push(publication["data"].clone());
            continue;
        }
        assert!(!reads_epochs, "{push}");
        assert_eq!(push["unsubscribe"]["code"], 2500, "{push}");
        let result = client.ask("subscribe", from(channel, held)).await;
        assert_eq!(result["recovered"], true, "nothing is lost: {result}");
        *held = position(&result);
        let publications = result["publications"].as_array().cloned().unwrap_or_default();
        publications.iter().for_each(|publication| {
            held["offset"] = publication["offset"].clone();
            found.push(publication["data"].clone());
        });
    }
    found
}

async fn a_client_on_an_empty_channel_misses_nothing(setup: Setup) {
    for (kind, name) in [("a", "js"), ("a", "python"), ("keyed", "js"), ("keyed", "python")] {
        let channel = channel(kind);
        let mut client = Client::connect_with(&setup.one, json!({ "name": name })).await.0;
        let mut held = position(&client.ask("subscribe", json!({ "channel": channel })).await);
        let mut away = Client::connect(setup.two()).await;
        let early = position(&away.ask("subscribe", json!({ "channel": channel })).await);
        drop(away);
        let publish = async |number: u64| {
            let key = if kind == "keyed" { format!("&key=k{number}") } else { String::new() };
            let path = format!("/publish?channel={channel}{key}");
            assert_eq!(setup.two().post(&path, number.to_string()).await.0, 200);
        };
        publish(1).await;
        publish(2).await;
        assert_eq!(follow(&mut client, &channel, &mut held, name == "js", 2).await, [1, 2], "{kind}");
        drop(client);
        publish(3).await;
        let mut client = Client::connect(setup.two()).await;
        let recovered = client.ask("subscribe", from(&channel, &held)).await;
        assert_eq!(recovered["recovered"], true, "{kind}");
        // This instance may not have received the message yet.
        let missed = if data_of(&recovered).is_empty() { client.data(1).await } else { data_of(&recovered) };
        assert_eq!(missed, [3], "{kind}");
        let mut client = Client::connect(&setup.one).await;
        let recovered = client.ask("subscribe", from(&channel, &early)).await;
        assert_eq!(data_of(&recovered), [1, 2, 3], "{kind}: {recovered}");
    }
}

async fn the_history_is_read_forwards_and_backwards(setup: Setup) {
    let [channel, short, bare] = ["a", "short", "bare"].map(channel);
    for number in 1..=5 {
        setup.one.publish(&channel, number.to_string()).await;
        setup.one.publish(&short, number.to_string()).await;
    }
    let mut client = Client::connect(setup.two()).await;
    let newest = client.ask("history", json!({ "channel": channel })).await;
    assert_eq!((data_of(&newest), &newest["offset"]), (vec![], &5.into()), "without a limit: only the position");
    let epoch = newest["epoch"].clone();
    let since = |offset: u64| json!({ "epoch": epoch, "offset": offset });
    for (limit, reverse, since, expected) in [
        (-1, false, None, vec![1, 2, 3, 4, 5]),
        (2, false, None, vec![1, 2]),
        (2, true, None, vec![5, 4]),
        (2, false, Some(since(2)), vec![3, 4]),
        (-1, false, Some(since(5)), vec![]),
        (0, false, Some(since(2)), vec![]),
        (2, true, Some(since(4)), vec![3, 2]),
        (-1, true, Some(since(3)), vec![2, 1]),
        (9, true, Some(json!({ "offset": 3 })), vec![2, 1]),
    ] {
        let mut request = json!({ "channel": channel, "limit": limit, "reverse": reverse });
        since.iter().for_each(|since| request["since"] = since.clone());
        let page = client.ask("history", request.clone()).await;
        assert_eq!(
            (data_of(&page), &page["offset"]),
            (expected.into_iter().map(Value::from).collect(), &5.into()),
            "{request}"
        );
    }
    for since in [json!({ "epoch": "1", "offset": 2 }), json!({ "epoch": "_" })] {
        for limit in [0, 3] {
            let request = json!({ "channel": channel, "limit": limit, "since": since });
            assert_eq!(client.fail("history", request).await, (112, false), "{limit} {since}");
        }
    }
    let epoch = client.ask("history", json!({ "channel": short })).await["epoch"].clone();
    let since = |offset: u64| json!({ "epoch": epoch, "offset": offset });
    let request = json!({ "channel": short, "limit": 9, "since": since(1) });
    assert_eq!(client.fail("history", request).await, (112, false), "trimmed");
    let request = json!({ "channel": short, "limit": 9, "reverse": true, "since": since(5) });
    assert_eq!(data_of(&client.ask("history", request).await), [4, 3]);
    assert_eq!(client.fail("history", json!({ "channel": bare, "limit": 1 })).await, (108, false));
}

async fn a_large_history_is_read_backwards_from_its_end(setup: Setup) {
    let channel = channel("large");
    // Twice what an answer may have. The newest ones are the largest.
    for number in 1..=160_u64 {
        setup.one.publish(&channel, format!("{number} {}", "x".repeat(number as usize * 390))).await;
    }
    let mut client = Client::connect(&setup.one).await;
    let (mut request, mut next) = (json!({ "channel": channel, "limit": -1, "reverse": true }), 160);
    while next > 0 {
        let page = client.ask("history", request.clone()).await;
        assert!(!data_of(&page).is_empty());
        for publication in page["publications"].as_array().unwrap() {
            assert_eq!(publication["offset"], next);
            next -= 1;
        }
        request["since"] = json!({ "epoch": page["epoch"], "offset": next + 1 });
    }
    request["limit"] = 100.into();
    request["since"]["offset"] = 151.into();
    let page = client.ask("history", request).await;
    assert_eq!(page["publications"][0]["offset"], 150, "what is before the offset, not what is before the limit");
}

async fn a_keyed_channel_begins_with_its_values(setup: Setup) {
    let channel = channel("keyed");
    let publish = async |key: &str, more: &str, value: &str| {
        let path = format!("/publish?channel={channel}&key={key}{more}");
        assert_eq!(setup.one.post(&path, value.to_owned()).await.0, 200);
    };
    publish("a", "", "1").await;
    publish("b", "", "2").await;
    publish("a", "", "3").await;
    let mut client = Client::connect(setup.two()).await;
    let result = client.ask("subscribe", json!({ "channel": channel })).await;
    assert_eq!((data_of(&result), result.get("offset")), (vec![], None), "the values follow: {result}");
    let mut held = position(&result);
    for (key, data, offset) in [("b", 2, 2), ("a", 3, 3)] {
        let publication = client.publication().await.1;
        assert_eq!(publication, json!({ "key": key, "data": data, "offset": offset }));
        held["offset"] = offset.into();
    }
    publish("b", "&remove=true", "").await;
    assert_eq!(client.publication().await.1, json!({ "key": "b", "removed": true, "data": "", "offset": 4 }));
    publish("a", "", "5").await;
    publish("a", "", "6").await;
    let mut client = Client::connect(setup.two()).await;
    let result = client.ask("subscribe", from(&channel, &held)).await;
    assert_eq!(result["recovered"], true);
    let mut keys: Vec<_> = result["publications"].as_array().unwrap().iter().map(|held| held["key"].clone()).collect();
    // The instance may not have received all of it yet.
    while keys.len() < 3 {
        keys.push(client.publication().await.1["key"].clone());
    }
    assert_eq!(keys, ["b", "a", "a"], "what changed: {result}");
    let lost = json!({ "channel": channel, "recover": true, "epoch": "1", "offset": 2 });
    client.ask("unsubscribe", json!({ "channel": channel })).await;
    let result = client.ask("subscribe", lost).await;
    assert_eq!((result.get("recovered"), result.get("offset"), data_of(&result)), (None, None, vec![]));
    // All values again, perhaps older ones and what has changed since.
    let mut values = std::collections::BTreeMap::new();
    let mut offset = 0;
    while offset < 6 {
        let (_, publication) = client.publication().await;
        let key = publication["key"].as_str().unwrap().to_owned();
        offset = publication["offset"].as_u64().unwrap();
        if publication["removed"] == true {
            values.remove(&key);
        } else {
            values.insert(key, publication["data"].clone());
        }
    }
    assert_eq!(json!(values), json!({ "a": 6 }));
}

async fn a_client_publishes_values_of_keys_and_learns_where_they_stand(setup: Setup) {
    let [keyed, plain, bare] = ["keyed", "a", "bare"].map(channel);
    let mut client = Client::connect(&setup.one).await;
    let value = json!({ "channel": keyed, "data": 1, "key": "k", "idempotency_key": "once" });
    let first = client.ask("publish", value.clone()).await;
    assert_eq!((&first["offset"], first["epoch"].is_string()), (&1.into(), true), "{first}");
    assert_eq!(client.ask("publish", value).await, first, "a retry");
    let removal = json!({ "channel": keyed, "key": "k", "removed": true });
    assert_eq!(client.ask("publish", removal).await["offset"], 2);
    client.ask("subscribe", json!({ "channel": keyed, "data": { "livebridge": { "start": 2 } } })).await;
    let publications = [client.publication().await.1, client.publication().await.1];
    assert_eq!((&publications[0]["key"], &publications[0]["data"]), (&"k".into(), &1.into()));
    assert_eq!((&publications[1]["removed"], &publications[1]["data"]), (&true.into(), &"".into()));
    assert_eq!(
        client.ask("publish", json!({ "channel": bare, "data": 1 })).await,
        json!({}),
        "no history, no position"
    );
    for refused in [
        json!({ "channel": plain, "data": 1, "key": "k" }),
        json!({ "channel": keyed, "data": 1, "key": "" }),
        json!({ "channel": keyed, "data": 1, "key": "a\u{0}" }),
        json!({ "channel": keyed, "removed": true }),
        json!({ "channel": keyed, "data": 2, "key": "k", "idempotency_key": "once" }),
    ] {
        assert_eq!(client.fail("publish", refused.clone()).await, (107, false), "{refused}");
    }
}

async fn a_client_says_where_to_begin_and_is_told_of_the_channel(setup: Setup) {
    let [short, keyed] = ["short", "keyed"].map(channel);
    for number in 1..=5 {
        setup.one.publish(&short, number.to_string()).await;
    }
    setup.one.post(&format!("/publish?channel={keyed}&key=k"), "1").await;
    let begin = async |request: Value, count: usize| {
        let mut client = Client::connect(setup.two()).await;
        let result = client.ask("subscribe", request).await;
        (result, client.data(count).await)
    };
    let (result, data) =
        begin(json!({ "channel": short, "data": { "livebridge": { "start": 2, "describe": true } } }), 2).await;
    assert_eq!((data, &result["data"]), (vec![json!(4), json!(5)], &json!({ "head": 5, "keyed": false })));
    let (result, data) = begin(json!({ "channel": short, "data": { "livebridge": { "start": "oldest" } } }), 3).await;
    assert_eq!((data, result.get("data")), (vec![json!(3), json!(4), json!(5)], None));
    // What is left, where the history no longer has all of it.
    let lost = json!({ "channel": short, "recover": true, "epoch": result["epoch"], "offset": 1, "data": { "livebridge": { "start": "oldest" } } });
    let (result, data) = begin(lost, 3).await;
    assert_eq!(
        (data, &result["was_recovering"], result.get("recovered")),
        (vec![json!(3), json!(4), json!(5)], &true.into(), None)
    );
    let (result, data) = begin(json!({ "channel": keyed, "data": { "livebridge": { "describe": true } } }), 1).await;
    assert_eq!((data, &result["data"]), (vec![json!(1)], &json!({ "head": 1, "keyed": true })));
    let mut client = Client::connect(&setup.one).await;
    for start in [json!(1001), json!("newest"), json!(-1), json!({})] {
        let refused = json!({ "channel": short, "data": { "livebridge": { "start": start } } });
        assert_eq!(client.fail("subscribe", refused).await.0, 107, "{start}");
    }
    // The data of an application is no concern of livebridge.
    for data in [json!([1]), json!("text"), json!({ "start": "here" })] {
        client.ask("subscribe", json!({ "channel": short, "data": data })).await;
        client.ask("unsubscribe", json!({ "channel": short })).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_is_told_when_values_are_lost_while_it_is_there() {
    let setup = Setup::redis(Options::default().rules(RULES)).await;
    let [keyed, other] = ["keyed", "a"].map(channel);
    setup.one.post(&format!("/publish?channel={keyed}&key=a"), "1").await;
    let mut client = Client::connect(setup.two()).await;
    client.ask("subscribe", json!({ "channel": other })).await;
    let mut held = position(&client.ask("subscribe", json!({ "channel": keyed })).await);
    client.publication().await;
    setup.one.post(&format!("/publish?channel={keyed}&key=a"), "2").await;
    held["offset"] = client.publication().await.1["offset"].clone();
    let redis = setup.redis.as_ref().unwrap();
    // A message without a position, between the last one and the gap.
    redis.cli(&["PUBLISH", &keyed, "0"]);
    assert_eq!(client.data(1).await, [0]);
    redis.cli(&["FLUSHALL"]);
    setup.one.post(&format!("/publish?channel={keyed}&key=b"), "2").await;
    let push = client.push().await;
    assert_eq!((&push["channel"], &push["unsubscribe"]["code"]), (&keyed[..].into(), &2500.into()), "{push}");
    let result = client.ask("subscribe", from(&keyed, &held)).await;
    assert_eq!((&result["was_recovering"], result.get("recovered")), (&true.into(), None), "{result}");
    assert_eq!(client.data(1).await, [2], "the values that there are now");
    client.ask("unsubscribe", json!({ "channel": keyed })).await;
    held["offset"] = u64::MAX.into();
    let result = client.ask("subscribe", from(&keyed, &held)).await;
    assert_eq!(result.get("recovered"), None, "no such offset: {result}");
    assert_eq!(client.data(1).await, [2]);
    setup.one.publish(&other, "3").await;
    assert_eq!(client.data(1).await, [3], "the other subscription goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn payloads_arrive_as_json_on_one_line() {
    let setup = Setup::memory(Options::default()).await;
    let channel = channel("a");
    let mut client = Client::connect(&setup.one).await;
    client.ask("subscribe", json!({ "channel": channel })).await;
    for (payload, data) in [
        ("{\n \"a\" : [1,\r\n2] }\n", json!({ "a": [1, 2] })),
        ("1e400", json!("?")),
        ("two\nlines", json!("two\nlines")),
        ("\"a string\"", json!("a string")),
        ("", json!("")),
        ("{\"a\":1}{\"a\":2}", json!("{\"a\":1}{\"a\":2}")),
    ] {
        setup.one.publish(&channel, payload.to_owned()).await;
        if data == "?" {
            // Not parsed: numbers of any size stay as they are.
            let text = client.socket.text().await;
            assert!(text.contains(r#""data":1e400"#), "{text}");
            continue;
        }
        assert_eq!(client.publication().await.1["data"], data, "{payload}");
    }
    setup.one.publish(&channel, vec![0xff, 0]).await;
    let (_, publication) = client.publication().await;
    assert_eq!((&publication["data"], &publication["tags"]), (&json!("/wA="), &json!({ "encoding": "base64" })));
    // What a client publishes arrives everywhere as it wrote it.
    let mut raw = setup.one.ws(&format!("channel={channel}")).await;
    let request = format!(r#"{{"channel":"{channel}","data":{{ "b":  [2.50] }} }}"#);
    assert_eq!(client.reply_to("publish", &request).await["publish"]["offset"], 8);
    assert_eq!(raw.text().await, r#"{ "b":  [2.50] }"#);
    client.ask("publish", json!({ "channel": channel, "data": "123" })).await;
    assert_eq!(raw.text().await, "\"123\"");
    assert_eq!(client.data(2).await, [json!({ "b": [2.5] }), json!("123")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_missed_messages_arrive_once_and_in_order() {
    const MESSAGES: usize = 900;
    let rules = "[[channel]]\nmatch = '*'\nhistory = { messages = 1000 }\n";
    let setup = Setup::memory(Options::default().rules(rules).flag("--log-messages 16")).await;
    let channel = channel("a");
    setup.one.publish(&channel, "first").await;
    let mut client = Client::connect(&setup.one).await;
    let mut held = position(&client.ask("subscribe", json!({ "channel": channel })).await);
    drop(client);
    let line = |number| json!({ "channel": channel, "data": format!("{number} {}", "x".repeat(1000)) }).to_string();
    let batch: Vec<_> = (1..=MESSAGES).map(line).collect();
    let headers = [("Content-Type", "application/x-ndjson")];
    assert_eq!(setup.one.post_with("/publish", &headers, batch.join("\n")).await.0, 200);
    let mut client = Client::connect(&setup.one).await;
    let result = client.ask("subscribe", from(&channel, &held)).await;
    assert_eq!(result["recovered"], true);
    held = position(&result);
    let mut found = data_of(&result);
    assert!((1..MESSAGES).contains(&found.len()), "the answer has a bound: {}", found.len());
    found.extend(follow(&mut client, &channel, &mut held, true, MESSAGES - found.len()).await);
    let number = |data: &Value| data.as_str().unwrap().split(' ').next().unwrap().parse::<usize>().unwrap();
    assert!(found.iter().map(number).eq(1..=MESSAGES));
    assert_eq!(held["offset"], MESSAGES + 1);
}
