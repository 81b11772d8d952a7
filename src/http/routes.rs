//! The routes of the HTTP surface, as warp filters: maps paths and methods to the files that answer
//! them.

use std::convert::Infallible;
use std::sync::Arc;

use hyper::StatusCode;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use serde_json::json;
use warp::filters::BoxedFilter;
use warp::reject::Reject;
use warp::reply::Response;
use warp::{Filter, Rejection};

use super::error::{ApiError, json_response};
use super::{assets, centrifuge, history, presence, publish, subscribe};
use crate::access::Credentials;
use crate::app::App;
use crate::broker::Health;
use crate::observability::metrics::sample::Now;
use crate::observability::metrics::text::Format;

/// The path exists, but not for this method; holds the methods that it allows.
#[derive(Debug)]
struct WrongMethod(&'static str);

impl Reject for WrongMethod {}

/// All routes.
pub fn routes(app: Arc<App>) -> BoxedFilter<(Response,)> {
    let publish = warp::path!("publish")
        .and(post())
        .and(with(app.clone()))
        .and(query())
        .and(publish_headers())
        .and(credentials())
        .and(warp::ext::optional())
        .and(warp::body::stream())
        .then(publish::publish);
    // The most frequent route comes first. The others are boxed, because warp clones each filter
    // that it tries for each request.
    publish.or(others(app)).unify().recover(async |rejection| Ok::<_, Infallible>(refuse(&rejection))).unify().boxed()
}

/// All routes other than publishing.
fn others(app: Arc<App>) -> BoxedFilter<(Response,)> {
    let with_app = with(app);
    let subscriber = get()
        .and(with_app.clone())
        .and(query())
        .and(warp::header::headers_cloned())
        .and(credentials())
        .and(warp::ext::get());
    let websocket = warp::path!("ws").and(subscriber.clone()).then(subscribe::websocket);
    let centrifuge = warp::path!("connection" / "websocket").and(subscriber.clone()).then(centrifuge::websocket);
    let events = warp::path!("events").and(subscriber).then(subscribe::events);
    let history = warp::path!("channels" / String / "messages")
        .and(get())
        .and(with_app.clone())
        .and(query())
        .and(credentials())
        .and(warp::ext::get().map(|sender: subscribe::HandshakeSender| sender.client()))
        .then(|name, app, query, credentials, client| history::messages(app, name, query, credentials, client));
    let presence = warp::path!("channels" / String / "presence")
        .and(get())
        .and(with_app.clone())
        .and(query())
        .and(credentials())
        .then(|name, app, query, credentials| presence::clients(app, name, query, credentials));
    let healthz = warp::path!("healthz").and(get_or_head()).and(with_app.clone()).map(|app: Arc<App>| healthz(&app));
    let readyz = warp::path!("readyz").and(get_or_head()).and(with_app.clone()).map(|app: Arc<App>| readyz(&app));
    let metrics = warp::path!("metrics")
        .and(get())
        .and(with_app)
        .and(warp::header::optional("accept"))
        .map(|app: Arc<App>, accept: Option<String>| metrics(&app, accept.as_deref()));
    let files = warp::path::tail()
        .and_then(async |path: warp::path::Tail| assets::find(path.as_str()).ok_or_else(warp::reject::not_found))
        .and(get_or_head());

    websocket
        .or(centrifuge)
        .unify()
        .or(events)
        .unify()
        .or(history)
        .unify()
        .or(presence)
        .unify()
        .or(healthz)
        .unify()
        .or(readyz)
        .unify()
        .or(metrics)
        .unify()
        .or(files)
        .unify()
        .boxed()
}

fn with(app: Arc<App>) -> impl Filter<Extract = (Arc<App>,), Error = Infallible> + Clone {
    warp::any().map(move || app.clone())
}

fn query() -> impl Filter<Extract = (String,), Error = Infallible> + Copy {
    warp::query::raw().or(warp::any().map(String::new)).unify()
}

/// The credentials that `connection.rs` adds to a request; empty if it has none.
fn credentials() -> impl Filter<Extract = (Credentials,), Error = Infallible> + Copy {
    warp::ext::optional().map(Option::<Credentials>::unwrap_or_default)
}

fn get() -> impl Filter<Extract = (), Error = Rejection> + Copy {
    only(warp::get(), "GET")
}

fn post() -> impl Filter<Extract = (), Error = Rejection> + Copy {
    only(warp::post(), "POST")
}

/// Load balancers and link checkers send HEAD.
fn get_or_head() -> impl Filter<Extract = (), Error = Rejection> + Copy {
    only(warp::get().or(warp::head()).unify(), "GET, HEAD")
}

/// Restricts a path to a method; other methods are rejected with the allowed ones.
fn only(
    method: impl Filter<Extract = (), Error = Rejection> + Copy,
    allowed: &'static str,
) -> impl Filter<Extract = (), Error = Rejection> + Copy {
    method.or_else(move |_| async move { Err(warp::reject::custom(WrongMethod(allowed))) })
}

/// Extracts the headers that publishing needs. Cloning all headers would cost more than the rest of
/// the routing.
fn publish_headers() -> impl Filter<Extract = (publish::Headers,), Error = Rejection> + Copy {
    warp::header::optional("content-type")
        .and(warp::header::optional("content-encoding"))
        .and(warp::header::optional("content-length"))
        .and(warp::header::optional("idempotency-key"))
        .map(|content_type, content_encoding, content_length, idempotency_key| publish::Headers {
            content_type,
            content_encoding,
            content_length,
            idempotency_key,
        })
}

fn healthz(app: &App) -> Response {
    json_response(StatusCode::OK, &json!({"status": "ok", "instance": app.instance}))
}

/// Reports whether a load balancer should send clients here.
fn readyz(app: &App) -> Response {
    let (status, text) = if app.drain.is_leaving() {
        (StatusCode::SERVICE_UNAVAILABLE, "draining".to_owned())
    } else {
        match app.broker.health() {
            Health::Up => (StatusCode::OK, "ready".to_owned()),
            // Channels of the servers that work are served.
            Health::Degraded(why) => (StatusCode::OK, format!("ready, but not for all channels: {why}")),
            Health::Down(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("broker unavailable: {why}")),
        }
    };
    json_response(status, &json!({"status": text, "instance": app.instance}))
}

fn metrics(app: &App, accept: Option<&str>) -> Response {
    let format = Format::accepted(accept);
    let shards = app.broker.shards().unwrap_or_default();
    let now = Now {
        channels: app.hub.channels(),
        presence_channels: app.hub.presence().channels(),
        log_bytes: app.hub.log_bytes(),
        incoming_bytes: app.incoming.used(),
        outgoing_bytes: app.outgoing.used(),
        broker_up: !matches!(app.broker.health(), Health::Down(_)),
        redis_shards: shards.shards,
        redis_shards_up: shards.up,
        redis_slots: shards.slots,
    };
    let mut response = Response::new(app.metrics.render(format, now).into());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(format.content_type()));
    response
}

/// The response to a request that no route accepts.
fn refuse(rejection: &Rejection) -> Response {
    if rejection.is_not_found() {
        let message = "no such path; /openapi.json lists all paths";
        return ApiError::new(StatusCode::NOT_FOUND, "not_found", message).into_response();
    }
    let Some(WrongMethod(allowed)) = rejection.find() else {
        return ApiError::parameter("a request header is malformed").into_response();
    };
    let message = format!("method not allowed; this path supports: {allowed}");
    let mut response = ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message).into_response();
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    response
}
