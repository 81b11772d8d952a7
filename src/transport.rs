//! Connections to clients, below HTTP: accepted, admitted, limited, and closed so that the last bytes
//! arrive. Nothing here knows what is said over them.
//!
//! * `accept`: the port, and which thread serves a new connection.
//! * `admission`: how many connections there may be, from all and from one `address`.
//! * `address_rates`: how much the clients of one address use of what has a rate.
//! * `address_shares`: how much is held for one address of what all share.
//! * `refusal`: why a client is refused, and the answer to it.
//! * `socket`: the one type of socket that everything above reads and writes.
//! * `lingering_close`: the end of a connection whose client still sends.
//! * `token_bucket` and `byte_budget`: how fast, and how much at once.

pub mod accept;
pub mod address;
pub mod address_rates;
pub mod address_shares;
pub mod admission;
pub mod byte_budget;
pub mod lingering_close;
pub mod refusal;
pub mod socket;
pub mod token_bucket;
