//! The WebSocket handshake (RFC 6455, 4.2).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::header::{
    CONNECTION, CONTENT_LENGTH, HeaderMap, HeaderValue, SEC_WEBSOCKET_EXTENSIONS, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, TRANSFER_ENCODING, UPGRADE,
};

/// The subprotocols of `/connection/websocket`, one for each form of its protocol.
const CENTRIFUGE_JSON: &str = "centrifuge-json";
const CENTRIFUGE_PROTOBUF: &str = "centrifuge-protobuf";
/// All subprotocols; the first is that of `/ws`.
const SUBPROTOCOLS: [&str; 3] = ["livebridge", CENTRIFUGE_JSON, CENTRIFUGE_PROTOBUF];
/// The prefix of a subprotocol that carries a token. A page cannot set headers for a WebSocket, and
/// URLs appear in logs.
const TOKEN_PREFIX: &str = "livebridge.token.";

/// The GUID of the handshake (RFC 6455, 1.3).
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// Why a request is not a WebSocket handshake.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// A request without an upgrade to WebSocket.
    #[error(
        "this is a WebSocket endpoint: connect with `new WebSocket(\"ws://HOST/ws?channel=NAME\")` in a browser, or use /events with curl"
    )]
    NotAnUpgrade,
    /// A WebSocket version other than 13.
    #[error("only WebSocket version 13 is supported")]
    Version,
    /// `Sec-WebSocket-Key` is missing, or does not have 16 bytes.
    #[error("the handshake needs a Sec-WebSocket-Key of 16 bytes in base64")]
    Key,
    /// The request has a body. Proxies would read the bytes after the head as a body, and
    /// livebridge as frames.
    #[error("a WebSocket handshake must not have a body")]
    Body,
}

/// The subprotocol to answer with, if the client offers any: livebridge's own, otherwise the first
/// one, as browsers fail a handshake without an answer. Only those of the Centrifuge protocol change
/// what follows. A token is never sent back.
pub fn subprotocol(headers: &HeaderMap) -> Option<HeaderValue> {
    HeaderValue::from_str(chosen(headers)?).ok()
}

/// Whether the subprotocol of the answer is the Protobuf form of the Centrifuge protocol; `None` if
/// it names neither form.
pub fn is_protobuf(headers: &HeaderMap) -> Option<bool> {
    match chosen(headers)? {
        CENTRIFUGE_PROTOBUF => Some(true),
        CENTRIFUGE_JSON => Some(false),
        _ => None,
    }
}

fn chosen(headers: &HeaderMap) -> Option<&str> {
    let named = |offer: &&str| !offer.is_empty() && !offer.starts_with(TOKEN_PREFIX);
    offers(headers).find(|offer| SUBPROTOCOLS.contains(offer)).or_else(|| offers(headers).find(named))
}

/// The token among the offered subprotocols.
pub fn offered_token(headers: &HeaderMap) -> Option<&str> {
    offers(headers).find_map(|offer| offer.strip_prefix(TOKEN_PREFIX))
}

fn offers(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let lines = headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(str::trim)
}

/// The answer to the first offer of permessage-deflate that can be accepted, if there is one (RFC
/// 7692, 7.1). Neither side keeps a context from one message to the next. An offer that demands a
/// smaller window is not accepted: the frames are shared by clients with any window.
pub fn compression(headers: &HeaderMap) -> Option<HeaderValue> {
    let lines = headers.get_all(SEC_WEBSOCKET_EXTENSIONS).iter().filter_map(|line| line.to_str().ok());
    let names_window = lines.flat_map(|line| line.split(',')).find_map(acceptable)?;
    Some(HeaderValue::from_static(match names_window {
        false => "permessage-deflate; server_no_context_takeover; client_no_context_takeover",
        true => "permessage-deflate; server_no_context_takeover; client_no_context_takeover; server_max_window_bits=15",
    }))
}

/// Whether an offer names the window of the server; `None` if it can't be accepted.
fn acceptable(offer: &str) -> Option<bool> {
    let mut parts = offer.split(';').map(str::trim);
    if parts.next() != Some("permessage-deflate") {
        return None;
    }
    let mut seen = Vec::new();
    for part in parts {
        let (name, value) =
            part.split_once('=').map_or((part, None), |(name, value)| (name, Some(value.trim_matches('"'))));
        let bits = value.map(str::parse);
        let is_valid = match name {
            "server_no_context_takeover" | "client_no_context_takeover" => value.is_none(),
            "client_max_window_bits" => bits.is_none_or(|bits| bits.is_ok_and(|bits: u8| (8..=15).contains(&bits))),
            "server_max_window_bits" => bits == Some(Ok(15)),
            _ => false,
        };
        if !is_valid || seen.contains(&name) {
            return None;
        }
        seen.push(name);
    }
    Some(seen.contains(&"server_max_window_bits"))
}

/// Validates a WebSocket handshake (RFC 6455, 4.2.1). Returns the value for `Sec-WebSocket-Accept`.
///
/// # Errors
/// [`HandshakeError`] if the handshake is not valid.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offer_of_compression_is_accepted_if_its_window_is_the_largest() {
        let answer = |offers: &[&'static str]| {
            let lines = offers.iter().map(|offer| (SEC_WEBSOCKET_EXTENSIONS, HeaderValue::from_static(offer)));
            compression(&lines.collect()).map(|answer| answer.to_str().unwrap_or_default().to_owned())
        };
        let plain = "permessage-deflate; server_no_context_takeover; client_no_context_takeover";
        let with_window = format!("{plain}; server_max_window_bits=15");
        for accepted in [
            "permessage-deflate",
            "permessage-deflate; client_max_window_bits",
            "permessage-deflate;client_max_window_bits=\"10\";server_no_context_takeover",
            "x-webkit-deflate-frame, permessage-deflate",
            "permessage-deflate; server_max_window_bits=10, permessage-deflate",
        ] {
            assert_eq!(answer(&[accepted]).as_deref(), Some(plain), "{accepted}");
        }
        assert_eq!(answer(&["permessage-deflate; server_max_window_bits=15"]), Some(with_window));
        assert_eq!(answer(&["permessage-bzip2", "permessage-deflate"]).as_deref(), Some(plain), "two lines");
        for refused in [
            "",
            "permessage-bzip2",
            "permessage-deflate; server_max_window_bits=10",
            "permessage-deflate; server_max_window_bits",
            "permessage-deflate; client_max_window_bits=16",
            "permessage-deflate; client_no_context_takeover=1",
            "permessage-deflate; client_no_context_takeover; client_no_context_takeover",
            "permessage-deflate; unknown",
        ] {
            assert_eq!(answer(&[refused]), None, "{refused}");
        }
    }
}
