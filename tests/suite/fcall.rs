//! Producers that call the functions in Redis themselves: what `FCALL` takes is what `POST` takes, and many messages
//! go in one call.

use livebridge::channel::{ChannelName, RESERVED_PREFIXES};
use livebridge::http::query::check_key;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use serde_json::json;

use crate::support::channel;
use crate::support::instance::{Instance, Options};
use crate::support::redis::Redis;
use crate::support::resp::{Answer, Client};

const RULES: &str = "
[[channel]]
match = 'sheet:*'
keyed = { keys = 3, bytes = 4096 }
[[channel]]
match = 'none:*'
history = false
";

/// A Redis with the functions in it, the instance that put them there, and a connection.
async fn furnished() -> (Redis, Instance, Client) {
    let redis = Redis::start().await;
    let instance = Options::redis(&redis).rules(RULES).start().await;
    let client = redis.client();
    (redis, instance, client)
}

/// What a publish on a channel of that name is refused with; `None` if it is taken.
fn refusal(client: &mut Client, name: &[u8]) -> Option<String> {
    let publish = client.call("livebridge_publish", name, &[b"x"]);
    let many = client.call("livebridge_publish_many", name, &[b"payload", b"x"]);
    let plan = client.call("livebridge_plan", name, &[b"0", b"0", b"tail"]);
    match (publish, many, plan) {
        (Answer::Error(one), Answer::Error(two), Answer::Error(three)) => {
            assert!(one == two && two == three, "{one} {two} {three}");
            Some(one)
        }
        (Answer::Array(_), Answer::Array(_), Answer::Array(_)) => None,
        other => panic!("{name:?} is taken by some only: {other:?}"),
    }
}

