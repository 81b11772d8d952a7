//! A redis-server of a test's own.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;

use tempfile::TempDir;

use super::certificates::Certificates;
use super::instance::Options;
use super::resp::Client;
use super::{soon, until};

/// How often Redis executed a command, by itself or within a function, and how long that took in microseconds.
#[derive(Debug, Clone, Copy, Default)]
pub struct Usage {
    pub calls: u64,
    pub usec: u64,
}

pub struct Redis {
    pub port: u16,
    /// Where it speaks TLS, if it does.
    pub tls_port: u16,
    pub certificates: Option<Certificates>,
    folder: TempDir,
    arguments: Vec<String>,
    child: Child,
}

impl Redis {
    /// A server without persistence.
    pub async fn start() -> Self {
        Self::start_with(&["--save", ""]).await
    }

    /// A server that keeps its data across restarts.
    pub async fn persistent() -> Self {
        Self::start_with(&["--save", "", "--appendonly", "yes", "--appendfsync", "always"]).await
    }

    /// A Sentinel, which watches nothing yet.
    pub async fn sentinel() -> Self {
        Self::start_with(&["--sentinel"]).await
    }

    pub async fn start_with(arguments: &[&str]) -> Self {
        let arguments: Vec<_> = arguments.iter().map(|&argument| argument.to_owned()).collect();
        // Between choosing a free port and using it, another test may take it.
        for _ in 0..10 {
            let folder = tempfile::tempdir().unwrap();
            let [port, tls_port] = free_ports();
            let number = |argument: &String| argument.replace("TLS_PORT", &tls_port.to_string());
            let arguments: Vec<_> = arguments.iter().map(number).collect();
            let child = spawn(port, &folder, &arguments);
            let mut redis = Self { port, tls_port, certificates: None, folder, arguments, child };
            if redis.answers_or_exits().await {
                return redis;
            }
        }
        panic!("{} ends at once with {arguments:?}", program());
    }

    /// A server that speaks TLS as well, shows the certificate `server`, and asks clients for theirs.
    pub async fn with_tls(certificates: Certificates, arguments: &[&str]) -> Self {
        Self::with_tls_for(certificates, "server", arguments).await
    }

    /// The same, with a certificate of another name.
    pub async fn with_tls_for(certificates: Certificates, name: &str, arguments: &[&str]) -> Self {
        let [pem, key, ca] =
            [format!("{name}.pem"), format!("{name}.key"), "ca.pem".into()].map(|file| certificates.path(&file));
        let mut all = vec!["--tls-port", "TLS_PORT", "--tls-cert-file", &pem, "--tls-key-file", &key];
        all.extend(["--tls-ca-cert-file", &ca, "--save", ""]);
        all.extend(arguments);
        let mut redis = Self::start_with(&all).await;
        redis.certificates = Some(certificates);
        redis
    }

    pub fn tls_url(&self) -> String {
        format!("rediss://127.0.0.1:{}/", self.tls_port)
    }

    /// Options with which an instance reaches it by TLS.
    pub fn tls_options(&self, options: Options) -> Options {
        let path = |file: &str| self.certificates.as_ref().unwrap().path(file);
        let options = Options { redis_url: Some(self.tls_url()), ..options };
        options
            .env("LIVEBRIDGE_REDIS_CA", &path("ca.pem"))
            .env("LIVEBRIDGE_REDIS_CERT", &path("client.pem"))
            .env("LIVEBRIDGE_REDIS_KEY", &path("client.key"))
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/", self.port)
    }

    /// What redis-cli answers.
    pub fn cli(&self, arguments: &[&str]) -> String {
        let output = Command::new("redis-cli").arg("-p").arg(self.port.to_string()).args(arguments).output().unwrap();
        String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
    }

    /// A connection that takes any bytes, unlike [`Self::cli`].
    pub fn client(&self) -> Client {
        Client::connect(self.port)
    }

