//! `GET /channels/{name}/presence`: who is on a channel.

use std::sync::Arc;

use hyper::StatusCode;
use serde::Serialize;
use serde_json::value::RawValue;
use warp::reply::Response;

use super::credentials;
use super::error::{ApiError, json_response};
use super::query::{Query, channel_in_path};
use crate::access::{Action, Credentials};
use crate::app::App;
use crate::presence::Client;

/// The response.
#[derive(Serialize)]
struct Body<'a> {
    channel: &'a str,
    num_clients: usize,
    num_users: usize,
    /// Whether all clients are listed.
    complete: bool,
    clients: Vec<Described<'a>>,
}

#[derive(Serialize)]
struct Described<'a> {
    client: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    user: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    info: Option<&'a RawValue>,
}

/// Answers a request for the clients of a channel. `name` is the percent-encoded path segment.
pub async fn clients(app: Arc<App>, name: String, query: String, credentials: Credentials) -> Response {
    let answer = try_clients(&app, &name, &Query::parse(&query), credentials).await;
    answer.unwrap_or_else(ApiError::into_response)
}

async fn try_clients(app: &App, name: &str, query: &Query, credentials: Credentials) -> Result<Response, ApiError> {
    let channel = channel_in_path(name)?;
    credentials::authorize(app, credentials, query, std::slice::from_ref(&channel), Action::Read).await?;
    let Some(all) = app.hub.read_presence(&channel).await? else {
        let message = "the channel has no presence; add `presence = true` to its rule";
        return Err(ApiError::new(StatusCode::NOT_FOUND, "no_presence", message));
    };
    let body = Body {
        channel: channel.as_str(),
        num_clients: all.clients,
        num_users: all.users,
        complete: all.is_complete,
        clients: all.listed.iter().map(|client| described(client)).collect(),
    };
    Ok(json_response(StatusCode::OK, &body))
}

fn described(client: &Client) -> Described<'_> {
    let info = client.info.as_deref().and_then(|info| serde_json::from_str(info).ok());
    Described { client: &client.id, user: &client.user, info }
}
