//! Starts and stops the servers. Each server that was started is stopped again, even if the load
//! program is killed.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::NamedTempFile;

use crate::Outcome;
use crate::dialect::Dialect;
use crate::process;
use crate::publishers::Path;

/// Time limit for the first answer of a server.
const START_LIMIT: Duration = Duration::from_secs(20);

/// The servers of scripts/alternatives.
const ALTERNATIVES: [&str; 5] = ["nchan", "ws", "socketio", "sockudo", "centrifugo"];

/// A server, by its name on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Livebridge,
    Naive,
    /// Frames per write, and the number of writer threads.
    Bare(usize, usize),
    /// Started by scripts/alternatives.
    Alternative(String),
    /// A server that is already running.
    Running,
}

/// The settings with which all servers start.
#[derive(Clone, Default)]
pub(crate) struct Setting {
    pub(crate) livebridge: Option<PathBuf>,
    pub(crate) environment: Vec<(String, String)>,
    pub(crate) redis: Option<String>,
    pub(crate) instances: usize,
    /// How many messages of history livebridge keeps for a channel; `None` for the default.
    pub(crate) history: Option<usize>,
    pub(crate) running: Running,
}

/// The address of a server that is already running.
#[derive(Clone, Default)]
pub(crate) struct Running {
    pub(crate) url: String,
    pub(crate) publish_url: String,
    pub(crate) pids: Vec<u32>,
    pub(crate) dialect: Option<Dialect>,
}

/// A server that answers requests.
pub(crate) struct Server {
    pub(crate) kind: Kind,
    pub(crate) ports: Vec<u16>,
    /// The path for subscribing; `{channel}` is replaced.
    pub(crate) path: String,
    pub(crate) dialect: Dialect,
    pub(crate) publish_path: String,
    pub(crate) publish_port: u16,
    children: Vec<Child>,
    pub(crate) pids: Vec<u32>,
    /// The rules file of a server whose history is not the default.
    rules: Option<NamedTempFile>,
}

impl Kind {
    pub(crate) fn parse(name: &str) -> Outcome<Kind> {
        let mut parts = name.split(':');
        let kind = parts.next().unwrap_or_default();
        let numbers = parts.map(str::parse).collect::<Result<Vec<usize>, _>>()?;
        Ok(match kind {
            "livebridge" => Kind::Livebridge,
            "naive" => Kind::Naive,
            "running" => Kind::Running,
            "bare" => {
                let number = |index: usize, default| numbers.get(index).copied().unwrap_or(default).max(1);
                Kind::Bare(number(0, 1), number(1, process::cores()))
            }
            kind if ALTERNATIVES.contains(&kind) => Kind::Alternative(kind.to_owned()),
            _ => {
                let names = ALTERNATIVES.join(", ");
                let known = format!("livebridge, naive, bare[:FRAMES[:WRITERS]], {names}, running");
                return Err(format!("no server is called {name}: {known}").into());
            }
        })
    }
}

impl Setting {
    /// Writes a rules file with the configured history for all channels.
    fn rules(&self) -> Outcome<Option<NamedTempFile>> {
        let Some(history) = self.history else { return Ok(None) };
        let mut file = NamedTempFile::new()?;
        let bounds = match history {
            0 => "false".to_owned(),
            messages => format!(r#"{{ messages = {messages}, age = "5m" }}"#),
        };
        writeln!(file, "[[channel]]\nmatch = \"*\"\nhistory = {bounds}")?;
        Ok(Some(file))
    }
}

impl Server {
    /// Starts the server, or finds the running one, and waits until it answers. `events` selects
    /// SSE.
    pub(crate) fn start(kind: &Kind, setting: &Setting, events: bool) -> Outcome<Server> {
        let mut server = Server {
            kind: kind.clone(),
            ports: Vec::new(),
            path: if events { "/events?channel={channel}" } else { "/ws?channel={channel}" }.to_owned(),
            dialect: if events { Dialect::Events } else { Dialect::WebSocket },
            publish_path: "/publish?channel={channel}".to_owned(),
            publish_port: 0,
            children: Vec::new(),
            pids: Vec::new(),
            rules: setting.rules()?,
        };
        match kind {
            Kind::Running => server.find(&setting.running)?,
            Kind::Alternative(name) => server.start_alternative(name, setting.redis.as_deref())?,
            Kind::Livebridge | Kind::Naive | Kind::Bare(..) => {
                if setting.instances > 1 && (setting.redis.is_none() || matches!(kind, Kind::Bare(..))) {
                    return Err("several instances need --redis, and the bare server cannot be several".into());
                }
                for _ in 0..setting.instances {
                    server.spawn(setting)?;
                }
                server.publish_port = server.ports[0];
            }
        }
        if *kind == Kind::Livebridge {
            if setting.running.dialect == Some(Dialect::Centrifuge) {
                server.speak(Dialect::Centrifuge, "/connection/websocket");
            }
            server.ports.iter().try_for_each(|port| await_answer(*port, "/readyz"))?;
        }
        Ok(server)
    }

