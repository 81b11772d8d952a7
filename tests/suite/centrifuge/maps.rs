//! Map subscriptions: the values of a keyed channel by pages, then what changes. After any exchange, a client has what
//! there is.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::position;
use crate::support::brokers::{Setup, promises};
use crate::support::centrifuge_client::Client;
use crate::support::channel;
use crate::support::instance::{Instance, Options};

pub const RULES: &str = "
[[channel]]
match = 'map*'
keyed = true

[[channel]]
match = 'little*'
keyed = true
history = { messages = 3 }
";

promises!(
    Options::default().rules(RULES).flag("--log-messages 64");
    the_values_of_a_map_come_by_pages_and_then_what_has_changed_since,
    a_map_is_recovered_on_any_instance,
    a_map_of_another_history_is_refused_so_that_the_sdk_reads_it_again,
    a_removal_that_nobody_remembers_is_no_recovery,
    every_map_ends_with_the_same_values,
    a_map_without_values_gets_the_first_one,
    where_there_is_no_map_there_is_an_error,
);

/// What an SDK knows of a map.
struct Map {
    channel: String,
    values: BTreeMap<String, Value>,
    /// As a request has it.
    position: Value,
}

impl Map {
    /// Reads the values by pages of this size; `between` is called after each. Then subscribes.
    async fn read(client: &mut Client, channel: &str, limit: u64, mut between: impl AsyncFnMut(u64)) -> Self {
        let mut map = Self { channel: channel.into(), values: BTreeMap::new(), position: Value::Null };
        let mut request = json!({ "channel": channel, "type": 1, "phase": 2, "limit": limit });
        let mut number = 0;
        loop {
            let page = client.ask("subscribe", request.clone()).await;
            assert_eq!((&page["type"], &page["phase"]), (&1.into(), &2.into()), "{page}");
            let at = position(&page);
            if number == 0 {
                map.position = at;
            } else {
                assert_eq!(at, map.position, "that of the first page");
            }
            let state = page["state"].as_array().cloned().unwrap_or_default();
            assert!(state.len() as u64 <= limit, "{page}");
            for entry in &state {
                assert!(entry.get("removed").is_none() && entry["offset"].as_u64() <= offset(&map.position), "{page}");
                let former = map.values.insert(entry["key"].as_str().unwrap().into(), entry["data"].clone());
                assert_eq!(former, None, "each key once: {page}");
            }
            number += 1;
            between(number).await;
            let Some(cursor) = page.get("cursor") else { break };
            (request["cursor"], request["epoch"]) = (cursor.clone(), page["epoch"].clone());
            request["offset"] = map.position["offset"].clone();
        }
        let request = json!({ "channel": channel, "type": 1, "phase": 1, "epoch": map.position["epoch"], "offset": map.position["offset"] });
        let result = client.ask("subscribe", request).await;
        assert_eq!((result.get("was_recovering"), result.get("recovered")), (None, None), "{result}");
        map.subscribed(&result);
        map
    }

    /// Recovers; returns the number of publications in the answer.
    async fn recover(&mut self, client: &mut Client) -> usize {
        let mut request = self.position.clone();
        (request["channel"], request["type"], request["phase"]) = (self.channel.clone().into(), 1.into(), 1.into());
        let result = client.ask("subscribe", request).await;
        assert_eq!((&result["was_recovering"], &result["recovered"]), (&true.into(), &true.into()), "{result}");
        self.subscribed(&result);
        result["publications"].as_array().map_or(0, Vec::len)
    }

    fn subscribed(&mut self, result: &Value) {
        assert_eq!((&result["type"], result.get("phase"), result.get("state")), (&1.into(), None, None), "{result}");
        assert_eq!((&result["recoverable"], &result["epoch"]), (&true.into(), &self.position["epoch"]), "{result}");
        result["publications"].as_array().iter().copied().flatten().for_each(|publication| self.apply(publication));
        assert!(offset(&self.position) <= offset(&position(result)), "{result}");
        self.position = position(result);
    }

    /// Applies a publication, and moves behind it.
    fn apply(&mut self, publication: &Value) {
        let key = publication["key"].as_str().unwrap().to_owned();
        if publication["removed"] == true {
            self.values.remove(&key);
        } else {
            self.values.insert(key, publication["data"].clone());
        }
        assert!(offset(&self.position) < publication["offset"].as_u64(), "{publication}");
        self.position["offset"] = publication["offset"].clone();
        publication.get("epoch").iter().for_each(|epoch| self.position["epoch"] = (*epoch).clone());
    }

