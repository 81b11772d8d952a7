//! The test message: identifies its channel, stream, sequence and due time, and has padding that
//! must arrive unchanged.
//!
//! It consists of fixed-width hexadecimal text without quotes, so its bytes are the same in a raw
//! frame, an SSE line, a JSON string and a Socket.IO packet:
//!
//!     load | channel (8) | stream (4) | sequence (8) | due, ns since 1970 (16) | padding

use std::sync::LazyLock;
use std::time::SystemTime;

/// The number of bytes before the padding.
pub(crate) const HEADER: usize = 40;

/// The start of each message. Dialects that wrap messages search for it.
pub(crate) const MARK: &[u8; 4] = b"load";

/// Maximum size of a message, in bytes.
pub(crate) const LARGEST: usize = 1 << 20;

static PADDING: LazyLock<Vec<u8>> = LazyLock::new(|| (0..LARGEST).map(|index| b'a' + (index % 23) as u8).collect());

/// The content of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    /// The index of its channel.
    pub(crate) channel: u32,
    /// The publisher connection that sent it. Servers only guarantee the order within one
    /// connection.
    pub(crate) stream: u16,
    /// 1, 2, 3 … within the channel and stream.
    pub(crate) sequence: u32,
    /// When it was due to be published, in nanoseconds since 1970. Latency counts from here.
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

    /// Parses a message; `None` if any byte differs from the message that was sent.
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

/// The prefix of all channel names; the index of the channel follows.
pub(crate) const CHANNEL_PREFIX: &str = "load:";

/// The name of a channel by its index.
pub(crate) fn channel_name(index: u32) -> String {
    format!("{CHANNEL_PREFIX}{index}")
}

/// The time in nanoseconds since 1970. Publisher and readers are different processes, and an
/// `Instant` cannot be compared between processes, hence the wall clock. A step of the clock during
/// a run would show as an absurd percentile.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_nanos() as u64)
}
