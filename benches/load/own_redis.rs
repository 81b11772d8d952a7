//! A Redis for `--redis own`: on a free port, without persistence, stopped at the end of the run.

use std::process::{Child, Command, Stdio};

use crate::Outcome;
use crate::servers::{await_accept, free_port};

/// A Redis process that is stopped when this is dropped.
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

/// The `HOST:PORT` of a Redis URL.
pub(crate) fn redis_address(url: &str) -> String {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.split('/').next().unwrap_or_default().to_owned()
}
