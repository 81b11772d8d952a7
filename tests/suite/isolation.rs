//! What one client asks of Redis leaves the others alone.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::support::instance::{Instance, Options};
use crate::support::proxy::Proxy;
use crate::support::redis::Redis;
use crate::support::{channel, until};

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
    assert_eq!(instance.refused("reads").await, unread.len() as f64);
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
