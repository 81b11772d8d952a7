//! The commands that talk to a running instance by URL: `publish`, `tail` and `check --url`. They
//! use plain HTTP.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::{Method, Request, Response, StatusCode};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, stdin, stdout};

use crate::access::secret::Secret;
use crate::backoff::Backoff;
use crate::config::{PublishArgs, TailArgs};
use crate::http_client::{Connection, Url};

/// Time limit for connecting, and for a response.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Not `http://HOST[:PORT]`.
    #[error("{0:?} is not a URL of an instance; it looks like http://127.0.0.1:8000 (https is not supported)")]
    Url(String),
    /// The instance cannot be reached.
    #[error("cannot reach {url}: {why}; is livebridge running there?")]
    Unreachable {
        /// The URL as given on the command line.
        url: String,
        /// The error of the connection or of HTTP.
        why: String,
    },
    /// The instance responded with an error.
    #[error("{status}: {body}")]
    Refused {
        /// The HTTP status.
        status: StatusCode,
        /// The body of the response.
        body: String,
    },
    /// Standard input or output failed.
    #[error("standard input or output: {0}")]
    Stdio(#[from] std::io::Error),
}

/// An instance, and the connection to it.
struct Instance {
    url: Url,
    /// The URL as given on the command line, for error messages.
    typed: String,
    /// The credentials for the `Authorization` header.
    credentials: Option<Secret>,
    connection: Option<Connection>,
}

impl Instance {
    fn new(typed: &str, token: Option<&Secret>) -> Result<Self, ClientError> {
        let token = token.filter(|token| !token.reveal().is_empty());
        let credentials = token.map(|token| Secret::new(format!("Bearer {}", token.reveal())));
        match Url::parse(typed) {
            Ok(url) if url.is_plain_server() => {
                Ok(Self { url, typed: typed.to_owned(), credentials, connection: None })
            }
            _ => Err(ClientError::Url(typed.to_owned())),
        }
    }

    fn unreachable(&self, why: &impl ToString) -> ClientError {
        ClientError::Unreachable { url: self.typed.clone(), why: why.to_string() }
    }

