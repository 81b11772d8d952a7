//! The promises of livebridge, tested on the wire: real processes, a real redis-server, real signals.
//!
//! * `contract`: what every broker must do; runs against each
//! * `access`: keys, tokens, and what is let through without
//! * `token_keys`: where the keys of tokens come from
//! * `origins`: which pages may speak to an instance
//! * `address_rates`: what the clients of one address may use up
//! * `limits`: each limit's answer, while others notice nothing
//! * `pages`: what a browser's WebSocket can see and say
//! * `centrifuge`: the protocol of the Centrifuge SDKs, frame by frame
//! * `presence`: who is on a channel, and who is told of it
//! * `drain`: how an instance ends
//! * `attacks`: what attackers try, request by request and frame by frame
//! * `hostile`: clients that mean no good
//! * `events`: event streams byte by byte
//! * `http`: requests, errors, limits, the commands
//! * `history`: positions, resume, gaps that are told
//! * `history_cost`: what the history costs Redis, counted
//! * `before_first`: positions from before a channel's first message
//! * `patterns`: the patterns of rules, in Rust and in Redis
//! * `fcall`: what producers call in Redis themselves
//! * `foreign`: what stands in Redis that livebridge did not write
//! * `upgrade`: format 1 of what is in Redis, and its instances
//! * `keyed`: the latest value of each key
//! * `outages`: Redis and instances go away and come back; clients stop reading or vanish
//! * `isolation`: what one client asks of Redis leaves the others alone
//! * `faults`: all of it at once, under load, counted
//! * `siege`: all attacks at once, beside clients that lose nothing
//! * `model`: random interleavings against a simple model
//! * `numbered`: plain messages that get positions
//! * `documents`: what openapi.json and the pages of docs/ name, against what there is
//! * `readme`: what the README and docs/configuration.md say
//! * `check`: what is wrong with a Redis is found
//! * `redis_options`: how Redis is reached: TLS, sockets, IPv6, passwords
//! * `insight`: what the operator sees: metrics, dashboard, alerts
//! * `logs`: what is logged, and what is not
//! * `cost`: what a delivery and a connection may cost
//! * `codec`: the WebSocket codec against tungstenite
//! * `broker_alike`: the embedded broker and Redis answer random programs alike
//! * `browser`: the demo in a real Chromium
//! * `sheets`: many sheets in one Chromium, on several instances
//! * `feed`: livebridge.js in a real Chromium: one connection, resumed, shared by tabs, or an event stream
//! * `support`: starts and stops what the tests need

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(missing_docs, unreachable_pub, reason = "nothing here is anybody else's interface")]

mod access;
mod address_rates;
mod attacks;
mod before_first;
mod broker_alike;
mod browser;
mod centrifuge;
mod check;
mod cluster;
mod codec;
mod compression;
mod contract;
mod cost;
mod departures;
mod documents;
mod drain;
mod events;
mod faults;
mod fcall;
mod feed;
mod foreign;
mod history;
mod history_cost;
mod hostile;
mod http;
mod insight;
mod isolation;
mod keyed;
mod limits;
mod logs;
mod model;
mod numbered;
mod origins;
mod outages;
mod pages;
mod patterns;
mod prefix;
mod presence;
mod readme;
mod redis_options;
mod sentinel;
mod sheets;
mod siege;
mod support;
mod token_keys;
mod upgrade;
