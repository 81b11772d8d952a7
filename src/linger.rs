//! The end of a connection on which the client may still be sending: closed at once, it would be reset, and the client could lose
//! the last bytes that it was sent (RFC 9112, 9.6). So only the sending half ends, and what still comes is read away for a little.

use std::future::poll_fn;
use std::io;
use std::net::Shutdown;
use std::time::Duration;

use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How much is read at once: on the stack, since nothing of it is kept.
const PIECE: usize = 16 << 10;

/// Ends the sending half and waits for the client to end its own, for at most so long and so many bytes.
pub async fn linger(stream: &TcpStream, time: Duration, bytes: usize) {
    let _ = SockRef::from(stream).shutdown(Shutdown::Write);
    let read_away = async {
        let mut left = bytes;
        // `poll_read_ready` takes its turn with the others; `readable` would let a flood have the thread.
        while left > 0 && poll_fn(|context| stream.poll_read_ready(context)).await.is_ok() {
            match stream.try_read(&mut [0; PIECE]) {
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
