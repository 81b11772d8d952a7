//! The connection that hears messages, as bytes: opened, logged in, and read frame by frame. What the frames mean is
//! `ear.rs`. It has a reader of its own, since hearing is most of what an instance does with Redis: the general client
//! builds a tree of values for each message, which costs several times as much as relaying it.

use std::io;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};

use super::connection::{Address, CONNECT_TIMEOUT, Stream};
use super::resp::{self, Frame, Malformed};

/// How much is read at once; a buffer that grew far beyond, for a large message, is given back.
const READ: usize = 64 << 10;
const KEPT: usize = 1 << 20;

/// Why the connection can't be used, or be used any longer.
#[derive(Debug, thiserror::Error)]
pub(super) enum LineError {
    /// The network's or the system's reason.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// Redis does not let us in or subscribe.
    #[error("Redis refused: {0}")]
    Refused(String),
    /// The other end is no Redis.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// The other end closed.
    #[error("the connection was closed")]
    Closed,
}

/// An open connection.
pub(super) struct Line {
    reader: ReadHalf<Box<dyn Stream>>,
    writer: WriteHalf<Box<dyn Stream>>,
    incoming: BytesMut,
    outgoing: BytesMut,
}

impl Line {
    /// Connects and logs in, within the time that connecting may take.
    pub(super) async fn open(address: &Address) -> Result<Self, LineError> {
        tokio::time::timeout(CONNECT_TIMEOUT, Self::try_open(address))
            .await
            .unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "no answer in time").into()))
    }

    async fn try_open(address: &Address) -> Result<Self, LineError> {
        let (reader, writer) = tokio::io::split(address.stream().await?);
        let mut line = Self { reader, writer, incoming: BytesMut::new(), outgoing: BytesMut::new() };
        let credentials = address.credentials();
        match credentials.password() {
            Some(password) => {
                line.send(&["HELLO", "3", "AUTH", credentials.username().unwrap_or("default"), password]);
            }
            None => line.send(&["HELLO", "3"]),
        }
        let mut answered = false;
        while !answered {
            line.exchange().await?;
            line.frames(|_| answered = true)?;
        }
        Ok(line)
    }

    /// Queues a command.
    pub(super) fn send(&mut self, parts: &[impl AsRef<str>]) {
        resp::write_command(parts.iter().map(AsRef::as_ref), &mut self.outgoing);
    }

    /// Waits until something could be read or written. May be dropped at any time without losing anything.
    pub(super) async fn exchange(&mut self) -> Result<(), LineError> {
        let Self { reader, writer, incoming, outgoing } = self;
        incoming.reserve(READ);
        tokio::select! {
            written = writer.write_buf(outgoing), if !outgoing.is_empty() => {
                written?;
            }
            read = reader.read_buf(incoming) => if read? == 0 {
                return Err(LineError::Closed);
            },
        }
        Ok(())
    }

    /// Hands over each frame that has arrived whole. A refusal is an error: what it concerned would never be heard.
    pub(super) fn frames(&mut self, mut hear: impl FnMut(Frame<'_>)) -> Result<(), LineError> {
        let mut read = 0;
        while let Some((frame, length)) = resp::parse(&self.incoming[read..])? {
            if let Frame::Refused(why) = frame {
                return Err(LineError::Refused(String::from_utf8_lossy(why).into_owned()));
            }
            hear(frame);
            read += length;
        }
        self.incoming.advance(read);
        // Its capacity is only what is left behind what was read: the whole of it tells.
        if self.incoming.is_empty() && self.incoming.try_reclaim(KEPT + 1) {
            self.incoming = BytesMut::new();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_buffer_of_a_large_message_is_given_back() {
        let (ours, mut theirs) = tokio::io::duplex(READ);
        let stream: Box<dyn Stream> = Box::new(ours);
        let (reader, writer) = tokio::io::split(stream);
        let mut line = Line { reader, writer, incoming: BytesMut::new(), outgoing: BytesMut::new() };
        let payload = vec![b'x'; 3 * KEPT];
        let head = format!(">3\r\n$7\r\nmessage\r\n$1\r\na\r\n${}\r\n", payload.len());
        let message = [head.as_bytes(), &payload, b"\r\n"].concat();
        tokio::spawn(async move { theirs.write_all(&message).await });
        let mut heard = 0;
        while heard == 0 {
            line.exchange().await.expect("it is open");
            line.frames(|_| heard += 1).expect("it is RESP3");
        }
        assert!(!line.incoming.try_reclaim(KEPT + 1), "a large buffer is kept");
    }
}
