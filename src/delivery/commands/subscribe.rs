//! Joins channels, and finds out whether clients can go on from the positions that they hold.

use std::net::IpAddr;
use std::sync::Arc;

use futures::future::join_all as all;
use tokio::time::Instant;

use super::channel_tokens;
use super::identity::Identity;
use crate::access::Action;
use crate::access::secret::Secret;
use crate::app::App;
use crate::broker::{BrokerError, RequestSize};
use crate::channel::ChannelName;
use crate::delivery::dialect::command::{CommandError, CommandId, MapOrigin, Recovery, Since, SubscribeRequest};
use crate::delivery::subscription::Attendance;
use crate::hub::Membership;
use crate::hub::held_page::HeldPage;
use crate::hub::topic::{ReadAt, Start, Topic};
use crate::message::Position;

/// The answer to a client that asks for a map where there is none.
pub(super) const NO_MAP: CommandError =
    CommandError::NotAvailable("only a keyed channel is a map; add `keyed = true` to its rule");

/// A subscription that is about to be made, with the command that asks for it.
pub(super) type Checked = (Option<CommandId>, Result<SubscribeRequest, CommandError>);

/// A channel that a client is about to subscribe to.
pub(super) struct Joined {
    pub(super) membership: Membership,
    pub(super) start: Start,
    /// The page of history that the start needs, if it needs one.
    pub(super) page: Option<Arc<HeldPage>>,
    pub(super) recovery: Recovery,
    /// Where the client has the values from, if it holds them as a map.
    pub(super) map: Option<MapOrigin>,
    /// Whether to describe the channel to the client.
    pub(super) describe: bool,
    pub(super) attendance: Option<Attendance>,
    /// When the token of the subscription expires; `None` if that of the connection counts.
    pub(super) expiry: Option<Instant>,
}

/// Joins channels at the same time. Pages of history count for `address`.
pub(super) async fn join_all(
    app: Arc<App>,
    identity: Identity,
    wanted: Vec<Checked>,
    address: Option<IpAddr>,
) -> Vec<(Option<CommandId>, Result<Joined, CommandError>)> {
    let size = RequestSize::of(wanted.len());
    let (app, identity) = (&app, &identity);
    let joining = wanted.into_iter().map(|(id, request)| async move {
        let joined = match request {
            Ok(request) => join(app, identity, &request, size, address).await,
            Err(error) => Err(error),
        };
        (id, joined)
    });
    all(joining).await
}

async fn join(
    app: &Arc<App>,
    identity: &Identity,
    request: &SubscribeRequest,
    size: RequestSize,
    address: Option<IpAddr>,
) -> Result<Joined, CommandError> {
    let (membership, expiry) = enter(app, identity, request.token.as_ref(), &request.channel, size).await?;
    if request.map.is_some() && membership.topic().rule.keyed.is_none() {
        return Err(NO_MAP);
    }
    let (start, page, recovery) = match request.recover {
        None => (request.start, None, Recovery::NotAsked),
        Some(since) => match recover(app, membership.topic(), since, address).await? {
            Some((position, page)) if request.map == Some(MapOrigin::Read) => {
                (Start::After(position), page, Recovery::NotAsked)
            }
            Some((position, page)) => (Start::After(position), page, Recovery::Recovered),
            None if request.all_or_nothing => return Err(CommandError::PositionGone),
            None => (request.start, None, Recovery::Failed),
        },
    };
    let rule = membership.topic().rule;
    let attendance = rule.presence.then(|| Attendance {
        client: identity.permissions.describe(identity.client).into(),
        is_told: rule.join_leave && request.join_leave,
    });
    let (map, describe) = (request.map, request.describe);
    Ok(Joined { membership, start, page, recovery, map, describe, attendance, expiry })
}

/// Joins a channel for a client, if it may. Returns also when the token of the subscription expires, if it
/// has one that does.
pub(super) async fn enter(
    app: &App,
    identity: &Identity,
    token: Option<&Secret>,
    channel: &ChannelName,
    size: RequestSize,
) -> Result<(Membership, Option<Instant>), CommandError> {
    let expiry = match token {
        Some(token) => channel_tokens::check(identity, channel, token).await,
        None => identity.permissions.check(channel, Action::Subscribe).map(|()| None).map_err(CommandError::from),
    };
    let expiry = expiry.inspect_err(|_| app.metrics.count_refused("forbidden"))?;
    app.charge_new_channels(identity.address, std::slice::from_ref(channel))?;
    if app.drain.is_draining() {
        return Err(CommandError::Draining);
    }
    let joined = app.hub.join(channel, size).await.inspect_err(|error| {
        if matches!(error, BrokerError::ChannelRefused(_)) {
            app.metrics.count_refused("channel");
        }
    });
    Ok((joined?, expiry))
}

/// Where a client goes on, with the page of history that it needs; `None` if messages after its
/// position are missing.
async fn recover(
    app: &Arc<App>,
    topic: &Topic,
    since: Since,
    address: Option<IpAddr>,
) -> Result<Option<(Position, Option<Arc<HeldPage>>)>, CommandError> {
    let Some(tail) = topic.delivered() else { return Ok(None) };
    let position = Position::new(since.epoch.unwrap_or(tail.position.epoch), since.offset);
    let ReadAt::History(from) = topic.locate(Start::After(position)).read_at else {
        return Ok(Some((position, None)));
    };
    let page = app.hub.history(topic, from, address).await?;
    Ok(page.filter(|page| page.gap.is_none()).map(|page| (position, Some(page))))
}