#[tokio::test]
async fn a_name_that_is_no_channel_is_refused_and_says_why() {
    let (redis, _instance, mut client) = furnished().await;
    let mut names: Vec<Vec<u8>> = vec![Vec::new(), vec![b'x'; 256], "é".repeat(128).into_bytes()];
    names.extend(RESERVED_PREFIXES.map(|prefix| format!("{prefix}a").into_bytes()));
    names.extend(
        ["a b", "a\nb", "a*", "a?", "a[b", "a]", "a{b}", "a\\", "a\"", "<a>", "a\0b", "a\u{7f}"].map(Into::into),
    );
    names.extend(["a\u{85}", "a\u{9f}", "a\u{a0}", "a\u{2028}", "a\u{3000}", "a\u{fffd}", "\u{2009}"].map(Into::into));
    names.extend(
        [&b"\xff"[..], b"a\x80", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", b"\xe2\x82"].map(Into::into),
    );
    for name in names {
        let taken_by_rust = std::str::from_utf8(&name).is_ok_and(|name| name.parse::<ChannelName>().is_ok());
        assert!(!taken_by_rust, "{name:?}");
        let why = refusal(&mut client, &name).unwrap_or_else(|| panic!("{name:?} is taken"));
        assert!(why.starts_with("LIVEBRIDGE_INVALID ") && why.contains("channel name"), "{why}");
    }
    for name in ["live", "sheet:q3", "users/42/inbox", "наши-правки", "a|b,c;d=e&f%g", "__keys", "🐎", &"x".repeat(255)]
    {
        assert_eq!(refusal(&mut client, name.as_bytes()), None, "{name}");
    }
    assert_eq!(redis.cli(&["--scan", "--pattern", "livebridge:{livebridge*"]), "");
}

#[tokio::test]
async fn a_key_or_an_id_that_post_would_refuse_is_refused() {
    let (_redis, _instance, mut client) = furnished().await;
    let sheet = channel("sheet");
    let long = [b'k'; 256];
    for text in
        [&b""[..], &long, b"a\nb", b"\0", b"a\x7f", "a\u{85}".as_bytes(), "\u{fffd}".as_bytes(), b"\xff", b"a\xc3"]
    {
        for option in ["key", "id"] {
            let one = client.call("livebridge_publish", sheet.as_bytes(), &[b"x", option.as_bytes(), text]);
            assert!(one.error().starts_with("LIVEBRIDGE_INVALID a"), "{option} {text:?}: {one:?}");
            if text.is_empty() {
                // An empty value of a column says that the message has none.
                continue;
            }
            let columns = format!("payload,{option}");
            let many = client.call("livebridge_publish_many", sheet.as_bytes(), &[columns.as_bytes(), b"x", text]);
            assert_eq!(many, one);
        }
    }
    let history = client.call("livebridge_plan", sheet.as_bytes(), &[b"10", b"1000", b"oldest"]);
    assert_eq!(history.array()[1].text(), "0", "nothing of it was stored");
}

#[tokio::test]
async fn a_call_that_makes_no_sense_is_refused_as_a_whole() {
    let (_redis, _instance, mut client) = furnished().await;
    let (plain, sheet, none) = (channel("plain"), channel("sheet"), channel("none"));
    let many = |count: usize| {
        let mut words: Vec<&[u8]> = vec![b"payload"];
        words.resize(count + 1, b"x");
        words
    };
    let (most, too_many) = (many(1000), many(1001));
    let calls: [(&str, &str, &[&[u8]], &str); 16] = [
        ("publish", &plain, &[], "_INVALID usage: "),
        ("publish", &plain, &[b"x", b"colour", b"red"], "_INVALID unknown option colour"),
        ("publish", &plain, &[b"x", b"key"], "_INVALID unknown option key"),
        ("publish", &sheet, &[b"x", b"remove"], "_INVALID remove needs the key"),
        ("publish", &plain, &[b"x", b"key", b"a"], "_NOT_KEYED "),
        ("publish", &none, &[b"x", b"key", b"a"], "_NOT_KEYED "),
        ("publish_many", &plain, &[], "_INVALID usage: "),
        ("publish_many", &plain, &[b""], "_INVALID the first column must be payload"),
        ("publish_many", &plain, &[b"key,payload", b"a", b"x"], "_INVALID the first column must be payload"),
        ("publish_many", &plain, &[b"payload,colour", b"x", b"red"], "_INVALID unknown column colour"),
        ("publish_many", &sheet, &[b"payload,key", b"x", b"a", b"y"], "_INVALID the last message lacks a column"),
        ("publish_many", &sheet, &[b"payload,key,remove", b"x", b"a", b"yes"], "_INVALID remove must be 1 or empty"),
        ("publish_many", &sheet, &[b"payload,remove", b"x", b"1"], "_INVALID remove needs the key"),
        ("publish_many", &plain, &too_many, "_INVALID one call takes at most 1000 messages"),
        ("publish_many", &none, &too_many, "_INVALID one call takes at most 1000 messages"),
        ("publish_many", "a b", &[b"payload", b"x"], "_INVALID a channel name"),
    ];
    for (function, name, arguments, why) in calls {
        let answer = client.call(&format!("livebridge_{function}"), name.as_bytes(), arguments);
        assert!(answer.error().starts_with(&format!("LIVEBRIDGE{why}")), "{function} {why}: {answer:?}");
    }
    assert_eq!(client.call("livebridge_publish_many", plain.as_bytes(), &[b"payload"]), Answer::Array(Vec::new()));
    assert_eq!(client.call("livebridge_publish_many", plain.as_bytes(), &most).array().len(), 1001);
    assert_eq!(client.call("livebridge_publish_many", none.as_bytes(), &most), Answer::Array(Vec::new()));
}

#[tokio::test]
async fn an_id_makes_a_call_safe_on_a_channel_without_a_history_too() {
    let (redis, _instance, mut client) = furnished().await;
    let none = channel("none");
    let mut listener = redis.client();
    drop(listener.ask(&["SUBSCRIBE", &none]));
    let calls: [(&str, &[&[u8]]); 4] = [
        ("livebridge_publish", &[b"1", b"id", b"a"]),
        ("livebridge_publish", &[b"1", b"id", b"a"]),
        ("livebridge_publish_many", &[b"payload,id", b"1", b"a", b"2", b"b", b"3", b"", b"2", b"b"]),
        ("livebridge_publish", &[b"end"]),
    ];
    for (function, arguments) in calls {
        assert_eq!(client.call(function, none.as_bytes(), arguments), Answer::Array(Vec::new()), "no position");
    }
    for expected in ["1", "2", "3", "end"] {
        assert_eq!(listener.message().1, expected.as_bytes());
    }
    let ttl: u64 = redis.cli(&["TTL", &format!("livebridge:{{{none}}}:id:a")]).parse().expect("a number");
    assert!((590..=600).contains(&ttl), "{ttl}");
}

/// Texts near the edge of what is a name, a key or UTF-8 at all.
fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let characters = vec![
        ' ',
        '*',
        '{',
        '"',
        '\n',
        '\u{1}',
        '\u{7f}',
        '\u{85}',
        '\u{a0}',
        '\u{1680}',
        '\u{180e}',
        '\u{2000}',
        '\u{200a}',
        '\u{200b}',
        '\u{2028}',
        '\u{202f}',
        '\u{205f}',
        '\u{2060}',
        '\u{3000}',
        '\u{feff}',
        '\u{fffd}',
        '\u{fffc}',
        '\u{d7ff}',
        '\u{e000}',
        '\u{10ffff}',
    ];
    let edge = prop::sample::select(characters).prop_map(|character| character.to_string().into_bytes());
    let piece = prop_oneof![
        12 => "[a-z:]{1,3}".prop_map(String::into_bytes),
        3 => any::<char>().prop_map(|character| character.to_string().into_bytes()),
        2 => edge,
        1 => prop::collection::vec(any::<u8>(), 1..4),
        1 => prop::sample::select(RESERVED_PREFIXES.to_vec()).prop_map(|prefix| prefix.as_bytes().to_vec()),
        1 => (80_usize..130).prop_map(|count| "é".repeat(count).into_bytes()),
    ];
    prop::collection::vec(piece, 0..5).prop_map(|pieces| pieces.concat())
}

