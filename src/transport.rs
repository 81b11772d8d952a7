//! Connections to clients, below HTTP: accepts, admits and limits them, and closes them so that the
//! last bytes arrive. Independent of the protocols above.
//!
//! * `accept`: the listening sockets, and the choice of the thread that serves a new connection.
//! * `admission`: limits on the number of connections, in total and for each `address`.
//! * `address_rates`: rate limits on the clients of one address.
//! * `address_shares`: the share of a common budget that one address holds.
//! * `refusal`: why a client is refused, and the response to it.
//! * `socket`: the socket type that all other modules read and write.
//! * `lingering_close`: closes a connection whose client still sends.
//! * `token_bucket` and `byte_budget`: limits on rates and on amounts.

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
