//! From a channel's log to the clients' sockets. In reading order:
//!
//! * [`shard`]: the subscribers of one thread, and the fan-out to them.
//! * [`batch`]: a run of log entries, encoded once for all subscribers of an [`encoding`].
//! * [`connection`]: a client's socket with its session, as the fan-out sees it; [`task`] is the task that owns it.
//! * [`session`]: a client's subscriptions, and which bytes are due next. Knows no socket.
//! * [`encoding`]: what the bytes look like: a [`dialect`] (what a message says) over a [`framing`] (how messages travel).
//!
//! Beside the way: [`context`] is what all connections of a thread share, [`pace`] is how much of its time goes to
//! clients that catch up, `keepalive` and `rate_limiter` say when a
//! client is asked whether it is there, closed, or read more slowly.

pub mod batch;
pub mod clock;
pub mod connection;
pub mod context;
pub mod dialect;
pub mod drain;
pub mod encoding;
pub mod framing;
mod keepalive;
pub mod pace;
mod rate_limiter;
pub mod session;
pub mod shard;
pub mod subscription;
pub mod task;
