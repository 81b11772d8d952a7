//! The WebSocket frame codec of the server, without I/O (RFC 6455, section 5). Writes headers
//! before encoded payloads. Decodes frames of clients in place, without a read buffer per
//! connection, which is why it is not left to a crate. The tests compare it with tungstenite.

use std::ops::Range;

use super::deflate::inflate;
use super::{Framing, Kind, Transport};
use crate::close::{Close, Code};

/// The type of a frame (RFC 6455, 5.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Opcode {
    /// A further fragment of a message.
    Continuation = 0x0,
    /// A text message, in UTF-8.
    Text = 0x1,
    /// A binary message.
    Binary = 0x2,
    /// The last frame of a peer.
    Close = 0x8,
    /// Asks the peer for a pong.
    Ping = 0x9,
    /// The answer to a ping.
    Pong = 0xA,
}

const FIN: u8 = 0x80;
const MASKED: u8 = 0x80;
const RESERVED: u8 = 0x70;
/// The bit that marks the first frame of a compressed message (RFC 7692, 6).
pub(super) const COMPRESSED: u8 = 0x40;
const MAX_CONTROL: usize = 125;

/// The maximum length of a frame header of the server, in bytes.
pub const MAX_HEADER: usize = 10;

/// Appends the header of an unfragmented, unmasked frame.
pub fn write_header(opcode: Opcode, length: usize, out: &mut Vec<u8>) {
    out.push(FIN | opcode as u8);
    if let Ok(short @ 0..=125) = u8::try_from(length) {
        out.push(short);
    } else if let Ok(medium) = u16::try_from(length) {
        out.push(126);
        out.extend_from_slice(&medium.to_be_bytes());
    } else {
        out.push(127);
        out.extend_from_slice(&(length as u64).to_be_bytes());
    }
}

/// Appends a frame.
pub fn write(opcode: Opcode, payload: &[u8], out: &mut Vec<u8>) {
    out.reserve(MAX_HEADER + payload.len());
    write_header(opcode, payload.len(), out);
    out.extend_from_slice(payload);
}

/// Appends a close frame; a reason goes only with a code.
pub fn write_close(code: Option<u16>, reason: &str, out: &mut Vec<u8>) {
    let mut payload = Vec::new();
    if let Some(code) = code {
        payload.extend_from_slice(&code.to_be_bytes());
        payload.extend_from_slice(reason.as_bytes());
    }
    write(Opcode::Close, &payload, out);
}

/// WebSocket frames without extensions.
pub struct WebSocket;

impl Framing for WebSocket {
    fn transport(&self) -> Transport {
        Transport::WebSocket
    }

    fn begin(&self, out: &mut Vec<u8>) -> usize {
        out.extend_from_slice(&[0; MAX_HEADER]);
        out.len() - MAX_HEADER
    }

    /// The size of the header depends on the length, so the message is written after the longest
    /// header and then moved.
    fn end(&self, kind: Kind, start: usize, out: &mut Vec<u8>) {
        let length = out.len() - start - MAX_HEADER;
        let mut header = Vec::with_capacity(MAX_HEADER);
        write_header(opcode_of(kind), length, &mut header);
        out[start..start + header.len()].copy_from_slice(&header);
        out.copy_within(start + MAX_HEADER.., start + header.len());
        out.truncate(start + header.len() + length);
    }

    fn write(&self, kind: Kind, message: &[u8], out: &mut Vec<u8>) {
        write(opcode_of(kind), message, out);
    }

    fn write_keepalive(&self, out: &mut Vec<u8>) {
        write(Opcode::Ping, b"", out);
    }

    fn write_close(&self, code: Option<u16>, reason: &str, out: &mut Vec<u8>) {
        write_close(code, reason, out);
    }
}

pub(super) fn opcode_of(kind: Kind) -> Opcode {
    match kind {
        Kind::Text => Opcode::Text,
        Kind::Binary => Opcode::Binary,
    }
}

