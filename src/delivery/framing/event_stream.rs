//! The framings of an event stream (WHATWG HTML, 9.2): with HTTP chunking (RFC 9112, 7.1), one
//! chunk per frame; or bare, for HTTP/1.0 clients, where the stream ends with its connection.

use std::io::Write;

use super::{Framing, Kind, Transport};

/// A comment. Without the blank line that ends an event, because some clients would deliver an
/// empty message.
const COMMENT: &[u8] = b":\n";
/// The maximum length of a chunk size, in bytes: eight digits and CR LF.
const MAX_SIZE: usize = 10;
/// The chunk that ends a response. It lets a client distinguish a complete stream from a broken
/// connection.
const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// One chunk per event.
pub struct Chunked;

/// Events without chunking.
pub struct Bare;

impl Framing for Chunked {
    fn transport(&self) -> Transport {
        Transport::EventStream
    }

    fn begin(&self, out: &mut Vec<u8>) -> usize {
        out.extend_from_slice(&[0; MAX_SIZE]);
        out.len() - MAX_SIZE
    }

    /// The length of the size varies, so the event is written after the longest size and then
    /// moved.
    fn end(&self, _: Kind, start: usize, out: &mut Vec<u8>) {
        let length = out.len() - start - MAX_SIZE;
        if length == 0 {
            // An empty chunk would end the stream.
            return out.truncate(start);
        }
        let mut size = [0; MAX_SIZE];
        let mut room = &mut size[..];
        // The longest event is a message of 64 MiB of empty lines; its length has eight hex digits.
        let _ = write!(room, "{length:x}\r\n");
        let used = MAX_SIZE - room.len();
        out[start..start + used].copy_from_slice(&size[..used]);
        out.copy_within(start + MAX_SIZE.., start + used);
        out.truncate(start + used + length);
        out.extend_from_slice(b"\r\n");
    }

    fn write_keepalive(&self, out: &mut Vec<u8>) {
        self.write(Kind::Text, COMMENT, out);
    }

    fn write_close(&self, _: Option<u16>, _: &str, out: &mut Vec<u8>) {
        out.extend_from_slice(LAST_CHUNK);
    }
}

impl Framing for Bare {
    fn transport(&self) -> Transport {
        Transport::EventStream
    }

    fn begin(&self, out: &mut Vec<u8>) -> usize {
        out.len()
    }

    fn end(&self, _: Kind, _: usize, _: &mut Vec<u8>) {}

    fn write_keepalive(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(COMMENT);
    }

    fn write_close(&self, _: Option<u16>, _: &str, _: &mut Vec<u8>) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_has_the_size_that_its_event_has() {
        for length in [1, 15, 16, 255, 256, 4096, 1 << 20] {
            let mut out = b"before".to_vec();
            let event = vec![b'x'; length];
            Chunked.write(Kind::Text, &event, &mut out);
            let expected = [format!("before{length:x}\r\n").as_bytes(), &event, b"\r\n"].concat();
            assert!(out == expected, "{length}");
        }
        let mut out = Vec::new();
        Chunked.write(Kind::Text, b"", &mut out);
        assert_eq!(out, b"", "an empty one would end the stream");
        Chunked.write_keepalive(&mut out);
        assert_eq!(out, b"2\r\n:\n\r\n");
    }
}