    fn spawn(&mut self, setting: &Setting) -> Outcome<()> {
        let port = free_port()?;
        let myself = std::env::current_exe()?;
        let redis = setting.redis.clone().unwrap_or_default();
        // The kernel kills the server when this process ends for any reason, so a killed run leaves
        // no server behind.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]);
        match self.kind {
            Kind::Naive => command.arg(myself).args(["--serve-naive", &port.to_string(), &redis]),
            Kind::Bare(frames, writers) => {
                command.arg(myself).args(["--serve-bare", &port.to_string(), &frames.to_string(), &writers.to_string()])
            }
            _ => {
                let program = setting
                    .livebridge
                    .clone()
                    .or_else(sibling)
                    .ok_or("no livebridge beside this program: name it with --livebridge")?;
                command
                    .arg(std::path::absolute(program)?)
                    .env("LISTEN", format!("127.0.0.1:{port}"))
                    .env_remove("REDIS_URL")
                    .env("LIVEBRIDGE_LOG", "warn");
                if !redis.is_empty() {
                    command.env("REDIS_URL", &redis);
                }
                command.envs(self.rules.as_ref().map(|rules| ("LIVEBRIDGE_RULES", rules.path())));
                command.envs(setting.environment.iter().cloned())
            }
        };
        // Another directory, so that a .env or livebridge.toml in the current one has no effect.
        command.current_dir(std::env::temp_dir()).stdin(Stdio::null()).stdout(Stdio::null());
        let child = command.spawn()?;
        self.pids.push(child.id());
        self.children.push(child);
        self.ports.push(port);
        await_accept(port)
    }

    /// The path and the addresses for publishers. The server needs a connection to each address.
    pub(crate) fn publish_path(&self, batch: bool) -> (Path, Vec<String>) {
        let path = match self.kind {
            Kind::Bare(..) => Path::Orders,
            _ if batch => Path::Batch(self.publish_path.split('?').next().unwrap_or_default().to_owned()),
            _ => self.post_path(),
        };
        let ports = if self.ports.len() > 1 { self.ports.clone() } else { vec![self.publish_port] };
        (path, ports.iter().map(|port| format!("127.0.0.1:{port}")).collect())
    }

    /// The newest offset of the first channel, from livebridge's history.
    pub(crate) fn newest_offset(&self) -> Outcome<f64> {
        let answer = get(self.ports[0], "/channels/load:0/messages?limit=1")?;
        let (_, body) = answer.split_once("\r\n\r\n").ok_or("no answer about the history")?;
        let body: serde_json::Value = serde_json::from_str(body)?;
        body["offset"].as_f64().ok_or_else(|| format!("no offset in {body}").into())
    }

    /// The value of a metric of livebridge, summed over all instances.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        // A metric with labels has a line for each combination.
        let value = |line: &str| {
            let rest = line.strip_prefix(name).filter(|rest| rest.starts_with([' ', '{']))?;
            rest.rsplit(' ').next()?.parse::<f64>().ok()
        };
        let value = |text: String| text.lines().filter_map(value).sum::<f64>();
        self.ports.iter().filter_map(|port| get(*port, "/metrics").ok()).map(value).sum()
    }

    pub(crate) fn cpu_seconds(&self) -> f64 {
        process::cpu_seconds(&self.pids)
    }

    pub(crate) fn pss_bytes(&self) -> f64 {
        process::pss_bytes(&self.pids)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        for child in &mut self.children {
            child.kill().ok();
            child.wait().ok();
        }
        if let Kind::Alternative(name) = &self.kind {
            Command::new("scripts/alternatives").args(["stop", name]).status().ok();
        }
    }
}

/// The livebridge beside this program; cargo builds benches in target/release/deps.
fn sibling() -> Option<PathBuf> {
    let myself = std::env::current_exe().ok()?;
    myself.ancestors().skip(1).take(2).map(|folder| folder.join("livebridge")).find(|path| path.is_file())
}

pub(crate) fn free_port() -> Outcome<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

pub(crate) fn await_accept(port: u16) -> Outcome<()> {
    let deadline = Instant::now() + START_LIMIT;
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        if Instant::now() > deadline {
            return Err(format!("nothing listens on port {port}").into());
        }
        std::thread::park_timeout(Duration::from_millis(10));
    }
    Ok(())
}

fn await_answer(port: u16, path: &str) -> Outcome<()> {
    let deadline = Instant::now() + START_LIMIT;
    loop {
        let answer = get(port, path)?;
        if answer.get(9..12) == Some("200") {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(format!("{path} does not answer 200: {answer}").into());
        }
        std::thread::park_timeout(Duration::from_millis(50));
    }
}

/// The whole response to a `GET`, with head and body.
pub(crate) fn get(port: u16, path: &str) -> Outcome<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok();
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