    /// Applies what is pushed until an offset: an instance may receive what was published a moment after the publisher
    /// has its answer. Returns the number of publications.
    async fn reach(&mut self, client: &mut Client, end: u64) -> usize {
        let mut count = 0;
        while offset(&self.position) < Some(end) {
            self.apply(&client.push().await["pub"]);
            count += 1;
        }
        count
    }

    /// Applies what is pushed until a key is there.
    async fn follow(&mut self, client: &mut Client, key: &str) {
        while !self.values.contains_key(key) {
            let push = client.push().await;
            assert_eq!(push["channel"], self.channel, "{push}");
            self.apply(&push["pub"]);
        }
    }

    fn seen(&self) -> Value {
        json!(self.values)
    }
}

fn offset(position: &Value) -> Option<u64> {
    position["offset"].as_u64()
}

async fn set(instance: &Instance, channel: &str, key: &str, value: impl Into<Value>) -> u64 {
    let answer = instance.post(&format!("/publish?channel={channel}&key={key}"), value.into().to_string()).await;
    assert_eq!(answer.0, 200, "{}", answer.1);
    answer.1["messages"][0]["offset"].as_u64().unwrap()
}

async fn remove(instance: &Instance, channel: &str, key: &str) -> u64 {
    let answer = instance.post(&format!("/publish?channel={channel}&key={key}&remove=true"), "").await;
    assert_eq!(answer.0, 200, "{}", answer.1);
    answer.1["messages"][0]["offset"].as_u64().unwrap()
}

/// Publishes values of the keys `{name}0`, `{name}1` … at once, or removes them.
async fn set_many(instance: &Instance, channel: &str, name: &str, count: usize, remove: bool) {
    let line = |number: usize| {
        let key = format!("{name}{number}");
        if remove {
            json!({ "channel": channel, "key": key, "remove": true, "data": "" })
        } else {
            json!({ "channel": channel, "key": key, "data": number })
        }
    };
    let lines: Vec<_> = (0..count).map(|number| line(number).to_string()).collect();
    let headers = [("Content-Type", "application/x-ndjson")];
    let (status, answer) = instance.post_with("/publish", &headers, lines.join("\n")).await;
    assert_eq!(status, 200, "{answer}");
}

async fn no_changes(_: u64) {}

/// The one instance or the other.
fn either(setup: &Setup, number: u64) -> &Instance {
    if number.is_multiple_of(2) { &setup.one } else { setup.two() }
}

pub async fn the_values_of_a_map_come_by_pages_and_then_what_has_changed_since(setup: Setup) {
    let [map, other] = ["map", "map"].map(channel);
    let writer = setup.two();
    set_many(writer, &map, "k", 25, false).await;
    set(writer, &other, "other", 1).await;
    remove(writer, &map, "k3").await;
    set(writer, &map, "k0", "changed").await;
    let mut client = Client::connect(&setup.one).await;
    let first = json!({ "channel": map, "type": 1, "phase": 2, "limit": 2, "flag": 1 });
    let page = client.ask("subscribe", first).await;
    let state = [json!({ "data": 1, "offset": 2, "key": "k1" }), json!({ "data": 2, "offset": 3, "key": "k2" })];
    let expected =
        json!({ "epoch": page["epoch"], "offset": 27, "type": 1, "phase": 2, "cursor": "3", "state": state });
    assert_eq!(page, expected);
    let mut seen = Map::read(&mut client, &map, 10, async |page| match page {
        // One that was read, and one that was not; and a new one.
        1 => {
            set(writer, &map, "k1", "changed").await;
            remove(writer, &map, "k2").await;
            set(writer, &map, "k23", "changed").await;
            remove(writer, &map, "k24").await;
            set(writer, &map, "new", 1).await;
            set(writer, &map, "gone", 1).await;
        }
        3 => {
            remove(writer, &map, "gone").await;
            remove(writer, &map, "k20").await;
        }
        _ => {}
    })
    .await;
    let mut truth: BTreeMap<_, _> = (4..23).map(|number| (format!("k{number}"), json!(number))).collect();
    truth.remove("k20");
    for key in ["k0", "k1", "k23"] {
        truth.insert(key.into(), "changed".into());
    }
    truth.insert("new".into(), 1.into());
    seen.reach(&mut client, 35).await;
    assert_eq!((seen.seen(), offset(&seen.position)), (json!(truth), Some(35)));
    remove(writer, &map, "k4").await;
    set(writer, &map, "end", json!({ "a": 1 })).await;
    seen.follow(&mut client, "end").await;
    truth.remove("k4");
    truth.insert("end".into(), json!({ "a": 1 }));
    assert_eq!(seen.seen(), json!(truth));
    assert_eq!(client.fail("subscribe", json!({ "channel": map, "type": 1, "phase": 2 })).await, (105, false));
    client.ask("unsubscribe", json!({ "channel": map })).await;
    assert_eq!(Map::read(&mut client, &map, 1000, no_changes).await.seen(), json!(truth));
}

