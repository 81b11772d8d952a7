//! A TCP connection from its first byte. hyper reads requests and warp answers them, until a
//! request is the handshake of a subscriber. Then the connection takes the socket from hyper and
//! continues as a session, so that an idle subscriber costs a socket and a few hundred bytes
//! instead of an HTTP server.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::future::poll_fn;
use std::io::Write;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures::FutureExt;
use httpdate::HttpDate;
use hyper::body::{Body, Incoming};
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper::{Method, Request, Version};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::sync::Notify;
use tracing::{Instrument, Span};
use warp::filters::BoxedFilter;
use warp::reply::Response;

use super::cors;
use super::credentials;
use super::error::close_after;
use super::publish;
use super::request_log::{Ids, RequestLog};
use super::subscribe::HandshakeSender;
use super::{forwarded, validation};
use crate::access::Credentials;
use crate::delivery::clock::Seconds;
use crate::delivery::shard::Shard;
use crate::delivery::task::{self, Handshake};
use crate::drain::Drain;
use crate::transport::accept::Accepted;
use crate::transport::admission::Admitted;
use crate::transport::lingering_close::lingering_close;
use crate::transport::socket::Socket;

/// Maximum size of the head of a request, in bytes.
const HEAD_BYTES: usize = 16 << 10;
/// Maximum number of header lines.
const HEAD_LINES: usize = 64;

/// How long a draining instance waits for the first request of a connection.
const FIRST_REQUEST_GRACE: Duration = Duration::from_secs(1);

/// Limits for a client that got its response before it had sent the whole request, and may finish
/// sending: the bytes of two bodies of the largest kind. Until then it counts as a connection.
const LINGER_TIME: Duration = Duration::from_secs(2);
const LINGER_BYTES: usize = 16 << 20;

/// The state of a connection while it speaks HTTP.
struct HttpConnection {
    peer: SocketAddr,
    shard: Rc<Shard>,
    /// The handshake of the last request, and the span of that request in the log.
    handshake: RefCell<Option<(Handshake, Span)>>,
    ids: Ids,
    /// Notified when a request arrives.
    asked: Notify,
    /// When the last request was answered, by the shard's clock; `None` before the first response
    /// and while a request is being answered.
    answered: Cell<Option<Seconds>>,
}

/// Returned to hyper instead of a response: the request was a handshake, and hyper must not answer
/// it.
#[derive(Debug, thiserror::Error)]
#[error("the connection is a subscriber's")]
struct Subscribed;

/// Serves a connection until it ends or becomes a subscriber.
pub async fn serve(accepted: Accepted, routes: BoxedFilter<(Response,)>, shard: Rc<Shard>) {
    let Accepted { socket, peer, admitted } = accepted;
    let app = shard.context.app.clone();
    let limit = app.limits.request_time;
    let this = Rc::new(HttpConnection {
        peer,
        shard,
        handshake: RefCell::default(),
        ids: Ids::new(),
        asked: Notify::new(),
        answered: Cell::new(None),
    });
    let answer = TowerToHyperService::new(warp::service(routes));
    let service = {
        let this = this.clone();
        service_fn(move |request| this.clone().answer(request, answer.clone()).boxed_local())
    };
    let mut http = http1::Builder::new()
        .timer(TokioTimer::new())
        // A client that closes its sending side after a whole request, such as `nc -N`, still waits
        // for the response.
        .half_close(true)
        .header_read_timeout(limit)
        .max_buf_size(HEAD_BYTES)
        .max_headers(HEAD_LINES)
        .serve_connection(TokioIo::new(socket), service);
    let mut drained = pin!(until_drained(&app.drain, &this.asked).fuse());
    let mut stalled = pin!(this.until_stalled(limit));
    // `None`: the client does not read its response.
    let ended = poll_fn(|context| {
        if drained.poll_unpin(context).is_ready() {
            Pin::new(&mut http).graceful_shutdown();
        }
        match http.poll_without_shutdown(context) {
            Poll::Ready(ended) => Poll::Ready(Some(ended)),
            Poll::Pending => stalled.poll_unpin(context).map(|()| None),
        }
    })
    .await;
    let parts = http.into_parts();
    let (socket, read) = (parts.io.into_inner(), parts.read_buf);
    match (this.handshake.take(), ended) {
        (Some((handshake, span)), _) => {
            let _named = span.entered();
            task::start(handshake, socket, this.shard.clone(), admitted, &read);
        }
        (None, ended) => this.finish(ended, socket, read, admitted).await,
    }
}

