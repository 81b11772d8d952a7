//! Why Redis did not do what it was asked, and what that means to publishers and readers: the one place
//! that turns errors of Redis into errors of the broker.

use std::io;
use std::sync::LazyLock;

use redis::ParsingError;

use super::resp::Malformed;
use super::tls::{self, TlsProblem};
use crate::broker::BrokerError;
use crate::observability::log_throttle::LogThrottle;

/// Why there is no connection, or no useful answer on one.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClientError {
    /// The network's or the system's reason.
    #[error("{0}")]
    Io(#[source] io::Error),
    /// TLS does not work out between us and the other end.
    #[error(transparent)]
    Tls(TlsProblem),
    /// Redis answered with an error, which is given as it came.
    #[error("Redis refused: {0}")]
    Refused(String),
    /// The other end spreads channels over nodes, of which this would see a part.
    #[error("this is a node of a Redis Cluster, which this version does not support; use a Redis that is not one")]
    Cluster,
    /// The other end watches over servers, and holds no data.
    #[error("this is a Redis Sentinel, which this version does not ask; name the master itself in the Redis URL")]
    Sentinel,
    /// The other end is a replica, which takes no writes.
    #[error("this Redis is a replica at the moment")]
    Replica,
    /// The other end is no Redis.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// The other end closed.
    #[error("the connection was closed")]
    Closed,
    /// Redis answered something else than its documentation, or our function, says.
    #[error("{0} answered something unexpected")]
    Unexpected(&'static str),
}

impl ClientError {
    /// No answer within the time that one may take.
    pub(super) fn timed_out() -> Self {
        io::Error::new(io::ErrorKind::TimedOut, "no answer in time").into()
    }

    /// Whether the other end may have spoken another protocol than we.
    pub(super) fn is_of_the_wire(&self) -> bool {
        use io::ErrorKind::{BrokenPipe, ConnectionReset, InvalidData, TimedOut, UnexpectedEof};
        match self {
            Self::Io(error) => {
                matches!(error.kind(), BrokenPipe | ConnectionReset | InvalidData | TimedOut | UnexpectedEof)
            }
            Self::Malformed(_) | Self::Closed => true,
            _ => false,
        }
    }

    /// What Redis answered, if it did: its connection is as good as before.
    pub(super) fn refusal(&self) -> Option<&str> {
        if let Self::Refused(said) = self { Some(said) } else { None }
    }

    /// Whether the user may not use a key: one of the channel, by an ACL that does not cover it.
    pub(super) fn is_refused_key(&self) -> bool {
        self.refusal().is_some_and(|said| {
            // Redis 7.0 has another code and another text for what a function may not do.
            let refused = said.starts_with("NOPERM ") || said.contains("The user executing the script can't");
            refused && said.contains("access") && said.contains("key")
        })
    }

    /// The code of what Redis answered, such as `NOPERM`.
    pub(super) fn code(&self) -> Option<&str> {
        self.refusal()?.split(' ').next()
    }
}

impl From<io::Error> for ClientError {
    fn from(error: io::Error) -> Self {
        tls::explain(&error).map_or_else(|| Self::Io(error), Self::Tls)
    }
}

impl From<ParsingError> for ClientError {
    fn from(_: ParsingError) -> Self {
        Self::Unexpected("Redis")
    }
}

impl From<&ClientError> for BrokerError {
    fn from(error: &ClientError) -> Self {
        match error.refusal() {
            Some(said) => refusal(said),
            None => Self::Unavailable(error.to_string()),
        }
    }
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
