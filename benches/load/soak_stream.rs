//! The connection of a soak client: opens a WebSocket with envelopes, or an event stream, and
//! parses the received bytes into events. `soak_client.rs` interprets them.

use std::net::Ipv4Addr;
use std::time::Duration;

use serde_json::Value;
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::Outcome;
use crate::dialect::Dialect;
use crate::frames::{self, Frame, find};
use crate::message::channel_name;

/// The receive buffer of a slow reader in bytes: small, so that the data accumulates in the server
/// and not in the kernel.
const SLOW_BUFFER: u32 = 4096;

/// Time limit for connecting and for the response.
const OPEN_LIMIT: Duration = Duration::from_secs(10);

/// A position in a channel, in the server's notation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Position {
    pub(crate) epoch: String,
    pub(crate) offset: u64,
}

/// A parsed event.
pub(crate) enum Event {
    /// The position after which the connection starts.
    Welcome(Position),
    Message(Position, Vec<u8>),
    /// Messages are missing; the stream continues after this position.
    Gap(Position),
    /// The end, with the close code of a WebSocket; 1000 for an event stream.
    Closed(u16),
    Nothing,
}

/// An open connection.
pub(crate) struct EventStream {
    socket: TcpStream,
    bytes: Vec<u8>,
    read: usize,
    events: bool,
}

impl EventStream {
    /// Connects and reads the head of the response.
    pub(crate) async fn open(
        port: u16,
        channel: usize,
        events: bool,
        since: Option<&Position>,
        slow: bool,
    ) -> Outcome<Self> {
        let mut path = format!("channel={}", channel_name(channel as u32));
        if let Some(Position { epoch, offset }) = since {
            path.push_str(&format!("&since={epoch}:{offset}"));
        }
        let (dialect, path) = if events {
            (Dialect::Events, format!("/events?{path}"))
        } else {
            (Dialect::WebSocket, format!("/ws?format=json&{path}"))
        };
        let open = async {
            let socket = TcpSocket::new_v4()?;
            if slow {
                socket.set_recv_buffer_size(SLOW_BUFFER)?;
            }
            let socket = socket.connect((Ipv4Addr::LOCALHOST, port).into()).await?;
            let mut stream = Self { socket, bytes: Vec::new(), read: 0, events };
            stream.socket.write_all(dialect.request(&path).as_bytes()).await?;
            stream.read_head().await?;
            Ok(stream)
        };
        tokio::time::timeout(OPEN_LIMIT, open).await.map_err(|_| "no answer in time")?
    }

    async fn read_head(&mut self) -> Outcome<()> {
        let end = loop {
            if let Some(end) = find(&self.bytes, b"\r\n\r\n") {
                break end;
            }
            self.read_more().await?;
        };
        let wanted: &[u8] = if self.events { b" 200" } else { b" 101" };
        if self.bytes.get(8..12) != Some(wanted) {
            return Err(String::from_utf8_lossy(&self.bytes[..end]).into());
        }
        self.read = end + 4;
        Ok(())
    }

    /// The next event. Cancel safe: dropping the future loses no data.
    pub(crate) async fn next(&mut self) -> Outcome<Event> {
        loop {
            let found = if self.events { self.next_event()? } else { self.next_frame().await? };
            if let Some(event) = found {
                return Ok(event);
            }
            if self.read_more().await.is_err() {
                return Ok(Event::Closed(if self.events { 1000 } else { 1006 }));
            }
        }
    }

    async fn read_more(&mut self) -> Outcome<()> {
        self.bytes.drain(..self.read);
        self.read = 0;
        match self.socket.read_buf(&mut self.bytes).await? {
            0 => Err("closed".into()),
            _ => Ok(()),
        }
    }

    async fn next_frame(&mut self) -> Outcome<Option<Event>> {
        let Some((frame, used)) = frames::next(&self.bytes[self.read..])? else { return Ok(None) };
        let mut reply = Vec::new();
        let event = match frame {
            Frame::Data(text) => envelope(&serde_json::from_slice(text)?)?,
            Frame::Close(code) => Event::Closed(code),
            Frame::Ping(payload) => {
                frames::write_masked(10, payload, &mut reply);
                Event::Nothing
            }
            Frame::Pong => Event::Nothing,
        };
        self.read += used;
        // Small enough for the buffer of the socket, so this waits only if the peer is gone.
        self.socket.write_all(&reply).await.ok();
        Ok(Some(event))
    }

    fn next_event(&mut self) -> Outcome<Option<Event>> {
        let bytes = &self.bytes[self.read..];
        let Some(end) = find(bytes, b"\n\n") else { return Ok(None) };
        let text = std::str::from_utf8(&bytes[..end])?;
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        let event = match (field("event"), field("id"), field("data")) {
            (Some(_), _, Some(data)) => envelope(&serde_json::from_str(data)?)?,
            (None, Some(id), Some(data)) => {
                let (epoch, offset) = id.split_once(':').ok_or("an id that is no position")?;
                let position = Position { epoch: epoch.to_owned(), offset: offset.parse()? };
                Event::Message(position, data.as_bytes().to_vec())
            }
            _ => Event::Nothing,
        };
        self.read += end + 2;
        Ok(Some(event))
    }

    /// Closes the connection with a reset.
    pub(crate) fn reset(self) {
        SockRef::from(&self.socket).set_linger(Some(Duration::ZERO)).ok();
    }

    /// Sends a close to the server.
    pub(crate) async fn close(&mut self) -> Outcome<()> {
        if self.events {
            self.socket.shutdown().await?;
            return Ok(());
        }
        let mut close = Vec::new();
        frames::write_masked(8, &1000_u16.to_be_bytes(), &mut close);
        Ok(self.socket.write_all(&close).await?)
    }
}

/// Parses a JSON object from livebridge: a message, the welcome or a gap.
fn envelope(value: &Value) -> Outcome<Event> {
    let position = |value: &Value| -> Outcome<Position> {
        let epoch = value["epoch"].as_str().ok_or_else(|| format!("no epoch in {value}"))?.to_owned();
        Ok(Position { epoch, offset: value["offset"].as_u64().ok_or("no offset")? })
    };
    Ok(match value["event"].as_str() {
        Some("welcome") => Event::Welcome(position(&value["channels"][0])?),
        Some("gap") => Event::Gap(position(value)?),
        Some(_) => Event::Nothing,
        None => Event::Message(position(value)?, value["data"].as_str().unwrap_or_default().as_bytes().to_vec()),
    })
}
