//! Makes the subscription to a channel that a client has joined.

use std::rc::Rc;

use tokio::time::Instant;

use super::channel_tokens::seconds_until;
use super::identity::refresh_after;
use super::subscribe::Joined;
use crate::access::AccessError;
use crate::access::token::TokenError;
use crate::channel::ChannelName;
use crate::delivery::connection::Connection;
use crate::delivery::dialect::command::{ChannelDescription, CommandError, MapOrigin, Recovery, Subscribed};
use crate::delivery::shard::Shard;
use crate::delivery::subscription::{Missed, NewSubscription, Rights};
use crate::hub::topic::Start;

/// Makes a subscription. The answer must be written before anything else is. `room` is how many bytes
/// of missed messages may go into the answers.
///
/// # Errors
/// [`CommandError::PositionGone`] if the client has a map of another epoch, and [`AccessError::Token`] if the
/// token of the subscription has expired meanwhile.
pub(super) fn make(
    joined: Joined,
    room: &mut usize,
    shard: &Shard,
    connection: &Rc<Connection>,
) -> Result<(ChannelName, Subscribed), CommandError> {
    let Joined { membership, start, page, recovery, map, describe, attendance, expiry } = joined;
    if expiry.is_some_and(|expiry| expiry <= Instant::now()) {
        return Err(AccessError::Token(TokenError::Expired).into());
    }
    let channel = membership.topic().channel.clone();
    let keyed = membership.topic().rule.keyed.is_some();
    let new = NewSubscription { membership, start, rights: Rights::default(), page, attendance };
    let (key, head) = shard.subscribe(connection, new);
    let goes_on = recovery == Recovery::Recovered || map.is_some();
    let most = if goes_on { *room } else { 0 };
    let mut missed = connection.change(|session| session.take_missed(key, most));
    *room = room.saturating_sub(missed.messages.iter().map(|message| message.weight()).sum());
    if map.is_some() {
        // The values of a map are of one epoch, even if nothing was lost between two of them.
        if matches!(start, Start::After(held) if missed.through.is_none_or(|through| through.epoch != held.epoch)) {
            shard.unsubscribe(connection, key);
            return Err(CommandError::PositionGone);
        }
        missed.position = missed.through;
    }
    if map == Some(MapOrigin::Read) {
        // They are no part of the map, and the client was not subscribed to the channel.
        missed.messages.retain(|message| message.key.is_some());
    }
    tracing::debug!(%channel, "subscribed");
    let description = describe.then_some(ChannelDescription { head, keyed });
    let refresh_after = expiry.map(|expiry| refresh_after(seconds_until(expiry)));
    let (is_map, Missed { position, messages: missed, .. }) = (map.is_some(), missed);
    Ok((channel, Subscribed { position, refresh_after, recovery, missed, channel: description, is_map }))
}
