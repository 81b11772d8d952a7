//! The settings of limits and of the drain, and what they mean together.

use std::time::Duration;

use clap::Args;
use ipnet::IpNet;

use crate::app::Rates;
use crate::transport::address::{TrustedProxies, parse_network};
use crate::transport::admission::{AddressLimits, Bounds};
use crate::transport::token_bucket::Rate;

/// Of an address of the public internet, where nothing is set: an office or a school behind one address, but not a flood.
const PUBLIC_CONNECTIONS: u32 = 2000;
const PUBLIC_HANDSHAKES: u32 = 100;
/// How many seconds' worth of new connections may come at once: an office whose instance was restarted.
const HANDSHAKE_BURST: u32 = 10;
/// The same for what a WebSocket client sends: a paste, a reconnect.
const CLIENT_BURST: u32 = 5;

/// Bounds on what clients may do, beside those on messages and channels.
#[derive(Args, Debug, Clone)]
pub struct LimitArgs {
    /// The most connections; more are answered 503 [default: as many as descriptors allow].
    #[arg(long, env = "LIVEBRIDGE_MAX_CONNECTIONS", value_name = "COUNT",
          value_parser = clap::value_parser!(u32).range(1..))]
    pub max_connections: Option<u32>,
    /// The most connections of one address (IPv6: of a /64); more are answered 429; 0: no limit [default: 2000 for public
    /// addresses, no limit for private ones and loopback].
    #[arg(long, env = "LIVEBRIDGE_MAX_CONNECTIONS_PER_ADDRESS", value_name = "COUNT")]
    pub max_connections_per_address: Option<u32>,
    /// New connections a second of one address, ten times as many at once; more are answered 429; 0: no limit [default: 100 for
    /// public addresses, no limit for private ones and loopback].
    #[arg(long, env = "LIVEBRIDGE_MAX_HANDSHAKES_PER_ADDRESS", value_name = "COUNT")]
    pub max_handshakes_per_address: Option<u32>,
    /// A proxy's address or network, such as 10.0.0.0/8: its X-Forwarded-For or Forwarded says who the client is; may repeat.
    #[arg(long, env = "LIVEBRIDGE_TRUSTED_PROXY", value_name = "NETWORK", value_parser = parse_network, value_delimiter = ',')]
    pub trusted_proxy: Vec<IpNet>,
    /// Frames a second that a WebSocket client may send; 0: no limit. It is read more slowly, and closed with 4029 if that does
    /// not do.
    #[arg(long, env = "LIVEBRIDGE_MAX_FRAMES_PER_SECOND", default_value_t = 1000, value_name = "COUNT")]
    pub max_frames_per_second: u32,
    /// Bytes a second that a WebSocket client may send; 0: no limit. It is read more slowly.
    #[arg(long, env = "LIVEBRIDGE_MAX_BYTES_PER_SECOND", default_value_t = 4 << 20, value_name = "BYTES",
          value_parser = bytes_per_second)]
    pub max_bytes_per_second: u32,
    /// How long a client has for the head of a request, and for its body, and how long an idle connection is kept, in seconds.
    #[arg(long, env = "LIVEBRIDGE_REQUEST_SECONDS", default_value_t = 30, value_name = "SECONDS",
          value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub request_seconds: u32,
    /// After how many seconds of silence a subscriber is sent a heartbeat: a ping, or a comment on an event stream. Less than
    /// any proxy on the way waits. A WebSocket that leaves three unanswered is taken for gone.
    #[arg(long, env = "LIVEBRIDGE_HEARTBEAT_SECONDS", default_value_t = 15, value_name = "SECONDS",
          value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub heartbeat_seconds: u32,
    /// The most bytes of unfinished bodies and WebSocket messages in all; more are answered 503, or closed with 1013.
    #[arg(long, env = "LIVEBRIDGE_INCOMING_BYTES_TOTAL", default_value_t = 256 << 20, value_name = "BYTES",
          value_parser = clap::value_parser!(u64).range(1 << 20..))]
    pub incoming_bytes_total: u64,
    /// The most bytes in all that wait for clients to take them: pages of history, and large frames cut by a full
    /// socket. More are answered 503, or closed with 1013.
    #[arg(long, env = "LIVEBRIDGE_OUTGOING_BYTES_TOTAL", default_value_t = 256 << 20, value_name = "BYTES",
          value_parser = clap::value_parser!(u64).range(16 << 20..))]
    pub outgoing_bytes_total: u64,
    /// The most bytes of all channels' logs together; beyond, the largest are shortened.
    #[arg(long, env = "LIVEBRIDGE_LOG_BYTES_TOTAL", default_value_t = 512 << 20, value_name = "BYTES",
          value_parser = clap::value_parser!(u64).range(1 << 16..))]
    pub log_bytes_total: u64,
    /// How long clients have to leave at a shutdown, in seconds; they are told one after the other, over three quarters of it.
    #[arg(long, env = "LIVEBRIDGE_DRAIN_SECONDS", default_value_t = 8, value_name = "SECONDS",
          value_parser = clap::value_parser!(u64).range(0..=3600))]
    pub drain_seconds: u64,
    /// How long the instance goes on as usual at a shutdown while /readyz answers 503, so that load balancers notice, in
    /// seconds.
    #[arg(long, env = "LIVEBRIDGE_DRAIN_NOTICE_SECONDS", default_value_t = 0, value_name = "SECONDS",
          value_parser = clap::value_parser!(u64).range(0..=3600))]
    pub drain_notice_seconds: u64,
}

/// Less would close clients for a single read.
fn bytes_per_second(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(0) => Ok(0),
        Ok(bytes) if bytes >= 16 << 10 => Ok(bytes),
        _ => Err("0, or at least 16384".into()),
    }
}

/// How an instance ends.
#[derive(Clone, Copy, Debug)]
pub struct Drain {
    /// How long it goes on as usual, but not ready.
    pub notice: Duration,
    /// How long clients have to leave after that.
    pub time: Duration,
}

impl LimitArgs {
    /// The bounds on connections.
    pub fn bounds(&self) -> Bounds {
        let limits = |connections: u32, handshakes: u32| AddressLimits {
            connections: (connections > 0).then_some(connections as usize),
            handshakes: Rate::new(handshakes, HANDSHAKE_BURST),
        };
        let (connections, handshakes) = (self.max_connections_per_address, self.max_handshakes_per_address);
        Bounds {
            connections: self.max_connections.map(|most| most as usize),
            public: limits(connections.unwrap_or(PUBLIC_CONNECTIONS), handshakes.unwrap_or(PUBLIC_HANDSHAKES)),
            // Proxies that nobody has named yet, backends and load programs: limited only where that is asked for.
            near: limits(connections.unwrap_or(0), handshakes.unwrap_or(0)),
            proxies: TrustedProxies::new(self.trusted_proxy.clone()),
        }
    }

    /// How fast a WebSocket client may send.
    pub fn rates(&self) -> Rates {
        Rates {
            frames: Rate::new(self.max_frames_per_second, CLIENT_BURST),
            bytes: Rate::new(self.max_bytes_per_second, CLIENT_BURST),
        }
    }

    /// How the instance ends.
    pub fn drain(&self) -> Drain {
        Drain { notice: Duration::from_secs(self.drain_notice_seconds), time: Duration::from_secs(self.drain_seconds) }
    }
}