#[test]
fn random_names_and_keys_are_taken_by_the_functions_where_post_takes_them() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (_redis, _instance, client) = runtime.block_on(furnished());
    let client = std::cell::RefCell::new(client);
    let config = Config { cases: 3000, failure_persistence: None, ..Config::default() };
    let outcome = TestRunner::new(config).run(&bytes(), |bytes| {
        let mut client = client.borrow_mut();
        let text = std::str::from_utf8(&bytes).ok();
        let is_name = text.is_some_and(|text| text.parse::<ChannelName>().is_ok());
        prop_assert_eq!(refusal(&mut client, &bytes).is_none(), is_name, "as a name");
        let is_key = text.is_some_and(|text| check_key(text).is_ok());
        let answer = client.call("livebridge_publish", b"live", &[b"x", b"id", &bytes]);
        // The same id with the same payload again is no error.
        prop_assert_eq!(!matches!(answer, Answer::Error(_)), is_key, "as an id");
        Ok(())
    });
    assert!(outcome.is_ok(), "{}", outcome.unwrap_err());
}

#[tokio::test]
async fn many_messages_in_one_call_get_a_position_each_and_appear_verbatim() {
    let (redis, instance, mut client) = furnished().await;
    let channel = channel("many");
    let mut socket = instance.ws(&format!("channel={channel}&format=json")).await;
    socket.json().await;
    let mut plain = redis.client();
    plain.ask(&["SUBSCRIBE", &channel]);
    let payloads = [&b"one"[..], b"", b"two\r\nlines", b"\xff\x00", b"payload,key"];
    let words: Vec<&[u8]> = std::iter::once(&b"payload"[..]).chain(payloads).collect();
    let answer = client.call("livebridge_publish_many", channel.as_bytes(), &words);
    let (epoch, offsets) = answer.array().split_first().unwrap();
    assert_eq!(offsets, (1..=5).map(Answer::Number).collect::<Vec<_>>());
    for payload in payloads {
        assert_eq!(plain.message(), (channel.clone(), payload.to_vec()));
    }
    for offset in 1..=5 {
        let envelope = socket.json().await;
        assert_eq!((&envelope["offset"], &envelope["epoch"]), (&offset.into(), &epoch.text().into()));
    }
    let history = instance.get_json(&format!("/channels/{channel}/messages")).await;
    assert_eq!((&history["messages"][2]["data"], &history["offset"]), (&"two\r\nlines".into(), &5.into()));
}

