//! Pages of history that clients have not received yet. A page counts once against the limit on
//! outgoing bytes, regardless of the number of its readers, until the last of them has received it.

use std::net::IpAddr;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use crate::broker::{BrokerError, PAGE_BYTES, Page, Tail};
use crate::message::{Gap, Message, Position};
use crate::transport::address_shares::{AddressShares, HeldShare};
use crate::transport::byte_budget::{Budget, Reservation};

/// The minimum share of an address, because a subscriber may need two pages at a time.
const LEAST_SHARE: usize = 4 * PAGE_BYTES;

/// The budget for pages of history: three quarters of a [`Budget`]. The rest is for frames of new
/// messages, and for pages in the process of being read, whose size is not known yet. Pages that
/// were read for one address may use a quarter.
pub struct PageBudget {
    outgoing: Arc<Budget>,
    shares: Arc<AddressShares>,
}

impl PageBudget {
    /// Creates a budget for pages within `outgoing`.
    pub fn new(outgoing: Arc<Budget>) -> Self {
        let shares = AddressShares::new((outgoing.limit() / 4).max(LEAST_SHARE));
        Self { outgoing, shares }
    }

    /// Whether more than half of the outgoing bytes is in use.
    pub fn is_scarce(&self) -> bool {
        self.outgoing.is_scarce()
    }

    /// Checks whether a page may be read for a client. `client` is its address, if that has a
    /// limit.
    ///
    /// # Errors
    /// [`PageError::OutgoingFull`] if there may be no room for the page.
    pub fn check(&self, client: Option<IpAddr>) -> Result<(), PageError> {
        let fits = self.outgoing.used().saturating_add(PAGE_BYTES) <= self.limit();
        let fits_share = || client.is_none_or(|address| self.shares.has_room(address, PAGE_BYTES));
        if fits && fits_share() { Ok(()) } else { Err(PageError::OutgoingFull) }
    }

    /// Counts a page that was read for a client.
    ///
    /// # Errors
    /// [`PageError::OutgoingFull`] if there is no room for it.
    pub fn hold(&self, page: Page, client: Option<IpAddr>) -> Result<HeldPage, PageError> {
        let room = self.take(page.messages.iter().map(|message| message.weight()).sum(), client)?;
        let Page { gap, through, tail, .. } = page;
        let range = 0..page.messages.len();
        let whole = Arc::new(Whole { page, settled: OnceLock::new(), _room: room });
        Ok(HeldPage { gap, through, tail, range, whole })
    }

    /// Counts bytes of pages for a client.
    ///
    /// # Errors
    /// [`PageError::OutgoingFull`] if there is no room for them.
    pub fn take(&self, bytes: usize, client: Option<IpAddr>) -> Result<PageRoom, PageError> {
        let held = Reservation::within(self.limit(), bytes, self.outgoing.clone()).ok_or(PageError::OutgoingFull)?;
        let take = |address| self.shares.take(address, bytes).ok_or(PageError::OutgoingFull);
        Ok(PageRoom { _held: held, _share: client.map(take).transpose()? })
    }

    fn limit(&self) -> usize {
        self.outgoing.limit() - self.outgoing.limit() / 4
    }
}

/// A page of history that counts against a [`PageBudget`], or a part of one. A part neither counts
/// again nor copies the messages.
#[derive(Clone, Debug)]
pub struct HeldPage {
    /// Messages that are missing before the first one, if any.
    pub gap: Option<Gap>,
    /// The position that a reader holds after it has received the messages.
    pub through: Tail,
    /// The newest position when the page was read.
    pub tail: Tail,
    /// The messages of this part.
    range: Range<usize>,
    whole: Arc<Whole>,
}

/// What was read.
#[derive(Debug)]
struct Whole {
    page: Page,
    settled: OnceLock<Position>,
    _room: PageRoom,
}

/// Bytes that count against a [`PageBudget`] until this is dropped.
#[derive(Debug)]
pub struct PageRoom {
    _held: Reservation,
    _share: Option<HeldShare>,
}

/// Why a read returned no page.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PageError {
    /// The broker failed.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// The budget for outgoing bytes is used up.
    #[error("too much data waits for clients that do not read it; try again in a moment")]
    OutgoingFull,
}

impl HeldPage {
    /// The messages in the order of their offsets.
    pub fn messages(&self) -> &[Arc<Message>] {
        &self.whole.page.messages[self.range.clone()]
    }

    /// [`Page::settled`] of the whole page, computed once for all readers, because it looks at all
    /// messages.
    pub fn settled(&self) -> Position {
        *self.whole.settled.get_or_init(|| self.whole.page.settled())
    }

