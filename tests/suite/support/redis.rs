//! A redis-server of a test's own.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use super::{soon, until};

pub struct Redis {
    pub port: u16,
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

    pub async fn start_with(arguments: &[&str]) -> Self {
        let arguments: Vec<_> = arguments.iter().map(|&argument| argument.to_owned()).collect();
        // Between choosing a free port and using it, another test may take it.
        loop {
            let folder = tempfile::tempdir().unwrap();
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let child = spawn(port, &folder, &arguments);
            let mut redis = Self { port, folder, arguments: arguments.clone(), child };
            if redis.answers_or_exits().await {
                return redis;
            }
        }
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/", self.port)
    }

    /// What redis-cli answers.
    pub fn cli(&self, arguments: &[&str]) -> String {
        let output = Command::new("redis-cli").arg("-p").arg(self.port.to_string()).args(arguments).output().unwrap();
        String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
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

fn spawn(port: u16, folder: &TempDir, arguments: &[String]) -> Child {
    Command::new("redis-server")
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--enable-debug-command", "local"])
        .arg("--dir")
        .arg(folder.path())
        .args(arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("redis-server is installed (./scripts/test does it)")
}
