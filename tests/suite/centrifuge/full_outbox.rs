//! Clients whose answers wait until they are read.

use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::centrifuge_client::Client;
use crate::support::instance::Options;
use crate::support::tokens::{SECRET, Signer, at, claims};
use crate::support::{channel, raw, soon, until};

/// A masked text frame.
fn frame(text: &str) -> Vec<u8> {
    let mut frame = vec![0x81, 0x80 | 126];
    frame.extend(u16::try_from(text.len()).unwrap().to_be_bytes());
    // A mask of zeros changes nothing.
    frame.extend([0; 4]);
    frame.extend(text.as_bytes());
    frame
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_reads_slowly_is_not_taken_for_gone() {
    let instance = Options::default().flag("--heartbeat-seconds 2").start().await;
    let channel = channel("large");
    for _ in 0..60 {
        instance.publish(&channel, "x".repeat(60_000)).await;
    }
    let mut stream = raw::upgrade_narrow(&instance, "/connection/websocket").await;
    let history = json!({ "id": 2, "history": { "channel": channel, "limit": -1 } });
    let commands = format!("{{\"id\":1,\"connect\":{{}}}}\n{history}\n{history}");
    stream.write_all(&frame(&commands)).await.unwrap();
    // It takes fifteen seconds for its answers. Meanwhile it is not read, so nobody sees its pongs.
    let (began, mut received, mut pongs, mut buffer) = (Instant::now(), 0, 0, vec![0; 20_000]);
    while received < 7_200_000 {
        let due = Duration::from_secs(15).mul_f64(received as f64 / 7.2e6);
        tokio::time::sleep(due.saturating_sub(began.elapsed())).await;
        if began.elapsed().as_secs() > pongs {
            pongs += 1;
            stream.write_all(&frame("{}")).await.expect("no reset");
        }
        let count = soon("the answers", stream.read(&mut buffer)).await.expect("no reset");
        assert!(count > 0, "closed after {received} bytes");
        received += count;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_counts_with_its_encoded_size() {
    let instance = Options::default().flag("--outgoing-bytes-total 16777216").start().await;
    let channel = channel("escaped");
    for _ in 0..40 {
        instance.publish(&channel, vec![1; 60_000]).await;
    }
    let mut client = Client::connect(&instance).await;
    // 2.4 MB become 14.4 MB, as each byte is `\u0001` in JSON. Pages may have 12 MiB.
    let history = |limit| json!({ "channel": channel, "limit": limit });
    assert_eq!(client.fail("history", history(-1)).await, (100, true));
    assert_eq!(instance.refused("outgoing_bytes").await, 1.0);
    let few = client.ask("history", history(10)).await;
    assert_eq!(few["publications"].as_array().unwrap().len(), 10);
    until("nothing is held", || async { instance.metric("livebridge_outgoing_bytes").await == 0.0 }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_published_after_the_token_has_expired() {
    let options = Options::default().flag("--token-leeway-seconds 0").env("LIVEBRIDGE_TOKEN_SECRET", SECRET);
    let instance = options.start().await;
    let [large, late] = ["large", "late"].map(channel);
    let sign = |seconds| {
        let mut claims = claims(&["*"], &["*"]);
        claims["exp"] = at(seconds).into();
        Signer::shared(SECRET).sign(&claims)
    };
    let (mut backend, _) = Client::connect_with(&instance, json!({ "token": sign(60) })).await;
    for _ in 0..60 {
        backend.ask("publish", json!({ "channel": large, "data": "x".repeat(60_000) })).await;
    }
    let mut stream = raw::upgrade_narrow(&instance, "/connection/websocket").await;
    let history = json!({ "id": 2, "history": { "channel": large, "limit": -1 } }).to_string();
    let connect = json!({ "id": 1, "connect": { "token": sign(2) } }).to_string();
    let publish = json!({ "id": 3, "publish": { "channel": late, "data": 1 } }).to_string();
    // It does not read the answers, so the last command waits until the connection is closed.
    let commands = [connect, history.clone(), history.clone(), history, publish].join("\n");
    stream.write_all(&frame(&commands)).await.unwrap();
    until("it is closed", || async { instance.metric("livebridge_closes_total").await == 1.0 }).await;
    let held = backend.ask("history", json!({ "channel": late, "limit": -1 })).await;
    assert_eq!(held["offset"], json!(null), "{held}");
}
