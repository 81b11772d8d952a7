//! The commands besides serving: those that talk to a running instance, and the one that checks
//! whether an instance would run. Issuing a token is `access/issue.rs`.

pub mod check;
pub mod client;
