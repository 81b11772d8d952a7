//! Positions, resume, and gaps that are told. Runs against both brokers.

use std::time::Duration;

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::support::brokers::{Setup, promises};
use crate::support::instance::{Instance, Options, position};
use crate::support::redis::Redis;
use crate::support::sse::Events;
use crate::support::{channel, until};

const RULES: &str = "
[[channel]]
match = 'short:*'
history = { messages = 5, age = '5m' }
[[channel]]
match = 'brief:*'
history = { messages = 100, age = '1s' }
[[channel]]
match = 'long:*'
history = { messages = 5000, age = '1h' }
[[channel]]
match = 'none:*'
history = false
[[channel]]
match = 'sheet:*'
keyed = true
";

impl Setup {
    /// Publishes `from..=to` as their own numbers; returns the last position.
    async fn publish_numbers(&self, channel: &str, from: u64, to: u64) -> String {
        let lines: String =
            (from..=to).map(|number| format!("{{\"channel\":\"{channel}\",\"data\":{number}}}\n")).collect();
        let (status, answer) = self.one.post_with("/publish", &[("content-type", "application/x-ndjson")], lines).await;
        assert_eq!(status, 200, "{answer}");
        position(answer["messages"].as_array().unwrap().last().unwrap()).unwrap_or_default()
    }
}

promises!(
    Options::default().rules(RULES);
    offsets_count_without_holes_and_history_answers_them,
    history_is_bounded_by_count,
    history_is_bounded_by_age,
    a_channel_without_history_relays_and_says_so,
    a_websocket_resumes_after_a_position,
    a_position_of_the_future_or_another_epoch_is_told,
    a_position_older_than_the_history_is_told,
    the_last_few_messages_come_first,
    an_event_stream_resumes_by_its_last_event_id,
    an_event_stream_of_several_channels_resumes_each,
    an_event_stream_resumes_by_what_libraries_put_into_the_url,
    an_empty_position_begins_where_last_says_but_not_in_an_id,
    a_position_that_an_event_stream_cannot_read_is_told_as_a_gap,
    the_earliest_is_the_oldest_message_that_is_kept,
    a_client_far_behind_reads_many_pages_without_a_hole,
    a_thousand_clients_that_resume_share_the_reading,
    an_idempotency_key_makes_a_retry_appear_once,
    an_idempotency_key_makes_a_retry_appear_once_without_a_history_too,
    an_idempotency_key_that_was_used_for_another_message_is_refused,
);

fn after(position: &str, offset: u64) -> String {
    format!("{}:{offset}", position.split(':').next().unwrap())
}

async fn offsets_count_without_holes_and_history_answers_them(setup: Setup) {
    let channel = channel("history");
    let last = setup.publish_numbers(&channel, 1, 20).await;
    let history = setup.two().get_json(&format!("/channels/{channel}/messages?limit=1000")).await;
    assert_eq!(history["offset"], 20);
    for (index, message) in history["messages"].as_array().unwrap().iter().enumerate() {
        assert_eq!((&message["offset"], &message["data"]), (&(index + 1).into(), &(index + 1).into()));
    }
    let since = after(&last, 17);
    let rest = setup.two().get_json(&format!("/channels/{channel}/messages?since={since}")).await;
    assert_eq!(rest["messages"].as_array().unwrap().len(), 3);
    let limited = setup.two().get_json(&format!("/channels/{channel}/messages?limit=2")).await;
    assert_eq!(limited["messages"].as_array().unwrap().len(), 2);
    assert_eq!(limited["messages"][0]["offset"], 1);
}

