//! Keyed channels: the latest value of each key, then everything after. Runs against both brokers.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::support::brokers::{Setup, promises};
use crate::support::channel;
use crate::support::instance::{Instance, Options, position};
use crate::support::ws::Socket;

const RULES: &str = "
[[channel]]
match = 'sheet:*'
history = { messages = 10, age = '5m' }
keyed = true
[[channel]]
match = 'busy:*'
history = { messages = 200, age = '5m' }
keyed = true
[[channel]]
match = 'tiny:*'
keyed = { keys = 3, bytes = 1024 }
";

impl Setup {
    async fn set(&self, channel: &str, key: &str, value: &str) -> String {
        let (status, answer) = self.one.post(&format!("/publish?channel={channel}&key={key}"), value.to_owned()).await;
        assert_eq!(status, 200, "{answer}");
        position(&answer["messages"][0]).unwrap()
    }

    async fn remove(&self, channel: &str, key: &str) {
        let (status, answer) = self.one.post(&format!("/publish?channel={channel}&key={key}&remove=true"), "").await;
        assert_eq!(status, 200, "{answer}");
    }
}

promises!(
    Options::default().rules(RULES).flag("--log-messages 64");
    a_new_subscriber_first_gets_the_current_value_of_every_key,
    who_resumes_from_beyond_the_history_gets_only_what_changed,
    what_changed_is_read_by_pages_of_the_size_asked_for,
    who_resumes_from_another_epoch_is_told_and_gets_every_key,
    a_slow_subscriber_is_brought_up_to_date_by_key,
    a_keyed_channel_is_bounded_with_a_clear_error,
    a_key_on_a_channel_that_is_not_keyed_is_refused,
    every_subscriber_ends_with_the_same_sheet,
    a_message_without_a_key_reaches_who_has_just_joined,
);

async fn what_changed_is_read_by_pages_of_the_size_asked_for(setup: Setup) {
    let channel = channel("sheet");
    let mut since = setup.set(&channel, "first", "0").await;
    for number in 1..=30 {
        setup.set(&channel, &format!("k{}", number % 20), &number.to_string()).await;
    }
    setup.remove(&channel, "k5").await;
    // The history has the last ten, so these pages are of the values.
    let mut sheet = BTreeMap::from([("first".to_owned(), 0.into()), ("k5".to_owned(), 5.into())]);
    loop {
        let page = setup.two().get_json(&format!("/channels/{channel}/messages?since={since}&limit=3")).await;
        let messages = page["messages"].as_array().unwrap();
        assert!(messages.len() <= 3, "{page}");
        let Some(last) = messages.last() else { break };
        messages.iter().for_each(|message| apply(&mut sheet, message));
        since = format!("{}:{}", page["epoch"].as_str().unwrap(), last["offset"]);
    }
    let all: BTreeMap<_, Value> = (11..=30).map(|number| (format!("k{}", number % 20), number.into())).collect();
    sheet.remove("first");
    assert_eq!(sheet, all.into_iter().filter(|(key, _)| key != "k5").collect());
}

/// Applies an envelope to a sheet.
fn apply(sheet: &mut BTreeMap<String, Value>, envelope: &Value) {
    let key = envelope["key"].as_str().expect("a key").to_owned();
    if envelope["removed"] == true {
        sheet.remove(&key);
    } else {
        sheet.insert(key, envelope["data"].clone());
    }
}

async fn joined(instance: &Instance, query: &str) -> (Socket, Value) {
    let mut socket = instance.ws(&format!("{query}&format=json")).await;
    let welcome = socket.json().await["channels"][0].clone();
    (socket, welcome)
}

async fn a_new_subscriber_first_gets_the_current_value_of_every_key(setup: Setup) {
    let channel = channel("sheet");
    for number in 0..30 {
        setup.set(&channel, &format!("A{}", number % 3), &number.to_string()).await;
    }
    setup.set(&channel, "gone", "1").await;
    setup.remove(&channel, "gone").await;
    let (mut socket, welcome) = joined(setup.two(), &format!("channel={channel}")).await;
    assert_eq!((&welcome["offset"], &welcome["head"], &welcome["keyed"]), (&0.into(), &32.into(), &true.into()));
    for (offset, key, value) in [(28, "A0", 27), (29, "A1", 28), (30, "A2", 29)] {
        let envelope = socket.json().await;
        assert_eq!(
            (&envelope["offset"], &envelope["key"], &envelope["data"]),
            (&offset.into(), &key.into(), &value.into())
        );
    }
    setup.set(&channel, "A1", "99").await;
    let envelope = socket.json().await;
    assert_eq!((&envelope["offset"], &envelope["data"]), (&33.into(), &99.into()));
}

async fn who_resumes_from_beyond_the_history_gets_only_what_changed(setup: Setup) {
    let channel = channel("sheet");
    setup.set(&channel, "unchanged", "1").await;
    setup.set(&channel, "removed", "1").await;
    let seen = setup.set(&channel, "changed", "1").await;
    setup.remove(&channel, "removed").await;
    for number in 0..20 {
        setup.set(&channel, "changed", &number.to_string()).await;
    }
    let (mut socket, _) = joined(setup.two(), &format!("channel={channel}&since={seen}")).await;
    let removal = socket.json().await;
    assert_eq!((&removal["key"], &removal["removed"]), (&"removed".into(), &true.into()), "{removal}");
    let changed = socket.json().await;
    assert_eq!((&changed["key"], &changed["data"]), (&"changed".into(), &19.into()));
    setup.set(&channel, "live", "1").await;
    assert_eq!(socket.json().await["key"], "live");
}

