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
    let keys = [Algorithm::RS256, Algorithm::ES256, Algorithm::EdDSA].map(Signer::generate);
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
    assert_eq!((log.matches("stay valid").count(), log.matches("there again").count()), (1, 1), "{log}");
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
    until("the certificate is refused", || async { instance.log().contains("can't be fetched") }).await;
    assert_eq!((status(&instance, &token).await, stranger.asked()), (503, 0));
}
