//! The encodings of livebridge: each is a dialect over a framing. Subscribers with the same
//! encoding share frames.

use super::dialect::Dialect;
use super::dialect::centrifuge::Centrifuge;
use super::dialect::centrifuge::protobuf::CentrifugeProtobuf;
use super::dialect::events::{JsonEvents, MultiChannelEvents, SingleChannelEvents};
use super::dialect::json::Json;
use super::dialect::raw::Raw;
use super::framing::deflated_websocket::DeflatedWebSocket;
use super::framing::event_stream::{Bare, Chunked};
use super::framing::websocket::WebSocket;
use super::framing::{FrameWriter, Framing, Transport};

/// A dialect over a framing. Compared by address, so each is a static.
pub struct Encoding {
    /// The content of messages.
    pub dialect: &'static dyn Dialect,
    /// The framing of what one subscriber gets alone.
    pub framing: &'static dyn Framing,
    /// The framing of messages that all subscribers of the encoding share. It may take more time.
    pub shared_framing: &'static dyn Framing,
    /// Whether clients may send compressed messages.
    pub inflates: bool,
}

const fn encoding(dialect: &'static dyn Dialect, framing: &'static dyn Framing) -> Encoding {
    Encoding { dialect, framing, shared_framing: framing, inflates: false }
}

/// An encoding for clients that take compressed messages (RFC 7692).
const fn compressed(dialect: &'static dyn Dialect) -> Encoding {
    Encoding { dialect, framing: &WebSocket, shared_framing: &DeflatedWebSocket, inflates: true }
}

/// `GET /ws`.
pub static WEBSOCKET_RAW: Encoding = encoding(&Raw, &WebSocket);
/// `GET /ws?format=json`.
pub static WEBSOCKET_JSON: Encoding = encoding(&Json, &WebSocket);
/// `GET /connection/websocket`.
pub static CENTRIFUGE: Encoding = encoding(&Centrifuge, &WebSocket);
/// `GET /connection/websocket`, for clients that speak Protobuf.
pub static CENTRIFUGE_PROTOBUF: Encoding = encoding(&CentrifugeProtobuf, &WebSocket);
/// `GET /ws`, with compressed messages.
pub static WEBSOCKET_RAW_COMPRESSED: Encoding = compressed(&Raw);
/// `GET /ws?format=json`, with compressed messages.
pub static WEBSOCKET_JSON_COMPRESSED: Encoding = compressed(&Json);
/// `GET /connection/websocket`, with compressed messages.
pub static CENTRIFUGE_COMPRESSED: Encoding = compressed(&Centrifuge);
/// `GET /connection/websocket`, for clients that speak Protobuf, with compressed messages.
pub static CENTRIFUGE_PROTOBUF_COMPRESSED: Encoding = compressed(&CentrifugeProtobuf);
/// `GET /events` for one channel.
pub static EVENTS: Encoding = encoding(&SingleChannelEvents, &Chunked);
/// `GET /events` for several channels.
pub static MULTI_CHANNEL_EVENTS: Encoding = encoding(&MultiChannelEvents, &Chunked);
/// `GET /events` for one channel, over HTTP/1.0.
pub static BARE_EVENTS: Encoding = encoding(&SingleChannelEvents, &Bare);
/// `GET /events` for several channels, over HTTP/1.0.
pub static BARE_MULTI_CHANNEL_EVENTS: Encoding = encoding(&MultiChannelEvents, &Bare);
/// `GET /events?format=json`.
pub static EVENTS_JSON: Encoding = encoding(&JsonEvents, &Chunked);
/// `GET /events?format=json`, over HTTP/1.0.
pub static BARE_EVENTS_JSON: Encoding = encoding(&JsonEvents, &Bare);

impl Encoding {
    /// Returns a writer of frames for all subscribers of the encoding that appends to `out`.
    pub fn shared_writer<'a>(&self, out: &'a mut Vec<u8>) -> FrameWriter<'a> {
        FrameWriter::new(self.shared_framing, out)
    }

    /// Returns a writer of frames for one subscriber that appends to `out`.
    pub fn writer<'a>(&self, out: &'a mut Vec<u8>) -> FrameWriter<'a> {
        FrameWriter::new(self.framing, out)
    }

    /// The transport of its messages.
    pub fn transport(&self) -> Transport {
        self.framing.transport()
    }

    /// Whether frames differ per subscriber, so that they cannot be shared by all.
    pub fn is_per_subscriber(&self) -> bool {
        self.dialect.is_per_subscriber()
    }

    /// Whether both are the same encoding.
    pub fn is(&self, other: &Encoding) -> bool {
        std::ptr::eq(self, other)
    }
}
