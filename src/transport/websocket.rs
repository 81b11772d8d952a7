//! The WebSocket transport: the handshake (RFC 6455, 4.2) and what a client's frames mean.

use std::collections::VecDeque;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hyper::header::{
    CONNECTION, CONTENT_LENGTH, HeaderMap, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, TRANSFER_ENCODING, UPGRADE,
};

use super::connection::{Connection, Inbound};
use crate::close::Close;
use crate::dialect::frame::{self, Decoder, Incoming, Opcode};

/// RFC 6455, 1.3.
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// Why a request is not a WebSocket handshake.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// An ordinary request.
    #[error(
        "this is a WebSocket endpoint: connect with `new WebSocket(\"ws://HOST/ws?channel=NAME\")` in a browser, or use /events with curl"
    )]
    NotAnUpgrade,
    /// A version other than 13.
    #[error("only WebSocket version 13 is spoken here")]
    Version,
    /// No key of 16 bytes.
    #[error("the handshake lacks a Sec-WebSocket-Key of 16 bytes in base64")]
    Key,
    /// What follows the head would be a body to those who relay it, and frames to us.
    #[error("a handshake has no body")]
    Body,
}

/// Checks a handshake; returns the value for `Sec-WebSocket-Accept`.
pub fn accept(headers: &HeaderMap) -> Result<String, HandshakeError> {
    let lists = |name, token: &str| {
        let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).any(|item| item.trim().eq_ignore_ascii_case(token))
    };
    if !lists(UPGRADE, "websocket") || !lists(CONNECTION, "upgrade") {
        return Err(HandshakeError::NotAnUpgrade);
    }
    if headers.get(SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        return Err(HandshakeError::Version);
    }
    if headers.contains_key(TRANSFER_ENCODING) || headers.get(CONTENT_LENGTH).is_some_and(|length| length != "0") {
        return Err(HandshakeError::Body);
    }
    let key = headers.get(SEC_WEBSOCKET_KEY).and_then(|key| key.to_str().ok()).ok_or(HandshakeError::Key)?;
    if STANDARD.decode(key).map_or(0, |bytes| bytes.len()) != 16 {
        return Err(HandshakeError::Key);
    }
    let digest = sha1_smol::Sha1::from(format!("{key}{GUID}")).digest();
    Ok(STANDARD.encode(digest.bytes()))
}

/// Reads a client's frames.
pub struct Frames(Decoder);

impl Frames {
    /// Messages may have `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self(Decoder::new(limit))
    }
}

impl Inbound for Frames {
    fn receive(
        &mut self,
        chunk: &mut [u8],
        connection: &Connection,
        messages: &mut VecDeque<Bytes>,
    ) -> Result<(), Close> {
        let mut closed = None;
        self.0.decode(chunk, |incoming| match incoming {
            // Its kind follows from its bytes, for those who receive it.
            Incoming::Message { bytes, .. } => messages.push_back(bytes.into()),
            Incoming::Ping(payload) => connection.post(|_, out| frame::write(Opcode::Pong, &payload, out)),
            Incoming::Pong => {}
            Incoming::Close(code) => closed = Some(Close::answer(code)),
        })?;
        closed.map_or(Ok(()), Err)
    }

    fn take_frames(&mut self) -> usize {
        self.0.take_frames()
    }

    fn held(&self) -> usize {
        self.0.held()
    }
}
