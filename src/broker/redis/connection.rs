//! A connection to Redis: opens it, authenticates, and reads frames. Subscriptions and publishing,
//! which carry most of the traffic, read frames in place. Other callers use `call` and get an owned
//! reply. `decoder.rs` interprets the frames of subscriptions, `calls.rs` those of publishing.

use std::io;

use bytes::{Buf, BytesMut};
use redis::{Cmd, FromRedisValue, Value};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::time::timeout;

use super::endpoint::{ANSWER_TIMEOUT, CONNECT_TIMEOUT, Endpoint, Stream};
use super::error::ClientError;
use super::reply::{self, Reply};
use super::resp::{self, Frame, Item, Items, Measure};
use super::url::Login;

/// The size of a read. Beyond `KEPT` bytes, a buffer that grew for a large message is freed.
const READ: usize = 64 << 10;
const KEPT: usize = 1 << 20;

/// The role that a server must have to accept a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Role {
    /// A standalone server or a master, which accepts writes.
    Master,
    /// A master of a Redis Cluster.
    Shard,
    /// Any server that speaks RESP3, to find out its role.
    Any,
}

/// An open connection.
pub(super) struct Connection {
    reader: ReadHalf<Box<dyn Stream>>,
    writer: WriteHalf<Box<dyn Stream>>,
    incoming: BytesMut,
    outgoing: BytesMut,
    /// Whether the stream may still buffer written bytes, as TLS does.
    unflushed: bool,
    /// How much of the next reply has been parsed.
    measure: Measure,
    /// The generation of the node when this connection was opened. If it differs from
    /// [`super::node::Node::generation`], do not reuse the connection.
    pub(super) generation: u64,
}

impl Connection {
    /// Connects and authenticates, within [`CONNECT_TIMEOUT`].
    ///
    /// # Errors
    /// Among others, [`ClientError::Cluster`], [`ClientError::NotACluster`],
    /// [`ClientError::Sentinel`] or [`ClientError::Replica`] if the server does not have the role.
    pub(super) async fn open(endpoint: &Endpoint, role: Role) -> Result<Self, ClientError> {
        match timeout(CONNECT_TIMEOUT, Self::try_open(endpoint, role)).await {
            Ok(Err(error)) => Err(endpoint.explain(error).await),
            Ok(opened) => opened,
            Err(_) => Err(ClientError::timed_out()),
        }
    }

    /// Creates a connection over a stream, without authentication.
    pub(super) fn over(stream: Box<dyn Stream>) -> Self {
        let (reader, writer) = tokio::io::split(stream);
        Self {
            reader,
            writer,
            incoming: BytesMut::new(),
            outgoing: BytesMut::new(),
            unflushed: false,
            measure: Measure::default(),
            generation: 0,
        }
    }

    /// A connection without a peer, for tests of outgoing commands.
    #[cfg(test)]
    pub(super) fn unconnected() -> Self {
        Self::over(Box::new(tokio::io::empty()))
    }

