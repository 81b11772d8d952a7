//! What clients show of who they are: header lines of any kind hold nothing that is valid unless it was signed, and what was signed
//! allows what it says and no more.
#![no_main]

use std::sync::{Arc, LazyLock};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures::FutureExt;
use hyper::header::{HeaderMap, HeaderValue};
use jsonwebtoken::crypto::sign;
use jsonwebtoken::{Algorithm, EncodingKey};
use libfuzzer_sys::fuzz_target;
use livebridge::access::origin::Origins;
use livebridge::access::secret::Secret;
use livebridge::access::token::Tokens;
use livebridge::access::token_key::Key;
use livebridge::access::{Access, Action, Permissions};
use livebridge::http::credentials::credentials;
use livebridge::rules::Rules;
use serde_json::Value;

const SECRET: &str = "0123456789abcdef0123456789abcdef";

static ACCESS: LazyLock<Arc<Access>> = LazyLock::new(|| {
    let tokens = Tokens {
        keys: vec![Key::shared(&Secret::new(SECRET)).expect("long enough")],
        remote: None,
        audience: Vec::new(),
        issuer: Vec::new(),
        leeway: std::time::Duration::from_secs(30),
    };
    Access::new(Vec::new(), Some(tokens), Origins::default(), Some("lb".into()), Arc::new(Rules::default()))
});

fn identify(headers: &HeaderMap) -> Option<Permissions> {
    ACCESS.identify(&credentials(&ACCESS, headers), Action::Subscribe).now_or_never().expect("nothing is waited for").ok()
}

fuzz_target!(|input: (Vec<(u8, Vec<u8>)>, Vec<u8>, Vec<u8>)| {
    let (lines, header, claims) = input;
    let mut headers = HeaderMap::new();
    for (name, value) in lines {
        let name = ["authorization", "cookie", "origin", "host", "sec-fetch-site"][usize::from(name % 5)];
        if let Ok(value) = HeaderValue::from_bytes(&value) {
            headers.append(name, value);
        }
    }
    assert!(identify(&headers).is_none(), "{headers:?}");

    let head = if header.is_empty() { br#"{"alg":"HS256"}"#.to_vec() } else { header };
    let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(head), URL_SAFE_NO_PAD.encode(&claims));
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    let signature = sign(message.as_bytes(), &key, Algorithm::HS256).expect("a signature");
    let mut headers = HeaderMap::new();
    let bearer = format!("Bearer {message}.{signature}");
    headers.insert("authorization", HeaderValue::from_str(&bearer).expect("base64"));
    let Some(grant) = identify(&headers) else { return };
    // What is signed and taken is JSON with an `exp`, and names the channels that it allows.
    let said: Value = serde_json::from_slice(&claims).expect("it was read");
    assert!(said.is_object() && !said["livebridge"].is_array(), "{said}");
    assert!(said["exp"].is_number() && grant.holds_for().is_some_and(|seconds| seconds > 0), "{said}");
    for name in ["a", "sheet:q3", "live"] {
        let channel = name.parse().expect("a name");
        for (action, list) in [(Action::Subscribe, "subscribe"), (Action::Publish, "publish"), (Action::Read, "subscribe")] {
            let names = said["livebridge"][list].as_array().into_iter().flatten().filter_map(Value::as_str);
            let could = names.into_iter().any(|pattern| pattern == name || pattern.contains('*'));
            assert!(could || grant.check(&channel, action).is_err(), "{said}");
        }
    }
});
