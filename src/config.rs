//! Configuration: parses flags, environment and `.env` once (`Cli`) and combines them with the
//! rules file into the settings of the server (`Settings`). Nothing else reads the environment. The
//! files under `config/` hold groups of related settings.

pub mod access;
pub mod limits;
pub mod redis;

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use self::access::{AccessArgs, AccessSettingsError};
use self::limits::{Drain, LimitArgs};
use self::redis::{RedisArgs, RedisSettingsError};
use crate::access::Access;
use crate::access::issue::{self, Patterns, TokenSpec};
use crate::access::secret::Secret;
use crate::app::Limits;
use crate::broker::redis::RedisOptions;
use crate::channel::ChannelName;
use crate::hub::log::LogBounds;
use crate::observability::logging::LogFormat;
use crate::rules::{Rules, RulesError};
use crate::transport::admission;

/// The rules file that is read if none is named.
const DEFAULT_RULES: &str = "livebridge.toml";

/// Relays messages from backends to WebSocket and Server-Sent Events clients.
#[derive(Parser, Debug)]
#[command(version, args_conflicts_with_subcommands = true, after_help = EXAMPLES)]
pub struct Cli {
    /// The command; `serve` if there is none.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// The arguments of `serve`.
    #[command(flatten)]
    pub serve: ServeArgs,
}

impl Cli {
    /// The log format: text for the commands other than `serve`, because a person reads their
    /// output.
    pub fn log_format(&self) -> LogFormat {
        match &self.command {
            None => self.serve.log_format,
            Some(Command::Serve(args)) => args.log_format,
            Some(Command::Publish(_) | Command::Tail(_) | Command::Token(_) | Command::Check(_)) => LogFormat::Text,
        }
    }
}

const EXAMPLES: &str = "Examples:
  livebridge                                        serve http://127.0.0.1:8000 with the embedded broker
  REDIS_URL=redis://127.0.0.1 livebridge            relay through Redis, together with other instances
  livebridge publish live 'hello'                   publish to a running instance
  tail -F app.log | livebridge publish log -        publish each line
  livebridge tail sheet:q3                          print what arrives

Every flag --some-thing can be set as LIVEBRIDGE_SOME_THING in the environment or in .env (LISTEN and REDIS_URL have
their usual names). A flag is stronger than the environment, the environment stronger than .env.";

/// The commands.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Serve (the default).
    Serve(Box<ServeArgs>),
    /// Publish a message, or each line of standard input, to a running instance.
    #[command(
        after_help = "Examples:\n  livebridge publish live 'hello'\n  livebridge publish sheet:q3 --key B4 '{\"value\":7}'\n  seq 10 | livebridge publish numbers -\n\nExit codes: 0 published, 1 refused or unreachable, 2 wrong usage"
    )]
    Publish(PublishArgs),
    /// Issue a test token, signed with the shared secret. In production, your backend issues
    /// tokens.
    #[command(
        after_help = "Examples:\n  livebridge token --subscribe 'sheet:*' --publish sheet:q3\n  livebridge token --subscribe '*' --expires 10m\n\nThe secret is read from LIVEBRIDGE_TOKEN_SECRET, like the server's."
    )]
    Token(TokenArgs),
    /// Print the messages of one or more channels of a running instance, one per line, until
    /// interrupted.
    #[command(
        after_help = "Examples:\n  livebridge tail live\n  livebridge tail --last 10 orders invoices\n\nWith several channels each line starts with the channel and a tab. Reconnects and resumes by itself."
    )]
    Tail(TailArgs),
    /// Check settings, system and Redis without changing anything. With --url, check whether a
    /// running instance is ready.
    #[command(
        after_help = "Prints one line per finding: ok, warning or error, with a suggested fix.\n\nExit codes: 0 no error, 1 an error, 2 wrong usage"
    )]
    Check(Box<CheckArgs>),
}