    async fn try_open(endpoint: &Endpoint, role: Role) -> Result<Self, ClientError> {
        let mut connection = Self::over(endpoint.stream().await?);
        let Login { user, password, database } = endpoint.login();
        match password {
            Some(password) => {
                connection.send(&["HELLO", "3", "AUTH", user.as_deref().unwrap_or("default"), password]);
            }
            None => connection.send(&["HELLO", "3"]),
        }
        let mut unanswered = 1;
        if *database != 0 {
            connection.send(&["SELECT", &database.to_string()]);
            unanswered += 1;
        }
        while unanswered > 0 {
            connection.read_or_write().await?;
            connection.frames(|frame| {
                unanswered -= 1;
                match frame.accepted()? {
                    Frame::Map(hello) => expect(role, hello),
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

    /// The buffer of queued commands.
    pub(super) fn outgoing(&mut self) -> &mut BytesMut {
        &mut self.outgoing
    }

    /// Waits until the connection has read or written some bytes. This method is cancel safe:
    /// dropping the future loses no data.
    pub(super) async fn read_or_write(&mut self) -> Result<(), ClientError> {
        let Self { reader, writer, incoming, outgoing, unflushed, .. } = self;
        incoming.reserve(READ);
        let is_due = *unflushed || !outgoing.is_empty();
        let write = async {
            if outgoing.is_empty() {
                writer.flush().await?;
                *unflushed = false;
            } else {
                writer.write_buf(outgoing).await?;
                *unflushed = true;
                free_if_large(outgoing);
            }
            Ok::<(), io::Error>(())
        };
        tokio::select! {
            written = write, if is_due => written?,
            read = reader.read_buf(incoming) => if read? == 0 {
                return Err(ClientError::Closed);
            },
        }
        Ok(())
    }

    /// Passes each complete frame to `receive`, until one returns an error.
    pub(super) fn frames(
        &mut self,
        mut receive: impl FnMut(Frame<'_>) -> Result<(), ClientError>,
    ) -> Result<(), ClientError> {
        let mut read = 0;
        while let Some((frame, length)) = resp::parse(&self.incoming[read..])? {
            receive(frame)?;
            read += length;
        }
        self.incoming.advance(read);
        free_if_large(&mut self.incoming);
        Ok(())
    }

    /// Passes each complete reply to the callback, until a connection error.
    pub(super) fn replies(
        &mut self,
        mut take: impl FnMut(Reply) -> Result<(), ClientError>,
    ) -> Result<(), ClientError> {
        while let Some((reply, length)) = reply::parse(&mut self.measure, &self.incoming)? {
            self.incoming.advance(length);
            // A push is not the reply to a command.
            if !matches!(reply, Ok(Value::Push { .. })) {
                take(reply)?;
            }
        }
        Ok(())
    }

    /// Frees the memory of a large reply. Do not call this while more large replies are pending.
    pub(super) fn give_back(&mut self) {
        free_if_large(&mut self.incoming);
    }

    /// Sends a command and waits for its reply, for at most [`ANSWER_TIMEOUT`]. No other reply may
    /// be pending on the connection. This method is not cancel safe: if the future is dropped, the
    /// connection cannot be used any more.
    ///
    /// # Errors
    /// [`ClientError::Refused`] if Redis replied with an error. After any other error, the
    /// connection cannot be used any more.
    pub(super) async fn call<T: FromRedisValue>(&mut self, command: &Cmd) -> Result<T, ClientError> {
        self.outgoing.extend_from_slice(&command.get_packed_command());
        let value = timeout(ANSWER_TIMEOUT, self.reply()).await.unwrap_or_else(|_| Err(ClientError::timed_out()))?;
        Ok(redis::from_redis_value(value)?)
    }

    async fn reply(&mut self) -> Reply {
        let mut answer = None;
        while answer.is_none() {
            self.read_or_write().await?;
            self.replies(|reply| {
                answer = Some(reply);
                Ok(())
            })?;
        }
        self.give_back();
        answer.unwrap_or(Err(ClientError::Closed))
    }
}

/// Returns an error if the reply to `HELLO` shows that the server does not have the role.
fn expect(role: Role, hello: Items<'_>) -> Result<(), ClientError> {
    let value_of = |name: &'static [u8]| {
        let mut hello = hello;
        hello.find(|item| *item == Item::Text(name)).and_then(|_| hello.next())
    };
    let says = |name, value| value_of(name) == Some(Item::Text(value));
    let is_cluster = says(b"mode", b"cluster");
    match role {
        Role::Any => return Ok(()),
        _ if says(b"mode", b"sentinel") => return Err(ClientError::Sentinel),
        Role::Master if is_cluster => return Err(ClientError::Cluster),
        Role::Shard if !is_cluster => return Err(ClientError::NotACluster),
        Role::Master | Role::Shard => {}
    }
    if says(b"role", b"replica") || says(b"role", b"slave") {
        return Err(ClientError::Replica);
    }
    match value_of(b"version") {
        Some(Item::Text(version)) if role == Role::Shard && has_no_sharded_pubsub(version) => {
            Err(ClientError::OldCluster(String::from_utf8_lossy(version).into_owned()))
        }
        _ => Ok(()),
    }
}

fn has_no_sharded_pubsub(version: &[u8]) -> bool {
    let major = std::str::from_utf8(version).ok().and_then(|version| version.split('.').next()?.parse().ok());
    major.is_some_and(|major: u32| major < 7)
}

/// Frees an empty buffer that has become large. `capacity` counts only the part after the consumed
/// bytes; `try_reclaim` considers the whole buffer.
fn free_if_large(buffer: &mut BytesMut) {
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
        let mut received = 0;
        while received == 0 {
            connection.read_or_write().await.expect("it is open");
            let receive = |_: Frame<'_>| {
                received += 1;
                Ok(())
            };
            connection.frames(receive).expect("it is RESP3");
        }
        assert!(!connection.incoming.try_reclaim(KEPT + 1), "a large buffer is kept");
    }

    #[tokio::test]
    async fn what_a_stream_holds_back_is_flushed() {
        let (ours, mut theirs) = tokio::io::duplex(READ);
        let mut connection = Connection::over(Box::new(tokio::io::BufWriter::new(ours)));
        let server = tokio::spawn(async move {
            let mut asked = [0; 14];
            theirs.read_exact(&mut asked).await.expect("a command");
            theirs.write_all(b"+PONG\r\n").await.expect("it listens");
            theirs
        });
        assert_eq!(connection.call::<String>(&redis::cmd("PING")).await.expect("an answer"), "PONG");
        server.await.expect("no panic");
    }
}
