//! Reads who is on a channel for a client.

use std::sync::Arc;

use crate::app::App;
use crate::channel::ChannelName;
use crate::delivery::dialect::command::CommandError;
use crate::presence::Everybody;

/// What is read.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    /// The clients.
    List,
    /// Their number.
    Stats,
}

/// Reads who is on a channel.
pub(super) async fn read(app: Arc<App>, channel: ChannelName) -> Result<Everybody, CommandError> {
    let all = app.hub.read_presence(&channel).await?;
    all.ok_or(CommandError::NotAvailable("the channel has no presence; add `presence = true` to its rule"))
}
