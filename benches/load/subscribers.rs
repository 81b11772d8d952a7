//! A reader process: many subscribers on one thread and one epoll, controlled by lines on its
//! standard input.
//!
//! Commands are the JSON objects `connect`, `restart` and `finish`; replies are lines `r {…}`.
//! Between them, lines `p COMPLETED DELIVERED SEEN` report the progress of the slowest subscriber
//! to the publisher. The process ends when its standard input closes, so it cannot outlive the
//! program that started it.

use std::io::{self, BufRead, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token, Waker};
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};

use crate::Outcome;
use crate::byte_count::ByteCount;
use crate::delivery_check::DeliveryCheck;
use crate::dialect::{Dialect, Step, Stream};
use crate::histogram::Histogram;
use crate::message::{channel_name, now};

/// Maximum number of connections from one source address; the kernel has 28,000 ports for each.
const PER_ADDRESS: usize = 20_000;

/// The size of the buffer for one read(), in bytes.
const READ_BUFFER: usize = 256 * 1024;

/// The receive buffer of a stuck subscriber in bytes: small, so that the data accumulates in the
/// server and not in the kernel.
const STUCK_BUFFER: usize = 4096;

/// Maximum delay before deliveries are reported.
const REPORT_WITHIN: Duration = Duration::from_millis(10);

const WAKE: Token = Token(usize::MAX);

/// The connection of a subscriber.
struct Subscriber {
    socket: Option<TcpStream>,
    channel: u32,
    started: Instant,
    state: State,
    /// Bytes of an incomplete frame or response.
    rest: Vec<u8>,
    stream: Stream,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Waiting,
    Connecting,
    Joining,
    Open,
    /// Has joined, and reads nothing from then on.
    Stuck,
    Closed,
}

/// The parameters of `connect`.
struct Plan {
    ports: Vec<u16>,
    path: String,
    dialect: Dialect,
    /// The index of this reader's first subscriber among all subscribers.
    first: usize,
    count: usize,
    total: usize,
    channels: usize,
    at_once: usize,
    /// Every this many subscribers, one never reads; 0 for none.
    stuck_every: usize,
    streams: usize,
    /// Whether only one subscriber is parsed.
    counted: bool,
    /// The part of 127.0.0.0/8 to connect from. It changes with each run, because closed ports stay
    /// reserved for a minute.
    block: u16,
}

/// Runs a reader process.
pub(crate) fn run() -> Outcome<()> {
    let poll = Poll::new()?;
    let waker = Arc::new(Waker::new(poll.registry(), WAKE)?);
    let (sender, commands) = channel();
    std::thread::spawn(move || {
        for line in io::stdin().lock().lines() {
            let Ok(line) = line else { break };
            if sender.send(line).is_err() || waker.wake().is_err() {
                break;
            }
        }
        drop(sender);
        waker.wake().ok();
    });
    Reader::new(poll).serve(&commands)
}

struct Reader {
    poll: Poll,
    plan: Option<Plan>,
    subscribers: Vec<Subscriber>,
    check: DeliveryCheck,
    /// For the subscribers that are not parsed.
    byte_count: Option<ByteCount>,
    buffer: Vec<u8>,
    /// The next subscriber to connect, and the number of handshakes under way.
    upcoming: usize,
    in_flight: usize,
    joined: usize,
    failed: usize,
    closed: usize,
    stuck_closed: usize,
    connect_answered: bool,
    connecting_since: Instant,
    handshakes: Histogram,
    reported: (u64, u64, u64),
}

impl Reader {
    fn new(poll: Poll) -> Self {
        Self {
            poll,
            plan: None,
            subscribers: Vec::new(),
            check: DeliveryCheck::new(&[], 1),
            byte_count: None,
            buffer: vec![0; READ_BUFFER],
            upcoming: 0,
            in_flight: 0,
            joined: 0,
            failed: 0,
            closed: 0,
            stuck_closed: 0,
            connect_answered: false,
            connecting_since: Instant::now(),
            handshakes: Histogram::new(),
            reported: (0, 0, 0),
        }
    }

