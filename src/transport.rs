//! What moves bytes between sockets and sessions. `connection.rs` is what all transports share; `websocket.rs` and `sse.rs` say
//! what a client's bytes mean and how a connection ends.

pub mod connection;
pub mod meter;
mod presence;
pub mod sse;
pub mod websocket;
