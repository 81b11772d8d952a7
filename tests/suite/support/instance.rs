//! A running livebridge.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use reqwest::StatusCode;
use serde_json::Value;
use tempfile::TempDir;

use super::centrifuge_client::Form;
use super::redis::Redis;
use super::sse::Events;
use super::ws::Socket;
use super::{soon, until};

pub const BINARY: &str = env!("CARGO_BIN_EXE_livebridge");

pub struct Instance {
    pub address: String,
    /// The form in which its clients of the Centrifuge protocol speak.
    pub form: Form,
    child: Child,
    log: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
    /// Where it was started: no `.env` or rules file of the developer's is read.
    _folder: TempDir,
}

/// How to start an instance.
#[derive(Default, Clone)]
pub struct Options {
    pub redis_url: Option<String>,
    pub rules: Option<String>,
    pub flags: Vec<String>,
    /// `127.0.0.1:0` where it is left out.
    pub listen: Option<String>,
    /// Its limit of descriptors.
    pub descriptors: Option<u32>,
    pub environment: Vec<(String, String)>,
    /// Another build of the program.
    pub binary: Option<String>,
    /// The words before the program that run it elsewhere, such as on a host of its own.
    pub within: Vec<String>,
    /// The form in which clients of the Centrifuge protocol speak.
    pub form: Form,
}

impl Options {
    pub fn redis(redis: &Redis) -> Self {
        Self { redis_url: Some(redis.url()), ..Self::default() }
    }

    pub fn rules(mut self, rules: &str) -> Self {
        self.rules = Some(rules.to_owned());
        self
    }

    pub fn flag(mut self, flag: &str) -> Self {
        self.flags.extend(flag.split(' ').map(str::to_owned));
        self
    }

    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn listen(mut self, address: &str) -> Self {
        self.listen = Some(address.to_owned());
        self
    }

    pub fn form(mut self, form: Form) -> Self {
        self.form = form;
        self
    }

    pub async fn start(self) -> Instance {
        let instance = self.start_unready();
        instance.until_ready(true).await;
        instance
    }

    /// Starts an instance without waiting for its broker.
    pub fn start_unready(self) -> Instance {
        let folder = tempfile::tempdir().unwrap();
        let binary = self.binary.as_deref().unwrap_or(BINARY);
        let mut command = match self.descriptors {
            None => {
                let words: Vec<_> = self.within.iter().map(String::as_str).chain([binary]).collect();
                let mut command = Command::new(words[0]);
                command.args(&words[1..]);
                in_folder(command, folder.path())
            }
            Some(most) => {
                let mut shell = in_folder(Command::new("sh"), folder.path());
                shell.args(["-c", &format!("ulimit -n {most} && exec \"$0\" \"$@\""), binary]);
                shell
            }
        };
        command.envs(self.environment.clone());
        command.args(["--listen", self.listen.as_deref().unwrap_or("127.0.0.1:0")]);
        if let Some(url) = &self.redis_url {
            command.args(["--redis-url", url]);
        }
        if let Some(rules) = &self.rules {
            std::fs::write(folder.path().join("livebridge.toml"), rules).unwrap();
        }
        let mut child = command.args(&self.flags).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let mut line = String::new();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        stdout.read_line(&mut line).unwrap();
        let Some(address) = line.split("http://").nth(1).and_then(|rest| rest.split_whitespace().next()) else {
            let mut error = String::new();
            child.stderr.take().unwrap().read_to_string(&mut error).unwrap();
            panic!("livebridge did not start: {line}{error}");
        };
        let address = address.to_owned();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let sink = log.clone();
        let reader = std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                let mut log = sink.lock().unwrap();
                log.push_str(&line);
                log.push('\n');
            }
        });
        Instance { address, form: self.form, child, log, reader: Some(reader), _folder: folder }
    }
}

/// The program, in a folder of its own and without the developer's environment.
pub fn command(folder: &std::path::Path) -> Command {
    in_folder(Command::new(BINARY), folder)
}

fn in_folder(mut command: Command, folder: &std::path::Path) -> Command {
    command.current_dir(folder).env_clear().env("PATH", "/usr/bin:/bin");
    command
}

impl Instance {
    pub async fn embedded() -> Self {
        Options::default().start().await
    }

    /// Waits until it is ready, or not ready.
    pub async fn until_ready(&self, ready: bool) {
        let what = if ready { "ready" } else { "not ready" };
        until(what, || async { self.get("/readyz").await.0.is_success() == ready }).await;
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub async fn get(&self, path: &str) -> (StatusCode, String) {
        let response = reqwest::get(self.url(path)).await.unwrap();
        (response.status(), response.text().await.unwrap())
    }

    pub async fn get_json(&self, path: &str) -> Value {
        serde_json::from_str(&self.get(path).await.1).unwrap()
    }

    pub async fn post(&self, path: &str, body: impl Into<reqwest::Body>) -> (StatusCode, Value) {
        self.post_with(path, &[], body).await
    }

    pub async fn post_with(
        &self,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<reqwest::Body>,
    ) -> (StatusCode, Value) {
        let mut request = reqwest::Client::new().post(self.url(path)).body(body);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = soon("an answer to a POST", request.send()).await.unwrap();
        let status = response.status();
        (status, serde_json::from_str(&response.text().await.unwrap()).unwrap())
    }

    /// Publishes, and insists on it; returns the position as `EPOCH:OFFSET` where there is one.
    pub async fn publish(&self, channel: &str, body: impl Into<reqwest::Body>) -> Option<String> {
        let (status, answer) = self.post(&format!("/publish?channel={channel}"), body).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
        position(&answer["messages"][0])
    }

    pub async fn ws(&self, query: &str) -> Socket {
        Socket::connect(&format!("ws://{}/ws?{query}", self.address)).await
    }

    pub async fn events(&self, query: &str) -> Events {
        Events::connect(&self.url(&format!("/events?{query}")), None).await
    }

    /// A number of `/metrics`, all its labels together.
    pub async fn metric(&self, name: &str) -> f64 {
        let (_, text) = self.get("/metrics").await;
        let lines = text.lines().filter(|line| line.split([' ', '{']).next() == Some(name));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    /// How much was refused at a limit.
    pub async fn refused(&self, reason: &str) -> f64 {
        let (_, text) = self.get("/metrics").await;
        let name = format!("livebridge_refused_total{{reason=\"{reason}\"}}");
        let line = text.lines().find(|line| line.starts_with(&name));
        line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0.0)
    }

    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, name: &str) {
        signal(self.child.id(), name);
    }

    pub async fn ended(&mut self) -> ExitStatus {
        soon("the process ends", async {
            loop {
                if let Some(status) = self.child.try_wait().unwrap() {
                    return status;
                }
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        })
        .await
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
        if std::thread::panicking() {
            // Captured with the test's own output, unlike what the process would write itself.
            #[expect(clippy::print_stderr, reason = "a failed test shows what the instance said")]
            {
                eprintln!("--- log of {} ---\n{}", self.address, self.log());
            }
        }
    }
}

pub fn signal(pid: u32, name: &str) {
    let sent = Command::new("kill").arg(format!("-{name}")).arg(pid.to_string()).status().unwrap();
    assert!(sent.success());
}

/// `EPOCH:OFFSET` of an envelope or receipt.
pub fn position(value: &Value) -> Option<String> {
    Some(format!("{}:{}", value["epoch"].as_str()?, value["offset"].as_u64()?))
}
