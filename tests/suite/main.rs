//! The promises of livebridge, tested on the wire: real processes, a real redis-server, real signals.
//!
//! * `contract`: what every broker must do; runs against both
//! * `access`: keys, tokens, and what is let through without
//! * `token_keys`: where the keys of tokens come from
//! * `origins`: which pages may speak to an instance
//! * `limits`: each limit's answer, while others notice nothing
//! * `drain`: how an instance ends
//! * `attacks`: what attackers try, request by request and frame by frame
//! * `hostile`: clients that mean no good
//! * `http`: requests, errors, limits, the commands
//! * `history`: positions, resume, gaps that are told
//! * `keyed`: the latest value of each key
//! * `outages`: Redis and instances go away and come back; clients stop reading or vanish
//! * `faults`: all of it at once, under load, counted
//! * `model`: random interleavings against a simple model
//! * `documents`: what openapi.json and the pages of docs/ name, against what there is
//! * `readme`: what the README says
//! * `check`: what is wrong with a Redis is found
//! * `insight`: what the operator sees: metrics, dashboard, alerts
//! * `logs`: what is logged, and what is not
//! * `cost`: what a delivery and a connection may cost
//! * `codec`: the WebSocket codec against tungstenite
//! * `browser`: the demo in a real Chromium
//! * `support`: starts and stops what the tests need

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(missing_docs, unreachable_pub, reason = "nothing here is anybody else's interface")]

mod access;
mod attacks;
mod browser;
mod check;
mod codec;
mod contract;
mod cost;
mod documents;
mod drain;
mod faults;
mod history;
mod hostile;
mod http;
mod insight;
mod keyed;
mod limits;
mod logs;
mod model;
mod origins;
mod outages;
mod readme;
mod support;
mod token_keys;
