//! RESP3, the protocol of Redis (see "Redis serialization protocol specification"). Frames for
//! publishing and delivery are parsed in place, without building a tree of values. Other replies
//! are only measured here, and parsed by `reply.rs`.

use bytes::{BufMut, BytesMut};

/// One frame.
#[derive(Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// A published message.
    Message {
        /// The channel, or a companion of one.
        channel: &'a [u8],
        /// The payload.
        payload: &'a [u8],
    },
    /// A published message, received because its channel matches a pattern.
    PatternMessage {
        /// The pattern of the subscription.
        pattern: &'a [u8],
        /// The channel, or a companion of one.
        channel: &'a [u8],
        /// The payload.
        payload: &'a [u8],
    },
    /// Confirms a subscription.
    Subscribed {
        /// The channel, a companion of one, or a pattern.
        name: &'a [u8],
        /// Whether it receives the messages of `SPUBLISH`.
        is_sharded: bool,
    },
    /// A subscription has ended, because of a command, or because the slot of a sharded one has
    /// moved to another shard.
    Unsubscribed(&'a [u8]),
    /// A number that is not negative.
    Number(u64),
    /// An array, as the functions return it.
    Array(Items<'a>),
    /// A map, as `HELLO` returns it: keys and values in turn.
    Map(Items<'a>),
    /// An error reply, without the leading `-`.
    Refused(&'a [u8]),
    /// Any other frame.
    Other,
}

/// One element of an array.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Item<'a> {
    /// A number that is not negative.
    Number(u64),
    /// A string.
    Text(&'a [u8]),
    /// An error in place of an element.
    Refused(&'a [u8]),
    /// Any other element.
    Other,
}

/// The elements of a complete array.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Items<'a> {
    bytes: &'a [u8],
    left: usize,
}

impl<'a> Iterator for Items<'a> {
    type Item = Item<'a>;

    fn next(&mut self) -> Option<Item<'a>> {
        self.left = self.left.checked_sub(1)?;
        let mut reader = Reader { bytes: self.bytes, at: 0 };
        // The parser has checked that the array is complete and well-formed.
        let item = reader.item().unwrap_or(Item::Other);
        self.bytes = &self.bytes[reader.at..];
        Some(item)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Items<'_> {}

/// Bytes that are not RESP3.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the server sent invalid RESP3")]
pub struct Malformed;

/// The maximum length of a string, which is the default of `proto-max-bulk-len` in Redis, and a
/// nesting depth that no reply reaches.
const MOST_BYTES: usize = 512 << 20;
const MOST_NESTED: u32 = 8;

/// Why parsing stopped.
enum Missing {
    /// The frame is incomplete.
    Bytes,
    /// The bytes are not RESP3.
    Sense,
}

/// Parses the first frame and returns it with its length in bytes. `None` if it is incomplete.
///
/// # Errors
/// [`Malformed`] if the bytes are not RESP3.
pub fn parse(bytes: &[u8]) -> Result<Option<(Frame<'_>, usize)>, Malformed> {
    let mut reader = Reader { bytes, at: 0 };
    match reader.frame() {
        Ok(frame) => Ok(Some((frame, reader.at))),
        Err(Missing::Bytes) => Ok(None),
        Err(Missing::Sense) => Err(Malformed),
    }
}

/// Finds the end of a frame incrementally, and visits each of its elements once.
#[derive(Debug)]
pub(super) struct Measure {
    at: usize,
    /// How many elements are left in the frame.
    left: usize,
}

impl Default for Measure {
    fn default() -> Self {
        Self { at: 0, left: 1 }
    }
}

impl Measure {
    /// The length of the first frame, in bytes; the measure is then ready for the next frame.
    /// `None` if the frame is incomplete; call again with more bytes.
    ///
    /// # Errors
    /// [`Malformed`] if the bytes are not RESP3.
    pub(super) fn advance(&mut self, bytes: &[u8]) -> Result<Option<usize>, Malformed> {
        let mut reader = Reader { bytes, at: self.at };
        while self.left > 0 {
            let parts = match reader.step() {
                Ok(parts) => parts,
                Err(Missing::Bytes) => return Ok(None),
                Err(Missing::Sense) => return Err(Malformed),
            };
            self.left = (self.left - 1).checked_add(parts).ok_or(Malformed)?;
            self.at = reader.at;
        }
        Ok(Some(std::mem::take(self).at))
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn frame(&mut self) -> Result<Frame<'a>, Missing> {
        match self.bytes.first() {
            Some(b'>') => self.push(),
            Some(b'-') => Ok(Frame::Refused(&self.line()?[1..])),
            Some(b':') => self.line().map(|line| digits(&line[1..]).map_or(Frame::Other, Frame::Number)),
            Some(b'*') => self.items(1).map(Frame::Array),
            Some(b'%') => self.items(2).map(Frame::Map),
            _ => self.skip(MOST_NESTED).map(|()| Frame::Other),
        }
    }

    fn push(&mut self) -> Result<Frame<'a>, Missing> {
        let parts = self.count()?;
        let kind = self.bulk()?;
        let frame = match (kind, parts) {
            (b"message" | b"smessage", 3) => {
                return Ok(Frame::Message { channel: self.bulk()?, payload: self.bulk()? });
            }
            (b"pmessage", 4) => {
                let (pattern, channel) = (self.bulk()?, self.bulk()?);
                return Ok(Frame::PatternMessage { pattern, channel, payload: self.bulk()? });
            }
            (b"subscribe" | b"psubscribe", 3) => Frame::Subscribed { name: self.bulk()?, is_sharded: false },
            (b"ssubscribe", 3) => Frame::Subscribed { name: self.bulk()?, is_sharded: true },
            (b"unsubscribe" | b"sunsubscribe", 3) => Frame::Unsubscribed(self.bulk()?),
            _ => {
                self.skip_all(parts.saturating_sub(1), MOST_NESTED)?;
                return Ok(Frame::Other);
            }
        };
        self.skip(MOST_NESTED)?;
        Ok(frame)
    }

    fn items(&mut self, each: usize) -> Result<Items<'a>, Missing> {
        let left = each * self.count()?;
        let start = self.at;
        self.skip_all(left, MOST_NESTED - 1)?;
        Ok(Items { bytes: &self.bytes[start..self.at], left })
    }

    fn item(&mut self) -> Result<Item<'a>, Missing> {
        match self.bytes.get(self.at) {
            Some(b':') => Ok(digits(&self.line()?[1..]).map_or(Item::Other, Item::Number)),
            Some(b'-') => Ok(Item::Refused(&self.line()?[1..])),
            Some(b'$') if !self.bytes[self.at..].starts_with(b"$-") => self.bulk().map(Item::Text),
            _ => self.skip(MOST_NESTED).map(|()| Item::Other),
        }
    }

    /// A line with its type byte, without its end.
    fn line(&mut self) -> Result<&'a [u8], Missing> {
        let rest = &self.bytes[self.at..];
        let end = memchr::memchr(b'\n', rest).ok_or(Missing::Bytes)?;
        self.at += end + 1;
        rest[..end].strip_suffix(b"\r").filter(|line| !line.is_empty()).ok_or(Missing::Sense)
    }

    /// The number in a line that announces bytes or elements; 0 for the null of RESP2.
    fn count(&mut self) -> Result<usize, Missing> {
        let digits = &self.line()?[1..];
        if digits == b"-1" {
            return Ok(0);
        }
        let digit = |count: usize, digit: &u8| match digit {
            b'0'..=b'9' if count <= MOST_BYTES => Some(count * 10 + usize::from(digit - b'0')),
            _ => None,
        };
        let count = digits.iter().try_fold(0, digit).filter(|count| !digits.is_empty() && *count <= MOST_BYTES);
        count.ok_or(Missing::Sense)
    }

    fn bulk(&mut self) -> Result<&'a [u8], Missing> {
        if self.bytes.get(self.at).is_some_and(|kind| *kind != b'$') {
            return Err(Missing::Sense);
        }
        let length = self.count()?;
        let text = self.bytes.get(self.at..self.at + length + 2).ok_or(Missing::Bytes)?;
        self.at += length + 2;
        text.strip_suffix(b"\r\n").ok_or(Missing::Sense)
    }

    fn skip(&mut self, nested: u32) -> Result<(), Missing> {
        let nested = nested.checked_sub(1).ok_or(Missing::Sense)?;
        let parts = self.step()?;
        self.skip_all(parts, nested)
    }

    /// Skips one element. For an array or another aggregate, skips only the header, and returns how
    /// many nested elements follow.
    fn step(&mut self) -> Result<usize, Missing> {
        match self.bytes.get(self.at).ok_or(Missing::Bytes)? {
            b'$' | b'=' | b'!' => {
                let length = self.count()?;
                let null = length == 0 && self.bytes[..self.at].ends_with(b"$-1\r\n");
                let end = self.at + if null { 0 } else { length + 2 };
                self.bytes.get(..end).ok_or(Missing::Bytes)?;
                self.at = end;
                Ok(0)
            }
            b'*' | b'~' | b'>' => self.count(),
            b'%' | b'|' => self.count().map(|pairs| 2 * pairs),
            b'+' | b'-' | b':' | b'_' | b'#' | b',' | b'(' => self.line().map(|_| 0),
            _ => Err(Missing::Sense),
        }
    }

    fn skip_all(&mut self, parts: usize, nested: u32) -> Result<(), Missing> {
        (0..parts).try_for_each(|_| self.skip(nested))
    }
}

