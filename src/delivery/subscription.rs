//! The subscription of a client to one channel: the topic, the position of the client, and its
//! rights there.

use std::sync::Arc;

use crate::broker::{ReadFrom, Tail};
use crate::hub::Membership;
use crate::hub::held_page::HeldPage;
use crate::hub::topic::{ReadAt, Start, StartingPoint, Topic};
use crate::message::{Entry, Message, Position};
use crate::presence::Client;

/// The rights of a client in a channel, in addition to receiving.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Rights {
    /// Publish.
    pub publish: bool,
}

/// The parameters of a new subscription, after authorization.
pub struct NewSubscription {
    /// The membership in the joined channel.
    pub membership: Membership,
    /// Where to start.
    pub start: Start,
    /// The rights of the client in the channel.
    pub rights: Rights,
    /// The answer to the first read of the history that `start` needs, if it was read already.
    pub page: Option<Arc<HeldPage>>,
    /// On a channel with presence: as whom others see the client.
    pub attendance: Option<Attendance>,
}

/// As whom others see a client on a channel.
#[derive(Clone, Debug)]
pub struct Attendance {
    /// The client.
    pub client: Arc<Client>,
    /// Whether the client is told who comes and goes.
    pub is_told: bool,
}

/// The messages that a client gets with the answer to its subscription.
#[derive(Default)]
pub struct Missed {
    /// The position of the client before these messages and all later ones.
    pub position: Option<Position>,
    /// The messages, all of the epoch of the position.
    pub messages: Vec<Arc<Message>>,
    /// The position of the client after these messages.
    pub through: Option<Position>,
}

/// The subscription of a client to one channel.
pub struct Subscription {
    membership: Membership,
    pub(super) cursor: Cursor,
    /// Position after all bytes that the session still holds are written.
    pub(super) position: Option<Position>,
    pub(super) rights: Rights,
    /// The key of the subscription in the fan-out.
    pub(super) fan_out_key: usize,
}

/// Where a subscription reads next.
pub(super) enum Cursor {
    /// In the topic's log, from this sequence number on.
    Log(u64),
    /// In a page of history, then in the log or in the next page.
    Page(Box<PageCursor>),
    /// Waiting for this read of the history.
    History(ReadFrom),
    /// Waiting for a read of the value of each key, as of this position.
    Snapshot(Position),
}

/// A place in a page of history. Entries are counted from 0.
pub(super) struct PageCursor {
    pub(super) page: Arc<HeldPage>,
    pub(super) next: u64,
}

impl Subscription {
    /// Creates a subscription at its start. Returns also the newest offset of the channel.
    pub(super) fn new(new: NewSubscription) -> (Self, Option<u64>) {
        let NewSubscription { membership, start, rights, page, attendance: _ } = new;
        let StartingPoint { read_at, position, head } = membership.topic().locate(start);
        let cursor = match (read_at, position, head) {
            (ReadAt::History(ReadFrom::Keys), Some(Position { epoch, .. }), Some(offset)) => {
                Cursor::Snapshot(Position::new(epoch, offset))
            }
            (read_at, ..) => read_at.into(),
        };
        let mut subscription = Self { membership, cursor, position, rights, fan_out_key: usize::MAX };
        if page.is_some() && subscription.question().is_some() {
            subscription.set_page(page);
        }
        (subscription, head)
    }

    /// See `Session::take_missed`.
    pub(super) fn take_missed(&mut self, most: usize) -> Missed {
        let asked = self.position;
        let mut messages: Vec<Arc<Message>> = Vec::new();
        let mut size = 0;
        let mut takes = |message: &Arc<Message>| {
            let epoch = |message: &Message| message.position.map(|position| position.epoch);
            let goes_on = messages.first().is_none_or(|first| epoch(first) == epoch(message));
            if !goes_on || size >= most {
                return false;
            }
            size += message.weight();
            messages.push(message.clone());
            true
        };
        loop {
            match &mut self.cursor {
                Cursor::Page(at) if at.page.gap.is_none() => {
                    let rest = at.page.messages().iter().skip(at.next as usize);
                    at.next += rest.take_while(|message| takes(message)).count() as u64;
                    if (at.next as usize) < at.page.messages().len() {
                        break;
                    }
                    self.leave_page();
                }
                Cursor::Log(next) => {
                    let mut taken = 0;
                    // What the log no longer has, the next read reports.
                    let _ = self.membership.topic().read(*next, |entry| {
                        let is_taken = matches!(entry, Entry::Message(message) if takes(message));
                        taken += u64::from(is_taken);
                        is_taken
                    });
                    *next += taken;
                    break;
                }
                Cursor::Page(_) | Cursor::History(_) | Cursor::Snapshot(_) => break,
            }
        }
        self.told(asked, messages)
    }