/// A message or control frame of a client.
#[derive(PartialEq, Eq, Debug)]
pub enum Incoming {
    /// A complete message.
    Message {
        /// Whether it was sent as text. livebridge derives the kind from the bytes; an echo needs
        /// this.
        text: bool,
        /// The payload.
        bytes: Vec<u8>,
    },
    /// A ping, to answer with a pong of the same payload.
    Ping(Vec<u8>),
    /// A pong, solicited or not.
    Pong,
    /// A close with this code.
    Close(Option<u16>),
}

/// Decodes frames of a client from chunks of any size. Holds no bytes between messages.
#[derive(Debug)]
pub struct Decoder {
    /// Bytes of a frame that is not complete yet.
    partial: Vec<u8>,
    /// Small types, because each connection holds a decoder.
    message: Option<Box<Fragments>>,
    limit: u32,
    frames: u32,
    /// Whether the client may send compressed messages.
    inflates: bool,
}

/// The received fragments of a message.
#[derive(Debug)]
struct Fragments {
    text: bool,
    compressed: bool,
    bytes: Vec<u8>,
    /// The number of bytes that are known to be UTF-8, in a text.
    checked: usize,
}

impl Decoder {
    /// Creates a decoder for messages of at most `limit` bytes, all fragments together. `inflates`:
    /// whether messages may be compressed (RFC 7692).
    pub fn new(limit: usize, inflates: bool) -> Self {
        let limit = u32::try_from(limit).unwrap_or(u32::MAX);
        Self { partial: Vec::new(), message: None, limit, frames: 0, inflates }
    }

    /// Decodes a chunk and unmasks it in place. Calls `visit` with each complete message and
    /// control frame.
    ///
    /// # Errors
    /// Returns how to close the connection. Nothing after the invalid frame can be decoded.
    pub fn decode(&mut self, chunk: &mut [u8], mut visit: impl FnMut(Incoming)) -> Result<(), Close> {
        if self.partial.is_empty() {
            let consumed = self.decode_all(chunk, &mut visit)?;
            self.partial.extend_from_slice(&chunk[consumed..]);
            return Ok(());
        }
        let mut bytes = std::mem::take(&mut self.partial);
        bytes.extend_from_slice(chunk);
        let consumed = self.decode_all(&mut bytes, &mut visit)?;
        if consumed == 0 {
            self.partial = bytes;
        } else {
            // Copy the bytes, because the buffer may be as large as the largest message.
            self.partial = bytes[consumed..].to_vec();
        }
        Ok(())
    }

    /// Whether the decoder holds no bytes and no memory for them.
    pub fn is_idle(&self) -> bool {
        self.partial.is_empty() && self.message.is_none()
    }

    /// The number of frames since the last call, including fragments and control frames.
    pub fn take_frames(&mut self) -> usize {
        std::mem::take(&mut self.frames) as usize
    }

    /// The number of held bytes of an incomplete message.
    pub fn held(&self) -> usize {
        self.partial.len() + self.message.as_ref().map_or(0, |message| message.bytes.len())
    }

    /// Reads all complete frames. Returns their size in bytes.
    fn decode_all(&mut self, bytes: &mut [u8], visit: &mut impl FnMut(Incoming)) -> Result<usize, Close> {
        let mut at = 0;
        while let Some(header) =
            Header::parse(&bytes[at..], self.inflates, |opcode, compressed| self.room(opcode, compressed))?
        {
            let payload = header.payload.start + at..header.payload.end + at;
            if payload.end > bytes.len() {
                break;
            }
            self.frames += 1;
            unmask(&mut bytes[payload.clone()], header.mask);
            if let Some(incoming) = self.frame(&header, &bytes[payload.clone()])? {
                let closes = matches!(incoming, Incoming::Close(_));
                visit(incoming);
                if closes {
                    return Ok(bytes.len());
                }
            }
            at = payload.end;
        }
        Ok(at)
    }

    /// The maximum size of a data frame at this point, in bytes.
    fn room(&self, opcode: Opcode, compressed: bool) -> Result<usize, Close> {
        let (held, compressed) =
            self.message.as_ref().map_or((0, compressed), |message| (message.bytes.len(), message.compressed));
        // What cannot be compressed becomes a little longer.
        let longer = if compressed { self.limit as usize / 1024 + 64 } else { 0 };
        match (&self.message, opcode) {
            (None, Opcode::Continuation) => Err(protocol_error("a continuation without a message to continue")),
            (Some(_), Opcode::Text | Opcode::Binary) => Err(protocol_error("a new message within a fragmented one")),
            _ => Ok(self.limit as usize + longer - held),
        }
    }

