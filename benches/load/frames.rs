//! The client side of WebSocket and Server-Sent Events, parsed in place without a library: readers
//! must cost as little as possible, because they share the machine with the server that is
//! measured.

use crate::Outcome;

/// A frame from the server on an open connection.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Frame<'a> {
    /// A text or binary frame.
    Data(&'a [u8]),
    Ping(&'a [u8]),
    Pong,
    /// A close frame with its code (1005 if it has none).
    Close(u16),
}

/// The first frame of `bytes` and its length; `None` while it is incomplete.
pub(crate) fn next(bytes: &[u8]) -> Outcome<Option<(Frame<'_>, usize)>> {
    let [first, second, rest @ ..] = bytes else {
        return Ok(None);
    };
    if second & 0x80 != 0 {
        return Err("a server must not mask".into());
    }
    let (header, length) = match second {
        126 => match rest {
            [a, b, ..] => (4, usize::from(u16::from_be_bytes([*a, *b]))),
            _ => return Ok(None),
        },
        127 => match rest.first_chunk::<8>() {
            Some(eight) => (10, usize::try_from(u64::from_be_bytes(*eight))?),
            None => return Ok(None),
        },
        short => (2, usize::from(*short)),
    };
    let end = header + length;
    if bytes.len() < end {
        return Ok(None);
    }
    let payload = &bytes[header..end];
    let frame = match first {
        0x81 | 0x82 => Frame::Data(payload),
        0x88 => Frame::Close(payload.first_chunk::<2>().map_or(1005, |code| u16::from_be_bytes(*code))),
        0x89 => Frame::Ping(payload),
        0x8a => Frame::Pong,
        other => {
            return Err(format!("frame with first byte {other:#x}: no server here fragments or uses extensions").into());
        }
    };
    Ok(Some((frame, end)))
}

/// Appends a masked frame, as a client must send it. The mask is zero, which the protocol allows
/// and which costs nothing.
pub(crate) fn write_masked(opcode: u8, payload: &[u8], out: &mut Vec<u8>) {
    out.push(0x80 | opcode);
    match u16::try_from(payload.len()) {
        Ok(length @ 0..=125) => out.push(0x80 | length as u8),
        Ok(length) => {
            out.push(0x80 | 126);
            out.extend_from_slice(&length.to_be_bytes());
        }
        Err(_) => {
            out.push(0x80 | 127);
            out.extend_from_slice(&(payload.len() as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(payload);
}

/// Appends an unmasked text frame, as a server sends it.
pub(crate) fn write_text(payload: &[u8], out: &mut Vec<u8>) {
    out.push(0x81);
    match u16::try_from(payload.len()) {
        Ok(length @ 0..=125) => out.push(length as u8),
        Ok(length) => {
            out.push(126);
            out.extend_from_slice(&length.to_be_bytes());
        }
        Err(_) => {
            out.push(127);
            out.extend_from_slice(&(payload.len() as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(payload);
}

/// The first chunk of a chunked HTTP body and its length; `None` while it is incomplete.
pub(crate) fn chunk(bytes: &[u8]) -> Outcome<Option<(&[u8], usize)>> {
    let Some(line) = bytes.windows(2).take(32).position(|pair| pair == b"\r\n") else {
        return if bytes.len() > 32 { Err("a chunk without a size".into()) } else { Ok(None) };
    };
    let size = usize::from_str_radix(std::str::from_utf8(&bytes[..line])?, 16)?;
    let end = line + 2 + size + 2;
    Ok((bytes.len() >= end).then(|| (&bytes[line + 2..line + 2 + size], end)))
}

/// The position of the first `needle` in `bytes`.
pub(crate) fn find(bytes: &[u8], needle: &[u8]) -> Option<usize> {
    memchr::memmem::find(bytes, needle)
}
