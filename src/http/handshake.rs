//! The WebSocket handshake (RFC 6455, 4.2).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::header::{
    CONNECTION, CONTENT_LENGTH, HeaderMap, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, TRANSFER_ENCODING, UPGRADE,
};

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
