//! The settings of limits and of the drain, and their conversion.

use std::time::Duration;

use clap::Args;
use ipnet::IpNet;

use crate::app::Rates;
use crate::transport::address::{TrustedProxies, parse_network};
use crate::transport::admission::{AddressLimits, ConnectionLimits};
use crate::transport::token_bucket::Rate;

/// The default for each public address: enough for an office or a school behind one address, but
/// not for a flood.
const PUBLIC_CONNECTIONS: u32 = 2000;
const PUBLIC_HANDSHAKES: u32 = 100;
/// The burst of new connections, in seconds of the rate: an office may reconnect at once after an
/// instance restarts.
const HANDSHAKE_BURST: u32 = 10;
/// The default rate of new channels per second, and its burst in seconds of the rate: a page with
/// many channels, and many such pages that reconnect at once.
const PUBLIC_NEW_CHANNELS: u32 = 500;
const NEW_CHANNELS_BURST: u32 = 4;
/// The burst of a WebSocket client, in seconds of the rate: a paste, or a reconnect.
const CLIENT_BURST: u32 = 5;

/// Limits on clients, other than those on messages and channels, and the times of a drain.
#[derive(Args, Debug, Clone)]
pub struct LimitArgs {
    /// Maximum number of connections. Further ones are answered 503 [default: as many as
    /// descriptors allow].
    #[arg(long, env = "LIVEBRIDGE_MAX_CONNECTIONS", value_name = "COUNT",
          value_parser = clap::value_parser!(u32).range(1..))]
    pub max_connections: Option<u32>,
    /// Maximum number of connections per address (IPv6: per /64). Further ones are answered 429. 0:
    /// no limit [default: 2000 for public addresses, no limit for private ones and loopback].
    #[arg(long, env = "LIVEBRIDGE_MAX_CONNECTIONS_PER_ADDRESS", value_name = "COUNT")]
    pub max_connections_per_address: Option<u32>,
    /// New connections per second and address, with bursts of ten times as many. Further ones are
    /// answered 429. 0: no limit [default: 100 for public addresses, no limit for private ones and
    /// loopback].
    #[arg(long, env = "LIVEBRIDGE_MAX_HANDSHAKES_PER_ADDRESS", value_name = "COUNT")]
    pub max_handshakes_per_address: Option<u32>,
    /// New channels per second and address, with bursts of four times as many. A channel without
    /// subscribers on this instance is new. Further ones are answered 429. 0: no limit [default:
    /// 500 for public addresses, no limit for private ones and loopback].
    #[arg(long, env = "LIVEBRIDGE_MAX_NEW_CHANNELS_PER_ADDRESS", value_name = "COUNT")]
    pub max_new_channels_per_address: Option<u32>,
    /// Address or network of a proxy, such as 10.0.0.0/8, whose X-Forwarded-For or Forwarded names
    /// the client. May repeat.
    #[arg(long, env = "LIVEBRIDGE_TRUSTED_PROXY", value_name = "NETWORK", value_parser = parse_network, value_delimiter = ',')]
    pub trusted_proxy: Vec<IpNet>,
    /// Frames per second that a WebSocket client may send. 0: no limit. livebridge reads a faster
    /// client more slowly, and closes it with 4029 if it keeps sending. The limit is also the
    /// number of messages per second that a public address may POST without a publish key; more are
    /// answered 429.
    #[arg(long, env = "LIVEBRIDGE_MAX_FRAMES_PER_SECOND", default_value_t = 1000, value_name = "COUNT")]
    pub max_frames_per_second: u32,
    /// Bytes per second that a WebSocket client may send. 0: no limit. livebridge reads a faster
    /// client more slowly. The limit is also the number of bytes per second, times their channels,
    /// that a public address may POST without a publish key; more are answered 429.
    #[arg(long, env = "LIVEBRIDGE_MAX_BYTES_PER_SECOND", default_value_t = 4 << 20, value_name = "BYTES",
          value_parser = bytes_per_second)]
    pub max_bytes_per_second: u32,
    /// Time limit in seconds for the head of a request, for its body, and for an idle connection.
    #[arg(long, env = "LIVEBRIDGE_REQUEST_SECONDS", default_value_t = 30, value_name = "SECONDS",
          value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub request_seconds: u32,
    /// Seconds of silence after which livebridge sends a heartbeat: a ping, or a comment on an
    /// event stream. Choose less than the timeout of any proxy in between. A WebSocket that leaves
    /// three pings unanswered is closed.
    #[arg(long, env = "LIVEBRIDGE_HEARTBEAT_SECONDS", default_value_t = 15, value_name = "SECONDS",
          value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub heartbeat_seconds: u32,
    /// on or off: compress messages of 256 bytes and more to WebSocket clients that offer
    /// permessage-deflate, once for all subscribers on a thread.
    #[arg(long, env = "LIVEBRIDGE_COMPRESSION", default_value = "off", value_name = "ON|OFF",
          value_parser = clap::builder::BoolishValueParser::new(), action = clap::ArgAction::Set)]
    pub compression: bool,
    /// Maximum size of all unfinished bodies and WebSocket messages together, in bytes. Beyond it,
    /// requests are answered 503 and WebSockets closed with 1013.
    #[arg(long, env = "LIVEBRIDGE_INCOMING_BYTES_TOTAL", default_value_t = 256 << 20, value_name = "BYTES",
          value_parser = clap::value_parser!(u64).range(1 << 20..))]
    pub incoming_bytes_total: u64,
    /// Maximum size of all pages of history and large partly written frames that clients have yet
    /// to receive, in bytes. Beyond it, requests are answered 503 and subscribers closed with 1013.
    #[arg(long, env = "LIVEBRIDGE_OUTGOING_BYTES_TOTAL", default_value_t = 256 << 20, value_name = "BYTES",
          value_parser = clap::value_parser!(u64).range(16 << 20..))]
    pub outgoing_bytes_total: u64,
    /// Maximum size of all logs together, in bytes. Beyond it, the largest logs are shortened.
    #[arg(long, env = "LIVEBRIDGE_LOG_BYTES_TOTAL", default_value_t = 512 << 20, value_name = "BYTES",
          value_parser = clap::value_parser!(u64).range(1 << 16..))]
    pub log_bytes_total: u64,
    /// Time for clients to leave at shutdown, in seconds. They are closed one after the other, over
    /// three quarters of it.
    #[arg(long, env = "LIVEBRIDGE_DRAIN_SECONDS", default_value_t = 8, value_name = "SECONDS",
          value_parser = clap::value_parser!(u64).range(0..=3600))]
    pub drain_seconds: u64,
    /// Seconds at shutdown during which /readyz answers 503 and everything else continues, so that
    /// load balancers notice.
    #[arg(long, env = "LIVEBRIDGE_DRAIN_NOTICE_SECONDS", default_value_t = 0, value_name = "SECONDS",
          value_parser = clap::value_parser!(u64).range(0..=3600))]
    pub drain_notice_seconds: u64,
}

