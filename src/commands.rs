//! The commands other than `serve`: those that talk to a running instance, and `check`, which
//! checks whether an instance would run. `access/issue.rs` issues tokens.

pub mod check;
pub mod client;
