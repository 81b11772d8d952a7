//! One TCP connection from its first byte on: hyper reads requests and warp answers them, until an answer turns out to be
//! a subscription. Then hyper is let go, and the bare socket goes on as a session: an idle subscriber costs a socket
//! and a few hundred bytes, not an HTTP server.

use std::cell::{Cell, RefCell};
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
use tracing::{Instrument, Span};
use warp::filters::BoxedFilter;
use warp::reply::Response;

use super::cors;
use super::credentials;
use super::error::ApiError;
use super::routes::subscribes;
use super::subscribe::{Subscription, Takeover, Transport};
use super::visit::{Ids, Visit};
use super::{forwarded, strict};
use crate::accept::Arrival;
use crate::access::Asker;
use crate::address::ClientAddress;
use crate::admission::{Admitted, Refusal};
use crate::linger::linger;
use crate::session::Session;
use crate::shard::Shard;
use crate::transport::connection::Connection;
use crate::transport::sse::Silent;
use crate::transport::websocket::Frames;

/// The most bytes of a request's head.
const HEAD_BYTES: usize = 16 << 10;
/// The most header lines.
const HEAD_LINES: usize = 64;

/// How long, while draining, a connection that has not asked anything yet is waited for.
const FIRST_REQUEST_GRACE: Duration = Duration::from_secs(1);

/// A client that was answered before all of its request had come may finish it: as much as two bodies of the largest kind. It is
/// counted as a connection meanwhile.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES: usize = 16 << 20;

/// A response's head, the subscription that follows it, and what names it in the log.
type Handover = (http::response::Parts, Subscription, Span);

/// A connection while it speaks HTTP.
struct Edge {
    peer: SocketAddr,
    shard: Rc<Shard>,
    admitted: RefCell<Option<Admitted>>,
    handover: RefCell<Option<Handover>>,
    ids: Ids,
    /// A request came.
    asked: Notify,
    /// When the last request was answered, by the shard's clock; `None` before, and while there is another.
    answered: Cell<Option<u32>>,
}

/// Serves a connection until it ends, or becomes a subscriber's.
pub async fn serve(
    arrival: Arrival,
    routes: BoxedFilter<(Response,)>,
    shard: Rc<Shard>,
    mut draining: watch::Receiver<bool>,
) {
    let Arrival { stream, peer, admitted } = arrival;
    let stream = match TcpStream::from_std(stream) {
        Ok(stream) => stream,
        Err(error) => return tracing::debug!(%error, "a connection broke before it was served"),
    };
    let limit = shard.app.limits.request_time;
    let edge = Rc::new(Edge {
        peer,
        shard,
        admitted: RefCell::new(Some(admitted)),
        handover: RefCell::default(),
        ids: Ids::new(),
        asked: Notify::new(),
        answered: Cell::new(None),
    });
    let answer = TowerToHyperService::new(warp::service(routes));
    let service = {
        let edge = edge.clone();
        service_fn(move |request| edge.clone().answer(request, answer.clone()).map(Ok::<_, Infallible>).boxed_local())
    };
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limit)
        .max_buf_size(HEAD_BYTES)
        .max_headers(HEAD_LINES)
        .serve_connection(TokioIo::new(stream), service);
    let mut drained = pin!(until_drained(&mut draining, &edge.asked).fuse());
    let mut stalled = pin!(edge.until_stalled(limit));
    let ended = poll_fn(|context| {
        if drained.poll_unpin(context).is_ready() {
            Pin::new(&mut connection).graceful_shutdown();
        }
        let ended = connection.poll_without_shutdown(context);
        if edge.handover.borrow().is_some() {
            return Poll::Ready(Ended::TakenOver);
        }
        match ended {
            Poll::Ready(Ok(())) => Poll::Ready(Ended::Done),
            Poll::Ready(Err(error)) => Poll::Ready(Ended::Broken(error)),
            Poll::Pending => stalled.poll_unpin(context).map(|()| Ended::Stalled),
        }
    })
    .await;
    let parts = connection.into_parts();
    edge.finish(ended, parts.io.into_inner(), parts.read_buf).await;
}

/// How the HTTP of a connection ended.
enum Ended {
    /// Its last response is to be a subscription's.
    TakenOver,
    Done,
    Broken(hyper::Error),
    /// The client does not take its response.
    Stalled,
}

