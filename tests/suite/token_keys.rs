//! Where the keys of tokens come from: PEM files and JWK sets, their exchange and their outages.

use jsonwebtoken::Algorithm;
use serde_json::json;

use crate::support::instance::{Instance, Options, command};
use crate::support::tokens::{KeyServer, SECRET, Signer, claims, set};
use crate::support::until;

fn with_url(server: &KeyServer) -> Options {
    Options::default().flag(&format!("--token-jwks-url {}", server.url))
}

/// The status that a token gets.
async fn status(instance: &Instance, token: &str) -> u16 {
    instance.get(&format!("/channels/a/messages?token={token}")).await.0.as_u16()
}

#[tokio::test]
async fn each_algorithm_is_taken_from_a_file_and_several_files_are_valid_at_once() {
    let keys = [Algorithm::RS256, Algorithm::ES256, Algorithm::ES384, Algorithm::EdDSA].map(Signer::generate);
    let folder = tempfile::tempdir().unwrap();
    let mut options = Options::default();
    for key in &keys {
        let file = folder.path().join(format!("{:?}.pem", key.algorithm));
        std::fs::write(&file, &key.public_pem).unwrap();
        options = options.flag(&format!("--token-public-key {}", file.display()));
    }
    let instance = options.start().await;
    for key in &keys {
        assert_eq!(status(&instance, &key.sign(&claims(&["a"], &[]))).await, 200, "{:?}", key.algorithm);
        assert_eq!(status(&instance, &key.sign(&claims(&["b"], &[]))).await, 403, "{:?}", key.algorithm);
        let stranger = Signer::generate(key.algorithm);
        assert_eq!(status(&instance, &stranger.sign(&claims(&["a"], &[]))).await, 401, "{:?}", key.algorithm);
    }
    // The PEM of an RSA key does not say what it is for; RFC 9864 gives EdDSA a second name.
    for algorithm in RSA {
        let token = keys[0].sign_by(algorithm, &format!("{algorithm:?}"), &claims(&["a"], &[]));
        assert_eq!(status(&instance, &token).await, 200, "{algorithm:?}");
    }
    let token = keys[3].sign_by(Algorithm::EdDSA, "Ed25519", &claims(&["a"], &[]));
    assert_eq!(status(&instance, &token).await, 200);
    for name in ["Ed448", "ES512", "ed25519", "RS1", "ES256K"] {
        let token = keys[3].sign_by(Algorithm::EdDSA, name, &claims(&["a"], &[]));
        assert_eq!(status(&instance, &token).await, 401, "{name}");
    }
}

const RSA: [Algorithm; 6] =
    [Algorithm::RS256, Algorithm::RS384, Algorithm::RS512, Algorithm::PS256, Algorithm::PS384, Algorithm::PS512];

#[tokio::test]
async fn a_key_of_a_set_verifies_what_its_alg_says_and_an_unknown_alg_costs_no_other_key() {
    let rsa = Signer::generate(Algorithm::RS256);
    let keys = ["pss", "edwards", "wide", "unknown", "signs"];
    let [pss, edwards, wide, unknown, signs] = keys.map(|id| {
        let algorithm = match id {
            "pss" => Algorithm::RS256,
            "wide" => Algorithm::ES384,
            _ => Algorithm::EdDSA,
        };
        Signer::generate(algorithm).named(id)
    });
    let with = |key: &Signer, name: &str, value: serde_json::Value| {
        let mut jwk = key.jwk();
        jwk[name] = value;
        jwk
    };
    let document = json!({"keys": [
        with(&unknown, "alg", "Ed25519ph".into()),
        with(&signs, "key_ops", json!(["sign"])),
        with(&Signer::generate(Algorithm::EdDSA), "alg", 7.into()),
        with(&pss, "alg", "PS256".into()),
        with(&edwards, "alg", "Ed25519".into()),
        with(&wide, "alg", "ES384".into()),
    ]});
    let server = KeyServer::start(document.to_string()).await;
    let instance = with_url(&server).start().await;
    let says = claims(&["a"], &[]);
    until("the keys are there", || async { status(&instance, &wide.sign(&says)).await == 200 }).await;
    for (key, algorithm, name, expected) in [
        (&edwards, Algorithm::EdDSA, "Ed25519", 200),
        (&edwards, Algorithm::EdDSA, "EdDSA", 200),
        (&pss, Algorithm::PS256, "PS256", 200),
        (&pss, Algorithm::RS256, "RS256", 401),
        (&pss, Algorithm::PS384, "PS384", 401),
        // Signed by one algorithm, and named another.
        (&pss, Algorithm::RS256, "PS256", 401),
        (&wide, Algorithm::ES384, "ES256", 401),
        (&unknown, Algorithm::EdDSA, "EdDSA", 401),
        (&signs, Algorithm::EdDSA, "EdDSA", 401),
        (&rsa, Algorithm::PS256, "PS256", 401),
    ] {
        assert_eq!(status(&instance, &key.sign_by(algorithm, name, &says)).await, expected, "{:?} {name}", key.id);
    }
}

