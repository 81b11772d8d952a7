//! The framing of an event stream (WHATWG HTML, 9.2) that ends with its connection: events follow each other as they are.

use super::{Framing, Kind, Transport};
use crate::close::Close;

/// Events, one after the other.
pub struct EventStream;

impl Framing for EventStream {
    fn transport(&self) -> Transport {
        Transport::EventStream
    }

    fn begin(&self, out: &mut Vec<u8>) -> usize {
        out.len()
    }

    fn end(&self, _: Kind, _: usize, _: &mut Vec<u8>) {}

    fn write_keepalive(&self, out: &mut Vec<u8>) {
        // A comment.
        out.extend_from_slice(b":\n\n");
    }

    fn write_close(&self, _: &Close, _: &mut Vec<u8>) {}
}