    fn frame(&mut self, header: &Header, payload: &[u8]) -> Result<Option<Incoming>, Close> {
        match header.opcode {
            Opcode::Ping => return Ok(Some(Incoming::Ping(payload.to_vec()))),
            Opcode::Pong => return Ok(Some(Incoming::Pong)),
            Opcode::Close => return close_code(payload).map(|code| Some(Incoming::Close(code))),
            Opcode::Continuation | Opcode::Text | Opcode::Binary => {}
        }
        let mut message = self.message.take().unwrap_or_else(|| Fragments::new(header));
        message.bytes.extend_from_slice(payload);
        if message.compressed && header.fin {
            message.bytes = inflate(&message.bytes, self.limit as usize)?;
        }
        if message.text && (!message.compressed || header.fin) {
            message.check(header.fin)?;
        }
        if header.fin {
            return Ok(Some(Incoming::Message { text: message.text, bytes: message.bytes }));
        }
        self.message = Some(message);
        Ok(None)
    }
}

impl Fragments {
    fn new(first: &Header) -> Box<Self> {
        let text = first.opcode == Opcode::Text;
        Box::new(Self { text, compressed: first.compressed, bytes: Vec::new(), checked: 0 })
    }

    /// Checks the new bytes. A character may continue in the next fragment, unless this is the
    /// last.
    fn check(&mut self, is_last: bool) -> Result<(), Close> {
        match std::str::from_utf8(&self.bytes[self.checked..]) {
            Ok(new) => self.checked += new.len(),
            Err(error) if error.error_len().is_none() && !is_last => self.checked += error.valid_up_to(),
            Err(_) => {
                return Err(Close::new(Code::InvalidUtf8, "a text message must be UTF-8; send bytes as binary"));
            }
        }
        Ok(())
    }
}

struct Header {
    fin: bool,
    compressed: bool,
    opcode: Opcode,
    mask: [u8; 4],
    payload: Range<usize>,
}

impl Header {
    /// Reads a header; `None` if it is incomplete. `inflates`: whether messages may be compressed.
    /// `room` returns the maximum length of a data frame, compressed or not, if one is allowed here.
    fn parse(
        bytes: &[u8],
        inflates: bool,
        room: impl FnOnce(Opcode, bool) -> Result<usize, Close>,
    ) -> Result<Option<Self>, Close> {
        let [first, second, rest @ ..] = bytes else { return Ok(None) };
        let opcode = opcode(first & 0x0F)?;
        let compressed = first & RESERVED == COMPRESSED;
        // Only the first frame of a message says whether it is compressed.
        if first & RESERVED != 0 && !(inflates && compressed && matches!(opcode, Opcode::Text | Opcode::Binary)) {
            return Err(protocol_error("a reserved bit is set that was not negotiated"));
        }
        let fin = first & FIN != 0;
        if second & MASKED == 0 {
            return Err(protocol_error("a client's frame must be masked"));
        }
        let (length, size) = match second & !MASKED {
            126 => match rest.first_chunk::<2>() {
                Some(bytes) => (u64::from(u16::from_be_bytes(*bytes)), 2),
                None => return Ok(None),
            },
            127 => match rest.first_chunk::<8>() {
                Some(bytes) => (u64::from_be_bytes(*bytes), 8),
                None => return Ok(None),
            },
            short => (u64::from(short), 0),
        };
        let is_control = opcode as u8 >= 0x8;
        if is_control && (!fin || length > MAX_CONTROL as u64) {
            return Err(protocol_error("a control frame must be unfragmented and at most 125 bytes long"));
        }
        // Check only the header, so that a frame that is too long is never buffered.
        if !is_control && length > room(opcode, compressed)? as u64 {
            return Err(Close::new(Code::MessageTooBig, "the message exceeds the limit of this server"));
        }
        let Some(mask) = rest[size..].first_chunk::<4>() else { return Ok(None) };
        let start = 2 + size + 4;
        Ok(Some(Self { fin, compressed, opcode, mask: *mask, payload: start..start + length as usize }))
    }
}

