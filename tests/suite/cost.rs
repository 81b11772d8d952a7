//! What a delivery may cost in system calls, counted and not timed, so that it can't be noise. Allocations are counted in
//! `tests/counts.rs`.

use crate::support::instance::Options;
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
