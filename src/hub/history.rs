//! Reads history for subscribers, with as few reads of the broker as possible. `shared_reads.rs`
//! answers further requests from a page that was read before, if the log continues at its end. Reads
//! that repair the order of a channel are in `Hub::check`.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use futures::FutureExt;

use super::Hub;
use crate::broker::{PAGE_MESSAGES, ReadFrom};
use crate::channel::ChannelName;
use crate::hub::held_page::{HeldPage, PageError, PageRoom};
use crate::hub::shared_reads::{Answer, Read, SharedPage};
use crate::hub::topic::{ReadAt, Topic};
use crate::message::Position;

impl Hub {
    /// Reads history for a subscriber. Subscribers with the same request at about the same time
    /// share one answer. `client` is the address for which the connection counts.
    ///
    /// # Errors
    /// See [`PageError`].
    pub async fn history(self: &Arc<Self>, topic: &Topic, from: ReadFrom, client: Option<IpAddr>) -> Answer {
        let shared = &topic.shared_reads;
        let newer = |page: &HeldPage| newer(topic, page);
        if let Some(page) = shared.answer(from, &topic.rule, newer) {
            return Ok(Some(page));
        }
        let wider = wider(topic, from);
        // A wider page that was read before does not have the requested messages.
        if wider != from && shared.answer(wider, &topic.rule, newer).is_none() {
            let Some(page) = self.read_shared(topic, wider, client).await? else { return Ok(None) };
            let newer = newer(&page).unwrap_or_default();
            if let Some(page) = SharedPage::new(wider, page).answer(from, newer) {
                return Ok(Some(page));
            }
        }
        // No wider page has them (too old, or the page is too large), so read exactly these.
        self.read_shared(topic, from, client).await
    }

    /// Reads at most `limit` messages for a client; `None` if the channel keeps no history. The
    /// page counts for the address `client`, if that has a limit.
    ///
    /// # Errors
    /// See [`PageError`].
    pub async fn page(&self, channel: &ChannelName, from: ReadFrom, limit: usize, client: Option<IpAddr>) -> Answer {
        self.pages.check(client)?;
        let page = self.broker.read(channel, from, limit).await?;
        page.map(|page| self.pages.hold(page, client).map(Arc::new)).transpose()
    }

    /// Counts `bytes` of messages that were encoded for one client alone.
    ///
    /// # Errors
    /// [`PageError::OutgoingFull`] if there is no room for them.
    pub fn take_page_room(&self, bytes: usize, client: Option<IpAddr>) -> Result<PageRoom, PageError> {
        self.pages.take(bytes, client)
    }

    async fn read_shared(self: &Arc<Self>, topic: &Topic, from: ReadFrom, client: Option<IpAddr>) -> Answer {
        let answer = topic.shared_reads.join(from, || read(self.clone(), topic.channel.clone(), from, client)).await?;
        // A page that ends before the log begins would answer nobody else.
        if let Some(page) = &answer
            && (page.through == page.tail || newer(topic, page).is_some())
        {
            topic.shared_reads.keep(SharedPage::new(from, page.clone()));
        }
        Ok(answer)
    }
}

impl Topic {
    /// Drops the shared pages that cannot answer any request. If memory is scarce, drops also those
    /// that are not being read.
    pub(crate) fn sweep_pages(&self, is_scarce: bool) {
        let now = Instant::now();
        self.shared_reads.retain(|kept| {
            let is_read = Arc::strong_count(&kept.page) > 1;
            kept.is_fresh(&self.rule, now) && newer(self, &kept.page).is_some() && (is_read || !is_scarce)
        });
    }
}

fn read(hub: Arc<Hub>, channel: ChannelName, from: ReadFrom, client: Option<IpAddr>) -> Read {
    async move { hub.page(&channel, from, PAGE_MESSAGES, client).await }.boxed()
}

/// The number of messages that the log has after a page; `None` if it does not continue at the end of
/// the page.
fn newer(topic: &Topic, page: &HeldPage) -> Option<usize> {
    let through = page.through.position;
    let delivered = topic.delivered().map(|tail| tail.position).filter(|tail| tail.epoch == through.epoch)?;
    let newer = delivered.offset.saturating_sub(through.offset);
    matches!(topic.after_history(through), ReadAt::Log(_)).then_some(newer as usize)
}

/// Widens a request, so that clients with other positions can share the answer.
fn wider(topic: &Topic, from: ReadFrom) -> ReadFrom {
    let small = topic.rule.history.is_some_and(|history| history.messages <= PAGE_MESSAGES);
    let foreign = |position: Position| {
        topic.delivered().is_some_and(|tail| tail.position.epoch != position.epoch) && position.offset > 0
    };
    match from {
        ReadFrom::After(position) if topic.rule.keyed.is_some() && foreign(position) => ReadFrom::Keys,
        ReadFrom::After(_) | ReadFrom::Last(_) if small && topic.rule.keyed.is_none() => ReadFrom::Oldest,
        other => other,
    }
}