#[tokio::test]
async fn a_secret_verifies_by_the_hashes_that_are_no_longer_than_it_is() {
    let long = "x".repeat(64);
    let instance = Options::default().env("LIVEBRIDGE_TOKEN_SECRET", &format!("{SECRET},{long}")).start().await;
    let says = claims(&["a"], &[]);
    for (secret, algorithm, expected) in [
        (SECRET, Algorithm::HS256, 200),
        (SECRET, Algorithm::HS384, 200),
        (SECRET, Algorithm::HS512, 401),
        (&long, Algorithm::HS512, 200),
    ] {
        let token = Signer::shared(secret).sign_by(algorithm, &format!("{algorithm:?}"), &says);
        assert_eq!(status(&instance, &token).await, expected, "{} bytes, {algorithm:?}", secret.len());
    }
}

#[test]
fn a_file_that_holds_no_public_key_is_refused_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let private = rcgen::KeyPair::generate().unwrap().serialize_pem();
    for (content, part) in [(private.as_str(), "public key"), ("hello", "public key"), (SECRET, "public key")] {
        std::fs::write(folder.path().join("key.pem"), content).unwrap();
        let check = command(folder.path()).args(["check", "--token-public-key", "key.pem"]).output().unwrap();
        let error = String::from_utf8(check.stderr).unwrap();
        assert!(!check.status.success() && error.contains("key.pem") && error.contains(part), "{error}");
    }
    let missing = command(folder.path()).args(["check", "--token-public-key", "nowhere.pem"]).output().unwrap();
    assert!(String::from_utf8(missing.stderr).unwrap().contains("nowhere.pem"));
    for url in ["ftp://127.0.0.1/keys", "https://", "keys.json", "http://user:password@127.0.0.1/"] {
        let check = command(folder.path()).args(["check", "--token-jwks-url", url]).output().unwrap();
        let error = String::from_utf8(check.stderr).unwrap();
        assert!(
            !check.status.success() && error.contains("--token-jwks-url") && !error.contains("password@"),
            "{error}"
        );
    }
}

#[tokio::test]
async fn keys_of_a_url_are_exchanged_without_a_restart_and_kept_through_an_outage() {
    let [old, new, newest] = ["old", "new", "newest"].map(|id| Signer::generate(Algorithm::ES256).named(id));
    let tokens = [&old, &new, &newest].map(|key| key.sign(&claims(&["a"], &[])));
    let server = KeyServer::start(set(&[&old])).await;
    let instance = with_url(&server).env("LIVEBRIDGE_LOG", "debug").start().await;
    until("the first keys are there", || async { status(&instance, &tokens[0]).await == 200 }).await;
    assert_eq!(status(&instance, &tokens[1]).await, 401);

    // A token of a key that is not known yet has the keys fetched: both are valid then.
    server.publish(Some(set(&[&old, &new])));
    until("the new key is known", || async { status(&instance, &tokens[1]).await == 200 }).await;
    assert_eq!(status(&instance, &tokens[0]).await, 200);

    // Nothing that somebody makes up has them fetched again and again.
    let asked = server.asked();
    for number in 0..50 {
        let made_up = Signer::generate(Algorithm::ES256).named(&number.to_string());
        assert_eq!(status(&instance, &made_up.sign(&claims(&["a"], &[]))).await, 401);
    }
    assert!(server.asked() <= asked + 2, "{} requests for made-up keys", server.asked() - asked);

    // What is known stays valid while the keys can't be fetched; what is withdrawn does not.
    server.publish(None);
    let asked = server.asked();
    until("the keys are asked for again", || async {
        assert_eq!(status(&instance, &tokens[2]).await, 401);
        server.asked() > asked
    })
    .await;
    assert_eq!([status(&instance, &tokens[0]).await, status(&instance, &tokens[1]).await], [200, 200]);
    server.publish(Some(set(&[&newest])));
    until("the newest key is known", || async { status(&instance, &tokens[2]).await == 200 }).await;
    assert_eq!(status(&instance, &tokens[0]).await, 401);
    let log = instance.log();
    assert_eq!((log.matches("stay valid").count(), log.matches("works again").count()), (1, 1), "{log}");
}