#[tokio::test]
async fn columns_say_which_key_and_id_each_message_has() {
    let (_redis, instance, mut client) = furnished().await;
    let sheet = channel("sheet");
    let mut socket = instance.ws(&format!("channel={sheet}&format=json")).await;
    socket.json().await;
    let call = |client: &mut Client| {
        let rows: [[&[u8]; 4]; 4] = [
            [b"1", b"A 1", b"", b""],
            [b"2", b"B2", b"", b"second"],
            [b"", b"A 1", b"1", b""],
            [b"\"no key\"", b"", b"", b""],
        ];
        let mut words: Vec<&[u8]> = vec![b"payload,key,remove,id"];
        words.extend(rows.concat());
        client.call("livebridge_publish_many", sheet.as_bytes(), &words)
    };
    let first = call(&mut client);
    assert_eq!(first.array()[1..], [1, 2, 3, 4].map(Answer::Number));
    for (key, removed, data) in
        [("A 1", false, json!(1)), ("B2", false, json!(2)), ("A 1", true, json!(null)), ("", false, json!("no key"))]
    {
        let envelope = socket.json().await;
        assert_eq!(envelope["key"].as_str().unwrap_or_default(), key, "{envelope}");
        assert_eq!(envelope["removed"] == true, removed, "{envelope}");
        assert!(removed || envelope["data"] == data, "{envelope}");
    }
    // The order of the columns after the payload is the caller's.
    let words: [&[u8]; 4] = [b"payload,id,key", b"2", b"second", b"B2"];
    let again = client.call("livebridge_publish_many", sheet.as_bytes(), &words);
    assert_eq!(again.array()[1], Answer::Number(2), "the id is known");
    let second = call(&mut client);
    assert_eq!(second.array()[1..], [5, 2, 6, 7].map(Answer::Number));
}

#[tokio::test]
async fn a_message_that_is_refused_leaves_the_others_of_its_call_alone() {
    let (_redis, instance, mut client) = furnished().await;
    let sheet = channel("sheet");
    let mut words: Vec<&[u8]> = vec![b"payload,key,id"];
    let large = [b'x'; 5000];
    words.extend([&b"1"[..], b"a", b"", &large, b"b", b"", b"3", b"b", b"", b"4", b"c", b"one", b"5", b"d", b""]);
    words.extend([&b"6"[..], b"a", b"", b"7", b"a", b"one", b"8", b"", b""]);
    let answer = client.call("livebridge_publish_many", sheet.as_bytes(), &words);
    let of = |index: usize| &answer.array()[index];
    assert_eq!([1, 3, 4, 6, 8].map(|index| of(index).clone()), [1, 2, 3, 4, 5].map(Answer::Number));
    assert_eq!(of(2).error(), "LIVEBRIDGE_FULL 4096 bytes");
    assert_eq!(of(5).error(), "LIVEBRIDGE_FULL 3 keys");
    assert!(of(7).error().starts_with("LIVEBRIDGE_ID_REUSED "), "{answer:?}");
    let history = instance.get_json(&format!("/channels/{sheet}/messages")).await;
    let data: Vec<_> = history["messages"].as_array().unwrap().iter().map(|it| it["data"].clone()).collect();
    assert_eq!(data, [1, 3, 4, 6, 8]);
}

#[tokio::test]
async fn a_key_where_there_are_none_is_refused_without_the_others_of_a_batch() {
    let (_redis, instance, mut client) = furnished().await;
    let (plain, none) = (channel("plain"), channel("none"));
    let words: [&[u8]; 7] = [b"payload,key", b"1", b"", b"2", b"a", b"3", b""];
    let answer = client.call("livebridge_publish_many", plain.as_bytes(), &words);
    assert_eq!([&answer.array()[1], &answer.array()[3]], [&Answer::Number(1), &Answer::Number(2)], "{answer:?}");
    assert!(answer.array()[2].error().starts_with("LIVEBRIDGE_NOT_KEYED "), "{answer:?}");
    let answer = client.call("livebridge_publish_many", none.as_bytes(), &words);
    assert!(answer.error().starts_with("LIVEBRIDGE_NOT_KEYED "), "{answer:?}");
    // Messages of one channel share a call, also those that different clients publish at the same time.
    for name in [plain, none] {
        let mut socket = instance.ws(&format!("channel={name}")).await;
        let lines: String = [(4, ""), (5, ",\"key\":\"a\""), (6, "")]
            .map(|(data, key)| format!("{{\"channel\":\"{name}\",\"data\":{data}{key}}}\n"))
            .concat();
        let (status, answer) = instance.post_with("/publish", &[("content-type", "application/x-ndjson")], lines).await;
        assert_eq!(status, 400, "{answer}");
        assert_eq!((&answer["error"]["code"], &answer["error"]["line"]), (&"channel_not_keyed".into(), &2.into()));
        for expected in ["4", "6"] {
            assert_eq!(socket.text().await, expected);
        }
    }
}
