//! What the operator sees: every metric that the docs name is served and moves when it should, and the dashboard and the alerts
//! ask for nothing else.

use std::collections::BTreeSet;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::certificates::Certificates;
use crate::support::instance::{Instance, Options};
use crate::support::raw::{HANDSHAKE, connect_narrow};
use crate::support::redis::Redis;
use crate::support::{channel, until};

const DOCS: &str = include_str!("../../docs/metrics.md");
const RUNBOOK: &str = include_str!("../../docs/operations.md");
const DASHBOARD: &str = include_str!("../../deploy/grafana-dashboard.json");
const ALERTS: &str = include_str!("../../deploy/alerts.yml");

/// The names that `/metrics` describes, once every family has something to show.
async fn served() -> BTreeSet<String> {
    let redis = Redis::with_tls(Certificates::new(), &[]).await;
    let instance = redis.tls_options(Options::default()).flag("--max-channels 1").start().await;
    drop(instance.ws("").await);
    assert_eq!(instance.get("/ws?channel=a&channel=b").await.0, 400);
    until("the close is counted", || async { instance.metric("livebridge_closes_total").await == 1.0 }).await;
    let (_, text) = instance.get("/metrics").await;
    let described = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    described.map(|line| line.split(' ').next().unwrap().to_owned()).collect()
}

/// The names of metrics in a text, without what a histogram adds to its own.
fn named(text: &str) -> BTreeSet<String> {
    let words = text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
    let metrics = words.filter(|word| word.starts_with("livebridge_") || word.starts_with("process_"));
    metrics.map(|word| word.trim_end_matches("_bucket").to_owned()).collect()
}

#[tokio::test]
async fn the_table_of_metrics_is_that_of_the_program() {
    let rows: String =
        DOCS.lines().filter(|line| line.starts_with("| `")).map(|row| row.split('|').nth(1).unwrap()).collect();
    let (documented, served) = (named(&rows), served().await);
    assert_eq!(documented.difference(&served).collect::<Vec<_>>(), Vec::<&String>::new(), "documented, not served");
    assert_eq!(served.difference(&documented).collect::<Vec<_>>(), Vec::<&String>::new(), "served, not documented");
}

#[tokio::test]
async fn the_dashboard_and_the_alerts_ask_for_what_is_served() {
    let served = served().await;
    let dashboard: serde_json::Value = serde_json::from_str(DASHBOARD).unwrap();
    let panels = dashboard["panels"].as_array().unwrap().iter();
    let targets = panels.flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
    let queries: String = targets.map(|target| target["expr"].as_str().unwrap().to_owned() + "\n").collect();
    let alerts: String = ALERTS.lines().filter(|line| line.trim_start().starts_with("expr:")).collect();
    for (asked, least) in [(named(&queries), 20), (named(&alerts), 10)] {
        assert!(asked.len() >= least, "{asked:?}");
        assert_eq!(asked.difference(&served).collect::<Vec<_>>(), Vec::<&String>::new());
    }
}

#[test]
fn every_alert_has_a_severity_a_summary_and_its_place_in_the_runbook() {
    let rules: Vec<&str> = ALERTS.split("- alert: ").skip(1).collect();
    assert!(!rules.is_empty());
    for rule in rules {
        let name = rule.lines().next().unwrap();
        assert!(
            rule.contains("labels: {severity: critical}") || rule.contains("labels: {severity: warning}"),
            "{name}"
        );
        assert!(rule.contains("summary: "), "{name}");
        let link = format!("runbook_url: docs/operations.md#{}", name.to_lowercase());
        assert!(rule.lines().any(|line| line.trim() == link), "{name}: {link}");
        assert!(RUNBOOK.contains(&format!("\n### {name}\n")), "{name} is not in docs/operations.md");
    }
}

#[tokio::test]
async fn both_text_formats_are_whole_and_say_which_they_are() {
    let instance = Instance::embedded().await;
    let ask = async |accept: &str| {
        let request = reqwest::Client::new().get(instance.url("/metrics")).header("accept", accept);
        let response = request.send().await.unwrap();
        let kind = response.headers()["content-type"].to_str().unwrap().to_owned();
        (kind, response.text().await.unwrap())
    };
    let (kind, older) = ask("*/*").await;
    assert!(kind.starts_with("text/plain; version=0.0.4"), "{kind}");
    let (kind, newer) = ask("application/openmetrics-text;version=1.0.0,text/plain;q=0.5").await;
    assert!(kind.starts_with("application/openmetrics-text; version=1.0.0"), "{kind}");
    assert!(newer.ends_with("# EOF\n") && !older.contains("# EOF"));
    assert!(newer.contains("\n# TYPE livebridge_messages_in counter\n"), "{newer}");
    assert!(older.contains("\n# TYPE livebridge_messages_in_total counter\n"), "{older}");
    let samples = |text: &str| text.lines().filter(|line| !line.starts_with('#')).count();
    assert_eq!(samples(&older), samples(&newer));
}

