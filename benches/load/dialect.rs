//! How readers join and read each kind of server: raw WebSocket, Server-Sent Events, Socket.IO,
//! Pusher and Centrifuge.

use crate::Outcome;
use crate::frames::{self, Frame, find};
use crate::message::{CHANNEL_PREFIX, MARK};
use crate::pusher;

/// The protocol of a reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    WebSocket,
    Events,
    SocketIo,
    Pusher,
    Centrifuge,
}

/// The result of one parsing step. The number is how many bytes it consumed.
pub(crate) enum Step {
    Incomplete,
    Used(usize),
    Reply(usize, Vec<u8>),
    Joined(usize),
}

/// The parser state of a stream between reads.
#[derive(Default)]
pub(crate) struct Stream {
    /// Whether the HTTP response has been read.
    answered: bool,
    chunked: bool,
    /// An incomplete line of Server-Sent Events.
    line: Vec<u8>,
}

impl Dialect {
    pub(crate) fn parse(name: &str) -> Outcome<Self> {
        match name {
            "ws" => Ok(Self::WebSocket),
            "sse" => Ok(Self::Events),
            "socketio" => Ok(Self::SocketIo),
            "pusher" => Ok(Self::Pusher),
            "centrifuge" => Ok(Self::Centrifuge),
            _ => Err(format!("no dialect is called {name}: ws, sse, socketio, pusher, centrifuge").into()),
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::WebSocket => "ws",
            Self::Events => "sse",
            Self::SocketIo => "socketio",
            Self::Pusher => "pusher",
            Self::Centrifuge => "centrifuge",
        }
    }

    /// The request that opens a connection.
    pub(crate) fn request(self, path: &str) -> String {
        match self {
            Self::Events => format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n"),
            _ => format!(
                "GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                 Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: bG9hZCBwcm9ncmFtIGtleQ==\r\n\r\n"
            ),
        }
    }

