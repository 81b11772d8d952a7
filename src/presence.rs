//! Who is on a channel: the data that the hub, the broker and the dialects share. `hub/presence.rs`
//! decides who is there, the broker carries it between instances.

use std::collections::HashSet;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use crate::channel::ChannelName;

/// How many clients of a channel an instance lists, and how many bytes they may have together. The
/// others are counted only.
pub const MOST_LISTED: usize = 256;
/// See [`MOST_LISTED`].
pub const MOST_LISTED_BYTES: usize = 64 << 10;
/// The size up to which the `info` of a token is told, in bytes.
pub const MOST_INFO_BYTES: usize = 1024;
/// The length to which the user of a token is cut, in bytes.
const MOST_USER_BYTES: usize = 255;

/// A name for a connection that no other has. It fills a gap that its client's state has anyway, so
/// that it costs no memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ClientId([u8; 6]);

impl ClientId {
    /// The next name.
    pub fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let [_, _, id @ ..] = NEXT.fetch_add(1, Ordering::Relaxed).to_be_bytes();
        Self(id)
    }
}

impl fmt::Display for ClientId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// Distinguishes the processes.
        static PROCESS: LazyLock<u128> = LazyLock::new(|| rand::random::<u128>() >> 48);
        let [a, b, c, d, e, f] = self.0;
        write!(out, "{:020x}{:012x}", *PROCESS, u64::from_be_bytes([0, 0, a, b, c, d, e, f]))
    }
}

/// A client on a channel.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Client {
    /// Under which the others see it.
    pub id: Box<str>,
    /// Of its token; empty if it has none.
    pub user: Box<str>,
    /// What its token says about it: JSON on one line.
    pub info: Option<Box<str>>,
}

impl Client {
    /// Describes a client to others.
    pub fn new(id: ClientId, user: &str, info: Option<&str>) -> Self {
        let user = &user[..user.floor_char_boundary(MOST_USER_BYTES)];
        Self { id: id.to_string().into(), user: user.into(), info: info.map(Box::from) }
    }

    /// The size of its data, in bytes.
    pub fn size(&self) -> usize {
        self.id.len() + self.user.len() + self.info.as_ref().map_or(0, |info| info.len())
    }
}

/// A client that an instance lists.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Listed {
    /// The client.
    pub client: Arc<Client>,
    /// If its connection has ended: when it counts as gone.
    pub leaves_in: Option<Duration>,
}

/// The clients of a channel on one instance.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Record {
    /// The first of them, in the order in which they came.
    pub listed: Vec<Listed>,
    /// The number of all.
    pub clients: usize,
    /// The number of different users among all.
    pub users: usize,
}

/// What an instance tells the broker about a channel.
#[derive(Debug)]
pub struct Update {
    /// The channel.
    pub channel: ChannelName,
    /// Changes with the record.
    pub version: u64,
    /// `None` to renew the record of this version.
    pub record: Option<Record>,
    /// Whether to answer with the clients of all instances.
    pub wants_all: bool,
    /// Tells the other instances to look again after this time, because this instance will not be
    /// there to tell them.
    pub recheck: Option<Duration>,
}

/// What became of an [`Update`].
#[derive(Debug, Default)]
pub struct Updated {
    /// Whether the broker does not have the record of this version.
    pub is_outdated: bool,
    /// Clients that took over the place of another connection of the same user, or whose own had been
    /// taken over: the id of the client, and the id that it has from now on.
    pub taken_over: Vec<(Box<str>, Box<str>)>,
    /// The clients of all instances, if they were asked for.
    pub all: Option<Everybody>,
}

/// The clients of a channel on all instances.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Everybody {
    /// Increases with each change; see [`News::stamp`].
    pub stamp: u64,
    /// Those that are listed.
    pub listed: Vec<Arc<Client>>,
    /// The number of all.
    pub clients: usize,
    /// The number of different users. If [`Self::is_complete`] is false, some may be counted twice.
    pub users: usize,
    /// Whether all are listed.
    pub is_complete: bool,
    /// When other instances' clients are gone if nothing else is heard of them.
    pub holds_for: Option<Duration>,
}

