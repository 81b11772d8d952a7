//! The clients of a channel on this instance: those that are there, and those whose connection has
//! ended a moment ago. A pure state machine, which `presence.rs` drives.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use tokio::time::Instant;

use super::view::View;
use crate::presence::{Client, Listed, MOST_LISTED, MOST_LISTED_BYTES, Record};

/// The clients of a channel.
#[derive(Debug, Default)]
pub(super) struct Roster {
    /// In the order in which they came, by a number that grows.
    entries: BTreeMap<u64, Entry>,
    /// How many entries each user has.
    users: HashMap<Box<str>, usize>,
    /// The numbers of entries whose connection has ended: by the user or, if it has none, by the
    /// connection.
    leaving: HashMap<Box<str>, Vec<u64>>,
    /// Changes with what there is to write.
    pub(super) version: u64,
    /// The version that the broker has, as far as known.
    pub(super) stored: Option<u64>,
    /// When to write next.
    pub(super) due: Option<Instant>,
    /// When it was written last.
    pub(super) wrote: Option<Instant>,
    /// When to ask for the next list of everybody; `None` for as soon as possible.
    pub(super) looks: Option<Instant>,
    /// Until when a list of everybody may lack some, because the broker has been away.
    pub(super) settles: Option<Instant>,
    /// How many subscribers want to be told of changes.
    pub(super) listeners: usize,
    /// What they have been told, as long as there are any.
    pub(super) view: Option<View>,
}

#[derive(Debug)]
struct Entry {
    /// As the others see it.
    client: Arc<Client>,
    /// The id of its connection.
    connection: Box<str>,
    /// When it counts as gone, if its connection has ended.
    leaves: Option<Instant>,
    /// Whether it took the place of a client of another instance.
    has_taken_over: bool,
}

impl Roster {
    /// When to ask for a list of everybody, if anybody wants to be told of changes.
    pub(super) fn next_look(&self, now: Instant) -> Option<Instant> {
        self.view.as_ref()?;
        Some(self.settles.or(self.looks).unwrap_or(now))
    }

    /// Whether there is nobody.
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Adds a client under a new number, unless it takes the place of one that has just gone: of the
    /// same user, or the same connection. Returns the number that it has.
    pub(super) fn enter(&mut self, client: Arc<Client>, number: u64) -> u64 {
        self.version += 1;
        if let Some(number) = self.take_over(&client) {
            return number;
        }
        *self.users.entry(client.user.clone()).or_default() += 1;
        let connection = client.id.clone();
        self.entries.insert(number, Entry { client, connection, leaves: None, has_taken_over: false });
        number
    }

    fn take_over(&mut self, client: &Client) -> Option<u64> {
        let key = key(&client.user, &client.id);
        let numbers = self.leaving.get_mut(key)?;
        let number = numbers.pop()?;
        if numbers.is_empty() {
            self.leaving.remove(key);
        }
        let entry = self.entries.get_mut(&number)?;
        entry.leaves = None;
        entry.connection = client.id.clone();
        Some(number)
    }

    /// The connection of a client has ended; it counts as gone at that time.
    pub(super) fn leave(&mut self, number: u64, at: Instant) {
        let Some(entry) = self.entries.get_mut(&number) else { return };
        self.version += 1;
        entry.leaves = Some(at);
        let key = key(&entry.client.user, &entry.connection).into();
        self.leaving.entry(key).or_default().push(number);
    }

    /// The time at which a client counts as gone has come. Returns `false` if it is back.
    pub(super) fn end_grace(&mut self, number: u64, at: Instant) -> bool {
        let Some(entry) = self.entries.get(&number).filter(|entry| entry.leaves == Some(at)) else { return false };
        let key = key(&entry.client.user, &entry.connection);
        if let Some(numbers) = self.leaving.get_mut(key) {
            numbers.retain(|other| *other != number);
            if numbers.is_empty() {
                let key: Box<str> = key.into();
                self.leaving.remove(&key);
            }
        }
        self.remove(number);
        true
    }

    /// Removes a client.
    pub(super) fn remove(&mut self, number: u64) {
        let Some(entry) = self.entries.remove(&number) else { return };
        self.version += 1;
        if let Some(count) = self.users.get_mut(&entry.client.user) {
            *count -= 1;
            if *count == 0 {
                self.users.remove(&entry.client.user);
            }
        }
    }

    /// A client has taken the place of one of another instance, and its id; or another instance has that of
    /// this client, which gets a new id.
    pub(super) fn rename(&mut self, id: &str, former: &str) {
        let listed = self.entries.values_mut().take(MOST_LISTED);
        if let Some(entry) = listed.into_iter().find(|entry| *entry.client.id == *id) {
            entry.client = Arc::new(Client { id: former.into(), ..(*entry.client).clone() });
            entry.has_taken_over = true;
        }
    }