async fn who_resumes_from_another_epoch_is_told_and_gets_every_key(setup: Setup) {
    let channel = channel("sheet");
    setup.set(&channel, "a", "1").await;
    setup.set(&channel, "b", "2").await;
    let (mut socket, _) = joined(setup.two(), &format!("channel={channel}&since=17:1")).await;
    let gap = socket.json().await;
    assert_eq!((&gap["event"], &gap["reason"]), (&"gap".into(), &"epoch_changed".into()));
    assert_eq!(socket.json().await["key"], "a");
    assert_eq!(socket.json().await["key"], "b");
}

async fn a_slow_subscriber_is_brought_up_to_date_by_key(setup: Setup) {
    let channel = channel("sheet");
    let (mut slow, _) = joined(setup.two(), &format!("channel={channel}")).await;
    // It does not read meanwhile: far more than the kernel takes, and than the log of 64 messages holds.
    let large = "x".repeat(100_000);
    for number in 0..200 {
        setup.set(&channel, &format!("A{}", number % 5), &format!("\"{number}{large}\"")).await;
    }
    setup.set(&channel, "last", "1").await;
    let (mut sheet, mut received, mut last_offset) = (BTreeMap::new(), 0, 0);
    while !sheet.contains_key("last") {
        let envelope = slow.json().await;
        let offset = envelope["offset"].as_u64().expect("no gap, no close");
        assert!(offset > last_offset);
        last_offset = offset;
        received += 1;
        apply(&mut sheet, &envelope);
    }
    assert!(received < 201, "it was slow, yet received every single message: the test tests nothing");
    for key in 0..5 {
        let value = sheet[&format!("A{key}")].as_str().unwrap();
        assert!(value.starts_with(&format!("{}x", 195 + key)), "A{key} is stale");
    }
}

async fn a_keyed_channel_is_bounded_with_a_clear_error(setup: Setup) {
    let channel = channel("tiny");
    for key in ["a", "b", "c"] {
        setup.set(&channel, key, "1").await;
    }
    let full = |key: &'static str, value: String| {
        let (one, path) = (&setup.one, format!("/publish?channel={channel}&key={key}"));
        async move { one.post(&path, value).await }
    };
    for (key, value) in [("d", "1".to_owned()), ("a", "x".repeat(1100))] {
        let (status, answer) = full(key, value).await;
        assert_eq!((status.as_u16(), &answer["error"]["code"]), (507, &"keyed_channel_full".into()), "{answer}");
    }
    setup.set(&channel, "a", "changing is possible").await;
    setup.remove(&channel, "b").await;
    setup.set(&channel, "d", "1").await;
}

async fn a_key_on_a_channel_that_is_not_keyed_is_refused(setup: Setup) {
    let (status, answer) = setup.one.post("/publish?channel=plain&key=a", "1").await;
    assert_eq!((status.as_u16(), &answer["error"]["code"]), (400, &"channel_not_keyed".into()));
}

async fn every_subscriber_ends_with_the_same_sheet(setup: Setup) {
    const WRITERS: usize = 1000;
    let channel = channel("busy");
    let write = async {
        let writes = (0..WRITERS).map(|writer| {
            let (setup, channel) = (&setup, &channel);
            async move {
                for round in 0..3 {
                    let key = format!("K{}", (writer * 7 + round * 13) % 500);
                    let instance = if writer % 2 == 0 { &setup.one } else { setup.two() };
                    let removal = if writer % 50 == 49 { "&remove=true" } else { "" };
                    let path = format!("/publish?channel={channel}&key={key}{removal}");
                    assert_eq!(instance.post(&path, format!("[{writer},{round}]")).await.0, 200);
                }
            }
        });
        // As many at once as a browser farm might send, not as many as descriptors allow.
        use futures::StreamExt;
        futures::stream::iter(writes).buffer_unordered(32).collect::<()>().await;
        setup.set(&channel, "end", "1").await;
    };
    let subscribers = (0..20).map(|index| {
        let (setup, channel) = (&setup, &channel);
        async move {
            // They join while the writers write: each waits for a number of messages that differs.
            let (mut probe, _) = joined(setup.two(), &format!("channel={channel}")).await;
            for _ in 0..index * 100 {
                probe.json().await;
            }
            let (mut socket, _) = joined(&setup.one, &format!("channel={channel}")).await;
            let mut sheet = BTreeMap::new();
            while !sheet.contains_key("end") {
                apply(&mut sheet, &socket.json().await);
            }
            sheet
        }
    });
    let ((), sheets) = tokio::join!(write, futures::future::join_all(subscribers));
    assert!(sheets[0].len() > 400);
    assert!(sheets.iter().all(|sheet| *sheet == sheets[0]));
}

async fn a_message_without_a_key_reaches_who_has_just_joined(setup: Setup) {
    for round in 0..30 {
        let channel = channel("sheet");
        setup.set(&channel, "a", "1").await;
        // Between the welcome and the snapshot.
        let (mut socket, _) = joined(setup.two(), &format!("channel={channel}")).await;
        setup.one.publish(&channel, "\"no key\"").await;
        assert_eq!(socket.json().await["key"], "a", "round {round}");
        assert_eq!(socket.json().await["data"], "no key", "round {round}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn values_that_vanish_while_clients_are_connected_are_told() {
    let setup = Setup::redis(Options::default().rules(RULES)).await;
    let channel = channel("sheet");
    let (mut socket, _) = joined(&setup.one, &format!("channel={channel}")).await;
    setup.set(&channel, "a", "1").await;
    assert_eq!(socket.json().await["key"], "a");
    setup.redis.as_ref().unwrap().cli(&["FLUSHALL"]);
    setup.set(&channel, "b", "2").await;
    let gap = socket.json().await;
    assert_eq!((&gap["event"], &gap["reason"]), (&"gap".into(), &"epoch_changed".into()), "{gap}");
    assert_eq!(socket.json().await["key"], "b");
}