#[tokio::test]
async fn keys_of_a_file_and_of_a_url_are_valid_side_by_side_whatever_their_ids() {
    let [file, url, stranger] = ["file", "url", "stranger"].map(|id| Signer::generate(Algorithm::ES256).named(id));
    let tokens = [&file, &url, &stranger].map(|key| key.sign(&claims(&["a"], &[])));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("key.pem");
    std::fs::write(&path, &file.public_pem).unwrap();
    let server = KeyServer::start(set(&[&url])).await;
    let instance = with_url(&server).flag(&format!("--token-public-key {}", path.display())).start().await;
    until("the keys are there", || async { status(&instance, &tokens[1]).await == 200 }).await;
    assert_eq!([status(&instance, &tokens[0]).await, status(&instance, &tokens[2]).await], [200, 401]);
}

#[tokio::test]
async fn a_set_that_never_came_is_answered_as_an_outage_and_heals() {
    let key = Signer::generate(Algorithm::EdDSA).named("one");
    let token = key.sign(&claims(&["a"], &[]));
    let server = KeyServer::start("[]".into()).await;
    let instance = with_url(&server).start().await;
    let (answer, body) = instance.get(&format!("/channels/a/messages?token={token}")).await;
    assert_eq!(answer.as_u16(), 503, "{body}");
    assert!(body.contains("keys_unavailable"), "{body}");
    server.publish(Some(set(&[&key])));
    until("the keys are there", || async { status(&instance, &token).await == 200 }).await;
}

#[tokio::test]
async fn a_set_may_hold_what_is_not_understood_but_no_shared_secret() {
    let key = Signer::generate(Algorithm::RS256).named("one");
    let secret = Signer::shared(SECRET).named("two");
    let elsewhere = Signer::generate(Algorithm::ES256).named("three");
    let mut encrypts = elsewhere.jwk();
    encrypts["use"] = "enc".into();
    let document = json!({"keys": [{"kty": "who knows"}, 7, secret.jwk(), encrypts, key.jwk()]}).to_string();
    let server = KeyServer::start(document).await;
    let instance = with_url(&server).start().await;
    until("the keys are there", || async { status(&instance, &key.sign(&claims(&["a"], &[]))).await == 200 }).await;
    assert_eq!(status(&instance, &secret.sign(&claims(&["a"], &[]))).await, 401);
    assert_eq!(status(&instance, &elsewhere.sign(&claims(&["a"], &[]))).await, 401);
}

#[tokio::test]
async fn keys_are_fetched_by_https_from_whom_the_system_trusts() {
    let key = Signer::generate(Algorithm::ES256).named("one");
    let token = key.sign(&claims(&["a"], &[]));
    let [trusted, stranger] = [KeyServer::start_tls(set(&[&key])).await, KeyServer::start_tls(set(&[&key])).await];
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("authorities.pem");
    std::fs::write(&file, &trusted.certificate).unwrap();
    let start = |server: &KeyServer| with_url(server).env("SSL_CERT_FILE", &file.display().to_string()).start();
    let instance = start(&trusted).await;
    until("the keys are there", || async { status(&instance, &token).await == 200 }).await;
    let instance = start(&stranger).await;
    until("the certificate is refused", || async { instance.log().contains("cannot fetch --token-jwks-url") }).await;
    assert_eq!((status(&instance, &token).await, stranger.asked()), (503, 0));
}
