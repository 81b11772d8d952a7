//! From format 1 of what is in Redis to format 2, while instances of both run: what format 1 stored is taken over, and
//! what its instances ask and hear is what they know.

use crate::support::channel;
use crate::support::format1::{self, RULES};
use crate::support::instance::{Instance, Options, position};
use crate::support::redis::Redis;
use crate::support::resp::{Answer, Client};

/// A Redis with format 1 in it.
async fn before() -> (Redis, Client) {
    let redis = Redis::start().await;
    format1::load(&redis);
    let client = redis.client();
    (redis, client)
}

/// Starts an instance of today.
async fn upgrade(redis: &Redis) -> Instance {
    let instance = Options::redis(redis).rules(RULES).start().await;
    assert!(redis.cli(&["FUNCTION", "LIST", "WITHCODE"]).contains("-- format 3"), "the functions are replaced");
    instance
}

fn keys(redis: &Redis, channel: &str) -> Vec<String> {
    let kept = redis.cli(&["--scan", "--pattern", &format!("livebridge:{{{channel}}}:*")]);
    let mut kept: Vec<_> = kept.lines().map(|key| key.rsplit(':').next().unwrap().to_owned()).collect();
    kept.sort();
    kept
}

/// What an empty column or a missing field stands for is left out.
async fn offsets_and_data(instance: &Instance, channel: &str, query: &str) -> Vec<(u64, String)> {
    let page = instance.get_json(&format!("/channels/{channel}/messages{query}")).await;
    let messages = page["messages"].as_array().unwrap_or_else(|| panic!("{page}"));
    messages.iter().map(|it| (it["offset"].as_u64().unwrap(), it["data"].to_string())).collect()
}

