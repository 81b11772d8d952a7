//! One TCP connection from its first byte on: hyper reads requests and warp answers them, until an answer turns out to be
//! a subscription. Then hyper is let go, and the bare socket goes on as a session: an idle subscriber costs a socket
//! and a few hundred bytes, not an HTTP server.

use std::cell::RefCell;
use std::convert::Infallible;
use std::future::{pending, poll_fn};
use std::io::Write;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper::{Request, Version, http};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpStream;
use tokio::sync::{Notify, watch};
use tokio::task::spawn_local;
use warp::filters::BoxedFilter;

use super::subscribe::{Subscription, Takeover, Transport};
use crate::session::Session;
use crate::shard::Shard;
use crate::transport::connection::Connection;
use crate::transport::sse::Silent;
use crate::transport::websocket::Frames;

/// How long a client has for the head of a request, and how long an idle connection is kept.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// The most bytes of a request's head.
const HEAD_BYTES: usize = 16 << 10;
/// The most header lines.
const HEAD_LINES: usize = 64;

/// How long, while draining, a connection that has not asked anything yet is waited for.
const FIRST_REQUEST_GRACE: Duration = Duration::from_secs(1);

/// The address that a request came from.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub SocketAddr);

/// A response's head, and the subscription that follows it.
type Handover = (http::response::Parts, Subscription);

/// Serves a connection until it ends, or becomes a subscriber's.
pub async fn serve(
    stream: TcpStream,
    peer: SocketAddr,
    routes: BoxedFilter<(warp::reply::Response,)>,
    shard: Rc<Shard>,
    mut draining: watch::Receiver<bool>,
) {
    let handover: Rc<RefCell<Option<Handover>>> = Rc::default();
    let asked = Rc::new(Notify::new());
    let answer = TowerToHyperService::new(warp::service(routes));
    let service = {
        let (handover, asked) = (handover.clone(), asked.clone());
        service_fn(move |mut request: Request<Incoming>| {
            asked.notify_one();
            request.extensions_mut().insert(Peer(peer));
            let answer = answer.call(request);
            let handover = handover.clone();
            async move {
                let response = answer.await.unwrap_or_else(|never: Infallible| match never {});
                if let Some(subscription) = response.extensions().get::<Takeover>().and_then(Takeover::take) {
                    *handover.borrow_mut() = Some((response.into_parts().0, subscription));
                    // hyper must not answer: the session does, on the bare socket.
                    pending::<()>().await;
                    unreachable!("pending() never ends");
                }
                Ok::<_, Infallible>(response)
            }
            .boxed_local()
        })
    };
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BYTES)
        .max_headers(HEAD_LINES)
        .serve_connection(TokioIo::new(stream), service);
    let mut drained = pin!(until_drained(&mut draining, &asked).fuse());
    let taken = poll_fn(|context| {
        if drained.poll_unpin(context).is_ready() {
            Pin::new(&mut connection).graceful_shutdown();
        }
        let ended = connection.poll_without_shutdown(context);
        match handover.borrow_mut().take() {
            Some(handover) => Poll::Ready(Some(handover)),
            None => ended.map(|_| None),
        }
    })
    .await;
    let parts = connection.into_parts();
    let mut stream = parts.io.into_inner();
    match taken {
        Some((head, subscription)) => {
            // The copy lets go of hyper's read buffer, which is much larger than what is left in it.
            let early = Bytes::copy_from_slice(&parts.read_buf);
            drop(parts.read_buf);
            subscribe(stream, &head, subscription, shard, early);
        }
        None => {
            let _ = tokio::io::AsyncWriteExt::shutdown(&mut stream).await;
        }
    }
}

/// Waits until the instance drains, and then a little for a first request that is on its way.
async fn until_drained(draining: &mut watch::Receiver<bool>, asked: &Notify) {
    // An error means that the instance is gone altogether.
    let _ = draining.wait_for(|draining| *draining).await;
    let _ = tokio::time::timeout(FIRST_REQUEST_GRACE, asked.notified()).await;
}

/// Begins a subscriber's life, as a task of its own: the one that served HTTP is as large as hyper's state.
fn subscribe(
    stream: TcpStream,
    head: &http::response::Parts,
    subscription: Subscription,
    shard: Rc<Shard>,
    early: Bytes,
) {
    let Subscription { dialect, transport, channels } = subscription;
    let session = Session::new(dialect, channels, write_head(head), &shard.app.instance);
    let limit = shard.app.limits.message_bytes;
    match transport {
        Transport::WebSocket => {
            let connection = Connection::new(stream, session, shard, true);
            spawn_local(connection.drive(early, Frames::new(limit)));
        }
        Transport::Sse => {
            let connection = Connection::new(stream, session, shard, false);
            spawn_local(connection.drive(early, Silent));
        }
    }
}

/// The head of a response as HTTP/1.1 writes it (RFC 9112, 4).
fn write_head(head: &http::response::Parts) -> Vec<u8> {
    debug_assert_eq!(head.version, Version::HTTP_11);
    let mut out = Vec::with_capacity(256);
    // Writing to memory does not fail.
    let _ = write!(out, "HTTP/1.1 {}\r\n", head.status);
    for (name, value) in &head.headers {
        let _ = write!(out, "{name}: ");
        out.extend_from_slice(value.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"\r\n");
    out
}
