//! `GET /connection/websocket`: admits a client of the Centrifuge protocol. Its channels, and usually
//! its token, come by commands (`delivery/commands.rs`).

use std::sync::Arc;

use hyper::StatusCode;
use hyper::header::HeaderMap;
use warp::reply::Response;

use super::credentials::denied;
use super::error::ApiError;
use super::handshake;
use super::query::Query;
use super::subscribe::{HandshakeSender, no_handshake, websocket_head};
use crate::access::Credentials;
use crate::access::secret::Secret;
use crate::app::App;
use crate::delivery::commands::identity::Visitor;
use crate::delivery::encoding::{
    CENTRIFUGE, CENTRIFUGE_COMPRESSED, CENTRIFUGE_PROTOBUF, CENTRIFUGE_PROTOBUF_COMPRESSED,
};
use crate::delivery::task::{Channels, Handshake};

/// Answers `GET /connection/websocket`.
pub async fn websocket(
    app: Arc<App>,
    query: String,
    headers: HeaderMap,
    credentials: Credentials,
    sender: HandshakeSender,
) -> Response {
    let origin = credentials.origin;
    let answer = try_websocket(&app, &Query::parse(&query), &headers, credentials, &sender);
    answer.unwrap_or_else(|error| sender.refuse_websocket(&CENTRIFUGE, error, &origin, &headers))
}

fn try_websocket(
    app: &App,
    query: &Query,
    headers: &HeaderMap,
    credentials: Credentials,
    sender: &HandshakeSender,
) -> Result<Response, ApiError> {
    let claim = sender.claim(app)?;
    app.access.check_origin(&credentials).map_err(|error| denied(app, error))?;
    let accept = match handshake::accept(headers) {
        Ok(accept) => accept,
        Err(error) => return Ok(no_handshake(&error)),
    };
    if app.drain.is_draining() {
        let message = "this instance is stopping; connect again";
        return Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "draining", message));
    }
    let credentials = Credentials { query: query.get("token").map(Secret::new), ..credentials };
    let visitor = Visitor { credentials, address: sender.client() };
    let channels = Channels::Commanded(visitor.into());
    let compression = app.limits.compression.then(|| handshake::compression(headers)).flatten();
    let encoding = match (is_protobuf(query, headers), compression.is_some()) {
        (false, false) => &CENTRIFUGE,
        (false, true) => &CENTRIFUGE_COMPRESSED,
        (true, false) => &CENTRIFUGE_PROTOBUF,
        (true, true) => &CENTRIFUGE_PROTOBUF_COMPRESSED,
    };
    sender.send(Handshake { head: Vec::new(), encoding, channels, holds_for: None, claim });
    Ok(websocket_head(&accept, compression, headers))
}

/// Whether the client speaks the Protobuf form of the protocol. What the subprotocol says counts
/// before the query.
fn is_protobuf(query: &Query, headers: &HeaderMap) -> bool {
    let in_query = |name| query.get(name) == Some("protobuf");
    handshake::is_protobuf(headers).unwrap_or_else(|| in_query("format") || in_query("cf_protocol"))
}