    async fn request(
        &mut self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Result<Response<Incoming>, ClientError> {
        let mut request = Request::builder().method(method).uri(path).header("host", self.url.authority());
        if let Some(credentials) = &self.credentials {
            request = request.header("authorization", credentials.reveal());
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(body)).map_err(|error| self.unreachable(&error))?;
        let sent = async {
            let connection = match self.connection.take().filter(|connection| !connection.is_closed()) {
                Some(connection) => connection,
                None => self.url.connect().await?,
            };
            self.connection.insert(connection).send(request).await
        };
        let sent = tokio::time::timeout(ANSWER_TIMEOUT, sent).await;
        match sent {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(self.unreachable(&error)),
            Err(_) => Err(self.unreachable(&"no answer in time")),
        }
    }

    /// Sends a request and reads the whole response. A status other than success is an error.
    async fn ask(
        &mut self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Result<String, ClientError> {
        let response = self.request(method, path, headers, body).await?;
        let status = response.status();
        let body = response.into_body().collect().await.map_err(|error| self.unreachable(&error))?.to_bytes();
        let body = String::from_utf8_lossy(&body).trim_end().to_owned();
        if status.is_success() { Ok(body) } else { Err(ClientError::Refused { status, body }) }
    }
}

/// Publishes a message, or each line of standard input.
///
/// # Errors
/// [`ClientError`] if the instance cannot be reached or refuses a message, or if standard input
/// cannot be read.
pub async fn publish(args: &PublishArgs) -> Result<(), ClientError> {
    let mut instance = Instance::new(&args.url, args.token.as_ref())?;
    let mut query = form_urlencoded::Serializer::new(String::new());
    query.append_pair("channel", args.channel.as_str());
    if let Some(key) = &args.key {
        query.append_pair("key", key);
    }
    if args.remove {
        query.append_pair("remove", "true");
    }
    let path = format!("/publish?{}", query.finish());
    match args.message.as_deref() {
        Some(message) if message != "-" => {
            instance.ask(Method::POST, &path, &[], Bytes::copy_from_slice(message.as_bytes())).await?;
        }
        None if args.remove => {
            instance.ask(Method::POST, &path, &[], Bytes::new()).await?;
        }
        _ => {
            let mut input = BufReader::new(stdin());
            let mut line = Vec::new();
            while input.read_until(b'\n', &mut line).await? > 0 {
                if line.last() == Some(&b'\n') {
                    line.pop();
                }
                instance.ask(Method::POST, &path, &[], std::mem::take(&mut line).into()).await?;
            }
        }
    }
    Ok(())
}

/// Checks whether a running instance is ready (`GET /readyz`).
///
/// # Errors
/// [`ClientError`] if the instance cannot be reached or is not ready.
pub async fn check(url: &str) -> Result<(), ClientError> {
    Instance::new(url, None)?.ask(Method::GET, "/readyz", &[], Bytes::new()).await.map(drop)
}

/// Prints messages until the process is interrupted; reconnects and resumes.
///
/// # Errors
/// [`ClientError`] if the first connection fails, the instance refuses permanently, or standard
/// output fails.
pub async fn tail(args: &TailArgs) -> Result<(), ClientError> {
    let mut query = form_urlencoded::Serializer::new(String::new());
    for channel in &args.channels {
        query.append_pair("channel", channel.as_str());
    }
    let base = format!("/events?{}", query.finish());
    let mut path = base.clone();
    if let Some(last) = args.last {
        path.push_str(&format!("&last={last}"));
    }
    let mut instance = Instance::new(&args.url, args.token.as_ref())?;
    let mut events = Events { several: args.channels.len() > 1, ..Events::default() };
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
    let mut connected_once = false;
    loop {
        let outcome = stream(&mut instance, &path, &mut events).await;
        match outcome {
            Ok(()) => backoff.reset(),
            Err(ClientError::Unreachable { .. }) if connected_once || events.seen => {}
            Err(ClientError::Refused { status, .. }) if (status.is_server_error() || status == 429) && events.seen => {}
            Err(error) => return Err(error),
        }
        connected_once = true;
        if events.id.is_some() {
            path.clone_from(&base);
        }
        instance.connection = None;
        tokio::time::sleep(backoff.next_delay()).await;
    }
}

/// Reads the events of one connection.
async fn stream(instance: &mut Instance, path: &str, events: &mut Events) -> Result<(), ClientError> {
    let id = events.id.clone();
    let headers: Vec<_> = id.iter().map(|id| ("last-event-id", id.as_str())).collect();
    let response = instance.request(Method::GET, path, &headers, Bytes::new()).await?;
    let status = response.status();
    let mut body = response.into_body();
    if !status.is_success() {
        let body = body.collect().await.map_err(|error| instance.unreachable(&error))?.to_bytes();
        return Err(ClientError::Refused { status, body: String::from_utf8_lossy(&body).trim_end().to_owned() });
    }
    let mut out = stdout();
    while let Some(Ok(frame)) = body.frame().await {
        if let Ok(chunk) = frame.into_data() {
            let printed = events.read(&chunk);
            out.write_all(&printed).await?;
            out.flush().await?;
        }
    }
    Ok(())
}

/// A parser for event streams (WHATWG HTML, 9.2.6), limited to what livebridge writes.
#[derive(Default)]
struct Events {
    several: bool,
    /// Whether any event has arrived.
    seen: bool,
    id: Option<String>,
    partial: Vec<u8>,
    kind: String,
    data: Vec<String>,
}

impl Events {
    /// Parses a chunk; returns the text to print.
    fn read(&mut self, chunk: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        self.partial.extend_from_slice(chunk);
        let bytes = std::mem::take(&mut self.partial);
        let mut lines = bytes.split(|&byte| byte == b'\n').peekable();
        while let Some(line) = lines.next() {
            if lines.peek().is_none() {
                self.partial = line.to_vec();
                break;
            }
            self.line(&String::from_utf8_lossy(line), &mut out);
        }
        out
    }

    fn line(&mut self, line: &str, out: &mut Vec<u8>) {
        if line.is_empty() {
            self.dispatch(out);
            return;
        }
        let (field, value) = line.split_once(": ").unwrap_or((line, ""));
        match field {
            "id" => self.id = Some(value.to_owned()),
            "event" => value.clone_into(&mut self.kind),
            "data" => self.data.push(value.to_owned()),
            _ => {}
        }
    }

    fn dispatch(&mut self, out: &mut Vec<u8>) {
        let (kind, data) = (std::mem::take(&mut self.kind), std::mem::take(&mut self.data));
        self.seen = true;
        let is_notice =
            matches!(kind.as_str(), "livebridge:welcome" | "livebridge:token_expired" | "livebridge:restarting");
        if data.is_empty() || is_notice {
            return;
        }
        if kind == "livebridge:refused" {
            tracing::warn!(answer = %data.join(""), "the instance refused temporarily; reconnecting");
            return;
        }
        if kind == "livebridge:gap" {
            tracing::warn!(notice = %data.join(""), "messages may be missing");
            return;
        }
        if self.several {
            out.extend_from_slice(kind.as_bytes());
            out.push(b'\t');
        }
        out.extend_from_slice(data.join("\n").as_bytes());
        out.push(b'\n');
    }
}