impl HttpConnection {
    async fn answer<S>(self: Rc<Self>, mut request: Request<Incoming>, routes: S) -> Result<Response, Subscribed>
    where
        S: Service<Request<Incoming>, Response = Response, Error = Infallible>,
    {
        self.asked.notify_one();
        self.answered.set(None);
        let app = &self.shard.context.app;
        let client = forwarded::client_address(app.admission.proxies(), self.peer.ip(), request.headers());
        let log = RequestLog::begin(&self.ids, &request, client.address);
        let answered = |mut response: Response, leaves_body: bool| {
            if leaves_body {
                close_after(&mut response);
            }
            log.answered(app, response)
        };
        let has_body = !request.body().is_end_stream();
        if let Err(error) = validation::check(&mut request) {
            return Ok(answered(error.into_response(), has_body));
        }
        // Nothing but publishing reads a body, and `publish.rs` says whether it has.
        let leaves_body = has_body && !publish::is_publish(&request);
        let credentials = credentials::credentials(&app.access, request.headers());
        let reply = cors::Reply::new(app.access.origins(), credentials.origin, request.headers());
        let preflight = reply.preflight(app.access.origins(), request.method(), request.headers());
        // Most requests have no credentials, and the first extension costs several allocations.
        if credentials != Credentials::default() {
            request.extensions_mut().insert(credentials);
        }
        // Add the client only if it has a limit, for the same reason.
        if request.method() == Method::POST && app.admission.limits_publishing(client) {
            request.extensions_mut().insert(client);
        }
        let sender = (request.method() == Method::GET).then(|| HandshakeSender::new(client, request.version()));
        sender.clone().into_iter().for_each(|sender| drop(request.extensions_mut().insert(sender)));
        let response = match preflight {
            Some(response) => response,
            None => {
                let routed = routes.call(request).instrument(log.span()).await;
                reply.finish(routed.unwrap_or_else(|never: Infallible| match never {}))
            }
        };
        let response = answered(response, leaves_body);
        if let Some(mut handshake) = sender.and_then(HandshakeSender::receive) {
            handshake.head = write_head(&response);
            *self.handshake.borrow_mut() = Some((handshake, log.span()));
            return Err(Subscribed);
        }
        self.answered.set(Some(self.shard.context.now()));
        Ok(response)
    }

    /// Waits until the client has not read a response for twice `limit`. An idle connection cannot
    /// wait that long: hyper ends it `limit` after the client has read the last response.
    async fn until_stalled(&self, limit: Duration) {
        loop {
            tokio::time::sleep(limit).await;
            let waited = |at| self.shard.context.now().elapsed_since(at);
            if self.answered.get().is_some_and(|at| waited(at) > 2 * limit) {
                return;
            }
        }
    }

    /// Ends a connection that did not become a subscriber. It stays counted until then.
    async fn finish(&self, ended: Option<hyper::Result<()>>, socket: Socket, read: Bytes, _admitted: Admitted) {
        let metrics = &self.shard.context.app.metrics;
        match ended {
            None => {
                metrics.count_refused("response_time");
                return socket.discard_on_close();
            }
            Some(Err(error)) if error.is_parse_too_large() => metrics.count_refused("head_size"),
            // Without any byte of a head, this is the end of an idle connection and not a slow
            // request.
            Some(Err(error)) if error.is_timeout() && !read.is_empty() => metrics.count_refused("head_time"),
            Some(_) => {}
        }
        drop(read);
        lingering_close(&socket, LINGER_TIME, LINGER_BYTES).await;
    }
}

/// Waits until the instance drains, and then for a short time for a first request that may be on
/// its way.
async fn until_drained(drain: &Drain, asked: &Notify) {
    drain.draining().await;
    let _ = tokio::time::timeout(FIRST_REQUEST_GRACE, asked.notified()).await;
}

/// The head of a response in the syntax of HTTP/1.1 (RFC 9112, 4).
fn write_head(response: &Response) -> Vec<u8> {
    debug_assert_eq!(response.version(), Version::HTTP_11);
    let mut out = Vec::with_capacity(256);
    // Writing to memory does not fail.
    let _ = write!(out, "HTTP/1.1 {}\r\n", response.status());
    let _ = write!(out, "date: {}\r\n", HttpDate::from(SystemTime::now()));
    for (name, value) in response.headers() {
        let _ = write!(out, "{name}: ");
        out.extend_from_slice(value.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"\r\n");
    out
}
