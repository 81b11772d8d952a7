//! How messages travel on a connection: in WebSocket frames or as an event stream. A framing knows
//! neither the content of a message (that is the dialect) nor sockets.
//!
//! A framing has no state, so that a frame can be written to many sockets. HTTP chunking is part of
//! the event-stream framing, as compression without a context is part of one
//! for WebSockets.

mod deflate;
pub mod deflated_websocket;
pub mod event_stream;
pub mod websocket;

/// The kind of a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// UTF-8.
    Text,
    /// Any bytes.
    Binary,
}

/// The transport of a connection, as metrics and logs name it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Transport {
    /// Frames in both directions. The client answers pings, so silence means that it is gone.
    WebSocket,
    /// Events to the client only (Server-Sent Events).
    EventStream,
}

/// One way to frame messages.
pub trait Framing: Sync {
    /// The transport of this framing.
    fn transport(&self) -> Transport;

    /// Begins a frame at the end of `out`; the message is appended next. Returns the start of the
    /// frame.
    fn begin(&self, out: &mut Vec<u8>) -> usize;

    /// Completes the frame that begins at `start`. Everything appended since [`Framing::begin`] is
    /// its message.
    fn end(&self, kind: Kind, start: usize, out: &mut Vec<u8>);

    /// Appends a whole frame.
    fn write(&self, kind: Kind, message: &[u8], out: &mut Vec<u8>) {
        let start = self.begin(out);
        out.extend_from_slice(message);
        self.end(kind, start, out);
    }

    /// Appends a keepalive for a quiet connection: a ping, if the client can answer it.
    fn write_keepalive(&self, out: &mut Vec<u8>);

    /// Appends the last bytes before the connection is closed. `code` is the close code of the
    /// dialect, if it has one.
    fn write_close(&self, code: Option<u16>, reason: &str, out: &mut Vec<u8>);
}

/// Appends messages to a buffer, each in a frame.
pub struct FrameWriter<'a> {
    framing: &'static dyn Framing,
    out: &'a mut Vec<u8>,
}

impl<'a> FrameWriter<'a> {
    /// Creates a writer that appends to `out`.
    pub fn new(framing: &'static dyn Framing, out: &'a mut Vec<u8>) -> Self {
        Self { framing, out }
    }

    /// Appends a message.
    pub fn message(&mut self, kind: Kind, message: &[u8]) {
        self.framing.write(kind, message, self.out);
    }

    /// Appends the text that `write` appends, as one message.
    pub fn text(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        self.framed(Kind::Text, write);
    }

    /// Appends the bytes that `write` appends, as one message.
    pub fn binary(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        self.framed(Kind::Binary, write);
    }

    fn framed(&mut self, kind: Kind, write: impl FnOnce(&mut Vec<u8>)) {
        let start = self.framing.begin(self.out);
        write(self.out);
        self.framing.end(kind, start, self.out);
    }

    /// Appends the keepalive of the framing.
    pub fn keepalive(&mut self) {
        self.framing.write_keepalive(self.out);
    }

    /// Appends the close of the framing.
    pub fn close(&mut self, code: Option<u16>, reason: &str) {
        self.framing.write_close(code, reason, self.out);
    }
}
