//! What a delivery may cost in system calls, counted and not timed, so that it can't be noise. Allocations are counted in
//! `tests/counts.rs`.

use crate::support::instance::{Instance, Options};
use crate::support::redis::Redis;
use crate::support::{channel, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_reaches_each_subscriber_in_few_writes() {
    let redis = Redis::start().await;
    let instance = Options::redis(&redis).start().await;
    let channel = channel("burst");
    let mut sockets = Vec::new();
    for _ in 0..20 {
        sockets.push(instance.ws(&format!("channel={channel}")).await);
    }
    // A thousand messages arrive while the instance stands still: it finds them all at once.
    instance.signal("STOP");
    let batch: String = (0..1000).map(|number| format!("PUBLISH {channel} {number}\r\n")).collect();
    let mut pipe = std::process::Command::new("redis-cli")
        .args(["-p", &redis.port.to_string(), "--pipe"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut pipe.stdin.take().unwrap(), batch.as_bytes()).unwrap();
    assert!(pipe.wait().unwrap().success());
    instance.signal("CONT");
    for socket in &mut sockets {
        for number in 0..1000 {
            assert_eq!(socket.text().await, number.to_string());
        }
    }
    until("all is counted", || async { instance.metric("livebridge_messages_out_total").await == 20_000.0 }).await;
    let writes = instance.metric("livebridge_writes_total").await;
    assert!(writes <= 20_000.0 / 5.0, "{writes} writes for 20,000 deliveries: nothing was batched");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_published_at_about_the_same_time_shares_a_round_trip() {
    const MESSAGES: usize = 100;
    let redis = Redis::start().await;
    let instance = Options::redis(&redis).start().await;
    let before = instance.metric("livebridge_redis_round_trip_seconds_count").await;
    // While the first is under way the others collect themselves.
    redis.signal("STOP");
    let posts = (0..MESSAGES).map(|number| instance.post("/publish?channel=together", number.to_string()));
    let posts = futures::future::join_all(posts);
    let go_on = async {
        until("all have come", || async { instance.metric("livebridge_sockets").await > MESSAGES as f64 }).await;
        redis.signal("CONT");
    };
    let (answers, ()) = futures::future::join(posts, go_on).await;
    let mut offsets: Vec<_> = answers.iter().map(|(_, answer)| answer["messages"][0]["offset"].as_u64()).collect();
    offsets.sort_unstable();
    assert_eq!(offsets, (1..=MESSAGES as u64).map(Some).collect::<Vec<_>>(), "{answers:?}");
    let trips = instance.metric("livebridge_redis_round_trip_seconds_count").await - before;
    assert!(trips <= MESSAGES as f64 / 2.0, "{trips} round trips for {MESSAGES} messages");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_on_its_own_reaches_each_subscriber_in_one_write() {
    const EACH: usize = 8;
    const MESSAGES: usize = 50;
    let instance = Instance::embedded().await;
    let channel = channel("single");
    let (mut raw, mut envelopes, mut streams) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..EACH {
        raw.push(instance.ws(&format!("channel={channel}")).await);
        envelopes.push(instance.ws(&format!("channel={channel}&format=json")).await);
        envelopes.last_mut().unwrap().json().await; // the welcome
        streams.push(instance.events(&format!("channel={channel}")).await);
    }
    let mut before = 0.0;
    for number in 0..=MESSAGES {
        instance.publish(&channel, number.to_string()).await;
        for socket in &mut raw {
            assert_eq!(socket.text().await, number.to_string());
        }
        for socket in &mut envelopes {
            assert_eq!(socket.json().await["data"], number);
        }
        for stream in &mut streams {
            assert_eq!(stream.next().await.data, number.to_string());
        }
        let delivered = (3 * EACH * (number + 1)) as f64;
        until("it is counted", || async { instance.metric("livebridge_messages_out_total").await == delivered }).await;
        if number == 0 {
            // What joining took has been counted with the first.
            before = instance.metric("livebridge_writes_total").await;
        }
    }
    let writes = instance.metric("livebridge_writes_total").await - before;
    let deliveries = 3 * EACH * MESSAGES;
    // A machine that takes its time for this has pings in between, one for each.
    assert!(writes <= (deliveries + 3 * EACH) as f64, "{writes} writes for {deliveries} deliveries, one at a time");
}