/// The arguments of `serve`.
#[derive(Args, Debug, Clone)]
pub struct ServeArgs {
    /// Address and port to listen on. A host name is resolved once, at start.
    #[arg(long, env = "LISTEN", default_value = "127.0.0.1:8000", value_name = "ADDRESS:PORT",
          value_parser = address_to_listen_on)]
    pub listen: SocketAddr,
    /// How to connect to Redis.
    #[command(flatten)]
    pub redis: RedisArgs,
    /// Rules file with the settings for channels [default: livebridge.toml if it exists].
    #[arg(long, env = "LIVEBRIDGE_RULES", value_name = "FILE")]
    pub rules: Option<PathBuf>,
    /// Name of this instance in logs and for clients [default: a random one].
    #[arg(long, env = "LIVEBRIDGE_INSTANCE_NAME", value_name = "NAME")]
    pub instance_name: Option<String>,
    /// Channel for requests that name none.
    #[arg(long, env = "LIVEBRIDGE_DEFAULT_CHANNEL", default_value = "live", value_name = "CHANNEL")]
    pub default_channel: ChannelName,
    /// Maximum size of a message in bytes. A larger one is answered 413, or the WebSocket is closed
    /// with 1009.
    #[arg(long, env = "LIVEBRIDGE_MAX_MESSAGE_BYTES", default_value_t = 1 << 20, value_name = "BYTES",
          value_parser = clap::value_parser!(u64).range(1..=64 << 20))]
    pub max_message_bytes: u64,
    /// Maximum number of channels in one connection or request.
    #[arg(long, env = "LIVEBRIDGE_MAX_CHANNELS", default_value_t = 100, value_name = "COUNT",
          value_parser = clap::value_parser!(u64).range(1..=10_000))]
    pub max_channels: u64,
    /// Maximum number of messages in the log of a channel: how far a slow subscriber may fall
    /// behind.
    #[arg(long, env = "LIVEBRIDGE_LOG_MESSAGES", default_value_t = 4096, value_name = "COUNT",
          value_parser = clap::value_parser!(u64).range(16..=1 << 20))]
    pub log_messages: u64,
    /// Maximum size of the log of a channel, in bytes.
    #[arg(long, env = "LIVEBRIDGE_LOG_BYTES", default_value_t = 8 << 20, value_name = "BYTES",
          value_parser = clap::value_parser!(u64).range(1024..=1 << 30))]
    pub log_bytes: u64,
    /// Log format. auto: text on a terminal, JSON elsewhere.
    #[arg(long, env = "LIVEBRIDGE_LOG_FORMAT", default_value = "auto", value_name = "FORMAT")]
    pub log_format: LogFormat,
    /// Number of threads that serve connections [default: one for each core].
    #[arg(long, env = "LIVEBRIDGE_THREADS", value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..=64))]
    pub threads: Option<u64>,
    /// Access control.
    #[command(flatten)]
    pub access: AccessArgs,
    /// Limits and the drain.
    #[command(flatten)]
    pub limits: LimitArgs,
}

/// The arguments of `publish`.
#[derive(Args, Debug)]
pub struct PublishArgs {
    /// The channel.
    pub channel: ChannelName,
    /// The message; `-`, or nothing, for each line of standard input.
    pub message: Option<String>,
    /// On a keyed channel: the key whose new value this message is.
    #[arg(long)]
    pub key: Option<String>,
    /// On a keyed channel: remove the key.
    #[arg(long, requires = "key")]
    pub remove: bool,
    /// A publish key or a token.
    #[arg(long, env = "LIVEBRIDGE_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    pub token: Option<Secret>,
    /// A running instance.
    #[arg(long, env = "LIVEBRIDGE_URL", default_value = "http://127.0.0.1:8000", value_name = "URL")]
    pub url: String,
}

/// The arguments of `token`.
#[derive(Args, Debug)]
pub struct TokenArgs {
    /// Pattern of the channels that the token may subscribe to. May repeat.
    #[arg(long, value_name = "PATTERN", required_unless_present = "publish")]
    pub subscribe: Vec<String>,
    /// Pattern of the channels that the token may publish to. May repeat.
    #[arg(long, value_name = "PATTERN")]
    pub publish: Vec<String>,
    /// Lifetime of the token, such as 90s, 10m or 1h.
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = humantime::parse_duration)]
    pub expires: Duration,
    /// Subject (`sub`).
    #[arg(long, value_name = "NAME")]
    pub subject: Option<String>,
    /// Audience (`aud`), as configured on the server.
    #[arg(long, env = "LIVEBRIDGE_TOKEN_AUDIENCE", value_name = "AUDIENCE")]
    pub audience: Option<String>,
    /// Issuer (`iss`), as configured on the server.
    #[arg(long, env = "LIVEBRIDGE_TOKEN_ISSUER", value_name = "ISSUER")]
    pub issuer: Option<String>,
    /// Shared secret. If several are given, separated by commas, the first is used.
    #[arg(
        long,
        env = "LIVEBRIDGE_TOKEN_SECRET",
        value_name = "SECRET",
        value_delimiter = ',',
        required = true,
        hide_env_values = true
    )]
    pub token_secret: Vec<Secret>,
}

/// The arguments of `tail`.
#[derive(Args, Debug)]
pub struct TailArgs {
    /// The channels.
    #[arg(required = true)]
    pub channels: Vec<ChannelName>,
    /// Start with the last COUNT messages of each channel.
    #[arg(long, value_name = "COUNT")]
    pub last: Option<usize>,
    /// A token.
    #[arg(long, env = "LIVEBRIDGE_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    pub token: Option<Secret>,
    /// A running instance.
    #[arg(long, env = "LIVEBRIDGE_URL", default_value = "http://127.0.0.1:8000", value_name = "URL")]
    pub url: String,
}

impl TokenArgs {
    /// The claims of the token.
    pub fn spec(&self) -> TokenSpec {
        TokenSpec {
            livebridge: Patterns { subscribe: self.subscribe.clone(), publish: self.publish.clone() },
            exp: issue::expiry(self.expires),
            sub: self.subject.clone(),
            aud: self.audience.clone().filter(|audience| !audience.is_empty()),
            iss: self.issuer.clone().filter(|issuer| !issuer.is_empty()),
        }
    }
}

