//! Who is on the channels of the embedded broker. There is one instance, so its record is all there
//! is, and it holds as long as the process.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use crate::channel::ChannelName;
use crate::presence::{Everybody, Listed, News, Record, Update, Updated};

/// The records of all channels.
#[derive(Default)]
pub(super) struct Records {
    channels: HashMap<ChannelName, (u64, Record)>,
    /// Counts the changes.
    stamp: u64,
}

impl Records {
    /// Stores a record. Returns also who has come and gone.
    pub(super) fn write(&mut self, update: Update) -> (Updated, Option<(ChannelName, News)>) {
        let Update { channel, version, record, wants_all, .. } = update;
        let mut updated = Updated::default();
        let mut news = None;
        match record {
            None => updated.is_outdated = self.channels.get(&channel).is_none_or(|(stored, _)| *stored != version),
            Some(record) => {
                self.stamp += 1;
                news = Some((channel.clone(), self.replace(&channel, version, record)))
                    .filter(|(_, news)| !news.joined.is_empty() || !news.left.is_empty());
            }
        }
        updated.all = wants_all.then(|| self.read(&channel));
        (updated, news)
    }

    /// Everybody on a channel.
    pub(super) fn read(&self, channel: &ChannelName) -> Everybody {
        Everybody::of(self.stamp, self.channels.get(channel).map(|(_, record)| record))
    }

    fn replace(&mut self, channel: &ChannelName, version: u64, mut record: Record) -> News {
        let before = match self.channels.entry(channel.clone()) {
            Entry::Occupied(mut entry) => std::mem::take(&mut entry.get_mut().1),
            Entry::Vacant(_) => Record::default(),
        };
        let holds = |record: &Record, id: &str| record.listed.iter().any(|listed| *listed.client.id == *id);
        let is_known = |listed: &Listed| holds(&before, &listed.client.id);
        // Who has come and gone between two records was never there.
        let sent = record.listed.len();
        record.listed.retain(|listed| listed.leaves_in.is_none() || is_known(listed));
        record.clients -= sent - record.listed.len();
        let joined = record.listed.iter().filter(|listed| !is_known(listed)).map(|listed| listed.client.clone());
        let left = before.listed.iter().filter(|listed| !holds(&record, &listed.client.id));
        let left = left.map(|listed| listed.client.id.clone()).collect();
        let news = News { stamp: self.stamp, recheck: None, joined: joined.collect(), left };
        if record.clients > 0 {
            self.channels.insert(channel.clone(), (version, record));
        } else {
            self.channels.remove(channel);
        }
        news
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::presence::Client;

    fn update(ids: &[&str], leaving: &[&str]) -> Update {
        let listed = |id: &&str, leaves_in| Listed {
            client: Arc::new(Client { id: (*id).into(), user: "".into(), info: None }),
            leaves_in,
        };
        let leaves_in = Some(Duration::from_secs(1));
        let there = ids.iter().map(|id| listed(id, None));
        let listed: Vec<_> = there.chain(leaving.iter().map(|id| listed(id, leaves_in))).collect();
        let clients = listed.len();
        let record = Some(Record { listed, clients, users: 1 });
        Update { channel: "a".parse().expect("valid"), version: 1, record, wants_all: true, recheck: None }
    }

    fn write(records: &mut Records, update: Update) -> (Vec<String>, usize) {
        let (updated, news) = records.write(update);
        let news = news.map(|(_, news)| news).unwrap_or_default();
        let joined = news.joined.iter().map(|client| format!("+{}", client.id));
        let told = joined.chain(news.left.iter().map(|id| format!("-{id}"))).collect();
        (told, updated.all.expect("asked for").clients)
    }

    #[test]
    fn changes_are_told_and_whoever_came_and_went_at_once_was_never_there() {
        let mut records = Records::default();
        assert_eq!(write(&mut records, update(&["a", "b"], &["x"])), (vec!["+a".into(), "+b".into()], 2));
        assert_eq!(write(&mut records, update(&["b", "c"], &["a"])), (vec!["+c".into()], 3));
        assert_eq!(write(&mut records, update(&["b"], &[])), (vec!["-c".into(), "-a".into()], 1));
        assert_eq!(write(&mut records, update(&[], &[])), (vec!["-b".into()], 0));
        assert!(records.channels.is_empty());
    }

    #[test]
    fn a_record_is_renewed_only_if_it_is_that_version() {
        let mut records = Records::default();
        let renew = || Update { record: None, ..update(&[], &[]) };
        assert!(records.write(renew()).0.is_outdated);
        write(&mut records, update(&["a"], &[]));
        assert!(!records.write(renew()).0.is_outdated);
        assert!(records.write(Update { version: 2, ..renew() }).0.is_outdated);
    }
}
