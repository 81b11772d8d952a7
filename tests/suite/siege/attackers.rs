//! Those who do not: each attack again and again, from public addresses, with nothing but documented requests.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt, join_all};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{sleep, timeout};

use super::{PROXY, Siege};
use crate::support::raw::HANDSHAKE;

/// What one request of an attack came to: a status, or what else became of it.
type Outcome = String;
type Attack = fn(Arc<Siege>, usize) -> BoxFuture<'static, Outcome>;

/// Each attack: its name, how many are at it at once, how long one pauses after a request, and what one does.
const ATTACKS: [(&str, usize, u64, Attack); 9] = [
    ("channels that Redis refuses", 20, 20, |siege, number| refused(siege, number).boxed()),
    ("large pages of history, all read", 30, 200, |siege, number| large(siege, number).boxed()),
    ("large pages of history, not read", 40, 500, |siege, number| unread(siege, number).boxed()),
    ("positions that never were", 40, 100, |siege, number| bogus(siege, number).boxed()),
    ("100 fresh channels a connection", 40, 50, |siege, number| fresh(siege, number).boxed()),
    ("1 MiB to 100 channels", 12, 200, |siege, number| many(siege, number).boxed()),
    ("slow subscribers of a keyed channel with large values", 20, 500, |siege, number| slow(siege, number).boxed()),
    ("floods of frames", 6, 100, |siege, number| flood(siege, number).boxed()),
    ("bodies that never end", 20, 300, |siege, number| endless(siege, number).boxed()),
];

/// Runs all attacks until it is over; returns how often each answer came.
pub(super) async fn attack(siege: Arc<Siege>) -> BTreeMap<&'static str, BTreeMap<Outcome, u64>> {
    let attackers = ATTACKS.into_iter().flat_map(|(name, count, pause, attack)| {
        let siege = siege.clone();
        (0..count).map(move |_| {
            let siege = siege.clone();
            tokio::spawn(async move {
                let mut outcomes: BTreeMap<Outcome, u64> = BTreeMap::new();
                while !siege.is_over() {
                    static NUMBER: AtomicU64 = AtomicU64::new(0);
                    let number = NUMBER.fetch_add(1, Ordering::Relaxed) as usize;
                    let outcome = attack(siege.clone(), number).await;
                    *outcomes.entry(outcome).or_default() += 1;
                    sleep(Duration::from_millis(pause)).await;
                }
                (name, outcomes)
            })
        })
    });
    let mut all: BTreeMap<&str, BTreeMap<Outcome, u64>> = BTreeMap::new();
    for ended in join_all(attackers.collect::<Vec<_>>()).await {
        let (name, outcomes) = ended.unwrap();
        let counts = all.entry(name).or_default();
        outcomes.into_iter().for_each(|(outcome, count)| *counts.entry(outcome).or_default() += count);
    }
    all
}

/// A connection to one of the instances, from a public address.
struct Link {
    stream: TcpStream,
    client: String,
}

impl Link {
    /// `narrow` takes hardly anything into the kernel. There are as many addresses as a small botnet has.
    async fn open(siege: &Siege, number: usize, narrow: bool) -> Option<Self> {
        let instance = &siege.instances[number % siege.instances.len()];
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(format!("{PROXY}:0").parse().unwrap()).ok()?;
        if narrow {
            socket.set_recv_buffer_size(4096).unwrap();
        }
        let stream = socket.connect(instance.address.parse().unwrap()).await.ok()?;
        Some(Self { stream, client: format!("203.0.113.{}", number % 20) })
    }

    /// Opens a connection and asks for something.
    async fn asking(siege: &Siege, number: usize, narrow: bool, head: &str) -> Option<Self> {
        let mut link = Self::open(siege, number, narrow).await?;
        link.send(head, "Host: x\r\nConnection: close\r\n", b"").await?;
        Some(link)
    }

    async fn send(&mut self, head: &str, lines: &str, body: &[u8]) -> Option<()> {
        let head = format!("{head} HTTP/1.1\r\nX-Forwarded-For: {}\r\n{lines}\r\n", self.client);
        self.stream.write_all(&[head.as_bytes(), body].concat()).await.ok()
    }

    /// The status of the answer, and whether it is an event stream that is refused.
    async fn status(&mut self) -> Outcome {
        let mut bytes = Vec::new();
        while !bytes.windows(4).any(|end| end == b"\r\n\r\n") {
            match timeout(Duration::from_secs(10), self.stream.read_buf(&mut bytes)).await {
                Ok(Ok(1..)) => {}
                Ok(_) => return "ended".into(),
                Err(_) => return "no answer".into(),
            }
        }
        let status = String::from_utf8_lossy(bytes.get(9..12).unwrap_or_default()).into_owned();
        // What a refusal says follows at once.
        let _ = timeout(Duration::from_millis(50), self.stream.read_buf(&mut bytes)).await;
        if status == "200" && bytes.windows(18).any(|said| said == b"livebridge:refused") {
            return "200 refused".into();
        }
        status
    }