async fn history_is_bounded_by_count(setup: Setup) {
    let channel = channel("short");
    let last = setup.publish_numbers(&channel, 1, 12).await;
    let history = setup.one.get_json(&format!("/channels/{channel}/messages")).await;
    let offsets: Vec<_> = history["messages"].as_array().unwrap().iter().map(|it| it["offset"].clone()).collect();
    assert_eq!(offsets, [8, 9, 10, 11, 12]);
    let (status, body) = setup.one.get(&format!("/channels/{channel}/messages?since={}", after(&last, 6))).await;
    assert!(status == 410 && body.contains("position_gone"), "{status} {body}");
    let (status, _) = setup.one.get(&format!("/channels/{channel}/messages?since={}", after(&last, 7))).await;
    assert_eq!(status, 200);
}

async fn history_is_bounded_by_age(setup: Setup) {
    let channel = channel("brief");
    let last = setup.publish_numbers(&channel, 1, 3).await;
    let path = format!("/channels/{channel}/messages");
    until("the messages have aged", || async {
        setup.one.get_json(&path).await["messages"].as_array().unwrap().is_empty()
    })
    .await;
    // Who had them all has missed nothing; who had not is told.
    let (status, _) = setup.one.get(&format!("{path}?since={last}")).await;
    assert_eq!(status, 200);
    let (status, _) = setup.one.get(&format!("{path}?since={}", after(&last, 2))).await;
    assert_eq!(status, 410);
    assert_eq!(after(&last, 4), setup.publish_numbers(&channel, 4, 4).await, "the epoch outlives the messages");
}

async fn a_channel_without_history_relays_and_says_so(setup: Setup) {
    let channel = channel("none");
    let mut socket = setup.two().ws(&format!("channel={channel}&format=json")).await;
    let welcome = socket.json().await;
    assert!(welcome["channels"][0].get("offset").is_none(), "{welcome}");
    assert_eq!(setup.one.publish(&channel, "1").await, None);
    let envelope = socket.json().await;
    assert!(envelope.get("offset").is_none() && envelope["data"] == 1, "{envelope}");
    let (status, body) = setup.one.get(&format!("/channels/{channel}/messages")).await;
    assert!(status == 404 && body.contains("no_history"), "{body}");
    if let Some(redis) = &setup.redis {
        assert_eq!(redis.cli(&["KEYS", "*none*"]), "", "a publish without history is a bare PUBLISH");
    }
}

async fn a_websocket_resumes_after_a_position(setup: Setup) {
    let channel = channel("resume");
    let last = setup.publish_numbers(&channel, 1, 10).await;
    for seen in [0, 4, 9, 10] {
        let mut socket = setup.two().ws(&format!("channel={channel}&since={}", after(&last, seen))).await;
        for expected in seen + 1..=10 {
            assert_eq!(socket.text().await, expected.to_string());
        }
        let live = format!("live {seen}");
        setup.one.publish(&channel, live.clone()).await;
        // Those that came before it in this loop are new to this client as well.
        while socket.text().await != live {}
    }
}

async fn a_position_of_the_future_or_another_epoch_is_told(setup: Setup) {
    let channel = channel("future");
    let last = setup.publish_numbers(&channel, 1, 3).await;
    for since in [after(&last, 4), "1:2".to_owned()] {
        let mut raw = setup.two().ws(&format!("channel={channel}&since={since}")).await;
        let (code, reason) = raw.closed().await;
        assert!(code == 4002 && reason.starts_with("gap: "), "{code} {reason}");
        let mut json = setup.two().ws(&format!("channel={channel}&since={since}&format=json")).await;
        json.json().await;
        let gap = json.json().await;
        assert_eq!((&gap["event"], &gap["reason"]), (&"gap".into(), &"epoch_changed".into()), "{gap}");
        assert_eq!(gap["offset"], 0);
        for expected in 1..=3 {
            assert_eq!(json.json().await["offset"], expected);
        }
        let mut events = setup.two().events(&format!("channel={channel}&since={since}")).await;
        assert_eq!(events.next().await.kind, "livebridge:gap");
        assert_eq!(events.next().await.data, "1");
    }
}

