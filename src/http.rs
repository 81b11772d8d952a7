//! The HTTP surface. In reading order: [`connection`] accepts requests, [`routes`] lists all
//! routes, [`publish`] accepts messages, and [`subscribe`] turns a request into a subscriber, whose
//! socket `connection` then takes over. Most other files handle one kind of request or one part of
//! it.

pub mod assets;
pub mod centrifuge;
pub mod connection;
pub mod cors;
pub mod credentials;
pub mod error;
pub mod forwarded;
pub mod handshake;
pub mod history;
mod history_body;
pub mod presence;
pub mod publish;
pub mod query;
mod request_log;
pub mod routes;
pub mod subscribe;
pub mod validation;