fn expected(offsets: std::ops::RangeInclusive<u64>) -> Vec<(u64, String)> {
    offsets.map(|offset| (offset, offset.to_string())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_history_of_format_1_is_taken_over_at_the_first_read() {
    let (redis, mut client) = before().await;
    for (kind, kept) in [("plain", 1..=7), ("short", 3..=7)] {
        let channel = channel(kind);
        let positions: Vec<_> = (1..=7)
            .map(|number| format1::position(&format1::publish(&mut client, &channel, &[&number.to_string()])))
            .collect();
        let instance = upgrade(&redis).await;
        assert_eq!(keys(&redis, &channel), ["log", "meta"]);
        let mut socket = instance.ws(&format!("channel={channel}&since={}", positions[3])).await;
        for number in 5..=7 {
            assert_eq!(socket.text().await, number.to_string());
        }
        assert_eq!(offsets_and_data(&instance, &channel, "").await, expected(kept));
        assert_eq!(offsets_and_data(&instance, &channel, &format!("?since={}", positions[6])).await, []);
        let epoch = positions[0].split(':').next().unwrap();
        let (status, body) = instance.get(&format!("/channels/{channel}/messages?since={epoch}:8")).await;
        assert_eq!(status, 410, "{body}");
        assert_eq!(keys(&redis, &channel), ["head", "history"]);
        assert_eq!(instance.publish(&channel, "8").await.unwrap(), format!("{epoch}:8"));
        assert_eq!(socket.text().await, "8");
        // As a message of its own format would.
        let ttl: u64 = redis.cli(&["PTTL", &format!("livebridge:{{{channel}}}:history")]).parse().unwrap();
        assert!((290_000..=301_000).contains(&ttl), "{ttl}");
        drop(instance);
        format1::load(&redis);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_history_of_format_1_is_taken_over_at_the_first_message() {
    let (redis, mut client) = before().await;
    let channels = ["plain", "sheet"].map(channel);
    let mut last = String::new();
    for channel in &channels {
        for number in 1..=3 {
            last = format1::position(&format1::publish(&mut client, channel, &[&number.to_string()]));
        }
    }
    let instance = upgrade(&redis).await;
    for channel in &channels {
        assert!(instance.publish(channel, "4").await.unwrap().ends_with(":4"));
        assert_eq!(offsets_and_data(&instance, channel, "").await, expected(1..=4));
        assert!(keys(&redis, channel).iter().all(|key| ["head", "history"].contains(&key.as_str())));
    }
    assert_eq!(offsets_and_data(&instance, &channels[1], &format!("?since={last}")).await, expected(4..=4));
}

#[tokio::test(flavor = "multi_thread")]
async fn keyed_values_removals_and_ids_of_format_1_are_taken_over() {
    let (redis, mut client) = before().await;
    let channel = channel("cells");
    let first = format1::position(&format1::publish(&mut client, &channel, &["1", "key", "A 1"]));
    for words in [
        &["2", "key", "gone"][..],
        &["3", "key", "ключ"],
        &["", "key", "gone", "remove"],
        &["5", "key", "A 1", "id", "order-5"],
        &["6"],
        &["7", "key", "c"],
        &["8", "key", "c"],
        &["9", "key", "c"],
        &["10", "key", "c"],
    ] {
        format1::publish(&mut client, &channel, words);
    }
    let instance = upgrade(&redis).await;
    let mut joining = instance.ws(&format!("channel={channel}&format=json")).await;
    joining.json().await;
    for (offset, key, data) in [(3, "ключ", 3), (5, "A 1", 5), (10, "c", 10)] {
        let envelope = joining.json().await;
        assert_eq!(
            (&envelope["offset"], &envelope["key"], &envelope["data"]),
            (&offset.into(), &key.into(), &data.into())
        );
    }
    // Older than the history, which keeps five: only what changed since is told, the removal included.
    let mut resuming = instance.ws(&format!("channel={channel}&format=json&since={first}")).await;
    resuming.json().await;
    for (offset, key, removed) in [(3, "ключ", false), (4, "gone", true), (5, "A 1", false), (10, "c", false)] {
        let envelope = resuming.json().await;
        assert_eq!((&envelope["offset"], &envelope["key"]), (&offset.into(), &key.into()), "{envelope}");
        assert_eq!(envelope["removed"] == true, removed, "{envelope}");
    }
    // Nothing has been published since, which would have set it.
    let path = format!("/publish?channel={channel}&key=A%201");
    let headers = [("idempotency-key", "order-5")];
    let (status, answer) = instance.post_with(&path, &headers, "5").await;
    assert_eq!((status.as_u16(), &answer["messages"][0]["offset"]), (200, &5.into()), "{answer}");
    assert!(position(&answer["messages"][0]).unwrap().starts_with(first.split(':').next().unwrap()));
    assert_eq!(keys(&redis, &channel), ["head", "history", "order", "order-5", "removed", "values"]);
    for key in keys(&redis, &channel).iter().filter(|key| *key != "order-5") {
        let ttl = redis.cli(&["TTL", &format!("livebridge:{{{channel}}}:{key}")]);
        assert!(ttl.parse::<i64>().unwrap() > 0, "{key} would stay for ever");
    }
    // Values and removals count as they did.
    let counts = redis.cli(&["GET", &format!("livebridge:{{{channel}}}:head")]);
    let bytes = "A 15".len() + "gone".len() + "ключ3".len() + "c10".len();
    assert!(counts.ends_with(&format!(" {bytes} 1 0")), "{counts}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_history_of_format_1_can_be_read_when_redis_is_full() {
    let (redis, mut client) = before().await;
    let channel = channel("plain");
    format1::publish(&mut client, &channel, &["1"]);
    let instance = upgrade(&redis).await;
    redis.cli(&["CONFIG", "SET", "maxmemory", "1"]);
    assert_eq!(offsets_and_data(&instance, &channel, "").await, expected(1..=1));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_format_1_stored_and_nobody_can_read_begins_a_new_epoch() {
    let (redis, mut client) = before().await;
    let channel = channel("plain");
    let first = format1::position(&format1::publish(&mut client, &channel, &["1"]));
    let meta = format!("livebridge:{{{channel}}}:meta");
    redis.cli(&["HSET", &meta, "e", "rubbish"]);
    let instance = upgrade(&redis).await;
    let (status, body) = instance.get(&format!("/channels/{channel}/messages?since={first}")).await;
    assert_eq!(status, 410, "{body}");
    assert!(instance.publish(&channel, "2").await.unwrap().ends_with(":1"));
    assert_eq!(keys(&redis, &channel), ["head", "history"]);
}

/// What arrives on a channel and its companions until so many payloads of the channel have come.
fn heard(client: &mut Client, channel: &str, payloads: usize) -> Vec<String> {
    let mut heard = Vec::new();
    while heard.iter().filter(|text: &&String| text.starts_with("payload")).count() < payloads {
        let (name, payload) = client.message();
        let payload = String::from_utf8(payload).unwrap();
        heard.push(if name == channel {
            format!("payload {payload}")
        } else {
            let mut fields = payload.splitn(4, ' ');
            let offset = fields.nth(1).unwrap_or_default().to_owned();
            format!("{} {offset} {}", name.split(':').nth(1).unwrap(), fields.nth(1).unwrap_or_default())
        });
    }
    heard
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_of_format_1_hears_a_position_for_each_message_of_a_batch() {
    let (redis, mut client) = before().await;
    let instance = upgrade(&redis).await;
    let channel = channel("sheet");
    let (note, run) = (format!("livebridge:note:{channel}"), format!("livebridge:run:{channel}"));
    let mut socket = instance.ws(&format!("channel={channel}&format=json")).await;
    socket.json().await;
    let batch = |first: u64| {
        let lines = (first..first + 3)
            .map(|number| format!("{{\"channel\":\"{channel}\",\"data\":{number},\"key\":\"k {number}\"}}\n"));
        let headers = [("content-type", "application/x-ndjson")];
        let lines: String = lines.collect();
        let instance = &instance;
        async move {
            let (status, answer) = instance.post_with("/publish", &headers, lines).await;
            assert_eq!(status, 200, "{answer}");
        }
    };
    // An instance of format 1 among those of today.
    let mut old = redis.client();
    old.ask(&["SUBSCRIBE", &note, &channel]);
    old.next();
    batch(1).await;
    let singles: Vec<_> =
        (1..=3).flat_map(|number| [format!("note {number} 0 k {number}"), format!("payload {number}")]).collect();
    assert_eq!(heard(&mut old, &channel, 3), singles);
    drop(old);
    redis.until_listeners(&note, 1).await;
    // All of today.
    let mut today = redis.client();
    today.ask(&["SUBSCRIBE", &note, &run, &channel]);
    batch(4).await;
    assert_eq!(heard(&mut today, &channel, 3), ["run 4 3\n0 k 4\n0 k 5\n0 k 6", "payload 4", "payload 5", "payload 6"]);
    // And what an instance of format 1 publishes.
    format1::publish(&mut client, &channel, &["7", "key", "a"]);
    assert_eq!(heard(&mut today, &channel, 1), ["note 7 0 a", "payload 7"]);
    for number in 1..=7 {
        let envelope = socket.json().await;
        assert_eq!((&envelope["offset"], &envelope["data"]), (&number.into(), &number.into()), "{envelope}");
    }
}

/// Two Redis, one of each format, to which the same is done.
struct Pair {
    _redis: [Redis; 2],
    _instance: Instance,
    clients: [Client; 2],
    epochs: [Vec<String>; 2],
}

/// A page of `livebridge_read`, with epochs by the order in which they appeared and without stamps.
#[derive(PartialEq, Eq, Debug)]
struct Comparable {
    fields: Vec<String>,
    entries: Vec<[String; 4]>,
}

impl Pair {
    async fn start() -> Self {
        let redis = [Redis::start().await, Redis::start().await];
        format1::load(&redis[0]);
        let instance = upgrade(&redis[1]).await;
        let clients = [redis[0].client(), redis[1].client()];
        Self { _redis: redis, _instance: instance, clients, epochs: Default::default() }
    }

    fn publish(&mut self, channel: &str, words: &[&str]) {
        for (client, epochs) in self.clients.iter_mut().zip(&mut self.epochs) {
            let answer = format1::publish(client, channel, words);
            let epoch = answer.array()[0].text();
            if !epochs.contains(&epoch) {
                epochs.push(epoch);
            }
        }
    }

    /// Asks both; `E` among the words stands for the newest epoch, `S` for the stamp of the message with the offset before
    /// it, read from the pages.
    fn read(&mut self, channel: &str, words: &str) {
        let pages = [0, 1].map(|side| {
            let client = &mut self.clients[side];
            let stamp = words.ends_with(" S").then(|| {
                let offset = words.split(' ').nth_back(1).unwrap();
                let all = format1::read(client, channel, &["1000", "1000000", "oldest"]);
                let entry = all.array().iter().skip(7).find(|entry| entry.array()[0].text() == offset);
                entry.map_or("0".to_owned(), |entry| entry.array()[1].text())
            });
            let epoch = self.epochs[side].last().cloned().unwrap_or_default();
            let words: Vec<_> = words
                .split(' ')
                .map(|word| match word {
                    "E" => epoch.as_str(),
                    "S" => stamp.as_deref().unwrap(),
                    word => word,
                })
                .collect();
            comparable(&format1::read(client, channel, &words), &mut self.epochs[side])
        });
        assert_eq!(pages[0], pages[1], "{words} of {channel}");
    }
}

fn comparable(page: &Answer, epochs: &mut Vec<String>) -> Comparable {
    let (fields, entries) = page.array().split_at(page.array().len().min(7));
    let Some(epoch) = fields.first().map(Answer::text) else {
        return Comparable { fields: Vec::new(), entries: Vec::new() };
    };
    let known = epochs.iter().position(|it| *it == epoch);
    let index = known.unwrap_or_else(|| {
        epochs.push(epoch);
        epochs.len() - 1
    });
    // Epoch, tail, gap, its offset, through; the stamps but for whether there is one.
    let text = |field: usize| fields[field].text();
    let is_zero = |field: usize| (text(field) == "0").to_string();
    let fields = vec![index.to_string(), text(1), is_zero(2), text(3), text(4), text(5), is_zero(6)];
    let entry = |entry: &Answer| {
        let [offset, stamp, key, removed, payload] = entry.array() else { panic!("{entry:?}") };
        assert!(stamp.text().parse::<u64>().unwrap() > 1_000_000_000_000, "{entry:?}");
        [offset, key, removed, payload].map(Answer::text)
    };
    Comparable { fields, entries: entries.iter().map(entry).collect() }
}

#[tokio::test(flavor = "multi_thread")]
async fn livebridge_read_answers_as_format_1_did() {
    let mut pair = Pair::start().await;
    for kind in ["plain", "short", "sheet", "cells", "none"] {
        let channel = channel(kind);
        if kind != "none" {
            for number in 1..=12 {
                let payload = format!("{number}{}", "x".repeat(10 * number));
                let key = format!("k{}", number % 3);
                match (kind, number % 5) {
                    ("sheet" | "cells", 0) => pair.publish(&channel, &["", "key", &key, "remove"]),
                    ("sheet" | "cells", 1..=3) => pair.publish(&channel, &[&payload, "key", &key]),
                    _ => pair.publish(&channel, &[&payload]),
                }
            }
        }
        for bounds in ["1000 4194304", "3 4194304", "1 1", "1000 200", "0 1000"] {
            // For keys an instance never asks for no message at all.
            if bounds.starts_with('0') && kind != "plain" {
                continue;
            }
            for mode in ["tail", "oldest", "last", "keys"] {
                pair.read(&channel, &format!("{bounds} {mode}"));
            }
            for offset in [0, 3, 6, 7, 8, 11, 12, 13, 400] {
                pair.read(&channel, &format!("{bounds} after E {offset}"));
                pair.read(&channel, &format!("{bounds} after 77 {offset}"));
                pair.read(&channel, &format!("{bounds} delivered 77 {offset} 0"));
            }
            for offset in [0, 3, 8, 11, 12] {
                pair.read(&channel, &format!("{bounds} delivered E {offset} 0"));
                pair.read(&channel, &format!("{bounds} delivered E {offset} S"));
            }
        }
        if kind != "none" {
            // A history that went another way: both begin a new epoch, and go on with it.
            pair.read(&channel, "1000 4194304 delivered E 12 12345");
            pair.read(&channel, "1000 4194304 delivered E 13 1");
            pair.publish(&channel, &["13"]);
            pair.read(&channel, "1000 4194304 oldest");
        }
    }
}