async fn a_position_older_than_the_history_is_told(setup: Setup) {
    let channel = channel("short");
    let last = setup.publish_numbers(&channel, 1, 12).await;
    let since = after(&last, 3);
    let (code, _) = setup.two().ws(&format!("channel={channel}&since={since}")).await.closed().await;
    assert_eq!(code, 4002);
    let mut json = setup.two().ws(&format!("channel={channel}&since={since}&format=json")).await;
    json.json().await;
    let gap = json.json().await;
    assert_eq!((&gap["reason"], &gap["offset"]), (&"history_trimmed".into(), &7.into()), "{gap}");
    for expected in 8..=12 {
        assert_eq!(json.json().await["offset"], expected);
    }
}

async fn the_last_few_messages_come_first(setup: Setup) {
    let channel = channel("last");
    setup.publish_numbers(&channel, 1, 10).await;
    for (asked, first) in [(3, 8), (10, 1), (500, 1), (0, 11)] {
        let mut socket = setup.two().ws(&format!("channel={channel}&last={asked}&format=json")).await;
        let welcome = socket.json().await;
        assert_eq!(
            (&welcome["channels"][0]["offset"], &welcome["channels"][0]["head"]),
            (&(first - 1).into(), &10.into())
        );
        for expected in first..=10 {
            assert_eq!(socket.json().await["offset"], expected);
        }
    }
}

async fn an_event_stream_resumes_by_its_last_event_id(setup: Setup) {
    let channel = channel("events");
    let mut events = setup.one.events(&format!("channel={channel}")).await;
    let url = setup.two().url(&format!("/events?channel={channel}"));
    let quiet = events.last_id.clone().expect("the welcome carries the position");
    setup.publish_numbers(&channel, 1, 3).await;
    for expected in ["1", "2"] {
        assert_eq!(events.next().await.data, expected);
    }
    let id = events.last_id.clone().unwrap();
    drop(events);
    let mut again = Events::connect(&url, Some(&id)).await;
    assert_eq!(again.next().await.data, "3");
    let mut from_the_welcome = Events::connect(&url, Some(&quiet)).await;
    assert_eq!(from_the_welcome.next().await.data, "1");
}

async fn an_event_stream_of_several_channels_resumes_each(setup: Setup) {
    let (one, two, plain) = (channel("one"), channel("two"), channel("none"));
    let query = format!("channel={one}&channel={two}&channel={plain}");
    let mut events = setup.one.events(&query).await;
    setup.publish_numbers(&one, 1, 2).await;
    setup.publish_numbers(&two, 1, 3).await;
    let mut seen: Vec<(String, String)> = Vec::new();
    for _ in 0..3 {
        let event = events.next().await;
        seen.push((event.kind, event.data));
    }
    let id = events.last_id.clone().unwrap();
    assert_eq!(id.split(',').count(), 3, "{id}");
    drop(events);
    let mut again = Events::connect(&setup.two().url(&format!("/events?{query}")), Some(&id)).await;
    for _ in 0..2 {
        let event = again.next().await;
        seen.push((event.kind, event.data));
    }
    for (name, count) in [(&one, 2), (&two, 3)] {
        let numbers: Vec<_> = seen.iter().filter(|(kind, _)| kind == name).map(|(_, data)| data.clone()).collect();
        assert_eq!(numbers, (1..=count).map(|number| number.to_string()).collect::<Vec<_>>());
    }
}

async fn an_event_stream_resumes_by_what_libraries_put_into_the_url(setup: Setup) {
    let channel = channel("url");
    let last = setup.publish_numbers(&channel, 1, 5).await;
    let [one, two, three] = [1, 2, 3].map(|offset| after(&last, offset));
    let begins = async |query: &str, header: Option<&str>| {
        let url = setup.two().url(&format!("/events?channel={channel}{query}"));
        Events::connect(&url, header).await.next().await.data
    };
    for name in ["lastEventId", "lastEventID", "last-event-id", "Last-Event-ID", "last_event_id", "evs_last_event_id"] {
        assert_eq!(begins(&format!("&{name}={three}"), None).await, "4", "{name}");
        assert_eq!(begins(&format!("&since={one}&{name}={three}"), None).await, "4", "{name}");
        assert_eq!(begins(&format!("&since={one}&{name}={three}"), Some(&two)).await, "3", "{name}");
        assert_eq!(begins(&format!("&since={one}&{name}="), Some("")).await, "2", "{name}");
    }
}

