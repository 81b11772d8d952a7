//! A real Chromium, driven by chromedriver.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use fantoccini::wd::{WebDriverCompatibleCommand, WindowHandle};
use fantoccini::{Client, ClientBuilder, Locator};
use hyper_util::client::legacy::connect::HttpConnector;
use reqwest::{Method, Url};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::{Mutex, MutexGuard};

use super::instance::Instance;
use super::{PATIENCE, soon};

/// The Enter key, as WebDriver spells it.
pub const ENTER: char = '\u{e007}';
/// The Control key, held until the end of the keys.
pub const CONTROL: char = '\u{e009}';

/// Each window is a browser with a dozen processes: one test at a time.
static TURN: Mutex<()> = Mutex::const_new(());

/// A chromedriver and the browsers that it started; all of them are gone when dropped.
pub struct Browser {
    address: String,
    driver: Child,
    /// Kept open, since a process that can't say something to it ends.
    stdout: Option<BufReader<ChildStdout>>,
    folder: TempDir,
    _turn: MutexGuard<'static, ()>,
}

impl Browser {
    pub async fn start() -> Self {
        // It wants its port for IPv4 and IPv6, and ends where another test has one of the two.
        for _ in 0..5 {
            if let Some(browser) = Self::try_start().await {
                return browser;
            }
        }
        panic!("chromedriver does not start");
    }

    async fn try_start() -> Option<Self> {
        let turn = TURN.lock().await;
        let folder = tempfile::tempdir().unwrap();
        let mut driver = Command::new("chromedriver")
            .arg("--port=0")
            .env("HOME", folder.path())
            // A browser that is killed leaves its sockets there.
            .env("TMPDIR", folder.path())
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("chromedriver is installed (./scripts/test does it)");
        let stdout = BufReader::new(driver.stdout.take().unwrap());
        let mut browser = Self { address: String::new(), driver, stdout: None, folder, _turn: turn };
        let reading = tokio::task::spawn_blocking(|| read_port(stdout));
        let (stdout, port) = soon("chromedriver starts", reading).await.unwrap()?;
        browser.stdout = Some(stdout);
        browser.address = format!("http://127.0.0.1:{port}");
        Some(browser)
    }

    /// A window of a browser of its own, at this instance's page.
    pub async fn open(&self, instance: &Instance) -> Window {
        self.open_at(&instance.url("/")).await
    }

    /// A window of a browser of its own.
    pub async fn open_at(&self, url: &str) -> Window {
        let profile = tempfile::tempdir_in(self.folder.path()).unwrap().keep();
        let arguments = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--hide-scrollbars",
            "--window-size=1280,800",
            &format!("--user-data-dir={}", profile.display()),
        ];
        let wishes = json!({
            "goog:chromeOptions": { "binary": "/usr/bin/chromium", "args": arguments },
            "goog:loggingPrefs": { "browser": "ALL" },
        });
        let mut builder = ClientBuilder::new(HttpConnector::new());
        builder.capabilities(wishes.as_object().unwrap().clone());
        let client = soon("chromium starts", builder.connect(&self.address)).await.expect("a session of chromium");
        client.goto(url).await.unwrap();
        Window { client }
    }
}

