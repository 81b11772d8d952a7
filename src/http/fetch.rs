//! Fetches a small document from a URL, http or https: the keys that verify tokens. No redirects: whom the keys come from is said
//! in the configuration alone.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, HOST};
use hyper::rt::{Read, Write};
use hyper::{Request, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::access::jwks::Jwks;

/// How long it may take in all.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How large it may be.
const MOST_BYTES: usize = 256 << 10;

/// Why a URL can't be fetched from.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// Not a URL that is spoken here.
    #[error("not a URL such as https://HOST/PATH (user and password are not supported)")]
    Url,
    /// The system has no certificates to trust.
    #[error("no certificate authorities found on this system; install ca-certificates, or set SSL_CERT_FILE")]
    NoRoots,
}

/// A URL, checked, and what it takes to fetch from it.
pub struct Source {
    uri: Uri,
    host: String,
    port: u16,
    tls: Option<TlsConnector>,
}

impl Source {
    /// Checks a URL, and reads the certificates of the system if it is https.
    pub fn new(url: &str) -> Result<Self, FetchError> {
        let uri: Uri = url.parse().map_err(|_| FetchError::Url)?;
        let host = uri.host().filter(|host| !host.is_empty()).ok_or(FetchError::Url)?.to_owned();
        if uri.authority().is_none_or(|authority| authority.as_str().contains('@')) {
            return Err(FetchError::Url);
        }
        let (tls, default_port) = match uri.scheme_str() {
            Some("http") => (None, 80),
            Some("https") => (Some(connector()?), 443),
            _ => return Err(FetchError::Url),
        };
        let port = uri.port_u16().unwrap_or(default_port);
        Ok(Self { uri, host: host.trim_matches(['[', ']']).to_owned(), port, tls })
    }

    /// Fetches the document. The error says what went wrong, to people.
    pub async fn fetch(&self) -> Result<Bytes, String> {
        let fetched = tokio::time::timeout(TIMEOUT, self.try_fetch()).await;
        fetched.unwrap_or_else(|_| Err(format!("no answer within {} s", TIMEOUT.as_secs())))
    }

    async fn try_fetch(&self) -> Result<Bytes, String> {
        let text = |error: std::io::Error| error.to_string();
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await.map_err(text)?;
        match &self.tls {
            None => self.exchange(TokioIo::new(stream)).await,
            Some(tls) => {
                let name = ServerName::try_from(self.host.clone()).map_err(|error| error.to_string())?;
                self.exchange(TokioIo::new(tls.connect(name, stream).await.map_err(text)?)).await
            }
        }
    }

    async fn exchange(&self, stream: impl Read + Write + Unpin + Send + 'static) -> Result<Bytes, String> {
        let (mut sender, connection) = http1::handshake(stream).await.map_err(|error| error.to_string())?;
        let connection = tokio::spawn(connection);
        let target = self.uri.path_and_query().map_or("/", |target| target.as_str());
        let host = self.uri.authority().map_or("", |authority| authority.as_str());
        let request = Request::get(target).header(HOST, host).header(ACCEPT, "application/json");
        let request = request.body(Empty::<Bytes>::new()).map_err(|error| error.to_string())?;
        let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
        if !response.status().is_success() {
            return Err(format!("the answer was {}", response.status()));
        }
        let body = Limited::new(response.into_body(), MOST_BYTES).collect().await.map_err(|error| error.to_string())?;
        connection.abort();
        Ok(body.to_bytes())
    }
}

/// Keeps keys fresh for as long as the instance lives.
pub async fn keep_keys(jwks: Arc<Jwks>) {
    match Source::new(jwks.url()) {
        Ok(source) => jwks.keep_fresh(|| source.fetch()).await,
        Err(error) => tracing::error!(%error, "cannot start fetching --token-jwks-url"),
    }
}

/// Trusts what the system trusts.
fn connector() -> Result<TlsConnector, FetchError> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        return Err(FetchError::NoRoots);
    }
    Ok(TlsConnector::from(Arc::new(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth())))
}