    /// Counts anew what [`Self::usage`] and `total_*` of [`Self::info`] tell.
    pub fn reset_counts(&self) {
        assert_eq!(self.cli(&["CONFIG", "RESETSTAT"]), "OK");
    }

    /// A number of `INFO`.
    pub fn info(&self, name: &str) -> u64 {
        let text = self.cli(&["INFO", "everything"]);
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        value.and_then(|value| value.trim().parse().ok()).unwrap_or_else(|| panic!("no number {name}: {text}"))
    }

    /// What each command was used for since the last [`Self::reset_counts`].
    pub fn usage(&self) -> BTreeMap<String, Usage> {
        let number = |fields: &str, name: &str| {
            let field = fields.split(',').find_map(|field| field.strip_prefix(name)?.strip_prefix('='));
            field.and_then(|number| number.parse().ok()).unwrap_or(0)
        };
        let text = self.cli(&["INFO", "commandstats"]);
        let lines = text.lines().filter_map(|line| line.strip_prefix("cmdstat_")?.split_once(':'));
        let usage = |fields: &str| Usage { calls: number(fields, "calls"), usec: number(fields, "usec") };
        lines.map(|(name, fields)| (name.to_owned(), usage(fields))).collect()
    }

    /// How often Redis executed a command since the last [`Self::reset_counts`].
    pub fn calls(&self, command: &str) -> u64 {
        self.usage().get(command).copied().unwrap_or_default().calls
    }

    /// How many clients listen to a channel in Redis.
    pub fn listeners(&self, channel: &str) -> usize {
        self.cli(&["PUBSUB", "NUMSUB", channel]).lines().last().unwrap_or("0").parse().unwrap_or(0)
    }

    pub fn signal(&self, signal: &str) {
        super::instance::signal(self.child.id(), signal);
    }

    /// Ends the server, with its data on disk if it is persistent.
    pub fn stop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Whether it was stopped.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Starts the server again, on the same port and folder.
    pub async fn start_again(&mut self) {
        self.child = spawn(self.port, &self.folder, &self.arguments);
        assert!(self.answers_or_exits().await, "redis-server did not come back");
    }

    async fn answers_or_exits(&mut self) -> bool {
        soon("redis-server answers", async {
            loop {
                if self.child.try_wait().unwrap().is_some() {
                    return false;
                }
                if self.cli(&["PING"]) == "PONG" {
                    return true;
                }
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        })
        .await
    }

    /// Waits until so many clients listen to a channel in Redis.
    pub async fn until_listeners(&self, channel: &str, count: usize) {
        until("listeners in Redis", || async { self.listeners(channel) == count }).await;
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.stop();
    }
}

fn free_ports() -> [u16; 2] {
    let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().port())
}

fn spawn(port: u16, folder: &TempDir, arguments: &[String]) -> Child {
    // A Sentinel keeps what it knows in its configuration file.
    let configuration = folder.path().join("redis.conf");
    std::fs::OpenOptions::new().create(true).append(true).open(&configuration).unwrap();
    Command::new(program())
        .arg(configuration)
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
        .args(DEBUG.iter().filter(|_| *KNOWS_DEBUG))
        .arg("--dir")
        .arg(folder.path())
        .args(arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("redis-server is installed (./scripts/test does it)")
}

/// The server to test against: that of the system, or the one that `scripts/redis-versions` names.
#[expect(clippy::disallowed_methods, reason = "another server is the script's business, not the program's")]
fn program() -> String {
    std::env::var("LIVEBRIDGE_REDIS_SERVER").unwrap_or_else(|_| "redis-server".into())
}

/// What allows the tests to have a server wait; before version 7 it was allowed anyway, and not a setting.
const DEBUG: [&str; 2] = ["--enable-debug-command", "local"];
static KNOWS_DEBUG: LazyLock<bool> = LazyLock::new(|| {
    let output = Command::new(program()).arg("--version").output().expect("a program that tells its version");
    !String::from_utf8_lossy(&output.stdout).contains(" v=6.")
});
