//! tokio-tungstenite: reconnecting is left to the program.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures::StreamExt;
use livebridge_client_matrix::{report, url};
use serde_json::json;
use tokio_tungstenite::{connect_async, tungstenite::Message};

#[tokio::main]
async fn main() {
    let (mut socket, _) = connect_async(url()).await.expect("a connection");
    while let Some(message) = socket.next().await {
        match message {
            Ok(Message::Text(text)) => report("message", json!({"data": text.as_str()})),
            Ok(Message::Binary(bytes)) => report("binary", json!({"data": STANDARD.encode(bytes)})),
            Ok(_) => {}
            Err(error) => report("error", json!({"detail": error.to_string()})),
        }
    }
    report("closed", json!({"detail": "the stream ended"}));
}