pub async fn a_map_is_recovered_on_any_instance(setup: Setup) {
    let map = channel("map");
    set_many(&setup.one, &map, "k", 5, false).await;
    let mut client = Client::connect(&setup.one).await;
    let mut seen = Map::read(&mut client, &map, 2, no_changes).await;
    drop(client);
    for (round, instance) in [setup.two(), &setup.one, setup.two()].into_iter().enumerate() {
        // What the protocol has for it: a value, and the removal of another.
        let mut writer = Client::connect(instance).await;
        writer.ask("publish", json!({ "channel": map, "type": 1, "key": "k0", "data": [round] })).await;
        writer
            .ask("publish", json!({ "channel": map, "type": 1, "key": format!("k{}", round + 1), "removed": true }))
            .await;
        let mut client = Client::connect(instance).await;
        let recovered = seen.recover(&mut client).await;
        assert_eq!(recovered + seen.reach(&mut client, 5 + 2 * (round as u64 + 1)).await, 2);
        let expected: BTreeMap<_, _> = (round + 2..5).map(|number| (format!("k{number}"), json!(number))).collect();
        let expected = expected.into_iter().chain([("k0".into(), json!([round]))]).collect::<BTreeMap<_, _>>();
        assert_eq!(seen.seen(), json!(expected));
        client.ask("unsubscribe", json!({ "channel": map })).await;
        assert_eq!(seen.recover(&mut client).await, 0, "nothing is missing now");
        // The last phase alone does the same.
        client.ask("unsubscribe", json!({ "channel": map })).await;
        let mut live = seen.position.clone();
        (live["channel"], live["type"]) = (map.clone().into(), 1.into());
        assert_eq!(client.ask("subscribe", live).await["recovered"], true);
    }
}

async fn a_map_of_another_history_is_refused_so_that_the_sdk_reads_it_again(setup: Setup) {
    let map = channel("map");
    set_many(&setup.one, &map, "k", 5, false).await;
    let mut client = Client::connect(setup.two()).await;
    let mut request = json!({ "channel": map, "type": 1, "phase": 2, "limit": 2 });
    let page = client.ask("subscribe", request.clone()).await;
    request["cursor"] = page["cursor"].clone();
    let positions = [json!({}), json!({ "offset": 5 }), json!({ "epoch": "1", "offset": 5 }), json!({ "epoch": "_" })];
    for held in positions.into_iter().chain([json!({ "epoch": page["epoch"], "offset": 6 })]) {
        for (phase, recover) in [(2, false), (1, false), (1, true), (0, true)] {
            (request["phase"], request["recover"]) = (phase.into(), recover.into());
            for member in ["epoch", "offset"] {
                request[member] =
                    held.get(member).cloned().unwrap_or_else(|| json!({ "epoch": "", "offset": 0 })[member].clone());
            }
            assert_eq!(client.fail("subscribe", request.clone()).await, (112, false), "{request}");
        }
    }
    assert_eq!(Map::read(&mut client, &map, 2, no_changes).await.values.len(), 5, "the client is not subscribed");
}

async fn a_removal_that_nobody_remembers_is_no_recovery(setup: Setup) {
    let map = channel("little");
    set_many(&setup.one, &map, "k", 1010, false).await;
    set(&setup.one, &map, "stays", 1).await;
    let mut client = Client::connect(setup.two()).await;
    let mut request = json!({ "channel": map, "type": 1, "phase": 2, "limit": 2000 });
    let page = client.ask("subscribe", request.clone()).await;
    assert_eq!(page["state"].as_array().map(Vec::len), Some(1000), "the most that a page has");
    set_many(&setup.one, &map, "k", 1010, true).await;
    (request["cursor"], request["epoch"], request["offset"]) =
        (page["cursor"].clone(), page["epoch"].clone(), page["offset"].clone());
    // Its instance may not have heard of the removals yet.
    let last = loop {
        let page = client.ask("subscribe", request.clone()).await;
        let keys: Vec<_> = page["state"].as_array().unwrap().iter().map(|entry| &entry["key"]).collect();
        if keys == ["stays"] {
            break page;
        }
    };
    assert_eq!(last.get("cursor"), None);
    request["phase"] = 1.into();
    assert_eq!(client.fail("subscribe", request).await, (112, false));
    assert_eq!(Map::read(&mut client, &map, 2000, no_changes).await.seen(), json!({ "stays": 1 }));
}

