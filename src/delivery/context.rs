//! The state that all connections of a thread share: buffers, a clock, counters. Only that thread
//! uses it, so nothing is locked.

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

/// The size of the read buffer, in bytes.
const READ_BYTES: usize = 64 << 10;

/// The state that the connections of a thread share.
pub struct Context {
    /// The state that the whole instance shares.
    pub app: Arc<App>,
    /// Limits the time for clients that catch up.
    pub pace: Pace,
    now: Cell<Seconds>,
    alive: Cell<usize>,
    /// Counters that are not in the metrics yet. Counting here needs no atomic operation.
    written: Cell<WriteCounts>,
    /// Scratch batch for per-connection encoding, reused by all.
    pub(super) scratch: RefCell<EncodedBatch>,
    /// Read buffer, reused by all connections.
    pub(super) read_buffer: RefCell<Box<[u8]>>,
}

/// Counters of writes.
#[derive(Clone, Copy, Default)]
struct WriteCounts {
    messages: u64,
    writes: u64,
    bytes: u64,
}

/// Counts a connection as existing until dropped.
pub struct ConnectionCount(Rc<Context>);

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

    /// The time of the thread, which advances about once a second.
    pub fn now(&self) -> Seconds {
        self.now.get()
    }

    pub(super) fn advance_clock(&self, seconds: u32) {
        self.now.set(Seconds(self.now.get().0.saturating_add(seconds)));
    }

    /// Timeouts. For a page, the same as for reading an HTTP response.
    pub(super) fn times(&self) -> Times {
        let limits = &self.app.limits;
        Times {
            heartbeat: limits.heartbeat_seconds,
            page: u32::try_from(2 * limits.request_time.as_secs()).unwrap_or(u32::MAX),
        }
    }

    /// Counts a connection until the result is dropped.
    pub(super) fn count_alive(self: &Rc<Self>) -> ConnectionCount {
        self.alive.set(self.alive.get() + 1);
        ConnectionCount(self.clone())
    }

    /// The number of existing connections.
    pub(super) fn alive(&self) -> usize {
        self.alive.get()
    }

    /// Writes as many bytes as the socket takes now, and counts them. Never waits.
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

    /// Adds the counters to the metrics.
    pub(super) fn flush_counts(&self) {
        let WriteCounts { messages, writes, bytes } = self.written.take();
        self.app.metrics.messages_out.inc_by(messages);
        self.app.metrics.writes.inc_by(writes);
        self.app.metrics.bytes_out.inc_by(bytes);
    }
}

impl ConnectionCount {
    pub(super) fn context(&self) -> &Rc<Context> {
        &self.0
    }
}

impl Drop for ConnectionCount {
    fn drop(&mut self) {
        self.0.alive.set(self.0.alive.get() - 1);
    }
}
