//! `GET /channels/{name}/messages`: reads a channel's history.

use std::sync::Arc;

use hyper::StatusCode;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use warp::Reply;
use warp::reply::Response;

use super::credentials;
use super::error::ApiError;
use super::history_body::HistoryBody;
use super::query::{EARLIEST, Query, channel_in_path};
use crate::access::{Action, Credentials};
use crate::app::App;
use crate::broker::{PAGE_MESSAGES, ReadFrom};
use crate::message::Position;
use crate::transport::address::ClientAddress;

const DEFAULT_LIMIT: usize = 100;

/// Answers a request for history. `name` is the percent-encoded path segment.
pub async fn messages(
    app: Arc<App>,
    name: String,
    query: String,
    credentials: Credentials,
    client: ClientAddress,
) -> Response {
    match try_messages(&app, &name, &Query::parse(&query), credentials, client).await {
        Ok(response) => response,
        Err(error) => error.into_response(),
    }
}

async fn try_messages(
    app: &App,
    name: &str,
    query: &Query,
    credentials: Credentials,
    client: ClientAddress,
) -> Result<Response, ApiError> {
    let channel = channel_in_path(name)?;
    credentials::authorize(app, credentials, query, std::slice::from_ref(&channel), Action::Read).await?;
    let limit = match query.get("limit") {
        None => DEFAULT_LIMIT,
        Some(text) => text
            .parse()
            .ok()
            .filter(|limit| (1..=PAGE_MESSAGES).contains(limit))
            .ok_or_else(|| ApiError::parameter(format!("`limit` must be a number from 1 to {PAGE_MESSAGES}")))?,
    };
    let from = match query.get("since") {
        None | Some(EARLIEST) => ReadFrom::Oldest,
        Some(text) => {
            ReadFrom::AfterIfKept(text.parse::<Position>().map_err(|error| ApiError::parameter(error.to_string()))?)
        }
    };
    let address = app.admission.limited_address(client);
    let Some(page) = app.read_page(&channel, from, limit, address).await? else {
        let message = "the channel keeps no history; give it one in the rules";
        return Err(ApiError::new(StatusCode::NOT_FOUND, "no_history", message));
    };
    // Without a start position, messages missing at the beginning are not a gap; they count as
    // trimmed.
    if let (Some(gap), ReadFrom::AfterIfKept(_)) = (page.gap, from) {
        return Err(ApiError::new(StatusCode::GONE, "position_gone", gap.reason.explanation()));
    }
    let mut body = HistoryBody::new(&channel, page.limited(limit).into());
    // Most responses are small and need no chunks.
    let first = body.next_piece().unwrap_or_default();
    let mut response = if body.is_over() {
        Response::new(first.into())
    } else {
        warp::reply::stream(body.after(first)).into_response()
    };
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}
