//! Who is on a channel, in Redis: builds the calls of `functions/presence.lua`, and parses its
//! records and the news that it publishes on the companion for position markers:
//!
//! ```text
//! livebridge:run:sheet:q3  presence 1732300000000000 0   stamp, and when to look again
//!                          +alice 3f… {"name":"Alice"}   who has come: user, id, info
//!                          -9c…                          who has gone
//! ```

use std::sync::Arc;
use std::time::Duration;

use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use redis::{Cmd, FromRedisValue};

use super::error::{ClientError, Failure};
use super::library::{PRESENCE_READ, PRESENCE_WRITE, is_missing};
use super::node::Node;
use super::reads::{ReadLane, Reads};
use crate::broker::PRESENCE_HOLDS;
use crate::channel::ChannelName;
use crate::presence::{Client, Everybody, Listed, News, Record, Update, Updated};

/// What the payload on the companion begins with. A position marker begins with a number.
const NEWS: &[u8] = b"presence ";
/// The user of a client that has none. Percent-encoding leaves no hyphen.
const NOBODY: &str = "-";

/// A record of an instance, as Redis has it.
struct Stored {
    record: Record,
    /// How long it holds, or a client that has left still counts.
    holds_for: Duration,
}

/// The stamp, whether the record is outdated, who has taken over whose place, and the records.
type Written = (String, u8, Vec<String>, Vec<String>);

/// Writes the record of an instance.
pub(super) async fn write(node: &Node, reads: &Reads, instance: &str, update: &Update) -> Result<Updated, Failure> {
    let Update { channel, version, record, wants_all, recheck } = update;
    let mut command = node.presence_function(PRESENCE_WRITE, channel);
    let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    command.arg(instance).arg(milliseconds(PRESENCE_HOLDS)).arg(version).arg(u8::from(*wants_all));
    command.arg(recheck.map_or(0, milliseconds));
    if let Some(record) = record {
        command.arg(record.clients).arg(record.users);
        for Listed { client, leaves_in } in &record.listed {
            // 0 stands for a client that stays.
            let leaves_in = leaves_in.map_or(0, |time| milliseconds(time).max(1));
            command.arg(format!("{leaves_in} {}", described(client)));
        }
    }
    let (stamp, outdated, taken, records): Written = ask(node, reads.hub(), &command).await?;
    let stamp = stamp.parse().map_err(|_| unexpected())?;
    let taken_over = taken.chunks_exact(2).map(|pair| (pair[0].as_str().into(), pair[1].as_str().into())).collect();
    let all = wants_all.then(|| everybody(stamp, &records)).transpose()?;
    Ok(Updated { is_outdated: outdated != 0, taken_over, all })
}

/// Reads who is on a channel.
pub(super) async fn read(node: &Node, reads: &Reads, channel: &ChannelName) -> Result<Everybody, Failure> {
    let lane = reads.clients();
    let _turn = lane.turn(channel).await.inspect_err(|_| node.metrics.count_refused("reads"))?;
    let command = node.presence_function(PRESENCE_READ, channel);
    let (stamp, records): (String, Vec<String>) = ask(node, lane, &command).await?;
    everybody(stamp.parse().map_err(|_| unexpected())?, &records)
}

/// Sends a command. Sends it once more if Redis had no functions, as they are then loaded.
async fn ask<T: FromRedisValue>(node: &Node, lane: &ReadLane, command: &Cmd) -> Result<T, Failure> {
    let mut answer = lane.call(node, command).await;
    if answer.as_ref().is_err_and(|error| error.refusal().is_some_and(is_missing)) {
        answer = lane.call(node, command).await;
    }
    answer.map_err(|error| Failure::from(&error))
}

fn unexpected() -> Failure {
    (&ClientError::Unexpected("livebridge_presence")).into()
}

fn everybody(stamp: u64, texts: &[String]) -> Result<Everybody, Failure> {
    let parse = |text: &String| parse_record(text, stamp / 1000);
    let mut stored: Vec<_> = texts.iter().map(|text| if text.is_empty() { None } else { parse(text) }).collect();
    // The last one is that of this instance, which sees to its clients itself.
    let others = stored.split_last().map_or(&[][..], |(_, others)| others).iter().flatten();
    let holds_for = others.map(|stored| stored.holds_for).min();
    let records: Vec<_> = stored.drain(..).flatten().map(|stored| stored.record).collect();
    Ok(Everybody { holds_for, ..Everybody::of(stamp, &records) })
}

