//! The HTTP surface. `routes.rs` is its table of contents; each other file is one request's story. What becomes of a
//! request that turns into a subscription is in `connection.rs`.

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
