//! The HTTP surface. `routes.rs` lists all routes; most other files handle one kind of request.
//! `connection.rs` turns a request for a subscription into a subscriber's stream.

pub mod assets;
pub mod connection;
pub mod cors;
pub mod credentials;
pub mod error;
pub mod forwarded;
pub mod handshake;
pub mod history;
mod history_body;
pub mod publish;
pub mod query;
mod request_log;
pub mod routes;
pub mod subscribe;
pub mod validation;
