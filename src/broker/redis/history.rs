//! Reads the history of a channel in two steps. A Lua function plans the read: it returns which
//! elements to fetch, without reading payloads. A plain command then fetches these elements, which
//! costs Redis a fraction of passing payloads through Lua. The headers show whether the history
//! changed between the two steps.

use std::sync::Arc;

use bytes::Bytes;
use redis::{Cmd, FromRedisValue, Value};

use super::error::{ClientError, Failure};
use super::library::{ADOPT, PLAN, RENEW, is_missing};
use super::node::Node;
use super::reads::{ReadLane, Reads};
use crate::broker::{BrokerError, PAGE_BYTES, PAGE_MESSAGES, Page, ReadFrom, Tail};
use crate::channel::ChannelName;
use crate::message::{Gap, GapReason, Message, Position};
use crate::rules::Rules;

/// How often a read restarts because the history changed between planning and fetching.
const ATTEMPTS: usize = 10;
/// The length of the offset (16 digits), stamp (13) and removal flag (1) before a keyed value.
const VALUE_PREFIX: usize = 30;

/// The reply of the planning function.
enum Plan {
    /// The channel keeps no history.
    Nothing,
    /// An earlier format stored the channel, so it must be converted first.
    Adopt,
    /// The history has diverged from what this instance has delivered.
    Diverged,
    /// Fetch these elements.
    Fetch(Fetch),
}

/// The elements to fetch, and the page without their messages.
struct Fetch {
    page: Page,
    /// On a keyed channel: removals up to this offset have been forgotten.
    forgotten: u64,
    elements: Elements,
}

enum Elements {
    None,
    List { first_index: u64, last_index: u64, first_header: Bytes, last_header: Bytes },
    Keys(Vec<(u64, Bytes)>),
}

/// The histories of all channels in Redis.
pub(super) struct History {
    node: Arc<Node>,
    rules: Arc<Rules>,
    reads: Arc<Reads>,
}

/// A reader that uses the connection of one lane.
struct Reader<'a> {
    node: &'a Node,
    lane: &'a ReadLane,
}

impl History {
    /// Creates the histories; `rules` decides which channels have one.
    pub(super) fn new(node: Arc<Node>, rules: Arc<Rules>, reads: Arc<Reads>) -> Self {
        Self { node, rules, reads }
    }

    /// Reads a page of history; see [`crate::broker::Broker::read`].
    pub(super) async fn read(
        &self,
        channel: &ChannelName,
        from: ReadFrom,
        limit: usize,
    ) -> Result<Option<Page>, Failure> {
        if self.rules.of(channel).history.is_none() {
            return Ok(None);
        }
        let limit = limit.min(PAGE_MESSAGES);
        let lane = self.reads.lane(from);
        let _turn = lane.turn(channel).await.inspect_err(|_| self.node.metrics.count_refused("reads"))?;
        let reader = Reader { node: &self.node, lane };
        for _ in 0..ATTEMPTS {
            let read = reader.try_read(channel, from, limit).await;
            match read {
                Ok(Some(page)) => {
                    reader.note_loss(channel, from, page.as_ref()).await;
                    return Ok(page);
                }
                Ok(None) => {}
                // The next attempt loads the functions.
                Err(error) if error.refusal().is_some_and(is_missing) => {}
                Err(error) if error.is_refused_key() => return Err(BrokerError::ChannelRefused(channel.clone()).into()),
                Err(error) => return Err((&error).into()),
            }
        }
        Err(BrokerError::Unavailable("the history changes faster than it can be read".into()).into())
    }
}

