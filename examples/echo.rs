//! A WebSocket echo on livebridge's own handshake and codec: each connection gets its own messages back, as text if they
//! were sent as text. No channels, no broker: what `scripts/autobahn` finds here is the codec's doing alone.
//!
//!     cargo run --example echo -- 127.0.0.1:9001

use std::io::{self, Write};

use http_body_util::Empty;
use hyper::body::{Bytes, Incoming as Body};
use hyper::header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_EXTENSIONS, UPGRADE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use livebridge::close::Close;
use livebridge::delivery::framing::deflated_websocket::DeflatedWebSocket;
use livebridge::delivery::framing::websocket::{self as frame, Decoder, Incoming, Opcode, WebSocket};
use livebridge::delivery::framing::{Framing, Kind};
use livebridge::http::handshake;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;

/// The largest message of the Autobahn suite has 16 MiB.
const LIMIT: usize = 16 << 20;

#[tokio::main(flavor = "current_thread")]
async fn main() -> io::Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:9001".into());
    let listener = TcpListener::bind(address).await?;
    writeln!(io::stdout(), "echo is listening on ws://{}", listener.local_addr()?)?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(answer));
        // A connection that breaks is the client's affair.
        tokio::spawn(connection.with_upgrades());
    }
}

/// Answers a handshake; an ordinary request is refused.
async fn answer(mut request: Request<Body>) -> Result<Response<Empty<Bytes>>, hyper::http::Error> {
    let Ok(accept) = handshake::accept(request.headers()) else {
        return Response::builder()
            .status(StatusCode::UPGRADE_REQUIRED)
            .header(UPGRADE, "websocket")
            .body(Empty::new());
    };
    let compression = handshake::compression(request.headers());
    let compressed = compression.is_some();
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        if let Ok(upgraded) = upgrade.await {
            // As above.
            let _ = echo(TokioIo::new(upgraded), compressed).await;
        }
    });
    let mut response = Response::builder();
    if let Some(compression) = compression {
        response = response.header(SEC_WEBSOCKET_EXTENSIONS, compression);
    }
    response
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(CONNECTION, "Upgrade")
        .header(UPGRADE, "websocket")
        .header(SEC_WEBSOCKET_ACCEPT, accept)
        .body(Empty::new())
}

/// Sends back what comes until one side closes.
async fn echo(mut stream: impl AsyncRead + AsyncWrite + Unpin, compressed: bool) -> io::Result<()> {
    let framing: &dyn Framing = if compressed { &DeflatedWebSocket } else { &WebSocket };
    let mut decoder = Decoder::new(LIMIT, compressed);
    let mut chunk = vec![0; 64 << 10];
    loop {
        let length = stream.read(&mut chunk).await?;
        if length == 0 {
            return Ok(());
        }
        let mut out = Vec::new();
        let mut closed = None;
        let read = decoder.decode(&mut chunk[..length], |incoming| match incoming {
            Incoming::Message { text: true, bytes } => framing.write(Kind::Text, &bytes, &mut out),
            Incoming::Message { text: false, bytes } => framing.write(Kind::Binary, &bytes, &mut out),
            Incoming::Ping(payload) => frame::write(Opcode::Pong, &payload, &mut out),
            Incoming::Pong => {}
            Incoming::Close(code) => closed = Some(Close::answer(code)),
        });
        closed = read.err().or(closed);
        if let Some(close) = &closed {
            frame::write_close(close.code.number(), &close.reason(), &mut out);
        }
        stream.write_all(&out).await?;
        if closed.is_some() {
            stream.shutdown().await?;
            // What still comes is read, so that the last bytes are not lost to a reset.
            while stream.read(&mut chunk).await? > 0 {}
            return Ok(());
        }
    }
}