    fn serve(&mut self, commands: &Receiver<String>) -> Outcome<()> {
        let mut events = Events::with_capacity(1024);
        loop {
            let timeout = self.has_unreported().then_some(REPORT_WITHIN);
            if let Err(error) = self.poll.poll(&mut events, timeout)
                && error.kind() != io::ErrorKind::Interrupted
            {
                return Err(error.into());
            }
            for event in &events {
                match event.token() {
                    WAKE => {}
                    Token(index) if self.subscribers[index].state == State::Stuck => {
                        self.stuck_closed += usize::from(event.is_error() || event.is_read_closed());
                    }
                    Token(index) => self.handle(index),
                }
            }
            self.connect_more();
            if events.is_empty() || self.urgent() {
                self.report_progress()?;
            }
            loop {
                match commands.try_recv() {
                    Ok(line) => self.obey(&serde_json::from_str(&line)?)?,
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return Ok(()),
                }
            }
        }
    }

    fn obey(&mut self, command: &Value) -> Outcome<()> {
        match command["do"].as_str() {
            Some("connect") => self.begin(Plan::parse(command)?),
            Some("restart") => {
                self.check.restart(&numbers(&command["base"]));
                self.reported = (0, 0, self.check.seen);
                answer(&json!({}))
            }
            Some("finish") => {
                let subscribers = &self.subscribers;
                let mut summary = self.check.summary(&numbers(&command["last"]), |index| {
                    matches!(subscribers[index].state, State::Open | State::Closed)
                });
                // What the kernel has discarded was not the same for all.
                let differing = self.byte_count.as_ref().map_or(0, ByteCount::differing);
                summary["changed"] = json!(summary["changed"].as_u64().unwrap_or(0) + differing as u64);
                summary["closed"] = json!(self.closed);
                summary["stuck_closed"] = json!(self.stuck_closed);
                answer(&summary)
            }
            _ => Err(format!("unknown command {command}").into()),
        }
    }

    fn begin(&mut self, plan: Plan) -> Outcome<()> {
        let mut channels = Vec::with_capacity(plan.count);
        for index in plan.first..plan.first + plan.count {
            // Neighbours share a channel, so that the subscribers of a channel are not spread over
            // reader processes.
            let channel = (index * plan.channels / plan.total) as u32;
            let stuck = plan.stuck(index);
            channels.push((!stuck).then_some(channel));
            self.subscribers.push(Subscriber {
                socket: None,
                channel,
                started: Instant::now(),
                state: State::Waiting,
                rest: Vec::new(),
                stream: Stream::default(),
            });
        }
        self.check = DeliveryCheck::new(&channels, plan.streams);
        self.byte_count = plan.counted.then(|| ByteCount::new(plan.count));
        self.plan = Some(plan);
        self.connecting_since = Instant::now();
        self.connect_more();
        Ok(())
    }

    /// Keeps as many handshakes under way as the plan allows, and replies to `connect` after the
    /// last one.
    fn connect_more(&mut self) {
        let Some(plan) = &self.plan else { return };
        let at_once = plan.at_once;
        while self.in_flight < at_once && self.upcoming < self.subscribers.len() {
            let index = self.upcoming;
            self.upcoming += 1;
            self.in_flight += 1;
            if self.connect(index).is_err() {
                self.end(index);
            }
        }
        if !self.connect_answered && self.joined + self.failed >= self.subscribers.len() {
            self.connect_answered = true;
            let elapsed = self.connecting_since.elapsed().as_secs_f64();
            let report = json!({ "joined": self.joined, "failed": self.failed, "seconds": elapsed, "handshakes": self.handshakes.to_json() });
            answer(&report).ok();
        }
    }

