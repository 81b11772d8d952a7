//! Tokens for single subscriptions: checks new ones, and knows when those of a connection expire. Most connections
//! have none.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::FutureExt;
use tokio::time::{Instant, Sleep, sleep_until};

use super::identity::Identity;
use crate::access::secret::Secret;
use crate::channel::ChannelName;
use crate::delivery::dialect::command::CommandError;

/// When the tokens of subscriptions expire.
#[derive(Default)]
pub(super) struct ChannelTokens {
    expiries: Vec<(ChannelName, Instant)>,
    /// The next expiry.
    timer: Option<Pin<Box<Sleep>>>,
}

/// Checks the new token of a subscription. Returns how long it holds, in seconds; `None` for ever.
pub(super) async fn refresh(
    identity: Identity,
    channel: &ChannelName,
    token: Secret,
) -> Result<Option<u64>, CommandError> {
    Ok(identity.permissions.check_subscription(&token, channel).await?)
}

impl ChannelTokens {
    /// Records how long the token of a subscription holds, in seconds; `None` if it has none.
    pub(super) fn set(&mut self, channel: &ChannelName, holds_for: Option<u64>) {
        self.expiries.retain(|(known, _)| known != channel);
        let until = holds_for.and_then(|seconds| Instant::now().checked_add(Duration::from_secs(seconds)));
        self.expiries.extend(until.map(|until| (channel.clone(), until)));
        let next = self.expiries.iter().map(|(_, until)| *until).min();
        self.timer = next.map(|next| Box::pin(sleep_until(next)));
    }

    /// Whether the subscription has a token of its own.
    pub(super) fn has(&self, channel: &ChannelName) -> bool {
        self.expiries.iter().any(|(known, _)| known == channel)
    }

    /// Waits until the token of a subscription has expired, and forgets it.
    pub(super) fn poll_expired(&mut self, context: &mut Context<'_>) -> Poll<ChannelName> {
        while let Some(timer) = &mut self.timer
            && timer.poll_unpin(context).is_ready()
        {
            let now = Instant::now();
            let expired = self.expiries.iter().find(|(_, until)| *until <= now).map(|(channel, _)| channel.clone());
            match expired {
                Some(channel) => {
                    self.set(&channel, None);
                    return Poll::Ready(channel);
                }
                None => self.timer = None,
            }
        }
        Poll::Pending
    }
}