fn opcode(bits: u8) -> Result<Opcode, Close> {
    Ok(match bits {
        0x0 => Opcode::Continuation,
        0x1 => Opcode::Text,
        0x2 => Opcode::Binary,
        0x8 => Opcode::Close,
        0x9 => Opcode::Ping,
        0xA => Opcode::Pong,
        _ => return Err(protocol_error("a reserved opcode")),
    })
}

/// Parses the code of a close frame of a client (RFC 6455, 7.4.1 and 7.4.2).
fn close_code(payload: &[u8]) -> Result<Option<u16>, Close> {
    let (code, reason) = match payload {
        [] => return Ok(None),
        [high, low, reason @ ..] => (u16::from_be_bytes([*high, *low]), reason),
        [_] => return Err(protocol_error("half a close code")),
    };
    if std::str::from_utf8(reason).is_err() {
        return Err(Close::new(Code::InvalidUtf8, "a close reason must be UTF-8"));
    }
    // IANA assigned 1012 to 1014. 1004 is reserved; 1005, 1006 and 1015 are never sent.
    if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) {
        return Err(protocol_error("a close code that must not be sent"));
    }
    Ok(Some(code))
}

fn protocol_error(detail: &'static str) -> Close {
    Close::new(Code::ProtocolError, detail)
}

