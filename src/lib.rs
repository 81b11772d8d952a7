//! livebridge relays messages from backends to WebSocket and Server-Sent Events clients. Messages
//! arrive over HTTP or through Redis, on any number of instances.
//!
//! # Layout, along the path of a message
//!
//! Publish: [`http`] → [`broker`].
//!
//! Deliver: [`broker`] → [`hub`] (`event_queue`, `dispatch`, `topic`, `sequence`, `log`,
//! `wake_list`) → [`delivery`] (`shard`, `batch`, `connection`, `session`, `context`) →
//! `transport::socket`.
//!
//! * [`transport`]: connections to clients, below HTTP: how they are admitted, limited and closed.
//! * [`http`]: requests. `routes` lists them, `publish` accepts messages, and `subscribe` and
//!   `connection` turn a request into a subscriber. [`access`] decides what a client may do.
//! * [`broker`]: the contract with a broker, which carries messages between instances.
//!   `broker::memory` works within one process, `broker::redis` between many.
//! * [`hub`]: the channels of this instance. `dispatch` takes the events of the broker and holds the
//!   table of channels. Each channel is a `topic` with a `log`. The `Sequencer` of a topic lets a
//!   message into the log only if it is the next one.
//! * [`delivery`]: from the log to the sockets of clients. The `shard` of a thread encodes new
//!   messages once into a `batch` and offers the batch to each `session`. A `connection` writes the
//!   bytes of a session to its socket.
//!
//! Types that all of them share: [`channel`], [`message`], [`presence`] (who is on a channel),
//! [`rules`] (settings for channels), [`close`] (why subscribers are closed), [`json`] (objects that several parts write).
//!
//! The process: [`config`], [`app`] (the shared state), [`server`], [`drain`], [`allocator`],
//! [`observability`] and the [`commands`] other than `serve`, whose results are [`finding`]s. The
//! commands and the fetch of token keys use [`http_client`]; it and the Redis client verify servers with
//! [`trusted_roots`]. Small algorithms: [`backoff`],
//! [`fair_share`].

pub mod access;
pub mod allocator;
pub mod app;
pub mod backoff;
pub mod broker;
pub mod channel;
pub mod close;
pub mod commands;
pub mod config;
pub mod delivery;
pub mod drain;
pub mod fair_share;
pub mod finding;
pub mod http;
pub mod http_client;
pub mod hub;
pub mod json;
pub mod message;
pub mod observability;
pub mod presence;
pub mod rules;
pub mod server;
pub mod transport;
pub mod trusted_roots;
