//! The Pusher protocol as sockudo serves it: subscribes to a channel, and publishes with the
//! signature that the HTTP API requires. `dialect.rs` reads the frames, `alternatives.rs` describes
//! the server.

use std::fmt::Write;

use hmac::{Hmac, KeyInit, Mac};
use md5::Md5;
use sha2::{Digest, Sha256};

use crate::Outcome;
use crate::message::now;

/// The only application; scripts/alternatives configures the same.
const KEY: &str = "load-key";
const SECRET: &[u8] = b"load-secret";

/// The path to which clients connect; they name the channel later.
pub(crate) const SUBSCRIBE_PATH: &str = "/app/load-key?protocol=7&client=load&version=1.0";
/// The path to which events are posted.
pub(crate) const EVENTS_PATH: &str = "/apps/load/events";

/// The name of a channel. The protocol does not allow a colon in it.
fn channel_name(channel: u32) -> String {
    format!("load.{channel}")
}

/// The answer to a text from the server while a client joins `channel`; `None` once it has joined.
pub(crate) fn join(text: &[u8], channel: u32) -> Outcome<Option<String>> {
    let text = String::from_utf8_lossy(text);
    if text.contains("pusher:connection_established") {
        let name = channel_name(channel);
        return Ok(Some(format!(r#"{{"event":"pusher:subscribe","data":{{"channel":"{name}"}}}}"#)));
    }
    if text.contains("subscription_succeeded") {
        Ok(None)
    } else {
        Err(format!("unexpected while joining: {text}").into())
    }
}

/// The answer to a ping of the protocol.
pub(crate) const PONG: &[u8] = br#"{"event":"pusher:pong","data":{}}"#;

/// Whether the message is a ping of the protocol.
pub(crate) fn is_ping(text: &[u8]) -> bool {
    text.len() < 80 && text.starts_with(br#"{"event":"pusher:ping""#)
}

/// A request that publishes `payload`, which must not have characters that JSON escapes.
pub(crate) fn request(channel: u32, payload: &[u8]) -> Vec<u8> {
    let name = channel_name(channel);
    let body = format!(r#"{{"name":"m","channel":"{name}","data":"{}"}}"#, String::from_utf8_lossy(payload));
    let seconds = now() / 1_000_000_000;
    let digest = hexadecimal(&Md5::digest(&body));
    let query = format!("auth_key={KEY}&auth_timestamp={seconds}&auth_version=1.0&body_md5={digest}");
    let signature = sign(&format!("POST\n{EVENTS_PATH}\n{query}"));
    format!(
        "POST {EVENTS_PATH}?{query}&auth_signature={signature} HTTP/1.1\r\nHost: localhost\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

fn sign(text: &str) -> String {
    // HMAC accepts a key of any length.
    let Ok(mut signature) = Hmac::<Sha256>::new_from_slice(SECRET) else { return String::new() };
    signature.update(text.as_bytes());
    hexadecimal(&signature.finalize().into_bytes())
}

fn hexadecimal(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        // Writing to a String does not fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}