/// The arguments of `check`.
#[derive(Args, Debug)]
pub struct CheckArgs {
    /// Ask a running instance instead whether it is ready.
    #[arg(long, value_name = "URL")]
    pub url: Option<String>,
    /// The configuration to check.
    #[command(flatten)]
    pub serve: ServeArgs,
}

/// The validated settings of the server.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The address to listen on.
    pub listen: SocketAddr,
    /// How to reach Redis; `None` for the embedded broker.
    pub redis: Option<RedisOptions>,
    /// The rules of channels.
    pub rules: Arc<Rules>,
    /// The access configuration.
    pub access: Arc<Access>,
    /// The name of the instance.
    pub instance: String,
    /// The channel of requests that do not name one.
    pub default_channel: ChannelName,
    /// Limits on requests and messages.
    pub limits: Limits,
    /// The bounds of the log of each channel.
    pub log: LogBounds,
    /// Maximum size of all logs together, in bytes.
    pub log_bytes_total: usize,
    /// Limits on connections.
    pub admission: admission::ConnectionLimits,
    /// Maximum size of all incomplete bodies and WebSocket messages together, in bytes.
    pub incoming_bytes: usize,
    /// Maximum size of all pages of history and partly written frames that clients have yet to
    /// receive, in bytes.
    pub outgoing_bytes: usize,
    /// The times of a drain.
    pub drain: Drain,
    /// The number of threads that serve connections.
    pub threads: usize,
}

/// Why the configuration is not valid.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// An error in the rules file.
    #[error(transparent)]
    Rules(#[from] RulesError),
    /// An error in the access settings.
    #[error(transparent)]
    Access(#[from] AccessSettingsError),
    /// An error in the settings for Redis.
    #[error(transparent)]
    Redis(#[from] RedisSettingsError),
}

impl Settings {
    /// Validates the arguments and reads the files that they name.
    ///
    /// # Errors
    /// [`SettingsError`] for the first invalid setting.
    pub fn resolve(args: ServeArgs) -> Result<Self, SettingsError> {
        let rules = match &args.rules {
            Some(path) => Rules::load(path)?,
            None if Path::new(DEFAULT_RULES).exists() => Rules::load(Path::new(DEFAULT_RULES))?,
            None => Rules::default(),
        };
        let rules = Arc::new(rules);
        let access = args.access.resolve(args.listen, &rules)?;
        let message_bytes = args.max_message_bytes as usize;
        let cores = std::thread::available_parallelism().map_or(1, usize::from).min(64);
        Ok(Self {
            listen: args.listen,
            redis: args.redis.resolve()?,
            rules,
            access,
            instance: args.instance_name.unwrap_or_else(|| format!("lb-{:04x}", rand::random::<u16>())),
            default_channel: args.default_channel,
            limits: Limits {
                message_bytes,
                channels: args.max_channels as usize,
                batch_messages: 10_000,
                batch_bytes: (8 << 20).max(2 * message_bytes),
                rates: args.limits.rates(),
                request_time: Duration::from_secs(args.limits.request_seconds.into()),
                heartbeat_seconds: args.limits.heartbeat_seconds,
                compression: args.limits.compression,
            },
            log: LogBounds { entries: args.log_messages as usize, bytes: args.log_bytes as usize },
            log_bytes_total: args.limits.log_bytes_total as usize,
            admission: args.limits.bounds(),
            incoming_bytes: args.limits.incoming_bytes_total as usize,
            outgoing_bytes: args.limits.outgoing_bytes_total as usize,
            drain: args.limits.drain(),
            threads: args.threads.map_or(cores, |threads| threads as usize),
        })
    }
}

/// Resolves `ADDRESS:PORT` or `NAME:PORT`. Prefers a name's first IPv4 address, because every
/// machine has IPv4, and otherwise takes the first address.
fn address_to_listen_on(text: &str) -> Result<SocketAddr, String> {
    const FORMS: &str =
        "127.0.0.1:8000 (this machine alone), 0.0.0.0:8000 or [::]:8000 (every interface), localhost:8000";
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let form = |problem: &str| format!("{problem}; examples: {FORMS}");
    let (host, port) = text.rsplit_once(':').ok_or_else(|| form("the port or the address is missing"))?;
    if host.is_empty() {
        return Err(form("the address before the port is missing"));
    }
    let port: u16 = port.parse().map_err(|_| form("the port must be a number from 0 to 65535"))?;
    if host.contains(':') {
        return Err(form("write an IPv6 address in brackets"));
    }
    let addresses: Vec<_> = (host, port)
        .to_socket_addrs()
        .map_err(|error| form(&format!("the name can't be resolved ({error})")))?
        .collect();
    let first = addresses.iter().find(|address| address.is_ipv4()).or(addresses.first());
    first.copied().ok_or_else(|| form("the name has no address"))
}

/// Parses `.env` (if it exists), arguments and environment. Exits the process for an unknown or
/// invalid argument, as clap does.
///
/// # Errors
/// If `.env` cannot be read or parsed.
pub fn parse() -> Result<Cli, dotenvy::Error> {
    match dotenvy::dotenv() {
        Ok(_) => {}
        Err(error) if error.not_found() => {}
        Err(error) => return Err(error),
    }
    Ok(Cli::parse())
}