fn digits(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Appends a command, as an array of bulk strings.
pub fn write_command<'a>(parts: impl ExactSizeIterator<Item = &'a [u8]>, out: &mut BytesMut) {
    write_header(b'*', parts.len(), out);
    for part in parts {
        write_header(b'$', part.len(), out);
        out.extend_from_slice(part);
        out.extend_from_slice(b"\r\n");
    }
}

fn write_header(kind: u8, count: usize, out: &mut BytesMut) {
    out.put_u8(kind);
    out.extend_from_slice(itoa::Buffer::new().format(count).as_bytes());
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    const MESSAGE: &[u8] = b">3\r\n$7\r\nmessage\r\n$4\r\nlive\r\n$5\r\nhe\r\no\r\n";

    #[test]
    fn a_message_is_read_where_it_lies_whatever_its_bytes() {
        let frame = Frame::Message { channel: b"live", payload: b"he\r\no" };
        assert_eq!(parse(MESSAGE), Ok(Some((frame, MESSAGE.len()))));
        let confirmed = |is_sharded| Frame::Subscribed { name: b"a", is_sharded };
        assert_eq!(parse(b">3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n"), Ok(Some((confirmed(false), 30))));
        assert_eq!(parse(b">3\r\n$10\r\nssubscribe\r\n$1\r\na\r\n:1\r\n"), Ok(Some((confirmed(true), 32))));
        assert_eq!(parse(b">3\r\n$11\r\nunsubscribe\r\n$1\r\na\r\n:1\r\n"), Ok(Some((Frame::Unsubscribed(b"a"), 33))));
        assert_eq!(parse(b"-NOPERM no\r\n"), Ok(Some((Frame::Refused(b"NOPERM no"), 12))));
    }

    #[test]
    fn an_array_gives_its_elements_once_it_has_arrived_whole() {
        let bytes = b"*5\r\n$3\r\n176\r\n:17\r\n-ERR full\r\n$-1\r\n*1\r\n:1\r\n";
        (0..bytes.len()).for_each(|end| assert_eq!(parse(&bytes[..end]), Ok(None), "{end}"));
        let Ok(Some((Frame::Array(items), length))) = parse(bytes) else { panic!("an array") };
        let expected = [Item::Text(b"176"), Item::Number(17), Item::Refused(b"ERR full"), Item::Other, Item::Other];
        assert_eq!((length, items.collect::<Vec<_>>()), (bytes.len(), expected.to_vec()));
        assert!(matches!(parse(b"*0\r\n"), Ok(Some((Frame::Array(items), 4))) if items.len() == 0));
        assert_eq!(parse(b":3\r\n"), Ok(Some((Frame::Number(3), 4))));
        assert_eq!(parse(b":-3\r\n"), Ok(Some((Frame::Other, 5))));
    }

    #[test]
    fn what_has_not_arrived_yet_is_waited_for() {
        for end in 0..MESSAGE.len() {
            assert_eq!(parse(&MESSAGE[..end]), Ok(None), "{end}");
        }
        let hello = b"%2\r\n$6\r\nserver\r\n$5\r\nredis\r\n$7\r\nmodules\r\n*1\r\n%1\r\n+a\r\n$-1\r\n";
        let Ok(Some((Frame::Map(items), length))) = parse(hello) else { panic!("a map") };
        let expected = [Item::Text(b"server"), Item::Text(b"redis"), Item::Text(b"modules"), Item::Other];
        assert_eq!((length, items.collect::<Vec<_>>()), (hello.len(), expected.to_vec()));
        for end in 0..hello.len() {
            assert_eq!(parse(&hello[..end]), Ok(None), "{end}");
        }
    }

    #[test]
    fn what_is_not_resp3_is_refused() {
        let deep = "*1\r\n".repeat(9);
        let long = ">3\r\n$7\r\nmessage\r\n$99999999999999999999\r\n";
        let unended = ">3\r\n$7\r\nmessages\r\n";
        for bytes in ["HTTP/1.1 400\r\n", "\n", ">x\r\n", ">3\r\n:7\r\n", unended, long, &deep] {
            assert_eq!(parse(bytes.as_bytes()), Err(Malformed), "{bytes:?}");
        }
    }

    #[test]
    fn a_measure_finds_the_end_however_the_bytes_arrive() {
        let frame = b"*3\r\n$2\r\nab\r\n%1\r\n+a\r\n*2\r\n$-1\r\n:1\r\n-ERR no\r\n";
        let bytes = [&frame[..], b"+next\r\n"].concat();
        for step in 1..=bytes.len() {
            let mut measure = Measure::default();
            let ends = (1..=bytes.len()).filter(|end| end % step == 0).chain([bytes.len()]);
            let found = ends.map(|end| measure.advance(&bytes[..end])).find(|found| *found != Ok(None));
            assert_eq!(found, Some(Ok(Some(frame.len()))), "{step}");
            assert_eq!(measure.advance(&bytes[frame.len()..]), Ok(Some(7)), "and of the next");
        }
        assert_eq!(Measure::default().advance(b"HTTP/1.1 400\r\n"), Err(Malformed));
    }
}
