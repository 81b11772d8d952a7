//! What the history costs Redis, counted in bytes, calls and keys, not in time.

use serde_json::json;

use crate::support::centrifuge_client::Client;
use crate::support::channel;
use crate::support::instance::{Instance, Options};
use crate::support::redis::Redis;

const RULES: &str = "
[[channel]]
match = 'aged:*'
history = { messages = 100000, age = '2s' }
[[channel]]
match = 'sheet:*'
keyed = true
[[channel]]
match = 'long:*'
history = { messages = 5000 }
[[channel]]
match = 'short:*'
history = { messages = 5 }
";

const PAGE_BYTES: u64 = livebridge::broker::PAGE_BYTES as u64;
/// More than Redis sends beside payloads: headers, plans, and a canary now and then.
const BESIDE: u64 = 10_000;

async fn furnished() -> (Redis, Instance) {
    let redis = Redis::start().await;
    let instance = Options::redis(&redis).rules(RULES).start().await;
    (redis, instance)
}

/// Publishes so many messages of a size; returns the position of each.
async fn publish(instance: &Instance, channel: &str, messages: usize, size: usize) -> Vec<String> {
    let mut positions = Vec::new();
    for number in 0..messages {
        let payload = format!("{number} {}", "x".repeat(size));
        positions.push(instance.publish(channel, payload).await.unwrap());
    }
    positions
}

/// Publishes so many short messages as batches.
async fn publish_lines(instance: &Instance, channel: &str, messages: usize) {
    let lines: Vec<_> =
        (0..messages).map(|number| format!("{{\"channel\":\"{channel}\",\"data\":{number}}}\n")).collect();
    for chunk in lines.chunks(1000) {
        let kind = [("content-type", "application/x-ndjson")];
        let (status, answer) = instance.post_with("/publish", &kind, chunk.concat()).await;
        assert_eq!(status, 200, "{answer}");
    }
}

