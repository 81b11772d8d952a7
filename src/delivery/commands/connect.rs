//! The first command of a client.

use std::net::IpAddr;
use std::sync::Arc;

use super::identity::{Identity, Refusal, Visitor, identify};
use super::subscribe::{self, Joined};
use crate::access::Credentials;
use crate::app::App;
use crate::delivery::dialect::command::ConnectRequest;
use crate::presence::ClientId;

/// Lets a client in, and joins the channels that it names already. Channels that cannot be joined are
/// left out.
pub(super) async fn connect(
    app: Arc<App>,
    visitor: Visitor,
    request: ConnectRequest,
    page_address: Option<IpAddr>,
) -> Result<(Identity, Vec<Joined>), Refusal> {
    let Visitor { credentials, address } = visitor;
    let credentials = Credentials { bearer: request.token.or(credentials.bearer), ..credentials };
    let identity = identify(&app, &credentials, address, ClientId::next()).await?;
    let wanted = request.subscriptions.into_iter().take(app.limits.channels);
    let wanted = wanted.map(|request| (None, Ok(request))).collect();
    let joined = subscribe::join_all(app, identity.clone(), wanted, page_address).await;
    Ok((identity, joined.into_iter().filter_map(|(_, joined)| joined.ok()).collect()))
}
