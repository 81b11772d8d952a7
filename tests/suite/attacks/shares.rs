//! Ordinary requests, within the limits or refused at them, that take more than a share of what all use: the connection to Redis, Redis'
//! time, the hub's thread, memory. The client beside each has its messages in order and in time, and memory is back after it.

use std::time::{Duration, Instant};

use futures::future::join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::good::GoodClient;
use crate::support::instance::{Instance, Options};
use crate::support::raw::{self, connect_from};
use crate::support::redis::Redis;
use crate::support::soon;

/// A trusted proxy, over which attackers come from public addresses: near ones have no limits.
const PROXY: &str = "127.0.2.1";
const PUBLIC: &str = "203.0.113.7";
const RULES: &str = "[[channel]]\nmatch = 'many:*'\nhistory = { messages = 1 }\n";

fn options(redis: &Redis) -> Options {
    Options::redis(redis).rules(RULES).flag(&format!("--trusted-proxy {PROXY}"))
}

/// Sends a request over the proxy, and takes what is answered within a moment; returns the status.
async fn ask(instance: &Instance, head: &str, body: &[u8]) -> u16 {
    let mut stream = connect_from(PROXY, instance).await;
    send(&mut stream, head, body).await;
    let mut status = [0; 12];
    match soon("a status", stream.read_exact(&mut status)).await {
        Ok(_) => std::str::from_utf8(&status[9..]).unwrap().parse().unwrap(),
        Err(_) => 0,
    }
}

async fn send(stream: &mut TcpStream, head: &str, body: &[u8]) {
    let length = body.len();
    let lines = format!("Host: x\r\nX-Forwarded-For: {PUBLIC}\r\nConnection: close\r\nContent-Length: {length}");
    let head = format!("{head} HTTP/1.1\r\n{lines}\r\n\r\n");
    // Whoever is refused early may have been hung up on by now.
    let _ = stream.write_all(&[head.as_bytes(), body].concat()).await;
}

