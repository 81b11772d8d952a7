//! Requests, errors, limits, and the commands.

use std::process::Stdio;

use serde_json::Value;

use crate::support::instance::{Instance, Options, command};
use crate::support::{channel, until};

async fn error_of(answer: (reqwest::StatusCode, String)) -> (u16, String, String) {
    let body: serde_json::Value = serde_json::from_str(&answer.1).unwrap();
    let text = |name: &str| body["error"][name].as_str().unwrap_or_default().to_owned();
    (answer.0.as_u16(), text("code"), text("message"))
}

#[tokio::test]
async fn a_request_that_cannot_be_understood_is_told_why() {
    let instance = Instance::embedded().await;
    for (path, status, code, part) in [
        ("/ws", 426, "upgrade_required", "new WebSocket("),
        ("/ws?channel=a*b", 400, "channel_invalid", "'*'"),
        ("/ws?channel=", 400, "channel_invalid", "default channel"),
        ("/ws?channel=livebridge:note:a", 400, "channel_invalid", "reserved"),
        ("/ws?format=xml", 400, "parameter_invalid", "json"),
        ("/events?channel=a%0Ab", 400, "channel_invalid", "control characters"),
        ("/ws?since=soon", 400, "parameter_invalid", "EPOCH:OFFSET"),
        ("/ws?channel=a&channel=b&since=1:2", 400, "parameter_invalid", "2 channels"),
        ("/events?last=-1", 400, "parameter_invalid", "`last`"),
        ("/channels/a%2Fb*/messages", 400, "channel_invalid", "'*'"),
        ("/channels/a/messages?limit=0", 400, "parameter_invalid", "`limit`"),
        ("/nothing/here", 404, "not_found", "path"),
        ("/metrics/", 404, "not_found", "use /metrics"),
        ("/channels/a/messages//", 404, "not_found", "use /channels/a/messages"),
        ("//", 404, "not_found", "slash"),
        ("/publish", 405, "method_not_allowed", "method"),
    ] {
        let (got_status, got_code, message) = error_of(instance.get(path).await).await;
        assert_eq!((got_status, got_code.as_str()), (status, code), "{path}");
        assert!(message.contains(part), "{path}: {message}");
    }
}

#[tokio::test]
async fn a_misspelt_channel_is_not_taken_for_the_default_channel() {
    let instance = Instance::embedded().await;
    let names =
        ["channel[]", "channel%5B%5D", "channel[0]", "channel[12]", "channels", "channels[]", "Channel", "CHANNEL"];
    for name in names.into_iter().chain(["chanel", "chanels"]) {
        let (status, answer) = instance.post(&format!("/publish?{name}=a"), "x").await;
        assert_eq!((status.as_u16(), &answer["error"]["code"]), (400, &"parameter_invalid".into()), "{name}");
        for path in ["ws", "events"] {
            let (status, code, message) = error_of(instance.get(&format!("/{path}?channel=b&{name}=a")).await).await;
            assert_eq!((status, &*code), (400, "parameter_invalid"), "{path} {name}");
            assert!(message.contains("`channel=NAME`"), "{message}");
        }
    }
    // Others are others' business.
    let (status, answer) = instance.post("/publish?channel=b&channel_id=7&channel[a]=8&mychannels=9", "x").await;
    assert_eq!((status.as_u16(), &answer["messages"][0]["channel"]), (200, &"b".into()), "{answer}");
    assert_eq!(instance.get_json("/channels/live/messages").await["offset"], 0);
}

#[tokio::test]
async fn lines_of_json_are_a_batch_by_each_of_their_names() {
    let instance = Instance::embedded().await;
    for (number, kind) in
        ["x-ndjson", "ndjson", "jsonl", "x-jsonlines", "json-lines", "NDJSON; charset=utf-8"].into_iter().enumerate()
    {
        let headers = [("content-type", &*format!("application/{kind}"))];
        let (status, answer) = instance.post_with("/publish?channel=a", &headers, "{\"data\":1}\n{\"data\":2}\n").await;
        assert_eq!((status.as_u16(), answer["messages"].as_array().map(Vec::len)), (200, Some(2)), "{kind}: {answer}");
        assert_eq!(answer["messages"][1]["offset"], 2 * (number + 1));
    }
    for kind in ["application/json", "text/plain"] {
        let headers = [("content-type", kind)];
        let (_, answer) = instance.post_with("/publish?channel=b", &headers, "{\"data\":1}\n{\"data\":2}\n").await;
        assert_eq!(answer["messages"].as_array().map(Vec::len), Some(1), "{kind}: {answer}");
    }
}

