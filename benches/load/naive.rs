//! The naive alternative: the program that one writes in an afternoon with `warp::ws`, tokio's
//! broadcast and redis.
//!
//! One broadcast channel per name, one task per subscriber, one send per message. It serves `GET
//! /ws?channel=`, `GET /events?channel=` and `POST /publish?channel=`. With Redis, it publishes
//! there, and receives all messages through one pattern subscription.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};

use futures::{SinkExt, StreamExt};
use redis::AsyncCommands;
use tokio::sync::broadcast::{self, error::RecvError};
use warp::Filter;
use warp::hyper::body::Bytes;
use warp::ws::{Message, WebSocket};

use crate::Outcome;

/// How many messages a subscriber may lag before tokio's broadcast skips messages.
const BACKLOG: usize = 1024;

#[derive(Clone, Default)]
struct Hub {
    channels: Arc<Mutex<HashMap<String, broadcast::Sender<String>>>>,
}

impl Hub {
    fn subscribe(&self, channel: &str) -> broadcast::Receiver<String> {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        channels.entry(channel.to_owned()).or_insert_with(|| broadcast::channel(BACKLOG).0).subscribe()
    }

    fn send(&self, channel: &str, message: String) {
        let channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = channels.get(channel) {
            sender.send(message).ok();
        }
    }
}

/// Runs the process.
pub(crate) fn serve(port: u16, redis: Option<&str>) -> Outcome<()> {
    tokio::runtime::Runtime::new()?.block_on(run(port, redis))
}

async fn run(port: u16, redis: Option<&str>) -> Outcome<()> {
    let hub = Hub::default();
    let mut publisher = None;
    if let Some(url) = redis {
        let client = redis::Client::open(url)?;
        publisher = Some(client.get_multiplexed_async_connection().await?);
        let mut subscription = client.get_async_pubsub().await?;
        subscription.psubscribe("*").await?;
        let hub = hub.clone();
        tokio::spawn(async move {
            let mut messages = subscription.on_message();
            while let Some(message) = messages.next().await {
                if let Ok(payload) = message.get_payload() {
                    hub.send(message.get_channel_name(), payload);
                }
            }
        });
    }

    let state = warp::any().map(move || (hub.clone(), publisher.clone()));
    let channel = warp::query::<HashMap<String, String>>()
        .map(|query: HashMap<String, String>| query.get("channel").cloned().unwrap_or_else(|| "live".to_owned()));
    let sockets = warp::path("ws").and(warp::ws()).and(channel).and(state.clone()).map(
        |upgrade: warp::ws::Ws, channel: String, (hub, _): State| {
            let messages = hub.subscribe(&channel);
            upgrade.on_upgrade(move |socket| relay(socket, messages))
        },
    );
    let events = warp::path("events").and(channel).and(state.clone()).map(|channel: String, (hub, _): State| {
        let messages = hub.subscribe(&channel);
        let events = futures::stream::unfold(messages, |mut messages| async {
            let message = next(&mut messages).await?;
            Some((Ok::<_, Infallible>(warp::sse::Event::default().data(message)), messages))
        });
        warp::sse::reply(warp::sse::keep_alive().stream(events))
    });
    let publish =
        warp::path("publish").and(warp::post()).and(channel).and(warp::body::bytes()).and(state).then(publish);
    warp::serve(sockets.or(events).or(publish)).run(([127, 0, 0, 1], port)).await;
    Ok(())
}

type State = (Hub, Option<redis::aio::MultiplexedConnection>);

async fn publish(channel: String, body: Bytes, (hub, publisher): State) -> String {
    let message = String::from_utf8_lossy(&body).into_owned();
    match publisher {
        Some(mut publisher) => {
            publisher.publish::<_, _, ()>(channel, message).await.ok();
        }
        None => hub.send(&channel, message),
    }
    "{}".to_owned()
}

/// The next message. A subscriber that lags continues with the oldest message that is left.
async fn next(messages: &mut broadcast::Receiver<String>) -> Option<String> {
    loop {
        match messages.recv().await {
            Ok(message) => return Some(message),
            Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => return None,
        }
    }
}

async fn relay(socket: WebSocket, mut messages: broadcast::Receiver<String>) {
    let (mut sender, mut receiver) = socket.split();
    loop {
        tokio::select! {
            message = next(&mut messages) => {
                let Some(message) = message else { break };
                if sender.send(Message::text(message)).await.is_err() {
                    break;
                }
            }
            frame = receiver.next() => {
                if !matches!(frame, Some(Ok(_))) {
                    break;
                }
            }
        }
    }
}
