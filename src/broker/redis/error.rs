//! Errors of Redis and of connections to it. The only module that converts them into errors of the
//! broker.

use std::io;
use std::sync::LazyLock;

use redis::ParsingError;

use super::resp::{Frame, Malformed};
use super::tls::{self, TlsProblem};
use crate::broker::BrokerError;
use crate::observability::log_throttle::LogThrottle;

/// Why a connection failed, or a command on it.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClientError {
    /// A network or system error.
    #[error("{0}")]
    Io(#[source] io::Error),
    /// A TLS error.
    #[error(transparent)]
    Tls(TlsProblem),
    /// Redis replied with this error.
    #[error("Redis refused: {0}")]
    Refused(String),
    /// The server is a node of a Redis Cluster and would serve only some of the channels.
    #[error("this is a node of a Redis Cluster; write redis+cluster://HOST:PORT in the Redis URL to use all of it")]
    Cluster,
    /// The server is no node of a Redis Cluster.
    #[error("this Redis is no node of a Redis Cluster; write redis://HOST:PORT in the Redis URL")]
    NotACluster,
    /// The server has no sharded publish/subscribe.
    #[error("a Redis Cluster must have version 7 or newer, and this node has {0}")]
    OldCluster(String),
    /// No node of the Cluster says which node serves which slots; the last error.
    #[error("no node of the Redis Cluster answers ({0})")]
    NoNode(String),
    /// The server is a Sentinel, which holds no data.
    #[error("this is a Redis Sentinel; write redis+sentinel://HOST:PORT/MASTER in the Redis URL to use its master")]
    Sentinel,
    /// No Sentinel names the master; the last error.
    #[error("no Sentinel names the master ({0})")]
    NoSentinel(String),
    /// The Sentinels know no master with this name.
    #[error("the Sentinels know no master named {0:?}; the Redis URL names it after the last host")]
    UnknownMaster(String),
    /// The Sentinels name another master.
    #[error("the Sentinels name another master")]
    Switched,
    /// The server is a replica, which accepts no writes.
    #[error("this Redis is a replica at the moment")]
    Replica,
    /// The server does not speak RESP3.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// The server closed the connection.
    #[error("the connection was closed")]
    Closed,
    /// The numbering of plain messages needs another connection.
    #[error("{0}")]
    Numbering(String),
    /// The reply has another shape than documented.
    #[error("unexpected reply from {0}")]
    Unexpected(&'static str),
}

impl ClientError {
    /// A reply did not arrive in time.
    pub(super) fn timed_out() -> Self {
        io::Error::new(io::ErrorKind::TimedOut, "no answer in time").into()
    }

    /// Whether a mismatch of protocols, such as TLS on one side only, can cause this error.
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

    /// Whether the connection has ended, or none could be opened; `false` if the server does not answer.
    pub(super) fn is_lost_connection(&self) -> bool {
        match self {
            Self::Io(error) => error.kind() != io::ErrorKind::TimedOut,
            Self::Closed => true,
            _ => false,
        }
    }

    /// The error reply of Redis. After such an error, the connection can still be used.
    pub(super) fn refusal(&self) -> Option<&str> {
        if let Self::Refused(said) = self { Some(said) } else { None }
    }

    /// Whether an ACL that does not cover the channel denies access to one of its keys.
    pub(super) fn is_refused_key(&self) -> bool {
        self.refusal().is_some_and(|said| is_denied(said) && said.contains("access") && said.contains("key"))
    }

    /// The code of the error reply, such as `NOPERM`.
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

/// The code for messages that Redis has stored, while too few replicas confirm them.
pub(super) const UNREPLICATED: &str = "LIVEBRIDGE_UNREPLICATED";

/// Why Redis did not execute a command on a channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// Nothing was executed, because the hash slot of the channel belongs to another shard, or is
    /// moving to one. Try again, there.
    Moved,
    /// Any other reason.
    Broker(BrokerError),
}

impl Failure {
    /// Classifies an error reply.
    pub(super) fn of_reply(said: &str) -> Self {
        if is_moved(said) { Self::Moved } else { Self::Broker(refusal(said)) }
    }

    /// Whether the command may have been executed, or can be if it is tried again.
    pub(super) fn is_temporary(&self) -> bool {
        matches!(self, Self::Moved | Self::Broker(BrokerError::Unavailable(_)))
    }
}

impl From<BrokerError> for Failure {
    fn from(error: BrokerError) -> Self {
        Self::Broker(error)
    }
}

impl From<&ClientError> for Failure {
    fn from(error: &ClientError) -> Self {
        error.refusal().map_or_else(|| Self::Broker(error.into()), Self::of_reply)
    }
}

impl From<Failure> for BrokerError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Moved => Self::Unavailable("the channel is moving to another shard of the Redis Cluster".into()),
            Failure::Broker(error) => error,
        }
    }
}