async fn an_empty_position_begins_where_last_says_but_not_in_an_id(setup: Setup) {
    let (resumed, new) = (channel("resumed"), channel("new"));
    let last = setup.publish_numbers(&resumed, 1, 3).await;
    setup.publish_numbers(&new, 11, 15).await;
    let (instance, id) = (setup.two(), format!("{},", after(&last, 2)));
    let query = format!("channel={resumed}&channel={new}&since={id}&last=2");
    let mut socket = instance.ws(&query).await;
    let mut events = Events::connect(&instance.url(&format!("/events?{query}")), None).await;
    let (mut on_socket, mut on_stream) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        on_socket.push(socket.text().await);
        on_stream.push(events.next().await.data);
    }
    let expected = ["14", "15", "3"].map(str::to_owned).to_vec();
    on_socket.sort();
    on_stream.sort();
    assert_eq!((on_socket, on_stream), (expected.clone(), expected));
    // An id says how it stood when the stream ended: what has no position begins now.
    let url = instance.url(&format!("/events?channel={resumed}&channel={new}&last=2"));
    let mut events = Events::connect(&url, Some(&id)).await;
    assert_eq!(events.next().await.data, "3");
    setup.publish_numbers(&new, 16, 16).await;
    assert_eq!(events.next().await.data, "16");
}

async fn a_position_that_an_event_stream_cannot_read_is_told_as_a_gap(setup: Setup) {
    let (channel, other) = (channel("other-server"), channel("other-server"));
    let last = setup.publish_numbers(&channel, 1, 2).await;
    let beside = setup.publish_numbers(&other, 1, 1).await;
    let ids =
        ["0", "abc", "1764355000", "2026-11-28T18:00:00Z", "urn:uuid:5e94c686", "1-0", "\u{fc}", "1:2:3", "5:1,6:2"];
    let url = setup.two().url(&format!("/events?channel={channel}"));
    let gap_first = async |url: &str, id: Option<&str>| {
        let mut events = Events::connect(url, id).await;
        let gap = events.next().await;
        assert_eq!(gap.kind, "livebridge:gap", "{url} {id:?}");
        assert!(gap.data.contains("epoch_changed"), "{}", gap.data);
        // Where it goes on from has an id to resume from.
        assert_eq!(events.last_id.as_deref().map(|id| id.ends_with(":0")), Some(true), "{:?}", events.last_id);
        assert_eq!([events.next().await.data, events.next().await.data], ["1", "2"]);
    };
    for id in ids {
        gap_first(&url, Some(id)).await;
        if id.is_ascii() {
            gap_first(&format!("{url}&since={id}"), None).await;
            gap_first(&format!("{url}&lastEventId={id}&since={last}"), None).await;
        }
    }
    // Of several channels each is told, or the one that is concerned.
    let url = setup.two().url(&format!("/events?channel={channel}&channel={other}"));
    for (id, gaps) in [(last.clone(), 2), (format!("{last},abc"), 1), (format!("{last},{beside},{last}"), 2)] {
        let mut events = Events::connect(&url, Some(&id)).await;
        let mut seen = Vec::new();
        for _ in 0..gaps {
            seen.push(events.next().await.kind);
            while seen.last().is_some_and(|kind| kind != "livebridge:gap") {
                seen.pop();
                seen.push(events.next().await.kind);
            }
        }
        assert_eq!(seen.len(), gaps, "{id}");
    }
}

