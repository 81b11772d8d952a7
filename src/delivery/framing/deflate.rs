//! The compression of permessage-deflate (RFC 7692) without contexts: each message is compressed
//! alone, so that its frame can be written to many sockets, and a connection needs no memory for
//! it. Knows no frames; the negotiation is part of the handshake (`http/handshake.rs`).

use std::cell::RefCell;

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use crate::close::{Close, Code};

/// Shorter messages are not compressed, in bytes.
const LEAST: usize = 256;
/// zlib's own default: a message is compressed once for all subscribers.
const LEVEL: Compression = Compression::new(6);
/// The memory that a thread keeps for compressed messages, in bytes.
const MOST_KEPT: usize = 512 << 10;
/// The end of each compressed message, which is not sent (RFC 7692, 7.2.1).
const TAIL: [u8; 4] = [0x00, 0x00, 0xFF, 0xFF];

thread_local! {
    static COMPRESSOR: RefCell<Compressor> =
        RefCell::new(Compressor { state: Compress::new(LEVEL, false), bytes: Vec::new() });
    static INFLATER: RefCell<Decompress> = RefCell::new(Decompress::new(false));
}

/// Compresses one message after the other, each alone.
pub(super) struct Compressor {
    state: Compress,
    bytes: Vec<u8>,
}

impl Compressor {
    /// Calls `use_it` with the compressor of this thread.
    pub(super) fn of_thread<T>(use_it: impl FnOnce(&mut Self) -> T) -> T {
        COMPRESSOR.with_borrow_mut(use_it)
    }

    /// A message in its compressed form, if that is smaller.
    pub(super) fn compress(&mut self, message: &[u8]) -> Option<&[u8]> {
        if message.len() < LEAST {
            return None;
        }
        self.state.reset();
        self.bytes.clear();
        self.bytes.shrink_to(MOST_KEPT);
        // Only what is smaller is wanted, so there is no room for more.
        self.bytes.reserve(message.len());
        self.state.compress_vec(message, &mut self.bytes, FlushCompress::Sync).ok()?;
        let is_whole = self.bytes.len() < self.bytes.capacity() && self.state.total_in() == message.len() as u64;
        let compressed = self.bytes.strip_suffix(&TAIL).filter(|_| is_whole)?;
        (compressed.len() < message.len()).then_some(compressed)
    }
}

/// The message of a client in its original form, which has at most `limit` bytes.
///
/// # Errors
/// How to close the connection: the message is longer, or not in the format.
pub(super) fn inflate(compressed: &[u8], limit: usize) -> Result<Vec<u8>, Close> {
    let mut message = Vec::with_capacity(limit.saturating_add(1).min(4 * compressed.len() + LEAST));
    INFLATER.with_borrow_mut(|inflater| {
        inflater.reset(false);
        for mut part in [compressed, &TAIL] {
            loop {
                let before = (inflater.total_in(), message.len());
                let status = inflater.decompress_vec(part, &mut message, FlushDecompress::Sync);
                let status = status.map_err(|_| Close::new(Code::ProtocolError, "not a compressed message"))?;
                part = &part[(inflater.total_in() - before.0) as usize..];
                if message.len() > limit {
                    return Err(Close::new(Code::MessageTooBig, "the message exceeds the limit of this server"));
                }
                let is_stuck = (inflater.total_in(), message.len()) == before;
                if status == Status::StreamEnd {
                    // A client may end the stream within the message (RFC 7692, 7.2.3.4).
                    inflater.reset(false);
                } else if message.len() == message.capacity() {
                    message.reserve(message.len().clamp(1, limit + 1 - message.len()));
                } else if is_stuck && !part.is_empty() {
                    return Err(Close::new(Code::ProtocolError, "not a compressed message"));
                }
                if part.is_empty() && message.len() < message.capacity() {
                    break;
                }
            }
        }
        Ok(())
    })?;
    Ok(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_that_unfolds_beyond_the_limit_is_refused_before_it_does() {
        let mut compressor = Compressor { state: Compress::new(LEVEL, false), bytes: Vec::new() };
        let folded = compressor.compress(&vec![b'x'; 1 << 20]).expect("smaller").to_vec();
        assert_eq!(inflate(&folded, 1 << 20).map(|message| message.len()), Ok(1 << 20));
        for limit in [0, 1, 1000, (1 << 20) - 1] {
            assert_eq!(inflate(&folded, limit).map_err(|close| close.code), Err(Code::MessageTooBig), "{limit}");
        }
    }

    #[test]
    fn bytes_of_another_format_are_refused_and_an_ended_stream_is_not() {
        assert_eq!(inflate(b"\xFF\xFF\xFF", 100).map_err(|close| close.code), Err(Code::ProtocolError));
        // The examples of RFC 7692, 7.2.3: fixed codes, a stored block, an ended stream, and two blocks.
        let hello: [&[u8]; 4] = [
            &[0xF2, 0x48, 0xCD, 0xC9, 0xC9, 0x07, 0x00],
            &[0x00, 0x05, 0x00, 0xFA, 0xFF, 0x48, 0x65, 0x6C, 0x6C, 0x6F, 0x00],
            &[0xF3, 0x48, 0xCD, 0xC9, 0xC9, 0x07, 0x00, 0x00],
            &[0xF2, 0x48, 0x05, 0x00, 0x00, 0x00, 0xFF, 0xFF, 0xCA, 0xC9, 0xC9, 0x07, 0x00],
        ];
        for compressed in hello {
            assert_eq!(inflate(compressed, 5).as_deref(), Ok(&b"Hello"[..]), "{compressed:X?}");
        }
        assert_eq!(inflate(&[0x00], 5).as_deref(), Ok(&b""[..]), "an empty message (7.2.3.6)");
    }
}
