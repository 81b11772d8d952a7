//! The encodings that livebridge speaks: each a dialect over a framing. Subscribers of the same encoding share frames.

use super::dialect::Dialect;
use super::dialect::events::{MultiChannelEvents, SingleChannelEvents};
use super::dialect::json::Json;
use super::dialect::raw::Raw;
use super::framing::event_stream::{Bare, Chunked};
use super::framing::websocket::WebSocket;
use super::framing::{FrameWriter, Framing, Transport};

/// A dialect over a framing. Compared by address, so each is a static.
pub struct Encoding {
    /// What messages say.
    pub dialect: &'static dyn Dialect,
    /// How they travel.
    pub framing: &'static dyn Framing,
}

/// `GET /ws`.
pub static WEBSOCKET_RAW: Encoding = Encoding { dialect: &Raw, framing: &WebSocket };
/// `GET /ws?format=json`.
pub static WEBSOCKET_JSON: Encoding = Encoding { dialect: &Json, framing: &WebSocket };
/// `GET /events` for one channel.
pub static EVENTS: Encoding = Encoding { dialect: &SingleChannelEvents, framing: &Chunked };
/// `GET /events` for several channels.
pub static MULTI_CHANNEL_EVENTS: Encoding = Encoding { dialect: &MultiChannelEvents, framing: &Chunked };
/// `GET /events` for one channel, over HTTP/1.0.
pub static BARE_EVENTS: Encoding = Encoding { dialect: &SingleChannelEvents, framing: &Bare };
/// `GET /events` for several channels, over HTTP/1.0.
pub static BARE_MULTI_CHANNEL_EVENTS: Encoding = Encoding { dialect: &MultiChannelEvents, framing: &Bare };

impl Encoding {
    /// A writer of frames that appends to `out`.
    pub fn writer<'a>(&self, out: &'a mut Vec<u8>) -> FrameWriter<'a> {
        FrameWriter::new(self.framing, out)
    }

    /// What carries its messages.
    pub fn transport(&self) -> Transport {
        self.framing.transport()
    }

    /// Whether frames contain something of one subscriber, so that none can be shared.
    pub fn is_personal(&self) -> bool {
        self.dialect.is_personal()
    }

    /// Whether it is the same encoding.
    pub fn is(&self, other: &Encoding) -> bool {
        std::ptr::eq(self, other)
    }
}
