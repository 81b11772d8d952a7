//! HTTP that could be read in two ways, that is forged, or that is not meant for us.

use tokio::io::AsyncWriteExt;

use super::{ROGUE, assert_untouched, beside, read_through, responses};
use crate::support::instance::{Instance, Options};
use crate::support::raw;

/// What a second reader of the bytes would run.
const SMUGGLED: &str =
    "POST /publish?channel=smuggled HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 1\r\n\r\nx";

/// Sends the lines as the framing of a request, and a second request in what follows; returns what was answered.
async fn smuggle(instance: &Instance, lines: &str, body: &str) -> String {
    let head = format!("POST /publish?channel=first HTTP/1.1\r\nHost: x\r\n{lines}\r\n\r\n");
    raw::answer(ROGUE, instance, format!("{head}{body}").as_bytes()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_whose_length_is_disputed_is_refused_and_what_follows_is_not_run() {
    let instance = Options::default().flag("--request-seconds 2").start().await;
    let chunked = format!("0\r\n\r\n{SMUGGLED}");
    let length = SMUGGLED.len();
    let disputed = [
        format!("Content-Length: 0\r\nContent-Length: {length}"),
        format!("Content-Length: {length}\r\nContent-Length: 0"),
        format!("Content-Length: 0, {length}"),
        "Content-Length: +0".into(),
        "Content-Length: -1".into(),
        "Content-Length: 0x0".into(),
        "Content-Length: 0 0".into(),
        "Content-Length: ".into(),
        "Content-Length: 99999999999999999999999".into(),
        "Transfer-Encoding: chunked, identity".into(),
        "Transfer-Encoding: xchunked".into(),
        "Transfer-Encoding: identity".into(),
        "Transfer-Encoding: gzip".into(),
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity".into(),
        "Transfer-Encoding: \x0bchunked".into(),
        "Transfer-Encoding: \"chunked\"".into(),
        "Transfer-Encoding : chunked".into(),
        "Transfer-Encoding\t: chunked".into(),
        " Transfer-Encoding: chunked".into(),
        "Transfer-Encoding:\r\n chunked".into(),
        "X: y\rTransfer-Encoding: chunked".into(),
        "Content-Length: 0\0".into(),
    ];
    beside(&instance, async {
        for lines in &disputed {
            let answer = smuggle(&instance, lines, &chunked).await;
            assert!(answer.starts_with("HTTP/1.1 400 "), "{lines:?}: {answer}");
            assert_eq!(responses(&answer), 1, "{lines:?}: {answer}");
        }
    })
    .await;
    assert_untouched(&instance, "smuggled").await;
    assert_untouched(&instance, "first").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_a_length_and_chunks_are_announced_the_chunks_count_and_the_connection_ends() {
    let instance = Options::default().flag("--request-seconds 2").start().await;
    let body = format!("1\r\nx\r\n0\r\n\r\n{SMUGGLED}");
    let all = body.len();
    beside(&instance, async {
        for lines in [
            format!("Content-Length: {all}\r\nTransfer-Encoding: chunked"),
            format!("Transfer-Encoding: chunked\r\nContent-Length: {all}"),
            "Content-Length: 1\r\nTransfer-Encoding: chunked".into(),
        ] {
            // RFC 9112, 6.3.
            let answer = smuggle(&instance, &lines, &body).await;
            assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("connection: close"), "{lines:?}: {answer}");
            assert_eq!(responses(&answer), 1, "{lines:?}: {answer}");
        }
    })
    .await;
    assert_untouched(&instance, "smuggled").await;
    let first = instance.get_json("/channels/first/messages").await;
    assert!(first["offset"] == 3 && first["messages"][0]["data"] == "x", "{first}");
}

#[tokio::test(flavor = "multi_thread")]
async fn chunks_that_are_none_are_refused_and_what_follows_is_not_run() {
    let instance = Options::default().flag("--request-seconds 2").start().await;
    let extension = "x".repeat(20_000);
    let chunks = [
        "FFFFFFFFFFFFFFFFF\r\n".to_owned(),
        "0x1\r\na\r\n0\r\n\r\n".into(),
        "-1\r\na\r\n0\r\n\r\n".into(),
        "+1\r\na\r\n0\r\n\r\n".into(),
        "1\ra\r\n0\r\n\r\n".into(),
        "1\r\nab\r\n0\r\n\r\n".into(),
        "\r\n0\r\n\r\n".into(),
        "g\r\n0\r\n\r\n".into(),
        format!("1;{extension}\r\na\r\n0\r\n\r\n"),
        format!("0\r\nX: {extension}\r\n\r\n"),
        format!("0\r\n{}\r\n", "X: y\r\n".repeat(2000)),
        "1;a\nb\r\na\r\n0\r\n\r\n".into(),
    ];
    beside(&instance, async {
        for body in &chunks {
            let answer = smuggle(&instance, "Transfer-Encoding: chunked", &format!("{body}{SMUGGLED}")).await;
            let shown = &body[..body.len().min(40)];
            assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("body_incomplete"), "{shown:?}: {answer}");
            assert_eq!(responses(&answer), 1, "{shown:?}: {answer}");
        }
    })
    .await;
    assert_untouched(&instance, "smuggled").await;
    assert_untouched(&instance, "first").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_nobody_reads_is_not_taken_for_a_request() {
    let instance = Options::default().flag("--request-seconds 2").start().await;
    let length = SMUGGLED.len();
    beside(&instance, async {
        for target in
            ["GET /healthz", "GET /events?channel=a*", "GET /ws", "POST /nowhere", "PUT /publish", "GET /events"]
        {
            let request = format!(
                "{target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{SMUGGLED}"
            );
            let mut stream = raw::connect_from(ROGUE, &instance).await;
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::from_utf8(read_through(&mut stream, b"\r\n\r\n").await).unwrap();
            if answer.contains("event-stream") {
                stream.shutdown().await.unwrap();
            }
            answer += &raw::rest(&mut stream).await;
            assert_eq!(responses(&answer), 1, "{target}: {answer}");
        }
    })
    .await;
    assert_untouched(&instance, "smuggled").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_names_its_host_once() {
    let instance = Instance::embedded().await;
    for (lines, expected) in [("", "400"), ("Host: a\r\nHost: b\r\n", "400"), ("Host: a\r\n", "200")] {
        let request = format!("GET /healthz HTTP/1.1\r\nConnection: close\r\n{lines}\r\n");
        let answer = raw::answer(ROGUE, &instance, request.as_bytes()).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {expected} ")), "{lines:?}: {answer}");
        assert_eq!(answer.contains("request_invalid"), expected == "400", "{answer}");
    }
    // HTTP/1.0 knows no such line.
    let answer = raw::answer(ROGUE, &instance, b"GET /healthz HTTP/1.0\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.0 200 "), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_one_expectation_that_there_is_is_met() {
    let instance = Instance::embedded().await;
    for (lines, expected) in [
        ("Expect: 200-ok", "HTTP/1.1 417 "),
        ("Expect: 100-continue, 200-ok", "HTTP/1.1 417 "),
        ("Expect: 100-continue\r\nExpect: x", "HTTP/1.1 417 "),
        ("Expect: \u{fc}", "HTTP/1.1 417 "),
        ("Expect: 100-Continue", "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 "),
    ] {
        let request =
            format!("POST /publish HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 1\r\n{lines}\r\n\r\nx");
        let answer = raw::answer(ROGUE, &instance, request.as_bytes()).await;
        assert!(answer.starts_with(expected), "{lines}: {answer}");
        assert_eq!(answer.contains("expectation_failed"), expected.contains("417"), "{lines}: {answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_other_spelling_of_a_path_leads_to_it() {
    let instance = Instance::embedded().await;
    let spellings = [
        "/metrics/",
        "/metrics//",
        "//metrics",
        "///metrics",
        "/./metrics",
        "/x/../metrics",
        "/%6detrics",
        "/%6Detrics",
        "/metrics%2F",
        "/metrics/?a=b",
        "/METRICS",
        "/metrics/.",
        "/metrics;a",
        "/readyz/",
        "/healthz/",
        "/livebridge.js/",
        "//",
        "/openapi.json/",
    ];
    beside(&instance, async {
        for path in spellings {
            let answer = raw::get(ROGUE, &instance, path, "").await;
            assert!(answer.starts_with("HTTP/1.1 404 ") && answer.contains("not_found"), "{path}: {answer}");
        }
        let long = format!("/{}/", "x".repeat(2000));
        let answer = raw::get(ROGUE, &instance, &long, "").await;
        assert!(answer.starts_with("HTTP/1.1 404 ") && answer.len() < 500, "{answer}");
    })
    .await;
    for path in ["/publish/", "/publish//", "//publish"] {
        let (status, answer) = instance.post(&format!("{path}?channel=a"), "x").await;
        assert_eq!((status.as_u16(), &answer["error"]["code"]), (404, &"not_found".into()), "{path}");
    }
    assert_untouched(&instance, "a").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_meant_for_us_is_refused() {
    let instance = Options::default().flag("--request-seconds 2").start().await;
    let attacks: &[(&str, &[&str])] = &[
        ("GET /\r\n\r\n", &["400"]),
        ("GET /healthz HTTP/0.9\r\n\r\n", &["400"]),
        ("GET /healthz HTTP/2.0\r\nHost: x\r\n\r\n", &["400"]),
        ("GET /healthz HTTP/1.1 HTTP/1.1\r\nHost: x\r\n\r\n", &["400"]),
        ("CONNECT intranet:80 HTTP/1.1\r\nHost: intranet:80\r\nConnection: close\r\n\r\n", &["400"]),
        ("CONNECT /ws HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", &["400", "404", "405"]),
        ("TRACE / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Secret: cookie\r\n\r\n", &["405"]),
        ("TRACE /ws HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Secret: cookie\r\n\r\n", &["405"]),
        ("OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", &["400"]),
        ("GET * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", &["400"]),
        ("GET http://intranet/secret HTTP/1.1\r\nHost: intranet\r\nConnection: close\r\n\r\n", &["404"]),
        ("GET intranet:80 HTTP/1.1\r\nHost: intranet\r\nConnection: close\r\n\r\n", &["400"]),
        ("get /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", &["405"]),
        ("GET  /healthz HTTP/1.1\r\nHost: x\r\n\r\n", &["400"]),
        ("GET /health\x01z HTTP/1.1\r\nHost: x\r\n\r\n", &["400"]),
        ("GET /healthz\tHTTP/1.1\r\nHost: x\r\n\r\n", &["400"]),
        ("GET /healthz HTTP/1.1\r\nHost: x\r\nX\0Y: z\r\n\r\n", &["400"]),
        ("GET /healthz HTTP/1.1\r\nHost: x\r\nX: a\r\n folded\r\n\r\n", &["400"]),
        ("GET /healthz HTTP/1.1\r\nHost: x\r\n: empty\r\n\r\n", &["400"]),
        ("\u{FEFF}GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", &["400"]),
        ("*1\r\n$4\r\nPING\r\n", &["400"]),
    ];
    beside(&instance, async {
        for (request, expected) in attacks {
            let answer = raw::answer(ROGUE, &instance, request.as_bytes()).await;
            let status = answer.split(' ').nth(1).unwrap_or_default();
            assert!(expected.contains(&status), "{request:?}: {answer:?}");
            assert!(responses(&answer) == 1 && !answer.contains("cookie"), "{request:?}: {answer}");
        }
        // HTTP/2 is not even answered.
        assert_eq!(raw::answer(ROGUE, &instance, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await, "");
        // RFC 9112, 3.2.2: the absolute form is to be understood.
        let absolute = "GET http://elsewhere/healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        assert!(raw::answer(ROGUE, &instance, absolute.as_bytes()).await.starts_with("HTTP/1.1 200 "));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_that_change_a_request_for_others_change_nothing_here() {
    let instance = Instance::embedded().await;
    let forged = "X-Original-URL: /publish?channel=forged\r\nX-Rewrite-URL: /metrics\r\nX-HTTP-Method-Override: POST\r\n\
                  X-Forwarded-Host: evil\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Prefix: /evil\r\n\
                  Forwarded: for=127.0.0.1;host=evil\r\nX-Real-IP: 127.0.0.1\r\nVia: 1.1 evil\r\n";
    beside(&instance, async {
        let answer = raw::get(ROGUE, &instance, "/healthz", forged).await;
        assert!(answer.starts_with("HTTP/1.1 200 ") && !answer.contains("evil"), "{answer}");
        let answer = raw::get(ROGUE, &instance, "/publish?channel=forged", forged).await;
        assert!(answer.starts_with("HTTP/1.1 405 ") && !answer.contains("evil"), "{answer}");
    })
    .await;
    assert_untouched(&instance, "forged").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_unpacked() {
    let instance = Options::default().flag("--request-seconds 2").start().await;
    // A little gzip that would be a mebibyte.
    let packed: &[u8] = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\x03\xed\xc1\x01\x0d\x00\x00\x00\xc2\xa0\xf7Om\x0e7";
    for coding in ["gzip", "x-gzip", "deflate", "br", "zstd", "GZIP", "gzip, identity", "unheard-of"] {
        let request = reqwest::Client::new().post(instance.url("/publish?channel=packed")).body(packed);
        let answer = request.header("content-encoding", coding).send().await.unwrap();
        assert_eq!(
            (answer.status().as_u16(), &answer.headers()["accept-encoding"]),
            (415, &"identity".parse().unwrap())
        );
        assert!(answer.text().await.unwrap().contains("encoding_unsupported"), "{coding}");
    }
    for coding in ["gzip, chunked", "deflate, chunked", "compress, chunked", "gzip\r\nTransfer-Encoding: chunked"] {
        let answer = smuggle(&instance, &format!("Transfer-Encoding: {coding}"), "1\r\nx\r\n0\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 501 ") && answer.contains("encoding_unsupported"), "{coding}: {answer}");
        assert!(answer.contains("connection: close"), "{coding}: {answer}");
    }
    assert_untouched(&instance, "packed").await;
    assert_untouched(&instance, "first").await;
    // What somebody packed for his own receivers is a message like any other.
    instance.publish("packed", packed).await;
    let identity = [("content-encoding", "identity")];
    assert_eq!(instance.post_with("/publish?channel=packed", &identity, packed).await.0, 200);
    let history = instance.get_json("/channels/packed/messages").await;
    assert!(history["messages"][0]["encoding"] == "base64" && history["offset"] == 2, "{history}");
    let answer = raw::get(ROGUE, &instance, "/livebridge.js", "Accept-Encoding: gzip, br, zstd\r\n").await;
    assert!(!answer.split("\r\n\r\n").next().unwrap().to_lowercase().contains("content-encoding"));
}

#[tokio::test(flavor = "multi_thread")]
async fn header_lines_with_odd_bytes_are_refused_or_never_repeated() {
    let instance = Instance::embedded().await;
    beside(&instance, async {
        for lines in ["Idempotency-Key: a\rb", "Idempotency-Key: a\0forged", "Last-Event-ID: 1:2\r\n\tforged"] {
            let answer = raw::get(ROGUE, &instance, "/healthz", &format!("{lines}\r\n")).await;
            assert!(answer.starts_with("HTTP/1.1 400 ") && !answer.contains("forged"), "{lines:?}: {answer}");
        }
        // RFC 9112, 2.2: a bare LF may end a line. What it begins is a line of the request, never of the answer.
        let answer = raw::get(ROGUE, &instance, "/healthz", "Idempotency-Key: a\nSet-Cookie: forged=1\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 200 ") && !answer.contains("forged"), "{answer}");
        let request = "POST /publish HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\nIdempotency-Key: \u{fc}\r\n\r\n";
        let answer = raw::answer(ROGUE, &instance, request.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("parameter_invalid"), "{answer}");
        let long = format!("POST /publish HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 1\r\nIdempotency-Key: {}\r\n\r\nx", "k".repeat(256));
        let answer = raw::answer(ROGUE, &instance, long.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("parameter_invalid"), "{answer}");
    })
    .await;
    assert_untouched(&instance, "live").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_are_half_closed_or_reset_leave_nothing_behind() {
    let instance = Options::default().flag("--request-seconds 2").start().await;
    let begins = [
        "",
        "G",
        "GET /healthz HTTP/1.1\r\nHost: x\r\n",
        "POST /publish HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nhalf",
    ];
    beside(&instance, async {
        for round in 0..100 {
            let mut stream = raw::connect_from(ROGUE, &instance).await;
            stream.write_all(begins[round % begins.len()].as_bytes()).await.unwrap();
            match round % 3 {
                0 => stream.shutdown().await.unwrap(),
                1 => socket2::SockRef::from(&stream).set_linger(Some(std::time::Duration::ZERO)).unwrap(),
                _ => {}
            }
            if round % 3 == 0 {
                raw::rest(&mut stream).await;
            }
        }
    })
    .await;
    let alone = || async { instance.metric("livebridge_sockets").await <= 2.0 };
    crate::support::until("all are gone", alone).await;
    assert_untouched(&instance, "live").await;
}