impl Edge {
    async fn answer<S>(self: Rc<Self>, mut request: Request<Incoming>, routes: S) -> Response
    where
        S: Service<Request<Incoming>, Response = Response, Error = Infallible>,
    {
        self.asked.notify_one();
        self.answered.set(None);
        let app = &self.shard.app;
        let client = forwarded::client_address(app.admission.proxies(), self.peer.ip(), request.headers());
        let visit = Visit::begin(&self.ids, &request, client.address);
        if let Err(error) = strict::check(&mut request) {
            return visit.answered(app, error.into_response());
        }
        let asker = credentials::asker(&app.access, request.headers());
        let reply = cors::Reply::new(app.access.origins(), asker.page, request.headers());
        // Who connects directly was counted at the door.
        let counted = client.proxied && subscribes(request.uri().path());
        if counted && let Err(refusal) = self.claim(client) {
            return visit.answered(app, reply.finish(ApiError::from(refusal).into_response()));
        }
        let preflight = reply.preflight(app.access.origins(), request.method(), request.headers());
        // Most show nothing, and the first extension costs several allocations.
        if asker != Asker::default() {
            request.extensions_mut().insert(asker);
        }
        let response = match preflight {
            Some(response) => response,
            None => {
                let routed = routes.call(request).instrument(visit.span()).await;
                reply.finish(routed.unwrap_or_else(|never: Infallible| match never {}))
            }
        };
        let response = visit.answered(app, response);
        if let Some(subscription) = response.extensions().get::<Takeover>().and_then(Takeover::take) {
            *self.handover.borrow_mut() = Some((response.into_parts().0, subscription, visit.span()));
            // hyper must not answer: the session does, on the bare socket.
            pending::<()>().await;
            unreachable!("pending() never ends");
        }
        if counted && let Some(admitted) = &mut *self.admitted.borrow_mut() {
            admitted.release();
        }
        self.answered.set(Some(self.shard.now.get()));
        response
    }

    fn claim(&self, client: ClientAddress) -> Result<(), Refusal> {
        self.admitted.borrow_mut().as_mut().map_or(Ok(()), |admitted| admitted.claim(client))
    }

    /// Waits until a response has been there for so long that it must be the client who does not take it: an idle connection is
    /// ended after `limit` already, counted from when its response was taken.
    async fn until_stalled(&self, limit: Duration) {
        loop {
            tokio::time::sleep(limit).await;
            let waited = |at: u32| Duration::from_secs(self.shard.now.get().saturating_sub(at).into());
            if self.answered.get().is_some_and(|at| waited(at) > 2 * limit) {
                return;
            }
        }
    }

    async fn finish(&self, ended: Ended, stream: TcpStream, read: Bytes) {
        let metrics = &self.shard.app.metrics;
        match ended {
            Ended::TakenOver => {
                let (handover, admitted) = (self.handover.take(), self.admitted.take());
                if let (Some((head, subscription, span)), Some(admitted)) = (handover, admitted) {
                    // The copy lets go of hyper's read buffer, which is much larger than what is left in it.
                    let early = Bytes::copy_from_slice(&read);
                    drop(read);
                    let _named = span.entered();
                    subscribe(stream, &head, subscription, (self.shard.clone(), admitted), early);
                }
                return;
            }
            Ended::Stalled => {
                metrics.count_refused("response_time");
                // Or the kernel would keep what was not taken.
                let _ = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
                return;
            }
            Ended::Broken(error) if error.is_parse_too_large() => metrics.count_refused("head_size"),
            // Without a byte of a head it was an idle connection, and no attempt at anything.
            Ended::Broken(error) if error.is_timeout() && !read.is_empty() => metrics.count_refused("head_time"),
            Ended::Broken(_) | Ended::Done => {}
        }
        drop(read);
        linger(&stream, LINGER, LINGER_BYTES).await;
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
    (shard, admitted): (Rc<Shard>, Admitted),
    early: Bytes,
) {
    let Subscription { dialect, transport, channels, permit } = subscription;
    let session = Session::new(dialect, channels, write_head(head), &shard.app.instance);
    session.topics().for_each(|topic| tracing::debug!(channel = %topic.channel, "subscribed"));
    let limit = shard.app.limits.message_bytes;
    match transport {
        Transport::WebSocket => {
            let connection = Connection::new(stream, session, shard, admitted, permit, true);
            spawn(connection.drive(early, Frames::new(limit)));
        }
        Transport::Sse => {
            let connection = Connection::new(stream, session, shard, admitted, permit, false);
            spawn(connection.drive(early, Silent));
        }
    }
}

/// Starts a task that says in the log what it is about; where nothing of it is logged, without the memory for that.
fn spawn(drive: impl Future<Output = ()> + 'static) {
    let span = Span::current();
    if span.is_disabled() {
        spawn_local(drive);
    } else {
        spawn_local(drive.instrument(span));
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
