//! One channel of a client: its topic, how far the client has read, and what the client may do there.

use std::sync::Arc;

use crate::broker::{Page, ReadFrom, Tail};
use crate::hub::Membership;
use crate::hub::held_page::HeldPage;
use crate::hub::topic::{ReadAt, Start, StartingPoint, Topic};
use crate::message::{Message, Position};

/// What a client may do in a channel beside listening.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Rights {
    /// Publish.
    pub publish: bool,
}

/// A subscription that is to be made: what a handshake, or a client's command, asked for and was allowed.
pub struct NewSubscription {
    /// The channel, joined.
    pub membership: Membership,
    /// Where to begin.
    pub start: Start,
    /// What the client may do there.
    pub rights: Rights,
}

/// One channel of a client.
pub struct Subscription {
    membership: Membership,
    pub(super) cursor: Cursor,
    /// What the client has received up to, once what its session holds for it is written.
    pub(super) position: Option<Position>,
    pub(super) rights: Rights,
    /// Where the fan-out lists it.
    pub(super) fan_out_key: usize,
}

/// Where a subscription reads next.
pub(super) enum Cursor {
    /// In the topic's log, from this sequence number on.
    Log(u64),
    /// In a page of history; then wherever the page leads.
    Page(Box<PageCursor>),
    /// Nowhere until the history has answered this.
    History(ReadFrom),
    /// Nowhere until the history has answered with the value of each key, as of this position.
    Snapshot(Position),
}

/// A place in a page of history, whose entries are counted from 0.
pub(super) struct PageCursor {
    pub(super) page: Arc<HeldPage>,
    pub(super) next: u64,
}

impl Subscription {
    /// A subscription at its start; also the channel's newest offset.
    pub(super) fn new(new: NewSubscription) -> (Self, Option<u64>) {
        let NewSubscription { membership, start, rights } = new;
        let StartingPoint { read_at, position, head } = membership.topic().locate(start);
        let cursor = match (read_at, position, head) {
            (ReadAt::History(ReadFrom::Keys), Some(Position { epoch, .. }), Some(offset)) => {
                Cursor::Snapshot(Position::new(epoch, offset))
            }
            (read_at, ..) => read_at.into(),
        };
        (Self { membership, cursor, position, rights, fan_out_key: usize::MAX }, head)
    }

    /// The channel.
    pub fn topic(&self) -> &Arc<Topic> {
        self.membership.topic()
    }

    /// What the client may do in it.
    pub fn rights(&self) -> Rights {
        self.rights
    }

    /// What the history must be asked before anything else is written.
    pub(super) fn question(&self) -> Option<ReadFrom> {
        match self.cursor {
            Cursor::History(from) => Some(from),
            Cursor::Snapshot(_) => Some(ReadFrom::Keys),
            Cursor::Log(_) | Cursor::Page(_) => None,
        }
    }

    /// The history has answered; `None` if the channel keeps none any more.
    pub(super) fn answered(&mut self, page: Option<Arc<HeldPage>>) {
        self.cursor = match (page, &self.cursor) {
            (Some(page), Cursor::Snapshot(at)) => Cursor::page(snapshot_at(page, *at)),
            (Some(page), _) => Cursor::page(page),
            (None, _) => Cursor::Log(self.topic().end()),
        };
    }

    /// Whether it reads a page of history, which is kept for it until then.
    pub(super) fn reads_page(&self) -> bool {
        matches!(self.cursor, Cursor::Page(_))
    }

    /// A page has been received: on to the log, or to the next page.
    pub(super) fn leave_page(&mut self) {
        if let Cursor::Page(at) = &self.cursor {
            let through = at.page.through.position;
            self.position = Some(through);
            self.cursor = self.topic().after_history(through).into();
        }
    }

    /// How many entries the client has yet to receive, as far as that is known.
    pub(super) fn backlog(&self) -> u64 {
        match &self.cursor {
            Cursor::Log(cursor) => self.topic().end().saturating_sub(*cursor),
            Cursor::Page(at) => (usize::from(at.page.gap.is_some()) + at.page.messages.len()) as u64 - at.next,
            Cursor::History(_) | Cursor::Snapshot(_) => 0,
        }
    }
}

impl Cursor {
    fn page(page: Arc<HeldPage>) -> Self {
        Self::Page(Box::new(PageCursor { page, next: 0 }))
    }

    /// The number of the next entry, in the log or page; `None` if the history must be asked first.
    pub(super) fn next_entry(&mut self) -> Option<&mut u64> {
        match self {
            Self::Log(next) => Some(next),
            Self::Page(at) => Some(&mut at.next),
            Self::History(_) | Self::Snapshot(_) => None,
        }
    }
}

impl std::convert::From<ReadAt> for Cursor {
    fn from(read_at: ReadAt) -> Self {
        match read_at {
            ReadAt::Log(cursor) => Self::Log(cursor),
            ReadAt::History(from) => Self::History(from),
        }
    }
}

/// A snapshot as it was when the client subscribed: what came since follows from the log, messages without a key included.
fn snapshot_at(page: Arc<HeldPage>, at: Position) -> Arc<HeldPage> {
    let through = page.through.position;
    if page.gap.is_some() || through.epoch != at.epoch || through.offset <= at.offset {
        return page;
    }
    let was_there = |message: &&Arc<Message>| message.position.is_some_and(|held| held.offset <= at.offset);
    let messages = page.messages.iter().filter(was_there).cloned().collect();
    Arc::new(page.part(Page { messages, through: Tail { position: at, stamp: 0 }, ..**page }))
}
