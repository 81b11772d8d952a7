//! A connection to Redis as bytes: opened, logged in, and read frame by frame. What the frames mean is `ear.rs` on the connection
//! that hears, `pipeline.rs` on one that publishes. These two have a reader and writer of their own, since hearing and publishing is
//! most of what an instance does with Redis: the general client builds a tree of values for each message, which costs several
//! times as much as relaying it.

use std::io;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};

use super::endpoint::{CONNECT_TIMEOUT, Endpoint, Stream};
use super::resp::{self, Frame, Item, Items, Malformed};

/// How much is read at once; a buffer that grew far beyond, for a large message, is given back.
const READ: usize = 64 << 10;
const KEPT: usize = 1 << 20;

/// Why the connection can't be used, or be used any longer.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectionError {
    /// The network's or the system's reason.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// Redis does not let us in, or refuses a subscription.
    #[error("Redis refused: {0}")]
    Refused(String),
    /// The other end spreads channels over nodes, of which this would see a part.
    #[error("this is a node of a Redis Cluster, which this version does not support; use a Redis that is not one")]
    Cluster,
    /// The other end is no Redis.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// The other end closed.
    #[error("the connection was closed")]
    Closed,
}

/// An open connection.
pub(super) struct Connection {
    reader: ReadHalf<Box<dyn Stream>>,
    writer: WriteHalf<Box<dyn Stream>>,
    incoming: BytesMut,
    outgoing: BytesMut,
}

impl Connection {
    /// Connects and logs in, within the time that connecting may take.
    pub(super) async fn open(endpoint: &Endpoint) -> Result<Self, ConnectionError> {
        tokio::time::timeout(CONNECT_TIMEOUT, Self::try_open(endpoint))
            .await
            .unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "no answer in time").into()))
    }

    fn over(stream: Box<dyn Stream>) -> Self {
        let (reader, writer) = tokio::io::split(stream);
        Self { reader, writer, incoming: BytesMut::new(), outgoing: BytesMut::new() }
    }

    /// A connection to nobody, for tests of what is sent.
    #[cfg(test)]
    pub(super) fn unconnected() -> Self {
        Self::over(Box::new(tokio::io::empty()))
    }

    async fn try_open(endpoint: &Endpoint) -> Result<Self, ConnectionError> {
        let mut connection = Self::over(endpoint.stream().await?);
        let credentials = endpoint.credentials();
        match credentials.password() {
            Some(password) => {
                connection.send(&["HELLO", "3", "AUTH", credentials.username().unwrap_or("default"), password]);
            }
            None => connection.send(&["HELLO", "3"]),
        }
        let mut unanswered = 1;
        if credentials.db() != 0 {
            connection.send(&["SELECT", &credentials.db().to_string()]);
            unanswered += 1;
        }
        while unanswered > 0 {
            connection.exchange().await?;
            connection.frames(|frame| {
                unanswered -= 1;
                match frame.accepted()? {
                    Frame::Map(items) if is_cluster(items) => Err(ConnectionError::Cluster),
                    _ => Ok(()),
                }
            })?;
        }
        Ok(connection)
    }

    /// Queues a command.
    pub(super) fn send(&mut self, parts: &[impl AsRef<str>]) {
        resp::write_command(parts.iter().map(|part| part.as_ref().as_bytes()), &mut self.outgoing);
    }

    /// Where commands are queued.
    pub(super) fn outgoing(&mut self) -> &mut BytesMut {
        &mut self.outgoing
    }

    /// Waits until something could be read or written. May be dropped at any time without losing anything.
    pub(super) async fn exchange(&mut self) -> Result<(), ConnectionError> {
        let Self { reader, writer, incoming, outgoing } = self;
        incoming.reserve(READ);
        tokio::select! {
            written = writer.write_buf(outgoing), if !outgoing.is_empty() => {
                written?;
                spare(outgoing);
            }
            read = reader.read_buf(incoming) => if read? == 0 {
                return Err(ConnectionError::Closed);
            },
        }
        Ok(())
    }

    /// Hands over each frame that has arrived whole, until one is an error.
    pub(super) fn frames(
        &mut self,
        mut hear: impl FnMut(Frame<'_>) -> Result<(), ConnectionError>,
    ) -> Result<(), ConnectionError> {
        let mut read = 0;
        while let Some((frame, length)) = resp::parse(&self.incoming[read..])? {
            hear(frame)?;
            read += length;
        }
        self.incoming.advance(read);
        spare(&mut self.incoming);
        Ok(())
    }
}

impl<'a> Frame<'a> {
    /// The frame, unless it is a refusal.
    pub(super) fn accepted(self) -> Result<Self, ConnectionError> {
        match self {
            Frame::Refused(why) => Err(ConnectionError::Refused(String::from_utf8_lossy(why).into_owned())),
            accepted => Ok(accepted),
        }
    }
}

/// Whether the answer to `HELLO` comes from a node of a Redis Cluster.
fn is_cluster(mut hello: Items<'_>) -> bool {
    hello.any(|item| item == Item::Text(b"mode")) && hello.next() == Some(Item::Text(b"cluster"))
}

/// Gives back an empty buffer that has become large. Its capacity is only what is left behind what was taken out: the whole of it
/// tells.
fn spare(buffer: &mut BytesMut) {
    if buffer.is_empty() && buffer.try_reclaim(KEPT + 1) {
        *buffer = BytesMut::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_buffer_of_a_large_message_is_given_back() {
        let (ours, mut theirs) = tokio::io::duplex(READ);
        let mut connection = Connection::over(Box::new(ours));
        let payload = vec![b'x'; 3 * KEPT];
        let head = format!(">3\r\n$7\r\nmessage\r\n$1\r\na\r\n${}\r\n", payload.len());
        let message = [head.as_bytes(), &payload, b"\r\n"].concat();
        tokio::spawn(async move { theirs.write_all(&message).await });
        let mut heard = 0;
        while heard == 0 {
            connection.exchange().await.expect("it is open");
            let hear = |_: Frame<'_>| {
                heard += 1;
                Ok(())
            };
            connection.frames(hear).expect("it is RESP3");
        }
        assert!(!connection.incoming.try_reclaim(KEPT + 1), "a large buffer is kept");
    }
}
