//! The `format=json` WebSocket dialect: each message in an envelope with its channel and position, and notices in-band.

use serde::Serialize;

use super::envelope::{self, Envelope, ErrorNotice, GapNotice, Welcome};
use super::frame::{self, MAX_HEADER, Opcode};
use super::{Dialect, Standing};
use crate::channel::ChannelName;
use crate::close::Close;
use crate::message::{Entry, Position};

/// Envelopes in text frames.
pub struct Json;

impl Dialect for Json {
    fn name(&self) -> &'static str {
        "json"
    }

    fn welcome(&self, instance: &str, channels: &[Standing<'_>], out: &mut Vec<u8>) {
        write_text(&Welcome::new(instance, channels), out);
    }

    fn encode(
        &self,
        channel: &ChannelName,
        entry: &Entry,
        _: &[Option<Position>],
        out: &mut Vec<u8>,
    ) -> Result<(), Close> {
        match entry {
            Entry::Message(message) => write_text(&Envelope::new(channel, message), out),
            Entry::Gap(gap) => write_text(&GapNotice::new(channel, gap), out),
        }
        Ok(())
    }

    fn heartbeat(&self, out: &mut Vec<u8>) {
        frame::write(Opcode::Ping, b"", out);
    }

    fn farewell(&self, close: &Close, out: &mut Vec<u8>) {
        frame::write_close(close, out);
    }

    fn publish_error(&self, code: &str, message: &str, out: &mut Vec<u8>) -> bool {
        write_text(&ErrorNotice::new(code, message), out);
        true
    }
}

/// Appends a value as a text frame. The header's size depends on the length, so the JSON is written behind the largest
/// header and moved up.
fn write_text(value: &impl Serialize, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(&[0; MAX_HEADER]);
    envelope::write(value, out);
    let length = out.len() - start - MAX_HEADER;
    let mut header = Vec::with_capacity(MAX_HEADER);
    frame::write_header(Opcode::Text, length, &mut header);
    out[start..start + header.len()].copy_from_slice(&header);
    out.copy_within(start + MAX_HEADER.., start + header.len());
    out.truncate(start + header.len() + length);
}
