//! The HTTP surface. `routes.rs` is its table of contents; each other file is one request's story. What becomes of a
//! request that turns into a subscription is in `edge.rs`.

pub mod assets;
pub mod cors;
pub mod credentials;
pub mod edge;
pub mod error;
pub mod fetch;
pub mod forwarded;
pub mod history;
pub mod publish;
pub mod query;
pub mod routes;
pub mod strict;
pub mod subscribe;
mod visit;
