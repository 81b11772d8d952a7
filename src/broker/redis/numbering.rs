//! Gives plain messages, which any Redis client sends with `PUBLISH`, their positions. This module and its
//! files are pure state machines: they know neither connections nor clocks, and the test target `numbering`
//! explores them. Decision 018 has the argument why they are right.
//!
//! Redis sends all subscribers the same messages in one order. A *barrier* is a message with a number that
//! Redis gives out in ascending order. The [`Place`] of a plain message is the last barrier before it, and how
//! many plain messages of its channel lie between the two. So all instances that received the barrier know
//! the message by the same place.
//!
//! A *member* is the subscription of an instance, from a barrier of its own until the connection ends. The
//! oldest member is the *leader*: it appends the messages to the history with the function
//! `livebridge_number` ([`Append`]), which compares the places with what it has appended before, and publishes
//! a [`Marker`]. All members hold a message until its marker arrives, so another can go on at any time.

mod member;
mod participant;
mod request;

pub use self::member::{Answer, Limits};
pub use self::participant::{Disorder, Participant};
pub use self::request::{Announcement, Append, Marker, Place};