impl Reader<'_> {
    async fn ask<T: FromRedisValue>(&self, command: Cmd) -> Result<T, ClientError> {
        self.lane.call(self.node, &command).await
    }

    /// Reads once; `None` if the history changed during the read.
    async fn try_read(
        &self,
        channel: &ChannelName,
        from: ReadFrom,
        limit: usize,
    ) -> Result<Option<Option<Page>>, ClientError> {
        if self.node.lacks_life(channel.as_str())
            && let Err(error) = self.ask::<Value>(self.node.life(channel.as_str())).await
        {
            tracing::debug!(%error, "cannot write the life of a slot to Redis");
        }
        let plan = match self.plan(channel, from, limit, None).await? {
            Plan::Nothing => return Ok(Some(None)),
            Plan::Adopt => {
                let _: Value = self.ask(self.node.function(ADOPT, channel.as_str())).await?;
                return Ok(None);
            }
            Plan::Diverged => {
                if let ReadFrom::AfterDelivered(Tail { position, stamp }) = from {
                    let mut renew = self.node.function(RENEW, channel.as_str());
                    renew.arg(position.epoch).arg(position.offset).arg(stamp);
                    let _: Value = self.ask(renew).await?;
                }
                return Ok(None);
            }
            Plan::Fetch(Fetch { page, .. }) if page.gap.is_some() && matches!(from, ReadFrom::AfterIfKept(_)) => {
                return Ok(Some(Some(Page { through: page.tail, ..page })));
            }
            Plan::Fetch(fetch) => fetch,
        };
        let page = match plan.elements {
            Elements::Keys(_) => self.fetch_all_keys(channel, from, plan).await?,
            _ => self.fetch_list(channel, plan).await?,
        };
        Ok(page.map(Some))
    }

    async fn plan(
        &self,
        channel: &ChannelName,
        from: ReadFrom,
        limit: usize,
        after: Option<u64>,
    ) -> Result<Plan, ClientError> {
        let mut command = self.node.function(PLAN, channel.as_str());
        let count = if let ReadFrom::Last(count) = from { count.min(limit) } else { limit };
        command.arg(count).arg(PAGE_BYTES);
        match (from, after) {
            (ReadFrom::Keys, _) | (_, Some(_)) => command.arg("keys").arg("").arg(after.unwrap_or(0)),
            (ReadFrom::Tail, _) => command.arg("tail"),
            (ReadFrom::Oldest, _) => command.arg("oldest"),
            (ReadFrom::Last(_), _) => command.arg("last"),
            (ReadFrom::After(position) | ReadFrom::AfterIfKept(position), _) => {
                command.arg("after").arg(position.epoch).arg(position.offset)
            }
            (ReadFrom::AfterDelivered(Tail { position, stamp }), _) => {
                command.arg("delivered").arg(position.epoch).arg(position.offset).arg(stamp)
            }
        };
        if self.node.is_sharded() {
            command.arg(self.node.life_key(channel.as_str()));
        }
        let answer: Vec<Value> = self.ask(command).await?;
        parse_plan(answer).ok_or(ClientError::Unexpected("livebridge_plan"))
    }

    async fn fetch_list(&self, channel: &ChannelName, plan: Fetch) -> Result<Option<Page>, ClientError> {
        let Elements::List { first_index, last_index, first_header, last_header } = plan.elements else {
            return Ok(Some(plan.page));
        };
        let mut command = Cmd::new();
        command.arg("LRANGE").arg(self.node.names().key(channel.as_str(), "history")).arg(first_index).arg(last_index);
        let elements: Vec<Value> = self.ask(command).await?;
        let elements: Vec<Bytes> = elements.into_iter().filter_map(bytes).collect();
        let last = elements.len().checked_sub(2).and_then(|last| elements.get(last));
        if elements.first() != Some(&first_header) || last != Some(&last_header) {
            return Ok(None);
        }
        let unreadable = |offset| {
            self.node.metrics.unreadable.inc();
            tracing::warn!(%channel, offset, "skipped an unreadable stored message; clients get a gap notice");
        };
        Ok(messages_into(plan.page, &elements, unreadable))
    }

    /// Fetches the values of all keys that changed, in as many pages as needed.
    async fn fetch_all_keys(
        &self,
        channel: &ChannelName,
        from: ReadFrom,
        first: Fetch,
    ) -> Result<Option<Page>, ClientError> {
        // A complete snapshot omits removed keys; a client that resumes must receive the removals.
        let with_removed = !matches!(from, ReadFrom::Keys) && first.page.gap.is_none();
        let began = first.page.tail.position;
        // A key that is removed during the read may be part of the snapshot.
        let removals_after = if with_removed { 0 } else { began.offset };
        let (mut messages, mut plan) = (Vec::new(), first);
        loop {
            let Elements::Keys(keys) = &plan.elements else { return Ok(None) };
            if !self.fetch_keys(channel, &plan.page, keys, removals_after, &mut messages).await? {
                return Ok(None);
            }
            if plan.page.through.position == plan.page.tail.position {
                return Ok(Some(Page { messages, ..plan.page }));
            }
            let (gap, through) = (plan.page.gap, plan.page.through.position.offset);
            let next = self.plan(channel, ReadFrom::Keys, PAGE_MESSAGES, Some(through)).await?;
            let Plan::Fetch(next) = next else { return Ok(None) };
            // The removal of a key in this snapshot must not have been forgotten.
            if next.page.tail.position.epoch != began.epoch || next.forgotten > began.offset {
                return Ok(None);
            }
            plan = Fetch { page: Page { gap, ..next.page }, ..next };
        }
    }

    /// Fetches the values of some keys, and the removals after an offset. `false` if one is
    /// missing.
    async fn fetch_keys(
        &self,
        channel: &ChannelName,
        page: &Page,
        keys: &[(u64, Bytes)],
        removals_after: u64,
        messages: &mut Vec<Arc<Message>>,
    ) -> Result<bool, ClientError> {
        if keys.is_empty() {
            return Ok(true);
        }
        let mut command = Cmd::new();
        command.arg("HMGET").arg(self.node.names().key(channel.as_str(), "values"));
        keys.iter().for_each(|(_, key)| {
            command.arg(&key[..]);
        });
        let values: Vec<Value> = self.ask(command).await?;
        for ((offset, key), value) in keys.iter().zip(values) {
            let Some(value) = bytes(value) else { return Ok(false) };
            // A value that has changed in the meantime follows at its new offset.
            if let Some(message) = keyed_message(page.tail.position.epoch, key, &value)
                && message.position == Some(Position::new(page.tail.position.epoch, *offset))
                && (!message.removed || *offset > removals_after)
            {
                messages.push(Arc::new(message));
            }
        }
        Ok(true)
    }

    /// If messages that were delivered have been lost, an empty channel no longer proves that
    /// nothing was missed. Records this in Redis.
    async fn note_loss(&self, channel: &ChannelName, from: ReadFrom, page: Option<&Page>) {
        let lost = page.and_then(|page| page.gap).is_some_and(|gap| gap.reason == GapReason::EpochChanged);
        if lost && matches!(from, ReadFrom::AfterDelivered(tail) if tail.position.offset > 0) {
            let mut renew = self.node.life(channel.as_str());
            renew.arg("renew");
            if let Err(error) = self.ask::<Value>(renew).await {
                tracing::debug!(%error, "cannot record in Redis that messages were lost");
            }
        }
    }
}

