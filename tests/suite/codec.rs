//! The WebSocket codec against tungstenite, an implementation that many others have tested: what random clients send is
//! read by both, cut into the same chunks, and both must see the same and judge the same; what ours writes tungstenite must
//! read.
//!
//! Where the two differ on purpose, and how the comparison allows for it:
//!
//! * **Ours judges a frame by its header**, tungstenite when its payload is there too. On a stream that ends within a frame
//!   ours may have refused it already; tungstenite must then say the same once the rest has come. For the same reason
//!   tungstenite has no frame limit here: it would judge the length before everything else.
//! * **A close code that must not be sent** is an error to ours. tungstenite reports a close, with the code 1002 and the reason
//!   'Protocol violation' in place of the client's.
//! * **1014** (bad gateway; registered with IANA after the RFC) is a valid code to ours, not to tungstenite.
//! * **The payload of a pong** is thrown away by ours: no one asks for it.
//! * **After a close or an error** ours reads nothing more; the comparison ends there.
//!
//! Both take a length that is written in more bytes than it needs, which RFC 6455 (5.2) does not allow: nothing depends on it.

use std::io::{self, Read, Write};

use livebridge::close::{Close, Code};
use livebridge::delivery::framing::websocket::{self as frame, Decoder, Incoming, Opcode};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::protocol::{Role, WebSocketConfig};
use tungstenite::{Error, Message, WebSocket};

const STREAMS: u64 = 10_000;
/// A limit that no random message reaches.
const ROOMY: usize = 200_000;

/// What a reader saw, in order.
#[derive(PartialEq, Eq, Debug, Clone)]
enum Seen {
    Text(Vec<u8>),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong,
    Close(Option<u16>),
    Refused(Verdict),
}

/// Why a reader gave up.
#[derive(PartialEq, Eq, Debug, Clone, Copy)]
enum Verdict {
    Protocol,
    Utf8,
    TooBig,
}

#[test]
fn random_clients_are_read_as_tungstenite_reads_them() {
    let mut tally = Tally::default();
    for seed in 0..STREAMS {
        let mut rng = StdRng::seed_from_u64(seed);
        let limit = *[0, 1, 125, 126, 1000, 65_535, 65_536, ROOMY, ROOMY, ROOMY, ROOMY].choose(&mut rng).unwrap();
        let bytes = Stream::random(&mut rng);
        let cuts = cuts(&mut rng, bytes.len());

        let ours = read_with_ours(&bytes, &cuts, limit);
        let theirs = read_with_tungstenite(&bytes, &cuts, limit);
        assert_eq!(ours, theirs, "seed {seed}, limit {limit}, cuts {cuts:?}, {}", hex(&bytes));
        tally.count(&ours);

        // Only the beginning of the stream: whatever ours sees earlier, tungstenite sees on the whole.
        let end = rng.random_range(0..=bytes.len());
        let begun = read_with_ours(&bytes[..end], &cuts, limit);
        let begun_theirs = read_with_tungstenite(&bytes[..end], &cuts, limit);
        assert!(theirs.starts_with(&begun), "seed {seed}, limit {limit}: ours saw in {end} bytes {begun:?}");
        assert!(
            begun.starts_with(&begun_theirs),
            "seed {seed}, limit {limit}: ours missed in {end} bytes {begun_theirs:?}"
        );
        assert!(begun.len() <= begun_theirs.len() + 1, "seed {seed}: only a refusal may come earlier");
    }
    tally.check();
}

