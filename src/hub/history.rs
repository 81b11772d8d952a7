//! Reads history for subscribers, with as few reads of the broker as possible. `shared_reads.rs`
//! answers further requests from a page that was read before, if the log continues at its end. Reads
//! that repair the order of a channel are in `Hub::check`.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use futures::FutureExt;

use super::Hub;
use crate::broker::{PAGE_MESSAGES, Page, ReadFrom};
use crate::channel::ChannelName;
use crate::hub::shared_reads::{Answer, Read, SharedPage};
use crate::hub::topic::{ReadAt, Topic};
use crate::message::Position;

impl Hub {
    /// Reads history for a subscriber. Subscribers with the same request at about the same time
    /// share one answer. `client` is the address for which the connection counts.
    ///
    /// # Errors
    /// See [`PageError`](super::held_page::PageError).
    pub async fn history(self: &Arc<Self>, topic: &Topic, from: ReadFrom, client: Option<IpAddr>) -> Answer {
        let shared = &topic.shared_reads;
        if let Some(known) = shared.page(&topic.rule)
            && connects(topic, &known.page)
            && let Some(page) = known.answer(from, newer(topic, &known.page))
        {
            return Ok(Some(page));
        }
        let wider = wider(topic, from);
        let Some(page) = self.read_shared(topic, wider, client).await? else { return Ok(None) };
        let newer = newer(topic, &page);
        match SharedPage::new(wider, page).answer(from, newer) {
            Some(page) => Ok(Some(page)),
            // The page does not contain the requested messages (too old, or the page is too large),
            // so read exactly these.
            None => self.read_shared(topic, from, client).await,
        }
    }

    /// Reads at most `limit` messages for a client; `None` if the channel keeps no history. The
    /// page counts for the address `client`, if that has a limit.
    ///
    /// # Errors
    /// See [`PageError`](super::held_page::PageError).
    pub async fn page(&self, channel: &ChannelName, from: ReadFrom, limit: usize, client: Option<IpAddr>) -> Answer {
        self.pages.check(client)?;
        let page = self.broker.read(channel, from, limit).await?;
        page.map(|page| self.pages.hold(page, client).map(Arc::new)).transpose()
    }

    async fn read_shared(self: &Arc<Self>, topic: &Topic, from: ReadFrom, client: Option<IpAddr>) -> Answer {
        let answer = topic.shared_reads.join(from, || read(self.clone(), topic.channel.clone(), from, client)).await?;
        if let Some(page) = &answer {
            topic.shared_reads.keep(SharedPage::new(from, page.clone()));
        }
        Ok(answer)
    }
}

impl Topic {
    /// Drops the shared page if it cannot answer any request. If memory is scarce, drops it also if
    /// it is not being read.
    pub(crate) fn sweep_page(&self, is_scarce: bool) {
        let now = Instant::now();
        self.shared_reads.drop_unless(|kept| {
            let is_read = Arc::strong_count(&kept.page) > 1;
            kept.is_fresh(&self.rule, now) && connects(self, &kept.page) && (is_read || !is_scarce)
        });
    }
}

fn read(hub: Arc<Hub>, channel: ChannelName, from: ReadFrom, client: Option<IpAddr>) -> Read {
    async move { hub.page(&channel, from, PAGE_MESSAGES, client).await }.boxed()
}

/// Whether the log continues at the end of the page.
fn connects(topic: &Topic, page: &Page) -> bool {
    let through = page.through.position;
    topic.delivered().is_some_and(|tail| tail.position.epoch == through.epoch)
        && matches!(topic.after_history(through), ReadAt::Log(_))
}

/// The number of delivered messages that are newer than the page.
fn newer(topic: &Topic, page: &Page) -> usize {
    let (delivered, tail) = (topic.delivered().map(|tail| tail.position), page.tail.position);
    let newer = |position: Position| position.offset.saturating_sub(tail.offset);
    delivered.filter(|position| position.epoch == tail.epoch).map_or(0, |position| newer(position) as usize)
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