fn parse_plan(answer: Vec<Value>) -> Option<Plan> {
    let mut fields = answer.into_iter();
    let Some(first) = fields.next() else { return Some(Plan::Nothing) };
    let first = text(first)?;
    let epoch: u64 = match first.as_str() {
        "adopt" => return Some(Plan::Adopt),
        "diverged" => return Some(Plan::Diverged),
        epoch => epoch.parse().ok()?,
    };
    let mut next = || number(fields.next()?);
    let tail = Tail { position: Position::new(epoch, next()?), stamp: next()? };
    let reason = text(fields.next()?)?;
    let mut next = || number(fields.next()?);
    let gap_offset = next()?;
    let through = Tail { position: Position::new(epoch, next()?), stamp: next()? };
    let kind = text(fields.next()?)?;
    let elements = match kind.as_str() {
        "list" => Elements::List {
            first_index: number(fields.next()?)?,
            last_index: number(fields.next()?)?,
            first_header: bytes(fields.next()?)?,
            last_header: bytes(fields.next()?)?,
        },
        "keys" => {
            let mut keys = Vec::with_capacity(fields.len() / 2);
            while let Some(offset) = fields.next() {
                keys.push((number(offset)?, bytes(fields.next()?)?));
            }
            Elements::Keys(keys)
        }
        _ => Elements::None,
    };
    let keyed = kind == "keys";
    let reason = match reason.as_str() {
        "" => None,
        "history_trimmed" => Some(GapReason::HistoryTrimmed),
        _ => Some(GapReason::EpochChanged),
    };
    let resumes_after = Position::new(epoch, if keyed { 0 } else { gap_offset });
    let gap = reason.map(|reason| Gap { resumes_after, reason });
    let page = Page { gap, messages: Vec::new(), through, tail };
    Some(Plan::Fetch(Fetch { page, forgotten: if keyed { gap_offset } else { 0 }, elements }))
}

/// Converts list elements into messages of a page. An unreadable message ends the page, or becomes
/// a gap if it is the first. `None` if the first header has no offset.
fn messages_into(mut page: Page, elements: &[Bytes], unreadable: impl Fn(u64)) -> Option<Page> {
    let epoch = page.tail.position.epoch;
    let first = Header::parse(elements.first()?)?.offset;
    let mut through = None;
    for (offset, element) in (first..).zip(elements.chunks(2)) {
        let position = Position::new(epoch, offset);
        let [header, payload, ..] = element else { return None };
        // The header of the next message contains the stamp of this one.
        let next = elements.get(2 * (offset - first + 1) as usize);
        let stamp = next.map_or(Some(page.through.stamp), |next| Header::parse(next).map(|next| next.stamp_before));
        let header = Header::parse(header).filter(|header| header.offset == offset && header.key.is_ok());
        match (header, stamp) {
            (Some(Header { key: Ok(key), removed, .. }), Some(stamp)) => {
                through = Some(Tail { position, stamp });
                let message = Message { position: Some(position), stamp, key, removed, payload: payload.clone() };
                page.messages.push(Arc::new(message));
            }
            _ if page.messages.is_empty() => {
                unreadable(offset);
                page.gap = Some(Gap { resumes_after: position, reason: GapReason::HistoryTrimmed });
            }
            _ => {
                page.through = through?;
                break;
            }
        }
    }
    Some(page)
}