/// How many messages a history answers, and how many bytes Redis sent for that.
async fn read(redis: &Redis, instance: &Instance, channel: &str, query: &str) -> (usize, u64) {
    redis.reset_counts();
    let page = instance.get_json(&format!("/channels/{channel}/messages?{query}")).await;
    let sent = redis.info("total_net_output_bytes");
    (page["messages"].as_array().unwrap_or_else(|| panic!("{page}")).len(), sent)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_moves_what_it_returns_and_nothing_else() {
    const SIZE: u64 = 100_000;
    let (redis, instance) = furnished().await;
    let channel = channel("large");
    let positions = publish(&instance, &channel, 100, SIZE as usize).await;
    let (messages, sent) = read(&redis, &instance, &channel, &format!("since={}&limit=1", positions[99])).await;
    assert!(messages == 0 && sent < BESIDE, "{sent} bytes from Redis for no message");
    let usage = redis.usage();
    assert!(!usage.contains_key("lrange") && !usage.contains_key("xrange"), "{usage:?}");
    for (query, expected) in [
        (format!("since={}&limit=1", positions[50]), 1),
        (format!("since={}&limit=1", positions[0]), 1),
        ("limit=1".to_owned(), 1),
        (format!("since={}&limit=3", positions[90]), 3),
        (format!("since={}", positions[94]), 5),
    ] {
        let (messages, sent) = read(&redis, &instance, &channel, &query).await;
        assert_eq!(messages, expected, "{query}");
        let payloads = expected as u64 * SIZE;
        assert!((payloads..payloads + BESIDE).contains(&sent), "{sent} bytes from Redis for {query}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_position_that_is_gone_costs_no_messages() {
    let (redis, instance) = furnished().await;
    let sheet = channel("sheet");
    for (channel, key) in [(channel("large"), ""), (sheet.clone(), "&key=a"), (sheet, "&key=b")] {
        let position = instance.publish(&format!("{channel}{key}"), "x".repeat(50_000)).await.unwrap();
        let (epoch, _) = position.split_once(':').unwrap();
        let mut client = Client::connect(&instance).await;
        for (epoch, offset) in [("1", 0), ("1", 5), (epoch, 99)] {
            redis.reset_counts();
            let path = format!("/channels/{channel}/messages?since={epoch}:{offset}");
            assert_eq!(instance.get(&path).await.0, 410);
            let since = json!({ "epoch": epoch, "offset": offset });
            let request = json!({ "channel": channel, "limit": 9, "since": since });
            assert_eq!(client.fail("history", request).await, (112, false));
            let sent = redis.info("total_net_output_bytes");
            assert!(sent < BESIDE, "{sent} bytes from Redis for nothing after {epoch}:{offset} of {channel}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_ends_at_its_bytes_and_one_message_always_fits() {
    let (redis, instance) = furnished().await;
    for (size, in_a_page) in [(900_000, 4), (1_000_000, 4), (600_000, 6)] {
        let channel = channel("page");
        publish(&instance, &channel, 9, size).await;
        let (messages, sent) = read(&redis, &instance, &channel, "limit=1000").await;
        assert_eq!(messages, in_a_page);
        assert!(sent < PAGE_BYTES + BESIDE, "{sent} bytes from Redis for a page of {PAGE_BYTES}");
    }
    // Larger than a page.
    let instance = Options::redis(&redis).rules(RULES).flag("--max-message-bytes 8388608").start().await;
    let channel = channel("page");
    publish(&instance, &channel, 3, 6 << 20).await;
    let (messages, sent) = read(&redis, &instance, &channel, "limit=1000").await;
    assert!(messages == 1 && sent < (6 << 20) + BESIDE, "{messages} messages, {sent} bytes from Redis");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_does_not_walk_through_what_has_aged() {
    let (redis, instance) = furnished().await;
    let channel = channel("aged");
    publish_lines(&instance, &channel, 5000).await;
    let key = format!("livebridge:{{{channel}}}:history");
    // As if something had been published all the time: Redis drops the whole of it a second later.
    redis.cli(&["PERSIST", &key]);
    crate::support::until("the messages have aged", || async {
        let page = instance.get_json(&format!("/channels/{channel}/messages")).await;
        page["messages"].as_array().is_some_and(Vec::is_empty)
    })
    .await;
    let length: usize = redis.cli(&["LLEN", &key]).parse().unwrap();
    assert!(length > 6000, "only {length} elements are left: else this tests nothing");
    for query in ["limit=1000", "limit=1"] {
        read(&redis, &instance, &channel, query).await;
        let calls: u64 = redis.usage().values().map(|usage| usage.calls).sum();
        assert!(calls < 100, "{calls} commands for an empty page: {:?}", redis.usage());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn reading_and_subscribing_leave_nothing_in_redis_even_if_it_is_full() {
    let (redis, instance) = furnished().await;
    let keys = redis.cli(&["DBSIZE"]);
    for memory in ["0", "1"] {
        redis.cli(&["CONFIG", "SET", "maxmemory", memory]);
        redis.reset_counts();
        for kind in ["nobody", "sheet"] {
            for _ in 0..50 {
                let name = channel(kind);
                let (status, body) = instance.get(&format!("/channels/{name}/messages")).await;
                assert_eq!(status, 200, "{body}");
                let (status, body) = instance.get(&format!("/channels/{name}/messages?since=1:2")).await;
                assert_eq!(status, 410, "{body}");
                let mut socket = instance.ws(&format!("channel={name}&format=json")).await;
                assert_eq!(socket.json().await["channels"][0]["offset"], 0);
                let mut resuming = instance.ws(&format!("channel={name}&format=json&since=1:2")).await;
                resuming.json().await;
                assert_eq!(resuming.json().await["event"], "gap");
            }
        }
        assert_eq!(redis.cli(&["DBSIZE"]), keys, "{}", redis.cli(&["KEYS", "*"]));
        let written =
            redis.usage().into_keys().filter(|name| ["set", "hset", "expire", "rpush"].contains(&name.as_str()));
        assert_eq!(written.count(), 0, "{:?}", redis.usage());
    }
    // Else this tests nothing.
    let (status, answer) = instance.post(&format!("/publish?channel={}", channel("nobody")), "x").await;
    assert_eq!(status, 503, "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_goes_to_redis_as_one_call_with_one_position_marker() {
    let (redis, instance) = furnished().await;
    let channel = channel("batch");
    let mut socket = instance.ws(&format!("channel={channel}&format=json")).await;
    socket.json().await;
    redis.reset_counts();
    publish_lines(&instance, &channel, 100).await;
    for number in 0..100 {
        assert_eq!(socket.json().await["data"], number);
    }
    assert_eq!(redis.calls("fcall"), 1);
    assert_eq!(redis.calls("rpush"), 1);
    // One marker, the payloads, and the canary of the instance once a second.
    let published = redis.calls("publish");
    assert!((101..105).contains(&published), "{published} messages in Redis for a batch of 100");
    let writes: u64 = ["set", "pexpire", "expire"].into_iter().map(|command| redis.calls(command)).sum();
    assert!(writes <= 3, "{writes} commands around a batch");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_many_connections_publish_at_once_to_a_channel_shares_calls() {
    const CONNECTIONS: usize = 64;
    let (redis, instance) = furnished().await;
    let channel = channel("together");
    let mut socket = instance.ws(&format!("channel={channel}&format=json")).await;
    socket.json().await;
    redis.reset_counts();
    // While the first is under way the others collect themselves.
    redis.signal("STOP");
    let path = format!("/publish?channel={channel}");
    let posts = (0..CONNECTIONS).map(|number| instance.post(&path, number.to_string()));
    let go_on = async {
        let sockets = CONNECTIONS as f64 + 1.0;
        crate::support::until("all have come", || async { instance.metric("livebridge_sockets").await > sockets })
            .await;
        redis.signal("CONT");
    };
    let (answers, ()) = futures::future::join(futures::future::join_all(posts), go_on).await;
    assert!(answers.iter().all(|(status, _)| *status == 200), "{answers:?}");
    let mut data = Vec::new();
    for offset in 1..=CONNECTIONS {
        let envelope = socket.json().await;
        assert_eq!(envelope["offset"], offset);
        data.push(envelope["data"].as_u64().unwrap());
    }
    data.sort_unstable();
    assert_eq!(data, (0..CONNECTIONS as u64).collect::<Vec<_>>());
    let calls = redis.calls("fcall");
    assert!(calls <= CONNECTIONS as u64 / 4, "{calls} calls for {CONNECTIONS} messages");
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_read_a_channel_in_turn_read_it_once_for_each_kind_of_read() {
    const ROUNDS: usize = 100;
    let (redis, instance) = furnished().await;
    for (kind, starts, most) in [
        ("sheet", &["", "since=E:10"][..], 2),
        ("sheet", &["since=E:12", "since=E:10"], 2),
        ("long", &["last=3", "since=E:10", "since=E:15", "last=2"], 2),
        ("usual", &["since=earliest", "last=3", "since=E:10", "since=1:5"], 1),
        // They are told what is gone.
        ("short", &["since=E:2", "since=E:7", "since=earliest"], 1),
    ] {
        let channel = channel(kind);
        let mut last = None;
        for number in 0..20 {
            let key = if kind == "sheet" { format!("&key=k{}", number % 5) } else { String::new() };
            last = instance.publish(&format!("{channel}{key}"), number.to_string()).await;
        }
        let epoch = last.unwrap().split(':').next().unwrap().to_owned();
        let mut stays = instance.ws(&format!("channel={channel}&format=json")).await;
        stays.json().await;
        redis.reset_counts();
        for _ in 0..ROUNDS {
            for start in starts {
                let start = start.replace('E', &epoch);
                let mut socket = instance.ws(&format!("channel={channel}&format=json&{start}")).await;
                assert_eq!(socket.json().await["event"], "welcome");
                socket.json().await;
            }
        }
        let plans = redis.calls("fcall");
        // On a slow machine, a page may get too old once.
        assert!(plans <= 2 * most, "{plans} reads for {ROUNDS} times {starts:?} of {channel}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_no_other_client_can_use_displaces_none() {
    const ROUNDS: u64 = 20;
    let (redis, instance) = furnished().await;
    // Positions that Redis does not know of, and pages that end before the log begins.
    for (kind, messages, start, reads) in [("usual", 20, 99, 1), ("long", 3000, 10, 2)] {
        let channel = channel(kind);
        publish_lines(&instance, &channel, messages).await;
        let history = instance.get_json(&format!("/channels/{channel}/messages?limit=1")).await;
        let epoch = history["epoch"].as_str().unwrap();
        let end = async |start: &str| {
            let mut socket = instance.ws(&format!("channel={channel}&format=json&since={start}")).await;
            while socket.json().await["offset"] != messages {}
        };
        let mut stays = instance.ws(&format!("channel={channel}&format=json")).await;
        stays.json().await;
        end("earliest").await;
        redis.reset_counts();
        for round in 0..ROUNDS {
            end(&format!("{epoch}:{}", start + round)).await;
        }
        let plans = redis.calls("fcall");
        // The page at the end of the history is read once, and once more if a slow machine takes long.
        assert!(plans <= ROUNDS * reads + 2, "{plans} reads for {ROUNDS} clients of {channel}");
    }
}