    fn connect(&mut self, index: usize) -> Outcome<()> {
        let Some(plan) = &self.plan else {
            return Err("no plan".into());
        };
        let number = plan.first + index;
        let [high, low] = plan.block.to_be_bytes();
        let source = Ipv4Addr::new(127, high, low, 1 + (number / PER_ADDRESS) as u8);
        let target = SocketAddr::from(([127, 0, 0, 1], plan.ports[number % plan.ports.len()]));
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        if plan.stuck(number) {
            socket.set_recv_buffer_size(STUCK_BUFFER)?;
        }
        socket.bind(&SocketAddr::from((source, 0)).into())?;
        let subscriber = &mut self.subscribers[index];
        subscriber.started = Instant::now();
        match socket.connect(&target.into()) {
            Err(error) if error.raw_os_error() != Some(EINPROGRESS) => return Err(error.into()),
            _ => {}
        }
        let mut socket = TcpStream::from_std(socket.into());
        self.poll.registry().register(&mut socket, Token(index), Interest::READABLE | Interest::WRITABLE)?;
        subscriber.socket = Some(socket);
        subscriber.state = State::Connecting;
        Ok(())
    }

    /// Handles an event on a subscriber's socket.
    fn handle(&mut self, index: usize) {
        let outcome = match self.subscribers[index].state {
            State::Waiting | State::Stuck | State::Closed => Ok(()),
            State::Connecting => self.greet(index),
            State::Open if self.is_counted(index) => self.discard(index),
            State::Joining | State::Open => self.read(index),
        };
        if outcome.is_err() {
            self.end(index);
        }
    }

    fn greet(&mut self, index: usize) -> Outcome<()> {
        let Some(plan) = &self.plan else {
            return Ok(());
        };
        let subscriber = &mut self.subscribers[index];
        let Some(socket) = &mut subscriber.socket else {
            return Ok(());
        };
        match socket.peer_addr() {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotConnected => {
                return socket.take_error()?.map_or(Ok(()), |error| Err(error.into()));
            }
            Err(error) => return Err(error.into()),
        }
        let path = plan.path.replace("{channel}", &channel_name(subscriber.channel));
        socket.write_all(plan.dialect.request(&path).as_bytes())?;
        subscriber.state = State::Joining;
        self.read(index)
    }

    /// Whether only the bytes of a subscriber are counted.
    fn is_counted(&self, index: usize) -> bool {
        self.byte_count.is_some() && index != ByteCount::PARSED
    }

    /// Counts the bytes of a subscriber that is not parsed.
    fn discard(&mut self, index: usize) -> Outcome<()> {
        if let (Some(byte_count), Some(socket)) = (&mut self.byte_count, &self.subscribers[index].socket) {
            byte_count.discard(index, socket)?;
            self.count(index, now());
        }
        Ok(())
    }

    /// Counts the messages of a subscriber that is not parsed.
    fn count(&mut self, index: usize, moment: u64) {
        let Some(byte_count) = &mut self.byte_count else { return };
        while let Some(sequence) = byte_count.next(index) {
            self.check.count(index, self.subscribers[index].channel, sequence, moment);
        }
    }