#[tokio::test]
async fn an_idempotency_key_in_quotes_is_the_same_key_as_without() {
    let instance = Instance::embedded().await;
    let publish = async |key: &str, body: &'static str| {
        let (status, answer) = instance.post_with("/publish?channel=a", &[("idempotency-key", key)], body).await;
        (status.as_u16(), answer["messages"][0]["offset"].clone(), answer["error"]["code"].clone())
    };
    let first = publish("8e03-7", "x").await;
    assert_eq!(first, (200, 1.into(), Value::Null));
    assert_eq!(publish("\"8e03-7\"", "x").await, first);
    assert_eq!(publish("\"8e03-7\"", "y").await.0, 422);
    assert_eq!(publish("a\"b\\c", "x").await.1, 2);
    assert_eq!(publish("\"a\\\"b\\\\c\"", "x").await.1, 2);
    assert_eq!(publish("a b", "x").await.1, 3);
    assert_eq!(publish("\" a b\"", "x").await.1, 4, "a space within the quotes is one of the key's");
    for malformed in ["\"", "\"a", "\"a\\\"", "\"a\\b\"", "\"a\"b", "\"a\", \"b\"", "\"\"", "\"a\";b=1"] {
        assert_eq!(publish(malformed, "x").await, (400, Value::Null, "parameter_invalid".into()), "{malformed}");
    }
    assert_eq!(instance.get_json("/channels/a/messages").await["offset"], 4);
}

#[tokio::test]
async fn a_channel_may_stand_percent_encoded_in_the_path() {
    let instance = Instance::embedded().await;
    instance.publish("a/b:c", "x").await;
    let history = instance.get_json("/channels/a%2Fb%3Ac/messages").await;
    assert_eq!((&history["channel"], &history["messages"][0]["data"]), (&"a/b:c".into(), &"x".into()));
}

#[tokio::test]
async fn a_body_over_the_limit_is_413_and_at_the_limit_it_is_taken() {
    let instance = Options::default().flag("--max-message-bytes 1000").start().await;
    let (status, _) = instance.post("/publish", vec![b'x'; 1000]).await;
    assert_eq!(status, 200);
    for chunked in [false, true] {
        let body = vec![b'x'; 1001];
        let body = if chunked {
            reqwest::Body::wrap_stream(futures::stream::iter([Ok::<_, std::io::Error>(body)]))
        } else {
            body.into()
        };
        let (status, answer) = instance.post("/publish", body).await;
        assert_eq!(status, 413);
        assert_eq!(answer["error"]["code"], "body_too_large");
    }
    let mut socket = instance.ws("").await;
    socket.send("y".repeat(1001)).await;
    assert_eq!(socket.closed().await.0, 1009);
}

#[tokio::test]
async fn a_batch_with_a_wrong_line_publishes_nothing_and_names_the_line() {
    let instance = Instance::embedded().await;
    let good = "{\"channel\":\"a\",\"data\":1}\n";
    for (line, code) in [
        ("{\"channel\":\"a\"", "batch_invalid"),
        ("{\"channel\":\"a\"}", "batch_invalid"),
        ("{\"channel\":\"a b\",\"data\":1}", "channel_invalid"),
        ("{\"channel\":\"a\",\"data\":1,\"extra\":2}", "batch_invalid"),
        ("{\"channel\":\"a\",\"data\":\"?\",\"encoding\":\"base64\"}", "batch_invalid"),
        ("[1]", "batch_invalid"),
        (" [\"a\",1]", "batch_invalid"),
        ("\u{feff}{}", "batch_invalid"),
    ] {
        let body = format!("{good}{line}\n{good}");
        let (status, answer) = instance.post_with("/publish", &[("content-type", "application/x-ndjson")], body).await;
        assert_eq!(status, 400, "{line}");
        assert_eq!(answer["error"]["code"], code, "{line}: {answer}");
        assert_eq!(answer["error"]["line"], 2, "{line}: {answer}");
    }
    // What stands in the URL would be lost.
    let ndjson = [("content-type", "application/x-ndjson")];
    let (status, answer) = instance.post_with("/publish?key=B4", &ndjson, good).await;
    assert_eq!((status.as_u16(), &answer["error"]["code"]), (400, &"parameter_invalid".into()));
    assert_eq!(instance.get_json("/channels/a/messages").await["offset"], 0);
}

#[tokio::test]
async fn an_oversized_frame_is_refused_by_its_header_alone() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let instance = Instance::embedded().await;
    let mut stream = tokio::net::TcpStream::connect(&instance.address).await.unwrap();
    let request = "GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n";
    // The first frame's header travels with the handshake: what hyper read ahead must reach the codec.
    let mut bytes = request.as_bytes().to_vec();
    bytes.extend_from_slice(&[0x82, 0xFF, 0x00, 0x00, 0x7F, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 1, 2, 3, 4]);
    stream.write_all(&bytes).await.unwrap();
    let mut answer = Vec::new();
    crate::support::soon("the end", stream.read_to_end(&mut answer)).await.unwrap();
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.starts_with("HTTP/1.1 101 Switching Protocols\r\n"), "{answer}");
    assert!(answer.contains("message_too_big"), "{answer}");
}

