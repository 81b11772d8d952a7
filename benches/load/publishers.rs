//! The publishing side: one thread, any number of keep-alive connections, written without waiting for answers unless the
//! scenario wants to. `POST /publish`, NDJSON batches, Redis `PUBLISH`, and the bare server's orders.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::ToSocketAddrs;

use mio::net::TcpStream;
use mio::{Interest, Registry, Token};

use crate::Outcome;
use crate::bare::{ORDERS_PATH, Order};
use crate::frames::find;
use crate::histogram::Histogram;
use crate::message::{CHANNEL_PREFIX, Message, channel_name, now};

/// How messages get in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Path {
    /// `POST` to this path, `{channel}` replaced.
    Post(String),
    /// The same with `application/x-ndjson`, several messages a request.
    Batch(String),
    /// `PUBLISH` on a Redis connection.
    Redis,
    /// Orders to the bare server.
    Orders,
}

/// Connections that publish.
pub(crate) struct Publishers {
    links: Vec<Link>,
    path: Path,
    first_token: usize,
    /// What one read() may bring.
    buffer: Vec<u8>,
    /// From handing a request to the kernel to its answer.
    pub(crate) answer_times: Histogram,
}

struct Link {
    socket: TcpStream,
    outgoing: Vec<u8>,
    written: usize,
    incoming: Vec<u8>,
    asked: VecDeque<u64>,
    answered: u64,
}

impl Publishers {
    /// Connects `count` links, shared out over `addresses`, with tokens from `first_token`.
    pub(crate) fn connect(
        addresses: &[String],
        count: usize,
        path: Path,
        registry: &Registry,
        first_token: usize,
    ) -> Outcome<Self> {
        let mut links = Vec::new();
        for index in 0..count {
            let address =
                addresses[index % addresses.len()].to_socket_addrs()?.next().ok_or("no address to publish to")?;
            let mut socket = std::net::TcpStream::connect(address)?;
            socket.set_nodelay(true)?;
            if path == Path::Orders {
                write!(socket, "GET {ORDERS_PATH} HTTP/1.1\r\n\r\n")?;
                let mut answer = Vec::new();
                while !answer.ends_with(b"\r\n\r\n") {
                    let mut byte = [0];
                    socket.read_exact(&mut byte)?;
                    answer.push(byte[0]);
                }
            }
            socket.set_nonblocking(true)?;
            let mut socket = TcpStream::from_std(socket);
            registry.register(&mut socket, Token(first_token + index), Interest::READABLE | Interest::WRITABLE)?;
            links.push(Link {
                socket,
                outgoing: Vec::new(),
                written: 0,
                incoming: Vec::new(),
                asked: VecDeque::new(),
                answered: 0,
            });
        }
        Ok(Self { links, path, first_token, buffer: vec![0; 64 * 1024], answer_times: Histogram::new() })
    }

    pub(crate) fn count(&self) -> usize {
        self.links.len()
    }

    /// Requests that link `index` waits for an answer to.
    pub(crate) fn unanswered(&self, index: usize) -> usize {
        self.links[index].asked.len()
    }

    pub(crate) fn all_unanswered(&self) -> usize {
        self.links.iter().map(|link| link.asked.len()).sum()
    }

    /// Answers so far.
    pub(crate) fn answered(&self) -> u64 {
        self.links.iter().map(|link| link.answered).sum()
    }