    /// The page without its first messages, with this gap before the others.
    pub fn without_first(&self, skip: usize, gap: Option<Gap>) -> Self {
        Self { gap, range: self.range.start + skip..self.range.end, ..self.clone() }
    }

    /// At most the first `limit` messages. Of a keyed channel, a broker may return more than it was asked for.
    pub fn limited(&self, limit: usize) -> Self {
        let (first, rest) = self.messages().split_at(limit.min(self.range.len()));
        let last = first.last().filter(|_| !rest.is_empty());
        match last.and_then(|last| Some(Tail { position: last.position?, stamp: last.stamp })) {
            Some(through) => self.only_first(limit, through),
            None => self.clone(),
        }
    }

    /// The first messages of the page, which end at this position.
    pub fn only_first(&self, count: usize, through: Tail) -> Self {
        Self { through, range: self.range.start..self.range.start + count, ..self.clone() }
    }
}

impl PartialEq for HeldPage {
    fn eq(&self, other: &Self) -> bool {
        let rest = |page: &Self| (page.gap, page.through, page.tail);
        rest(self) == rest(other) && self.messages() == other.messages()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::GapReason;

    const MIB: usize = 1 << 20;

    fn page(bytes: usize) -> Page {
        let tail = Tail { position: Position::new(7, 1), stamp: 1 };
        let messages = vec![Arc::new(Message::plain(vec![0; bytes]))];
        Page { gap: None, messages, through: tail, tail }
    }

    #[test]
    fn pages_leave_a_quarter_to_frames_and_an_address_leaves_pages_to_others() {
        let outgoing = Budget::new(64 * MIB);
        let pages = PageBudget::new(outgoing.clone());
        let [one, other] = [1, 2].map(|last| Some(IpAddr::from([192, 0, 2, last])));
        let full = Err(PageError::OutgoingFull);
        let mut held: Vec<_> = (0..3).map_while(|_| pages.hold(page(4 * MIB), one).ok()).collect();
        assert_eq!((held.len(), pages.check(one), pages.check(other)), (3, full.clone(), Ok(())));
        assert_eq!(pages.hold(page(4 * MIB), one), Err(PageError::OutgoingFull));
        held.extend(pages.hold(page(20 * MIB), other));
        assert_eq!((held.len(), pages.check(other), pages.check(None)), (4, full.clone(), Ok(())));
        held.extend(pages.hold(page(15 * MIB), None));
        assert_eq!((held.len(), pages.check(None)), (5, full));
        assert_eq!(pages.hold(page(MIB), None), Err(PageError::OutgoingFull));
        assert!(outgoing.used() < 48 * MIB && outgoing.take(15 * MIB), "room for frames");
        outgoing.give(15 * MIB);
        let part = held[0].without_first(1, None);
        held.clear();
        assert!(outgoing.used() > 3 * MIB, "a part is all of it");
        drop(part);
        assert_eq!((outgoing.used(), pages.check(one), pages.check(other)), (0, Ok(()), Ok(())));
    }

    #[test]
    fn what_readers_ask_of_a_page_is_computed_once() {
        let value = |offset, key: &str| {
            Arc::new(Message { position: Some(Position::new(7, offset)), key: Some(key.into()), ..Message::plain("x") })
        };
        let page = Page { messages: vec![value(3, "a"), value(5, "b"), value(6, "a")], ..page(1) };
        let held = PageBudget::new(Arc::default()).hold(page, None).expect("no limit");
        assert_eq!(held.settled(), Position::new(7, 5));
        assert_eq!(held.whole.settled.get(), Some(&Position::new(7, 5)));
    }

    #[test]
    fn parts_of_a_page_share_its_messages() {
        let message = |offset| Arc::new(Message { position: Some(Position::new(7, offset)), ..Message::plain("x") });
        let page = Page { messages: (1..=5).map(message).collect(), ..page(1) };
        let held = PageBudget::new(Arc::default()).hold(page, None).expect("no limit");
        let through = Tail { position: Position::new(7, 4), stamp: 0 };
        let gap = Some(Gap { resumes_after: Position::new(7, 1), reason: GapReason::HistoryTrimmed });
        let part = held.without_first(1, gap).only_first(3, through);
        let same = |one: &Arc<Message>, other| Arc::ptr_eq(one, other) && Arc::strong_count(one) == 1;
        assert!(part.messages().iter().zip(&held.messages()[1..]).all(|(one, other)| same(one, other)));
        assert_eq!((part.messages().len(), part.gap, part.through, part.tail), (3, gap, through, held.tail));
        assert_eq!(part.without_first(1, None), held.without_first(2, None).only_first(2, through));
    }
}
