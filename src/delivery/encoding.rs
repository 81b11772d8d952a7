//! The encodings of livebridge: each is a dialect over a framing. Subscribers with the same
//! encoding share frames.

use super::dialect::Dialect;
use super::dialect::centrifuge::Centrifuge;
use super::dialect::events::{JsonEvents, MultiChannelEvents, SingleChannelEvents};
use super::dialect::json::Json;
use super::dialect::raw::Raw;
use super::framing::event_stream::{Bare, Chunked};
use super::framing::websocket::WebSocket;
use super::framing::{FrameWriter, Framing, Transport};

/// A dialect over a framing. Compared by address, so each is a static.
pub struct Encoding {
    /// The content of messages.
    pub dialect: &'static dyn Dialect,
    /// The framing of messages.
    pub framing: &'static dyn Framing,
}

/// `GET /ws`.
pub static WEBSOCKET_RAW: Encoding = Encoding { dialect: &Raw, framing: &WebSocket };
/// `GET /ws?format=json`.
pub static WEBSOCKET_JSON: Encoding = Encoding { dialect: &Json, framing: &WebSocket };
/// `GET /connection/websocket`.
pub static CENTRIFUGE: Encoding = Encoding { dialect: &Centrifuge, framing: &WebSocket };
/// `GET /events` for one channel.
pub static EVENTS: Encoding = Encoding { dialect: &SingleChannelEvents, framing: &Chunked };
/// `GET /events` for several channels.
pub static MULTI_CHANNEL_EVENTS: Encoding = Encoding { dialect: &MultiChannelEvents, framing: &Chunked };
/// `GET /events` for one channel, over HTTP/1.0.
pub static BARE_EVENTS: Encoding = Encoding { dialect: &SingleChannelEvents, framing: &Bare };
/// `GET /events` for several channels, over HTTP/1.0.
pub static BARE_MULTI_CHANNEL_EVENTS: Encoding = Encoding { dialect: &MultiChannelEvents, framing: &Bare };
/// `GET /events?format=json`.
pub static EVENTS_JSON: Encoding = Encoding { dialect: &JsonEvents, framing: &Chunked };
/// `GET /events?format=json`, over HTTP/1.0.
pub static BARE_EVENTS_JSON: Encoding = Encoding { dialect: &JsonEvents, framing: &Bare };

impl Encoding {
    /// Returns a writer of frames that appends to `out`.
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