async fn the_earliest_is_the_oldest_message_that_is_kept(setup: Setup) {
    let (short, long, none) = (channel("short"), channel("long"), channel("none"));
    setup.publish_numbers(&short, 1, 12).await;
    setup.publish_numbers(&long, 1, 2500).await;
    let mut socket = setup.two().ws(&format!("channel={short}&since=earliest&format=json")).await;
    assert_eq!(socket.json().await["channels"][0]["head"], 12);
    for expected in 8..=12 {
        assert_eq!(socket.json().await["offset"], expected);
    }
    let mut socket = setup.two().ws(&format!("channel={long}&since=earliest")).await;
    for expected in 1..=2500 {
        assert_eq!(socket.text().await, expected.to_string());
    }
    setup.publish_numbers(&long, 2501, 2501).await;
    assert_eq!(socket.text().await, "2501");
    let mut events = Events::connect(&setup.two().url(&format!("/events?channel={short}")), Some("earliest")).await;
    assert_eq!(events.next().await.data, "8");
    // For several channels, or for one of them; a channel without history has nothing but what comes.
    let url = setup.two().url(&format!("/events?channel={none}&channel={short}&since=earliest"));
    assert_eq!(Events::connect(&url, None).await.next().await.data, "8");
    let url = setup.two().url(&format!("/events?channel={none}&channel={short}&since=,earliest"));
    assert_eq!(Events::connect(&url, None).await.next().await.data, "8");
    let path = format!("/channels/{short}/messages?since=earliest");
    assert_eq!(setup.two().get_json(&path).await["messages"][0]["offset"], 8);
}

async fn a_client_far_behind_reads_many_pages_without_a_hole(setup: Setup) {
    let channel = channel("long");
    let last = setup.publish_numbers(&channel, 1, 3500).await;
    let mut socket = setup.two().ws(&format!("channel={channel}&since={}", after(&last, 0))).await;
    for expected in 1..=3500 {
        assert_eq!(socket.text().await, expected.to_string());
    }
    setup.publish_numbers(&channel, 3501, 3501).await;
    assert_eq!(socket.text().await, "3501");
}

async fn a_thousand_clients_that_resume_share_the_reading(setup: Setup) {
    let channel = channel("stampede");
    let last = setup.publish_numbers(&channel, 1, 50).await;
    setup.redis.iter().for_each(Redis::reset_counts);
    let joins = (0..1000).map(|index| {
        let (channel, since) = (&channel, after(&last, index % 50));
        let instance = setup.two();
        async move {
            let mut socket = instance.ws(&format!("channel={channel}&since={since}")).await;
            for expected in index % 50 + 1..=50 {
                assert_eq!(socket.text().await, expected.to_string());
            }
        }
    });
    futures::future::join_all(joins).await;
    if let Some(redis) = &setup.redis {
        let (plans, reads) = (redis.calls("fcall"), redis.calls("lrange"));
        assert!(reads > 0 && plans.max(reads) < 20, "{plans} plans and {reads} LRANGE for a thousand clients");
    }
}

async fn an_idempotency_key_makes_a_retry_appear_once(setup: Setup) {
    let channel = channel("once");
    let mut socket = setup.two().ws(&format!("channel={channel}")).await;
    let path = format!("/publish?channel={channel}");
    let headers = [("idempotency-key", "order-17")];
    let (_, first) = setup.one.post_with(&path, &headers, "paid").await;
    let (_, again) = setup.two().post_with(&path, &headers, "paid").await;
    assert_eq!(first, again);
    let batch =
        format!("{{\"channel\":\"{channel}\",\"data\":1,\"id\":\"x\"}}\n{{\"channel\":\"{channel}\",\"data\":2}}\n");
    let headers = [("idempotency-key", "batch-1"), ("content-type", "application/x-ndjson")];
    let (_, first): (_, Value) = setup.one.post_with("/publish", &headers, batch.clone()).await;
    let (_, again) = setup.two().post_with("/publish", &headers, batch).await;
    assert_eq!(first, again);
    setup.one.publish(&channel, "end").await;
    for expected in ["paid", "1", "2", "end"] {
        assert_eq!(socket.text().await, expected);
    }
}

