//! livebridge relays messages from backends to WebSocket and Server-Sent Events clients: HTTP or Redis
//! in, any number of instances.
//!
//! # Layout, in the order of a message's way
//!
//! * [`transport`]: connections to clients, below HTTP: who gets in, and how connections end.
//! * [`http`]: requests. `routes` is the table of contents, `publish` takes messages in, `subscribe` and
//!   `connection` turn a request into a subscriber. [`access`] says which client may do what.
//! * [`broker`]: the contract with what carries messages between instances; `broker::memory` within one
//!   process, `broker::redis` between many.
//! * [`hub`]: the table of channels, fed by an `event_queue`. Each channel is a `topic`: a `log` whose
//!   order a `sequence` proves.
//! * [`delivery`]: from the log to the clients' sockets. One thread's `shard` encodes what is new once
//!   into a `batch` and offers it to each `session`, whose bytes a `connection` writes to its socket.
//!
//! Nouns that all of them share: [`channel`], [`message`], [`rules`] (what differs by channel), [`close`]
//! (why subscribers are closed), [`json`] (objects that several parts write).
//!
//! The process: [`config`], [`app`] (what the parts share), [`server`], [`drain`], [`allocator`],
//! [`observability`] and the [`commands`] besides serving, whose answers are [`finding`]s.
//! [`http_client`] is the client of the commands and of the keys that are fetched. Small
//! arithmetic: [`backoff`], [`fair_share`].

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
pub mod rules;
pub mod server;
pub mod transport;
