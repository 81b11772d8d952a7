//! Shares pages of history between subscribers. Clients that reconnect at the same time request the
//! same messages, or overlapping ones. They share one read of the broker, and the page is kept for
//! later clients: one page for each kind of read, so that clients with different requests do not
//! displace each other's pages.
//!
//! A client can still cause a read with each request, by positions that no page has. Such a read costs
//! the broker what it returns, the client waits for it, and the broker limits the reads in flight of a
//! channel.

use std::mem::discriminant;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::future::{BoxFuture, FutureExt, Shared, WeakShared};

use crate::broker::ReadFrom;
use crate::hub::held_page::{HeldPage, PageError};
use crate::message::{Gap, GapReason, Position};
use crate::rules::Rule;

/// A page that answers no request for this long is dropped, to free its memory.
const PAGE_IDLE: Duration = Duration::from_secs(5);
/// A page that connects to the log never gets outdated, because the log has the later messages. But
/// its messages may exceed the age limit of the history: by this part of the limit, or by
/// [`PAGE_IDLE`].
const EXCESS_AGE: u32 = 10;

/// The result of a read of the broker; `None` if the channel keeps no history.
pub(super) type Answer = Result<Option<Arc<HeldPage>>, PageError>;
/// A read of the broker.
pub(super) type Read = BoxFuture<'static, Answer>;

/// The shared state of the readers of the history of a topic.
#[derive(Default)]
pub(crate) struct SharedReads(Mutex<State>);

#[derive(Default)]
struct State {
    /// At most one for each variant of [`ReadFrom`].
    pages: Vec<SharedPage>,
    /// The reads in progress. A read without waiting readers is cancelled.
    under_way: Vec<(ReadFrom, WeakShared<Read>)>,
}

/// A page of history, the request for which it was read, the time of the read, and the time of the
/// last answer.
pub(super) struct SharedPage {
    from: ReadFrom,
    pub(super) page: Arc<HeldPage>,
    read_at: Instant,
    used_at: Instant,
}

impl SharedReads {
    /// Answers a request from a page that is still valid under the rule of the topic, if one has all
    /// that is requested. `newer` returns the number of messages that the log has after a page; `None`
    /// if the log does not continue at its end.
    pub(super) fn answer(
        &self,
        from: ReadFrom,
        rule: &Rule,
        newer: impl Fn(&HeldPage) -> Option<usize>,
    ) -> Option<Arc<HeldPage>> {
        let now = Instant::now();
        self.lock().pages.iter_mut().filter(|kept| kept.is_fresh(rule, now)).find_map(|kept| {
            let answer = kept.answer(from, newer(&kept.page)?)?;
            kept.used_at = now;
            Some(answer)
        })
    }

    /// Stores a page for later readers.
    pub(super) fn keep(&self, page: SharedPage) {
        let kind = discriminant(&page.from);
        let mut state = self.lock();
        let replaced: Vec<_> = state.pages.extract_if(.., |kept| discriminant(&kept.from) == kind).collect();
        state.pages.push(page);
        // Drop it outside the lock, because this may free megabytes.
        drop(state);
        drop(replaced);
    }

    /// Drops the pages that do not meet a condition.
    pub(super) fn retain(&self, is_kept: impl Fn(&SharedPage) -> bool) {
        let dropped: Vec<_> = self.lock().pages.extract_if(.., |page| !is_kept(page)).collect();
        // As above.
        drop(dropped);
    }