/// Waits until a metric has a value.
async fn until_metric(instance: &Instance, name: &str, value: f64) {
    until(name, || async { instance.metric(name).await == value }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn subscribers_and_what_passes_through_are_counted() {
    let instance = Options::default().flag("--threads 1").start().await;
    let (one, two) = (channel("one"), channel("two"));
    let mut socket = instance.ws(&format!("channel={one}&channel={two}")).await;
    let mut events = instance.events(&format!("channel={one}")).await;
    until_metric(&instance, "livebridge_subscriptions", 3.0).await;
    for (transport, count) in [("websocket", 1), ("sse", 1)] {
        let line = format!("livebridge_connections{{transport=\"{transport}\"}} {count}\n");
        assert!(instance.get("/metrics").await.1.contains(&line), "{line}");
    }
    assert_eq!(instance.metric("livebridge_channels").await, 2.0);
    until_metric(&instance, "livebridge_sockets", 3.0).await;
    instance.publish(&one, "0123456789").await;
    socket.text().await;
    events.next().await;
    until_metric(&instance, "livebridge_messages_out_total", 2.0).await;
    until_metric(&instance, "livebridge_delivery_seconds_count", 1.0).await;
    until("bytes are counted", || async { instance.metric("livebridge_messages_out_bytes_total").await > 200.0 }).await;
    for (name, value) in [
        ("livebridge_messages_in_total", 1.0),
        ("livebridge_messages_in_bytes_total", 10.0),
        ("livebridge_published_total", 1.0),
        ("livebridge_publish_seconds_count", 1.0),
        ("livebridge_build_info", 1.0),
    ] {
        assert_eq!(instance.metric(name).await, value, "{name}");
    }
    assert!(instance.metric("livebridge_log_bytes").await >= 10.0);
    assert!(instance.metric("livebridge_writes_total").await >= 2.0);
    assert!(instance.metric("process_resident_memory_bytes").await > 1e6);
    assert!(instance.metric("process_start_time_seconds").await > 1.7e9);
    socket.send("by a frame").await;
    until_metric(&instance, "livebridge_closes_total", 1.0).await;
    drop(events);
    until_metric(&instance, "livebridge_connections", 0.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frame_is_a_publish_that_takes_its_time() {
    let instance = Instance::embedded().await;
    let mut socket = instance.ws("").await;
    socket.send("by a frame").await;
    socket.text().await;
    until_metric(&instance, "livebridge_publish_seconds_count", 1.0).await;
    assert_eq!(instance.metric("livebridge_published_total").await, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_read_is_seen_to_be_behind_until_it_does() {
    let instance = Options::default().flag("--log-bytes 67108864").start().await;
    let channel = channel("behind");
    let mut slow = connect_narrow(&instance).await;
    slow.write_all(format!("GET /ws?channel={channel} HTTP/1.1\r\n{HANDSHAKE}").as_bytes()).await.unwrap();
    let mut head = [0; 12];
    slow.read_exact(&mut head).await.unwrap();
    let payload = "x".repeat(500_000);
    for _ in 0..20 {
        instance.publish(&channel, payload.clone()).await;
    }
    until_metric(&instance, "livebridge_subscribers_behind", 1.0).await;
    assert!(instance.metric("livebridge_backlog_messages").await >= 1.0);
    let mut taken = 0;
    let mut buffer = vec![0; 1 << 20];
    while taken < 20 * payload.len() {
        taken += slow.read(&mut buffer).await.unwrap();
    }
    until_metric(&instance, "livebridge_subscribers_behind", 0.0).await;
    assert_eq!(instance.metric("livebridge_backlog_messages").await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_redis_does_to_an_instance_is_counted() {
    let redis = Redis::start().await;
    let instance = Options::redis(&redis).start().await;
    let channel = channel("counted");
    let mut socket = instance.ws(&format!("channel={channel}")).await;
    until("canaries are measured", || async {
        instance.metric("livebridge_redis_round_trip_seconds_count").await >= 1.0
    })
    .await;
    assert_eq!(instance.metric("livebridge_broker_reconnects_total").await, 0.0, "the first time is no reconnect");
    // A note of a position far ahead: what is between must be missing.
    instance.publish(&channel, "1").await;
    assert_eq!(socket.text().await, "1");
    let meta = format!("livebridge:{{{channel}}}:meta");
    let epoch = redis.cli(&["HGET", &meta, "e"]);
    let script =
        "redis.call('PUBLISH', 'livebridge:note:' .. KEYS[1], ARGV[1]); redis.call('PUBLISH', KEYS[1], 'ahead')";
    redis.cli(&["EVAL", script, "1", &channel, &format!("{epoch} 9 1 0")]);
    until_metric(&instance, "livebridge_gaps_found_total", 1.0).await;
    redis.cli(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    until_metric(&instance, "livebridge_broker_reconnects_total", 1.0).await;
    assert_eq!(instance.metric("livebridge_broker_disconnects_total").await, 1.0);
    assert_eq!(instance.metric("livebridge_broker_up").await, 1.0);
}
