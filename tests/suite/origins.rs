//! Which pages may speak to an instance: what a browser would send for them, and what it would be told.

use reqwest::header::HeaderMap;
use reqwest::{Method, StatusCode};

use crate::support::instance::{Instance, Options};
use crate::support::raw::websocket;
use crate::support::tokens::{SECRET, token};

const FOREIGN: &str = "http://evil.example";
const LISTED: &str = "https://app.example.com";

async fn ask(instance: &Instance, method: &str, path: &str, lines: &[(&str, &str)]) -> (StatusCode, HeaderMap, String) {
    let method: Method = method.parse().unwrap();
    let mut request = reqwest::Client::new().request(method, instance.url(path));
    for (name, value) in lines {
        request = request.header(*name, *value);
    }
    let response = request.send().await.unwrap();
    let (status, headers) = (response.status(), response.headers().clone());
    // An event stream does not end.
    let is_stream = headers["content-type"].as_bytes().starts_with(b"text/event-stream");
    let body = if is_stream { String::new() } else { response.text().await.unwrap() };
    (status, headers, body)
}

async fn preflight(instance: &Instance, origin: &str) -> (u16, HeaderMap) {
    let lines = [("origin", origin), ("access-control-request-method", "POST")];
    let mut request = reqwest::Client::new().request(Method::OPTIONS, instance.url("/publish"));
    for (name, value) in lines {
        request = request.header(name, value);
    }
    let response = request.send().await.unwrap();
    (response.status().as_u16(), response.headers().clone())
}

async fn socket(instance: &Instance, origin: &str) -> u16 {
    match websocket("127.0.0.1", instance, "channel=a", &[("origin", origin)]).await {
        Ok(_) => 101,
        Err((status, body)) => {
            assert!(body.contains("origin_not_allowed"), "{body}");
            status
        }
    }
}

#[tokio::test]
async fn a_page_of_another_origin_gets_nothing_and_publishes_nothing() {
    let instance = Instance::embedded().await;
    let own = instance.url("");
    let mut neighbour = instance.ws("channel=a").await;
    assert_eq!(socket(&instance, FOREIGN).await, 403);
    assert_eq!(socket(&instance, "null").await, 403);
    assert_eq!(socket(&instance, &own).await, 101);
    for path in ["/events?channel=a", "/channels/a/messages"] {
        let (status, headers, body) = ask(&instance, "GET", path, &[("origin", FOREIGN)]).await;
        assert!(status == 403 && body.contains("origin_not_allowed"), "{path}: {status} {body}");
        assert_eq!(headers["vary"], "Origin");
        assert!(!headers.contains_key("access-control-allow-origin"));
        assert_eq!(ask(&instance, "GET", path, &[("origin", &own)]).await.0, 200, "{path}");
        assert_eq!(ask(&instance, "GET", path, &[]).await.0, 200, "{path}");
    }
    // What a form or a `no-cors` request of any page can send, without a preflight.
    for kind in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"] {
        let lines = [("origin", FOREIGN), ("content-type", kind)];
        assert_eq!(ask(&instance, "POST", "/publish?channel=a", &lines).await.0, 403, "{kind}");
    }
    assert_eq!(ask(&instance, "POST", "/publish?channel=a", &[("origin", &own)]).await.0, 200);
    // The first that the neighbour receives is the page's own.
    assert_eq!(neighbour.text().await, "");
    assert_eq!(instance.refused("origin_not_allowed").await, 7.0);
    assert_eq!(preflight(&instance, FOREIGN).await.0, 403);
}

#[tokio::test]
async fn a_listed_origin_may_read_answers_and_nobody_else() {
    let instance = Options::default().flag(&format!("--allowed-origin {LISTED},http://localhost:3000")).start().await;
    assert_eq!(socket(&instance, LISTED).await, 101);
    assert_eq!(socket(&instance, FOREIGN).await, 403);
    assert_eq!(socket(&instance, &instance.url("")).await, 403, "the list says it all");
    let (status, headers) = preflight(&instance, LISTED).await;
    assert_eq!(status, 204);
    for (name, part) in [
        ("access-control-allow-origin", LISTED),
        ("access-control-allow-credentials", "true"),
        ("access-control-allow-methods", "POST"),
        ("access-control-allow-headers", "Idempotency-Key"),
        ("vary", "Origin"),
    ] {
        assert!(headers[name].to_str().unwrap().contains(part), "{name}: {headers:?}");
    }
    for path in ["/events?channel=a", "/channels/a/messages", "/livebridge.js", "/readyz", "/channels/a*/messages"] {
        let (_, headers, _) = ask(&instance, "GET", path, &[("origin", LISTED)]).await;
        assert_eq!(headers["access-control-allow-origin"], LISTED, "{path}");
        assert_eq!(headers["vary"], "Origin", "{path}");
    }
    for path in ["/livebridge.js", "/events?channel=a"] {
        let (_, headers, _) = ask(&instance, "GET", path, &[("origin", FOREIGN)]).await;
        assert!(!headers.contains_key("access-control-allow-origin"), "{path}");
    }
    // Without an origin as well: a cache must not hand that answer to a page.
    assert_eq!(ask(&instance, "GET", "/livebridge.js", &[]).await.1["vary"], "Origin");
}

#[tokio::test]
async fn a_star_lets_every_page_in_but_not_with_the_users_cookies() {
    let instance = Options::default()
        .flag("--allowed-origin * --token-cookie session")
        .env("LIVEBRIDGE_TOKEN_SECRET", SECRET)
        .start()
        .await;
    let token = token(&["a"], &["a"]);
    let bearer = format!("Bearer {token}");
    let (status, headers, _) =
        ask(&instance, "GET", "/channels/a/messages", &[("origin", FOREIGN), ("authorization", &bearer)]).await;
    assert_eq!(status, 200);
    assert_eq!(headers["access-control-allow-origin"], "*");
    assert!(!headers.contains_key("access-control-allow-credentials"));
    let cookie = format!("session={token}");
    let (status, _, body) =
        ask(&instance, "GET", "/channels/a/messages", &[("origin", FOREIGN), ("cookie", &cookie)]).await;
    assert!(status == 401 && body.contains("cookie"), "{status} {body}");
}

#[tokio::test]
async fn a_cookie_counts_only_for_pages_that_are_trusted() {
    let instance =
        Options::default().flag("--token-cookie session").env("LIVEBRIDGE_TOKEN_SECRET", SECRET).start().await;
    let own = instance.url("");
    let cookie = format!("theme=dark; session={}", token(&["a"], &["a"]));
    let post = async |lines: &[(&str, &str)]| {
        let lines = [lines, &[("cookie", &*cookie)]].concat();
        ask(&instance, "POST", "/publish?channel=a", &lines).await.0.as_u16()
    };
    assert_eq!(post(&[("origin", &own)]).await, 200);
    assert_eq!(post(&[("origin", FOREIGN)]).await, 403);
    assert_eq!(post(&[("origin", "null")]).await, 403);
    assert_eq!(post(&[]).await, 401, "nobody says which page it was");
    assert_eq!(post(&[("sec-fetch-site", "cross-site")]).await, 401);
    // A browser sends no Origin where a page reads from its own server, but says so.
    assert_eq!(post(&[("sec-fetch-site", "same-origin")]).await, 200);
    assert_eq!(post(&[("sec-fetch-site", "same-site")]).await, 401);
    let lines = [("origin", &*own), ("cookie", &*cookie)];
    assert!(websocket("127.0.0.1", &instance, "channel=a", &lines).await.is_ok());
}
