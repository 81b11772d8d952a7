//! Pages of history for subscribers. Many who come back at the same time ask for the same, or for parts
//! of it: they share one read of the broker, and the page stays for those who come a little later.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::{BoxFuture, Shared, WeakShared};

use super::Hub;
use crate::broker::{Broker, BrokerError, PAGE_MESSAGES, Page, ReadFrom};
use crate::hub::topic::{ReadAt, Topic};
use crate::message::{Gap, GapReason, Position};

/// How long a page is handed to others. Whatever was published since it was read follows from the log,
/// so it never is out of date; it only takes memory, and its oldest messages may be a little too old.
const PAGE_AGE: Duration = Duration::from_secs(5);

type Answer = Result<Option<Arc<Page>>, BrokerError>;
type Read = BoxFuture<'static, Answer>;

/// What readers of a topic's history share.
#[derive(Default)]
pub(crate) struct SharedReads(Mutex<State>);

#[derive(Default)]
struct State {
    page: Option<SharedPage>,
    /// Reads under way, for as long as somebody waits for them.
    under_way: Vec<(ReadFrom, WeakShared<Read>)>,
}

/// A page of history, what it was the answer to, and when it was read.
#[derive(Clone)]
struct SharedPage {
    from: ReadFrom,
    page: Arc<Page>,
    read_at: Instant,
}

impl SharedReads {
    /// Forgets the page if it is too old to be handed out.
    pub(crate) fn sweep(&self) {
        self.lock().page.take_if(|page| page.read_at.elapsed() > PAGE_AGE);
    }

    fn page(&self) -> Option<SharedPage> {
        self.lock().page.clone().filter(|page| page.read_at.elapsed() <= PAGE_AGE)
    }

    fn keep(&self, from: ReadFrom, page: &Arc<Page>) {
        self.lock().page = Some(SharedPage { from, page: page.clone(), read_at: Instant::now() });
    }

    /// Joins the read of `from` that is under way, or begins one.
    fn join(&self, from: ReadFrom, begin: impl FnOnce() -> Read) -> Shared<Read> {
        let mut state = self.lock();
        let known = state.under_way.iter().find(|(what, _)| *what == from).and_then(|(_, read)| read.upgrade());
        known.unwrap_or_else(|| {
            let read = begin().shared();
            state.under_way.retain(|(what, read)| *what != from && read.upgrade().is_some());
            // It has not been polled yet, so it can't be over.
            state.under_way.extend(read.downgrade().map(|weak| (from, weak)));
            read
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        // The state is whole after every line that holds it: a panic elsewhere does not spoil it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Hub {
    /// Reads history for subscribers. Those who ask for the same at about the same time share one answer.
    ///
    /// # Errors
    /// As [`Broker::read`].
    pub async fn history(&self, topic: &Topic, from: ReadFrom) -> Answer {
        let shared = &topic.shared_reads;
        if let Some(known) = shared.page()
            && connects(topic, &known.page)
            && let Some(page) = known.answer(from)
        {
            return Ok(Some(page));
        }
        let wider = wider(topic, from);
        let Some(page) = self.read_shared(topic, wider).await? else { return Ok(None) };
        let read = SharedPage { from: wider, page, read_at: Instant::now() };
        match read.answer(from) {
            Some(page) => Ok(Some(page)),
            // What is asked for is not in what was read (too far back, or a page too large): the broker says it exactly.
            None => self.read_shared(topic, from).await,
        }
    }

    async fn read_shared(&self, topic: &Topic, from: ReadFrom) -> Answer {
        let answer = topic.shared_reads.join(from, || read(self.broker.clone(), topic.channel.clone(), from)).await?;
        if let Some(page) = &answer {
            topic.shared_reads.keep(from, page);
        }
        Ok(answer)
    }
}

fn read(broker: Arc<dyn Broker>, channel: crate::channel::ChannelName, from: ReadFrom) -> Read {
    async move { Ok(broker.read(&channel, from, PAGE_MESSAGES).await?.map(Arc::new)) }.boxed()
}

/// Whether the log goes on where the page ends.
fn connects(topic: &Topic, page: &Page) -> bool {
    let through = page.through.position;
    topic.delivered().is_some_and(|tail| tail.position.epoch == through.epoch)
        && matches!(topic.after_history(through), ReadAt::Log(_))
}

/// What to read so that others, who stand at different places, can share the answer.
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

impl SharedPage {
    /// The part of the page that answers `from`, if it does in full.
    fn answer(&self, from: ReadFrom) -> Option<Arc<Page>> {
        let epoch = self.page.tail.position.epoch;
        // Of a position with offset 0 only the broker knows whether nothing was missed.
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
                Some(self.with(None, self.page.messages.len().saturating_sub(count)))
            }
            (ReadFrom::Oldest, ReadFrom::After(position)) => {
                let messages = &self.page.messages;
                let next = messages.iter().position(|message| message.position == Some(position.next()))?;
                Some(self.with(None, next))
            }
            (own, asked) => (own == asked).then(|| self.page.clone()),
        }
    }

    /// The page with another gap and without its first messages.
    fn with(&self, gap: Option<Gap>, skip: usize) -> Arc<Page> {
        if skip == 0 && gap == self.page.gap {
            return self.page.clone();
        }
        Arc::new(Page { gap, messages: self.page.messages[skip..].to_vec(), ..*self.page })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::Tail;
    use crate::message::Message;

    fn page(from: ReadFrom, offsets: std::ops::RangeInclusive<u64>, tail: u64) -> SharedPage {
        let tail = Tail { position: Position::new(7, tail), stamp: 1 };
        let through = Tail { position: Position::new(7, *offsets.end()), stamp: 1 };
        let message =
            |offset| Arc::new(Message { position: Some(Position::new(7, offset)), stamp: 1, ..Message::plain("x") });
        let page = Page { gap: None, messages: offsets.map(message).collect(), through, tail };
        SharedPage { from, page: Arc::new(page), read_at: Instant::now() }
    }

    fn offsets(page: Option<Arc<Page>>) -> Option<Vec<u64>> {
        Some(page?.messages.iter().filter_map(|message| Some(message.position?.offset)).collect())
    }

    #[test]
    fn a_whole_history_answers_all_who_stand_within_it() {
        let whole = page(ReadFrom::Oldest, 3..=5, 5);
        assert_eq!(offsets(whole.answer(ReadFrom::After(Position::new(7, 3)))), Some(vec![4, 5]));
        assert_eq!(offsets(whole.answer(ReadFrom::Last(2))), Some(vec![4, 5]));
        assert_eq!(offsets(whole.answer(ReadFrom::After(Position::new(7, 1)))), None, "the broker says what is gone");
        let part = page(ReadFrom::Oldest, 3..=5, 9);
        assert_eq!(offsets(part.answer(ReadFrom::After(Position::new(7, 3)))), None);
    }

    #[test]
    fn positions_of_other_epochs_share_one_answer() {
        let whole = page(ReadFrom::Oldest, 3..=5, 5);
        for epoch in [1, 6, 8] {
            let answer = whole.answer(ReadFrom::After(Position::new(epoch, 4))).expect("the same for all");
            let gap = answer.gap.expect("they missed something");
            assert_eq!((gap.resumes_after, gap.reason), (Position::new(7, 2), GapReason::EpochChanged));
            assert_eq!(answer.messages.len(), 3);
        }
        assert!(whole.answer(ReadFrom::After(Position::new(6, 0))).is_none(), "it may have missed nothing");
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
