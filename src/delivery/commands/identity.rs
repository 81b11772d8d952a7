//! Who a client is, and how long it may stay.

use std::sync::Arc;

use crate::access::secret::Secret;
use crate::access::token::TokenError;
use crate::access::{AccessError, Action, Credentials, Permissions};
use crate::app::App;
use crate::close::{Close, Code, Refused};
use crate::delivery::dialect::command::CommandError;
use crate::presence::ClientId;
use crate::transport::address::ClientAddress;

/// A client asks for a new token this long before the server closes it, or earlier if the token
/// holds for less than four times as long.
const MOST_MARGIN: u64 = 25;

/// A client before its first command.
#[derive(Clone)]
pub struct Visitor {
    /// The credentials of its HTTP request.
    pub credentials: Credentials,
    /// Its address.
    pub address: ClientAddress,
}

/// A client that was let in.
#[derive(Clone)]
pub(super) struct Identity {
    pub(super) permissions: Permissions,
    pub(super) address: ClientAddress,
    pub(super) client: ClientId,
}

/// What a client is told that is not let in.
pub(super) enum Refusal {
    /// The command failed.
    Answer(CommandError),
    /// The connection ends.
    Close(Close),
}

impl Identity {
    /// After how many seconds the client needs a new token; `None` for never.
    pub(super) fn refresh_after(&self) -> Option<u64> {
        self.permissions.holds_for().map(refresh_after)
    }
}

/// After how many seconds a client asks for a new token in place of one that holds for so many. SDKs have 31 bits for
/// it.
pub(super) fn refresh_after(holds_for: u64) -> u64 {
    (holds_for - MOST_MARGIN.min(holds_for / 4)).clamp(1, i32::MAX as u64)
}

/// Checks the new token of a client.
pub(super) async fn refresh(
    app: Arc<App>,
    token: Secret,
    address: ClientAddress,
    client: ClientId,
) -> Result<Identity, Refusal> {
    let credentials = Credentials { bearer: Some(token), ..Credentials::default() };
    match identify(&app, &credentials, address, client).await {
        // The client gets another token when it comes back.
        Err(Refusal::Answer(CommandError::Access(AccessError::Token(TokenError::Expired)))) => {
            Err(Refusal::Close(Close::new(Code::TokenExpired, "the new token has expired too")))
        }
        result => result,
    }
}

/// Checks the credentials of a client.
pub(super) async fn identify(
    app: &Arc<App>,
    credentials: &Credentials,
    address: ClientAddress,
    client: ClientId,
) -> Result<Identity, Refusal> {
    let subscribes = app.access.identify(credentials, Action::Subscribe).await;
    let permissions = match subscribes {
        // There may be channels to which everybody publishes.
        Err(AccessError::Nobody | AccessError::Cookie) => app.access.identify(credentials, Action::Publish).await,
        other => other,
    };
    permissions.map(|permissions| Identity { permissions, address, client }).map_err(|error| {
        app.metrics.count_refused("unauthorized");
        match error {
            AccessError::Token(TokenError::Expired | TokenError::NoKeys) => Refusal::Answer(error.into()),
            AccessError::Token(_) | AccessError::Key => {
                Refusal::Close(Close::new(Code::Refused(Refused::Unauthorized), error.to_string()))
            }
            error => Refusal::Answer(error.into()),
        }
    })
}
