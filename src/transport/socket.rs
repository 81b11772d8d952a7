//! A client's socket: the one type that HTTP and sessions read and write. TLS, or a stream of an
//! HTTP/2 connection, would become a new variant.

use std::io::{self, Read};
use std::net::{Shutdown, TcpStream as StdStream};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

/// A client's socket.
pub enum Socket {
    /// Plain TCP.
    Tcp(TcpStream),
}

impl Socket {
    /// Registers an accepted, non-blocking connection with the current thread's poll.
    ///
    /// # Errors
    /// Errors of the operating system.
    pub fn from_std(stream: StdStream) -> io::Result<Self> {
        TcpStream::from_std(stream).map(Self::Tcp)
    }

    /// Removes the connection from the current thread's poll, so that another thread can register
    /// it.
    ///
    /// # Errors
    /// Errors of the operating system.
    pub fn into_std(self) -> io::Result<StdStream> {
        match self {
            Self::Tcp(stream) => stream.into_std(),
        }
    }

    /// Writes to a connection that was just accepted, whose readiness is not known yet, and
    /// discards the bytes that it has already sent. Never waits.
    pub fn answer_and_discard(&self, answer: &[u8]) {
        let Self::Tcp(stream) = self;
        let socket = SockRef::from(stream);
        // An error means that the connection is already closed.
        let _ = socket.send(answer);
        let _ = (&*socket).read(&mut [0; 4096]);
    }

    /// Waits until a read may succeed.
    pub fn poll_read_ready(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(stream) => stream.poll_read_ready(context),
        }
    }

    /// Waits until a write may succeed.
    pub fn poll_write_ready(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(stream) => stream.poll_write_ready(context),
        }
    }

    /// Reads available bytes without waiting. 0 means that the client sends no more.
    ///
    /// # Errors
    /// `WouldBlock` if no bytes are available; other errors of the operating system.
    pub fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => {
                let length = stream.try_read(buffer)?;
                if 0 < length && length < buffer.len() {
                    // A short read has emptied the socket (epoll(7)). Clear the readiness, so that
                    // the next read waits for an event instead of making a system call that finds
                    // nothing. The end of the stream is still reported.
                    let nothing = || Err::<(), _>(io::ErrorKind::WouldBlock.into());
                    let _ = stream.try_io(Interest::READABLE, nothing);
                }
                Ok(length)
            }
        }
    }

    /// Writes as many bytes as fit, without waiting.
    ///
    /// # Errors
    /// `WouldBlock` if none fit; other errors of the operating system.
    pub fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => match stream.try_write(bytes) {
                Ok(0) if !bytes.is_empty() => Err(io::ErrorKind::WriteZero.into()),
                other => other,
            },
        }
    }

    /// Shuts down the sending half.
    pub fn shutdown_write(&self) {
        let Self::Tcp(stream) = self;
        // An error means that the connection is already closed.
        let _ = SockRef::from(stream).shutdown(Shutdown::Write);
    }

    /// Makes a close discard unsent bytes. Otherwise the kernel would keep them for a client that
    /// does not read.
    pub fn discard_on_close(&self) {
        let Self::Tcp(stream) = self;
        let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write_vectored(context, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Tcp(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}