/// A change on one of the instances.
#[derive(PartialEq, Eq, Default, Debug)]
pub struct News {
    /// Increases with each change, on the clock of the broker, in microseconds.
    pub stamp: u64,
    /// See [`Update::recheck`].
    pub recheck: Option<Duration>,
    /// Who has come.
    pub joined: Vec<Arc<Client>>,
    /// The ids of those who have gone.
    pub left: Vec<Box<str>>,
}

/// A change that subscribers are told of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// A client has come.
    Joined(Arc<Client>),
    /// A client has gone.
    Left(Arc<Client>),
}

impl Everybody {
    /// The clients of these records.
    pub fn of<'a>(stamp: u64, records: impl IntoIterator<Item = &'a Record>) -> Self {
        let mut all = Self { stamp, is_complete: true, ..Self::default() };
        let mut unlisted = 0;
        for record in records {
            unlisted += record.unlisted_users();
            all.add(record);
        }
        let users: HashSet<&str> = all.listed.iter().map(|client| &*client.user).collect();
        all.users = users.len() + unlisted;
        all
    }

    /// Adds the record of an instance. A client of two records counts for the first.
    fn add(&mut self, record: &Record) {
        let known: HashSet<&str> = self.listed.iter().map(|client| &*client.id).collect();
        let is_new = |listed: &&Listed| !known.contains(&*listed.client.id);
        let new: Vec<_> = record.listed.iter().filter(is_new).map(|listed| listed.client.clone()).collect();
        let twice = record.listed.len() - new.len();
        self.clients += record.clients.saturating_sub(twice);
        self.is_complete &= record.clients <= record.listed.len();
        self.listed.extend(new);
    }
}

impl Record {
    /// How many users have no listed client.
    fn unlisted_users(&self) -> usize {
        if self.clients <= self.listed.len() {
            return 0;
        }
        let listed: HashSet<&str> = self.listed.iter().map(|listed| &*listed.client.user).collect();
        self.users.saturating_sub(listed.len())
    }
}

impl News {
    /// The memory that it holds, in bytes.
    pub fn weight(&self) -> usize {
        let joined = self.joined.iter().map(|client| size_of::<Client>() + client.size());
        joined.chain(self.left.iter().map(|id| size_of::<Box<str>>() + id.len())).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(listed: &[(&str, &str)], clients: usize, users: usize) -> Record {
        let listed = listed.iter().map(|(id, user)| Listed {
            client: Arc::new(Client { id: (*id).into(), user: (*user).into(), info: None }),
            leaves_in: None,
        });
        Record { listed: listed.collect(), clients, users }
    }

    #[test]
    fn a_user_of_two_instances_counts_once_and_an_unlisted_one_where_it_is() {
        let all = Everybody::of(1, [&record(&[("a", "x"), ("b", "y")], 2, 2), &record(&[("c", "x")], 1, 1)]);
        assert_eq!((all.clients, all.users, all.is_complete, all.listed.len()), (3, 2, true, 3));
        let all = Everybody::of(1, [&record(&[("a", "x")], 5, 3), &record(&[("a", "x"), ("c", "x")], 2, 1)]);
        assert_eq!((all.clients, all.users, all.is_complete, all.listed.len()), (6, 3, false, 2));
    }

    #[test]
    fn a_name_is_like_no_other() {
        let names: HashSet<_> = (0..100).map(|_| ClientId::next().to_string()).collect();
        assert!(names.len() == 100 && names.iter().all(|name| name.len() == 32));
    }

    #[test]
    fn a_long_user_is_cut_between_two_characters() {
        let client = Client::new(ClientId::next(), &"ä".repeat(200), None);
        assert_eq!(client.user.len(), 254);
    }
}