/// Whether a node of a Redis Cluster refuses a command because the hash slot belongs to another
/// shard, or is moving to one.
pub(super) fn is_moved(said: &str) -> bool {
    let code = said.split(' ').next().unwrap_or_default();
    // The text is that of a function that has accessed a key that is already on another shard.
    matches!(code, "MOVED" | "ASK" | "TRYAGAIN" | "CLUSTERDOWN") || said.contains("non local key")
}

/// Whether an ACL denies a command, or what a function does. Redis 7.0 has a text of its own for the
/// latter, and later versions another one; neither has a code.
fn is_denied(said: &str) -> bool {
    let texts = ["The user executing the script can't", "ACL failure in script"];
    said.starts_with("NOPERM ") || texts.iter().any(|text| said.contains(text))
}

/// Converts an error reply into an error for publishers and readers. It contains only the code; the
/// full text goes to the log.
pub(super) fn refusal(said: &str) -> BrokerError {
    let (code, detail) = said.split_once(' ').unwrap_or((said, "at its limit"));
    let code = if is_denied(said) { "NOPERM" } else { code };
    let temporary = |what: &str| BrokerError::Unavailable(format!("{what} ({code})"));
    let lasting = |what: &str| BrokerError::Refused(format!("{what} ({code})"));
    match code {
        "LIVEBRIDGE_NOT_KEYED" => BrokerError::NotKeyed,
        "LIVEBRIDGE_FULL" => BrokerError::KeyedChannelFull(detail.to_owned()),
        "LIVEBRIDGE_ID_REUSED" => BrokerError::IdReused,
        "LOADING" => temporary("Redis is loading its data"),
        "BUSY" => temporary("Redis is busy with a script"),
        "READONLY" | "MASTERDOWN" => temporary("this Redis is a replica at the moment"),
        _ if is_moved(said) => temporary("the Redis Cluster does not serve the channel at the moment"),
        UNREPLICATED => temporary("Redis has the message, but not enough of its replicas confirm it"),
        "OOM" => lasting("Redis has no memory left for more messages"),
        "NOPERM" => lasting("Redis denies livebridge a permission; `livebridge check` names it"),
        "MISCONF" | "NOREPLICAS" => lasting("Redis accepts no writes at the moment"),
        _ => {
            static REPEATED: LazyLock<LogThrottle> = LazyLock::new(LogThrottle::default);
            if let Some(times) = REPEATED.happened("refusal") {
                tracing::warn!(error = without_arguments(said), times, "Redis refused a command");
            }
            lasting("Redis refused the command; the log has the reason")
        }
    }
}

/// Removes the arguments from an error reply. Redis repeats them for an unknown command, and a
/// payload must not get into the log.
fn without_arguments(error: &str) -> &str {
    error.split(", with args beginning with").next().unwrap_or_default()
}

impl<'a> Frame<'a> {
    /// Returns the frame, or [`ClientError::Refused`] if it is an error.
    pub(super) fn accepted(self) -> Result<Self, ClientError> {
        match self {
            Frame::Refused(why) => Err(ClientError::Refused(String::from_utf8_lossy(why).into_owned())),
            accepted => Ok(accepted),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_acl_denies_within_a_function_is_told_like_what_it_denies_outside() {
        let keys = [
            "NOPERM No permissions to access a key",
            "ERR user_function:1: ERR The user executing the script can't access at least one of the keys mentioned",
            "ERR user_function:744: ERR ACL failure in script: No permissions to access a key script: x, on @user_function:1.",
        ];
        for said in keys {
            assert!(ClientError::Refused(said.into()).is_refused_key(), "{said}");
            assert!(refusal(said).to_string().contains("a permission"), "{said}");
        }
        let command = "ERR ACL failure in script: User x has no permissions to run the 'set' command";
        assert!(!ClientError::Refused(command.into()).is_refused_key());
        assert!(refusal(command).to_string().contains("a permission"));
    }

    #[test]
    fn what_redis_repeats_of_a_command_is_left_out() {
        let error = "ERR unknown command 'EVALSHA', with args beginning with: 'secret' ";
        assert!(without_arguments(error).ends_with("unknown command 'EVALSHA'"));
    }
}
