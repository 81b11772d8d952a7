//! The shared connection for what is asked of Redis now and then: the canary, loading the functions.
//! It is replaced when it breaks. Publishing (`pipeline.rs`) and reading histories (`reads.rs`) have
//! connections of their own.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};

use redis::aio::MultiplexedConnection;
use redis::{Cmd, FromRedisValue, RedisError, RedisResult, Value};
use tokio::sync::Mutex;

use super::endpoint::Endpoint;
use super::library::{Function, LIFE, LIFE_KEY, Library};
use super::reads::Reads;
use crate::broker::BrokerError;
use crate::observability::log_throttle::LogThrottle;
use crate::observability::metrics::Metrics;
use crate::observability::metrics::latency::Moment;
use crate::rules::Rules;

/// The shared connection, and what is known about the Redis behind it.
pub(super) struct Commands {
    pub(super) endpoint: Endpoint,
    pub(super) library: Library,
    pub(super) rules: Arc<Rules>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) reads: Reads,
    connection: Mutex<Option<MultiplexedConnection>>,
    /// How often all connections were given up.
    generation: AtomicU64,
}

impl Commands {
    pub(super) fn new(endpoint: Endpoint, rules: Arc<Rules>, metrics: Arc<Metrics>) -> Self {
        Self {
            endpoint,
            library: Library::new(&rules),
            rules,
            metrics,
            reads: Reads::new(),
            connection: Mutex::new(None),
            generation: AtomicU64::new(0),
        }
    }

    /// A handle on the shared connection, opened and furnished with the library if need be.
    pub(super) async fn connection(&self) -> RedisResult<MultiplexedConnection> {
        let mut slot = self.connection.lock().await;
        if let Some(connection) = &*slot {
            return Ok(connection.clone());
        }
        let mut connection = self.endpoint.commands().await?;
        self.library.load(&mut connection).await?;
        // Since when the data in this Redis has been whole. A Redis that is full refuses it, and then
        // those who were here before a channel's first message are told of a gap.
        let noted = self.call(LIFE, LIFE_KEY).exec_async(&mut connection).await;
        if let Err(error) = noted {
            tracing::debug!(%error, "cannot note in Redis since when its data is whole");
        }
        *slot = Some(connection.clone());
        Ok(connection)
    }

    /// Lets go of the connection, and has publishers and readers do the same: the next command opens
    /// another. What runs on one ends with an error of its own.
    pub(super) async fn disconnect(&self) {
        *self.connection.lock().await = None;
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// Tells connections from before the last [`Self::disconnect`] from later ones.
    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Sends one small message, as the canary does.
    pub(super) async fn publish_plain(&self, channel: &str, payload: &str) -> RedisResult<()> {
        let mut command = Cmd::new();
        command.arg("PUBLISH").arg(channel).arg(payload);
        self.ask::<Value>(command).await.map(drop)
    }

    /// The beginning of a call of a function on a key.
    pub(super) fn call(&self, function: Function, key: &str) -> Cmd {
        let mut command = Cmd::new();
        command.arg(self.library.call(function, key));
        command
    }

    /// Sends a command and waits for its answer.
    async fn ask<T: FromRedisValue>(&self, command: Cmd) -> RedisResult<T> {
        let mut connection = self.connection().await?;
        let asked = Moment::now();
        let answer = command.query_async(&mut connection).await;
        self.record(asked, answer).await
    }

    /// Counts how long an answer took, or gives up the connection if the error says that it is of no more use.
    async fn record<T>(&self, asked: Moment, answer: RedisResult<T>) -> RedisResult<T> {
        if answer.as_ref().is_err_and(|error| !is_answer(error)) {
            self.disconnect().await;
        } else {
            self.metrics.latency.redis_round_trip.observe(asked);
        }
        answer
    }
}

/// Whether the server answered, be it with a refusal.
pub(super) fn is_answer(error: &RedisError) -> bool {
    error.code().is_some()
}

/// What Redis said, if it answered.
pub(super) fn said(error: &RedisError) -> String {
    format!("{} {}", error.code().unwrap_or_default(), error.detail().unwrap_or_default())
}

/// What a failure means to a publisher or reader.
pub(super) fn broker_error(error: &RedisError) -> BrokerError {
    if is_answer(error) { refusal(&said(error)) } else { BrokerError::Unavailable(error.to_string()) }
}

/// What a refusal of Redis means to a publisher or reader. They see its code; Redis' own words are for
/// the log.
pub(super) fn refusal(said: &str) -> BrokerError {
    let (code, detail) = said.split_once(' ').unwrap_or((said, "at its bound"));
    let temporary = |what: &str| BrokerError::Unavailable(format!("{what} ({code})"));
    let lasting = |what: &str| BrokerError::Refused(format!("{what} ({code})"));
    match code {
        "LIVEBRIDGE_NOT_KEYED" => BrokerError::NotKeyed,
        "LIVEBRIDGE_FULL" => BrokerError::KeyedChannelFull(detail.to_owned()),
        "LIVEBRIDGE_ID_REUSED" => BrokerError::IdReused,
        "LOADING" => temporary("Redis is loading its data"),
        "BUSY" => temporary("Redis is busy with a script"),
        "READONLY" | "MASTERDOWN" => temporary("this Redis is a replica at the moment"),
        "CLUSTERDOWN" | "TRYAGAIN" => temporary("the Redis Cluster does not serve the channel at the moment"),
        "MOVED" | "ASK" | "CROSSSLOT" => {
            lasting("this is a node of a Redis Cluster, which this version does not support")
        }
        "OOM" => lasting("Redis has no memory left for more messages"),
        "NOPERM" => lasting("Redis denies livebridge a permission; `livebridge check` names it"),
        "MISCONF" | "NOREPLICAS" => lasting("Redis takes no writes at the moment"),
        _ => {
            static REPEATED: LazyLock<LogThrottle> = LazyLock::new(LogThrottle::default);
            if let Some(times) = REPEATED.happened("refusal") {
                tracing::warn!(error = without_arguments(said), times, "Redis refused a command");
            }
            lasting("Redis refused for a reason that the log names")
        }
    }
}

/// To a command that it does not know, Redis repeats what it was given: a payload, which must not get into a log.
fn without_arguments(error: &str) -> &str {
    error.split(", with args beginning with").next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_redis_repeats_of_a_command_is_left_out() {
        let error = "ERR unknown command 'EVALSHA', with args beginning with: 'secret' ";
        assert!(super::without_arguments(error).ends_with("unknown command 'EVALSHA'"));
    }
}
