//! Delivers messages from the logs of channels to the sockets of clients. In reading order:
//!
//! * [`shard`]: the subscribers of one thread, and the fan-out to them.
//! * [`encoding`]: the format of the bytes: a [`dialect`] (the content of a message) over a
//!   [`framing`] (how messages travel).
//! * [`batch`]: several log entries, encoded once for all subscribers of an encoding.
//! * [`connection`]: the socket and the session of a client, as the fan-out uses them. Bytes reach
//!   the socket through `Context::write` and `transport/socket.rs`.
//! * [`session`]: the [`subscription`]s of a client, and which bytes are due next. Knows no socket.
//! * [`commands`]: what clients ask for over their connections: to publish and, in some dialects, to
//!   subscribe, unsubscribe or read at any time.
//! * [`task`]: the task of a connection. It writes what `Session::offer` could not, and reads from the
//!   client and from the history.
//!
//! The way of a batch: shard, `Connection::offer`, `Session::offer`, `Context::write`, socket.
//!
//! Supporting modules: `attendants` are the clients of a thread on channels with presence. [`context`] is
//! the state that all connections of a thread share, [`clock`] its coarse time. [`pace`] limits the time
//! that a thread spends on clients that catch up. `keepalive` decides when to ping or close a client;
//! `rate_limiter`, when to stop reading from it. [`drain`] closes the clients when the instance stops.

mod attendants;
pub mod batch;
pub mod clock;
pub mod commands;
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
