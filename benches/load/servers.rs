//! Starts and stops what is measured. Whatever is started here is ended here, also when the load program is killed.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::Outcome;
use crate::dialect::Dialect;
use crate::process;
use crate::publishers::Path;

/// The longest that a server may take to answer.
const START_LIMIT: Duration = Duration::from_secs(20);

/// A server by the name it has on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Livebridge,
    Naive,
    /// Frames a write, writer threads.
    Bare(usize, usize),
    /// Started by scripts/alternatives.
    Alternative(String),
    /// Already running.
    Running,
}

/// How servers are started; the same for all of them.
#[derive(Clone, Default)]
pub(crate) struct Setting {
    pub(crate) livebridge: Option<PathBuf>,
    pub(crate) environment: Vec<(String, String)>,
    pub(crate) redis: Option<String>,
    pub(crate) instances: usize,
    pub(crate) running: Running,
}

/// Where a server that was started by someone else is.
#[derive(Clone, Default)]
pub(crate) struct Running {
    pub(crate) url: String,
    pub(crate) publish_url: String,
    pub(crate) pids: Vec<u32>,
    pub(crate) dialect: Option<Dialect>,
}

/// A server that answers.
pub(crate) struct Server {
    pub(crate) kind: Kind,
    pub(crate) ports: Vec<u16>,
    /// Where to subscribe; `{channel}` is replaced.
    pub(crate) path: String,
    pub(crate) dialect: Dialect,
    publish_path: String,
    publish_port: u16,
    children: Vec<Child>,
    pids: Vec<u32>,
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
                Kind::Bare(numbers.first().copied().unwrap_or(1).max(1), numbers.get(1).copied().unwrap_or(1).max(1))
            }
            "nchan" | "ws" | "socketio" => Kind::Alternative(kind.to_owned()),
            _ => return Err(format!(
                "no server is called {name}: livebridge, naive, bare[:FRAMES[:WRITERS]], nchan, ws, socketio, running"
            )
            .into()),
        })
    }
}

impl Server {
    /// Starts the server, or finds the running one, and waits until it answers. `events` asks for SSE.
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
            server.ports.iter().try_for_each(|port| await_answer(*port, "/readyz"))?;
        }
        Ok(server)
    }

    fn spawn(&mut self, setting: &Setting) -> Outcome<()> {
        let port = free_port()?;
        let myself = std::env::current_exe()?;
        let redis = setting.redis.clone().unwrap_or_default();
        // The kernel ends the server when we end, whatever way: nothing is left over from a run that was killed.
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
                command.envs(setting.environment.iter().cloned())
            }
        };
        // Another directory, so that no .env or livebridge.toml of the place we were started in counts.
        command.current_dir(std::env::temp_dir()).stdin(Stdio::null()).stdout(Stdio::null());
        let child = command.spawn()?;
        self.pids.push(child.id());
        self.children.push(child);
        self.ports.push(port);
        await_accept(port)
    }

    fn start_alternative(&mut self, name: &str, redis: Option<&str>) -> Outcome<()> {
        let port = free_port()?;
        let output = Command::new("scripts/alternatives")
            .args(["start", name, &port.to_string()])
            .args(redis)
            .stderr(Stdio::inherit())
            .output()?;
        if !output.status.success() {
            return Err(format!("scripts/alternatives start {name} failed").into());
        }
        self.pids =
            String::from_utf8_lossy(&output.stdout).split_whitespace().filter_map(|pid| pid.parse().ok()).collect();
        self.ports = vec![port];
        self.publish_port = port;
        if name == "socketio" {
            self.path = "/socket.io/?EIO=4&transport=websocket&channel={channel}".to_owned();
            self.dialect = Dialect::SocketIo;
        }
        await_accept(port)
    }

    fn find(&mut self, running: &Running) -> Outcome<()> {
        let (port, path) = split_url(&running.url)?;
        self.ports = vec![port];
        self.path = path;
        self.dialect = running.dialect.unwrap_or(self.dialect);
        (self.publish_port, self.publish_path) = split_url(&running.publish_url)?;
        self.pids.clone_from(&running.pids);
        Ok(())
    }

    /// Where publishers connect, and how many connections the server wants at least.
    pub(crate) fn publish_path(&self, batch: bool) -> (Path, Vec<String>) {
        let path = self.publish_path.clone();
        let path = match self.kind {
            Kind::Bare(..) => Path::Orders,
            _ if batch => Path::Batch(path.split('?').next().unwrap_or_default().to_owned()),
            _ => Path::Post(path),
        };
        let ports = if self.ports.len() > 1 { self.ports.clone() } else { vec![self.publish_port] };
        (path, ports.iter().map(|port| format!("127.0.0.1:{port}")).collect())
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

/// A Redis of our own, without persistence, for `--redis own`.
pub(crate) struct Redis {
    child: Child,
    pub(crate) url: String,
}

impl Redis {
    pub(crate) fn start() -> Outcome<Redis> {
        let port = free_port()?;
        let child = Command::new("setpriv")
            .args([
                "--pdeathsig",
                "KILL",
                "--",
                "redis-server",
                "--bind",
                "127.0.0.1",
                "--save",
                "",
                "--appendonly",
                "no",
                "--port",
            ])
            .arg(port.to_string())
            .current_dir(std::env::temp_dir())
            .stdout(Stdio::null())
            .spawn()?;
        let redis = Redis { child, url: format!("redis://127.0.0.1:{port}") };
        await_accept(port)?;
        Ok(redis)
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// livebridge beside this program: benches are built into target/release/deps.
fn sibling() -> Option<PathBuf> {
    let myself = std::env::current_exe().ok()?;
    myself.ancestors().skip(1).take(2).map(|folder| folder.join("livebridge")).find(|path| path.is_file())
}

fn free_port() -> Outcome<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn await_accept(port: u16) -> Outcome<()> {
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
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).ok();
        if answer.get(9..12) == Some(b"200") {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(format!("{path} does not answer 200: {}", String::from_utf8_lossy(&answer)).into());
        }
        std::thread::park_timeout(Duration::from_millis(50));
    }
}

/// The port and the rest of `ws://127.0.0.1:PORT/PATH`; nothing but this machine is ever loaded.
fn split_url(url: &str) -> Outcome<(u16, String)> {
    let rest = url.split_once("://").map(|(_, rest)| rest).ok_or_else(|| format!("{url} is not a URL"))?;
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let (name, port) = host.rsplit_once(':').ok_or_else(|| format!("{url} names no port"))?;
    if !matches!(name, "127.0.0.1" | "localhost") {
        return Err("only servers on 127.0.0.1 are loaded".into());
    }
    Ok((port.parse()?, format!("/{path}")))
}
