//! TLS to Redis: certificates from files, the handshake, and explanations of its errors. The only
//! file of the broker that uses rustls.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{AlertDescription, CertificateError, ClientConfig, Error, RootCertStore};

use super::certificate::earliest_expiry;
use crate::observability::metrics::{Certificate, Metrics};
use crate::trusted_roots;

/// The time limit for a handshake. It is shorter than the one for connecting, which leaves time to
/// probe which protocol the port speaks.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_millis(1500);

/// TLS settings. All files are in PEM format.
#[derive(Clone, Debug, Default)]
pub struct TlsOptions {
    /// Certificates of the trusted authorities, instead of those of the system.
    pub ca: Option<PathBuf>,
    /// The client certificate, with its chain.
    pub certificate: Option<PathBuf>,
    /// The private key of the client certificate.
    pub key: Option<PathBuf>,
    /// The expected name in the certificate of Redis, instead of the host of the URL.
    pub server_name: Option<String>,
}

impl TlsOptions {
    /// The flag of the first option that is set.
    pub fn first_set(&self) -> Option<&'static str> {
        let Self { ca, certificate, key, server_name } = self;
        let options = [
            (ca.is_some(), "--redis-ca"),
            (certificate.is_some(), "--redis-cert"),
            (key.is_some(), "--redis-key"),
            (server_name.is_some(), "--redis-server-name"),
        ];
        options.into_iter().find_map(|(is_set, name)| is_set.then_some(name))
    }
}

/// Why the TLS settings are not valid.
#[derive(Debug, thiserror::Error)]
pub enum TlsSettingsError {
    /// A file cannot be read, or has the wrong contents.
    #[error("{setting} {path}: {why}")]
    File {
        /// The command-line option.
        setting: &'static str,
        /// The path of the file.
        path: String,
        /// The reason.
        why: String,
    },
    /// Only one of two options that belong together is set.
    #[error("--redis-cert and --redis-key belong together: set both, or neither")]
    HalfACertificate,
    /// The certificate and the key do not match.
    #[error("--redis-cert and --redis-key: {0}")]
    Pair(Error),
    /// The system has no trusted certificates.
    #[error("no certificate authorities found on this system; install ca-certificates, or name them with --redis-ca")]
    NoRoots,
    /// The server name is not valid.
    #[error(
        "the host of the Redis URL is not valid in a certificate; set --redis-server-name to a DNS name or an address"
    )]
    ServerName,
}

/// A TLS error with a suggested fix.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}; {fix}")]
pub(super) struct TlsProblem {
    pub(super) what: String,
    pub(super) fix: &'static str,
}

/// The TLS configuration for one server.
#[derive(Clone)]
pub(super) struct Tls {
    connector: TlsConnector,
    name: ServerName<'static>,
    /// The server name is a setting and does not depend on the host.
    is_fixed: bool,
    /// Until when the client certificate is valid.
    client_expiry: Option<i64>,
    /// Until when the certificate of the last handshake is valid; 0 if that is not known.
    server_expiry: Arc<AtomicI64>,
}

impl Tls {
    /// Reads the files. `host` is the host of the URL.
    pub(super) fn new(options: &TlsOptions, host: &str) -> Result<Self, TlsSettingsError> {
        let name = options.server_name.as_deref().unwrap_or(host).to_owned();
        let name = ServerName::try_from(name).map_err(|_| TlsSettingsError::ServerName)?;
        let roots = match &options.ca {
            None => trusted_roots::load().ok_or(TlsSettingsError::NoRoots)?,
            Some(path) => {
                let mut roots = RootCertStore::empty();
                let wrong = |why: Error| file_error("--redis-ca", path, &why);
                certificates("--redis-ca", path)?.into_iter().try_for_each(|ca| roots.add(ca).map_err(wrong))?;
                roots
            }
        };
        let config = ClientConfig::builder().with_root_certificates(roots);
        let mut client_expiry = None;
        let config = match (&options.certificate, &options.key) {
            (None, None) => config.with_no_client_auth(),
            (Some(certificate), Some(path)) => {
                let key = PrivateKeyDer::from_pem_file(path).map_err(|why| file_error("--redis-key", path, &why))?;
                let chain = certificates("--redis-cert", certificate)?;
                client_expiry = earliest_expiry(chain.iter().map(AsRef::as_ref));
                config.with_client_auth_cert(chain, key).map_err(TlsSettingsError::Pair)?
            }
            _ => return Err(TlsSettingsError::HalfACertificate),
        };
        let is_fixed = options.server_name.is_some();
        let connector = TlsConnector::from(Arc::new(config));
        Ok(Self { connector, name, is_fixed, client_expiry, server_expiry: Arc::default() })
    }

    /// The same configuration for another server.
    ///
    /// # Errors
    /// [`TlsSettingsError::ServerName`] if the host is not valid as the name in a certificate.
    pub(super) fn for_host(&self, host: &str) -> Result<Self, TlsSettingsError> {
        if self.is_fixed {
            return Ok(self.clone());
        }
        let name = ServerName::try_from(host.to_owned()).map_err(|_| TlsSettingsError::ServerName)?;
        Ok(Self { name, server_expiry: Arc::default(), ..self.clone() })
    }