/// Unmasks bytes of a client, eight at a time.
fn unmask(bytes: &mut [u8], mask: [u8; 4]) {
    let [a, b, c, d] = mask;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (chunks, rest) = bytes.as_chunks_mut::<8>();
    for chunk in chunks {
        *chunk = (u64::from_ne_bytes(*chunk) ^ wide).to_ne_bytes();
    }
    for (byte, mask) in rest.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= mask;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MASK: [u8; 4] = [0x12, 0x34, 0x56, 0x78];

    /// A frame of a client.
    fn sent(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        write_header(Opcode::Binary, payload.len(), &mut frame);
        frame[0] = first;
        frame[1] |= MASKED;
        frame.extend(MASK);
        frame.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        frame
    }

    /// Decodes a stream in chunks of at most `size` bytes. Returns the messages, and the error that
    /// ended decoding.
    fn read(bytes: &[u8], size: usize, limit: usize) -> (Vec<Incoming>, Option<Code>) {
        let mut decoder = Decoder::new(limit, false);
        let mut seen = Vec::new();
        for chunk in bytes.chunks(size) {
            if let Err(close) = decoder.decode(&mut chunk.to_vec(), |incoming| seen.push(incoming)) {
                return (seen, Some(close.code));
            }
        }
        (seen, None)
    }

    fn binary(bytes: &[u8]) -> Incoming {
        Incoming::Message { text: false, bytes: bytes.to_vec() }
    }

    #[test]
    fn a_header_has_the_size_that_its_length_needs() {
        for (length, header) in [
            (0, &b"\x82\x00"[..]),
            (125, b"\x82\x7D"),
            (126, b"\x82\x7E\x00\x7E"),
            (65_535, b"\x82\x7E\xFF\xFF"),
            (65_536, b"\x82\x7F\x00\x00\x00\x00\x00\x01\x00\x00"),
        ] {
            let mut out = Vec::new();
            write_header(Opcode::Binary, length, &mut out);
            assert_eq!(out, header, "{length}");
            assert!(out.len() <= MAX_HEADER);
        }
    }

    #[test]
    fn a_message_of_any_size_is_read_whatever_chunks_it_comes_in() {
        for length in [0, 1, 3, 4, 5, 7, 8, 9, 125, 126, 65_535, 65_536] {
            let payload: Vec<u8> = (0..length).map(|index| (index % 251) as u8).collect();
            let bytes = [sent(0x82, &payload), sent(0x89, b"?")].concat();
            // Sizes that are not multiples of four test each alignment of the mask.
            for size in [1, 2, 3, 5, 6, 7, 9, 13, 4096, bytes.len()] {
                let expected = vec![binary(&payload), Incoming::Ping(b"?".to_vec())];
                assert_eq!(read(&bytes, size, length), (expected, None), "{length} bytes in chunks of {size}");
            }
        }
    }

    #[test]
    fn the_limit_counts_all_fragments_and_no_control_frame() {
        let begun = [sent(0x02, b"abc"), sent(0x89, b"12345678")].concat();
        let ping = || Incoming::Ping(b"12345678".to_vec());
        let exact = [begun.clone(), sent(0x80, b"de")].concat();
        assert_eq!(read(&exact, 1, 5), (vec![ping(), binary(b"abcde")], None));
        assert_eq!(
            read(&[begun.clone(), sent(0x80, b"def")].concat(), 1, 5),
            (vec![ping()], Some(Code::MessageTooBig))
        );
        // A new message within a fragmented one is refused as well if it is too big.
        assert_eq!(read(&[begun, sent(0x82, b"def")].concat(), 1, 5), (vec![ping()], Some(Code::ProtocolError)));
        assert_eq!(read(&sent(0x80, b"too long"), 1, 5), (vec![], Some(Code::ProtocolError)));
        // The header suffices for the refusal, without the payload.
        assert_eq!(read(b"\x82\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF", 1, 5), (vec![], Some(Code::MessageTooBig)));
    }

    #[test]
    fn a_text_is_refused_at_its_first_wrong_fragment() {
        let euro = "€".as_bytes();
        let split = [sent(0x01, &euro[..1]), sent(0x00, &euro[1..2]), sent(0x80, &euro[2..])].concat();
        assert_eq!(read(&split, 7, 3), (vec![Incoming::Message { text: true, bytes: euro.to_vec() }], None));
        let (seen, code) = read(&[sent(0x01, b"a\xFF"), sent(0x89, b"")].concat(), 64, 9);
        assert_eq!((seen, code), (vec![], Some(Code::InvalidUtf8)));
        let (seen, code) = read(&[sent(0x01, &euro[..2]), sent(0x89, b""), sent(0x80, b"")].concat(), 64, 9);
        assert_eq!((seen, code), (vec![Incoming::Ping(Vec::new())], Some(Code::InvalidUtf8)));
    }

    #[test]
    fn only_close_codes_that_may_be_sent_are_taken() {
        let allowed = |code: u16| matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999);
        for code in 0..=u16::MAX {
            let (seen, refused) = read(&sent(0x88, &code.to_be_bytes()), 64, 0);
            match allowed(code) {
                true => assert_eq!((seen, refused), (vec![Incoming::Close(Some(code))], None)),
                false => assert_eq!((seen, refused), (vec![], Some(Code::ProtocolError)), "{code}"),
            }
        }
        assert_eq!(read(&sent(0x88, b""), 64, 0), (vec![Incoming::Close(None)], None));
        assert_eq!(read(&sent(0x88, b"\x03"), 64, 0), (vec![], Some(Code::ProtocolError)));
        assert_eq!(read(&sent(0x88, b"\x03\xE8\xFF"), 64, 0), (vec![], Some(Code::InvalidUtf8)));
    }

    #[test]
    fn nothing_is_read_after_a_close() {
        let bytes = [sent(0x88, b""), sent(0x89, b"late"), b"\xFF\xFF".to_vec()].concat();
        assert_eq!(read(&bytes, bytes.len(), 9), (vec![Incoming::Close(None)], None));
    }

    #[test]
    fn a_large_message_leaves_no_large_buffer_behind() {
        let mut decoder = Decoder::new(1 << 20, false);
        let bytes = [sent(0x82, &vec![7; 1 << 20]), sent(0x89, b"?")].concat();
        let (most, rest) = bytes.split_at(bytes.len() - 1);
        for chunk in most.chunks(64 << 10) {
            decoder.decode(&mut chunk.to_vec(), |_| {}).expect("valid frames");
        }
        assert!(!decoder.is_idle() && decoder.partial.capacity() < 1 << 10, "{}", decoder.partial.capacity());
        decoder.decode(&mut rest.to_vec(), |_| {}).expect("valid frames");
        assert!(decoder.is_idle() && decoder.partial.capacity() == 0);
    }
}
