//! A publishing connection: sends requests, receives answers, and counts outstanding ones.
//! `publishers.rs` writes the requests.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;

use mio::net::TcpStream;
use mio::{Interest, Registry, Token};

use crate::Outcome;
use crate::frames::find;
use crate::message::now;

/// A connection that publishes.
pub(crate) struct PublishConnection {
    socket: TcpStream,
    /// Bytes to write. For a server that takes one request at a time, further requests wait in
    /// `waiting`.
    pub(crate) outgoing: Vec<u8>,
    written: usize,
    incoming: Vec<u8>,
    asked: VecDeque<u64>,
    pub(crate) answered: u64,
    one_at_a_time: Option<OneAtATime>,
}

/// For a server that closes the connection after each answer: one request per connection, in order.
struct OneAtATime {
    waiting: VecDeque<Vec<u8>>,
    under_way: bool,
    closed: bool,
    address: SocketAddr,
    registry: Registry,
    token: Token,
}

/// The syntax of answers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answers {
    Http,
    Redis,
    /// The server sends no answers.
    None,
}

impl PublishConnection {
    /// Takes over a connected socket.
    pub(crate) fn new(socket: std::net::TcpStream, registry: &Registry, token: Token) -> Outcome<Self> {
        Ok(Self {
            socket: register(socket, registry, token)?,
            outgoing: Vec::new(),
            written: 0,
            incoming: Vec::new(),
            asked: VecDeque::new(),
            answered: 0,
            one_at_a_time: None,
        })
    }

    /// From here on, each request waits for the answer to the previous one.
    pub(crate) fn take_turns(&mut self, address: SocketAddr, registry: &Registry, token: Token) -> Outcome<()> {
        let registry = registry.try_clone()?;
        let serial = OneAtATime { waiting: VecDeque::new(), under_way: false, closed: false, address, registry, token };
        self.one_at_a_time = Some(serial);
        Ok(())
    }

    /// The number of requests that wait for an answer.
    pub(crate) fn unanswered(&self) -> usize {
        self.asked.len()
    }

    /// Adds the request that `write` appends; its time counts from now.
    pub(crate) fn ask(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        match &mut self.one_at_a_time {
            None => write(&mut self.outgoing),
            Some(serial) => {
                let mut request = Vec::new();
                write(&mut request);
                serial.waiting.push_back(request);
            }
        }
        self.asked.push_back(now());
    }

    /// Writes the waiting bytes to the socket.
    pub(crate) fn flush(&mut self) -> Outcome<()> {
        self.next_turn()?;
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

    fn next_turn(&mut self) -> Outcome<()> {
        let Some(serial) = &mut self.one_at_a_time else { return Ok(()) };
        if serial.under_way || serial.waiting.is_empty() {
            return Ok(());
        }
        if std::mem::take(&mut serial.closed) {
            self.socket = register(std::net::TcpStream::connect(serial.address)?, &serial.registry, serial.token)?;
        }
        serial.under_way = true;
        self.outgoing.extend(serial.waiting.pop_front().unwrap_or_default());
        Ok(())
    }

    /// Reads answers; calls `record` with the time that each answer took.
    pub(crate) fn receive(&mut self, buffer: &mut [u8], kind: Answers, mut record: impl FnMut(u64)) -> Outcome<()> {
        self.read(buffer)?;
        let mut used = 0;
        loop {
            let rest = &self.incoming[used..];
            let answer = match kind {
                Answers::Redis => redis_answer(rest)?,
                Answers::Http => http_answer(rest)?,
                Answers::None => None,
            };
            let Some(answer) = answer else { break };
            used += answer.length;
            self.answered += 1;
            if let Some(asked) = self.asked.pop_front() {
                record(now().saturating_sub(asked));
            }
            if let Some(serial) = &mut self.one_at_a_time {
                serial.under_way = false;
                serial.closed |= answer.closes;
            }
        }
        self.incoming.drain(..used);
        self.flush()
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        loop {
            match self.socket.read(buffer) {
                Ok(0) => {
                    return match &mut self.one_at_a_time {
                        Some(serial) if !serial.under_way || !self.incoming.is_empty() => {
                            serial.closed = true;
                            Ok(())
                        }
                        _ => Err(io::Error::new(ErrorKind::UnexpectedEof, "the server closed a publishing connection")),
                    };
                }
                Ok(count) => {
                    self.incoming.extend_from_slice(&buffer[..count]);
                    if count < buffer.len() {
                        return Ok(()); // the socket is empty; the next arrival is a new edge (epoll(7))
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }
}

fn register(socket: std::net::TcpStream, registry: &Registry, token: Token) -> Outcome<TcpStream> {
    socket.set_nodelay(true)?;
    socket.set_nonblocking(true)?;
    let mut socket = TcpStream::from_std(socket);
    registry.register(&mut socket, token, Interest::READABLE | Interest::WRITABLE)?;
    Ok(socket)
}

/// A complete answer.
struct Answer {
    length: usize,
    /// Whether the server closes the connection after it.
    closes: bool,
}

/// The first Redis reply; an error reply is an error.
fn redis_answer(bytes: &[u8]) -> Outcome<Option<Answer>> {
    let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else {
        return Ok(None);
    };
    if bytes[0] != b':' {
        return Err(String::from_utf8_lossy(&bytes[..end]).into());
    }
    Ok(Some(Answer { length: end + 1, closes: false }))
}

/// The first HTTP response; a status other than 2xx is an error.
fn http_answer(bytes: &[u8]) -> Outcome<Option<Answer>> {
    let Some(end) = find(bytes, b"\r\n\r\n") else { return Ok(None) };
    if bytes.get(9) != Some(&b'2') {
        return Err(format!("a publish was refused: {}", String::from_utf8_lossy(bytes)).into());
    }
    let body = end + 4;
    let (mut chunked, mut closes, mut length) = (false, false, 0);
    for line in bytes[..end].split(|byte| *byte == b'\n') {
        let colon = line.iter().position(|byte| *byte == b':').unwrap_or(line.len());
        let (name, value) = (&line[..colon], line.get(colon + 1..).unwrap_or_default().trim_ascii());
        if name.eq_ignore_ascii_case(b"content-length") {
            length = std::str::from_utf8(value)?.parse::<usize>()?;
        }
        chunked |= name.eq_ignore_ascii_case(b"transfer-encoding");
        closes |= name.eq_ignore_ascii_case(b"connection") && value.eq_ignore_ascii_case(b"close");
    }
    if chunked {
        return Ok(find(&bytes[body..], b"0\r\n\r\n").map(|last| Answer { length: body + last + 5, closes }));
    }
    Ok((bytes.len() >= body + length).then_some(Answer { length: body + length, closes }))
}