    /// Takes everything for so long.
    async fn drain(&mut self, seconds: u64) {
        let mut buffer = vec![0; 64 << 10];
        let read = async { while self.stream.read(&mut buffer).await.is_ok_and(|count| count > 0) {} };
        let _ = timeout(Duration::from_secs(seconds), read).await;
    }
}

/// What could not be sent or opened is an outcome, too.
async fn outcome(attempt: impl Future<Output = Option<Outcome>>) -> Outcome {
    attempt.await.unwrap_or_else(|| "ended".into())
}

async fn refused(siege: Arc<Siege>, number: usize) -> Outcome {
    outcome(async {
        let mut link = Link::asking(&siege, number, false, &format!("GET /events?channel=other:{number}")).await?;
        Some(link.status().await)
    })
    .await
}

async fn large(siege: Arc<Siege>, number: usize) -> Outcome {
    outcome(async {
        let mut link = Link::asking(&siege, number, false, "GET /channels/large/messages?limit=1000").await?;
        let status = link.status().await;
        link.drain(20).await;
        Some(status)
    })
    .await
}

async fn unread(siege: Arc<Siege>, number: usize) -> Outcome {
    outcome(async {
        let mut link = Link::asking(&siege, number, true, "GET /channels/large/messages?limit=1000").await?;
        sleep(Duration::from_secs(3)).await;
        Some(link.status().await)
    })
    .await
}

async fn bogus(siege: Arc<Siege>, number: usize) -> Outcome {
    outcome(async {
        let mut link =
            Link::asking(&siege, number, false, &format!("GET /events?channel=large&since={number}:1")).await?;
        let status = link.status().await;
        link.drain(1).await;
        Some(status)
    })
    .await
}

async fn fresh(siege: Arc<Siege>, number: usize) -> Outcome {
    let channels: Vec<_> = (0..100).map(|name| format!("channel=fresh:{number}:{name}")).collect();
    outcome(async {
        let mut link = Link::asking(&siege, number, false, &format!("GET /events?{}", channels.join("&"))).await?;
        Some(link.status().await)
    })
    .await
}

async fn many(siege: Arc<Siege>, number: usize) -> Outcome {
    let channels: Vec<_> = (0..100).map(|name| format!("channel=many:{name}")).collect();
    outcome(async {
        let mut link = Link::open(&siege, number, false).await?;
        let body = vec![b'x'; 1 << 20];
        let lines = format!("Host: x\r\nConnection: close\r\nContent-Length: {}\r\n", body.len());
        // Whoever is refused early may have been hung up on by now.
        let _ = link.send(&format!("POST /publish?{}", channels.join("&")), &lines, &body).await;
        Some(link.status().await)
    })
    .await
}

async fn slow(siege: Arc<Siege>, number: usize) -> Outcome {
    outcome(async {
        let mut link = Link::asking(&siege, number, true, "GET /events?channel=keyed&last=1000").await?;
        // Somebody publishes there what they do not take.
        let instance = &siege.instances[number % siege.instances.len()];
        let url = instance.url(&format!("/publish?channel=keyed&key={}", number % 8));
        let _ = siege.http.post(url).body("x".repeat(256 << 10)).send().await;
        sleep(Duration::from_secs(5)).await;
        Some(link.status().await)
    })
    .await
}

async fn flood(siege: Arc<Siege>, number: usize) -> Outcome {
    outcome(async {
        let mut link = Link::open(&siege, number, false).await?;
        link.send("GET /ws?channel=fresh:flood", HANDSHAKE.trim_end_matches("\r\n"), b"\r\n").await?;
        let status = link.status().await;
        // Empty pings.
        let pings = [0x89, 0x80, 0, 0, 0, 0].repeat(2000);
        let (mut read, mut write) = link.stream.split();
        let flood = async { while write.write_all(&pings).await.is_ok() {} };
        let mut buffer = vec![0; 64 << 10];
        let answers = async { while read.read(&mut buffer).await.is_ok_and(|count| count > 0) {} };
        let closed = timeout(Duration::from_secs(10), async {
            tokio::select! { () = flood => {}, () = answers => {} }
        });
        Some(if closed.await.is_ok() { format!("{status}, closed") } else { format!("{status}, slowed down") })
    })
    .await
}

async fn endless(siege: Arc<Siege>, number: usize) -> Outcome {
    outcome(async {
        let mut link = Link::open(&siege, number, false).await?;
        let lines = "Host: x\r\nContent-Length: 1000000\r\n";
        link.send("POST /publish?channel=fresh:endless", lines, &vec![b'x'; 900_000]).await?;
        sleep(Duration::from_secs(3)).await;
        Some("held for 3 s".into())
    })
    .await
}
