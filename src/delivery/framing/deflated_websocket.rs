//! WebSocket frames with compressed messages (RFC 7692, 6). The compression is in `deflate.rs`.

use super::deflate::Compressor;
use super::websocket::{COMPRESSED, MAX_HEADER, WebSocket, opcode_of, write_header};
use super::{Framing, Kind, Transport};

/// WebSocket frames whose messages are compressed if that makes them smaller.
pub struct DeflatedWebSocket;

impl Framing for DeflatedWebSocket {
    fn transport(&self) -> Transport {
        Transport::WebSocket
    }

    fn begin(&self, out: &mut Vec<u8>) -> usize {
        WebSocket.begin(out)
    }

    fn end(&self, kind: Kind, start: usize, out: &mut Vec<u8>) {
        Compressor::of_thread(|compressor| match compressor.compress(&out[start + MAX_HEADER..]) {
            Some(compressed) => {
                out.truncate(start);
                write_header(opcode_of(kind), compressed.len(), out);
                out[start] |= COMPRESSED;
                out.extend_from_slice(compressed);
            }
            None => WebSocket.end(kind, start, out),
        });
    }

    fn write_keepalive(&self, out: &mut Vec<u8>) {
        WebSocket.write_keepalive(out);
    }

    fn write_close(&self, code: Option<u16>, reason: &str, out: &mut Vec<u8>) {
        WebSocket.write_close(code, reason, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delivery::framing::deflate::inflate;

    const JSON: &str = r#"{"cell":"B4","value":17,"by":"somebody","at":1732300000000},"#;

    fn frame(message: &[u8]) -> Vec<u8> {
        let mut out = b"before".to_vec();
        DeflatedWebSocket.write(Kind::Text, message, &mut out);
        assert!(out.starts_with(b"before"));
        out.split_off(6)
    }

    #[test]
    fn a_message_is_compressed_alone_and_comes_back_as_it_was() {
        for repeated in [5, 20, 2_000] {
            let message = JSON.repeat(repeated);
            let (one, two) = (frame(message.as_bytes()), frame(message.as_bytes()));
            assert!(one == two && one.len() * 2 < message.len() && one[0] == 0xC1, "{} bytes", one.len());
            let header = one.len()
                - if one[1] < 126 { usize::from(one[1]) } else { usize::from(one[2]) << 8 | usize::from(one[3]) };
            assert_eq!(inflate(&one[header..], message.len()), Ok(message.into_bytes()));
        }
    }

    #[test]
    fn what_would_not_be_smaller_is_sent_as_it_is() {
        let mut seed = 1_u32;
        let noise = std::iter::repeat_with(|| {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 24) as u8
        });
        let noise: Vec<u8> = noise.take(2_000).collect();
        for message in [&noise[..], &JSON.as_bytes()[..50], b""] {
            let mut plain = Vec::new();
            WebSocket.write(Kind::Text, message, &mut plain);
            assert_eq!(frame(message), plain);
        }
    }
}