#[test]
fn what_is_written_is_read_by_tungstenite() {
    let mut rng = StdRng::seed_from_u64(7);
    let edges = (0..=130).chain(65_530..=65_540).chain([1 << 20]);
    for length in edges {
        let bytes: Vec<u8> = (0..length).map(|_| rng.random()).collect();
        let text: String = (0..length).map(|_| rng.random_range('a'..='z')).collect();
        let mut out = Vec::new();
        frame::write(Opcode::Binary, &bytes, &mut out);
        frame::write(Opcode::Text, text.as_bytes(), &mut out);
        let mut expected = vec![Message::binary(bytes.clone()), Message::text(text)];
        if length <= 125 {
            frame::write(Opcode::Ping, &bytes, &mut out);
            frame::write(Opcode::Pong, &bytes, &mut out);
            expected.extend([Message::Ping(bytes.clone().into()), Message::Pong(bytes.into())]);
        }
        assert_eq!(read_as_client(&out), expected, "{length} bytes");
    }
}

#[test]
fn every_close_is_read_by_tungstenite_with_its_code_and_reason() {
    use Code::*;
    let codes = [ProtocolError, InvalidUtf8, PublishRefused, MessageTooBig, Restarting, PublishFailed, FellBehind, Gap];
    for code in codes {
        // Long, and of characters that a cut could split.
        for detail in [String::new(), "plain".into(), "ü".repeat(200), "x".to_owned() + &"\u{1F980}".repeat(60)] {
            let close = Close::new(code, detail);
            let mut out = Vec::new();
            frame::write_close(close.code.number(), &close.reason(), &mut out);
            let [Message::Close(Some(seen))] = &read_as_client(&out)[..] else { panic!("{close:?}") };
            assert_eq!(Some(u16::from(seen.code)), code.number());
            assert_eq!(seen.reason.as_str(), close.reason());
            assert!(seen.reason.starts_with(code.name()));
        }
    }
    for (answer, expected) in [(None, None), (Some(1000), Some(CloseCode::Normal)), (Some(4321), Some(4321.into()))] {
        let mut out = Vec::new();
        frame::write_close(Close::answer(answer).code.number(), "", &mut out);
        let [Message::Close(seen)] = &read_as_client(&out)[..] else { panic!("{answer:?}") };
        assert_eq!(seen.as_ref().map(|frame| frame.code), expected);
    }
}

#[test]
fn a_length_that_nobody_could_send_is_refused_by_its_header() {
    // tungstenite without a frame limit would reserve the memory, so it has no say here.
    for length in [ROOMY as u64 + 1, u64::from(u32::MAX), u64::MAX >> 1, u64::MAX] {
        let mut bytes = vec![0x82, 0x80 | 127];
        bytes.extend(length.to_be_bytes());
        assert_eq!(read_with_ours(&bytes, &[], ROOMY), [Seen::Refused(Verdict::TooBig)], "{length}");
    }
}

fn read_with_ours(bytes: &[u8], cuts: &[usize], limit: usize) -> Vec<Seen> {
    let mut decoder = Decoder::new(limit, false);
    let mut seen = Vec::new();
    for chunk in chunks(bytes, cuts) {
        let read = decoder.decode(&mut chunk.to_vec(), |incoming| {
            seen.push(match incoming {
                Incoming::Message { text: true, bytes } => Seen::Text(bytes),
                Incoming::Message { text: false, bytes } => Seen::Binary(bytes),
                Incoming::Ping(payload) => Seen::Ping(payload),
                Incoming::Pong => Seen::Pong,
                Incoming::Close(code) => Seen::Close(code),
            });
        });
        if let Err(close) = read {
            seen.push(Seen::Refused(match close.code {
                Code::ProtocolError => Verdict::Protocol,
                Code::InvalidUtf8 => Verdict::Utf8,
                Code::MessageTooBig => Verdict::TooBig,
                other => panic!("the codec does not close with {other:?}"),
            }));
        }
        if matches!(seen.last(), Some(Seen::Refused(_) | Seen::Close(_))) {
            break;
        }
    }
    seen
}

