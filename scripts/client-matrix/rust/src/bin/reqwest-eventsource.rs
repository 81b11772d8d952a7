//! reqwest-eventsource, with the settings it comes with.

use futures::StreamExt;
use livebridge_client_matrix::{report, url};
use reqwest_eventsource::{Event, EventSource};
use serde_json::json;

#[tokio::main]
async fn main() {
    let mut stream = EventSource::get(url());
    while let Some(event) = stream.next().await {
        match event {
            Ok(Event::Message(event)) => report("message", json!({"type": event.event, "data": event.data, "id": event.id})),
            Ok(Event::Open) => {}
            Err(error) => report("error", json!({"detail": error.to_string()})),
        }
    }
    report("closed", json!({"detail": "the stream ended"}));
}
