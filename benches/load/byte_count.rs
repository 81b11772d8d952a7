//! Counts the messages of subscribers whose bytes the kernel discards. All subscribers of a channel get the same
//! bytes, so what one of them has parsed says which messages the others have received. Such a reader takes little of the
//! CPU, which it shares with the server.

use std::collections::VecDeque;
use std::io;
use std::mem::MaybeUninit;

use mio::net::TcpStream;
use socket2::SockRef;

/// The number of messages that a subscriber may be behind the parsed one; more than any window.
const KEPT: usize = 4096;
/// `recv(2)`: TCP discards the bytes.
const MSG_TRUNC: i32 = 0x20;

/// The subscribers of a reader, by their index. The first one is parsed.
pub(crate) struct ByteCount {
    /// The end of each message in the bytes of the parsed subscriber, and its sequence.
    ends: VecDeque<(u64, u32)>,
    /// The number of ends that are no longer kept.
    dropped: usize,
    parsed: u64,
    received: Vec<Received>,
    space: Vec<MaybeUninit<u8>>,
}

#[derive(Clone, Default)]
struct Received {
    bytes: u64,
    messages: usize,
}

impl ByteCount {
    /// The subscriber that is parsed.
    pub(crate) const PARSED: usize = 0;

    pub(crate) fn new(subscribers: usize) -> Self {
        Self {
            ends: VecDeque::new(),
            dropped: 0,
            parsed: 0,
            received: vec![Received::default(); subscribers],
            space: vec![MaybeUninit::uninit(); 1 << 20],
        }
    }

    /// Adds bytes of the parsed subscriber, which end with a message or have none.
    pub(crate) fn parsed(&mut self, bytes: usize, message: Option<u32>) {
        self.parsed += bytes as u64;
        self.ends.extend(message.map(|sequence| (self.parsed, sequence)));
        if self.ends.len() > KEPT {
            self.ends.pop_front();
            self.dropped += 1;
        }
    }

    /// Discards what a subscriber has received.
    ///
    /// # Errors
    /// An error of the socket, or its end.
    pub(crate) fn discard(&mut self, subscriber: usize, socket: &TcpStream) -> io::Result<()> {
        loop {
            match SockRef::from(socket).recv_with_flags(&mut self.space, MSG_TRUNC) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(bytes) => {
                    self.add(subscriber, bytes);
                    if bytes < self.space.len() {
                        return Ok(());
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    /// Adds bytes that a subscriber has received.
    pub(crate) fn add(&mut self, subscriber: usize, bytes: usize) {
        self.received[subscriber].bytes += bytes as u64;
    }

    /// The next message that a subscriber has received as a whole, and that is known.
    pub(crate) fn next(&mut self, subscriber: usize) -> Option<u32> {
        let received = &mut self.received[subscriber];
        let (end, sequence) = *self.ends.get(received.messages.checked_sub(self.dropped)?)?;
        (end <= received.bytes).then(|| {
            received.messages += 1;
            sequence
        })
    }

    /// The number of subscribers, besides the parsed one, that have received other bytes than that one.
    pub(crate) fn differing(&self) -> usize {
        self.received.iter().skip(Self::PARSED + 1).filter(|received| received.bytes != self.parsed).count()
    }
}