    /// Parses until the server has confirmed the subscriber of `channel`.
    pub(crate) fn join(self, bytes: &[u8], channel: u32, stream: &mut Stream) -> Outcome<Step> {
        if !stream.answered {
            return self.answer(bytes, channel, stream);
        }
        let Some((frame, used)) = frames::next(bytes)? else {
            return Ok(Step::Incomplete);
        };
        let Frame::Data(text) = frame else {
            return Ok(Step::Used(used));
        };
        let mut reply = Vec::new();
        match self {
            // Engine.IO: `0{…}` opens the connection, `40` asks for the default namespace, and
            // `40{…}` confirms it.
            Self::SocketIo if text.starts_with(b"0") => frames::write_masked(1, b"40", &mut reply),
            Self::SocketIo if text.starts_with(b"40") => return Ok(Step::Joined(used)),
            Self::Pusher => match pusher::join(text, channel)? {
                Some(answer) => frames::write_masked(1, answer.as_bytes(), &mut reply),
                None => return Ok(Step::Joined(used)),
            },
            // A frame may have both replies.
            Self::Centrifuge if find(text, br#"{"id":2,"subscribe":"#).is_some() => return Ok(Step::Joined(used)),
            Self::Centrifuge if text.starts_with(br#"{"id":1,"connect":"#) => {}
            _ => {
                return Err(format!("unexpected while joining: {}", String::from_utf8_lossy(text)).into());
            }
        }
        Ok(if reply.is_empty() { Step::Used(used) } else { Step::Reply(used, reply) })
    }

    fn answer(self, bytes: &[u8], channel: u32, stream: &mut Stream) -> Outcome<Step> {
        let Some(end) = find(bytes, b"\r\n\r\n") else {
            return Ok(Step::Incomplete);
        };
        let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
        let wanted = if self == Self::Events { " 200" } else { " 101" };
        if head.get(8..12) != Some(wanted) {
            return Err(format!("refused: {head}").into());
        }
        stream.answered = true;
        stream.chunked = head.contains("transfer-encoding: chunked");
        Ok(match self {
            Self::WebSocket | Self::Events => Step::Joined(end + 4),
            Self::SocketIo | Self::Pusher => Step::Used(end + 4),
            Self::Centrifuge => Step::Reply(end + 4, centrifuge_commands(channel)),
        })
    }

    /// Parses one frame, or one chunk of an event stream, and passes each payload to `deliver`.
    pub(crate) fn read(self, bytes: &[u8], stream: &mut Stream, mut deliver: impl FnMut(&[u8])) -> Outcome<Step> {
        if self == Self::Events {
            return read_events(bytes, stream, deliver);
        }
        let Some((frame, used)) = frames::next(bytes)? else {
            return Ok(Step::Incomplete);
        };
        let mut reply = Vec::new();
        match frame {
            Frame::Data(payload) if self == Self::WebSocket => deliver(payload),
            Frame::Data(b"2") if self == Self::SocketIo => frames::write_masked(1, b"3", &mut reply),
            Frame::Data(b"{}") if self == Self::Centrifuge => frames::write_masked(1, b"{}", &mut reply),
            Frame::Data(text) if self == Self::Pusher && pusher::is_ping(text) => {
                frames::write_masked(1, pusher::PONG, &mut reply);
            }
            Frame::Data(text) => wrapped(text, deliver),
            Frame::Ping(payload) => frames::write_masked(10, payload, &mut reply),
            Frame::Pong => {}
            Frame::Close(code) => return Err(format!("closed with {code}").into()),
        }
        Ok(if reply.is_empty() { Step::Used(used) } else { Step::Reply(used, reply) })
    }
}

/// A frame with the first commands of a client: it connects, and subscribes to a channel.
fn centrifuge_commands(channel: u32) -> Vec<u8> {
    let commands = format!(
        "{{\"id\":1,\"connect\":{{}}}}\n{{\"id\":2,\"subscribe\":{{\"channel\":\"{CHANNEL_PREFIX}{channel}\"}}}}"
    );
    let mut frame = Vec::new();
    frames::write_masked(1, commands.as_bytes(), &mut frame);
    frame
}

/// Finds the messages inside JSON envelopes, of which a frame may have several: each from its mark to the next quote or
/// backslash.
fn wrapped(text: &[u8], mut deliver: impl FnMut(&[u8])) {
    // The name of an event or a channel may contain the letters of the mark too, but only in a
    // message do digits follow.
    let mut rest = text;
    while let Some(found) = find(rest, MARK) {
        rest = &rest[found..];
        if rest.get(MARK.len()).is_none_or(|byte| !byte.is_ascii_alphanumeric()) {
            rest = &rest[MARK.len()..];
            continue;
        }
        let length = memchr::memchr2(b'"', b'\\', rest).unwrap_or(rest.len());
        deliver(&rest[..length]);
        rest = &rest[length..];
    }
}

fn read_events(bytes: &[u8], stream: &mut Stream, mut deliver: impl FnMut(&[u8])) -> Outcome<Step> {
    let (text, used) = if stream.chunked {
        match frames::chunk(bytes)? {
            None => return Ok(Step::Incomplete),
            Some(([], _)) => return Err("the stream ended".into()),
            Some(found) => found,
        }
    } else {
        (bytes, bytes.len())
    };
    let mut from = 0;
    while let Some(end) = text[from..].iter().position(|byte| *byte == b'\n') {
        let piece = &text[from..from + end];
        from += end + 1;
        let whole = std::mem::take(&mut stream.line);
        if whole.is_empty() {
            event_line(piece, &mut deliver);
        } else {
            event_line(&[&whole, piece].concat(), &mut deliver);
        }
    }
    stream.line.extend_from_slice(&text[from..]);
    Ok(Step::Used(used))
}

fn event_line(line: &[u8], deliver: &mut impl FnMut(&[u8])) {
    let Some(data) = line.strip_prefix(b"data:") else {
        return;
    };
    let data = data.strip_prefix(b" ").unwrap_or(data);
    // The welcome and other notices are JSON; only messages start with the mark.
    if data.starts_with(MARK) {
        deliver(data.strip_suffix(b"\r").unwrap_or(data));
    }
}
