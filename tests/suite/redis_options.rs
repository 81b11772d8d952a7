//! How Redis is reached: TLS and its failures, sockets, IPv6, users and passwords with any character.

use std::process::Output;
use std::time::{Duration, SystemTime};

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use crate::support::certificates::Certificates;
use crate::support::instance::{Options, command};
use crate::support::redis::Redis;
use crate::support::{channel, until};

/// What the program prints with these arguments, and whether it is content.
fn run(arguments: &[&str]) -> (String, bool) {
    let folder = tempfile::tempdir().unwrap();
    let Output { status, stdout, stderr } = command(folder.path()).args(arguments).output().unwrap();
    (String::from_utf8([stdout, stderr].concat()).unwrap(), status.success())
}

fn check(url: &str, arguments: &[&str]) -> (String, bool) {
    run(&[&["check", "--redis-url", url], arguments].concat())
}

/// Publishes and hears a message, through a Redis that is reached so.
async fn works(options: Options) {
    let instance = options.start().await;
    let channel = channel("reached");
    let mut socket = instance.ws(&format!("channel={channel}")).await;
    instance.publish(&channel, "hello").await.expect("a position");
    assert_eq!(socket.text().await, "hello");
    assert_eq!(instance.ws(&format!("channel={channel}&last=1")).await.text().await, "hello");
}

