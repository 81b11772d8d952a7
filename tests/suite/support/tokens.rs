//! Whoever makes tokens: keys of each kind, and a server that publishes their public halves.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey};
use rcgen::KeyPair;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

pub const SECRET: &str = "a secret of the tests that is long enough for HS256";

/// Seconds since 1970, so many from now.
pub fn at(seconds: i64) -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    i64::try_from(now).unwrap() + seconds
}

/// Claims that hold for an hour and allow to listen and to publish to these patterns.
pub fn claims(subscribe: &[&str], publish: &[&str]) -> Value {
    json!({ "exp": at(3600), "livebridge": { "subscribe": subscribe, "publish": publish } })
}

/// A token of the shared secret.
pub fn token(subscribe: &[&str], publish: &[&str]) -> String {
    Signer::shared(SECRET).sign(&claims(subscribe, publish))
}

/// Any header and claims, with any signature.
pub fn assemble(header: &Value, claims: &Value, signature: &[u8]) -> String {
    let part = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    format!("{}.{}.{}", part(header.to_string().as_bytes()), part(claims.to_string().as_bytes()), part(signature))
}

/// A key that signs.
pub struct Signer {
    pub algorithm: Algorithm,
    /// Names it in a JWK set; a token names it where it is set.
    pub id: Option<String>,
    pub public_pem: String,
    public: Vec<u8>,
    key: EncodingKey,
}

impl Signer {
    pub fn shared(secret: &str) -> Self {
        let key = EncodingKey::from_secret(secret.as_bytes());
        Self { algorithm: Algorithm::HS256, id: None, public_pem: String::new(), public: Vec::new(), key }
    }

    /// A new key pair.
    pub fn generate(algorithm: Algorithm) -> Self {
        let kind = match algorithm {
            Algorithm::RS256 => &rcgen::PKCS_RSA_SHA256,
            Algorithm::ES256 => &rcgen::PKCS_ECDSA_P256_SHA256,
            Algorithm::ES384 => &rcgen::PKCS_ECDSA_P384_SHA384,
            Algorithm::EdDSA => &rcgen::PKCS_ED25519,
            other => panic!("no key pairs for {other:?}"),
        };
        let pair = KeyPair::generate_for(kind).unwrap();
        let pem = pair.serialize_pem();
        let key = match algorithm {
            Algorithm::RS256 => EncodingKey::from_rsa_pem(pem.as_bytes()),
            Algorithm::ES256 | Algorithm::ES384 => EncodingKey::from_ec_pem(pem.as_bytes()),
            _ => EncodingKey::from_ed_pem(pem.as_bytes()),
        };
        Self {
            algorithm,
            id: None,
            public_pem: pair.public_key_pem(),
            public: pair.public_key_raw().to_vec(),
            key: key.unwrap(),
        }
    }

    pub fn named(mut self, id: &str) -> Self {
        self.id = Some(id.to_owned());
        self
    }

    pub fn sign(&self, claims: &Value) -> String {
        self.sign_by(self.algorithm, &format!("{:?}", self.algorithm), claims)
    }

    /// Signs by an algorithm of the key's type, which the header gives any name.
    pub fn sign_by(&self, algorithm: Algorithm, name: &str, claims: &Value) -> String {
        let mut header = json!({ "typ": "JWT", "alg": name });
        if let Some(id) = &self.id {
            header["kid"] = id.as_str().into();
        }
        let unsigned = assemble(&header, claims, b"");
        let message = unsigned.strip_suffix('.').unwrap();
        let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &self.key, algorithm).unwrap();
        format!("{message}.{signature}")
    }

    /// Its public half, as it stands in a JWK set.
    pub fn jwk(&self) -> Value {
        if self.algorithm == Algorithm::EdDSA {
            return json!({"kty": "OKP", "crv": "Ed25519", "kid": self.id, "x": URL_SAFE_NO_PAD.encode(&self.public)});
        }
        let mut jwk = Jwk::from_encoding_key(&self.key, self.algorithm).unwrap();
        jwk.common.key_id.clone_from(&self.id);
        serde_json::to_value(jwk).unwrap()
    }
}

/// A JWK set with these keys.
pub fn set(keys: &[&Signer]) -> String {
    json!({ "keys": keys.iter().map(|key| key.jwk()).collect::<Vec<_>>() }).to_string()
}

/// Publishes a document, and can be broken.
pub struct KeyServer {
    pub url: String,
    /// PEM of the certificate, where it speaks https.
    pub certificate: String,
    asked: Arc<AtomicUsize>,
    /// `None`: answers 500.
    document: Arc<Mutex<Option<String>>>,
    serving: JoinHandle<()>,
}

impl KeyServer {
    pub async fn start(document: String) -> Self {
        Self::serve(document, None).await
    }

    pub async fn start_tls(document: String) -> Self {
        let own = rcgen::generate_simple_self_signed(vec!["127.0.0.1".into()]).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(own.signing_key.serialize_der()));
        let config =
            ServerConfig::builder().with_no_client_auth().with_single_cert(vec![own.cert.der().clone()], key).unwrap();
        let mut server = Self::serve(document, Some(TlsAcceptor::from(Arc::new(config)))).await;
        server.certificate = own.cert.pem();
        server
    }

    async fn serve(document: String, tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let url = format!("{scheme}://{}/keys.json", listener.local_addr().unwrap());
        let (asked, document) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(Some(document))));
        let (count, current) = (asked.clone(), document.clone());
        let serving = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (tls, count, current) = (tls.clone(), count.clone(), current.clone());
                tokio::spawn(async move {
                    match tls {
                        None => answer(stream, &count, &current).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                answer(stream, &count, &current).await;
                            }
                        }
                    }
                });
            }
        });
        Self { url, certificate: String::new(), asked, document, serving }
    }

    /// What it publishes from now on; `None`: answers 500.
    pub fn publish(&self, document: Option<String>) {
        *self.document.lock().unwrap() = document;
    }

    /// How often it was asked.
    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

impl Drop for KeyServer {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn answer(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    count: &AtomicUsize,
    document: &Mutex<Option<String>>,
) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    let (status, body) = match &*document.lock().unwrap() {
        Some(document) => ("200 OK", document.clone()),
        None => ("500 Internal Server Error", String::new()),
    };
    // Counted when its answer is decided: who has seen the count rise knows which it was.
    count.fetch_add(1, Ordering::SeqCst);
    let answer = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len());
    let _ = stream.write_all(answer.as_bytes()).await;
    let _ = stream.shutdown().await;
}
