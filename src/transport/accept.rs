//! The listening sockets. Each thread has its own socket on the port (`SO_REUSEPORT`), so that the
//! thread that accepts a connection usually serves it. `admission.rs` decides whether to admit a
//! connection, and whether to hand it to another thread. Refused connections get a short response
//! and cost no waiting.

use std::io;
use std::net::{SocketAddr, TcpListener as StdListener, TcpStream as StdStream};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use socket2::{Domain, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::spawn_local;

use crate::transport::admission::{Admission, Admitted};
use crate::transport::lingering_close::lingering_close;
use crate::transport::refusal::Refusal;
use crate::transport::socket::Socket;

/// Maximum number of connections that wait to be accepted; the kernel caps it at
/// `net.core.somaxconn`.
const BACKLOG: i32 = 4096;
/// The kernel closes a connection after this time without an acknowledgement, for example if the
/// client vanished without a FIN.
const PEER_TIMEOUT: Duration = Duration::from_secs(40);
/// How long to wait when no descriptors are left.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(50);
/// This many refused connections get a lingering close, so that a reset does not discard the
/// response. They use the reserved descriptors. Others are closed at once: they lose the response
/// only if they are still sending.
const MOST_LINGERING: usize = 32;
const LINGER_TIME: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 64 << 10;

/// An admitted connection.
pub struct Accepted {
    /// The socket, registered with the current thread's poll.
    pub socket: Socket,
    /// The address of the peer.
    pub peer: SocketAddr,
    /// Keeps the connection counted; must live as long as the connection.
    pub admitted: Admitted,
}

/// A connection that is being handed to another thread.
pub struct HandedOver {
    stream: StdStream,
    peer: SocketAddr,
    admitted: Admitted,
}

impl HandedOver {
    /// Registers it with the current thread's poll; `None` if the connection broke in the meantime.
    pub fn take(self) -> Option<Accepted> {
        let Self { stream, peer, admitted } = self;
        let socket = Socket::from_std(stream).inspect_err(|error| tracing::debug!(%error, "a connection broke"));
        socket.ok().map(|socket| Accepted { socket, peer, admitted })
    }
}

/// A thread's listening socket, and the queues to the other threads.
pub struct Acceptor {
    thread: usize,
    listener: TcpListener,
    admission: Arc<Admission>,
    /// The queues, by thread.
    others: Vec<mpsc::Sender<HandedOver>>,
    lingering: Arc<Semaphore>,
}

/// Opens the port, with one socket for each thread.
///
/// # Errors
/// Errors of the operating system, for example if another process listens on the port.
pub fn listen(address: SocketAddr, threads: usize) -> io::Result<Vec<StdListener>> {
    // Sockets with `SO_REUSEPORT` would also let another instance share the port. This socket has
    // no such option, so binding it fails if any process listens there.
    let exclusive = open(address)?;
    exclusive.bind(&address.into())?;
    let address = exclusive.local_addr()?;
    let listener = |_| {
        let socket = open(address.as_socket().ok_or(io::ErrorKind::Unsupported)?)?;
        socket.set_reuse_port(true)?;
        socket.bind(&address)?;
        socket.listen(BACKLOG)?;
        Ok(socket.into())
    };
    (0..threads).map(listener).collect()
}

fn open(address: SocketAddr) -> io::Result<socket2::Socket> {
    let socket = socket2::Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), None)?;
    socket.set_reuse_address(true)?;
    // Accepted sockets inherit these two options, which saves two system calls per connection.
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_user_timeout(Some(PEER_TIMEOUT))?;
    Ok(socket)
}

impl Acceptor {
    /// Registers a thread's listening socket with its poll.
    ///
    /// # Errors
    /// Errors of the operating system.
    pub fn new(
        thread: usize,
        listener: StdListener,
        admission: Arc<Admission>,
        others: Vec<mpsc::Sender<HandedOver>>,
    ) -> io::Result<Self> {
        let listener = TcpListener::from_std(listener)?;
        Ok(Self { thread, listener, admission, others, lingering: Arc::new(Semaphore::new(MOST_LINGERING)) })
    }