fn read_with_tungstenite(bytes: &[u8], cuts: &[usize], limit: usize) -> Vec<Seen> {
    let config =
        WebSocketConfig::default().max_message_size(Some(limit)).max_frame_size(None).read_buffer_size(4 << 10);
    let socket = Chunks { chunks: chunks(bytes, cuts), rest: &[] };
    let mut socket = WebSocket::from_raw_socket(socket, Role::Server, Some(config));
    let mut seen = Vec::new();
    loop {
        seen.push(match socket.read() {
            Ok(Message::Text(text)) => Seen::Text(text.as_bytes().to_vec()),
            Ok(Message::Binary(bytes)) => Seen::Binary(bytes.to_vec()),
            Ok(Message::Ping(payload)) => Seen::Ping(payload.to_vec()),
            Ok(Message::Pong(_)) => Seen::Pong,
            Ok(Message::Close(Some(close))) if close.reason == "Protocol violation" => Seen::Refused(Verdict::Protocol),
            Ok(Message::Close(close)) => Seen::Close(close.map(|close| close.code.into())),
            Ok(Message::Frame(_)) => panic!("never read"),
            Err(Error::Protocol(_)) => Seen::Refused(Verdict::Protocol),
            Err(Error::Utf8(_)) => Seen::Refused(Verdict::Utf8),
            Err(Error::Capacity(_)) => Seen::Refused(Verdict::TooBig),
            Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                if socket.get_ref().is_empty() {
                    return seen;
                }
                continue;
            }
            Err(other) => panic!("{other}"),
        });
        if matches!(seen.last(), Some(Seen::Refused(_) | Seen::Close(_))) {
            return seen;
        }
    }
}

/// What a client reads of a server's bytes.
fn read_as_client(bytes: &[u8]) -> Vec<Message> {
    let socket = Chunks { chunks: vec![bytes], rest: &[] };
    let mut socket = WebSocket::from_raw_socket(socket, Role::Client, None);
    let mut messages = Vec::new();
    loop {
        match socket.read() {
            Ok(message) => {
                let closes = message.is_close();
                messages.push(message);
                if closes {
                    return messages;
                }
            }
            Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                if socket.get_ref().is_empty() {
                    return messages;
                }
            }
            Err(other) => panic!("{other}"),
        }
    }
}

/// A socket on which the chunks arrive one by one, and that swallows what is sent.
struct Chunks<'a> {
    chunks: Vec<&'a [u8]>,
    rest: &'a [u8],
}

impl Chunks<'_> {
    fn is_empty(&self) -> bool {
        self.chunks.is_empty() && self.rest.is_empty()
    }
}

impl Read for Chunks<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.rest.is_empty() {
            if !self.chunks.is_empty() {
                self.rest = self.chunks.remove(0);
            }
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.rest.read(buffer)
    }
}

impl Write for Chunks<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What is longer repeats itself: random bytes cost time. Odd, so that no mask fits its period.
const PATTERN: usize = 1021;

/// What a random client sends: mostly right, with at most a few mistakes.
struct Stream<'a> {
    bytes: Vec<u8>,
    rng: &'a mut StdRng,
    /// How likely each frame has a mistake, in percent.
    mistakes: u32,
}

impl<'a> Stream<'a> {
    fn random(rng: &'a mut StdRng) -> Vec<u8> {
        let mistakes = *[0, 5, 20].choose(rng).unwrap();
        let mut stream = Self { bytes: Vec::new(), rng, mistakes };
        for _ in 0..stream.rng.random_range(1..8) {
            match stream.rng.random_range(0..10) {
                0 | 1 => stream.control(),
                2 if stream.rng.random_ratio(1, 3) => stream.close(),
                _ => stream.message(),
            }
        }
        stream.bytes
    }

    fn slips(&mut self) -> bool {
        self.rng.random_ratio(self.mistakes, 100)
    }

