//! The parent's side of the reader processes: starts them, sends them commands, and reads their
//! progress.

use std::io::{ErrorKind, Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};

use mio::unix::pipe;
use mio::{Interest, Registry, Token};
use serde_json::{Value, json};

use crate::Outcome;
use crate::dialect::Dialect;
use crate::process;

/// Maximum number of sockets of a reader process; a process may open 20,000 files here.
const PER_READER: usize = 15_000;

/// A different part of 127.0.0.0/8 for each run in this process. The start depends on the process.
static BLOCK: AtomicU16 = AtomicU16::new(0);

/// The subscribers to create.
#[derive(Clone)]
pub(crate) struct ReaderSet {
    pub(crate) ports: Vec<u16>,
    pub(crate) path: String,
    pub(crate) dialect: Dialect,
    pub(crate) subscribers: usize,
    pub(crate) channels: usize,
    /// The number of publisher connections for which the order is checked.
    pub(crate) streams: usize,
    pub(crate) at_once: usize,
    /// Every this many subscribers, one never reads; 0 for none.
    pub(crate) stuck_every: usize,
    /// Whether only one subscriber of each process is parsed, and the bytes of the others are counted. For one
    /// channel whose subscribers all get the same bytes.
    pub(crate) counted: bool,
}

/// All reader processes of a run. They end when this is dropped, because their standard input
/// closes.
pub(crate) struct Readers {
    readers: Vec<Reader>,
    /// Whether the subscribers of each channel are in one reader. Then the counts of readers add
    /// up; otherwise the slowest reader counts.
    partitioned: bool,
}

struct Reader {
    child: Child,
    commands: Option<ChildStdin>,
    output: pipe::Receiver,
    unread: Vec<u8>,
    replies: Vec<Value>,
    completed: u64,
    delivered: u64,
    seen: u64,
}

impl Readers {
    /// Starts as many readers as the subscribers need, with tokens from 0, and sends them
    /// `connect`.
    pub(crate) fn start(reader_set: &ReaderSet, registry: &Registry) -> Outcome<Self> {
        let needed = reader_set.subscribers.div_ceil(PER_READER).max(1);
        // At least one reader per core: with a single one, a server with several threads would wait
        // for the reader.
        let wanted = needed.max(process::cores().min(reader_set.subscribers));
        let partitioned = reader_set.channels > 1;
        // Keep the subscribers of a channel in one reader.
        let suits = |count: &usize| !partitioned || reader_set.channels.is_multiple_of(*count);
        let count = std::iter::once(wanted).chain(needed..=2 * needed).find(suits);
        let Some(count) = count.filter(|_| !partitioned || reader_set.subscribers.is_multiple_of(reader_set.channels))
        else {
            return Err(
                format!("{} channels cannot be shared out evenly over {needed} readers", reader_set.channels).into()
            );
        };
        BLOCK
            .compare_exchange(0, 256 + (std::process::id() % 30_000) as u16 * 2, Ordering::Relaxed, Ordering::Relaxed)
            .ok();
        let block = BLOCK.fetch_add(1, Ordering::Relaxed);
        let mut readers = Vec::new();
        for index in 0..count {
            let first = reader_set.subscribers * index / count;
            let mut reader = Reader::start(registry, Token(index))?;
            reader.command(&json!({
                "do": "connect",
                "ports": reader_set.ports,
                "path": reader_set.path,
                "dialect": reader_set.dialect.name(),
                "first": first,
                "count": reader_set.subscribers * (index + 1) / count - first,
                "total": reader_set.subscribers,
                "channels": reader_set.channels,
                "at_once": reader_set.at_once.div_ceil(count),
                "stuck_every": reader_set.stuck_every,
                "streams": reader_set.streams,
                "counted": reader_set.counted,
                "block": block,
            }))?;
            readers.push(reader);
        }
        Ok(Self { readers, partitioned })
    }

    pub(crate) fn count(&self) -> usize {
        self.readers.len()
    }

    /// Sends the same command to all readers.
    pub(crate) fn command(&mut self, command: &Value) -> Outcome<()> {
        self.readers.iter_mut().try_for_each(|reader| reader.command(command))
    }

    /// Reads the output of reader `index`.
    pub(crate) fn read_output(&mut self, index: usize) -> Outcome<()> {
        self.readers[index].read_output()
    }

    /// One reply from each reader; `None` until all have replied.
    pub(crate) fn replies(&mut self) -> Option<Vec<Value>> {
        if self.readers.iter().any(|reader| reader.replies.is_empty()) {
            return None;
        }
        Some(self.readers.iter_mut().map(|reader| reader.replies.remove(0)).collect())
    }

    /// Messages that all their subscribers have received.
    pub(crate) fn completed(&self) -> u64 {
        let counts = self.readers.iter().map(|reader| reader.completed);
        if self.partitioned { counts.sum() } else { counts.min().unwrap_or(0) }
    }

    pub(crate) fn delivered(&self) -> u64 {
        self.readers.iter().map(|reader| reader.delivered).sum()
    }

    /// Subscribers that have received at least one message.
    pub(crate) fn seen(&self) -> u64 {
        self.readers.iter().map(|reader| reader.seen).sum()
    }

    pub(crate) fn cpu_seconds(&self) -> f64 {
        process::cpu_seconds(&self.readers.iter().map(|reader| reader.child.id()).collect::<Vec<_>>())
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        for reader in &mut self.readers {
            reader.commands = None;
            reader.child.kill().ok();
            reader.child.wait().ok();
        }
    }
}

impl Reader {
    fn start(registry: &Registry, token: Token) -> Outcome<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("--read")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let output = child.stdout.take().ok_or("no standard output")?;
        let mut output = pipe::Receiver::from(output);
        output.set_nonblocking(true)?;
        registry.register(&mut output, token, Interest::READABLE)?;
        let commands = child.stdin.take();
        Ok(Self {
            child,
            commands,
            output,
            unread: Vec::new(),
            replies: Vec::new(),
            completed: 0,
            delivered: 0,
            seen: 0,
        })
    }

    fn command(&mut self, command: &Value) -> Outcome<()> {
        if command["do"] == "restart" {
            (self.completed, self.delivered) = (0, 0);
        }
        let input = self.commands.as_mut().ok_or("the reader is gone")?;
        writeln!(input, "{command}")?;
        Ok(())
    }

    fn read_output(&mut self) -> Outcome<()> {
        let mut buffer = [0; 4096];
        loop {
            match self.output.read(&mut buffer) {
                Ok(0) => return Err("a reader process ended".into()),
                Ok(count) => self.unread.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error.into()),
            }
        }
        let mut from = 0;
        while let Some(length) = self.unread[from..].iter().position(|byte| *byte == b'\n') {
            let line = std::str::from_utf8(&self.unread[from..from + length])?;
            from += length + 1;
            if let Some(reply) = line.strip_prefix("r ") {
                self.replies.push(serde_json::from_str(reply)?);
            } else if let Some(progress) = line.strip_prefix("p ") {
                let mut numbers = progress.split(' ').map(|number| number.parse().unwrap_or(0));
                let mut number = || numbers.next().unwrap_or(0);
                (self.completed, self.delivered, self.seen) = (number(), number(), number());
            }
        }
        self.unread.drain(..from);
        Ok(())
    }
}
