//! Reads the history of a channel for a client.

use std::net::IpAddr;
use std::sync::Arc;

use crate::app::App;
use crate::broker::{PAGE_MESSAGES, ReadFrom};
use crate::delivery::dialect::command::{CommandError, HistoryRequest, Since};
use crate::hub::held_page::{HeldPage, PageError};
use crate::message::{GapReason, Message, Position};

/// The part of a history that a client asked for.
pub(super) struct Answer {
    /// What was read.
    pub(super) page: Arc<HeldPage>,
    /// The messages of it that the client gets, in the order in which it gets them.
    pub(super) messages: Vec<Arc<Message>>,
}

/// Reads a part of a history. The page counts for `address`.
pub(super) async fn read(
    app: Arc<App>,
    request: HistoryRequest,
    address: Option<IpAddr>,
) -> Result<Answer, CommandError> {
    let channel = &request.channel;
    let limit = request.limit.unwrap_or(PAGE_MESSAGES).min(PAGE_MESSAGES);
    let read = async |from| {
        let page = app.hub.page(channel, from, limit.max(1), address).await.inspect_err(|error| {
            if *error == PageError::OutgoingFull {
                app.metrics.count_refused("outgoing_bytes");
            }
        })?;
        page.ok_or(CommandError::NotAvailable("the channel keeps no history; give it one in the rules"))
    };
    let Some(since) = request.since else {
        let from = match (limit, request.reverse) {
            (0, _) => ReadFrom::Tail,
            (_, false) => ReadFrom::Oldest,
            (_, true) => ReadFrom::Last(limit),
        };
        let page = read(from).await?;
        let messages = page.messages().to_vec();
        return Ok(Answer { page, messages: ordered(messages, request.reverse) });
    };
    let since = match since {
        Since { epoch: Some(epoch), offset } => Position::new(epoch, offset),
        Since { epoch: None, offset } => Position::new(read(ReadFrom::Tail).await?.tail.position.epoch, offset),
    };
    if limit == 0 {
        let page = read(ReadFrom::Tail).await?;
        return if page.tail.position.epoch == since.epoch {
            Ok(Answer { page, messages: Vec::new() })
        } else {
            Err(CommandError::PositionGone)
        };
    }
    let from = if request.reverse { Position::new(since.epoch, before(since.offset, limit)) } else { since };
    let page = read(ReadFrom::After(from)).await?;
    match page.gap {
        // Backwards, the history may end before the limit does.
        Some(gap) if !(request.reverse && gap.reason == GapReason::HistoryTrimmed) => {
            return Err(CommandError::PositionGone);
        }
        _ => {}
    }
    let mut messages = page.messages().to_vec();
    if request.reverse {
        messages.retain(|message| message.position.is_some_and(|position| position.offset < since.offset));
    }
    Ok(Answer { page, messages: ordered(messages, request.reverse) })
}

/// The offset after which the last `limit` messages before `offset` begin.
fn before(offset: u64, limit: usize) -> u64 {
    offset.saturating_sub(1).saturating_sub(limit as u64)
}

fn ordered(mut messages: Vec<Arc<Message>>, reverse: bool) -> Vec<Arc<Message>> {
    if reverse {
        messages.reverse();
    }
    messages
}