    /// A message in some fragments, with other frames in between.
    fn message(&mut self) {
        let text = self.rng.random();
        let payload = if text { self.text() } else { self.binary() };
        let opcode = if text { 0x1 } else { 0x2 };
        let fragments = if self.rng.random_ratio(1, 2) { 1 } else { self.rng.random_range(2..6) };
        // Anywhere, even within a character, even at the same place.
        let mut borders: Vec<usize> = (1..fragments).map(|_| self.rng.random_range(0..=payload.len())).collect();
        borders.sort_unstable();
        borders.push(payload.len());
        let mut from = 0;
        for (index, &to) in borders.iter().enumerate() {
            let is_first = (index == 0) != self.slips();
            let is_last = (index + 1 == fragments) != self.slips();
            self.frame(if is_first { opcode } else { 0x0 }, is_last, &payload[from..to]);
            from = to;
            if self.rng.random_ratio(1, 5) {
                self.control();
            }
        }
    }

    fn control(&mut self) {
        let most = if self.slips() { 140 } else { 125 };
        let length = *[0, 1, 4, 124, most].choose(self.rng).unwrap();
        let payload = self.some_bytes(length);
        let (opcode, fin) = (if self.rng.random() { 0x9 } else { 0xA }, !self.slips());
        self.frame(opcode, fin, &payload);
    }

    fn close(&mut self) {
        let payload = match self.rng.random_range(0..8) {
            0 => Vec::new(),
            1 => vec![3],
            kind => {
                let valid = [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 3000, 3999, 4000, 4999];
                let code: u16 = match kind {
                    2 => *[0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2999, 5000, 65_535].choose(self.rng).unwrap(),
                    _ => *valid.choose(self.rng).unwrap(),
                };
                let mut payload = code.to_be_bytes().to_vec();
                let reason = self.text();
                payload.extend(&reason[..reason.len().min(self.rng.random_range(0..124))]);
                payload
            }
        };
        self.frame(0x8, true, &payload);
    }

    fn frame(&mut self, opcode: u8, fin: bool, payload: &[u8]) {
        let mut first = opcode | if fin { 0x80 } else { 0 };
        let mut masked = true;
        if self.slips() {
            match self.rng.random_range(0..3) {
                0 => first |= 0x10 << self.rng.random_range(0..3),
                1 => {
                    first = first & 0xF0 | *[0x3, 0x4, 0x5, 0x6, 0x7, 0xB, 0xC, 0xD, 0xE, 0xF].choose(self.rng).unwrap()
                }
                _ => masked = false,
            }
        }
        self.bytes.push(first);
        let mask_bit = if masked { 0x80 } else { 0 };
        let wasteful = self.rng.random_ratio(1, 30);
        match payload.len() {
            length @ 0..=125 if !wasteful => self.bytes.push(mask_bit | length as u8),
            length @ 0..=65_535 if !wasteful || length > 125 => {
                self.bytes.push(mask_bit | 126);
                self.bytes.extend((length as u16).to_be_bytes());
            }
            length => {
                self.bytes.push(mask_bit | 127);
                self.bytes.extend((length as u64).to_be_bytes());
            }
        }
        if !masked {
            self.bytes.extend_from_slice(payload);
            return;
        }
        let mask: [u8; 4] = self.rng.random();
        self.bytes.extend(mask);
        self.bytes.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    }

    fn length(&mut self) -> usize {
        match self.rng.random_range(0..40) {
            0 => *[65_534, 65_535, 65_536, 65_537, 70_000].choose(self.rng).unwrap(),
            1..=4 => *[125, 126, 127, 128].choose(self.rng).unwrap(),
            5..=8 => self.rng.random_range(128..3000),
            9 => 0,
            _ => self.rng.random_range(0..60),
        }
    }