/// A channel whose history has five messages of so many bytes.
async fn large(instance: &Instance, bytes: usize) -> &'static str {
    for _ in 0..5 {
        instance.publish("large", "x".repeat(bytes)).await;
    }
    "large"
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_for_channels_that_redis_refuses_delays_nobody() {
    let redis = Redis::start().await;
    let user =
        ["ACL", "SETUSER", "narrow", "on", ">secret", "+@all", "~*", "resetchannels", "&good:*", "&livebridge:*"];
    assert_eq!(redis.cli(&user), "OK");
    let url = format!("redis://narrow:secret@127.0.0.1:{}/", redis.port);
    let instance = Options { redis_url: Some(url), ..options(&redis) }.start().await;
    let mut good = GoodClient::of(&instance).await;
    let attack = async {
        for round in 0..40 {
            let asked = (0..10).map(|number| format!("GET /events?channel=other:{round}:{number}"));
            let answers = join_all(asked.map(|head| {
                let instance = &instance;
                async move { ask(instance, &head, b"").await }
            }));
            assert!(answers.await.iter().all(|status| *status == 403));
        }
    };
    good.beside(attack).await;
    assert_eq!(instance.metric("livebridge_broker_disconnects_total").await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_reads_large_pages_at_once_delays_nobody() {
    let redis = Redis::start().await;
    let instance = options(&redis).start().await;
    let large = large(&instance, 900_000).await;
    let mut good = GoodClient::of(&instance).await;
    let path = format!("/channels/{large}/messages?limit=1000");
    let answers = good.beside(join_all((0..60).map(|_| instance.get(&path)))).await;
    assert!(answers.iter().all(|(status, _)| *status == 200 || *status == 503));
    assert!(answers.iter().any(|(status, _)| *status == 200));
    assert_eq!(instance.metric("livebridge_broker_disconnects_total").await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_for_large_pages_and_does_not_read_them_delays_nobody_and_holds_little() {
    let redis = Redis::start().await;
    let instance = options(&redis).flag("--request-seconds 1").start().await;
    let large = large(&instance, 900_000).await;
    let mut good = GoodClient::of(&instance).await;
    let attack = async {
        let streams = join_all((0..150).map(|_| async {
            let mut stream = raw::connect_narrow(&instance).await;
            send(&mut stream, &format!("GET /channels/{large}/messages?limit=1000"), b"").await;
            stream
        }));
        let mut streams = streams.await;
        // They are given up after a while, or refused; what the kernel took for them follows.
        join_all(streams.iter_mut().map(raw::rest)).await;
    };
    good.beside(attack).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_resumes_from_positions_that_never_were_delays_no_newcomer() {
    let redis = Redis::start().await;
    let instance = options(&redis).start().await;
    let large = large(&instance, 20_000).await;
    let mut good = GoodClient::of(&instance).await;
    let attack = async {
        let asked = (0..200).map(|number| format!("GET /events?channel={large}&since={number}:1"));
        let mut streams = join_all(asked.map(|head| {
            let instance = &instance;
            async move {
                let mut stream = connect_from(PROXY, instance).await;
                send(&mut stream, &head, b"").await;
                stream
            }
        }))
        .await;
        let came = Instant::now();
        let mut newcomer = instance.ws(&format!("channel={large}&last=1")).await;
        assert_eq!(newcomer.text().await.len(), 20_000);
        assert!(came.elapsed() < Duration::from_secs(3), "a newcomer waits for {:?}", came.elapsed());
        // Each is told of the gap.
        for stream in &mut streams {
            let mut text = Vec::new();
            while !text.windows(14).any(|bytes| bytes == b"livebridge:gap") {
                soon("a gap", stream.read_buf(&mut text)).await.unwrap();
            }
        }
    };
    good.beside(attack).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_joins_many_fresh_channels_delays_no_newcomer() {
    let redis = Redis::start().await;
    let instance = options(&redis).start().await;
    let mut good = GoodClient::of(&instance).await;
    let fresh = |number: usize| (0..100).map(|name| format!("channel=fresh:{number}:{name}")).collect::<Vec<_>>();
    let attack = async {
        let (mut streams, mut waits) = (Vec::new(), Vec::new());
        for turn in 0..7 {
            let asked = (0..100).map(|number| format!("GET /events?{}", fresh(100 * turn + number).join("&")));
            streams.extend(
                join_all(asked.map(|head| {
                    let instance = &instance;
                    async move {
                        let mut stream = connect_from(PROXY, instance).await;
                        send(&mut stream, &head, b"").await;
                        stream
                    }
                }))
                .await,
            );
            let came = Instant::now();
            instance.ws(&format!("channel=newcomer:{turn}")).await;
            waits.push(came.elapsed());
        }
        // The first may wait for the burst that passes.
        waits.sort_unstable();
        assert!(waits[3] < Duration::from_secs(2), "newcomers wait for {waits:?}");
        streams
    };
    let streams = good.beside(attack).await;
    assert!(instance.refused("address_new_channels").await > 600.0, "most are refused");
    // A reconnect has few channels to subscribe to.
    redis.cli(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    instance.until_ready(true).await;
    drop(streams);
    good.beside(async {}).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_publishes_to_many_channels_at_once_delays_nobody() {
    let redis = Redis::start().await;
    let instance = options(&redis).start().await;
    let other = options(&redis).start().await;
    let mut good = GoodClient::of(&instance).await;
    let channels = (0..100).map(|name| format!("channel=many:{name}")).collect::<Vec<_>>().join("&");
    let head = format!("POST /publish?{channels}");
    let body = vec![b'x'; 1 << 20];
    // From a public address one passes, and its debt refuses the others.
    let answers = good.beside(join_all((0..24).map(|_| ask(&instance, &head, &body)))).await;
    let count = |wanted| answers.iter().filter(|status| **status == wanted).count();
    assert!(count(200) <= 1 && count(429) >= 20, "{answers:?}");
    // A near address has no rate, but a body counts once for each channel.
    let path = format!("/publish?{channels}");
    let near = good.beside(join_all((0..24).map(|_| instance.post(&path, body.clone())))).await;
    assert!(near.iter().all(|(status, _)| *status == 200 || *status == 503), "{near:?}");
    assert!(near.iter().any(|(status, _)| *status == 503), "they do not fit together");
    for instance in [&instance, &other] {
        assert_eq!(instance.metric("livebridge_broker_disconnects_total").await, 0.0);
    }
}
