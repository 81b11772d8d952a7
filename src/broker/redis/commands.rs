//! What is asked of Redis now and then: reading history, the canary, bringing the library in. On a shared connection that is
//! replaced when it breaks. Publishing has connections of its own, see `lane.rs`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use redis::aio::MultiplexedConnection;
use redis::{Cmd, RedisError, RedisResult, Value};
use tokio::sync::Mutex;

use super::connection::Address;
use super::library::{Library, is_missing};
use crate::broker::{BrokerError, From, PAGE_BYTES, PAGE_MESSAGES, Page, Tail};
use crate::channel::ChannelName;
use crate::message::{Gap, GapReason, Message, Position};
use crate::metrics::Metrics;
use crate::metrics::latency::Moment;
use crate::rules::Rules;

/// The shared connection, and what is known about the Redis behind it.
pub(super) struct Commands {
    pub(super) address: Address,
    pub(super) library: Library,
    pub(super) rules: Arc<Rules>,
    pub(super) metrics: Arc<Metrics>,
    connection: Mutex<Option<MultiplexedConnection>>,
    /// How often the connection was let go of.
    lives: AtomicU64,
}

impl Commands {
    pub(super) fn new(address: Address, rules: Arc<Rules>, metrics: Arc<Metrics>) -> Self {
        Self {
            address,
            library: Library::new(&rules),
            rules,
            metrics,
            connection: Mutex::new(None),
            lives: AtomicU64::new(0),
        }
    }

    /// A handle on the shared connection, opened and furnished with the library if need be.
    pub(super) async fn connection(&self) -> RedisResult<MultiplexedConnection> {
        let mut slot = self.connection.lock().await;
        if let Some(connection) = &*slot {
            return Ok(connection.clone());
        }
        let mut connection = self.address.commands().await?;
        self.library.load(&mut connection).await?;
        *slot = Some(connection.clone());
        Ok(connection)
    }

    /// Lets go of the connection, and lets those who publish do the same: the next command opens another. What runs on one ends with
    /// an error of its own.
    pub(super) async fn disconnect(&self) {
        *self.connection.lock().await = None;
        self.lives.fetch_add(1, Ordering::Release);
    }

    /// Tells connections from before the last [`Self::disconnect`] from later ones.
    pub(super) fn life(&self) -> u64 {
        self.lives.load(Ordering::Acquire)
    }

    /// Sends one small message, as the canary does.
    pub(super) async fn publish_plain(&self, channel: &str, payload: &str) -> RedisResult<()> {
        let mut connection = self.connection().await?;
        let asked = Moment::now();
        let sent = redis::cmd("PUBLISH").arg(channel).arg(payload).exec_async(&mut connection).await;
        self.judge(asked, sent).await
    }

    /// Reads a page of history.
    pub(super) async fn read(
        &self,
        channel: &ChannelName,
        from: From,
        limit: usize,
    ) -> Result<Option<Page>, BrokerError> {
        if self.rules.of(channel).history.is_none() {
            return Ok(None);
        }
        for _ in 0..2 {
            match self.try_read(channel, from, limit.min(PAGE_MESSAGES)).await {
                Err(error) if is_missing(&said(&error)) => self.disconnect().await,
                Err(error) => return Err(broker_error(&error)),
                Ok(answer) => return page(answer),
            }
        }
        Err(BrokerError::Unavailable("the functions of livebridge vanish as soon as they are loaded".into()))
    }

    async fn try_read(&self, channel: &ChannelName, from: From, limit: usize) -> RedisResult<Vec<Value>> {
        let mut connection = self.connection().await?;
        let mut command = Cmd::new();
        command.arg(self.library.call("read", channel.as_str()));
        let count = if let From::Last(count) = from { count.min(limit) } else { limit };
        command.arg(count).arg(PAGE_BYTES);
        match from {
            From::Tail => command.arg("tail"),
            From::Oldest => command.arg("oldest"),
            From::Last(_) => command.arg("last"),
            From::Keys => command.arg("keys"),
            From::After(position) => command.arg("after").arg(position.epoch).arg(position.offset),
            From::AfterDelivered(Tail { position, stamp }) => {
                command.arg("delivered").arg(position.epoch).arg(position.offset).arg(stamp)
            }
        };
        let asked = Moment::now();
        let answer = command.query_async(&mut connection).await;
        self.judge(asked, answer).await
    }

