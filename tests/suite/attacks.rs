//! What attackers try, and the documented answer to it, while a well-behaved client beside them receives everything in order.
//! Floods and clients that are slow on purpose are in `hostile` and `limits`.
//!
//! * `requests`: HTTP that could be read in two ways, forged, or not meant for us
//! * `upgrades`: what else than a proper handshake might become a WebSocket
//! * `frames`: WebSocket frames that RFC 6455 forbids
//! * `names`: channels, keys and positions that are more than names
//! * `outgoing`: clients that ask for much and do not take it
//! * `shares`: ordinary requests that take more than a share of what all use

mod frames;
mod names;
mod outgoing;
mod requests;
mod shares;
mod upgrades;

use std::cell::Cell;

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use crate::support::instance::Instance;
use crate::support::{channel, raw, soon};

/// Where attackers come from; the well-behaved client comes from elsewhere.
const ROGUE: &str = "127.0.1.1";
/// How many messages the well-behaved client exchanges at least.
const FEWEST: u32 = 20;

/// Runs an attack while a client publishes, and hears all of it, over a WebSocket and an event stream that were there before.
async fn beside<T>(instance: &Instance, attack: impl Future<Output = T>) -> T {
    let query = format!("channel={}", channel("calm"));
    let mut socket = raw::websocket("127.0.0.77", instance, &query, &[]).await.unwrap();
    let mut events = instance.events(&query).await;
    let over = Cell::new(false);
    let attack = async {
        let outcome = attack.await;
        over.set(true);
        outcome
    };
    let calm = async {
        let mut said = 0;
        while !over.get() || said < FEWEST {
            said += 1;
            socket.send(said.to_string()).await;
            assert_eq!(socket.text().await, said.to_string(), "in order, none missing");
            assert_eq!(events.next().await.data, said.to_string(), "in order, none missing");
        }
    };
    let (outcome, ()) = tokio::join!(attack, calm);
    outcome
}

/// Reads as far as the bytes that are waited for; returns all that was read.
async fn read_through(stream: &mut TcpStream, end: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    while !bytes.ends_with(end) {
        let read = soon("an answer", stream.read_u8()).await;
        bytes.push(read.unwrap_or_else(|error| panic!("{error} after {:?}", String::from_utf8_lossy(&bytes))));
    }
    bytes
}

/// How many responses are in what was read.
fn responses(answer: &str) -> usize {
    answer.matches("HTTP/1.").count()
}

/// The channel has no message.
async fn assert_untouched(instance: &Instance, channel: &str) {
    assert_eq!(instance.get_json(&format!("/channels/{channel}/messages")).await["offset"], 0, "{channel}");
}