/// A lower limit would close clients for a single read.
fn bytes_per_second(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(0) => Ok(0),
        Ok(bytes) if bytes >= 16 << 10 => Ok(bytes),
        _ => Err("0, or at least 16384".into()),
    }
}

/// The times of a drain.
#[derive(Clone, Copy, Debug)]
pub struct Drain {
    /// How long the instance reports that it is not ready and otherwise continues as usual.
    pub notice: Duration,
    /// How long clients then have to leave.
    pub time: Duration,
}

impl LimitArgs {
    /// The limits on connections and addresses.
    pub fn bounds(&self) -> ConnectionLimits {
        let limits = |connections: u32, handshakes: u32, new_channels: u32, publishing: Rates| AddressLimits {
            connections: (connections > 0).then_some(connections as usize),
            handshakes: Rate::new(handshakes, HANDSHAKE_BURST),
            published_messages: publishing.frames,
            published_bytes: publishing.bytes,
            new_channels: Rate::new(new_channels, NEW_CHANNELS_BURST),
        };
        let (connections, handshakes) = (self.max_connections_per_address, self.max_handshakes_per_address);
        let new_channels = self.max_new_channels_per_address;
        ConnectionLimits {
            connections: self.max_connections.map(|most| most as usize),
            public: limits(
                connections.unwrap_or(PUBLIC_CONNECTIONS),
                handshakes.unwrap_or(PUBLIC_HANDSHAKES),
                new_channels.unwrap_or(PUBLIC_NEW_CHANNELS),
                self.rates(),
            ),
            // No limits by default: these may be proxies that are not configured as trusted, load
            // programs, and backends that publish as fast as they can.
            near: limits(
                connections.unwrap_or(0),
                handshakes.unwrap_or(0),
                new_channels.unwrap_or(0),
                Rates::default(),
            ),
            proxies: TrustedProxies::new(self.trusted_proxy.clone()),
        }
    }

    /// The limits on the sending rate of a WebSocket client.
    pub fn rates(&self) -> Rates {
        Rates {
            frames: Rate::new(self.max_frames_per_second, CLIENT_BURST),
            bytes: Rate::new(self.max_bytes_per_second, CLIENT_BURST),
        }
    }

    /// The times of a drain.
    pub fn drain(&self) -> Drain {
        Drain { notice: Duration::from_secs(self.drain_notice_seconds), time: Duration::from_secs(self.drain_seconds) }
    }
}
