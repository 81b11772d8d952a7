//! Shares pages of history between subscribers. Clients that reconnect at the same time request the
//! same messages, or overlapping ones. They share one read of the broker, and the page is kept for
//! later clients.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::future::{BoxFuture, FutureExt, Shared, WeakShared};

use crate::broker::{Page, ReadFrom};
use crate::hub::held_page::{HeldPage, PageError};
use crate::message::{Gap, GapReason, Position};
use crate::rules::Rule;

/// A page that is not requested for this long is dropped, to free its memory.
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
    page: Option<SharedPage>,
    /// The reads in progress. A read without waiting readers is cancelled.
    under_way: Vec<(ReadFrom, WeakShared<Read>)>,
}

/// A page of history, the request for which it was read, the time of the read, and the time of the
/// last request.
#[derive(Clone)]
pub(super) struct SharedPage {
    from: ReadFrom,
    pub(super) page: Arc<HeldPage>,
    read_at: Instant,
    used_at: Instant,
}

impl SharedReads {
    /// The stored page, if it is still valid under the rule of the topic.
    pub(super) fn page(&self, rule: &Rule) -> Option<SharedPage> {
        let now = Instant::now();
        let mut state = self.lock();
        let kept = state.page.as_mut().filter(|kept| kept.is_fresh(rule, now))?;
        kept.used_at = now;
        Some(kept.clone())
    }

    /// Stores a page for later readers.
    pub(super) fn keep(&self, page: SharedPage) {
        self.lock().page = Some(page);
    }

    /// Drops the page unless it meets a condition.
    pub(super) fn drop_unless(&self, is_kept: impl FnOnce(&SharedPage) -> bool) {
        let dropped = self.lock().page.take_if(|page| !is_kept(page));
        // Drop it outside the lock, because this may free megabytes.
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

    /// Whether readers still request the page, and its messages do not exceed the age limit by
    /// much.
    pub(super) fn is_fresh(&self, rule: &Rule, now: Instant) -> bool {
        let excess = rule.history.map_or(PAGE_IDLE, |history| PAGE_IDLE.max(history.age / EXCESS_AGE));
        now.duration_since(self.used_at) <= PAGE_IDLE && now.duration_since(self.read_at) <= excess
    }

    /// Returns the part of the page that fully answers `from`, if it can. `newer`: number of later
    /// messages in the log.
    pub(super) fn answer(&self, from: ReadFrom, newer: usize) -> Option<Arc<HeldPage>> {
        let epoch = self.page.tail.position.epoch;
        // For a position with offset 0, only the broker knows whether messages are missing.
        let is_foreign = |position: Position| position.epoch != epoch && position.offset > 0;
        match (self.from, from) {
            (ReadFrom::Oldest | ReadFrom::Keys, ReadFrom::After(position)) if is_foreign(position) => {
                let first = self.page.messages.first().and_then(|message| message.position);
                let before = match (self.from, first) {
                    (ReadFrom::Oldest, Some(first)) => first.offset - 1,
                    (ReadFrom::Oldest, None) => self.page.tail.position.offset,
                    _ => 0,
                };
                let gap = Gap { resumes_after: Position::new(epoch, before), reason: GapReason::EpochChanged };
                Some(self.with(Some(gap), 0))
            }
            (ReadFrom::Oldest, ReadFrom::Oldest) => Some(self.page.clone()),
            (ReadFrom::Oldest, _) if self.page.through != self.page.tail => None,
            (ReadFrom::Oldest, ReadFrom::Last(count)) => {
                Some(self.with(None, self.page.messages.len().saturating_sub(count.saturating_sub(newer))))
            }
            (ReadFrom::Oldest, ReadFrom::After(position)) => {
                let messages = &self.page.messages;
                let next = messages.iter().position(|message| message.position == Some(position.next()))?;
                Some(self.with(None, next))
            }
            (own, asked) => (own == asked).then(|| self.page.clone()),
        }
    }

    /// Returns the page with another gap and without its first messages.
    fn with(&self, gap: Option<Gap>, skip: usize) -> Arc<HeldPage> {
        if skip == 0 && gap == self.page.gap {
            return self.page.clone();
        }
        let messages = self.page.messages[skip..].to_vec();
        Arc::new(self.page.part(Page { gap, messages, ..**self.page }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::Tail;
    use crate::hub::held_page::PageBudget;
    use crate::message::Message;
    use crate::rules::History;

    fn page(from: ReadFrom, offsets: std::ops::RangeInclusive<u64>, tail: u64) -> SharedPage {
        let tail = Tail { position: Position::new(7, tail), stamp: 1 };
        let through = Tail { position: Position::new(7, *offsets.end()), stamp: 1 };
        let message =
            |offset| Arc::new(Message { position: Some(Position::new(7, offset)), stamp: 1, ..Message::plain("x") });
        let page = Page { gap: None, messages: offsets.map(message).collect(), through, tail };
        SharedPage::new(from, Arc::new(PageBudget::new(Arc::default()).hold(page, None).expect("no limit")))
    }

    fn offsets(page: Option<Arc<HeldPage>>) -> Option<Vec<u64>> {
        Some(page?.messages.iter().filter_map(|message| Some(message.position?.offset)).collect())
    }

    #[test]
    fn a_whole_history_answers_all_who_stand_within_it() {
        let whole = page(ReadFrom::Oldest, 3..=5, 5);
        assert_eq!(offsets(whole.answer(ReadFrom::After(Position::new(7, 3)), 0)), Some(vec![4, 5]));
        assert_eq!(offsets(whole.answer(ReadFrom::Last(2), 0)), Some(vec![4, 5]));
        assert_eq!(offsets(whole.answer(ReadFrom::Last(2), 1)), Some(vec![5]), "one of the two is in the log");
        assert_eq!(offsets(whole.answer(ReadFrom::Last(2), 7)), Some(vec![]));
        assert_eq!(
            offsets(whole.answer(ReadFrom::After(Position::new(7, 1)), 0)),
            None,
            "the broker says what is gone"
        );
        let part = page(ReadFrom::Oldest, 3..=5, 9);
        assert_eq!(offsets(part.answer(ReadFrom::After(Position::new(7, 3)), 0)), None);
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
            assert_eq!(answer.messages.len(), 3);
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
