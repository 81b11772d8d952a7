//! The plain WebSocket dialect: each message is one frame, verbatim.

use super::frame::{self, Opcode};
use super::{Dialect, Standing};
use crate::channel::ChannelName;
use crate::close::{Close, Code};
use crate::message::{Entry, Position};

/// Bare payloads: text for UTF-8, binary otherwise. It has no words for anything else: trouble closes the connection.
pub struct Raw;

impl Dialect for Raw {
    fn name(&self) -> &'static str {
        "raw"
    }

    fn welcome(&self, _: &str, _: &[Standing<'_>], _: &mut Vec<u8>) {}

    fn encode(&self, _: &ChannelName, entry: &Entry, _: &[Option<Position>], out: &mut Vec<u8>) -> Result<(), Close> {
        match entry {
            Entry::Message(message) => {
                let opcode = if message.text().is_some() { Opcode::Text } else { Opcode::Binary };
                frame::write(opcode, &message.payload, out);
                Ok(())
            }
            Entry::Gap(gap) => Err(Close::new(Code::Gap, gap.reason.explanation())),
        }
    }

    fn heartbeat(&self, out: &mut Vec<u8>) {
        frame::write(Opcode::Ping, b"", out);
    }

    fn farewell(&self, close: &Close, out: &mut Vec<u8>) {
        frame::write_close(close, out);
    }

    fn publish_error(&self, _: &str, _: &str, _: &mut Vec<u8>) -> bool {
        false
    }
}