/// Reads on until chromedriver says which port it got; `None` if it ends before.
fn read_port(mut stdout: BufReader<ChildStdout>) -> Option<(BufReader<ChildStdout>, u16)> {
    let mut line = String::new();
    loop {
        line.clear();
        if stdout.read_line(&mut line).unwrap() == 0 {
            return None;
        }
        if let Some((_, port)) = line.split_once("successfully on port ") {
            return Some((stdout, port.trim().trim_end_matches('.').parse().unwrap()));
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let group = format!("-{}", self.driver.id());
        let _ = Command::new("kill").args(["-KILL", "--", &group]).status();
        let _ = self.driver.wait();
    }
}

/// One page.
pub struct Window {
    client: Client,
}

impl Window {
    /// What a JavaScript expression is; what it throws fails the test.
    pub async fn eval(&self, expression: &str) -> Value {
        let script = format!("return ({expression});");
        soon(expression, self.client.execute(&script, vec![]))
            .await
            .unwrap_or_else(|error| panic!("{expression}: {error}"))
    }

    /// Waits until a JavaScript expression is true of the page.
    pub async fn until(&self, expression: &str) {
        let asked = Instant::now();
        while self.eval(&format!("Boolean({expression})")).await != true {
            if asked.elapsed() > PATIENCE {
                let page = self.eval("document.body.innerText").await;
                let console = self.console().await;
                panic!("not within {PATIENCE:?}: {expression}\nconsole: {console:#?}\n{}", page.as_str().unwrap_or(""));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until the element with this id has this text.
    pub async fn until_text(&self, id: &str, text: &str) {
        let text = json!(text);
        self.until(&format!("document.getElementById('{id}').textContent === {text}")).await;
    }

    pub async fn text(&self, selector: &str) -> String {
        let text = self.eval(&format!("document.querySelector({}).textContent", json!(selector))).await;
        text.as_str().unwrap().to_owned()
    }

    pub async fn click(&self, selector: &str) {
        self.client.find(Locator::Css(selector)).await.unwrap().click().await.unwrap();
    }

    /// Types into the element, as a keyboard does.
    pub async fn keys(&self, selector: &str, keys: &str) {
        self.client.find(Locator::Css(selector)).await.unwrap().send_keys(keys).await.unwrap();
    }

    /// Replaces what a field says.
    pub async fn fill(&self, selector: &str, text: &str) {
        let field = self.client.find(Locator::Css(selector)).await.unwrap();
        field.clear().await.unwrap();
        field.send_keys(text).await.unwrap();
    }

    pub async fn reload(&self) {
        self.client.refresh().await.unwrap();
    }

    /// Goes to another page.
    pub async fn visit(&self, url: &str) {
        self.client.goto(url).await.unwrap();
    }

    /// Opens another tab of the same browser, and goes on in it. Returns the tab that it was in.
    pub async fn another_tab(&self, url: &str) -> WindowHandle {
        let before = self.client.window().await.unwrap();
        let opened = self.client.new_window(true).await.unwrap();
        self.client.switch_to_window(opened.handle).await.unwrap();
        self.client.goto(url).await.unwrap();
        before
    }

    /// The tab that it is in.
    pub async fn tab(&self) -> WindowHandle {
        self.client.window().await.unwrap()
    }

    /// Goes on in this tab.
    pub async fn enter(&self, tab: &WindowHandle) {
        self.client.switch_to_window(tab.clone()).await.unwrap();
    }

    /// Closes the tab that it is in.
    pub async fn close_tab(&self) {
        self.client.close_window().await.unwrap();
    }

    /// A command of the DevTools protocol.
    pub async fn devtools(&self, command: &str, parameters: &Value) {
        let body = json!({ "cmd": command, "params": parameters });
        self.client.issue_cmd(Post { path: "goog/cdp/execute", body }).await.unwrap();
    }

    /// What the browser wrote to its console since this was last asked, except plain notes: `LEVEL source: message`.
    pub async fn console(&self) -> Vec<String> {
        let entries = self.client.issue_cmd(Post { path: "se/log", body: json!({ "type": "browser" }) }).await.unwrap();
        let field = |entry: &Value, name: &str| entry[name].as_str().unwrap_or_default().to_owned();
        let entries = entries.as_array().unwrap().iter();
        entries
            .filter(|entry| ["SEVERE", "WARNING"].contains(&field(entry, "level").as_str()))
            .map(|entry| format!("{} {}: {}", field(entry, "level"), field(entry, "source"), field(entry, "message")))
            .collect()
    }

    pub async fn screenshot(&self) -> Vec<u8> {
        self.client.screenshot().await.unwrap()
    }
}

/// A command that WebDriver itself does not have.
#[derive(Debug)]
struct Post {
    path: &'static str,
    body: Value,
}

impl WebDriverCompatibleCommand for Post {
    fn endpoint(&self, base: &Url, session: Option<&str>) -> Result<Url, <Url as std::str::FromStr>::Err> {
        base.join(&format!("session/{}/{}", session.unwrap_or_default(), self.path))
    }

    fn method_and_body(&self, _: &Url) -> (Method, Option<String>) {
        (Method::POST, Some(self.body.to_string()))
    }
}