    /// Counts how long an answer took, or gives up the connection if the error says that it is of no more use.
    async fn judge<T>(&self, asked: Moment, answer: RedisResult<T>) -> RedisResult<T> {
        if answer.as_ref().is_err_and(|error| !is_answer(error)) {
            self.disconnect().await;
        } else {
            self.metrics.latency.redis_round_trip.observe(asked);
        }
        answer
    }
}

/// Whether the server answered, be it with a refusal.
fn is_answer(error: &RedisError) -> bool {
    error.code().is_some()
}

/// What Redis said, if it answered.
fn said(error: &RedisError) -> String {
    format!("{} {}", error.code().unwrap_or_default(), error.detail().unwrap_or_default())
}

/// What a failure means to a publisher or reader.
pub(super) fn broker_error(error: &RedisError) -> BrokerError {
    if is_answer(error) { refusal(&said(error)) } else { BrokerError::Unavailable(error.to_string()) }
}

/// What a refusal of Redis means to a publisher or reader.
pub(super) fn refusal(said: &str) -> BrokerError {
    let (code, detail) = said.split_once(' ').unwrap_or((said, "at its bound"));
    let why = || without_arguments(said).to_owned();
    match code {
        "LIVEBRIDGE_NOT_KEYED" => BrokerError::NotKeyed,
        "LIVEBRIDGE_FULL" => BrokerError::KeyedChannelFull(detail.to_owned()),
        // These pass: the server is loading, busy with a script, or no master at the moment.
        "LOADING" | "BUSY" | "READONLY" | "MASTERDOWN" | "CLUSTERDOWN" | "TRYAGAIN" => BrokerError::Unavailable(why()),
        _ => BrokerError::Refused(why()),
    }
}

/// To a command that it does not know, Redis repeats what it was given: a payload, which must not get into a log.
fn without_arguments(error: &str) -> &str {
    error.split(", with args beginning with").next().unwrap_or_default()
}

fn page(answer: Vec<Value>) -> Result<Option<Page>, BrokerError> {
    if answer.is_empty() {
        return Ok(None);
    }
    parse_page(answer)
        .map(Some)
        .ok_or_else(|| BrokerError::Refused("livebridge_read answered something unexpected".into()))
}

fn parse_page(answer: Vec<Value>) -> Option<Page> {
    let mut fields = answer.into_iter();
    let epoch: u64 = number(fields.next()?)?;
    let mut tail = || {
        let offset = number(fields.next()?)?;
        Some(Tail { position: Position::new(epoch, offset), stamp: number(fields.next()?)? })
    };
    let newest = tail()?;
    let (reason, gap_offset) = (text(fields.next()?)?, number(fields.next()?)?);
    let through = {
        let offset = number(fields.next()?)?;
        Tail { position: Position::new(epoch, offset), stamp: number(fields.next()?)? }
    };
    let gap = match reason.as_str() {
        "" => None,
        "history_trimmed" => Some(GapReason::HistoryTrimmed),
        _ => Some(GapReason::EpochChanged),
    };
    let gap = gap.map(|reason| Gap { resumes_after: Position::new(epoch, gap_offset), reason });
    let messages = fields.map(|entry| message(epoch, entry).map(Arc::new)).collect::<Option<_>>()?;
    Some(Page { gap, messages, through, tail: newest })
}

fn message(epoch: u64, entry: Value) -> Option<Message> {
    let Value::Array(fields) = entry else { return None };
    let [offset, stamp, key, removed, payload] = <[Value; 5]>::try_from(fields).ok()?;
    let key = text(key)?;
    Some(Message {
        position: Some(Position::new(epoch, number(offset)?)),
        stamp: number(stamp)?,
        key: (!key.is_empty()).then(|| key.into()),
        removed: text(removed)? == "1",
        payload: bytes(payload)?,
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
    #[test]
    fn what_redis_repeats_of_a_command_is_left_out() {
        let error = "ERR unknown command 'EVALSHA', with args beginning with: 'secret' ";
        assert!(super::without_arguments(error).ends_with("unknown command 'EVALSHA'"));
    }
}