    /// The position that a client learns together with the messages that it missed.
    fn told(&mut self, asked: Option<Position>, messages: Vec<Arc<Message>>) -> Missed {
        let first = messages.iter().find_map(|message| message.position);
        let last = messages.iter().rev().find_map(|message| message.position);
        self.position = last.or(self.position);
        let position = match (first, asked) {
            // The messages begin another epoch.
            (Some(first), Some(asked)) if first.epoch != asked.epoch => Some(Position::new(first.epoch, 0)),
            (Some(_), asked) => asked,
            (None, _) => self.position,
        };
        Missed { position, messages, through: self.position }
    }

    /// The topic of the channel.
    pub fn topic(&self) -> &Arc<Topic> {
        self.membership.topic()
    }

    /// The rights of the client in the channel.
    pub fn rights(&self) -> Rights {
        self.rights
    }

    /// The read of the history that must come next, if there is one.
    pub(super) fn question(&self) -> Option<ReadFrom> {
        match self.cursor {
            Cursor::History(from) => Some(from),
            Cursor::Snapshot(_) => Some(ReadFrom::Keys),
            Cursor::Log(_) | Cursor::Page(_) => None,
        }
    }

    /// Continues with a page of the history; `None` if the channel no longer keeps a history.
    pub(super) fn set_page(&mut self, page: Option<Arc<HeldPage>>) {
        self.cursor = match (page, &self.cursor) {
            (Some(page), Cursor::Snapshot(at)) => Cursor::page(snapshot_at(page, *at)),
            (Some(page), _) => Cursor::page(page),
            (None, _) => Cursor::Log(self.topic().end()),
        };
    }

    /// Whether its position has the epoch of another one, as far as both have one.
    pub(super) fn is_in_epoch_of(&self, other: Option<Position>) -> bool {
        self.position.zip(other).is_none_or(|(held, other)| held.epoch == other.epoch)
    }

    /// Whether the subscription reads a page of history, which stays in memory until then.
    pub(super) fn reads_page(&self) -> bool {
        matches!(self.cursor, Cursor::Page(_))
    }

    /// Continues after a page, in the log or with the next page.
    pub(super) fn leave_page(&mut self) {
        if let Cursor::Page(at) = &self.cursor {
            let through = at.page.through.position;
            self.position = Some(through);
            self.cursor = self.topic().after_history(through).into();
        }
    }

    /// The number of unread entries, as far as known.
    pub(super) fn backlog(&self) -> u64 {
        match &self.cursor {
            Cursor::Log(cursor) => self.topic().end().saturating_sub(*cursor),
            Cursor::Page(at) => (usize::from(at.page.gap.is_some()) + at.page.messages().len()) as u64 - at.next,
            Cursor::History(_) | Cursor::Snapshot(_) => 0,
        }
    }
}

impl Cursor {
    fn page(page: Arc<HeldPage>) -> Self {
        Self::Page(Box::new(PageCursor { page, next: 0 }))
    }

    /// The number of the next entry, in the log or page; `None` while waiting for a read of the
    /// history.
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

/// Drops messages newer than the subscription; the client gets them from the log, together with
/// those without a key.
fn snapshot_at(page: Arc<HeldPage>, at: Position) -> Arc<HeldPage> {
    let through = page.through.position;
    if page.gap.is_some() || through.epoch != at.epoch || through.offset <= at.offset {
        return page;
    }
    let was_there = |message: &Arc<Message>| message.position.is_some_and(|held| held.offset <= at.offset);
    let count = page.messages().partition_point(was_there);
    Arc::new(page.only_first(count, Tail { position: at, stamp: 0 }))
}
