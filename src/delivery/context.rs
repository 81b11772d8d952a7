//! What all connections of a thread share: buffers, a clock, counts. Only that thread touches it, so nothing is locked.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::sync::Arc;

use super::batch::EncodedBatch;
use super::clock::Seconds;
use super::keepalive::Times;
use super::pace::Pace;
use crate::app::App;
use crate::transport::socket::Socket;

/// The bytes that are read from a socket at once.
const READ_BYTES: usize = 64 << 10;

/// What a thread's connections share.
pub struct Context {
    /// What the whole instance shares.
    pub app: Arc<App>,
    /// The turns of clients that catch up.
    pub pace: Pace,
    now: Cell<Seconds>,
    alive: Cell<usize>,
    /// What is not in the metrics yet: counted here, where it costs no atomic operation.
    written: Cell<Written>,
    /// For the batches of one connection, used in its turn.
    pub(super) scratch: RefCell<EncodedBatch>,
    /// What is read from a socket.
    pub(super) read_buffer: RefCell<Box<[u8]>>,
}

/// What sockets took.
#[derive(Clone, Copy, Default)]
struct Written {
    messages: u64,
    writes: u64,
    bytes: u64,
}

/// A connection that exists, until this is dropped.
pub struct Alive(Rc<Context>);

impl Context {
    pub(super) fn new(app: Arc<App>) -> Rc<Self> {
        Rc::new(Self {
            pace: Pace::new(),
            now: Cell::new(Seconds(0)),
            alive: Cell::new(0),
            written: Cell::default(),
            scratch: RefCell::new(EncodedBatch::new(app.outgoing.clone())),
            read_buffer: RefCell::new(vec![0; READ_BYTES].into()),
            app,
        })
    }

    /// The clock of the thread, which advances about once a second.
    pub fn now(&self) -> Seconds {
        self.now.get()
    }

    pub(super) fn advance_clock(&self, seconds: u32) {
        self.now.set(Seconds(self.now.get().0.saturating_add(seconds)));
    }

    /// How long clients are waited for: for a page of history as long as others for a response.
    pub(super) fn times(&self) -> Times {
        let limits = &self.app.limits;
        Times {
            heartbeat: limits.heartbeat_seconds,
            page: u32::try_from(2 * limits.request_time.as_secs()).unwrap_or(u32::MAX),
        }
    }

    /// Counts a connection for as long as it exists.
    pub(super) fn count_alive(self: &Rc<Self>) -> Alive {
        self.alive.set(self.alive.get() + 1);
        Alive(self.clone())
    }

    /// How many connections exist.
    pub(super) fn alive(&self) -> usize {
        self.alive.get()
    }

    /// Writes what the socket takes now, and counts it. Never waits.
    pub(super) fn write(&self, socket: &Socket, bytes: &[u8]) -> io::Result<usize> {
        let taken = socket.try_write(bytes);
        let mut counted = self.written.get();
        counted.writes += 1;
        counted.bytes += taken.as_ref().map_or(0, |&taken| taken as u64);
        self.written.set(counted);
        taken
    }

    pub(super) fn count_delivered(&self, messages: u32) {
        let mut counted = self.written.get();
        counted.messages += u64::from(messages);
        self.written.set(counted);
    }

    /// Hands what was counted to the metrics.
    pub(super) fn publish_counts(&self) {
        let Written { messages, writes, bytes } = self.written.take();
        self.app.metrics.messages_out.inc_by(messages);
        self.app.metrics.writes.inc_by(writes);
        self.app.metrics.bytes_out.inc_by(bytes);
    }
}

impl Alive {
    pub(super) fn context(&self) -> &Rc<Context> {
        &self.0
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.alive.set(self.0.alive.get() - 1);
    }
}
