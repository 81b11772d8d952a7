//! What is logged, and what is not: each request by its id, nobody's secrets, nothing that a client could forge.

use serde_json::Value;
use tokio::io::AsyncWriteExt;

use crate::support::instance::{Instance, Options};
use crate::support::raw;
use crate::support::redis::Redis;
use crate::support::{channel, until};

/// The lines of a JSON log so far.
fn lines(instance: &Instance) -> Vec<Value> {
    let log = instance.log();
    log.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

/// Waits for a line of which something is true.
async fn line(instance: &Instance, what: &str, is_it: impl Fn(&Value) -> bool) -> Value {
    until(what, || async { lines(instance).iter().any(&is_it) }).await;
    lines(instance).into_iter().find(&is_it).unwrap()
}

/// The `X-Request-Id` of a whole answer.
fn request_id(answer: &str) -> String {
    let ids: Vec<_> = answer.lines().filter_map(|line| line.strip_prefix("x-request-id: ")).collect();
    let [id] = ids[..] else { panic!("one id: {answer}") };
    id.to_owned()
}

#[tokio::test]
async fn every_answer_carries_the_requests_own_id_if_it_is_sane_and_else_a_new_one() {
    let instance = Instance::embedded().await;
    for path in ["/healthz", "/nothing", "/ws", "/events?last=x", "/metrics", "/"] {
        let answer = raw::get("127.0.0.1", &instance, path, "X-Request-Id: Trace-7.of_9\r\n").await;
        assert_eq!(request_id(&answer), "Trace-7.of_9", "{path}");
    }
    let mut made = std::collections::HashSet::new();
    for other in ["", "X-Request-Id: two words\r\n", "X-Request-Id: \u{9b}31mred\r\n", "X-Request-Id: \"quoted\"\r\n"] {
        let id = request_id(&raw::get("127.0.0.1", &instance, "/healthz", other).await);
        assert!(id.len() == 16 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{other:?}: {id}");
        assert!(made.insert(id), "no two are the same");
    }
    let handshake = format!("GET /ws HTTP/1.1\r\nX-Request-Id: mine\r\n{}", raw::HANDSHAKE);
    let mut stream = raw::connect_from("127.0.0.1", &instance).await;
    // A close frame of a client, so that the answer has an end.
    let close = [0x88, 0x80, 0, 0, 0, 0];
    stream.write_all(&[handshake.as_bytes(), &close].concat()).await.unwrap();
    assert_eq!(request_id(&raw::rest(&mut stream).await), "mine");
}

#[tokio::test]
async fn a_request_and_the_subscription_that_follows_are_found_by_the_id() {
    let instance = Options::default().env("LIVEBRIDGE_LOG", "debug").start().await;
    raw::get("127.0.0.1", &instance, "/nothing?token=x", "X-Request-Id: one\r\n").await;
    let answered = line(&instance, "the answer", |line| line["request"] == "one").await;
    assert_eq!(
        (&answered["reason"], &answered["status"], &answered["path"], &answered["client"], &answered["level"]),
        (&"not_found".into(), &404.into(), &"/nothing".into(), &"127.0.0.1".into(), &"DEBUG".into())
    );
    let channel = channel("logged");
    let socket =
        raw::websocket("127.0.0.1", &instance, &format!("channel={channel}"), &[("x-request-id", "two")]).await;
    let two = |line: &Value, message: &str| line["message"] == message && line["span"]["request"] == "two";
    let subscribed = line(&instance, "the subscription", |line| two(line, "subscribed")).await;
    assert_eq!(subscribed["channel"], channel.as_str());
    drop(socket);
    let gone = line(&instance, "its end", |line| two(line, "a subscriber has gone")).await;
    assert_eq!(gone["reason"], "gone");
}

#[tokio::test]
async fn log_lines_are_json_where_nobody_reads_along_and_text_where_it_is_asked_for() {
    let instance = Options::default().flag("--instance-name lb-9").start().await;
    let started = line(&instance, "the start", |line| line["message"] == "serving").await;
    assert_eq!((&started["instance"], &started["level"]), (&"lb-9".into(), &"INFO".into()));
    let instance = Options::default().flag("--log-format text").start().await;
    until("the start", || async { instance.log().contains("serving instance=") }).await;
    assert!(!instance.log().contains(['{', '\u{1b}']), "{}", instance.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn no_payload_and_no_secret_is_in_the_log_whatever_its_level() {
    const PAYLOAD: &str = "PAYLOAD-4711";
    const SECRET: &str = "SECRET-4711";
    let redis = Redis::start_with(&["--save", ""]).await;
    redis.cli(&["CONFIG", "SET", "requirepass", SECRET]);
    let url = format!("redis://:{SECRET}@127.0.0.1:{}/", redis.port);
    let options = Options { redis_url: Some(url), ..Options::default() }.env("LIVEBRIDGE_LOG", "trace");
    let instance = options.start().await;
    let channel = channel("secret");
    let secrets = [("authorization", &*format!("Bearer {SECRET}")), ("cookie", SECRET), ("idempotency-key", SECRET)];
    let path = format!("/publish?channel={channel}&token={SECRET}");
    let mut socket = instance.ws(&format!("channel={channel}&access_token={SECRET}")).await;
    let mut events = instance.events(&format!("channel={channel}&token={SECRET}")).await;
    assert_eq!(instance.post_with(&path, &secrets, PAYLOAD).await.0, 200);
    assert_eq!(socket.text().await, PAYLOAD);
    assert_eq!(events.next().await.data, PAYLOAD);
    socket.send(PAYLOAD).await;
    assert_eq!(socket.text().await, PAYLOAD);
    let batch = [("content-type", "application/x-ndjson"), secrets[0]];
    let line_of = format!("{{\"channel\":\"{channel}\",\"data\":\"x\",\"{PAYLOAD}\":1}}");
    assert_eq!(instance.post_with(&path, &batch, line_of).await.0, 400);
    redis.cli(&["-a", SECRET, "CONFIG", "SET", "maxmemory", "1"]);
    assert_eq!(instance.post_with(&path, &secrets[..2], PAYLOAD).await.0, 503);
    redis.cli(&["-a", SECRET, "CONFIG", "SET", "maxmemory", "0"]);
    redis.cli(&["-a", SECRET, "CLIENT", "KILL", "TYPE", "pubsub"]);
    until("the outage is over", || async { instance.metric("livebridge_broker_reconnects_total").await == 1.0 }).await;
    raw::get("127.0.0.1", &instance, "/the-last-request", "").await;
    until("the log is there", || async { instance.log().contains("/the-last-request") }).await;
    let log = instance.log();
    assert!(log.contains("TRACE") && log.contains("broker_refused"), "the levels are on: else this tests nothing");
    assert!(!log.contains(PAYLOAD), "a payload is in the log");
    assert!(!log.contains(SECRET), "a secret is in the log");
}

#[tokio::test]
async fn what_a_client_sends_forges_neither_a_line_nor_a_header() {
    for format in ["json", "text"] {
        let instance =
            Options::default().flag(&format!("--log-format {format}")).env("LIVEBRIDGE_LOG", "trace").start().await;
        for path in [
            "/FORGED%0d%0aFORGED:%201",
            "/events?channel=a%0d%0aFORGED:%201",
            "/channels/a%0d%0aFORGED%1b[31m/messages",
            "/\u{9b}31mFORGED",
            "/events?channel=%1b]0;FORGED%07",
        ] {
            let lines = "X-Request-Id: a\u{9b}31mFORGED\r\nX-Forwarded-For: \u{9b}31mFORGED\r\n";
            let answer = raw::get("127.0.0.1", &instance, path, lines).await;
            let (head, _) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{path}: {answer:?}"));
            assert!(!head.contains("FORGED"), "{path}: {head}");
        }
        raw::get("127.0.0.1", &instance, "/the-last-request", "").await;
        until("the log is there", || async { instance.log().contains("/the-last-request") }).await;
        let log = instance.log();
        assert!(log.contains("channel_invalid") && log.contains("/FORGED%0d%0a"), "they were heard: {log}");
        assert!(!log.lines().any(|line| line.starts_with("FORGED")), "{log}");
        assert!(!log.contains(['\u{1b}', '\r', '\u{7}', '\u{9b}']), "{log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_befalls_many_requests_is_one_line() {
    let redis = Redis::start().await;
    let instance = Options::redis(&redis).start().await;
    redis.cli(&["CONFIG", "SET", "maxmemory", "1"]);
    for _ in 0..20 {
        assert_eq!(instance.post("/publish", "x").await.0, 503);
    }
    let failed = line(&instance, "the failure", |line| line["message"] == "a request failed").await;
    assert_eq!((&failed["reason"], &failed["level"]), (&"broker_refused".into(), &"WARN".into()));
    assert!(failed["error"].as_str().unwrap().contains("OOM"), "{failed}");
    let count = lines(&instance).iter().filter(|line| line["message"] == "a request failed").count();
    assert_eq!(count, 1, "{}", instance.log());
}
