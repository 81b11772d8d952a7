//! Tokens for single subscriptions: checks them, and knows when those of a connection expire. Most connections have
//! none. An entry may be older than the end of its subscription: it counts only for channels that are subscribed.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::FutureExt;
use tokio::task::coop::consume_budget;
use tokio::time::{Instant, Sleep, sleep_until};

use super::identity::Identity;
use crate::access::secret::Secret;
use crate::channel::ChannelName;
use crate::delivery::dialect::command::CommandError;

/// The longest time for which a token counts, in seconds: a connection does not live as long.
const LONGEST: u64 = 10 * 365 * 86400;

/// When the tokens of subscriptions expire.
#[derive(Default)]
pub(super) struct ChannelTokens {
    expiries: Vec<(ChannelName, Instant)>,
    /// The next expiry.
    timer: Option<Pin<Box<Sleep>>>,
}

/// Checks a token for a subscription. Returns when it expires; `None` for never.
pub(super) async fn check(
    identity: &Identity,
    channel: &ChannelName,
    token: &Secret,
) -> Result<Option<Instant>, CommandError> {
    let holds_for = identity.permissions.check_subscription(token, channel).await;
    // A signature takes long to verify, and a frame may have thousands.
    consume_budget().await;
    Ok(holds_for?.map(|seconds| Instant::now() + Duration::from_secs(seconds.min(LONGEST))))
}

/// How long it is until then, in seconds.
pub(super) fn seconds_until(expiry: Instant) -> u64 {
    let left = expiry.saturating_duration_since(Instant::now());
    left.as_secs() + u64::from(left.subsec_nanos() > 0)
}

impl ChannelTokens {
    /// Records when the token of a subscription expires; `None` if it has none that does.
    pub(super) fn set(&mut self, channel: &ChannelName, expiry: Option<Instant>) {
        self.expiries.retain(|(known, _)| known != channel);
        self.expiries.extend(expiry.map(|expiry| (channel.clone(), expiry)));
        self.arm();
    }

    /// Forgets the tokens of channels that are not subscribed.
    pub(super) fn retain(&mut self, is_subscribed: impl Fn(&ChannelName) -> bool) {
        self.expiries.retain(|(channel, _)| is_subscribed(channel));
        self.arm();
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.expiries.len()
    }

    /// Whether the subscription to the channel, if there is one, has a token of its own.
    pub(super) fn has(&self, channel: &ChannelName) -> bool {
        self.expiries.iter().any(|(known, _)| known == channel)
    }

    /// Waits until the token of a subscription has expired, and forgets it.
    pub(super) fn poll_expired(&mut self, context: &mut Context<'_>) -> Poll<ChannelName> {
        while let Some(timer) = &mut self.timer
            && timer.poll_unpin(context).is_ready()
        {
            let now = Instant::now();
            let expired = self.expiries.iter().position(|(_, expiry)| *expiry <= now);
            let expired = expired.map(|index| self.expiries.swap_remove(index).0);
            self.arm();
            if let Some(channel) = expired {
                return Poll::Ready(channel);
            }
        }
        Poll::Pending
    }

    fn arm(&mut self) {
        let next = self.expiries.iter().map(|(_, expiry)| *expiry).min();
        self.timer = next.map(|next| Box::pin(sleep_until(next)));
    }
}