    /// Joins the read of `from` in progress, or starts one.
    pub(super) fn join(&self, from: ReadFrom, begin: impl FnOnce() -> Read) -> Shared<Read> {
        let mut state = self.lock();
        let known = state.under_way.iter().find(|(what, _)| *what == from).and_then(|(_, read)| read.upgrade());
        known.unwrap_or_else(|| {
            let read = begin().shared();
            state.under_way.retain(|(what, read)| *what != from && read.upgrade().is_some());
            // It has not been polled yet, so it cannot be complete.
            state.under_way.extend(read.downgrade().map(|weak| (from, weak)));
            read
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        // Every statement leaves the state consistent, so a poisoned lock is safe to use.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SharedPage {
    /// Creates a page that has just been read.
    pub(super) fn new(from: ReadFrom, page: Arc<HeldPage>) -> Self {
        let now = Instant::now();
        Self { from, page, read_at: now, used_at: now }
    }

    /// Whether the page still answers requests, and its messages do not exceed the age limit by
    /// much.
    pub(super) fn is_fresh(&self, rule: &Rule, now: Instant) -> bool {
        let excess = rule.history.map_or(PAGE_IDLE, |history| PAGE_IDLE.max(history.age / EXCESS_AGE));
        now.duration_since(self.used_at) <= PAGE_IDLE && now.duration_since(self.read_at) <= excess
    }

    /// Answers `from` from the page, if it can. `newer`: number of later messages in the log.
    pub(super) fn answer(&self, from: ReadFrom, newer: usize) -> Option<Arc<HeldPage>> {
        let page = &self.page;
        let (skip, gap) = match (self.from, from) {
            (own, asked) if own == asked => (0, page.gap),
            (ReadFrom::Oldest, ReadFrom::Last(count)) => self.find_last(count, newer)?,
            (ReadFrom::Last(most), ReadFrom::Last(count)) if count <= most => self.find_last(count, newer)?,
            (_, ReadFrom::After(position)) => self.find_after(position).or_else(|| self.find_gap(position))?,
            _ => return None,
        };
        let is_whole = skip == 0 && gap == page.gap;
        Some(if is_whole { page.clone() } else { page.without_first(skip, gap).into() })
    }

    /// Finds the last `count` messages of the page and the log. This, and what follows, returns how many
    /// messages to skip, and the gap before the others.
    fn find_last(&self, count: usize, newer: usize) -> Option<(usize, Option<Gap>)> {
        let page = &self.page;
        let skip = page.messages().len().saturating_sub(count.saturating_sub(newer));
        (page.through == page.tail).then(|| (skip, page.gap.filter(|_| skip == 0)))
    }

    /// Finds the messages after a position, if the page has each of them. On a keyed channel, a page may
    /// lack some: those whose values were replaced or removed.
    fn find_after(&self, position: Position) -> Option<(usize, Option<Gap>)> {
        let messages = self.page.messages();
        let wanted = self.page.through.position.offset.checked_sub(position.offset)?;
        let skip = messages.len().checked_sub(wanted as usize)?;
        // Offsets increase. So if the first one is right, those behind it are too.
        (messages.get(skip)?.position == Some(position.next())).then_some((skip, None))
    }

    /// Finds the whole page, if it is the answer to a position after which messages are missing.
    fn find_gap(&self, position: Position) -> Option<(usize, Option<Gap>)> {
        let first = self.page.messages().first().and_then(|message| message.position);
        let through = self.page.through.position;
        let before = match self.from {
            ReadFrom::Oldest => first.map_or(through.offset, |first| first.offset - 1),
            ReadFrom::Keys => 0,
            _ => return None,
        };
        let reason = if position.epoch == through.epoch {
            (position.offset < before).then_some(GapReason::HistoryTrimmed)
        } else {
            // For a position with offset 0, only the broker knows whether messages are missing.
            (position.offset > 0).then_some(GapReason::EpochChanged)
        };
        let resumes_after = Position::new(through.epoch, before);
        reason.map(|reason| (0, Some(Gap { resumes_after, reason })))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::{Page, Tail};
    use crate::hub::held_page::PageBudget;
    use crate::message::Message;
    use crate::rules::History;

    fn page(from: ReadFrom, offsets: std::ops::RangeInclusive<u64>, tail: u64) -> SharedPage {
        let through = *offsets.end();
        read(from, offsets, through, tail)
    }

    /// A page up to the end of the history, with only some of the messages.
    fn with_offsets(from: ReadFrom, offsets: &[u64], tail: u64) -> SharedPage {
        read(from, offsets.iter().copied(), tail, tail)
    }

    fn read(from: ReadFrom, offsets: impl IntoIterator<Item = u64>, through: u64, tail: u64) -> SharedPage {
        let [through, tail] = [through, tail].map(|offset| Tail { position: Position::new(7, offset), stamp: 1 });
        let message =
            |offset| Arc::new(Message { position: Some(Position::new(7, offset)), stamp: 1, ..Message::plain("x") });
        let page = Page { gap: None, messages: offsets.into_iter().map(message).collect(), through, tail };
        SharedPage::new(from, Arc::new(PageBudget::new(Arc::default()).hold(page, None).expect("no limit")))
    }

    fn offsets(page: Option<Arc<HeldPage>>) -> Option<Vec<u64>> {
        Some(page?.messages().iter().filter_map(|message| Some(message.position?.offset)).collect())
    }

    fn after(page: &SharedPage, offset: u64) -> Option<Vec<u64>> {
        offsets(page.answer(ReadFrom::After(Position::new(7, offset)), 0))
    }

    #[test]
    fn a_whole_history_answers_all_who_stand_within_it() {
        let whole = page(ReadFrom::Oldest, 3..=5, 5);
        assert_eq!([2, 3, 4].map(|offset| after(&whole, offset)), [vec![3, 4, 5], vec![4, 5], vec![5]].map(Some));
        assert_eq!(offsets(whole.answer(ReadFrom::Last(2), 0)), Some(vec![4, 5]));
        assert_eq!(offsets(whole.answer(ReadFrom::Last(2), 1)), Some(vec![5]), "one of the two is in the log");
        assert_eq!(offsets(whole.answer(ReadFrom::Last(2), 7)), Some(vec![]));
        let future = ReadFrom::After(Position::new(7, 6));
        assert_eq!(offsets(whole.answer(future, 0)), None, "the broker may be ahead");
        let part = page(ReadFrom::Oldest, 3..=5, 9);
        assert_eq!(offsets(part.answer(ReadFrom::Last(2), 0)), None);
        assert_eq!((after(&part, 3), after(&part, 5)), (Some(vec![4, 5]), None), "there is more");
    }

    #[test]
    fn whoever_stands_before_the_whole_history_is_told_what_is_gone() {
        let whole = page(ReadFrom::Oldest, 3..=5, 5);
        let answer = whole.answer(ReadFrom::After(Position::new(7, 1)), 0).expect("all of it");
        let gap = Gap { resumes_after: Position::new(7, 2), reason: GapReason::HistoryTrimmed };
        assert_eq!((answer.gap, answer.messages().len()), (Some(gap), 3));
        let later = page(ReadFrom::After(Position::new(7, 2)), 3..=5, 5);
        assert_eq!(after(&later, 1), None, "the history may have more");
    }

    #[test]
    fn any_page_answers_who_misses_only_messages_that_it_has() {
        for from in [ReadFrom::After(Position::new(7, 2)), ReadFrom::Last(3), ReadFrom::Keys] {
            let all = page(from, 3..=5, 5);
            assert_eq!((after(&all, 3), after(&all, 1)), (Some(vec![4, 5]), None), "{from:?}");
            // A client may miss what is not there: the removal of a key, or a value that was replaced.
            let changed = with_offsets(from, &[3, 4, 7, 8], 9);
            assert_eq!([3, 5, 6, 8].map(|offset| after(&changed, offset)), [None, None, None, None], "{from:?}");
            let changed = with_offsets(from, &[3, 4, 7, 8], 8);
            assert_eq!((after(&changed, 6), after(&changed, 3)), (Some(vec![7, 8]), None), "{from:?}");
        }
        let last = page(ReadFrom::Last(3), 3..=5, 5);
        assert_eq!(offsets(last.answer(ReadFrom::Last(2), 0)), Some(vec![4, 5]));
        assert_eq!(offsets(last.answer(ReadFrom::Last(4), 0)), None);
    }

    #[test]
    fn pages_of_different_kinds_are_kept_beside_each_other() {
        let (reads, rule) = (SharedReads::default(), Rule::default());
        let known = |from| offsets(reads.answer(from, &rule, |_| Some(0)));
        let [early, late] = [2, 4].map(|offset| ReadFrom::After(Position::new(7, offset)));
        reads.keep(with_offsets(ReadFrom::Keys, &[2, 5], 5));
        reads.keep(page(late, 5..=5, 5));
        reads.keep(page(early, 3..=5, 5));
        assert_eq!((known(ReadFrom::Keys), known(early)), (Some(vec![2, 5]), Some(vec![3, 4, 5])));
        assert_eq!(reads.lock().pages.len(), 2, "a page of each kind");
        assert_eq!((known(late), known(ReadFrom::Last(2))), (Some(vec![5]), None));
        assert_eq!(offsets(reads.answer(early, &rule, |_| None)), None, "the log does not continue there");
        reads.retain(|kept| kept.from == ReadFrom::Keys);
        assert_eq!((known(ReadFrom::Keys), known(early)), (Some(vec![2, 5]), None));
    }

    #[test]
    fn a_page_is_kept_while_it_is_asked_for_and_no_longer_than_its_age_allows() {
        let history = |seconds| Some(History { messages: 100, age: Duration::from_secs(seconds) });
        let rule = |seconds| Rule { history: history(seconds), ..Rule::default() };
        let mut kept = page(ReadFrom::Oldest, 1..=3, 3);
        let after = |seconds: u64| kept.read_at + Duration::from_secs(seconds);
        let later = [1, 5, 6, 30, 31].map(after);
        assert!(kept.is_fresh(&rule(300), later[1]) && !kept.is_fresh(&rule(300), later[2]), "nobody asked for it");
        kept.used_at = later[3];
        assert!(kept.is_fresh(&rule(300), later[3]), "it is asked for");
        assert!(!kept.is_fresh(&rule(300), later[4]), "its messages may be a tenth too old");
        kept.used_at = later[2];
        assert!(!kept.is_fresh(&rule(1), later[2]));
    }

    #[test]
    fn positions_of_other_epochs_share_one_answer() {
        let whole = page(ReadFrom::Oldest, 3..=5, 5);
        for epoch in [1, 6, 8] {
            let answer = whole.answer(ReadFrom::After(Position::new(epoch, 4)), 0).expect("the same for all");
            let gap = answer.gap.expect("they missed something");
            assert_eq!((gap.resumes_after, gap.reason), (Position::new(7, 2), GapReason::EpochChanged));
            assert_eq!(answer.messages().len(), 3);
        }
        assert!(whole.answer(ReadFrom::After(Position::new(6, 0)), 0).is_none(), "it may have missed nothing");
    }

    #[tokio::test]
    async fn readers_of_the_same_share_one_read_and_others_do_not_wait_for_it() {
        let reads = SharedReads::default();
        let answer = || Ok(Some(page(ReadFrom::Oldest, 1..=1, 1).page));
        let slow = reads.join(ReadFrom::Oldest, || futures::future::pending().boxed());
        let same = reads.join(ReadFrom::Oldest, || panic!("it is under way"));
        assert!(same.now_or_never().is_none());
        let other = reads.join(ReadFrom::Tail, || futures::future::ready(answer()).boxed());
        assert_eq!(other.await, answer());
        drop(slow);
        let again = reads.join(ReadFrom::Oldest, || futures::future::ready(answer()).boxed());
        assert_eq!(again.await, answer(), "a read that nobody waits for is not joined");
    }
}