    /// Publishes messages of one channel and stream through link `index`: one request each, or one for all in a batch.
    pub(crate) fn publish(&mut self, index: usize, messages: &[Message], size: usize) {
        let count = self.links.len();
        let link = &mut self.links[index % count];
        let mut payload = Vec::with_capacity(size);
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
                // Every writer hears of every message: each has its share of the subscribers.
                self.links.iter_mut().for_each(|link| order.write(&mut link.outgoing));
            }
            Path::Batch(path) => {
                let mut body = Vec::with_capacity(messages.len() * (size + 40));
                for message in messages {
                    write!(body, r#"{{"channel":"{}","data":""#, channel_name(message.channel)).ok();
                    message.write(size, &mut body);
                    body.extend_from_slice(b"\"}\n");
                }
                link.post(path, 0, "application/x-ndjson", &body);
            }
            Path::Post(path) => {
                for message in messages {
                    payload.clear();
                    message.write(size, &mut payload);
                    link.post(path, message.channel, "text/plain", &payload);
                }
            }
            Path::Redis => {
                for message in messages {
                    let channel = channel_name(message.channel);
                    write!(link.outgoing, "*3\r\n$7\r\nPUBLISH\r\n${}\r\n{channel}\r\n${size}\r\n", channel.len()).ok();
                    message.write(size, &mut link.outgoing);
                    link.outgoing.extend_from_slice(b"\r\n");
                    link.asked.push_back(now());
                }
            }
        }
    }

    /// Hands to the kernel what is waiting.
    pub(crate) fn flush(&mut self) -> Outcome<()> {
        self.links.iter_mut().try_for_each(Link::flush)
    }

    /// Something happened on the link with this token.
    pub(crate) fn turn(&mut self, token: usize) -> Outcome<()> {
        let link = &mut self.links[token - self.first_token];
        link.flush()?;
        link.receive(&mut self.buffer)?;
        let mut used = 0;
        loop {
            let rest = &link.incoming[used..];
            let length = match self.path {
                Path::Redis => redis_answer(rest)?,
                Path::Post(_) | Path::Batch(_) => http_answer(rest)?,
                Path::Orders => None,
            };
            let Some(length) = length else { break };
            used += length;
            link.answered += 1;
            if let Some(asked) = link.asked.pop_front() {
                self.answer_times.record(now().saturating_sub(asked));
            }
        }
        link.incoming.drain(..used);
        Ok(())
    }
}

impl Link {
    fn post(&mut self, path: &str, channel: u32, kind: &str, body: &[u8]) {
        let (before, after) = path.split_once("{channel}").unwrap_or((path, ""));
        write!(self.outgoing, "POST {before}").ok();
        if before.len() < path.len() {
            write!(self.outgoing, "{CHANNEL_PREFIX}{channel}{after}").ok();
        }
        let length = body.len();
        let head = " HTTP/1.1\r\nHost: localhost\r\nContent-Type: ";
        write!(self.outgoing, "{head}{kind}\r\nContent-Length: {length}\r\n\r\n").ok();
        self.outgoing.extend_from_slice(body);
        self.asked.push_back(now());
    }

    fn flush(&mut self) -> Outcome<()> {
        while self.written < self.outgoing.len() {
            match self.socket.write(&self.outgoing[self.written..]) {
                Ok(count) => self.written += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        self.outgoing.clear();
        self.written = 0;
        Ok(())
    }

    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        loop {
            match self.socket.read(buffer) {
                Ok(0) => {
                    return Err(io::Error::new(ErrorKind::UnexpectedEof, "the server closed a publishing connection"));
                }
                Ok(count) => {
                    self.incoming.extend_from_slice(&buffer[..count]);
                    if count < buffer.len() {
                        return Ok(()); // the socket is empty (epoll(7)), the next arrival a new edge
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }
}

/// The length of the first Redis reply; an error reply is an error.
fn redis_answer(bytes: &[u8]) -> Outcome<Option<usize>> {
    let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else {
        return Ok(None);
    };
    if bytes[0] == b':' { Ok(Some(end + 1)) } else { Err(String::from_utf8_lossy(&bytes[..end]).into()) }
}

/// The length of the first HTTP answer; any status but 2xx is an error.
fn http_answer(bytes: &[u8]) -> Outcome<Option<usize>> {
    let Some(end) = find(bytes, b"\r\n\r\n") else { return Ok(None) };
    if bytes.get(9) != Some(&b'2') {
        return Err(format!("a publish was refused: {}", String::from_utf8_lossy(bytes)).into());
    }
    let body = end + 4;
    let mut chunked = false;
    for line in bytes[..end].split(|byte| *byte == b'\n') {
        let colon = line.iter().position(|byte| *byte == b':').unwrap_or(line.len());
        let (name, value) = (&line[..colon], line.get(colon + 1..).unwrap_or_default());
        if name.eq_ignore_ascii_case(b"content-length") {
            let length = std::str::from_utf8(value)?.trim().parse::<usize>()?;
            return Ok((bytes.len() >= body + length).then_some(body + length));
        }
        chunked |= name.eq_ignore_ascii_case(b"transfer-encoding");
    }
    if chunked {
        return Ok(find(&bytes[body..], b"0\r\n\r\n").map(|last| body + last + 5));
    }
    Ok(Some(body))
}
