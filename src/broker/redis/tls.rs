//! TLS to Redis: whom to trust and who we are, from files; the handshake; and what its failures mean. The
//! one file of the broker that names rustls.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{AlertDescription, CertificateError, ClientConfig, Error, RootCertStore};

/// How long a handshake may take: less than connecting as a whole, so that time is left to find out what
/// else answers there.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_millis(1500);

/// How TLS is to be spoken. The files are PEM.
#[derive(Clone, Debug, Default)]
pub struct TlsOptions {
    /// The authorities to trust, in place of the system's.
    pub ca: Option<PathBuf>,
    /// The certificate that is shown to Redis, with what leads from it to its authority.
    pub certificate: Option<PathBuf>,
    /// The key of the certificate.
    pub key: Option<PathBuf>,
    /// The name that the certificate of Redis must have, in place of the URL's host.
    pub server_name: Option<String>,
}

/// Why TLS can't be spoken as the settings say.
#[derive(Debug, thiserror::Error)]
pub enum TlsSettingsError {
    /// A file can't be read, or holds something else.
    #[error("{setting} {path}: {why}")]
    File {
        /// The flag that names it.
        setting: &'static str,
        /// Which file.
        path: String,
        /// Why.
        why: String,
    },
    /// One of two settings that belong together.
    #[error("--redis-cert and --redis-key belong together: set both, or neither")]
    HalfACertificate,
    /// The certificate and the key are no pair.
    #[error("--redis-cert and --redis-key: {0}")]
    Pair(Error),
    /// The system has no certificates to trust.
    #[error(
        "no certificate authorities are found on this system; install ca-certificates, or name them with --redis-ca"
    )]
    NoRoots,
    /// What should be a server's name is none.
    #[error("no certificate can be for the host of the Redis URL; set --redis-server-name to a DNS name or an address")]
    ServerName,
}

/// What went wrong between us and Redis, in terms of TLS, and the mend.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}; {mend}")]
pub(super) struct TlsProblem {
    pub(super) what: String,
    pub(super) mend: &'static str,
}

/// What it takes to speak TLS with one server.
#[derive(Clone)]
pub(super) struct Tls {
    connector: TlsConnector,
    name: ServerName<'static>,
}

impl Tls {
    /// Reads the files. The host is the URL's.
    pub(super) fn new(options: &TlsOptions, host: &str) -> Result<Self, TlsSettingsError> {
        let name = options.server_name.as_deref().unwrap_or(host).to_owned();
        let name = ServerName::try_from(name).map_err(|_| TlsSettingsError::ServerName)?;
        let mut roots = RootCertStore::empty();
        match &options.ca {
            None => drop(roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs)),
            Some(path) => {
                let wrong = |why: Error| file_error("--redis-ca", path, &why);
                certificates("--redis-ca", path)?.into_iter().try_for_each(|ca| roots.add(ca).map_err(wrong))?;
            }
        }
        if roots.is_empty() {
            return Err(TlsSettingsError::NoRoots);
        }
        let config = ClientConfig::builder().with_root_certificates(roots);
        let config = match (&options.certificate, &options.key) {
            (None, None) => config.with_no_client_auth(),
            (Some(certificate), Some(path)) => {
                let key = PrivateKeyDer::from_pem_file(path).map_err(|why| file_error("--redis-key", path, &why))?;
                let chain = certificates("--redis-cert", certificate)?;
                config.with_client_auth_cert(chain, key).map_err(TlsSettingsError::Pair)?
            }
            _ => return Err(TlsSettingsError::HalfACertificate),
        };
        Ok(Self { connector: TlsConnector::from(Arc::new(config)), name })
    }

    /// Shakes hands.
    pub(super) async fn connect(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let late = || io::Error::new(io::ErrorKind::TimedOut, "no answer to the TLS handshake in time");
        let shaken = timeout(HANDSHAKE_TIMEOUT, self.connector.connect(self.name.clone(), stream));
        shaken.await.unwrap_or_else(|_| Err(late()))
    }
}

fn certificates(setting: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsSettingsError> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match read {
        Ok(found) if found.is_empty() => Err(file_error(setting, path, &"there is no PEM certificate in it")),
        found => found.map_err(|why| file_error(setting, path, &why)),
    }
}

fn file_error(setting: &'static str, path: &Path, why: &dyn std::fmt::Display) -> TlsSettingsError {
    TlsSettingsError::File { setting, path: path.display().to_string(), why: why.to_string() }
}

/// Whether TLS is spoken at the other end, whatever the certificate there.
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

/// What an error means if it comes from TLS.
pub(super) fn explain(error: &io::Error) -> Option<TlsProblem> {
    use CertificateError::{
        Expired, ExpiredContext, NotValidForName, NotValidForNameContext, NotValidYet, NotValidYetContext,
        UnknownIssuer,
    };
    let (what, mend) = match cause(error)? {
        Error::InvalidCertificate(Expired | ExpiredContext { .. }) => {
            ("the certificate of Redis has expired".into(), "renew it")
        }
        Error::InvalidCertificate(NotValidYet | NotValidYetContext { .. }) => {
            ("the certificate of Redis is not valid yet".into(), "see that the clocks of both machines are right")
        }
        Error::InvalidCertificate(UnknownIssuer) => (
            "the certificate of Redis is not trusted here".into(),
            "name the file of the authority that signed it with --redis-ca",
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
            "see that --redis-cert is valid and signed by an authority of Redis' tls-ca-cert-file",
        ),
        other => (format!("TLS with Redis fails: {other}"), "see that both ends speak TLS 1.2 or 1.3"),
    };
    Some(TlsProblem { what, mend })
}

const SERVER_NAME: &str = "name in the URL a host that it is for, or set --redis-server-name";

fn wrong_name(name: Option<&str>) -> String {
    format!("the certificate of Redis is for other names than {}", name.unwrap_or("the host of the URL"))
}

/// A plain URL, and a port that speaks TLS.
pub(super) fn speaks_tls() -> TlsProblem {
    TlsProblem { what: "this port speaks TLS, and the URL does not".into(), mend: "write rediss:// in the Redis URL" }
}

/// A URL with TLS, and a port that speaks plain Redis.
pub(super) fn speaks_plain() -> TlsProblem {
    let mend = "write redis:// in the Redis URL, or name the TLS port of Redis";
    TlsProblem { what: "this port speaks plain Redis, and the URL asks for TLS".into(), mend }
}
