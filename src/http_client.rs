//! The HTTP/1.1 client: connections to one server, over TCP or TLS. The commands and the fetch of
//! the JWK set use it. It follows no redirects, so a document comes only from the configured URL.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{ACCEPT, HOST};
use hyper::rt::{Read, Write};
use hyper::{Request, Response, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::{InvalidDnsNameError, ServerName};

use crate::trusted_roots;

/// Why a URL cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum UrlError {
    /// Not an http or https URL, or one with user information.
    #[error("not a URL such as https://HOST/PATH (user and password are not supported)")]
    Syntax,
    /// The system has no certificates to trust.
    #[error("no certificate authorities found on this system; install ca-certificates, or set SSL_CERT_FILE")]
    NoRoots,
}

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// No connection: the name does not resolve, the port is closed, or TLS failed.
    #[error(transparent)]
    Connect(#[from] io::Error),
    /// The host name cannot occur in a certificate.
    #[error(transparent)]
    Name(#[from] InvalidDnsNameError),
    /// The connection failed while the request or the response was under way.
    #[error(transparent)]
    Exchange(#[from] hyper::Error),
    /// The request has an invalid header.
    #[error(transparent)]
    Request(#[from] hyper::http::Error),
}

/// A validated URL: a server, and a resource on it.
pub struct Url {
    uri: Uri,
    host: String,
    port: u16,
    tls: Option<TlsConnector>,
}

/// An open connection. Dropping it closes it.
pub struct Connection {
    sender: SendRequest<Full<Bytes>>,
    driver: AbortHandle,
}

impl Url {
    /// Validates a URL. For https, it also loads the certificates that the system trusts.
    ///
    /// # Errors
    /// [`UrlError::Syntax`], or [`UrlError::NoRoots`] for https on a system without certificates.
    pub fn parse(url: &str) -> Result<Self, UrlError> {
        let uri: Uri = url.parse().map_err(|_| UrlError::Syntax)?;
        let host = uri.host().filter(|host| !host.is_empty()).ok_or(UrlError::Syntax)?.to_owned();
        if uri.authority().is_none_or(|authority| authority.as_str().contains('@')) {
            return Err(UrlError::Syntax);
        }
        let (tls, default_port) = match uri.scheme_str() {
            Some("http") => (None, 80),
            Some("https") => (Some(connector()?), 443),
            _ => return Err(UrlError::Syntax),
        };
        let port = uri.port_u16().unwrap_or(default_port);
        Ok(Self { uri, host: host.trim_matches(['[', ']']).to_owned(), port, tls })
    }

    /// Whether the scheme is http and the URL names only a server, without a path.
    pub fn is_plain_server(&self) -> bool {
        self.tls.is_none() && self.uri.path() == "/" && self.uri.query().is_none()
    }

    /// The value of the `Host` header.
    pub fn authority(&self) -> &str {
        self.uri.authority().map_or("", |authority| authority.as_str())
    }

    /// Opens a connection on the current runtime.
    ///
    /// # Errors
    /// If the server cannot be reached, or its certificate is not trusted.
    pub async fn connect(&self) -> Result<Connection, RequestError> {
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await?;
        match &self.tls {
            None => Connection::new(TokioIo::new(stream)).await,
            Some(tls) => {
                let name = ServerName::try_from(self.host.clone())?;
                Connection::new(TokioIo::new(tls.connect(name, stream).await?)).await
            }
        }
    }

    /// Fetches the resource: a JSON document of at most `most_bytes` bytes.
    ///
    /// # Errors
    /// A description of the failure: no connection, a status other than 2xx, a document that is too
    /// large, or no complete response within `within`.
    pub async fn fetch_json(&self, most_bytes: usize, within: Duration) -> Result<Bytes, String> {
        let fetched = tokio::time::timeout(within, self.try_fetch(most_bytes)).await;
        fetched.unwrap_or_else(|_| Err(format!("no answer within {} s", within.as_secs())))
    }

    async fn try_fetch(&self, most_bytes: usize) -> Result<Bytes, String> {
        let target = self.uri.path_and_query().map_or("/", |target| target.as_str());
        let request = Request::get(target).header(HOST, self.authority()).header(ACCEPT, "application/json");
        let request = request.body(Full::default()).map_err(|error| error.to_string())?;
        // Kept until the body is read, because dropping it closes the connection.
        let mut connection = self.connect().await.map_err(|error| error.to_string())?;
        let response = connection.send(request).await.map_err(|error| error.to_string())?;
        if !response.status().is_success() {
            return Err(format!("the answer was {}", response.status()));
        }
        let body = Limited::new(response.into_body(), most_bytes).collect().await.map_err(|error| error.to_string())?;
        Ok(body.to_bytes())
    }
}

impl Connection {
    async fn new(stream: impl Read + Write + Unpin + Send + 'static) -> Result<Self, RequestError> {
        let (sender, connection) = http1::handshake(stream).await?;
        let driver = tokio::spawn(connection).abort_handle();
        Ok(Self { sender, driver })
    }

    /// Whether the connection has ended and accepts no more requests.
    pub fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    /// Sends a request and waits for the head of the response.
    ///
    /// # Errors
    /// If the connection ends before the head of the response has arrived.
    pub async fn send(&mut self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, RequestError> {
        Ok(self.sender.send_request(request).await?)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// A TLS connector that trusts the system's certificates.
fn connector() -> Result<TlsConnector, UrlError> {
    let roots = trusted_roots::load().ok_or(UrlError::NoRoots)?;
    Ok(TlsConnector::from(Arc::new(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth())))
}
