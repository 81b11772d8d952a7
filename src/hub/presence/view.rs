//! Who is on a channel, on all instances, as the subscribers that want to be told of changes have
//! learned it. A pure state machine: news of the broker and lists of everybody go in, the changes to
//! tell come out, each once, whatever is heard twice, late or not at all.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::presence::{Change, Client, Everybody, News};

/// A stamp that is older than the view by more microseconds than this shows that the clock of the
/// broker has been put back.
const PUT_BACK: u64 = 5_000_000;

/// The clients that subscribers know of.
#[derive(Debug)]
pub(super) struct View {
    /// The newest stamp; `None` before the first list.
    stamp: Option<u64>,
    clients: HashMap<Box<str>, Arc<Client>>,
    /// Before the first list: who has come. Then: who was in it without being told, as long as news
    /// from before it may still arrive.
    untold: HashSet<Box<str>>,
    /// The number of the first client that came since the view began, on this instance.
    pub(super) began: u64,
}

impl View {
    /// Creates a view that knows nobody, and waits for the first list.
    pub(super) fn new(began: u64) -> Self {
        Self { stamp: None, clients: HashMap::new(), untold: HashSet::new(), began }
    }

    /// Takes news. If the last list includes them, they change nothing.
    pub(super) fn hear(&mut self, news: &News) -> Vec<Change> {
        let Some(stamp) = self.stamp else {
            self.untold.extend(news.joined.iter().map(|client| client.id.clone()));
            return Vec::new();
        };
        if news.stamp <= stamp && news.stamp + PUT_BACK > stamp {
            let untold = news.joined.iter().filter(|client| self.untold.remove(&client.id));
            return untold.cloned().map(Change::Joined).collect();
        }
        self.untold.clear();
        self.stamp = Some(news.stamp);
        let mut changes = Vec::new();
        for client in &news.joined {
            if self.clients.insert(client.id.clone(), client.clone()).is_none() {
                changes.push(Change::Joined(client.clone()));
            }
        }
        changes.extend(news.left.iter().filter_map(|id| self.clients.remove(id)).map(Change::Left));
        changes
    }

    /// Takes a list; `None` if the view knows of something newer. With the first list, `is_new` says
    /// who has come since the view began; subscribers do not know the others yet.
    pub(super) fn see(&mut self, all: &Everybody, is_new: impl Fn(&str) -> bool) -> Option<Vec<Change>> {
        match self.stamp {
            Some(stamp) if all.stamp < stamp && all.stamp + PUT_BACK > stamp => return None,
            Some(_) => {}
            None => {
                let come = std::mem::take(&mut self.untold);
                let known = all.listed.iter().filter(|client| !is_new(&client.id) && !come.contains(&client.id));
                self.clients = known.map(|client| (client.id.clone(), client.clone())).collect();
                self.untold = self.clients.keys().cloned().collect();
            }
        }
        self.stamp = Some(all.stamp);
        let mut before = std::mem::take(&mut self.clients);
        let mut changes = Vec::new();
        for client in &all.listed {
            if before.remove(&client.id).is_none() {
                changes.push(Change::Joined(client.clone()));
            }
            self.clients.insert(client.id.clone(), client.clone());
        }
        changes.extend(before.into_values().map(Change::Left));
        Some(changes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(id: &str) -> Arc<Client> {
        Arc::new(Client { id: id.into(), user: "".into(), info: None })
    }

    fn news(stamp: u64, joined: &[&str], left: &[&str]) -> News {
        let joined = joined.iter().map(|id| client(id)).collect();
        News { stamp, recheck: None, joined, left: left.iter().map(|id| (*id).into()).collect() }
    }

    fn all(stamp: u64, ids: &[&str]) -> Everybody {
        Everybody { stamp, listed: ids.iter().map(|id| client(id)).collect(), ..Everybody::default() }
    }

    fn told(changes: &[Change]) -> Vec<String> {
        let mut told: Vec<_> = changes
            .iter()
            .map(|change| match change {
                Change::Joined(client) => format!("+{}", client.id),
                Change::Left(client) => format!("-{}", client.id),
            })
            .collect();
        told.sort();
        told
    }

    #[test]
    fn the_first_list_tells_only_of_who_has_come_since() {
        let mut view = View::new(1);
        assert_eq!(told(&view.hear(&news(8, &["b"], &[]))), [""; 0], "the list tells more");
        let changes = view.see(&all(10, &["a", "b", "c", "d"]), |id| id == "c").expect("new");
        assert_eq!(told(&changes), ["+b", "+c"]);
        assert_eq!(told(&view.hear(&news(9, &["b", "c", "d"], &[]))), ["+d"], "on its way meanwhile");
        assert_eq!(told(&view.hear(&news(9, &["d"], &[]))), [""; 0]);
        assert_eq!(told(&view.hear(&news(11, &["a", "e"], &[]))), ["+e"]);
    }

    #[test]
    fn what_is_heard_twice_or_late_is_told_once() {
        let mut view = View::new(1);
        assert_eq!(told(&view.see(&all(10, &["a"]), |_| false).expect("new")), [""; 0]);
        assert_eq!(told(&view.hear(&news(9, &["z"], &["a"]))), [""; 0], "the list is newer");
        assert_eq!(told(&view.hear(&news(11, &["a", "b"], &["x"]))), ["+b"]);
        assert!(view.see(&all(10, &["a"]), |_| false).is_none(), "the news are newer");
        assert_eq!(told(&view.hear(&news(12, &[], &["a"]))), ["-a"]);
        assert_eq!(told(&view.see(&all(12, &["b"]), |_| false).expect("as new")), [""; 0]);
    }

    #[test]
    fn what_was_not_heard_of_is_in_the_next_list() {
        let mut view = View::new(1);
        assert!(view.see(&all(10, &["a", "b"]), |_| false).is_some());
        assert_eq!(told(&view.see(&all(20, &["b", "c"]), |_| false).expect("new")), ["+c", "-a"]);
    }

    #[test]
    fn a_clock_that_was_put_back_is_followed() {
        let mut view = View::new(1);
        assert!(view.see(&all(9_000_000, &[]), |_| false).is_some());
        assert_eq!(told(&view.hear(&news(1_000_000, &["a"], &[]))), ["+a"]);
        assert_eq!(told(&view.see(&all(1_000_001, &[]), |_| false).expect("newer")), ["-a"]);
    }
}
