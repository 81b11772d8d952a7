//! livebridge puts what a backend publishes on its users' screens: Redis or `curl` in, WebSocket and Server-Sent Events
//! out, any number of instances.
//!
//! # Layout, in the order of a message's way
//!
//! * [`http`]: requests. `routes` is the table of contents, `publish` takes messages in, `subscribe` and `connection` turn
//!   a request into a subscriber.
//! * [`broker`]: the contract with what carries messages between instances; `broker::memory` within one process,
//!   `broker::redis` between many.
//! * [`intake`]: the bounded queue from the broker to the hub.
//! * [`hub`]: the table of channels. Each is a [`topic`]: a [`log`](mod@log) whose order a [`sequence`] proves.
//! * [`delivery`]: from the log to the clients' sockets. One thread's `shard` encodes what is new once into a `batch` and
//!   offers it to each `session`, whose bytes a `connection` writes to its [`socket`].
//!
//! At the door: [`accept`] takes connections, [`admission`] says who gets in, [`access`] who may do what, [`drain`] says when
//! all must go, [`lingering_close`] lets each take its last bytes along.
//!
//! Beside the way: [`channel`] and [`message`] are the nouns, [`rules`] what differs by channel, [`close`] why
//! subscribers are closed, [`json`] the objects that several parts write, [`rate`], [`budget`] and [`level`] how fast and how
//! much, [`metrics`], [`logging`] and [`sparing`] what the operator
//! sees, [`config`], [`server`] and [`allocator`] the process, [`client`] the commands that talk to a running instance, [`check`] the
//! one that looks whether one would work.

pub mod accept;
pub mod access;
pub mod address;
pub mod admission;
pub mod allocator;
pub mod app;
pub mod backoff;
pub mod broker;
pub mod budget;
pub mod channel;
pub mod check;
pub mod client;
pub mod close;
pub mod config;
pub mod delivery;
pub mod drain;
pub mod http;
pub mod hub;
pub mod intake;
pub mod json;
pub mod level;
pub mod lingering_close;
pub mod log;
pub mod logging;
pub mod message;
pub mod metrics;
pub mod rate;
pub mod rules;
pub mod sequence;
pub mod server;
pub mod socket;
pub mod sparing;
pub mod topic;
