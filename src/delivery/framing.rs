//! How messages travel on a connection: in WebSocket frames or as an event stream. A framing knows neither what a
//! message says (that is a dialect's business) nor any socket.
//!
//! A framing has no state, so that a frame can be written to many sockets. The chunks of an event stream are such a framing;
//! compression without a shared context fits between [`Framing::begin`] and [`Framing::end`] as well.

pub mod event_stream;
pub mod websocket;

use crate::close::Close;

/// How a message is to be understood.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// UTF-8.
    Text,
    /// Any bytes.
    Binary,
}

/// What carries a connection's messages, to people and in metrics.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Transport {
    /// Frames both ways. The client answers pings, so its silence means that it is gone.
    WebSocket,
    /// Events one way (Server-Sent Events).
    EventStream,
}

/// One way to frame messages.
pub trait Framing: Sync {
    /// What it belongs to.
    fn transport(&self) -> Transport;

    /// Begins a frame at the end of `out`; the message is appended next. Returns where the frame begins.
    fn begin(&self, out: &mut Vec<u8>) -> usize;

    /// Completes the frame that begins at `start`: all that was appended since [`Framing::begin`] is its message.
    fn end(&self, kind: Kind, start: usize, out: &mut Vec<u8>);

    /// Appends a whole frame.
    fn write(&self, kind: Kind, message: &[u8], out: &mut Vec<u8>) {
        let start = self.begin(out);
        out.extend_from_slice(message);
        self.end(kind, start, out);
    }

    /// Appends what keeps a quiet connection alive, and asks the client whether it is there if it can answer.
    fn write_keepalive(&self, out: &mut Vec<u8>);

    /// Appends the last bytes before the connection is closed.
    fn write_close(&self, close: &Close, out: &mut Vec<u8>);
}

/// Appends messages to a buffer, each in a frame.
pub struct FrameWriter<'a> {
    framing: &'static dyn Framing,
    out: &'a mut Vec<u8>,
}

impl<'a> FrameWriter<'a> {
    /// Appends to `out`.
    pub fn new(framing: &'static dyn Framing, out: &'a mut Vec<u8>) -> Self {
        Self { framing, out }
    }

    /// Appends a message.
    pub fn message(&mut self, kind: Kind, message: &[u8]) {
        self.framing.write(kind, message, self.out);
    }

    /// Appends the text that `write` appends, as one message.
    pub fn text(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        let start = self.framing.begin(self.out);
        write(self.out);
        self.framing.end(Kind::Text, start, self.out);
    }

    /// Appends the framing's own keepalive.
    pub fn keepalive(&mut self) {
        self.framing.write_keepalive(self.out);
    }

    /// Appends the framing's own close.
    pub fn close(&mut self, close: &Close) {
        self.framing.write_close(close, self.out);
    }
}
