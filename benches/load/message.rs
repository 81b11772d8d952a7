//! The message that every delivery is checked by: who, which, when, and padding that must arrive unchanged.
//!
//! The layout is fixed-width hexadecimal text without quotes, so that it stays the same bytes inside a raw frame, an
//! SSE line, a JSON string or a Socket.IO packet:
//!
//!     load | channel (8) | stream (4) | sequence (8) | due, ns since 1970 (16) | padding

use std::sync::LazyLock;
use std::time::SystemTime;

/// Bytes before the padding.
pub(crate) const HEADER: usize = 40;

/// What each message starts with; dialects that wrap it are searched for it.
pub(crate) const MARK: &[u8; 4] = b"load";

/// The largest message that can be asked for.
pub(crate) const LARGEST: usize = 1 << 20;

static PADDING: LazyLock<Vec<u8>> = LazyLock::new(|| (0..LARGEST).map(|index| b'a' + (index % 23) as u8).collect());

/// One message, as it was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    /// The index of its channel.
    pub(crate) channel: u32,
    /// Which publisher connection sent it: order is promised within one.
    pub(crate) stream: u16,
    /// 1, 2, 3 … within the channel and stream.
    pub(crate) sequence: u32,
    /// When it was due to be published; latency counts from here.
    pub(crate) due: u64,
}

impl Message {
    /// Appends the message as `size` bytes.
    pub(crate) fn write(&self, size: usize, out: &mut Vec<u8>) {
        out.extend_from_slice(MARK);
        hexadecimal(u64::from(self.channel), 8, out);
        hexadecimal(u64::from(self.stream), 4, out);
        hexadecimal(u64::from(self.sequence), 8, out);
        hexadecimal(self.due, 16, out);
        out.extend_from_slice(&PADDING[..size - HEADER]);
    }

    /// Reads a message back; `None` where a single byte is not as it was sent.
    pub(crate) fn parse(payload: &[u8]) -> Option<Message> {
        if payload.len() < HEADER || !payload.starts_with(MARK) {
            return None;
        }
        let rest = &payload[HEADER..];
        if *rest != PADDING[..rest.len().min(LARGEST)] {
            return None;
        }
        Some(Message {
            channel: u32::try_from(number(&payload[4..12])?).ok()?,
            stream: u16::try_from(number(&payload[12..16])?).ok()?,
            sequence: u32::try_from(number(&payload[16..24])?).ok()?,
            due: number(&payload[24..40])?,
        })
    }
}

fn hexadecimal(value: u64, digits: u32, out: &mut Vec<u8>) {
    for digit in (0..digits).rev() {
        out.push(b"0123456789abcdef"[(value >> (4 * digit)) as usize & 15]);
    }
}

fn number(digits: &[u8]) -> Option<u64> {
    let mut value = 0;
    for &digit in digits {
        let nibble = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        value = value << 4 | u64::from(nibble);
    }
    Some(value)
}

/// What every channel's name starts with; its index follows.
pub(crate) const CHANNEL_PREFIX: &str = "load:";

/// The name of a channel by its index.
pub(crate) fn channel_name(index: u32) -> String {
    format!("{CHANNEL_PREFIX}{index}")
}

/// Nanoseconds since 1970. The wall clock, because publisher and readers are different processes and `Instant` has no
/// number that two processes could compare; a clock step during a run would show as an absurd percentile.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_nanos() as u64)
}
