//! Those who behave: producers that publish a number after the other, and clients that check them.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::time::sleep;

use super::{PRODUCERS, Siege};
use crate::support::sse::Events;
use crate::support::ws::Socket;

/// Between two messages of a producer.
const PAUSE: Duration = Duration::from_millis(40);
/// How long a producer tries to publish a message.
const PATIENCE: Duration = Duration::from_secs(20);

/// What a client received.
pub(super) struct Received {
    /// What was wrong: a message that was missing, doubled or out of order, or the end of the connection.
    pub(super) wrong: Option<String>,
    /// How long each message took, from when it was published on, in microseconds.
    pub(super) late: Vec<u64>,
}

enum Stream {
    Socket(Box<Socket>),
    Events(Events),
}

impl Stream {
    /// The next message, unless there is none within a moment.
    async fn next(&mut self) -> Option<String> {
        let moment = Duration::from_millis(200);
        match self {
            Self::Socket(socket) => tokio::time::timeout(moment, socket.text()).await.ok(),
            Self::Events(events) => tokio::time::timeout(moment, events.next()).await.ok().map(|event| event.data),
        }
    }
}

/// Publishes until it is over; returns how many messages that were.
pub(super) async fn produce(siege: Arc<Siege>, index: usize) -> u64 {
    let mut number = 0;
    while !siege.is_over() {
        number += 1;
        let body = format!("{number} {}", siege.now());
        let instance = &siege.instances[(number as usize + index) % siege.instances.len()];
        let url = instance.url(&format!("/publish?channel=good:{index}"));
        let began = Instant::now();
        loop {
            let sent = siege.http.post(&url).header("idempotency-key", number.to_string()).body(body.clone()).send();
            let answer = sent.await;
            if answer.as_ref().is_ok_and(|answer| answer.status() == 200) {
                break;
            }
            assert!(began.elapsed() < PATIENCE, "producer {index} can't publish: {answer:?}");
            sleep(Duration::from_millis(50)).await;
        }
        sleep(PAUSE).await;
    }
    number
}

/// Listens to a producer until all of it has come.
pub(super) async fn listen(siege: Arc<Siege>, index: usize) -> Received {
    let channel = index % PRODUCERS;
    let instance = &siege.instances[index / PRODUCERS % siege.instances.len()];
    let query = format!("channel=good:{channel}");
    let mut stream = match index % 2 {
        0 => Stream::Socket(Box::new(instance.ws(&query).await)),
        _ => Stream::Events(instance.events(&query).await),
    };
    siege.listening.fetch_add(1, Ordering::Relaxed);
    let mut received = Received { wrong: None, late: Vec::new() };
    loop {
        let end = siege.ends.lock().unwrap().as_ref().map(|ends| ends[channel]);
        if end == Some(received.late.len() as u64) {
            return received;
        }
        let Some(text) = stream.next().await else { continue };
        let due = received.late.len() as u64 + 1;
        let message =
            text.split_once(' ').and_then(|(number, at)| Some((number.parse::<u64>().ok()?, at.parse::<u64>().ok()?)));
        match message {
            Some((number, at)) if number == due => received.late.push(siege.now().saturating_sub(at)),
            _ => {
                received.wrong = Some(format!("client {index} received {text:?} where {due} was due"));
                return received;
            }
        }
    }
}