pub async fn every_map_ends_with_the_same_values(setup: Setup) {
    const WRITERS: u64 = 8;
    const WRITES: u64 = 150;
    let [map, other] = ["map", "map"].map(channel);
    set_many(&setup.one, &map, "k", 300, false).await;
    let truth = std::sync::Mutex::new(BTreeMap::new());
    let write = async |writer: u64| {
        for round in 0..WRITES {
            let key = format!("k{}", (writer * 37 + round * 13) % 300);
            let instance = either(&setup, writer);
            let value = json!([writer, round]);
            if round % 5 == 4 {
                let offset = remove(instance, &map, &key).await;
                truth.lock().unwrap().insert(offset, (key, None));
            } else {
                let offset = set(instance, &map, &key, value.clone()).await;
                truth.lock().unwrap().insert(offset, (key, Some(value)));
            }
            set(instance, &other, "foreign", 1).await;
        }
    };
    let read = async |reader: u64| {
        let instance = either(&setup, reader);
        let mut client = Client::connect(instance).await;
        let mut seen = Map::read(&mut client, &map, 20, no_changes).await;
        // Again and again while they write.
        for round in 0..4 {
            for _ in 0..20 {
                if !seen.values.contains_key("end") {
                    seen.apply(&client.push().await["pub"]);
                }
            }
            client = Client::connect(instance).await;
            if (reader + round).is_multiple_of(2) {
                seen.recover(&mut client).await;
            } else {
                seen = Map::read(&mut client, &map, 20 + reader * 10 + round, no_changes).await;
            }
        }
        seen.follow(&mut client, "end").await;
        seen.seen()
    };
    let writing = async {
        futures::future::join_all((0..WRITERS).map(&write)).await;
        set(&setup.one, &map, "end", 1).await;
    };
    let (_, seen) = tokio::join!(writing, futures::future::join_all((0..6).map(&read)));
    let mut expected: BTreeMap<_, _> = (0..300).map(|number| (format!("k{number}"), json!(number))).collect();
    for (key, value) in truth.into_inner().unwrap().into_values() {
        match value {
            Some(value) => expected.insert(key, value),
            None => expected.remove(&key),
        };
    }
    expected.insert("end".into(), 1.into());
    for seen in seen {
        assert_eq!(seen, json!(expected));
    }
}

pub async fn a_map_without_values_gets_the_first_one(setup: Setup) {
    let map = channel("map");
    let mut client = Client::connect_with(&setup.one, json!({ "name": "js" })).await.0;
    let mut seen = Map::read(&mut client, &map, 10, no_changes).await;
    let mut early = Map { channel: map.clone(), values: BTreeMap::new(), position: seen.position.clone() };
    set(setup.two(), &map, "a", 1).await;
    seen.follow(&mut client, "a").await;
    drop(client);
    set(setup.two(), &map, "b", 2).await;
    let mut client = Client::connect(setup.two()).await;
    assert_eq!(seen.recover(&mut client).await + seen.reach(&mut client, 2).await, 1);
    assert_eq!(seen.seen(), json!({ "a": 1, "b": 2 }));
    // Nothing is missing, but an SDK does not know that epoch.
    let mut client = Client::connect(&setup.one).await;
    (early.position["channel"], early.position["type"]) = (map.clone().into(), 1.into());
    assert_eq!(client.fail("subscribe", early.position).await, (112, false));
    assert_eq!(Map::read(&mut client, &map, 10, no_changes).await.seen(), json!({ "a": 1, "b": 2 }));
}