/// The header before a payload: `EPOCH OFFSET STAMP BYTES`, as they were before the message. With a
/// key, ` REMOVED KEY` follows.
struct Header {
    offset: u64,
    stamp_before: u64,
    removed: bool,
    /// An error if the key is not UTF-8.
    key: Result<Option<Arc<str>>, std::str::Utf8Error>,
}

impl Header {
    fn parse(text: &[u8]) -> Option<Self> {
        let mut parts = text.splitn(6, |&byte| byte == b' ');
        let mut digits = || std::str::from_utf8(parts.next()?).ok()?.parse::<u64>().ok();
        let (_epoch, before, stamp_before, _bytes) = (digits()?, digits()?, digits()?, digits()?);
        let removed = parts.next().is_some_and(|removed| removed == b"1");
        let key = parts.next().map(|key| std::str::from_utf8(key).map(Arc::from)).transpose();
        Some(Self { offset: before + 1, stamp_before, removed, key })
    }
}

fn keyed_message(epoch: u64, key: &[u8], value: &Bytes) -> Option<Message> {
    let prefix = std::str::from_utf8(value.get(..VALUE_PREFIX)?).ok()?;
    let offset = prefix.get(..16)?.parse().ok()?;
    Some(Message {
        position: Some(Position::new(epoch, offset)),
        stamp: prefix.get(16..29)?.parse().ok()?,
        key: Some(std::str::from_utf8(key).ok()?.into()),
        removed: prefix.ends_with('1'),
        payload: value.slice(VALUE_PREFIX..),
    })
}

fn number(value: Value) -> Option<u64> {
    match value {
        Value::Int(number) => number.try_into().ok(),
        value => text(value)?.parse().ok(),
    }
}

fn text(value: Value) -> Option<String> {
    String::from_utf8(bytes(value)?.into()).ok()
}

fn bytes(value: Value) -> Option<Bytes> {
    match value {
        Value::BulkString(bytes) => Some(bytes.into()),
        Value::SimpleString(text) => Some(text.into()),
        Value::Int(number) => Some(number.to_string().into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page_of(elements: &[&[u8]]) -> (Page, Vec<u64>) {
        let tail = Tail { position: Position::new(7, 9), stamp: 1 };
        let page = Page { gap: None, messages: Vec::new(), through: tail, tail };
        let elements: Vec<_> = elements.iter().map(|element| Bytes::copy_from_slice(element)).collect();
        let skipped = std::cell::RefCell::new(Vec::new());
        let page = messages_into(page, &elements, |offset| skipped.borrow_mut().push(offset)).expect("a page");
        (page, skipped.into_inner())
    }

    fn offsets(page: &Page) -> Vec<u64> {
        page.messages.iter().filter_map(|message| Some(message.position?.offset)).collect()
    }

    #[test]
    fn a_message_that_cannot_be_read_ends_the_page_before_it() {
        let (page, skipped) = page_of(&[b"7 2 4 0", b"x", b"7 3 5 1 0 \xff", b"y", b"7 4 6 2", b"z"]);
        assert_eq!((offsets(&page), page.through.position.offset, page.gap), (vec![3], 3, None));
        assert_eq!(page.messages[0].stamp, 5, "as the header of the next says");
        assert!(skipped.is_empty());
    }

    #[test]
    fn at_the_front_of_a_page_it_is_skipped_and_told_as_a_gap() {
        let (page, skipped) = page_of(&[b"7 3 5 1 0 \xff", b"y", b"7 4 6 2 1 key B", b"z"]);
        assert_eq!((offsets(&page), skipped), (vec![5], vec![4]));
        assert_eq!(page.gap.map(|gap| gap.resumes_after.offset), Some(4));
        assert_eq!((page.messages[0].removed, page.messages[0].key.as_deref()), (true, Some("key B")));
        assert_eq!((page.messages[0].stamp, page.through.position.offset), (1, 9));
    }
}