/// Parses a record; `None` if it does not hold any more, or is none. `now` is in milliseconds.
fn parse_record(text: &str, now: u64) -> Option<Stored> {
    let mut lines = text.lines();
    let mut head = lines.next()?.split(' ').map(|word| word.parse::<u64>().ok());
    let (until, _version, clients, users) = (head.next()??, head.next()??, head.next()??, head.next()??);
    let mut record = Record { listed: Vec::new(), clients: clients as usize, users: users as usize };
    let mut ends = until;
    for line in lines {
        let (leaves, described) = line.split_once(' ')?;
        let (leaves, client) = (leaves.parse::<u64>().ok()?, parse_client(described)?);
        if leaves != 0 && leaves <= now {
            record.clients = record.clients.saturating_sub(1);
            continue;
        }
        let leaves_in = (leaves != 0).then(|| Duration::from_millis(leaves - now));
        ends = if leaves == 0 { ends } else { ends.min(leaves) };
        record.listed.push(Listed { client: Arc::new(client), leaves_in });
    }
    let holds_for = Duration::from_millis(ends.checked_sub(now)?);
    Some(Stored { record, holds_for })
}

/// `USER ID INFO`.
fn described(client: &Client) -> String {
    let Client { id, user, info } = client;
    let info = info.as_deref().unwrap_or_default();
    if user.is_empty() {
        return format!("{NOBODY} {id} {info}");
    }
    format!("{} {id} {info}", utf8_percent_encode(user, NON_ALPHANUMERIC))
}

fn parse_client(text: &str) -> Option<Client> {
    let mut parts = text.splitn(3, ' ');
    let (user, id, info) = (parts.next()?, parts.next()?, parts.next()?);
    let user = if user == NOBODY { "".into() } else { percent_decode_str(user).decode_utf8().ok()? };
    let is_json = |info: &&str| serde_json::from_str::<serde::de::IgnoredAny>(info).is_ok();
    Some(Client { id: id.into(), user: (*user).into(), info: Some(info).filter(is_json).map(Box::from) })
}

/// Parses a payload of the companion, if it is news; `Some(None)` if it is malformed.
pub(super) fn parse_news(payload: &[u8]) -> Option<Option<News>> {
    let text = payload.strip_prefix(NEWS)?;
    Some(std::str::from_utf8(text).ok().and_then(parse_lines))
}

fn parse_lines(text: &str) -> Option<News> {
    let mut lines = text.lines();
    let (stamp, recheck) = lines.next()?.split_once(' ')?;
    let recheck = Some(recheck.parse().ok()?).filter(|time| *time > 0).map(Duration::from_millis);
    let mut news = News { stamp: stamp.parse().ok()?, recheck, ..News::default() };
    for line in lines {
        if let Some(client) = line.strip_prefix('+') {
            news.joined.push(Arc::new(parse_client(client)?));
        } else {
            news.left.push(line.strip_prefix('-')?.into());
        }
    }
    Some(news)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(id: &str, user: &str, info: Option<&str>) -> Client {
        Client { id: id.into(), user: user.into(), info: info.map(Box::from) }
    }

    #[test]
    fn a_client_comes_back_as_it_was() {
        for client in [
            client("a", "", None),
            client("b", "-", Some("1")),
            client("c", "an na\n+%é", Some(r#"{"name": "A\n B", "n": 1e400}"#)),
        ] {
            let text = described(&client);
            assert!(!text.contains('\n'), "{text}");
            assert_eq!(parse_client(&text), Some(client));
        }
    }

    #[test]
    fn news_are_told_from_a_position_marker() {
        assert_eq!(parse_news(b"1732 17 99 2"), None);
        let news = parse_news(b"presence 17 5200\n+u a {}\n-b").expect("news").expect("well-formed");
        assert_eq!((news.stamp, news.recheck), (17, Some(Duration::from_millis(5200))));
        assert_eq!((news.joined, news.left), (vec![Arc::new(client("a", "u", Some("{}")))], vec!["b".into()]));
        for malformed in [&b"presence "[..], b"presence x 0", b"presence 1 0\nx", b"presence 1 0\n+a", b"presence \xff"]
        {
            assert_eq!(parse_news(malformed), Some(None), "{malformed:?}");
        }
    }

    #[test]
    fn a_record_ends_with_its_time_and_a_client_with_its_own() {
        let stored = parse_record("1000 1 4 3\n0 u a \n500 u b \n900 - c {}\n", 500).expect("a record");
        let ids: Vec<_> = stored.record.listed.iter().map(|listed| &*listed.client.id).collect();
        assert_eq!((ids, stored.record.clients), (vec!["a", "c"], 3));
        assert_eq!(stored.holds_for, Duration::from_millis(400));
        assert!(parse_record("1000 1 4 3\n", 1001).is_none());
        assert!(["", "x", "1 2 3", "9 1 1 1\nx"].iter().all(|text| parse_record(text, 0).is_none()));
    }
}
