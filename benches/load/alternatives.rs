//! Servers that this program does not start itself: those of scripts/alternatives, and servers that
//! are already running. They differ in where to subscribe, where to publish, and in the dialect.

use std::process::{Command, Stdio};

use crate::Outcome;
use crate::dialect::Dialect;
use crate::publishers::Path;
use crate::pusher;
use crate::servers::{Kind, Running, Server, await_accept, free_port};

impl Server {
    pub(crate) fn start_alternative(&mut self, name: &str, redis: Option<&str>) -> Outcome<()> {
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
        match name {
            "socketio" => self.speak(Dialect::SocketIo, "/socket.io/?EIO=4&transport=websocket&channel={channel}"),
            "sockudo" => self.speak(Dialect::Pusher, pusher::SUBSCRIBE_PATH),
            "centrifugo" => self.speak(Dialect::Centrifuge, "/connection/websocket"),
            _ => {}
        }
        await_accept(port)
    }

    pub(crate) fn speak(&mut self, dialect: Dialect, path: &str) {
        self.dialect = dialect;
        self.path = path.to_owned();
    }

    pub(crate) fn find(&mut self, running: &Running) -> Outcome<()> {
        let (port, path) = split_url(&running.url)?;
        self.ports = vec![port];
        self.path = path;
        self.dialect = running.dialect.unwrap_or(self.dialect);
        (self.publish_port, self.publish_path) = split_url(&running.publish_url)?;
        self.pids.clone_from(&running.pids);
        Ok(())
    }

    /// The path to post a message to.
    pub(crate) fn post_path(&self) -> Path {
        match &self.kind {
            Kind::Alternative(name) if name == "sockudo" => Path::Pusher,
            Kind::Alternative(name) if name == "centrifugo" => Path::Centrifugo,
            Kind::Running if self.dialect == Dialect::Pusher => Path::Pusher,
            _ => Path::Post(self.publish_path.clone()),
        }
    }
}

/// The port and the rest of `ws://127.0.0.1:PORT/PATH`. Other hosts are refused, so that only this
/// machine is ever loaded.
fn split_url(url: &str) -> Outcome<(u16, String)> {
    let rest = url.split_once("://").map(|(_, rest)| rest).ok_or_else(|| format!("{url} is not a URL"))?;
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let (name, port) = host.rsplit_once(':').ok_or_else(|| format!("{url} names no port"))?;
    if !matches!(name, "127.0.0.1" | "localhost") {
        return Err("only servers on 127.0.0.1 are loaded".into());
    }
    Ok((port.parse()?, format!("/{path}")))
}
