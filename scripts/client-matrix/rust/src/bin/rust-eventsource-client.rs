//! eventsource-client, with the settings it comes with.

use eventsource_client::{Client, ClientBuilder, SSE};
use futures::StreamExt;
use launchdarkly_sdk_transport::HyperTransport;
use livebridge_client_matrix::{report, url};
use serde_json::json;

#[tokio::main]
async fn main() {
    let transport = HyperTransport::builder().build_http().expect("a transport");
    let client = ClientBuilder::for_url(&url()).expect("a URL").build_with_transport(transport);
    let mut stream = client.stream();
    while let Some(event) = stream.next().await {
        match event {
            Ok(SSE::Event(event)) => report("message", json!({"type": event.event_type, "data": event.data, "id": event.id})),
            Ok(_) => {}
            Err(error) => report("error", json!({"detail": error.to_string()})),
        }
    }
    report("closed", json!({"detail": "the stream ended"}));
}
