//! The Server-Sent Events transport (WHATWG HTML, 9.2): the client says nothing; whether it is there, TCP tells.

use std::collections::VecDeque;

use bytes::Bytes;

use super::connection::{Connection, Inbound};
use crate::close::Close;

/// A client that only listens.
pub struct Silent;

impl Inbound for Silent {
    fn receive(&mut self, _: &mut [u8], _: &Connection, _: &mut VecDeque<Bytes>) -> Result<(), Close> {
        // Requests pipelined behind one that never ends are never answered.
        Ok(())
    }
}