/// Sees that `livebridge check`, `/readyz` and the log name the same reason.
async fn fails(url: &str, arguments: &[&str], reason: &str) {
    let (text, content) = check(url, arguments);
    assert!(!content && text.contains(reason), "{reason}: {text}");
    let mut options = Options { redis_url: Some(url.to_owned()), ..Options::default() };
    options.flags.extend(arguments.iter().map(|&argument| argument.to_owned()));
    let instance = options.start_unready();
    until(reason, || async { instance.get("/readyz").await.1.contains(reason) }).await;
    assert_eq!(instance.get("/readyz").await.0, 503);
    assert!(instance.log().contains(reason), "{}", instance.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_with_client_certificates_survives_an_outage() {
    let mut redis = Redis::with_tls(Certificates::new(), &["--appendonly", "yes"]).await;
    let options = redis.tls_options(Options::default());
    let instance = options.clone().start().await;
    let channel = channel("tls");
    let mut socket = instance.ws(&format!("channel={channel}")).await;
    instance.publish(&channel, "before").await.expect("a position");
    assert_eq!(socket.text().await, "before");
    redis.stop();
    until("not ready", || async { instance.get("/readyz").await.0 == 503 }).await;
    redis.start_again().await;
    instance.until_ready(true).await;
    // Far more than one record, or than the socket takes at once.
    let large = "x".repeat(1 << 20);
    instance.publish(&channel, large.clone()).await.expect("a position");
    assert_eq!(socket.text().await, large);
    assert!(instance.ws(&format!("channel={channel}&last=1")).await.text().await == large, "and by its history");
}

#[tokio::test(flavor = "multi_thread")]
async fn check_is_content_with_a_redis_of_tls() {
    let redis = Redis::with_tls(Certificates::new(), &["--appendonly", "yes"]).await;
    let path = |file: &str| redis.certificates.as_ref().unwrap().path(file);
    let (ca, pem, key) = (path("ca.pem"), path("client.pem"), path("client.key"));
    let arguments = ["--redis-ca", &ca, "--redis-cert", &pem, "--redis-key", &key];
    let (text, content) = check(&redis.tls_url(), &arguments);
    assert!(content && text.lines().all(|line| line.starts_with("ok ")), "{text}");
    let (text, content) = check(&redis.tls_url().replace("rediss", "valkeys"), &arguments);
    assert!(content, "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_tls_is_named_in_check_readyz_and_log() {
    let certificates = Certificates::new();
    let strangers = Certificates::new();
    let redis = Redis::with_tls(certificates, &[]).await;
    let path = |file: &str| redis.certificates.as_ref().unwrap().path(file);
    let (ca, pem, key) = (path("ca.pem"), path("client.pem"), path("client.key"));
    let ours = ["--redis-cert", pem.as_str(), "--redis-key", key.as_str()];
    let (plain, tls) = (redis.url(), redis.tls_url());
    fails(&plain.replace(&redis.port.to_string(), &redis.tls_port.to_string()), &[], "this port speaks TLS").await;
    let with = |ca: &str, more: &[&'static str]| {
        [
            vec!["--redis-ca".to_owned(), ca.to_owned()],
            ours.map(str::to_owned).to_vec(),
            more.iter().map(|&it| it.to_owned()).collect(),
        ]
        .concat()
    };
    let cases = [
        (plain.replace("redis://", "rediss://"), with(&ca, &[]), "this port speaks plain Redis"),
        (tls.clone(), with(&strangers.path("ca.pem"), &[]), "the certificate of Redis is not trusted"),
        (tls.clone(), with(&ca, &["--redis-server-name", "redis.example"]), "is not valid for redis.example"),
        (tls.clone(), vec!["--redis-ca".into(), ca.clone()], "Redis asks for a client certificate"),
        (
            tls,
            vec![
                "--redis-ca".into(),
                ca.clone(),
                "--redis-cert".into(),
                strangers.path("client.pem"),
                "--redis-key".into(),
                strangers.path("client.key"),
            ],
            "Redis does not accept this client certificate",
        ),
    ];
    for (url, arguments, reason) in cases {
        fails(&url, &arguments.iter().map(String::as_str).collect::<Vec<_>>(), reason).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_out_of_its_time_is_named() {
    for (name, years, reason) in [("old", [2020, 2021], "has expired"), ("new", [2090, 2091], "is not valid yet")] {
        let certificates = Certificates::new();
        certificates.issue(name, |params| {
            params.not_before = rcgen::date_time_ymd(years[0], 1, 1);
            params.not_after = rcgen::date_time_ymd(years[1], 1, 1);
        });
        let redis = Redis::with_tls_for(certificates, name, &["--tls-auth-clients", "no"]).await;
        let ca = redis.certificates.as_ref().unwrap().path("ca.pem");
        fails(&redis.tls_url(), &["--redis-ca", &ca], &format!("the certificate of Redis {reason}")).await;
    }
}

/// Days from now, as the end of a certificate.
fn ends_in(days: i64, params: &mut rcgen::CertificateParams) {
    let now = rcgen::date_time_ymd(1970, 1, 1) + SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    params.not_after = now + Duration::from_secs(u64::try_from(days * 24 * 60 * 60).unwrap() + 60);
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_that_expire_soon_are_told_before() {
    let certificates = Certificates::new();
    certificates.issue("soon", |params| ends_in(10, params));
    certificates.issue("later", |params| ends_in(90, params));
    let redis = Redis::with_tls_for(certificates, "soon", &["--appendonly", "yes"]).await;
    let path = |file: &str| redis.certificates.as_ref().unwrap().path(file);
    let (ca, pem, key) = (path("ca.pem"), path("later.pem"), path("later.key"));
    let arguments = ["--redis-ca", &ca, "--redis-cert", &pem, "--redis-key", &key];
    let (text, content) = check(&redis.tls_url(), &arguments);
    assert!(content && text.contains("warning  the certificate of Redis expires in 10 days - renew it"), "{text}");
    assert!(text.contains("ok       the client certificate (--redis-cert) is valid for 90 days"), "{text}");
    let mut options = Options { redis_url: Some(redis.tls_url()), ..Options::default() };
    options.flags.extend(arguments.map(str::to_owned));
    let instance = options.start().await;
    let (_, text) = instance.get("/metrics").await;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64();
    for (certificate, days) in [("server", 10.0), ("client", 90.0)] {
        let name = format!("livebridge_redis_certificate_expiry_timestamp_seconds{{certificate=\"{certificate}\"}} ");
        let at: f64 = text.lines().find_map(|line| line.strip_prefix(&name)?.parse().ok()).expect(&name);
        assert!(((at - now) / 86400.0 - days).abs() < 0.01, "{certificate}: {at}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_certificate_that_has_expired_is_named() {
    let certificates = Certificates::new();
    certificates.issue("old", |params| params.not_after = rcgen::date_time_ymd(2021, 1, 1));
    let redis = Redis::with_tls(certificates, &[]).await;
    let path = |file: &str| redis.certificates.as_ref().unwrap().path(file);
    let (ca, pem, key) = (path("ca.pem"), path("old.pem"), path("old.key"));
    let (text, content) = check(&redis.tls_url(), &["--redis-ca", &ca, "--redis-cert", &pem, "--redis-key", &key]);
    assert!(!content && text.contains("error    the client certificate (--redis-cert) has expired - renew"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_name_stands_in_for_the_host_of_the_url() {
    let certificates = Certificates::new();
    certificates.issue("named", |params| {
        params.subject_alt_names = vec![rcgen::SanType::DnsName("redis.example".try_into().unwrap())];
    });
    let redis = Redis::with_tls_for(certificates, "named", &["--tls-auth-clients", "no"]).await;
    let ca = redis.certificates.as_ref().unwrap().path("ca.pem");
    let options = Options { redis_url: Some(redis.tls_url()), ..Options::default() };
    works(options.env("LIVEBRIDGE_REDIS_CA", &ca).flag("--redis-server-name redis.example")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_is_reached_by_its_socket() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a socket");
    let socket = path.display().to_string();
    let redis = Redis::start_with(&["--save", "", "--unixsocket", &socket]).await;
    redis.cli(&["ACL", "SETUSER", "me", "on", ">p&+ w", "~*", "&*", "+@all"]);
    let place = socket.replace(' ', "%20");
    works(Options { redis_url: Some(format!("unix://{place}?db=2&user=me&pass=p%26%2B%20w")), ..Options::default() })
        .await;
    assert_ne!(redis.cli(&["-n", "2", "DBSIZE"]), "0");
    works(Options { redis_url: Some(format!("redis+unix://{place}")), ..Options::default() }).await;
    fails(&format!("unix://{place}.gone"), &[], "No such file").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_is_reached_over_ipv6() {
    if std::net::TcpListener::bind("[::1]:0").is_err() {
        // A machine without IPv6 proves nothing.
        return;
    }
    let redis = Redis::start_with(&["--save", "", "--bind", "127.0.0.1", "::1"]).await;
    let url = format!("redis://[::1]:{}/", redis.port);
    works(Options { redis_url: Some(url.clone()), ..Options::default() }).await;
    let (text, content) = check(&url, &[]);
    assert!(content && text.contains(&format!("Redis answers at [::1]:{}", redis.port)), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn users_and_passwords_have_any_character_and_come_from_a_file_or_a_variable() {
    let redis = Redis::start().await;
    let (user, password) = ("o'dd/user@home", "p?#[]%:/@&+ ä\"'\\ü€");
    redis.cli(&["ACL", "SETUSER", user, "on", &format!(">{password}"), "~*", "&*", "+@all"]);
    redis.cli(&["CONFIG", "SET", "requirepass", "other"]);
    let encode = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
    let whole = format!("redis://{}:{}@127.0.0.1:{}/", encode(user), encode(password), redis.port);
    works(Options { redis_url: Some(whole.clone()), ..Options::default() }).await;
    let url = format!("redis://{}@127.0.0.1:{}/", encode(user), redis.port);
    let options = Options { redis_url: Some(url.clone()), ..Options::default() };
    works(options.clone().env("LIVEBRIDGE_REDIS_PASSWORD", password)).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("password");
    std::fs::write(&file, format!("{password}\n")).unwrap();
    let file = file.display().to_string();
    works(options.env("LIVEBRIDGE_REDIS_PASSWORD_FILE", &file)).await;
    let (text, content) = check(&whole, &["--redis-password-file", &file]);
    assert!(!content && text.contains("remove one of them"), "{text}");
    let (text, content) = check(&url, &["--redis-password", "SECRET"]);
    assert!(!content && text.contains("refused the login") && !text.contains("SECRET"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sentinel_is_recognised_and_not_taken_for_a_redis() {
    let sentinel = Redis::sentinel().await;
    fails(&sentinel.url(), &[], "this is a Redis Sentinel").await;
}

#[tokio::test]
async fn settings_that_do_not_fit_are_refused_with_the_mend() {
    let certificates = Certificates::new();
    let (ca, pem, key) =
        (certificates.path("ca.pem"), certificates.path("client.pem"), certificates.path("client.key"));
    let tls = "rediss://127.0.0.1:1";
    let cases: [(&str, &[&str], &str); 10] = [
        ("redis://127.0.0.1:1", &["--redis-ca", &ca], "--redis-ca is set, but the Redis URL does not ask for TLS"),
        (tls, &["--redis-ca", &ca, "--redis-cert", &pem], "--redis-cert and --redis-key belong together"),
        (tls, &["--redis-ca", &key], "it has no PEM certificate"),
        (tls, &["--redis-ca", "/no/such/file"], "--redis-ca /no/such/file"),
        (tls, &["--redis-ca", &ca, "--redis-cert", &ca, "--redis-key", &key], "--redis-cert and --redis-key: "),
        (tls, &["--redis-ca", &ca, "--redis-server-name", "not a name"], "set --redis-server-name to"),
        (tls, &["--redis-password-file", "/no/such/file"], "--redis-password-file /no/such/file"),
        ("", &["--redis-ca", &ca], "no Redis URL"),
        ("redis://me:SECRET@host:p", &[], "its port is not a number"),
        ("redis+sentinel://me:SECRET@host", &[], "it does not name the master"),
    ];
    for (url, arguments, reason) in cases {
        let (text, content) = check(url, arguments);
        assert!(!content && text.contains(reason) && !text.contains("SECRET"), "{reason}: {text}");
        let (text, content) = run(&[&["--listen", "127.0.0.1:0", "--redis-url", url], arguments].concat());
        assert!(!content && text.contains(reason) && !text.contains("SECRET"), "{reason}: {text}");
    }
}
