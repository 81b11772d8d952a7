//! The port: takes connections, asks `admission.rs` who gets in, deals sockets out to the threads, and gives those who do not get
//! in a short answer without waiting for them.

use std::io::{self, Read};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use socket2::{Domain, SockRef, Type};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc};

use crate::admission::{Admission, Admitted, Refusal};
use crate::lingering_close::lingering_close;
use crate::socket::Socket;

/// How many connections may wait to be accepted; the kernel caps it by `net.core.somaxconn`.
const BACKLOG: i32 = 4096;
/// After so long without an acknowledgement the kernel gives a peer up: one that vanished without a FIN is gone.
const PEER_TIMEOUT: Duration = Duration::from_secs(40);
/// How long to wait when there are no descriptors left.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(50);
/// So many of those who were refused are waited for, so that the answer is not lost to a reset; with the descriptors that are
/// kept in reserve. Others get it as well, unless they are still sending.
const MOST_LINGERING: usize = 32;
const LINGER_TIME: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 64 << 10;

/// A connection that was let in.
pub struct Accepted {
    /// Not registered with any thread's poll.
    pub stream: TcpStream,
    /// The other end.
    pub peer: SocketAddr,
    /// To be kept for as long as the connection.
    pub admitted: Admitted,
}

/// The open port, and the senders to the threads behind it.
pub struct Acceptor {
    listener: TcpListener,
    admission: Arc<Admission>,
    senders: Vec<mpsc::Sender<Accepted>>,
    lingering: Arc<Semaphore>,
}

/// Opens the port.
///
/// # Errors
/// Those of the system.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = socket2::Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), None)?;
    socket.set_reuse_address(true)?;
    // Accepted sockets inherit these two, which saves two system calls for each.
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_user_timeout(Some(PEER_TIMEOUT))?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

impl Acceptor {
    /// An entrance to these threads.
    pub fn new(listener: TcpListener, admission: Arc<Admission>, senders: Vec<mpsc::Sender<Accepted>>) -> Self {
        Self { listener, admission, senders, lingering: Arc::new(Semaphore::new(MOST_LINGERING)) }
    }

    /// Accepts for as long as the threads live.
    pub async fn accept(&self) {
        // Round robin: each thread gets its share of the subscribers, and so of the work.
        for sender in self.senders.iter().cycle() {
            let accepted = loop {
                match self.listener.accept().await {
                    Ok((stream, peer)) => {
                        if let Some(accepted) = self.admit(stream, peer) {
                            break accepted;
                        }
                    }
                    // Out of descriptors: those who are here stay, the others wait in the backlog.
                    Err(error) if matches!(error.raw_os_error(), Some(EMFILE | ENFILE)) => {
                        tracing::warn!(%error, "no descriptor for another connection; raise `ulimit -n`");
                        tokio::time::sleep(EXHAUSTED_PAUSE).await;
                    }
                    // The client was gone before it was accepted.
                    Err(error) => tracing::debug!(%error, "a connection was not accepted"),
                }
            };
            // A thread's end is the process's: there is nothing left to accept for.
            if sender.send(accepted).await.is_err() {
                return;
            }
        }
    }

    /// Takes in who has connected already: before the port is closed they get an answer, too.
    pub fn accept_pending(&self) {
        while let Some(Ok((stream, peer))) = self.listener.accept().now_or_never() {
            if let Some(accepted) = self.admit(stream, peer) {
                let _ = self.senders[0].try_send(accepted);
            }
        }
    }

    fn admit(&self, stream: tokio::net::TcpStream, peer: SocketAddr) -> Option<Accepted> {
        let descriptor = u64::try_from(stream.as_raw_fd()).unwrap_or(0);
        let admitted = match self.admission.admit(peer.ip(), descriptor) {
            Ok(admitted) => admitted,
            Err(refusal) => {
                self.reject(stream, refusal);
                return None;
            }
        };
        // Each thread has a poll of its own: the socket moves from this one's to that one's.
        match stream.into_std() {
            Ok(stream) => Some(Accepted { stream, peer, admitted }),
            Err(error) => {
                tracing::debug!(%error, "a connection broke before it was served");
                None
            }
        }
    }

    /// Says why, and hangs up. Never waits: a new socket has room for the answer.
    fn reject(&self, stream: tokio::net::TcpStream, refusal: Refusal) {
        let socket = SockRef::from(&stream);
        let _ = socket.send(answer(refusal).as_bytes());
        match self.lingering.clone().try_acquire_owned() {
            Ok(permit) => {
                tokio::spawn(async move {
                    lingering_close(&Socket::Tcp(stream), LINGER_TIME, LINGER_BYTES).await;
                    drop(permit);
                });
            }
            Err(_) => {
                // What has been read can't cause a reset.
                if let Ok(mut stream) = stream.into_std() {
                    let _ = stream.read(&mut [0; 4096]);
                }
            }
        }
    }
}

/// The whole response, in the form of all errors (see `http/error.rs`).
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
