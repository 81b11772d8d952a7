//! What one client asks of Redis leaves the others alone: reads of histories, and channels that Redis
//! refuses.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::support::instance::{Instance, Options};
use crate::support::proxy::Proxy;
use crate::support::redis::Redis;
use crate::support::{channel, soon, until};

const PAGE: &str = "[[channel]]\nmatch = '*'\nhistory = { messages = 100, age = '5m' }\n";

/// Fills a channel's history with a page of 4 MB.
async fn fill(instance: &Instance, channel: &str) {
    for _ in 0..5 {
        instance.publish(channel, "x".repeat(900_000)).await;
    }
}

/// Publishes to a channel and sees each message arrive, until `others` are done. Publishing answers,
/// everything arrives in order, and the instance stays ready.
async fn is_well_until(instance: &Instance, others: &AtomicBool) {
    let channel = channel("well");
    let mut socket = instance.ws(&format!("channel={channel}")).await;
    let mut number = 0;
    while !others.load(Ordering::Relaxed) || number < 20 {
        let (status, answer) = instance.post(&format!("/publish?channel={channel}"), number.to_string()).await;
        assert_eq!(status, 200, "{answer}");
        assert_eq!(socket.text().await, number.to_string());
        assert_eq!(instance.get("/readyz").await.0, 200);
        number += 1;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(instance.metric("livebridge_broker_disconnects_total").await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_who_read_large_pages_at_once_leave_the_others_alone() {
    let redis = Redis::start().await;
    let instance = Arc::new(Options::redis(&redis).rules(PAGE).start().await);
    let large = channel("large");
    fill(&instance, &large).await;
    let done = Arc::new(AtomicBool::new(false));
    let (reading, over) = (instance.clone(), done.clone());
    let readers = tokio::spawn(async move {
        let path = format!("/channels/{large}/messages?limit=1000");
        let answers = futures::future::join_all((0..150).map(|_| reading.get(&path))).await;
        over.store(true, Ordering::Relaxed);
        answers
    });
    is_well_until(&instance, &done).await;
    let answers = readers.await.unwrap();
    let unread: Vec<_> = answers.iter().filter(|(status, _)| *status != 200).collect();
    assert!(unread.iter().all(|(status, text)| *status == 503 && text.contains("broker_unavailable")), "{unread:?}");
    assert!(unread.len() < answers.len(), "some are read");
    // On a slow machine, a read may also be late.
    let refused = unread.iter().filter(|(_, text)| text.contains("too many histories")).count();
    assert_eq!(instance.refused("reads").await, refused as f64);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_history_that_does_not_come_fails_alone() {
    let redis = Redis::start().await;
    let proxy = Proxy::start(redis.port).await;
    let url = format!("redis://127.0.0.1:{}/", proxy.port);
    let instance = Arc::new(Options { redis_url: Some(url), ..Options::default() }.start().await);
    let read = channel("read");
    instance.publish(&read, "x").await;
    proxy.stall_reads(true);
    let done = Arc::new(AtomicBool::new(false));
    let (reading, over) = (instance.clone(), done.clone());
    let path = format!("/channels/{read}/messages");
    let late = path.clone();
    let reader = tokio::spawn(async move {
        let asked = Instant::now();
        // Longer than it takes to find a connection deaf.
        for _ in 0..3 {
            let (status, text) = reading.get(&late).await;
            assert!(status == 503 && text.contains("broker_unavailable"), "{status} {text}");
        }
        over.store(true, Ordering::Relaxed);
        asked.elapsed()
    });
    is_well_until(&instance, &done).await;
    assert!(reader.await.unwrap() > Duration::from_secs(4), "they did wait: else this tests nothing");
    proxy.stall_reads(false);
    until("read again", || async { instance.get(&path).await.0 == 200 }).await;
}

/// A Redis whose default user may only use some channels and keys.
async fn restricted() -> Redis {
    let redis = Redis::start().await;
    let user =
        ["ACL", "SETUSER", "narrow", "on", ">secret", "+@all", "~*", "resetchannels", "&sheet:*", "&livebridge:*"];
    assert_eq!(redis.cli(&user), "OK");
    redis
}

fn narrow(redis: &Redis) -> Options {
    Options { redis_url: Some(format!("redis://narrow:secret@127.0.0.1:{}/", redis.port)), ..Options::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_that_redis_refuses_is_refused_and_the_others_stay() {
    let redis = restricted().await;
    let instance = Arc::new(narrow(&redis).start().await);
    let done = Arc::new(AtomicBool::new(false));
    let (asking, over) = (instance.clone(), done.clone());
    let credentials = tokio::spawn(async move {
        for number in 0..20 {
            // One command may name these and others.
            let path = |index: usize| format!("/events?channel=other:{number}:{index}");
            let refused = futures::future::join_all((0..5).map(|index| {
                let path = path(index);
                let asking = asking.clone();
                async move { asking.get(&path).await }
            }))
            .await;
            for (status, text) in refused {
                assert!(status == 403 && text.contains("channel_refused") && !text.contains("NOPERM"), "{text}");
            }
            // One of several is enough: there is no half a subscription.
            let (status, _) = asking.get(&format!("/events?channel=sheet:{number}&channel=other")).await;
            assert_eq!(status, 403);
        }
        over.store(true, Ordering::Relaxed);
    });
    let mut socket = instance.ws("channel=sheet:well").await;
    let mut number = 0;
    while !done.load(Ordering::Relaxed) {
        let (status, answer) = instance.post("/publish?channel=sheet:well", number.to_string()).await;
        assert_eq!(status, 200, "{answer}");
        assert_eq!(socket.text().await, number.to_string());
        let fresh = instance.ws(&format!("channel=sheet:fresh:{number}")).await;
        assert_eq!(instance.get("/readyz").await.0, 200);
        drop(fresh);
        number += 1;
    }
    credentials.await.unwrap();
    assert_eq!(instance.metric("livebridge_broker_disconnects_total").await, 0.0);
    assert_eq!(instance.refused("channel").await, 120.0);
    // Known to be refused: Redis is not asked again for a while.
    redis.reset_counts();
    assert_eq!(instance.get("/events?channel=other").await.0, 403);
    assert_eq!(redis.calls("subscribe"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_whose_keys_redis_refuses_is_refused_at_once() {
    let redis = Redis::start().await;
    // Redis refuses the call of the function, or what the function does.
    for keys in ["~sheet:* ~livebridge:*", "~* resetkeys ~sheet:* ~other* ~livebridge:{sheet:* ~livebridge:life"] {
        let mut user = vec!["ACL", "SETUSER", "narrow", "reset", "on", ">secret", "+@all", "&*"];
        user.extend(keys.split(' '));
        assert_eq!(redis.cli(&user), "OK");
        let instance = narrow(&redis).start().await;
        let mut well = instance.ws("channel=sheet:well").await;
        let asked = Instant::now();
        for number in 0..10 {
            for path in [format!("/events?channel=other:{number}"), "/channels/other/messages".into()] {
                let (status, text) = instance.get(&path).await;
                assert!(status == 403 && text.contains("channel_refused") && !text.contains("NOPERM"), "{text}");
            }
        }
        assert!(asked.elapsed() < Duration::from_secs(4), "not one is waited for");
        assert_eq!(instance.refused("channel").await, 10.0);
        instance.publish("sheet:well", "x").await;
        assert_eq!(well.text().await, "x");
        until("forgotten", || async { instance.metric("livebridge_channels").await == 1.0 }).await;
        assert_eq!(redis.listeners("other:1"), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_listens_to_a_channel_that_is_refused_later_is_told() {
    let redis = restricted().await;
    assert_eq!(redis.cli(&["ACL", "SETUSER", "narrow", "&other"]), "OK");
    let instance = narrow(&redis).start().await;
    let mut other = instance.ws("channel=other").await;
    let mut both = instance.events("channel=sheet:1&channel=other").await;
    let mut well = instance.ws("channel=sheet:1").await;
    // Redis cuts those off who listen to what they may not any more; they come back, and subscribe again.
    redis.cli(&["ACL", "SETUSER", "narrow", "resetchannels", "&sheet:*", "&livebridge:*"]);
    let (code, reason) = other.closed().await;
    assert!(code == 1013 && reason.starts_with("channel_refused: "), "{code} {reason}");
    assert!(!reason.contains("NOPERM"), "{reason}");
    soon("the end of the stream", async { while both.try_next().await.is_some() {} }).await;
    until("published", || async { instance.post("/publish?channel=sheet:1", "x").await.0 == 200 }).await;
    assert_eq!(well.text().await, "x");
    assert_eq!(instance.get("/events?channel=other").await.0, 403);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_redis_says_of_a_refused_login_is_in_the_log_only() {
    let redis = restricted().await;
    let url = format!("redis://narrow:wrong@127.0.0.1:{}/", redis.port);
    let instance = Options { redis_url: Some(url), ..Options::default() }.start_unready();
    until("refused", || async { instance.log().contains("WRONGPASS") }).await;
    let (status, text) = instance.get("/readyz").await;
    assert!(status == 503 && !text.contains("invalid username-password"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_while_redis_is_away_leaves_nothing() {
    let mut redis = Redis::start().await;
    let instance = Options::redis(&redis).start().await;
    redis.stop();
    until("not ready", || async { instance.get("/readyz").await.0 == 503 }).await;
    for number in 0..50 {
        let url = format!("ws://{}/ws?channel=fresh:{number}", instance.address);
        let refused = tokio_tungstenite::connect_async(url).await;
        assert!(matches!(&refused, Err(tungstenite::Error::Http(answer)) if answer.status() == 503), "{refused:?}");
    }
    assert_eq!(instance.metric("livebridge_channels").await, 0.0);
    redis.start_again().await;
    instance.until_ready(true).await;
    assert_eq!(redis.listeners("fresh:1"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_of_a_redis_cluster_is_not_ready_and_says_why() {
    let redis = Redis::start_with(&["--save", "", "--cluster-enabled", "yes"]).await;
    assert_eq!(redis.cli(&["CLUSTER", "ADDSLOTSRANGE", "0", "8191"]), "OK");
    let instance = Options::redis(&redis).start_unready();
    until("the reason", || async { instance.get("/readyz").await.1.contains("node of a Redis Cluster") }).await;
    assert_eq!(instance.get("/readyz").await.0, 503);
    let (status, answer) = instance.post("/publish?channel=a", "x").await;
    assert_eq!((status.as_u16(), &answer["error"]["code"]), (503, &"broker_unavailable".into()));
}
