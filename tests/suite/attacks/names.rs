//! Channels, keys and positions that are more than names, or too many of them.

use super::{ROGUE, assert_untouched, beside};
use crate::support::instance::{Instance, Options};
use crate::support::raw;
use crate::support::redis::Redis;

/// As they stand in a query or a path.
const FORBIDDEN: &[&str] = &[
    // Reserved, written in any way.
    "livebridge:note:a",
    "%6Civebridge:note:a",
    "livebridge%3Anote",
    // What Redis says on channels of its own.
    "__keyspace@0__:a",
    "__keyevent@0__:expired",
    "__sentinel__:hello",
    "__redis__:invalidate",
    // Redis patterns, hash tags and protocol.
    "*",
    "sheet:*",
    "h%3Fllo",
    "h%5Bae%5Dllo",
    "%7Ba%7D:b",
    "a%7Bb%7D",
    "%5C*",
    "a%0D%0APUBLISH%20b%20c",
    "%22",
    // Bytes that end strings or lines, elsewhere or here.
    "a%00b",
    "a%0Ab",
    "%1B%5B2J",
    "a%E2%80%A8b",
    "a%C2%85b",
    "a%20b",
    "%3Cscript%3E",
    // No UTF-8: overlong, a surrogate, half a character.
    "%C0%AE%C0%AE",
    "%E0%80%AF",
    "%ED%A0%80",
    "a%FF",
    "%E2%82",
];

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_is_more_than_a_name_is_refused_wherever_it_stands() {
    let redis = Redis::start().await;
    let instance = Options::redis(&redis).start().await;
    beside(&instance, async {
        for name in FORBIDDEN {
            for path in [
                format!("/ws?channel={name}"),
                format!("/events?channel={name}"),
                format!("/events?channel=a&channel={name}"),
                format!("/channels/{name}/messages"),
            ] {
                let answer = raw::get(ROGUE, &instance, &path, "").await;
                assert!(answer.starts_with("HTTP/1.1 400 "), "{path}: {answer}");
                assert!(answer.contains("channel_invalid") || answer.contains("parameter_invalid"), "{path}: {answer}");
            }
            let (status, answer) = instance.post(&format!("/publish?channel=a&channel={name}"), "x").await;
            assert_eq!((status.as_u16(), &answer["error"]["code"]), (400, &"channel_invalid".into()), "{name}");
        }
        for name in ["livebridge:a", "\\u006civebridge:a", "a\\u0000b", "a*", "{a}", "__keyspace@0__:a", "\\ufffd"] {
            let body = format!("{{\"data\":1}}\n{{\"channel\":\"{name}\",\"data\":1}}");
            let ndjson = [("content-type", "application/x-ndjson")];
            let (status, answer) = instance.post_with("/publish?channel=a", &ndjson, body).await;
            assert_eq!(
                (status.as_u16(), &answer["error"]["code"]),
                (400, &"channel_invalid".into()),
                "{name}: {answer}"
            );
            assert_eq!(answer["error"]["line"], 2, "{name}: {answer}");
        }
    })
    .await;
    assert_untouched(&instance, "a").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_differ_stay_different_channels() {
    let redis = Redis::start().await;
    let instance = Options::redis(&redis).start().await;
    // A name and what a careless reader would make of it.
    let pairs = [
        ("a%2Fb", "a%252Fb"),
        ("..%2Fa", "a"),
        ("a", "A"),
        ("caf%C3%A9", "cafe%CC%81"),
        ("a%2Bb", "a-b"),
        ("a;b", "a"),
        ("a%26b", "a"),
        ("LIVEBRIDGE:a", "livebridge"),
    ];
    beside(&instance, async {
        for (one, other) in pairs {
            let mut socket = instance.ws(&format!("channel={one}")).await;
            instance.publish(other, "other").await;
            instance.publish(one, "one").await;
            assert_eq!(socket.text().await, "one", "{one} and {other}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_or_too_long_names_keys_and_positions_are_refused() {
    let instance = Instance::embedded().await;
    let long = "x".repeat(256);
    let channels = (0..101).map(|number| format!("channel={number}&")).collect::<String>();
    let positions = vec!["1:1"; 101].join(",");
    let commas = ",".repeat(10_000);
    let keys = "k".repeat(256);
    let requests = [
        ("GET", format!("/ws?{channels}")),
        ("GET", format!("/events?channel={long}")),
        ("GET", format!("/channels/{long}/messages")),
        ("GET", format!("/ws?since={positions}")),
        ("GET", format!("/ws?since={commas}")),
        ("GET", "/ws?since=18446744073709551616:1".into()),
        ("GET", "/ws?since=1:18446744073709551616".into()),
        ("GET", "/ws?since=%EF%BC%91:1".into()),
        ("GET", "/ws?since=-1:1".into()),
        ("GET", "/events?last=1001".into()),
        ("GET", "/events?last=1e3".into()),
        ("GET", "/channels/a/messages?limit=18446744073709551616".into()),
        ("POST", format!("/publish?channel=a&{channels}")),
        ("POST", format!("/publish?key={keys}")),
        ("POST", "/publish?key=a%00b".into()),
        ("POST", "/publish?key=a%FF".into()),
        ("POST", "/publish?key=".into()),
    ];
    beside(&instance, async {
        for (method, path) in &requests {
            let request =
                format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
            let answer = raw::answer(ROGUE, &instance, request.as_bytes()).await;
            let path = &path[..path.len().min(60)];
            assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("_invalid"), "{path}: {answer}");
        }
        let long = "x".repeat((1 << 20) + 1);
        for (line, status, code) in [
            (format!("{{\"data\":\"{long}\"}}"), 413, "body_too_large"),
            (format!("{{\"data\":1,\"key\":\"{keys}\"}}"), 400, "parameter_invalid"),
            (format!("{{\"data\":1,\"id\":\"{keys}\"}}"), 400, "parameter_invalid"),
            (format!("{{\"data\":{}1{}}}", "[".repeat(300_000), "]".repeat(299_999)), 400, "batch_invalid"),
            (format!("{{\"data\":1,\"{long}\":1}}"), 400, "batch_invalid"),
        ] {
            let ndjson = [("content-type", "application/x-ndjson")];
            let (got, answer) = instance.post_with("/publish", &ndjson, format!("\n{line}")).await;
            assert_eq!((got.as_u16(), &answer["error"]["code"]), (status, &code.into()), "{}", &line[..20]);
            assert_eq!(answer["error"]["line"], 2);
            assert!(answer.to_string().len() < 1000, "what was wrong is not repeated at length");
        }
    })
    .await;
    assert_untouched(&instance, "live").await;
}