async fn an_idempotency_key_makes_a_retry_appear_once_without_a_history_too(setup: Setup) {
    let channel = channel("none");
    let mut socket = setup.two().ws(&format!("channel={channel}")).await;
    let path = format!("/publish?channel={channel}");
    let headers = [("idempotency-key", "order-20")];
    let (status, first) = setup.one.post_with(&path, &headers, "paid").await;
    assert_eq!((status, &first), (StatusCode::OK, &json!({ "messages": [{ "channel": channel }] })));
    assert_eq!(setup.two().post_with(&path, &headers, "paid").await, (StatusCode::OK, first.clone()));
    // Nothing is kept with which another message could be compared.
    assert_eq!(setup.two().post_with(&path, &headers, "not paid").await, (StatusCode::OK, first));
    let lines = [r#""data":1"#, r#""data":2,"id":"x""#, r#""data":3"#, r#""data":2,"id":"x""#, r#""data":4"#];
    let batch: String = lines.iter().map(|line| format!("{{\"channel\":\"{channel}\",{line}}}\n")).collect();
    let kind = [("content-type", "application/x-ndjson")];
    let (status, answer): (_, Value) = setup.one.post_with("/publish", &kind, batch).await;
    assert_eq!((status, answer["messages"].as_array().map(Vec::len)), (StatusCode::OK, Some(5)));
    for expected in ["paid", "1", "2", "3", "4"] {
        assert_eq!(socket.text().await, expected);
    }
}

async fn an_idempotency_key_that_was_used_for_another_message_is_refused(setup: Setup) {
    let (plain, sheet) = (channel("once"), channel("sheet"));
    let headers = [("idempotency-key", "order-18")];
    let post = async |instance: &Instance, query: &str, body: &'static str| {
        instance.post_with(&format!("/publish?{query}"), &headers, body).await
    };
    let mut socket = setup.two().ws(&format!("channel={plain}")).await;
    let (_, first) = post(&setup.one, &format!("channel={plain}"), "paid").await;
    let (_, keyed) = post(&setup.one, &format!("channel={sheet}&key=a"), "1").await;
    for (query, body) in [
        (format!("channel={plain}"), "not paid"),
        (format!("channel={sheet}&key=a"), "2"),
        (format!("channel={sheet}&key=b"), "1"),
        (format!("channel={sheet}"), "1"),
        (format!("channel={sheet}&key=a&remove=true"), "1"),
    ] {
        let (status, answer) = post(setup.two(), &query, body).await;
        assert_eq!((status.as_u16(), &answer["error"]["code"]), (422, &"idempotency_key_reused".into()), "{query}");
    }
    assert_eq!(post(setup.two(), &format!("channel={plain}"), "paid").await, (StatusCode::OK, first));
    assert_eq!(post(setup.two(), &format!("channel={sheet}&key=a"), "1").await, (StatusCode::OK, keyed));
    // In a batch it is the line that is refused, and those before it are published.
    let lines = ["paid", "more", "less"].map(|data| {
        let id = if data == "more" { "order-19" } else { "order-18" };
        format!("{{\"channel\":\"{plain}\",\"data\":\"{data}\",\"id\":\"{id}\"}}\n")
    });
    let kind = [("content-type", "application/x-ndjson")];
    let (status, answer) = setup.one.post_with("/publish", &kind, lines.concat()).await;
    assert_eq!((status.as_u16(), &answer["error"]["line"]), (422, &3.into()), "{answer}");
    setup.one.publish(&plain, "end").await;
    for expected in ["paid", "more", "end"] {
        assert_eq!(socket.text().await, expected);
    }
}

