//! A TCP proxy that misbehaves when it is told to: between an instance and its Redis.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// A connection that is to be cut waits for so long for a reply to be cut within.
const MID_REPLY: Duration = Duration::from_millis(20);
/// The pieces of a sliced stream, in bytes: no message fits.
const SLICE: usize = 23;

pub struct Proxy {
    pub port: u16,
    faults: Arc<watch::Sender<Faults>>,
    accepting: JoinHandle<()>,
}

/// What is wrong now. A connection compares the counters with what they were when it began.
#[derive(Clone, Copy, Default)]
struct Faults {
    held: bool,
    sliced: bool,
    stalls_reads: bool,
    cuts: u64,
    deafened: u64,
}

impl Proxy {
    /// Relays what connects to `port` to a server on this machine, which need not run yet.
    pub async fn start(target_port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let faults = Arc::new(watch::Sender::new(Faults::default()));
        let told = faults.clone();
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(relay(client, target_port, told.subscribe()));
            }
        });
        Self { port, faults, accepting }
    }

    /// Closes all connections with a reset: in the middle of a reply, if one comes within a moment.
    pub fn cut(&self) {
        self.faults.send_modify(|faults| faults.cuts += 1);
    }

    /// Forwards nothing, while connections stay open and new ones are accepted.
    pub fn hold(&self, held: bool) {
        self.faults.send_modify(|faults| faults.held = held);
    }

    /// Swallows what the server says on the connections that there are and have subscribed to something: they look alive and
    /// are deaf. Commands, new connections, and what the client says still pass.
    pub fn deafen(&self) {
        self.faults.send_modify(|faults| faults.deafened += 1);
    }

    /// Swallows what the server says on each connection from its next read of a history on (`LRANGE`).
    pub fn stall_reads(&self, stalled: bool) {
        self.faults.send_modify(|faults| faults.stalls_reads = stalled);
    }

    /// Forwards in small pieces.
    pub fn slice(&self, sliced: bool) {
        self.faults.send_modify(|faults| faults.sliced = sliced);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.cut();
    }
}

async fn relay(mut client: TcpStream, target_port: u16, faults: watch::Receiver<Faults>) {
    let born = *faults.borrow();
    let Ok(mut server) = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], target_port))).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let cut = {
        let (asked, replied) = client.split();
        let (replies, asks) = server.split();
        let (subscribed, stalled) = (AtomicBool::new(false), AtomicBool::new(false));
        let said = (&subscribed, &stalled);
        let there = Direction { born, faults: faults.clone(), replies: false, subscribed: said.0, stalled: said.1 };
        let back = Direction { born, faults, replies: true, subscribed: said.0, stalled: said.1 };
        tokio::select! { cut = there.forward(asked, asks) => cut, cut = back.forward(replies, replied) => cut }
    };
    if cut {
        for stream in [&client, &server] {
            let _ = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
        }
    }
}

struct Direction<'a> {
    born: Faults,
    faults: watch::Receiver<Faults>,
    replies: bool,
    subscribed: &'a AtomicBool,
    stalled: &'a AtomicBool,
}

impl Direction<'_> {
    /// Forwards until an end. `true` if the connection is to be reset.
    async fn forward(mut self, mut from: ReadHalf<'_>, mut to: WriteHalf<'_>) -> bool {
        let mut buffer = vec![0; 16 << 10];
        loop {
            let now = *self.faults.borrow_and_update();
            if now.cuts != self.born.cuts {
                if !self.replies {
                    // The other direction does it.
                    std::future::pending::<()>().await;
                }
                if let Ok(Ok(length)) = tokio::time::timeout(MID_REPLY, from.read(&mut buffer)).await {
                    let _ = to.write_all(&buffer[..length / 2]).await;
                }
                return true;
            }
            let length = tokio::select! {
                changed = self.faults.changed() => {
                    if changed.is_err() {
                        return true;
                    }
                    continue;
                }
                read = from.read(&mut buffer), if !now.held => match read {
                    Ok(0) | Err(_) => return false,
                    Ok(length) => length,
                },
            };
            if !self.replies && buffer[..length].windows(9).any(|word| word == b"SUBSCRIBE") {
                self.subscribed.store(true, Ordering::Relaxed);
            }
            if !self.replies && now.stalls_reads && buffer[..length].windows(6).any(|word| word == b"LRANGE") {
                self.stalled.store(true, Ordering::Relaxed);
            }
            let deafened = now.deafened != self.born.deafened && self.subscribed.load(Ordering::Relaxed);
            let deaf = self.replies && (deafened || self.stalled.load(Ordering::Relaxed));
            let step = if now.sliced { SLICE } else { length };
            for piece in buffer[..length].chunks(step) {
                if !deaf && to.write_all(piece).await.is_err() {
                    return false;
                }
                if now.sliced {
                    tokio::task::yield_now().await;
                }
            }
        }
    }
}
