//! The bytes of a connection that publishes or hears: RESP3 (the Redis serialization protocol specification), as far as such a
//! connection meets it. What comes is read where it lies, without a tree of values in between.

use bytes::{BufMut, BytesMut};

/// What one frame says.
#[derive(Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// A message was published.
    Message {
        /// On which channel, or on which companion of one.
        channel: &'a [u8],
        /// What.
        payload: &'a [u8],
    },
    /// A subscription is in force.
    Subscribed(&'a [u8]),
    /// Something was published: with which epoch and offset, if the channel keeps a history.
    Published(Option<[u64; 2]>),
    /// The server refused a command; why.
    Refused(&'a [u8]),
    /// Anything else.
    Other,
}

/// Bytes that are not RESP3.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("it sent something that is not RESP3")]
pub struct Malformed;

/// As much as a server sends at most in one string (`proto-max-bulk-len`), and far more than it nests.
const MOST_BYTES: usize = 512 << 20;
const MOST_NESTED: u32 = 8;

/// Why there is nothing to read.
enum Missing {
    /// The rest has yet to arrive.
    Bytes,
    /// It is not RESP3.
    Sense,
}

/// Reads the first frame and its length; `None` until it is whole.
pub fn parse(bytes: &[u8]) -> Result<Option<(Frame<'_>, usize)>, Malformed> {
    let mut reader = Reader { bytes, at: 0 };
    match reader.frame() {
        Ok(frame) => Ok(Some((frame, reader.at))),
        Err(Missing::Bytes) => Ok(None),
        Err(Missing::Sense) => Err(Malformed),
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
            // PUBLISH answers how many Redis clients heard it, which says nothing about ours.
            Some(b':') => self.line().map(|_| Frame::Published(None)),
            Some(b'*') => self.array(),
            _ => self.skip(MOST_NESTED).map(|()| Frame::Other),
        }
    }

    fn push(&mut self) -> Result<Frame<'a>, Missing> {
        let parts = self.count()?;
        let kind = self.bulk()?;
        let frame = match (kind, parts) {
            (b"message", 3) => return Ok(Frame::Message { channel: self.bulk()?, payload: self.bulk()? }),
            (b"subscribe", 3) => Frame::Subscribed(self.bulk()?),
            _ => {
                self.skip_all(parts.saturating_sub(1), MOST_NESTED)?;
                return Ok(Frame::Other);
            }
        };
        self.skip(MOST_NESTED)?;
        Ok(frame)
    }

    /// What a function answers: nothing, or two numbers.
    fn array(&mut self) -> Result<Frame<'a>, Missing> {
        match self.count()? {
            0 => return Ok(Frame::Published(None)),
            2 => {
                if let (Some(epoch), Some(offset)) = (self.number()?, self.number()?) {
                    return Ok(Frame::Published(Some([epoch, offset])));
                }
            }
            _ => {}
        }
        self.at = 0;
        self.skip(MOST_NESTED).map(|()| Frame::Other)
    }

    /// A number, written as one or as a string; `None` if it is something else.
    fn number(&mut self) -> Result<Option<u64>, Missing> {
        let digits = match self.bytes.get(self.at).ok_or(Missing::Bytes)? {
            b':' => &self.line()?[1..],
            b'$' => self.bulk()?,
            _ => return Ok(None),
        };
        Ok(std::str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok()))
    }

    /// A line with its type, without its end.
    fn line(&mut self) -> Result<&'a [u8], Missing> {
        let rest = &self.bytes[self.at..];
        let end = memchr::memchr(b'\n', rest).ok_or(Missing::Bytes)?;
        self.at += end + 1;
        rest[..end].strip_suffix(b"\r").filter(|line| !line.is_empty()).ok_or(Missing::Sense)
    }

    /// The number in a line that announces as many bytes or parts; 0 for RESP2's null.
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
        match self.bytes.get(self.at).ok_or(Missing::Bytes)? {
            b'$' | b'=' | b'!' => {
                let length = self.count()?;
                let null = length == 0 && self.bytes[..self.at].ends_with(b"$-1\r\n");
                let end = self.at + if null { 0 } else { length + 2 };
                self.bytes.get(..end).ok_or(Missing::Bytes)?;
                self.at = end;
                Ok(())
            }
            b'*' | b'~' | b'>' => {
                let parts = self.count()?;
                self.skip_all(parts, nested)
            }
            b'%' | b'|' => {
                let parts = self.count()?;
                self.skip_all(2 * parts, nested)
            }
            b'+' | b'-' | b':' | b'_' | b'#' | b',' | b'(' => self.line().map(drop),
            _ => Err(Missing::Sense),
        }
    }

    fn skip_all(&mut self, parts: usize, nested: u32) -> Result<(), Missing> {
        (0..parts).try_for_each(|_| self.skip(nested))
    }
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
        assert_eq!(parse(b">3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n"), Ok(Some((Frame::Subscribed(b"a"), 30))));
        assert_eq!(parse(b"-NOPERM no\r\n"), Ok(Some((Frame::Refused(b"NOPERM no"), 12))));
    }

    #[test]
    fn what_publishing_answers_is_a_position_or_none() {
        for (bytes, position) in [
            (&b":3\r\n"[..], None),
            (b"*0\r\n", None),
            (b"*2\r\n$16\r\n1764139000000000\r\n:17\r\n", Some([1_764_139_000_000_000, 17])),
        ] {
            assert_eq!(parse(bytes), Ok(Some((Frame::Published(position), bytes.len()))));
            (0..bytes.len()).for_each(|end| assert_eq!(parse(&bytes[..end]), Ok(None), "{end}"));
        }
        let other = b"*2\r\n+a\r\n:17\r\n";
        assert_eq!(parse(other), Ok(Some((Frame::Other, other.len()))));
    }

    #[test]
    fn what_has_not_arrived_yet_is_waited_for() {
        for end in 0..MESSAGE.len() {
            assert_eq!(parse(&MESSAGE[..end]), Ok(None), "{end}");
        }
        let hello = b"%2\r\n$6\r\nserver\r\n$5\r\nredis\r\n$7\r\nmodules\r\n*1\r\n%1\r\n+a\r\n$-1\r\n";
        assert_eq!(parse(hello), Ok(Some((Frame::Other, hello.len()))));
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
}
