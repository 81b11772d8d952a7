//! Producers that publish numbered messages through a fault, and a client that listens meanwhile.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::Value;

use super::instance::{Instance, position};
use super::until;
use super::ws::Socket;

pub struct Run {
    channel: String,
    stop: Arc<AtomicBool>,
    /// Each returns which message was answered to stand where.
    producers: Vec<tokio::task::JoinHandle<BTreeMap<String, String>>>,
    socket: Socket,
    /// The messages and their positions, in the order of their arrival, and how many gaps were told before.
    received: Vec<(String, Option<String>, usize)>,
    gaps: usize,
}

/// What became of the messages.
pub struct Outcome {
    /// The messages that were answered 200, and did not arrive.
    pub lost: Vec<String>,
    /// How many gaps the client was told.
    pub gaps: usize,
}

impl Run {
    /// A producer at each instance, several messages at once, and a client at the second one.
    pub async fn start(instances: [&Instance; 2], channel: &str) -> Self {
        let mut socket = instances[1].ws(&format!("channel={channel}&format=json")).await;
        assert_eq!(socket.json().await["event"], "welcome");
        let stop = Arc::new(AtomicBool::new(false));
        let producer = |(index, instance): (usize, &Instance)| {
            tokio::spawn(produce(instance.address.clone(), channel.to_owned(), index, stop.clone()))
        };
        let producers = instances.into_iter().enumerate().map(producer).collect();
        let mut run = Self { channel: channel.to_owned(), stop, producers, socket, received: Vec::new(), gaps: 0 };
        run.receive(20).await;
        run
    }

    /// Waits for some more messages.
    pub async fn receive(&mut self, count: usize) {
        let until = self.received.len() + count;
        while self.received.len() < until {
            let message = self.socket.json().await;
            self.take(&message);
        }
    }

    fn take(&mut self, message: &Value) {
        match message["event"].as_str() {
            Some("gap") => self.gaps += 1,
            _ => self.received.push((message["data"].as_str().unwrap().to_owned(), position(message), self.gaps)),
        }
    }

    /// Ends the producers, and receives the rest. What arrived must have arrived in order and once; or twice, if its
    /// first position was lost with a master, so that nobody was answered, and a gap was told.
    pub async fn finish(mut self, instances: [&Instance; 2]) -> Outcome {
        for instance in instances {
            instance.until_ready(true).await;
        }
        self.stop.store(true, Ordering::Relaxed);
        let mut answered = BTreeMap::new();
        for producer in std::mem::take(&mut self.producers) {
            answered.extend(producer.await.unwrap());
        }
        let path = format!("/publish?channel={}", self.channel);
        until("published", || async { instances[0].post(&path, "end").await.0 == 200 }).await;
        while self.received.last().is_none_or(|(text, ..)| text != "end") {
            let message = self.socket.json().await;
            self.take(&message);
        }
        let mut seen = BTreeMap::new();
        for (text, position, gaps) in &self.received {
            let was_lost =
                |(first, told): (&Option<String>, &usize)| told < gaps && answered.get(text) != first.as_ref();
            let first = seen.insert(text, (position, gaps));
            assert!(first.is_none_or(was_lost), "doubled: {text} at {first:?} and {position:?}");
        }
        let offsets = self.received.iter().map(|(_, position, _)| split(position.as_deref().expect("a position")));
        let offsets: Vec<(u64, u64)> = offsets.collect();
        assert!(offsets.windows(2).all(|pair| pair[0] < pair[1]), "out of order: {offsets:?}");
        let lost = answered.into_keys().filter(|text| !seen.contains_key(text)).collect();
        Outcome { lost, gaps: self.gaps }
    }
}

fn split(position: &str) -> (u64, u64) {
    let (epoch, offset) = position.split_once(':').expect("EPOCH:OFFSET");
    (epoch.parse().unwrap(), offset.parse().unwrap())
}

/// Publishes until told to stop. What was not answered 200 is tried again with the same id.
async fn produce(address: String, channel: String, producer: usize, stop: Arc<AtomicBool>) -> BTreeMap<String, String> {
    let http = reqwest::Client::new();
    let mut answered = BTreeMap::new();
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let text = format!("{producer}-{number}");
        loop {
            let request = http.post(format!("http://{address}/publish?channel={channel}")).body(text.clone());
            let request = request.header("idempotency-key", &text).timeout(Duration::from_secs(10));
            if let Ok(response) = request.send().await
                && response.status() == 200
            {
                let answer: Value = serde_json::from_str(&response.text().await.unwrap()).unwrap();
                answered.insert(text, position(&answer["messages"][0]).expect("a position"));
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    answered
}