#[tokio::test]
async fn a_client_that_ends_its_sending_side_is_answered_and_a_subscriber_that_does_is_gone() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let instance = Instance::embedded().await;
    let mut neighbour = instance.ws("channel=half").await;
    let connect = async |request: &str| {
        let mut stream = tokio::net::TcpStream::connect(&instance.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = String::new();
        crate::support::soon("the end", stream.read_to_string(&mut answer)).await.unwrap();
        answer
    };
    for _ in 0..20 {
        let answer = connect("POST /publish?channel=half HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nsent").await;
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("]}\n"), "{answer:?}");
        assert_eq!(neighbour.text().await, "sent");
    }
    let cut = connect("POST /publish?channel=half HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nsent").await;
    assert!(cut.starts_with("HTTP/1.1 400 ") && cut.contains("body_incomplete"), "{cut:?}");
    let handshake = crate::support::raw::HANDSHAKE;
    connect("GET /events HTTP/1.1\r\nHost: x\r\n\r\n").await;
    connect(&format!("GET /ws HTTP/1.1\r\n{handshake}")).await;
    until("only the neighbour is there", || async { instance.metric("livebridge_connections").await == 1.0 }).await;
}

#[tokio::test]
async fn health_readiness_and_metrics_answer() {
    let instance = Options::default().flag("--instance-name lb-7").start().await;
    assert_eq!(instance.get_json("/healthz").await["instance"], "lb-7");
    assert_eq!(instance.get_json("/readyz").await["status"], "ready");
    instance.publish("a", "x").await;
    assert_eq!(instance.metric("livebridge_published_total").await, 1.0);
    assert_eq!(instance.metric("livebridge_broker_up").await, 1.0);
}

#[tokio::test]
async fn publish_and_tail_work_from_the_command_line() {
    let instance = Instance::embedded().await;
    let folder = tempfile::tempdir().unwrap();
    let channel = channel("cli");
    let url = instance.url("");
    let publish = |arguments: &[&str]| {
        let mut publish = command(folder.path());
        publish.args(["publish", "--url", &url]).args(arguments);
        publish
    };
    assert!(publish(&[&channel, "one"]).status().unwrap().success());
    let out = std::fs::File::create(folder.path().join("out")).unwrap();
    let mut tail =
        command(folder.path()).args(["tail", "--url", &url, "--last", "10", &channel]).stdout(out).spawn().unwrap();
    let mut lines = publish(&[&channel, "-"]).stdin(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut lines.stdin.take().unwrap(), b"two\nthree").unwrap();
    assert!(lines.wait().unwrap().success());
    let printed = || async { std::fs::read_to_string(folder.path().join("out")).unwrap() == "one\ntwo\nthree\n" };
    until("tail prints all three", printed).await;
    tail.kill().unwrap();
    tail.wait().unwrap();
    let refused = publish(&["a b", "x"]).output().unwrap();
    assert_eq!(refused.status.code(), Some(2));
    let nobody = publish(&[&channel, "x", "--url", "http://127.0.0.1:1"]).output().unwrap();
    assert_eq!(nobody.status.code(), Some(2), "{}", String::from_utf8_lossy(&nobody.stderr));
}

#[tokio::test]
async fn a_name_to_listen_on_is_resolved() {
    let instance = Options::default().listen("localhost:0").start().await;
    assert!(instance.address.starts_with("127.0.0.1:"), "{}", instance.address);
    let instance = Options::default().listen("[::1]:0").start().await;
    assert!(instance.address.starts_with("[::1]:"), "{}", instance.address);
}

#[tokio::test]
async fn a_mistake_in_the_configuration_is_an_error_that_names_the_place() {
    let folder = tempfile::tempdir().unwrap();
    let fails = |arguments: &[&str], part: &str| {
        let output = command(folder.path()).args(arguments).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && error.contains(part), "{arguments:?}: {error}");
    };
    for (listen, part) in [
        ("nowhere", "127.0.0.1:8000"),
        (":8000", "the address before the port"),
        ("8000", "0.0.0.0:8000"),
        ("localhost:port", "the port must be a number"),
        ("localhost:65536", "the port must be a number"),
        ("::1:8000", "in brackets"),
        ("nowhere.invalid:8000", "can't be resolved"),
    ] {
        fails(&["--listen", listen], "--listen");
        fails(&["--listen", listen], part);
    }
    fails(&["--redis-url", "http://x"], "redis://");
    fails(&["--rules", "missing.toml"], "missing.toml");
    std::fs::write(folder.path().join("livebridge.toml"), "[[channel]]\nmatch = 'a'\nhistroy = false\n").unwrap();
    fails(&[], "histroy");
    fails(&["check"], "histroy");
    std::fs::write(folder.path().join("livebridge.toml"), "").unwrap();
    std::fs::write(folder.path().join(".env"), "LISTEN=nowhere\n").unwrap();
    fails(&[], "nowhere");
}