    fn read(&mut self, index: usize) -> Outcome<()> {
        loop {
            let subscriber = &mut self.subscribers[index];
            let Some(socket) = &mut subscriber.socket else {
                return Ok(());
            };
            let carried = subscriber.rest.len();
            if carried + 4096 > self.buffer.len() {
                self.buffer.resize(2 * self.buffer.len(), 0);
            }
            self.buffer[..carried].copy_from_slice(&subscriber.rest);
            let space = self.buffer.len() - carried;
            let received = match socket.read(&mut self.buffer[carried..]) {
                Ok(0) => return Err("closed".into()),
                Ok(received) => received,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            let used = self.take(index, carried + received)?;
            let subscriber = &mut self.subscribers[index];
            subscriber.rest.clear();
            subscriber.rest.extend_from_slice(&self.buffer[used..carried + received]);
            if subscriber.state == State::Stuck || received < space {
                // A short read has emptied the socket (epoll(7)): the next arrival is a new edge,
                // so no second read() is needed.
                return Ok(());
            }
        }
    }

    /// Parses as many of the first `end` bytes of the buffer as possible; returns the number of
    /// consumed bytes.
    fn take(&mut self, index: usize, end: usize) -> Outcome<usize> {
        let Some(plan) = &self.plan else {
            return Ok(end);
        };
        let moment = now();
        let mut used = 0;
        while used < end {
            let subscriber = &mut self.subscribers[index];
            let (channel, bytes) = (subscriber.channel, &self.buffer[used..end]);
            let check = &mut self.check;
            let newest = check.newest(index);
            let step = if subscriber.state == State::Joining {
                plan.dialect.join(bytes, channel, &mut subscriber.stream)?
            } else {
                plan.dialect
                    .read(bytes, &mut subscriber.stream, |payload| check.deliver(index, channel, payload, moment))?
            };
            match step {
                Step::Incomplete => break,
                Step::Used(count) => {
                    used += count;
                    if let (State::Open, Some(byte_count)) = (subscriber.state, &mut self.byte_count) {
                        let message = Some(self.check.newest(index)).filter(|sequence| *sequence != newest);
                        byte_count.parsed(count, message);
                    }
                }
                Step::Reply(count, reply) => {
                    used += count;
                    if let Some(socket) = &mut subscriber.socket {
                        socket.write_all(&reply)?;
                    }
                }
                Step::Joined(count) => {
                    used += count;
                    subscriber.state = if plan.stuck(plan.first + index) { State::Stuck } else { State::Open };
                    self.joined += 1;
                    self.in_flight -= 1;
                    self.handshakes.record(subscriber.started.elapsed().as_nanos() as u64);
                    if index != ByteCount::PARSED
                        && let Some(byte_count) = &mut self.byte_count
                    {
                        byte_count.add(index, end - used);
                        used = end;
                    }
                }
            }
        }
        // What is known by now, the others may have received before.
        if self.byte_count.is_some() {
            (0..self.subscribers.len()).for_each(|other| self.count(other, moment));
        }
        Ok(used)
    }

    fn end(&mut self, index: usize) {
        let subscriber = &mut self.subscribers[index];
        if matches!(subscriber.state, State::Open) {
            self.closed += 1;
        } else {
            self.failed += 1;
            self.in_flight -= 1;
        }
        subscriber.state = State::Closed;
        subscriber.socket = None;
    }

    fn progress(&self) -> (u64, u64, u64) {
        (self.check.completed, self.check.delivered, self.check.seen)
    }

    fn has_unreported(&self) -> bool {
        self.progress() != self.reported
    }

    /// Whether the publisher may be waiting for this progress. Other deliveries are reported in
    /// bulk, which keeps the reader cheap.
    fn urgent(&self) -> bool {
        let (completed, delivered, seen) = self.reported;
        completed != self.check.completed || seen != self.check.seen || self.check.delivered > delivered + 1000
    }

    fn report_progress(&mut self) -> Outcome<()> {
        if self.has_unreported() {
            self.reported = self.progress();
            let mut output = io::stdout().lock();
            writeln!(output, "p {} {} {}", self.reported.0, self.reported.1, self.reported.2)?;
            output.flush()?;
        }
        Ok(())
    }
}

/// The error number of Linux for a connection in progress; `io::ErrorKind` has no stable name for
/// it.
const EINPROGRESS: i32 = 115;

impl Plan {
    fn parse(command: &Value) -> Outcome<Plan> {
        let number = |name: &str| {
            command[name].as_u64().map(|value| value as usize).ok_or_else(|| format!("connect lacks {name}"))
        };
        Ok(Plan {
            ports: numbers(&command["ports"]).into_iter().map(|port| port as u16).collect(),
            path: command["path"].as_str().unwrap_or_default().to_owned(),
            dialect: Dialect::parse(command["dialect"].as_str().unwrap_or_default())?,
            first: number("first")?,
            count: number("count")?,
            total: number("total")?,
            channels: number("channels")?,
            at_once: number("at_once")?,
            stuck_every: number("stuck_every")?,
            streams: number("streams")?,
            counted: command["counted"] == true,
            block: number("block")? as u16,
        })
    }

    fn stuck(&self, number: usize) -> bool {
        self.stuck_every > 0 && number.is_multiple_of(self.stuck_every)
    }
}

fn numbers(list: &Value) -> Vec<u32> {
    list.as_array().into_iter().flatten().filter_map(|value| Some(value.as_u64()? as u32)).collect()
}

fn answer(value: &Value) -> Outcome<()> {
    let mut output = io::stdout().lock();
    writeln!(output, "r {value}")?;
    output.flush()?;
    Ok(())
}
