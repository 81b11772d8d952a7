//! Who may do what: keys, tokens, and what is let through without. Which pages may speak is `origins`, where tokens' keys come
//! from `token_keys`.

use jsonwebtoken::Algorithm;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::instance::{Instance, Options, command};
use crate::support::raw::{connect_from, rest, websocket};
use crate::support::sse::Events;
use crate::support::tokens::{SECRET, Signer, assemble, at, claims, token};
use crate::support::{soon, until};

const KEY: &str = "publish-key-of-the-tests";
const OTHER_KEY: &str = "the-next-publish-key-of-the-tests";

fn with_tokens() -> Options {
    Options::default().env("LIVEBRIDGE_TOKEN_SECRET", SECRET)
}

fn bearer(token: &str) -> String {
    format!("Bearer {token}")
}

/// Status and code of an attempt to publish.
async fn publish(instance: &Instance, channel: &str, authorization: &str) -> (u16, String) {
    let path = format!("/publish?channel={channel}");
    let (status, answer) = instance.post_with(&path, &[("authorization", authorization)], "x").await;
    (status.as_u16(), answer["error"]["code"].as_str().unwrap_or_default().to_owned())
}

/// Status, code and message of the refusal of a WebSocket, or 101.
async fn subscribe(instance: &Instance, query: &str, lines: &[(&'static str, &str)]) -> (u16, String, String) {
    match websocket("127.0.0.1", instance, query, lines).await {
        Ok(_) => (101, String::new(), String::new()),
        Err((status, body)) => {
            let body: Value = serde_json::from_str(&body).unwrap();
            let text = |name: &str| body["error"][name].as_str().unwrap_or_default().to_owned();
            (status, text("code"), text("message"))
        }
    }
}

#[tokio::test]
async fn beyond_loopback_it_refuses_to_start_until_somebody_says_who_may() {
    let folder = tempfile::tempdir().unwrap();
    let start = |arguments: &[&str], environment: &[(&str, &str)]| {
        // `check` reads the same configuration, and opens no port.
        let mut check = command(folder.path());
        let output = check.arg("check").args(arguments).envs(environment.iter().copied()).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:0"] {
        let mut serve = tokio::process::Command::from(command(folder.path()));
        let serve = serve.args(["--listen", address]).kill_on_drop(true).output();
        let output = soon("it ends at once", serve).await.unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{address}: {error}");
        for fix in ["LIVEBRIDGE_PUBLISH_KEY", "LIVEBRIDGE_TOKEN_SECRET", "--insecure"] {
            assert!(error.contains(fix), "{address}: {error}");
        }
        assert_eq!(start(&["--listen", address], &[]).0, Some(1));
        assert_eq!(start(&["--listen", address, "--insecure"], &[]).0, Some(0));
        assert_eq!(start(&["--listen", address], &[("LIVEBRIDGE_INSECURE", "true")]).0, Some(0));
        assert_eq!(start(&["--listen", address], &[("LIVEBRIDGE_PUBLISH_KEY", KEY)]).0, Some(0));
        assert_eq!(start(&["--listen", address], &[("LIVEBRIDGE_TOKEN_SECRET", SECRET)]).0, Some(0));
        assert_eq!(start(&["--listen", address], &[("LIVEBRIDGE_PUBLISH_KEY", "")]).0, Some(1));
    }
    for address in ["127.0.0.1:0", "127.1.2.3:0", "[::1]:0"] {
        assert_eq!(start(&["--listen", address], &[]).0, Some(0), "{address}");
    }
}

#[tokio::test]
async fn a_producer_shows_one_of_the_keys_and_two_are_valid_while_they_are_exchanged() {
    let instance = Options::default().env("LIVEBRIDGE_PUBLISH_KEY", &format!("{KEY},{OTHER_KEY}")).start().await;
    let (status, answer) = instance.post("/publish?channel=a", "x").await;
    assert_eq!((status.as_u16(), &answer["error"]["code"]), (401, &"unauthorized".into()));
    let refused = reqwest::Client::new().post(instance.url("/publish")).send().await.unwrap();
    assert_eq!(refused.headers()["www-authenticate"], "Bearer");
    for wrong in ["", "Bearer", "Bearer ", "Bearer publish-key-of-the-test", "Bearer publish-key-of-the-testS", KEY] {
        assert_eq!(publish(&instance, "a", wrong).await, (401, "unauthorized".into()), "{wrong:?}");
    }
    for key in [KEY, OTHER_KEY] {
        assert_eq!(publish(&instance, "a", &bearer(key)).await.0, 200);
    }
    let history = |authorization: Option<String>| {
        let request = reqwest::Client::new().get(instance.url("/channels/a/messages"));
        let request = authorization.into_iter().fold(request, |request, value| request.header("authorization", value));
        async move { request.send().await.unwrap().status().as_u16() }
    };
    assert_eq!(history(None).await, 401);
    assert_eq!(history(Some(bearer("not-a-key-of-the-tests"))).await, 401);
    assert_eq!(history(Some(bearer(KEY))).await, 200);
    assert_eq!(instance.refused("unauthorized").await, 10.0);
    // A producer is no listener, and nothing lets anybody listen here.
    assert_eq!(subscribe(&instance, "channel=a", &[("authorization", &bearer(KEY))]).await.0, 403);
    assert!(instance.log().contains("no client can subscribe"));
}

#[tokio::test]
async fn a_key_may_be_limited_to_channels() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("key");
    std::fs::write(&file, format!("{OTHER_KEY}\n")).unwrap();
    let rules = format!(
        "[[publish_key]]\nkey = '{KEY}'\nchannels = ['sheet:*', 'log']\n[[publish_key]]\nkey_file = '{}'\n",
        file.display()
    );
    let instance = Options::default().rules(&rules).start().await;
    assert_eq!(publish(&instance, "sheet:q3", &bearer(KEY)).await.0, 200);
    assert_eq!(publish(&instance, "other", &bearer(OTHER_KEY)).await.0, 200);
    let headers = [("authorization", &*bearer(KEY))];
    let (status, answer) = instance.post_with("/publish?channel=log&channel=other", &headers, "x").await;
    assert_eq!((status.as_u16(), &answer["error"]["code"]), (403, &"forbidden".into()));
    assert!(answer["error"]["message"].as_str().unwrap().contains("the channel other"), "{answer}");
    // Of a batch nothing is published, and the line is named.
    let headers = [("authorization", &*bearer(KEY)), ("content-type", "application/x-ndjson")];
    let batch = "{\"channel\":\"log\",\"data\":1}\n\n{\"channel\":\"other\",\"data\":2}\n";
    let (status, answer) = instance.post_with("/publish", &headers, batch).await;
    assert_eq!(
        (status.as_u16(), &answer["error"]["code"], &answer["error"]["line"]),
        (403, &"forbidden".into(), &3.into())
    );
    let history =
        reqwest::Client::new().get(instance.url("/channels/log/messages")).header("authorization", bearer(KEY));
    let history: Value = serde_json::from_str(&history.send().await.unwrap().text().await.unwrap()).unwrap();
    assert_eq!(history["offset"], 0);
}

#[tokio::test]
async fn a_token_allows_what_it_says_and_no_more() {
    let instance = with_tokens().start().await;
    let sheets = token(&["sheet:*"], &["sheet:q3"]);
    let lines = [("authorization", &*bearer(&sheets))];
    assert_eq!(subscribe(&instance, "channel=sheet:q1&channel=sheet:q3", &lines).await.0, 101);
    let (status, code, message) = subscribe(&instance, "channel=sheet:q1&channel=live", &lines).await;
    assert_eq!((status, &*code), (403, "forbidden"));
    assert!(message.contains("subscribing to the channel live"), "{message}");
    assert_eq!(publish(&instance, "sheet:q3", &bearer(&sheets)).await.0, 200);
    assert_eq!(publish(&instance, "sheet:q1", &bearer(&sheets)).await, (403, "forbidden".into()));
    // A page can set no header on a WebSocket or an event stream.
    assert_eq!(subscribe(&instance, &format!("channel=sheet:q1&token={sheets}"), &[]).await.0, 101);
    assert!(Events::try_connect(&instance.url("/events?channel=sheet:q1"), None).await.is_err());
    let url = instance.url(&format!("/events?channel=sheet:q1&token={sheets}"));
    assert_eq!(Events::try_connect(&url, None).await.unwrap().next().await.kind, "livebridge:welcome");
    let (status, _) = instance.get(&format!("/channels/sheet:q3/messages?token={sheets}")).await;
    assert_eq!(status.as_u16(), 200);
    assert_eq!(instance.get("/channels/sheet:q3/messages").await.0.as_u16(), 401);
    // What nobody needs a token for.
    for path in ["/", "/livebridge.js", "/healthz", "/readyz", "/metrics"] {
        assert_eq!(instance.get(path).await.0.as_u16(), 200, "{path}");
    }
}

/// Claims that are as good as can be.
fn good() -> Value {
    json!({"exp": at(600), "aud": ["others", "us"], "iss": "them", "livebridge": {"subscribe": ["*"], "publish": ["*"]}})
}

fn with(name: &str, value: Value) -> Value {
    let mut claims = good();
    claims[name] = value;
    claims
}

fn without(name: &str) -> Value {
    let mut claims = good();
    claims.as_object_mut().unwrap().remove(name);
    claims
}

/// What somebody might try, the token, and a part of what he is told.
fn forgeries(key: &Signer, shared: &Signer) -> Vec<(&'static str, String, &'static str)> {
    let signature = |token: &str| token.rsplit('.').next().unwrap().to_owned();
    let mut reheaded = shared.sign(&good());
    reheaded = format!("{}.{}", reheaded.rsplit_once('.').unwrap().0, signature(&key.sign(&good())));
    let crit = json!({"alg": "HS256", "crit": ["b64"]});
    vec![
        // An empty parameter is a token like any other, and no good one.
        ("nothing", "".into(), "not a signed"),
        ("no token", "x.y.z".into(), "not a signed"),
        ("a number of dots", "....".into(), "not a signed"),
        ("alg none", assemble(&json!({"alg": "none"}), &good(), b""), "not a signed"),
        ("alg None", assemble(&json!({"alg": "NoNe"}), &good(), b""), "not a signed"),
        ("no alg", assemble(&json!({"typ": "JWT"}), &good(), b""), "not a signed"),
        ("no signature", assemble(&json!({"alg": "HS256"}), &good(), b""), "its signature"),
        ("a critical extension", assemble(&crit, &good(), b"x"), "not a signed"),
        (
            "another secret",
            Signer::shared("another secret that is as long as HS256 wants").sign(&good()),
            "its signature",
        ),
        ("another key pair", Signer::generate(Algorithm::RS256).sign(&good()), "its signature"),
        ("an algorithm without a key", Signer::generate(Algorithm::EdDSA).sign(&good()), "its signature"),
        ("the public key as a secret", Signer::shared(&key.public_pem).sign(&good()), "its signature"),
        ("another token's signature", reheaded, "its signature"),
        ("expired", shared.sign(&with("exp", at(-31).into())), "has expired"),
        ("no exp", shared.sign(&without("exp")), "`exp`"),
        ("exp is a text", shared.sign(&with("exp", "tomorrow".into())), "`exp`"),
        ("not yet valid", shared.sign(&with("nbf", at(40).into())), "not valid yet"),
        ("another audience", shared.sign(&with("aud", "others".into())), "audience"),
        ("no audience", shared.sign(&without("aud")), "`aud`"),
        ("another issuer", shared.sign(&with("iss", "us".into())), "issuer"),
        ("no issuer", shared.sign(&without("iss")), "`iss`"),
        ("claims of another form", shared.sign(&with("livebridge", "all".into())), "claim"),
    ]
}

#[tokio::test]
async fn no_forged_or_stale_token_gets_in_while_others_go_on_receiving() {
    let key = Signer::generate(Algorithm::RS256);
    let folder = tempfile::tempdir().unwrap();
    let pem = folder.path().join("key.pem");
    std::fs::write(&pem, &key.public_pem).unwrap();
    let instance = with_tokens()
        .flag(&format!("--token-public-key {} --token-audience us --token-issuer them", pem.display()))
        .start()
        .await;
    let shared = Signer::shared(SECRET);
    let valid = bearer(&shared.sign(&good()));
    let mut neighbour = websocket("127.0.0.1", &instance, "channel=a", &[("authorization", &valid)]).await.unwrap();

    for (number, (what, token, why)) in forgeries(&key, &shared).iter().enumerate() {
        let (status, code, message) = subscribe(&instance, &format!("channel=a&token={token}"), &[]).await;
        assert_eq!((status, &*code), (401, "unauthorized"), "{what}: {message}");
        assert!(message.contains(why), "{what}: {message}");
        assert_eq!(publish(&instance, "a", &bearer(token)).await.0, 401, "{what}");
        // And who is in goes on.
        let (status, answer) =
            instance.post_with("/publish?channel=a", &[("authorization", &valid)], number.to_string()).await;
        assert_eq!(status, 200, "{answer}");
        assert_eq!(neighbour.text().await, number.to_string());
    }
    // Within the leeway of clocks.
    for claims in [with("exp", at(-10).into()), with("nbf", at(20).into()), with("exp", json!(at(60) as f64 + 0.5))] {
        assert_eq!(subscribe(&instance, &format!("channel=a&token={}", shared.sign(&claims)), &[]).await.0, 101);
    }
}

#[tokio::test]
async fn a_claim_of_a_wrong_type_is_refused_and_not_taken_for_none() {
    // Nothing is configured that the claims would be compared with.
    let instance = with_tokens().start().await;
    let shared = Signer::shared(SECRET);
    let good = claims(&["*"], &["*"]);
    let with = |name: &str, value: Value| {
        let mut claims = good.clone();
        claims[name] = value;
        claims
    };
    let lists = json!([["*"], ["*"]]);
    let mut wrong = vec![json!([good["exp"]]), json!([good["exp"], lists]), json!("all"), Value::Null];
    for name in ["sub", "iss", "jti", "aud"] {
        wrong
            .extend([json!(7), Value::Null, json!({"a": "b"}), json!([7]), json!(true)].map(|value| with(name, value)));
    }
    wrong.extend(["sub", "iss", "jti"].map(|name| with(name, json!(["a"]))));
    for name in ["exp", "nbf", "iat"] {
        wrong.extend([json!("1"), Value::Null, json!([1]), json!(true)].map(|value| with(name, value)));
    }
    for value in [lists, Value::Null, json!("*"), json!({"subscribe": "*"}), json!({"subscribe": ["*"], "read": ["*"]})]
    {
        wrong.push(with("livebridge", value));
    }
    for claims in wrong {
        let (status, code, message) =
            subscribe(&instance, &format!("channel=a&token={}", shared.sign(&claims)), &[]).await;
        assert_eq!((status, &*code), (401, "unauthorized"), "{claims}");
        assert!(message.contains("claim"), "{claims}: {message}");
    }
    for (name, value) in
        [("sub", json!("a")), ("iss", json!("b")), ("iat", json!(1.5)), ("nbf", json!(1)), ("own", json!(null))]
    {
        let token = shared.sign(&with(name, value));
        assert_eq!(subscribe(&instance, &format!("channel=a&token={token}"), &[]).await.0, 101, "{name}");
    }
    // The header has one form as well.
    let header = json!(["HS256", null, null]);
    let (status, ..) = subscribe(&instance, &format!("channel=a&token={}", assemble(&header, &good, b"x")), &[]).await;
    assert_eq!(status, 401);
}

#[tokio::test]
async fn a_body_that_outlasts_its_token_is_not_published() {
    let instance = with_tokens().flag("--token-leeway-seconds 0").start().await;
    let mut claims = claims(&["a"], &["a"]);
    claims["exp"] = at(2).into();
    let short = Signer::shared(SECRET).sign(&claims);
    let mut stream = connect_from("127.0.0.1", &instance).await;
    let head = format!(
        "POST /publish?channel=a HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {short}\r\nConnection: close\r\nContent-Length: 4\r\n\r\nha"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let expired = || async { instance.get(&format!("/channels/a/messages?token={short}")).await.0.as_u16() == 401 };
    until("the token has expired", expired).await;
    stream.write_all(b"lf").await.unwrap();
    let answer = rest(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 401 ") && answer.contains("has expired"), "{answer}");
    let history = instance.get_json(&format!("/channels/a/messages?token={}", token(&["a"], &[]))).await;
    assert_eq!(history["offset"], 0);
}

#[tokio::test]
async fn a_batch_of_a_client_that_may_publish_nothing_is_refused_before_it_is_read() {
    let rules = "[[channel]]\nmatch = 'chat'\nanonymous = ['publish']\n";
    let instance = with_tokens().start().await;
    let lenient = with_tokens().rules(rules).start().await;
    let reader = bearer(&token(&["*"], &[]));
    let mut stream = connect_from("127.0.0.1", &instance).await;
    let head = format!(
        "POST /publish HTTP/1.1\r\nHost: x\r\nAuthorization: {reader}\r\nContent-Type: application/x-ndjson\r\nContent-Length: 8000000\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    // Nothing of the body was sent, so nothing of it is waited for.
    let mut start = [0; 12];
    soon("an answer", stream.read_exact(&mut start)).await.unwrap();
    assert_eq!(&start, b"HTTP/1.1 403");
    // Where everybody may publish somewhere, the lines decide.
    let headers = [("authorization", &*reader), ("content-type", "application/x-ndjson")];
    for (channel, expected) in [("chat", 200), ("other", 403)] {
        let line = format!("{{\"channel\":\"{channel}\",\"data\":1}}");
        assert_eq!(lenient.post_with("/publish", &headers, line).await.0.as_u16(), expected, "{channel}");
    }
}

#[tokio::test]
async fn what_everybody_may_do_stands_in_the_rules() {
    let rules = "[[channel]]\nmatch = 'public:*'\nanonymous = ['subscribe']\n[[channel]]\nmatch = 'chat'\nanonymous = ['subscribe', 'publish']\n";
    let instance = with_tokens().rules(rules).start().await;
    assert_eq!(subscribe(&instance, "channel=public:a", &[]).await.0, 101);
    assert_eq!(instance.get("/channels/public:a/messages").await.0.as_u16(), 200);
    assert_eq!(publish(&instance, "public:a", "").await, (401, "unauthorized".into()));
    let (status, code, message) = subscribe(&instance, "channel=public:a&channel=live", &[]).await;
    assert_eq!((status, &*code), (401, "unauthorized"));
    assert!(message.contains("the channel live"), "{message}");
    let mut socket = instance.ws("channel=chat").await;
    socket.send("hello").await;
    assert_eq!(socket.text().await, "hello");
    // A token adds to it, a bad one is told all the same.
    let lines = [("authorization", &*bearer(&token(&["live"], &[])))];
    assert_eq!(subscribe(&instance, "channel=public:a&channel=live", &lines).await.0, 101);
    assert_eq!(subscribe(&instance, "channel=public:a&token=stale", &[]).await.0, 401);
}

#[tokio::test]
async fn a_websocket_client_publishes_only_where_its_token_allows_it() {
    let instance = with_tokens().start().await;
    let reader = token(&["a"], &["b"]);
    let writer = token(&["a"], &["a"]);
    let mut bare = instance.ws(&format!("channel=a&token={reader}")).await;
    bare.send("refused").await;
    let (code, reason) = bare.closed().await;
    assert_eq!(code, 1008);
    assert!(reason.starts_with("publish_refused"), "{reason}");
    let mut told = instance.ws(&format!("channel=a&format=json&token={reader}")).await;
    assert_eq!(told.json().await["event"], "welcome");
    told.send("refused").await;
    let error = told.json().await;
    assert_eq!((&error["event"], &error["code"]), (&"error".into(), &"publish_refused".into()), "{error}");
    let mut writes = instance.ws(&format!("channel=a&token={writer}")).await;
    writes.send("allowed").await;
    assert_eq!(writes.text().await, "allowed");
    // Who was told listens on, and nothing that was refused came before.
    assert_eq!(told.json().await["data"], "allowed");
}

#[tokio::test]
async fn at_a_tokens_end_its_subscribers_are_sent_for_a_fresh_one() {
    let instance = with_tokens().flag("--token-leeway-seconds 0").start().await;
    let mut claims = claims(&["a"], &["a"]);
    let lasting = Signer::shared(SECRET).sign(&claims);
    claims["exp"] = at(3).into();
    let short = Signer::shared(SECRET).sign(&claims);
    let mut stays = instance.ws(&format!("channel=a&token={lasting}")).await;
    let mut socket = instance.ws(&format!("channel=a&token={short}")).await;
    let mut events = instance.events(&format!("channel=a&token={short}")).await;
    let headers = [("authorization", &*bearer(&lasting))];
    instance.post_with("/publish?channel=a", &headers, "before").await;
    assert_eq!([socket.text().await, events.next().await.data, stays.text().await], ["before"; 3]);

    let (code, reason) = socket.closed().await;
    assert_eq!(code, 4003);
    assert!(reason.starts_with("token_expired"), "{reason}");
    let event = events.next().await;
    assert_eq!(event.kind, "livebridge:token_expired");
    assert_eq!(soon("the end of the stream", events.try_next()).await, None);
    // The same token again is refused.
    assert_eq!(subscribe(&instance, &format!("channel=a&token={short}"), &[]).await.0, 401);
    instance.post_with("/publish?channel=a", &headers, "after").await;
    assert_eq!(stays.text().await, "after");
}

#[tokio::test]
async fn no_secret_is_shown_in_logs_help_or_errors() {
    let token = token(&["a"], &["a"]);
    let signature = token.rsplit('.').next().unwrap();
    let secrets = [KEY, OTHER_KEY, SECRET, &token, signature];
    let shows = |text: &str| secrets.iter().any(|secret| text.contains(secret));
    let instance = with_tokens()
        .env("LIVEBRIDGE_LOG", "trace")
        .env("LIVEBRIDGE_PUBLISH_KEY", KEY)
        .rules(&format!("[[publish_key]]\nkey = '{OTHER_KEY}'\n"))
        .start()
        .await;
    for authorization in [bearer(KEY), bearer(&token), bearer(&format!("{token}x"))] {
        publish(&instance, "a", &authorization).await;
        publish(&instance, "b*", &authorization).await;
        subscribe(&instance, "channel=b", &[("authorization", &authorization), ("cookie", &authorization)]).await;
    }
    subscribe(&instance, &format!("channel=b&token={token}"), &[]).await;
    assert_eq!(subscribe(&instance, &format!("channel=a&token={token}"), &[]).await.0, 101);
    assert!(!shows(&instance.log()), "{}", instance.log());

    let folder = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str], name: &str, value: &str| {
        let output = command(folder.path()).args(arguments).env(name, value).output().unwrap();
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    };
    for command in
        [&["--help"][..], &["publish", "--help"], &["tail", "--help"], &["token", "--help"], &["check", "--help"]]
    {
        for (name, value) in
            [("LIVEBRIDGE_PUBLISH_KEY", KEY), ("LIVEBRIDGE_TOKEN_SECRET", SECRET), ("LIVEBRIDGE_TOKEN", &token)]
        {
            assert!(!run(command, name, value).contains(value), "{command:?} shows {name}");
        }
    }
    for (name, unfit) in [("LIVEBRIDGE_PUBLISH_KEY", "too-short"), ("LIVEBRIDGE_TOKEN_SECRET", "too-short")] {
        let error = run(&["check"], name, unfit);
        assert!(error.contains(name) && !error.contains(unfit), "{error}");
    }
}

#[tokio::test]
async fn the_commands_make_a_token_and_show_it() {
    let instance = with_tokens().start().await;
    let folder = tempfile::tempdir().unwrap();
    let url = instance.url("");
    let run = |arguments: &[&str], environment: &[(&str, &str)]| {
        command(folder.path()).args(arguments).envs(environment.iter().copied()).output().unwrap()
    };
    let arguments = ["token", "--subscribe", "sheet:*", "--publish", "sheet:q3", "--expires", "10m"];
    let made = run(&arguments, &[("LIVEBRIDGE_TOKEN_SECRET", SECRET)]);
    let token = String::from_utf8(made.stdout).unwrap().trim().to_owned();
    let publish = ["publish", "sheet:q3", "hello", "--url", &url];
    let refused = run(&publish, &[]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("401"));
    assert!(run(&publish, &[("LIVEBRIDGE_TOKEN", &token)]).status.success());
    let elsewhere = run(&["publish", "sheet:q4", "hello", "--url", &url, "--token", &token], &[]);
    assert!(String::from_utf8_lossy(&elsewhere.stderr).contains("forbidden"));

    let mut tail = tokio::process::Command::from(command(folder.path()));
    tail.args(["tail", "sheet:q3", "--last", "1", "--url", &url, "--token", &token]);
    let mut child = tail.stdout(std::process::Stdio::piped()).kill_on_drop(true).spawn().unwrap();
    let mut lines = tokio::io::AsyncBufReadExt::lines(tokio::io::BufReader::new(child.stdout.take().unwrap()));
    assert_eq!(soon("tail prints", lines.next_line()).await.unwrap().unwrap(), "hello");
}
