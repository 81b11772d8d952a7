//! Lingering close (RFC 9112, 9.6). If a server closes a socket while the client still sends, the
//! kernel sends a reset, and the client may lose the last bytes of the response. So livebridge
//! first shuts down only the sending half, and then reads and discards whatever still arrives.

use std::future::poll_fn;
use std::io;
use std::time::Duration;

use tokio::time::timeout;

use crate::transport::socket::Socket;

/// Maximum bytes per read. The buffer is on the stack, since its content is discarded.
const PIECE: usize = 16 << 10;

/// Shuts down the sending half and waits for the client to close its own, for at most `time` and
/// `bytes`.
pub async fn lingering_close(socket: &Socket, time: Duration, bytes: usize) {
    socket.shutdown_write();
    let read_away = async {
        let mut left = bytes;
        // `poll_read_ready` yields to other tasks; with `readable`, a flood could occupy the
        // thread.
        while left > 0 && poll_fn(|context| socket.poll_read_ready(context)).await.is_ok() {
            match socket.try_read(&mut [0; PIECE]) {
                Ok(0) => return,
                Ok(length) => left = left.saturating_sub(length),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
        }
    };
    // A timeout ends the wait like any other end.
    let _ = timeout(time, read_away).await;
}
