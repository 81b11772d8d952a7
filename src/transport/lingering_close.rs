//! A lingering close (RFC 9112, 9.6). A socket that is closed while the client still sends is reset, and the client may
//! lose the last bytes that it was sent. So only the sending half ends first, and what still comes is read and dropped.

use std::future::poll_fn;
use std::io;
use std::time::Duration;

use tokio::time::timeout;

use crate::transport::socket::Socket;

/// How much is read at once: on the stack, since nothing of it is kept.
const PIECE: usize = 16 << 10;

/// Ends the sending half and waits for the client to end its own, for at most `time` and `bytes`.
pub async fn lingering_close(socket: &Socket, time: Duration, bytes: usize) {
    socket.shutdown_write();
    let read_away = async {
        let mut left = bytes;
        // `poll_read_ready` takes its turn with the others; `readable` would let a flood have the thread.
        while left > 0 && poll_fn(|context| socket.poll_read_ready(context)).await.is_ok() {
            match socket.try_read(&mut [0; PIECE]) {
                Ok(0) => return,
                Ok(length) => left = left.saturating_sub(length),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
        }
    };
    // Running out of time is an end like any other.
    let _ = timeout(time, read_away).await;
}
