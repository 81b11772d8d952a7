//! Certificates of a test's own: an authority, and what it signs. Made by rcgen, which the tests of token
//! keys use as well, so that no `openssl` has to be installed.

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tempfile::TempDir;

pub struct Certificates {
    folder: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Certificates {
    /// An authority (`ca.pem`), a server (`server.pem`, `server.key`) and a client (`client.pem`, …).
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, format!("authority {:?}", folder.path()));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        std::fs::write(folder.path().join("ca.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
        let certificates = Self { folder, issuer: Issuer::new(params, key) };
        certificates.issue("server", |_| {});
        certificates.issue("client", |_| {});
        certificates
    }

    /// Signs a certificate for this machine, changed as the caller likes.
    pub fn issue(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) {
        let names = ["127.0.0.1", "localhost", "::1"].map(str::to_owned);
        let mut params = CertificateParams::new(names).unwrap();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        std::fs::write(self.path(&format!("{name}.pem")), certificate.pem()).unwrap();
        std::fs::write(self.path(&format!("{name}.key")), key.serialize_pem()).unwrap();
    }

    /// Where a file is.
    pub fn path(&self, file: &str) -> String {
        self.folder.path().join(file).display().to_string()
    }
}
