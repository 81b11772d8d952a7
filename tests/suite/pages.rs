//! What a browser's WebSocket can see and say: closes instead of a handshake's status, subprotocols, a token among them.

use serde_json::json;

use crate::support::instance::{Instance, Options};
use crate::support::raw::{self, HANDSHAKE};
use crate::support::redis::Redis;
use crate::support::tokens::{SECRET, token};
use crate::support::until;

/// A page of the instance's own origin.
async fn page(instance: &Instance, query: &str) -> (u16, String) {
    let own = instance.url("");
    let socket = raw::websocket("127.0.0.1", instance, query, &[("origin", &own)]).await;
    socket.unwrap_or_else(|refused| panic!("{query}: {refused:?}")).closed().await
}

/// The status that a program gets, which shows no origin.
async fn program(instance: &Instance, query: &str) -> u16 {
    raw::websocket("127.0.0.1", instance, query, &[]).await.err().expect(query).0
}

#[tokio::test]
async fn a_page_is_told_by_a_close_what_others_see_as_a_status() {
    let instance = Options::default().env("LIVEBRIDGE_TOKEN_SECRET", SECRET).start().await;
    let allowed = token(&["a"], &[]);
    for (query, status, code, reason) in [
        ("channel=a".to_owned(), 401, 4003, "unauthorized: "),
        ("channel=a&token=x.y.z".to_owned(), 401, 4003, "unauthorized: "),
        (format!("channel=b&token={allowed}"), 403, 1008, "forbidden: "),
        ("channel=a*".to_owned(), 400, 1008, "channel_invalid: "),
        (format!("channel=a&since=soon&token={allowed}"), 400, 1008, "parameter_invalid: "),
    ] {
        assert_eq!(program(&instance, &query).await, status, "{query}");
        let (closed, said) = page(&instance, &query).await;
        assert!(closed == code && said.starts_with(reason), "{query}: {closed} {said}");
    }
    assert_eq!(instance.refused("unauthorized").await, 4.0);
    // Of another origin, a page gets nothing but a status that it can't see.
    let foreign = raw::websocket("127.0.0.1", &instance, "channel=a", &[("origin", "http://evil.example")]).await;
    assert_eq!(foreign.err().map(|refused| refused.0), Some(403));
    until("all are gone", || async { instance.metric("livebridge_connections").await == 0.0 }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_comes_while_the_broker_is_away_is_told_to_try_again() {
    let mut redis = Redis::start().await;
    redis.stop();
    let instance = Options::redis(&redis).start_unready();
    assert_eq!(program(&instance, "channel=a").await, 503);
    let (code, reason) = page(&instance, "channel=a").await;
    assert!(code == 1013 && reason.starts_with("broker_unavailable: "), "{code} {reason}");
}

/// The head that answers a handshake with these offers.
async fn offered(instance: &Instance, query: &str, offers: &[&str]) -> String {
    let lines: String = offers.iter().map(|offer| format!("Sec-WebSocket-Protocol: {offer}\r\n")).collect();
    // The last frame of the client is a close, so that the answer ends.
    let mut request = format!("GET /ws?{query} HTTP/1.1\r\n{lines}{HANDSHAKE}").into_bytes();
    request.extend(b"\x88\x80\0\0\0\0");
    let answer = raw::answer("127.0.0.1", instance, &request).await;
    answer.split("\r\n\r\n").next().unwrap().to_ascii_lowercase()
}

fn chosen(head: &str) -> Option<&str> {
    assert!(head.starts_with("http/1.1 101 "), "{head}");
    head.lines().find_map(|line| line.strip_prefix("sec-websocket-protocol: "))
}

#[tokio::test]
async fn one_of_the_offered_subprotocols_is_answered() {
    let instance = Instance::embedded().await;
    for (offers, answer) in [
        (&[][..], None),
        (&["chat"], Some("chat")),
        (&["chat, superchat"], Some("chat")),
        (&["chat", "livebridge"], Some("livebridge")),
        (&["livebridge.token.abc, chat"], Some("chat")),
        (&["livebridge.token.abc"], None),
        (&[" , "], None),
    ] {
        assert_eq!(chosen(&offered(&instance, "channel=a", offers).await), answer, "{offers:?}");
    }
}

#[tokio::test]
async fn a_token_may_be_an_offered_subprotocol_and_is_neither_said_back_nor_logged() {
    let instance =
        Options::default().env("LIVEBRIDGE_TOKEN_SECRET", SECRET).env("LIVEBRIDGE_LOG", "trace").start().await;
    let token = token(&["a"], &[]);
    let carrier = format!("livebridge.token.{token}");
    for offers in [vec!["livebridge", &carrier], vec![&carrier, "livebridge"]] {
        let head = offered(&instance, "channel=a", &offers).await;
        assert_eq!(chosen(&head), Some("livebridge"));
        assert!(!head.contains(&token.to_ascii_lowercase()));
    }
    let own = instance.url("");
    let lines = [("origin", own.as_str()), ("sec-websocket-protocol", &format!("livebridge, {carrier}"))];
    let mut socket = raw::websocket("127.0.0.1", &instance, "channel=a&format=json", &lines).await.unwrap();
    assert_eq!(socket.json().await["event"], json!("welcome"));
    let other = offered(&instance, "channel=b", &["livebridge", &carrier]).await;
    assert!(other.starts_with("http/1.1 403 "), "{other}");
    let log = instance.log();
    assert!(log.contains("/ws") && !log.contains(token.split('.').next_back().unwrap()), "{log}");
}