#[tokio::test]
async fn any_redis_client_gets_a_position_with_one_call() {
    let redis = Redis::start().await;
    let instance = Options::redis(&redis).rules(RULES).start().await;
    let channel = channel("fcall");
    let mut socket = instance.ws(&format!("channel={channel}&format=json")).await;
    socket.json().await;
    let answer = redis.cli(&["FCALL", "livebridge_publish", "1", &channel, "hello", "id", "7"]);
    let again = redis.cli(&["FCALL", "livebridge_publish", "1", &channel, "hello", "id", "7"]);
    assert_eq!(answer, again);
    let envelope = socket.json().await;
    assert_eq!((&envelope["data"], &envelope["offset"]), (&"hello".into(), &1.into()));
    assert!(answer.starts_with(envelope["epoch"].as_str().unwrap()), "{answer}");
    assert!(
        redis.cli(&["FCALL", "livebridge_publish", "1", &channel, "x", "colour", "red"]).contains("unknown option")
    );
}

#[tokio::test]
async fn a_plain_redis_publish_is_relayed_and_other_redis_subscribers_see_what_is_posted() {
    use std::io::{BufRead, BufReader};
    let redis = Redis::start().await;
    let instance = Options::redis(&redis).start().await;
    let channel = channel("plain");
    let mut socket = instance.ws(&format!("channel={channel}&format=json")).await;
    socket.json().await;
    redis.cli(&["PUBLISH", &channel, "from redis-cli"]);
    let envelope = socket.json().await;
    assert!(envelope["data"] == "from redis-cli" && envelope.get("offset").is_none(), "{envelope}");
    let mut other = std::process::Command::new("redis-cli")
        .args(["-p", &redis.port.to_string(), "SUBSCRIBE", &channel])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    redis.until_listeners(&channel, 2).await;
    instance.publish(&channel, "verbatim, \"quoted\"").await;
    let mut lines = BufReader::new(other.stdout.take().unwrap()).lines().map_while(Result::ok);
    assert!(lines.any(|line| line == "verbatim, \"quoted\""));
    other.kill().unwrap();
    other.wait().unwrap();
}

#[tokio::test]
async fn the_database_of_the_url_holds_the_history() {
    let redis = Redis::start().await;
    let mut options = Options::redis(&redis);
    options.redis_url = Some(format!("{}3", redis.url()));
    let instance = options.start().await;
    let channel = channel("third");
    let mut socket = instance.ws(&format!("channel={channel}")).await;
    instance.publish(&channel, "kept there").await.expect("a position");
    assert_eq!(socket.text().await, "kept there");
    let length = |database: &str| redis.cli(&["-n", database, "LLEN", &format!("livebridge:{{{channel}}}:history")]);
    assert_eq!([length("3"), length("0")], ["2", "0"], "a header and a payload");
    assert_eq!(instance.ws(&format!("channel={channel}&last=1")).await.text().await, "kept there");
}

#[tokio::test]
async fn where_functions_are_forbidden_a_script_does_the_same() {
    let redis = Redis::start().await;
    redis.cli(&["ACL", "SETUSER", "app", "on", ">secret", "~*", "&*", "+@all", "-function", "-fcall"]);
    let mut options = Options::redis(&redis);
    options.redis_url = Some(format!("redis://app:secret@127.0.0.1:{}/", redis.port));
    let instance = options.start().await;
    let channel = channel("script");
    let mut socket = instance.ws(&format!("channel={channel}")).await;
    let position = instance.publish(&channel, "hello").await.expect("a position");
    assert!(position.ends_with(":1"));
    assert_eq!(socket.text().await, "hello");
    redis.cli(&["SCRIPT", "FLUSH"]);
    instance.publish(&channel, "again").await.expect("the script is loaded again");
    assert_eq!(socket.text().await, "again");
    assert_eq!(redis.cli(&["FUNCTION", "LIST"]), "");
    tokio::time::sleep(Duration::ZERO).await;
}
