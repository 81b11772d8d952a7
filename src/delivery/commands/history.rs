//! Reads the history of a channel for a client.

use std::net::IpAddr;
use std::sync::Arc;

use crate::app::App;
use crate::broker::{PAGE_MESSAGES, ReadFrom};
use crate::channel::ChannelName;
use crate::delivery::dialect::command::{CommandError, HistoryRequest, Since};
use crate::hub::held_page::HeldPage;
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
    let limit = request.limit.unwrap_or(PAGE_MESSAGES).min(PAGE_MESSAGES);
    let reader = Reader { app: &app, channel: &request.channel, address };
    let Some(since) = request.since else {
        let page = match (limit, request.reverse) {
            (0, _) => reader.read(ReadFrom::Tail, 1).await?,
            (_, false) => reader.read(ReadFrom::Oldest, limit).await?,
            (_, true) => reader.read_backwards(limit, u64::MAX, ReadFrom::Last).await?,
        };
        let messages = page.messages().to_vec();
        return Ok(Answer { page, messages: ordered(messages, request.reverse) });
    };
    let since = match since {
        Since { epoch: Some(epoch), offset } => Position::new(epoch, offset),
        Since { epoch: None, offset } => {
            Position::new(reader.read(ReadFrom::Tail, 1).await?.tail.position.epoch, offset)
        }
    };
    if limit == 0 {
        let page = reader.read(ReadFrom::Tail, 1).await?;
        return if page.tail.position.epoch == since.epoch {
            Ok(Answer { page, messages: Vec::new() })
        } else {
            Err(CommandError::PositionGone)
        };
    }
    let page = if request.reverse {
        let end = since.offset.saturating_sub(1);
        let from = |count| ReadFrom::After(Position::new(since.epoch, end.saturating_sub(count as u64)));
        reader.read_backwards(limit, end, from).await?
    } else {
        reader.read(ReadFrom::AfterIfKept(since), limit).await?.limited(limit).into()
    };
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

/// Reads pages of a channel for an address.
struct Reader<'a> {
    app: &'a App,
    channel: &'a ChannelName,
    address: Option<IpAddr>,
}

impl Reader<'_> {
    /// Reads at most `limit` messages.
    async fn read(&self, from: ReadFrom, limit: usize) -> Result<Arc<HeldPage>, CommandError> {
        let page = self.app.read_page(self.channel, from, limit, self.address).await?;
        page.ok_or(CommandError::NotAvailable("the channel keeps no history; give it one in the rules"))
    }

    /// Reads at most `limit` messages up to the offset `end`. `from` says where so many messages begin. A page ends at
    /// its size, which may be before `end`: then fewer messages are read.
    async fn read_backwards(
        &self,
        limit: usize,
        end: u64,
        from: impl Fn(usize) -> ReadFrom,
    ) -> Result<Arc<HeldPage>, CommandError> {
        let mut count = limit;
        loop {
            let page = self.read(from(count), count).await?;
            let is_whole = page.through.position.offset >= end.min(page.tail.position.offset);
            if is_whole || count == 1 {
                return Ok(page);
            }
            count = page.messages().len().clamp(1, count / 2);
        }
    }
}

fn ordered(mut messages: Vec<Arc<Message>>, reverse: bool) -> Vec<Arc<Message>> {
    if reverse {
        messages.reverse();
    }
    messages
}