    /// Performs the handshake.
    pub(super) async fn connect(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let late = || io::Error::new(io::ErrorKind::TimedOut, "no answer to the TLS handshake in time");
        let shaken = timeout(HANDSHAKE_TIMEOUT, self.connector.connect(self.name.clone(), stream));
        let stream = shaken.await.unwrap_or_else(|_| Err(late()))?;
        let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let expiry = earliest_expiry(chain.iter().map(AsRef::as_ref));
        self.server_expiry.store(expiry.unwrap_or(0), Ordering::Relaxed);
        Ok(stream)
    }

    /// Reports until when the certificates of both sides are valid.
    pub(super) fn report_expiry(&self, metrics: &Metrics) {
        if let Some(at) = self.client_expiry {
            metrics.set_certificate_expiry(Certificate::Client, at);
        }
        match self.server_expiry.load(Ordering::Relaxed) {
            0 => {}
            at => metrics.set_certificate_expiry(Certificate::Server, at),
        }
    }
}

fn certificates(setting: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsSettingsError> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match read {
        Ok(found) if found.is_empty() => Err(file_error(setting, path, &"it has no PEM certificate")),
        found => found.map_err(|why| file_error(setting, path, &why)),
    }
}

fn file_error(setting: &'static str, path: &Path, why: &dyn std::fmt::Display) -> TlsSettingsError {
    TlsSettingsError::File { setting, path: path.display().to_string(), why: why.to_string() }
}

/// Whether the server speaks TLS, regardless of its certificate.
pub(super) async fn is_spoken(stream: TcpStream) -> bool {
    let config = ClientConfig::builder().with_root_certificates(RootCertStore::empty()).with_no_client_auth();
    let Ok(name) = ServerName::try_from("localhost") else { return false };
    match TlsConnector::from(Arc::new(config)).connect(name, stream).await {
        Ok(_) => true,
        Err(error) => matches!(cause(&error), Some(Error::InvalidCertificate(_) | Error::AlertReceived(_))),
    }
}

fn cause(error: &io::Error) -> Option<&Error> {
    error.get_ref()?.downcast_ref()
}

/// Explains an error, if TLS caused it.
pub(super) fn explain(error: &io::Error) -> Option<TlsProblem> {
    use CertificateError::{
        Expired, ExpiredContext, NotValidForName, NotValidForNameContext, NotValidYet, NotValidYetContext,
        UnknownIssuer,
    };
    let (what, fix) = match cause(error)? {
        Error::InvalidCertificate(Expired | ExpiredContext { .. }) => {
            ("the certificate of Redis has expired".into(), "renew the certificate")
        }
        Error::InvalidCertificate(NotValidYet | NotValidYetContext { .. }) => {
            ("the certificate of Redis is not valid yet".into(), "check the clocks of both machines")
        }
        Error::InvalidCertificate(UnknownIssuer) => (
            "the certificate of Redis is not trusted".into(),
            "set --redis-ca to the certificate of the authority that signed it",
        ),
        Error::InvalidCertificate(NotValidForName) => (wrong_name(None), SERVER_NAME),
        Error::InvalidCertificate(NotValidForNameContext { expected, .. }) => {
            (wrong_name(Some(&expected.to_str())), SERVER_NAME)
        }
        Error::AlertReceived(AlertDescription::CertificateRequired) => {
            ("Redis asks for a client certificate".into(), "set --redis-cert and --redis-key")
        }
        Error::AlertReceived(
            AlertDescription::UnknownCA
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateUnknown
            | AlertDescription::CertificateExpired
            | AlertDescription::AccessDenied,
        ) => (
            "Redis does not accept this client certificate".into(),
            "check that --redis-cert is valid and signed by an authority in the tls-ca-cert-file of Redis",
        ),
        other => (format!("TLS with Redis fails: {other}"), "check that both ends support TLS 1.2 or 1.3"),
    };
    Some(TlsProblem { what, fix })
}

const SERVER_NAME: &str = "use one of its names as the host in the URL, or set --redis-server-name";

fn wrong_name(name: Option<&str>) -> String {
    format!("the certificate of Redis is not valid for {}", name.unwrap_or("the host of the URL"))
}

/// The port speaks TLS, but the URL does not ask for it.
pub(super) fn speaks_tls() -> TlsProblem {
    TlsProblem {
        what: "this port speaks TLS, but the URL does not ask for it".into(),
        fix: "use rediss:// in the Redis URL",
    }
}

/// The URL asks for TLS, but the port speaks plain Redis.
pub(super) fn speaks_plain() -> TlsProblem {
    let fix = "use redis:// in the Redis URL, or the TLS port of Redis";
    TlsProblem { what: "this port speaks plain Redis, but the URL asks for TLS".into(), fix }
}
