//! What a client of the protocol may do: tokens, anonymous clients, origins, limits.

use serde_json::json;

use crate::support::centrifuge_client::Client;
use crate::support::channel;
use crate::support::instance::{Instance, Options};
use crate::support::raw;
use crate::support::tokens::{SECRET, Signer, at, claims, token};
use crate::support::ws::Socket;

const RULES: &str = "
[[channel]]
match = 'open*'
anonymous = ['subscribe', 'publish']
";

async fn instance() -> Instance {
    let options = Options::default().rules(RULES).flag("--token-leeway-seconds 0");
    options.env("LIVEBRIDGE_TOKEN_SECRET", SECRET).start().await
}

/// A token that holds for some seconds.
fn for_seconds(seconds: i64, subscribe: &[&str]) -> String {
    let mut claims = claims(subscribe, &[]);
    claims["exp"] = at(seconds).into();
    Signer::shared(SECRET).sign(&claims)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_says_what_its_client_may_do() {
    let instance = instance().await;
    let token = token(&["a*"], &["b*"]);
    let (mut client, connected) = Client::connect_with(&instance, json!({ "token": token })).await;
    let ttl = connected["ttl"].as_u64().unwrap();
    assert!(connected["expires"] == true && (3560..=3600).contains(&ttl), "{connected}");
    let [a, b, open] = ["a", "b", "open"].map(channel);
    client.ask("subscribe", json!({ "channel": a })).await;
    client.ask("history", json!({ "channel": a, "limit": 1 })).await;
    client.ask("publish", json!({ "channel": b, "data": 1 })).await;
    assert_eq!(client.fail("publish", json!({ "channel": a, "data": 1 })).await, (103, false));
    assert_eq!(client.fail("subscribe", json!({ "channel": b })).await, (103, false));
    assert_eq!(client.fail("history", json!({ "channel": b, "limit": 1 })).await, (103, false));
    // What everybody may do, and a connection from another place with the token.
    client.ask("subscribe", json!({ "channel": open })).await;
    client.ask("publish", json!({ "channel": open, "data": 1 })).await;
    let url = format!("ws://{}/connection/websocket?token={token}", instance.address);
    let mut client = Client::over(Socket::connect(&url).await);
    client.ask("connect", json!({ "subs": { &a: {}, &b: {} } })).await;
    assert_eq!(client.fail("subscribe", json!({ "channel": a })).await, (105, false), "it has joined what it may");
    assert_eq!(client.fail("subscribe", json!({ "channel": b })).await, (103, false));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_without_a_valid_token_is_told_what_to_do() {
    let instance = instance().await;
    // Everybody may do something here.
    let mut client = Client::connect(&instance).await;
    assert_eq!(client.fail("subscribe", json!({ "channel": "a" })).await, (103, false));
    client.ask("subscribe", json!({ "channel": channel("open") })).await;
    let mut client = Client::open(&instance).await;
    let expired = for_seconds(-1, &["*"]);
    assert_eq!(client.fail("connect", json!({ "token": expired })).await, (109, false), "the SDK gets another");
    client.socket.send(json!({ "id": 2, "connect": {} }).to_string()).await;
    assert_eq!(client.closed().await, 3501, "the connection is of no use after that");
    let mut client = Client::open(&instance).await;
    client.socket.send(json!({ "id": 1, "connect": { "token": "no token" } }).to_string()).await;
    assert_eq!(client.closed().await, 3500);
    let closed = Options::default().env("LIVEBRIDGE_TOKEN_SECRET", SECRET).start().await;
    let mut client = Client::open(&closed).await;
    assert_eq!(client.fail("connect", json!({})).await, (101, false), "nobody may do anything there");
    assert!(closed.refused("unauthorized").await >= 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_stays_with_a_new_token_and_loses_what_that_does_not_allow() {
    let instance = instance().await;
    let [a, b] = ["a", "b"].map(channel);
    let mut token = for_seconds(4, &["a*", "b*"]);
    let (mut client, connected) = Client::connect_with(&instance, json!({ "token": token })).await;
    assert_eq!((&connected["expires"], &connected["ttl"]), (&true.into(), &3.into()), "in time before it ends");
    client.ask("subscribe", json!({ "channel": a })).await;
    client.ask("subscribe", json!({ "channel": b })).await;
    token = crate::support::tokens::token(&["b*"], &[]);
    let refreshed = client.ask("refresh", json!({ "token": token })).await;
    assert!(refreshed["expires"] == true && refreshed["ttl"].as_u64().unwrap() > 3000, "{refreshed}");
    let push = client.push().await;
    assert_eq!((push["channel"].as_str().unwrap(), &push["unsubscribe"]["code"]), (&*a, &2000.into()), "for good");
    assert_eq!(client.fail("subscribe", json!({ "channel": a })).await, (103, false));
    // Longer than the first token held.
    tokio::time::sleep(std::time::Duration::from_secs(6)).await;
    client.ask("ping", json!({})).await;
    client.socket.send(json!({ "id": 50, "refresh": { "token": for_seconds(-1, &[]) } }).to_string()).await;
    assert_eq!(client.closed().await, 3005, "it comes back, and gets another");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_is_closed_when_its_token_ends() {
    let instance = instance().await;
    let (mut client, _) = Client::connect_with(&instance, json!({ "token": for_seconds(1, &["*"]) })).await;
    assert_eq!(client.closed().await, 3005);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_pages_of_allowed_origins_connect() {
    let instance = Options::default().flag("--allowed-origin https://app.example").start().await;
    let path = "/connection/websocket";
    let refused = raw::get("127.0.0.1", &instance, path, "Origin: https://other.example\r\n").await;
    assert!(refused.starts_with("HTTP/1.1 403 "), "{refused}");
    let url = format!("ws://{}{path}", instance.address);
    let mut request = tungstenite::client::IntoClientRequest::into_client_request(url).unwrap();
    request.headers_mut().insert("origin", "https://app.example".parse().unwrap());
    request.headers_mut().insert("sec-websocket-protocol", "centrifuge-json".parse().unwrap());
    let (socket, response) = tokio_tungstenite::connect_async(request).await.unwrap();
    assert_eq!(response.headers()["sec-websocket-protocol"], "centrifuge-json");
    Client::over(Socket(socket)).ask("connect", json!({})).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_has_a_limited_number_of_channels() {
    let instance = Options::default().flag("--max-channels 3").start().await;
    let mut client = Client::connect(&instance).await;
    let subscribe = |number: u32| json!({ "id": number, "subscribe": { "channel": format!("c{number}") } }).to_string();
    let frame: Vec<_> = (1..=5).map(subscribe).collect();
    client.socket.send(frame.join("\n")).await;
    for number in 1..=5 {
        let answer = client.next().await;
        assert_eq!((answer["id"].as_u64(), answer.get("error").is_some()), (Some(number), number > 3), "{answer}");
    }
    client.ask("unsubscribe", json!({ "channel": "c1" })).await;
    client.ask("subscribe", json!({ "channel": "c5" })).await;
    assert_eq!(client.fail("subscribe", json!({ "channel": "c4" })).await, (106, false));
    let subs: serde_json::Map<_, _> = (1..=5).map(|number| (format!("c{number}"), json!({}))).collect();
    let (_, connected) = Client::connect_with(&instance, json!({ "subs": subs })).await;
    assert_eq!(connected["subs"].as_object().unwrap().len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_subscribes_to_a_limited_number_of_new_channels() {
    let instance = Options::default().flag("--max-new-channels-per-address 1").start().await;
    let mut client = Client::connect(&instance).await;
    let mut refused = 0;
    for number in 0..20 {
        let request = json!({ "id": 100 + number, "subscribe": { "channel": format!("c{number}") } });
        client.socket.send(request.to_string()).await;
        let answer = client.next().await;
        if let Some(error) = answer.get("error") {
            assert_eq!((&error["code"], &error["temporary"]), (&111.into(), &true.into()), "it tries again");
            refused += 1;
        }
    }
    assert!((10..20).contains(&refused), "{refused}");
    // One that has a subscriber costs nothing.
    let mut other = Client::connect(&instance).await;
    other.ask("subscribe", json!({ "channel": "c0" })).await;
}