async fn where_there_is_no_map_there_is_an_error(setup: Setup) {
    let [plain, map] = ["plain", "map"].map(channel);
    let mut client = Client::connect(setup.two()).await;
    for phase in [2, 1, 0] {
        let request = json!({ "channel": plain, "type": 1, "phase": phase, "recover": true, "epoch": "1" });
        assert_eq!(client.fail("subscribe", request).await, (108, false), "{phase}");
        for kind in [2, 3, 4] {
            let request = json!({ "channel": map, "type": kind, "phase": phase });
            assert_eq!(client.fail("subscribe", request).await, (108, false), "{kind} {phase}");
        }
    }
    for more in [json!({ "phase": 3 }), json!({ "phase": 2, "cursor": "x" }), json!({ "phase": 2, "tf": {} })] {
        let mut request = json!({ "channel": map, "type": 1 });
        more.as_object().unwrap().iter().for_each(|(name, value)| request[name] = value.clone());
        assert_eq!(client.fail("subscribe", request).await, (107, false), "{more}");
    }
    for request in [
        json!({ "channel": map, "type": 1, "data": 1 }),
        json!({ "channel": map, "type": 1, "key": "", "data": 1 }),
        json!({ "channel": plain, "type": 1, "key": "a", "data": 1 }),
        json!({ "channel": map, "type": 1, "key": "a" }),
    ] {
        assert_eq!(client.fail("publish", request.clone()).await, (107, false), "{request}");
    }
    assert_eq!(client.fail("publish", json!({ "channel": map, "type": 2, "key": "a", "data": 1 })).await, (108, false));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_is_told_when_the_values_of_its_map_are_lost() {
    let setup = Setup::redis(Options::default().rules(RULES)).await;
    for live in [0, 3] {
        let map = channel("map");
        set_many(&setup.one, &map, "k", 5, false).await;
        let [mut client, mut other] = [Client::connect(&setup.one).await, Client::connect(&setup.one).await];
        let mut seen = Map::read(&mut client, &map, 3, no_changes).await;
        let mut request = json!({ "channel": map, "type": 1, "phase": 2, "limit": 3 });
        let page = other.ask("subscribe", request.clone()).await;
        for number in 0..live {
            set(setup.two(), &map, "k1", number).await;
            seen.apply(&client.push().await["pub"]);
        }
        setup.redis.as_ref().unwrap().cli(&["FLUSHALL"]);
        set(setup.two(), &map, "b", 2).await;
        let push = client.push().await;
        assert_eq!((&push["channel"], &push["unsubscribe"]["code"]), (&map[..].into(), &2500.into()), "{push}");
        request["epoch"] = page["epoch"].clone();
        for (phase, client) in [(2, &mut other), (1, &mut client)] {
            let held = if phase == 2 { &page } else { &seen.position };
            (request["phase"], request["cursor"], request["offset"]) =
                (phase.into(), page["cursor"].clone(), held["offset"].clone());
            assert_eq!(client.fail("subscribe", request.clone()).await, (112, false), "{phase}");
            assert_eq!(Map::read(client, &map, 3, no_changes).await.seen(), json!({ "b": 2 }));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_and_an_answer_have_bounds_in_bytes_and_a_message_without_a_key_is_no_value() {
    let setup = Setup::memory(Options::default().rules(RULES)).await;
    let map = channel("map");
    let large = |number: usize| format!("{number}{}", "x".repeat(50_000));
    for number in 0..9 {
        set(&setup.one, &map, &format!("k{number}"), large(number)).await;
    }
    let mut client = Client::connect(&setup.one).await;
    let page = client.ask("subscribe", json!({ "channel": map, "type": 1, "phase": 2 })).await;
    assert_eq!((page["state"].as_array().map(Vec::len), &page["cursor"]), (Some(2), &"2".into()));
    let mut pages = 0;
    let mut seen = Map::read(&mut client, &map, 1000, async |number| {
        pages = number;
        if number == 1 {
            setup.one.publish(&map, "1").await;
            for number in 0..9 {
                set(&setup.one, &map, &format!("k{number}"), large(number + 10)).await;
            }
            set(&setup.one, &map, "end", 1).await;
        }
    })
    .await;
    assert!((2..=5).contains(&pages), "two values each, unless they have changed meanwhile: {pages}");
    let subscribed = offset(&seen.position).unwrap();
    assert!((11..19).contains(&subscribed), "the answer has a bound: {subscribed}");
    seen.follow(&mut client, "end").await;
    assert!((0..9).all(|number| seen.values[&format!("k{number}")] == large(number + 10)));
    // Who is subscribed gets what there is.
    setup.one.publish(&map, "2").await;
    let publication = client.publication().await.1;
    assert_eq!(publication, json!({ "data": 2, "offset": 21 }));
}