    /// Whether a client has come under this number or a later one.
    pub(super) fn has_come_since(&self, number: u64, id: &str) -> bool {
        let mut since = self.entries.range(number..).map(|(_, entry)| entry);
        since.any(|entry| *entry.client.id == *id && !entry.has_taken_over)
    }

    /// What the broker is told.
    pub(super) fn record(&self, now: Instant) -> Record {
        let mut bytes = 0;
        let first = self.entries.values().take(MOST_LISTED).take_while(|entry| {
            bytes += entry.client.size();
            bytes <= MOST_LISTED_BYTES
        });
        let listed = first.map(|entry| Listed {
            client: entry.client.clone(),
            leaves_in: entry.leaves.map(|at| at.saturating_duration_since(now)),
        });
        Record { listed: listed.collect(), clients: self.entries.len(), users: self.users.len() }
    }
}

/// What must be the same for a client to take a place over.
fn key<'a>(user: &'a str, connection: &'a str) -> &'a str {
    if user.is_empty() { connection } else { user }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn client(id: &str, user: &str) -> Arc<Client> {
        Arc::new(Client { id: id.into(), user: user.into(), info: None })
    }

    fn seen(roster: &Roster, now: Instant) -> Vec<(String, bool)> {
        let record = roster.record(now);
        record.listed.iter().map(|listed| (listed.client.id.to_string(), listed.leaves_in.is_some())).collect()
    }

    #[test]
    fn who_comes_back_in_time_keeps_its_place_and_its_id() {
        let (mut roster, now) = (Roster::default(), Instant::now());
        let at = now + Duration::from_secs(5);
        assert_eq!([roster.enter(client("a", "u"), 1), roster.enter(client("b", ""), 2)], [1, 2]);
        roster.leave(1, at);
        roster.leave(2, at);
        assert_eq!(seen(&roster, now), [("a".into(), true), ("b".into(), true)]);
        assert_eq!(roster.enter(client("c", "u"), 3), 1, "the same user");
        assert_eq!(roster.enter(client("d", ""), 4), 4, "nobody knows who");
        assert_eq!(roster.enter(client("b", ""), 5), 2, "the same connection");
        assert!(!roster.end_grace(1, at) && !roster.end_grace(2, at));
        assert_eq!(seen(&roster, now), [("a".into(), false), ("b".into(), false), ("d".into(), false)]);
        assert_eq!((roster.record(now).clients, roster.record(now).users), (3, 2));
        // Each place is taken once.
        roster.leave(1, at);
        assert_eq!((roster.enter(client("e", "u"), 6), roster.enter(client("f", "u"), 7)), (1, 7));
    }

    #[test]
    fn who_stays_away_is_gone_after_the_grace() {
        let (mut roster, now) = (Roster::default(), Instant::now());
        roster.enter(client("a", "u"), 1);
        roster.leave(1, now);
        let version = roster.version;
        assert!(roster.end_grace(1, now) && !roster.end_grace(1, now));
        assert!(roster.is_empty() && roster.version > version && roster.leaving.is_empty());
        assert_eq!(roster.enter(client("b", "u"), 2), 2);
        assert_eq!(roster.record(now).users, 1);
    }

    #[test]
    fn the_first_clients_are_listed_and_all_are_counted() {
        let (mut roster, now) = (Roster::default(), Instant::now());
        let more = MOST_LISTED as u64 + 9;
        (1..=more).for_each(|number| _ = roster.enter(client(&number.to_string(), &(number % 7).to_string()), number));
        let record = roster.record(now);
        assert_eq!((record.listed.len(), record.clients, record.users), (MOST_LISTED, more as usize, 7));
        roster.remove(1);
        assert_eq!(*roster.record(now).listed[MOST_LISTED - 1].client.id, *(MOST_LISTED + 1).to_string());
        let large =
            |id: &str| Client { info: Some("x".repeat(MOST_LISTED_BYTES / 2).into()), ..(*client(id, "")).clone() };
        let mut roster = Roster::default();
        (1..=3).for_each(|number| _ = roster.enter(Arc::new(large("a")), number));
        assert_eq!((roster.record(now).listed.len(), roster.record(now).clients), (1, 3));
    }

    #[test]
    fn a_place_that_was_taken_over_is_not_new() {
        let mut roster = Roster::default();
        roster.enter(client("a", "u"), 1);
        roster.enter(client("b", "v"), 2);
        assert!(roster.has_come_since(2, "b") && !roster.has_come_since(2, "a"));
        roster.rename("b", "former");
        assert!(!roster.has_come_since(2, "former") && !roster.has_come_since(2, "b"));
    }
}
