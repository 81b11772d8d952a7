//! Publishes on any number of keep-alive connections from one thread, without waiting for answers
//! unless the scenario requires it: `POST /publish`, NDJSON batches, Redis `PUBLISH`, Pusher
//! events, the API of Centrifugo, and the orders of the bare server.

use std::io::{Read, Write};
use std::net::ToSocketAddrs;

use mio::{Registry, Token};

use crate::Outcome;
use crate::bare::{ORDERS_PATH, Order};
use crate::histogram::Histogram;
use crate::message::{CHANNEL_PREFIX, Message, channel_name};
use crate::publish_connection::{Answers, PublishConnection};
use crate::pusher;

/// How to publish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Path {
    /// `POST` to this path; `{channel}` is replaced.
    Post(String),
    /// `POST` of `application/x-ndjson` to this path, with several messages per request.
    Batch(String),
    /// `PUBLISH` on a Redis connection.
    Redis,
    /// Signed events of the Pusher protocol.
    Pusher,
    /// `POST /api/publish` with JSON, as Centrifugo takes it.
    Centrifugo,
    /// Orders to the bare server.
    Orders,
}

/// The path of Centrifugo's API.
const CENTRIFUGO_PATH: &str = "/api/publish";

/// The connections that publish.
pub(crate) struct Publishers {
    connections: Vec<PublishConnection>,
    path: Path,
    first_token: usize,
    /// The buffer for one read().
    buffer: Vec<u8>,
    /// The times from queuing a request to its answer.
    pub(crate) answer_times: Histogram,
}

impl Publishers {
    /// Opens `count` connections, distributed over `addresses`, with tokens from `first_token`.
    pub(crate) fn connect(
        addresses: &[String],
        count: usize,
        path: Path,
        registry: &Registry,
        first_token: usize,
    ) -> Outcome<Self> {
        let mut connections = Vec::new();
        for index in 0..count {
            let address =
                addresses[index % addresses.len()].to_socket_addrs()?.next().ok_or("no address to publish to")?;
            let mut socket = std::net::TcpStream::connect(address)?;
            if path == Path::Orders {
                write!(socket, "GET {ORDERS_PATH} HTTP/1.1\r\n\r\n")?;
                let mut answer = Vec::new();
                while !answer.ends_with(b"\r\n\r\n") {
                    let mut byte = [0];
                    socket.read_exact(&mut byte)?;
                    answer.push(byte[0]);
                }
            }
            let token = Token(first_token + index);
            let mut connection = PublishConnection::new(socket, registry, token)?;
            if path == Path::Pusher {
                connection.take_turns(address, registry, token)?;
            }
            connections.push(connection);
        }
        Ok(Self { connections, path, first_token, buffer: vec![0; 64 * 1024], answer_times: Histogram::new() })
    }

    pub(crate) fn count(&self) -> usize {
        self.connections.len()
    }

    /// The number of requests on connection `index` that wait for an answer.
    pub(crate) fn unanswered(&self, index: usize) -> usize {
        self.connections[index].unanswered()
    }

    pub(crate) fn all_unanswered(&self) -> usize {
        self.connections.iter().map(PublishConnection::unanswered).sum()
    }

    /// The number of answers so far.
    pub(crate) fn answered(&self) -> u64 {
        self.connections.iter().map(|connection| connection.answered).sum()
    }

    /// Publishes messages of one channel and stream on connection `index`: one request per message,
    /// or one for all in a batch.
    pub(crate) fn publish(&mut self, index: usize, messages: &[Message], size: usize) {
        let count = self.connections.len();
        let connection = &mut self.connections[index % count];
        match &self.path {
            Path::Orders => {
                let [first, ..] = messages else { return };
                let order = Order {
                    channel: first.channel,
                    sequence: first.sequence,
                    count: messages.len() as u32,
                    size: size as u32,
                    due: first.due,
                };
                // Each writer gets each order, because each has a part of the subscribers.
                self.connections.iter_mut().for_each(|connection| order.write(&mut connection.outgoing));
            }
            Path::Batch(path) => {
                connection.ask(|out| post(path, 0, "application/x-ndjson", &lines(messages, size), out))
            }
            Path::Post(path) => each(messages, size, |message, payload| {
                connection.ask(|out| post(path, message.channel, "text/plain", payload, out));
            }),
            Path::Pusher => each(messages, size, |message, payload| {
                connection.ask(|out| out.extend(pusher::request(message.channel, payload)));
            }),
            Path::Centrifugo => each(messages, size, |message, payload| {
                let channel = channel_name(message.channel);
                let body = format!(r#"{{"channel":"{channel}","data":"{}"}}"#, String::from_utf8_lossy(payload));
                connection.ask(|out| post(CENTRIFUGO_PATH, message.channel, "application/json", body.as_bytes(), out));
            }),
            Path::Redis => each(messages, size, |message, payload| {
                connection.ask(|out| {
                    let channel = channel_name(message.channel);
                    write!(out, "*3\r\n$7\r\nPUBLISH\r\n${}\r\n{channel}\r\n${size}\r\n", channel.len()).ok();
                    out.extend_from_slice(payload);
                    out.extend_from_slice(b"\r\n");
                });
            }),
        }
    }

    /// Writes the waiting bytes to the sockets.
    pub(crate) fn flush(&mut self) -> Outcome<()> {
        self.connections.iter_mut().try_for_each(PublishConnection::flush)
    }

    /// Handles an event on the connection with this token.
    pub(crate) fn handle(&mut self, token: usize) -> Outcome<()> {
        let Self { connections, path, first_token, buffer, answer_times } = self;
        let kind = match path {
            Path::Redis => Answers::Redis,
            Path::Post(_) | Path::Batch(_) | Path::Pusher | Path::Centrifugo => Answers::Http,
            Path::Orders => Answers::None,
        };
        let connection = &mut connections[token - *first_token];
        connection.flush()?;
        connection.receive(buffer, kind, |time| answer_times.record(time))
    }
}

/// Writes each message and passes its bytes to `hand_on`.
fn each(messages: &[Message], size: usize, mut hand_on: impl FnMut(&Message, &[u8])) {
    let mut payload = Vec::with_capacity(size);
    for message in messages {
        payload.clear();
        message.write(size, &mut payload);
        hand_on(message, &payload);
    }
}

/// The messages as the lines of a batch.
pub(crate) fn lines(messages: &[Message], size: usize) -> Vec<u8> {
    let mut body = Vec::with_capacity(messages.len() * (size + 40));
    for message in messages {
        write!(body, r#"{{"channel":"{}","data":""#, channel_name(message.channel)).ok();
        message.write(size, &mut body);
        body.extend_from_slice(b"\"}\n");
    }
    body
}

/// Appends a `POST` with this body; `{channel}` in the path is replaced.
pub(crate) fn post(path: &str, channel: u32, kind: &str, body: &[u8], out: &mut Vec<u8>) {
    let (before, after) = path.split_once("{channel}").unwrap_or((path, ""));
    write!(out, "POST {before}").ok();
    if before.len() < path.len() {
        write!(out, "{CHANNEL_PREFIX}{channel}{after}").ok();
    }
    let length = body.len();
    let head = " HTTP/1.1\r\nHost: localhost\r\nContent-Type: ";
    write!(out, "{head}{kind}\r\nContent-Length: {length}\r\n\r\n").ok();
    out.extend_from_slice(body);
}
