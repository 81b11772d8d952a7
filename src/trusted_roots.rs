//! The certificate authorities that the system trusts, for the connections that livebridge opens.

use tokio_rustls::rustls::RootCertStore;

/// Loads the authorities; `None` if the system has none. `SSL_CERT_FILE` and `SSL_CERT_DIR` can name
/// others.
pub fn load() -> Option<RootCertStore> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    (!roots.is_empty()).then_some(roots)
}