    /// Waits for the next connection that this thread serves. Cancel safe: dropping the future
    /// loses no connection.
    pub async fn accept(&self) -> Accepted {
        loop {
            match self.listener.accept().await {
                Ok((stream, peer)) => {
                    if let Some(accepted) = self.admit(stream, peer).and_then(|accepted| self.keep(accepted)) {
                        return accepted;
                    }
                }
                // Out of descriptors: open connections stay, new ones wait in the backlog.
                Err(error) if matches!(error.raw_os_error(), Some(EMFILE | ENFILE)) => {
                    tracing::warn!(%error, "out of descriptors: cannot accept a connection; raise `ulimit -n`");
                    tokio::time::sleep(EXHAUSTED_PAUSE).await;
                }
                // The client disconnected before it was accepted.
                Err(error) => tracing::debug!(%error, "a connection was not accepted"),
            }
        }
    }

    /// The connections that are already waiting, so that they are served before the port closes.
    pub fn pending(&self) -> impl Iterator<Item = Accepted> {
        std::iter::from_fn(|| self.listener.accept().now_or_never()?.ok())
            .filter_map(|(stream, peer)| self.admit(stream, peer))
    }

    fn admit(&self, stream: TcpStream, peer: SocketAddr) -> Option<Accepted> {
        let descriptor = u64::try_from(stream.as_raw_fd()).unwrap_or(0);
        let socket = Socket::Tcp(stream);
        match self.admission.admit(peer.ip(), descriptor, self.thread) {
            Ok(admitted) => Some(Accepted { socket, peer, admitted }),
            Err(refusal) => {
                self.reject(socket, refusal);
                None
            }
        }
    }

    /// Keeps a connection, or hands it to a thread that has fewer. The kernel distributes
    /// connections at random.
    fn keep(&self, accepted: Accepted) -> Option<Accepted> {
        let thread = accepted.admitted.thread();
        if thread == self.thread {
            return Some(accepted);
        }
        let Accepted { socket, peer, admitted } = accepted;
        let stream = socket.into_std().inspect_err(|error| tracing::debug!(%error, "a connection broke")).ok()?;
        let handed_over = self.others[thread].try_send(HandedOver { stream, peer, admitted });
        // If the queue of the other thread is full, that thread is busier than this one.
        handed_over.err().and_then(|error| error.into_inner().take())
    }

    /// Responds with the reason and closes. Never waits: a new socket has room for the response.
    fn reject(&self, socket: Socket, refusal: Refusal) {
        // Bytes that were read cannot cause a reset.
        socket.answer_and_discard(answer(refusal).as_bytes());
        if let Ok(permit) = self.lingering.clone().try_acquire_owned() {
            spawn_local(async move {
                lingering_close(&socket, LINGER_TIME, LINGER_BYTES).await;
                drop(permit);
            });
        }
    }
}

/// The whole response, in the format of all errors (see `http/error.rs`).
fn answer(refusal: Refusal) -> String {
    let (status, code, message) = refusal.answer();
    let phrase = if status == 429 { "Too Many Requests" } else { "Service Unavailable" };
    let body = format!("{}\n", serde_json::json!({"error": {"code": code, "message": message}}));
    format!(
        "HTTP/1.1 {status} {phrase}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nretry-after: {}\r\nconnection: close\r\n\r\n{body}",
        body.len(),
        refusal.retry_after(),
    )
}

const EMFILE: i32 = 24;
const ENFILE: i32 = 23;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_shared_by_the_threads_of_an_instance_and_with_no_other() {
        let listeners = listen(SocketAddr::from(([127, 0, 0, 1], 0)), 3).expect("a free port");
        let addresses: Vec<_> = listeners.iter().map(|listener| listener.local_addr().expect("an address")).collect();
        assert!(addresses.iter().all(|address| *address == addresses[0]) && addresses.len() == 3, "{addresses:?}");
        let refused = listen(addresses[0], 1).map(drop).map_err(|error| error.kind());
        assert_eq!(refused, Err(io::ErrorKind::AddrInUse));
        drop(listeners);
        assert!(listen(addresses[0], 1).is_ok());
    }
}