    fn text(&mut self) -> Vec<u8> {
        let length = self.length();
        let mut text = String::new();
        while text.len() < length.min(PATTERN) {
            // A range for each length in UTF-8.
            text.push(match self.rng.random_range(0..6) {
                0 => self.rng.random_range('\u{80}'..='\u{7FF}'),
                1 => self.rng.random_range('\u{800}'..='\u{FFFF}'),
                2 => self.rng.random_range('\u{10000}'..='\u{10FFFF}'),
                _ => self.rng.random_range(' '..='~'),
            });
        }
        let mut bytes = text.repeat(length.div_ceil(PATTERN)).into_bytes();
        if self.slips() && !bytes.is_empty() {
            match self.rng.random_range(0..3) {
                0 => bytes.truncate(bytes.len() - 1),
                1 => {
                    let at = self.rng.random_range(0..bytes.len());
                    bytes[at] = self.rng.random();
                }
                _ => {
                    // A surrogate, an overlong slash, a character beyond the last, a byte that never occurs.
                    let bad: [&[u8]; 4] = [b"\xED\xA0\x80", b"\xC0\xAF", b"\xF4\x90\x80\x80", b"\xFF"];
                    let at = self.rng.random_range(0..=bytes.len());
                    bytes.splice(at..at, bad.choose(self.rng).unwrap().iter().copied());
                }
            }
        }
        bytes
    }

    fn binary(&mut self) -> Vec<u8> {
        let length = self.length();
        self.some_bytes(length)
    }

    fn some_bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length.min(PATTERN)];
        self.rng.fill(&mut bytes[..]);
        bytes = bytes.repeat(length.div_ceil(PATTERN));
        bytes.truncate(length);
        bytes
    }
}

/// Where a stream is cut: not at all, in a few places, or after every byte at its beginning.
fn cuts(rng: &mut StdRng, length: usize) -> Vec<usize> {
    let mut cuts: Vec<usize> = match rng.random_range(0..4) {
        0 => Vec::new(),
        1 => (1..length.min(200)).collect(),
        _ => (0..rng.random_range(0..12)).map(|_| rng.random_range(0..=length)).collect(),
    };
    cuts.sort_unstable();
    cuts
}

fn chunks<'a>(bytes: &'a [u8], cuts: &[usize]) -> Vec<&'a [u8]> {
    let mut chunks = Vec::new();
    let mut from = 0;
    for &cut in cuts.iter().chain([&bytes.len()]) {
        let to = cut.min(bytes.len());
        chunks.push(&bytes[from..to]);
        from = to;
    }
    chunks.retain(|chunk| !chunk.is_empty());
    chunks
}

/// How often each thing was seen: a comparison in which nothing happens proves nothing.
#[derive(Default, Debug)]
struct Tally {
    messages: u32,
    large: u32,
    pings: u32,
    closes: u32,
    protocol: u32,
    utf8: u32,
    too_big: u32,
    unharmed: u32,
}

impl Tally {
    fn count(&mut self, seen: &[Seen]) {
        for one in seen {
            match one {
                Seen::Text(bytes) | Seen::Binary(bytes) => {
                    self.messages += 1;
                    self.large += u32::from(bytes.len() > 65_535);
                }
                Seen::Ping(_) | Seen::Pong => self.pings += 1,
                Seen::Close(_) => self.closes += 1,
                Seen::Refused(Verdict::Protocol) => self.protocol += 1,
                Seen::Refused(Verdict::Utf8) => self.utf8 += 1,
                Seen::Refused(Verdict::TooBig) => self.too_big += 1,
            }
        }
        self.unharmed += u32::from(!matches!(seen.last(), Some(Seen::Close(_) | Seen::Refused(_))));
    }

    fn check(&self) {
        let Self { messages, large, pings, closes, protocol, utf8, too_big, unharmed } = *self;
        for count in [messages, large, pings, closes, protocol, utf8, too_big, unharmed] {
            assert!(count >= 100, "{self:?}");
        }
    }
}

/// The beginning of a stream, to look at.
fn hex(bytes: &[u8]) -> String {
    let head = bytes.iter().take(200).map(|byte| format!("{byte:02x}")).collect::<String>();
    format!("{} bytes: {head}", bytes.len())
}
