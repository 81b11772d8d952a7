//! Tokens for single subscriptions, as SDKs send them where an application gives them `getToken` for a subscription.

use serde_json::json;

use crate::support::centrifuge_client::{Client, Form};
use crate::support::channel;
use crate::support::instance::{Instance, Options};
use crate::support::tokens::{SECRET, Signer, at, token};

async fn instance(form: Form) -> Instance {
    let rules = "[[channel]]\nmatch = 'map*'\nkeyed = true\n[[channel]]\nmatch = '*'\npresence = true\n";
    let options = Options::default().rules(rules).flag("--token-leeway-seconds 0");
    options.env("LIVEBRIDGE_TOKEN_SECRET", SECRET).form(form).start().await
}

/// A token of a user for one channel, which holds for some seconds.
fn ticket(user: &str, channel: &str, seconds: i64) -> String {
    Signer::shared(SECRET).sign(&json!({ "sub": user, "channel": channel, "exp": at(seconds) }))
}

/// A client of a user whose own token allows one other channel.
async fn user(instance: &Instance, name: &str) -> Client {
    user_with(instance, name, "").await
}

/// The same with a named SDK.
async fn user_with(instance: &Instance, name: &str, sdk: &str) -> Client {
    let token = json!({ "sub": name, "exp": at(3600), "livebridge": { "subscribe": ["other"], "publish": [] } });
    Client::connect_with(instance, json!({ "token": Signer::shared(SECRET).sign(&token), "name": sdk })).await.0
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_for_a_channel_allows_this_subscription_and_what_a_subscriber_sees() {
    let instance = instance(Form::Json).await;
    let (mut client, a) = (user(&instance, "ann").await, channel("ticket"));
    assert_eq!(client.fail("subscribe", json!({ "channel": a })).await, (103, false));
    assert_eq!(client.fail("history", json!({ "channel": a, "limit": 1 })).await, (103, false));
    let subscribed = client.ask("subscribe", json!({ "channel": a, "token": ticket("ann", &a, 3600) })).await;
    let ttl = subscribed["ttl"].as_u64().unwrap();
    assert!(subscribed["expires"] == true && (3560..=3600).contains(&ttl), "{subscribed}");
    client.ask("history", json!({ "channel": a, "limit": 1 })).await;
    client.ask("presence", json!({ "channel": a })).await;
    client.ask("presence_stats", json!({ "channel": a })).await;
    assert_eq!(client.fail("publish", json!({ "channel": a, "data": 1 })).await, (103, false));
    client.ask("unsubscribe", json!({ "channel": a })).await;
    assert_eq!(client.fail("history", json!({ "channel": a, "limit": 1 })).await, (103, false));
    assert_eq!(client.fail("presence", json!({ "channel": a })).await, (103, false));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_for_a_channel_is_of_no_use_to_others_or_elsewhere() {
    let instance = instance(Form::Json).await;
    let (mut client, a) = (user(&instance, "ann").await, channel("ticket"));
    let wrong_key = Signer::shared("another secret of the tests, long enough for HS256");
    let forged = wrong_key.sign(&json!({ "sub": "ann", "channel": a, "exp": at(3600) }));
    for (token, code) in [
        (ticket("bob", &a, 3600), 103),
        (ticket("ann", "elsewhere", 3600), 103),
        (ticket("ann", &a, -1), 109),
        (forged, 103),
        ("no token".into(), 103),
    ] {
        let failed = client.fail("subscribe", json!({ "channel": a, "token": token })).await;
        assert_eq!(failed, (code, false), "{token}");
    }
    // As the token of a connection it allows nothing.
    let (mut client, _) = Client::connect_with(&instance, json!({ "token": ticket("ann", &a, 3600) })).await;
    assert_eq!(client.fail("subscribe", json!({ "channel": a })).await, (103, false));
    // A token of several channels is one for each of them.
    let wide = token(&["ticket*"], &[]);
    let (mut client, _) = Client::connect_with(&instance, json!({ "token": token(&["other"], &[]) })).await;
    client.ask("subscribe", json!({ "channel": a, "token": wide })).await;
    assert_eq!(client.fail("subscribe", json!({ "channel": "b", "token": wide })).await, (103, false));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_ends_with_its_token_and_goes_on_with_a_new_one() {
    for form in [Form::Json, Form::Protobuf] {
        ends_with_its_token(&instance(form).await).await;
    }
}

async fn ends_with_its_token(instance: &Instance) {
    let (mut client, [a, b]) = (user(instance, "ann").await, ["a", "b"].map(channel));
    client.ask("subscribe", json!({ "channel": a, "token": ticket("ann", &a, 2) })).await;
    client.ask("subscribe", json!({ "channel": b, "token": ticket("ann", &b, 2) })).await;
    client.ask("subscribe", json!({ "channel": "other" })).await;
    let refreshed = client.ask("sub_refresh", json!({ "channel": b, "token": ticket("ann", &b, 3600) })).await;
    assert!(refreshed["expires"] == true && refreshed["ttl"].as_u64().unwrap() > 3000, "{refreshed}");
    assert_eq!(client.fail("sub_refresh", json!({ "channel": b, "token": ticket("bob", &b, 60) })).await, (103, false));
    let push = client.push().await;
    assert_eq!((push["channel"].as_str().unwrap(), &push["unsubscribe"]["code"]), (&*a, &2501.into()), "it comes back");
    client.ask("subscribe", json!({ "channel": a, "token": ticket("ann", &a, 3600) })).await;
    // A new token of the connection that allows none of them leaves those with tokens of their own.
    let connection = json!({ "sub": "ann", "exp": at(3600), "livebridge": { "subscribe": [], "publish": [&a, &b] } });
    client.ask("refresh", json!({ "token": Signer::shared(SECRET).sign(&connection) })).await;
    let push = client.push().await;
    assert_eq!((push["channel"].as_str().unwrap(), &push["unsubscribe"]["code"]), ("other", &2000.into()));
    client.ask("sub_refresh", json!({ "channel": "other", "token": ticket("ann", "other", 3600) })).await;
    assert_eq!(client.fail("history", json!({ "channel": "other", "limit": 1 })).await, (103, false), "not subscribed");
    for channel in [&a, &b] {
        client.ask("publish", json!({ "channel": channel, "data": channel })).await;
        assert_eq!(client.data(1).await, [json!(channel)]);
    }
    // The tokens of one user are of no use to another one.
    let other = json!({ "sub": "bob", "exp": at(3600), "livebridge": { "subscribe": ["other"], "publish": [] } });
    client.ask("refresh", json!({ "token": Signer::shared(SECRET).sign(&other) })).await;
    let mut ended = Vec::new();
    for _ in 0..2 {
        let push = client.push().await;
        assert_eq!(push["unsubscribe"]["code"], 2501, "{push}");
        ended.push(push["channel"].as_str().unwrap().to_owned());
    }
    ended.sort();
    assert_eq!(ended, [a, b]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_for_a_channel_is_forgotten_when_the_server_ends_its_subscription() {
    let instance = instance(Form::Json).await;
    let (mut client, a) = (user_with(&instance, "ann", "go").await, channel("ticket"));
    let publisher = format!("Bearer {}", token(&[], &["*"]));
    let publish = async || {
        let path = format!("/publish?channel={a}");
        let (status, answer) = instance.post_with(&path, &[("Authorization", &publisher)], "1").await;
        assert_eq!(status, 200, "{answer}");
    };
    client.ask("subscribe", json!({ "channel": a, "token": ticket("ann", &a, 3600) })).await;
    // The first message begins an epoch, of which this SDK learns only when it subscribes.
    publish().await;
    let push = client.push().await;
    assert_eq!((push["channel"].as_str().unwrap(), &push["unsubscribe"]["code"]), (&*a, &2500.into()));
    assert_eq!(client.fail("history", json!({ "channel": a, "limit": 1 })).await, (103, false));
    assert_eq!(client.fail("presence", json!({ "channel": a })).await, (103, false));
    client.ask("subscribe", json!({ "channel": a, "token": ticket("ann", &a, 3600) })).await;
    client.ask("history", json!({ "channel": a, "limit": 1 })).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_for_a_map_allows_each_page_and_the_subscription() {
    let instance = instance(Form::Json).await;
    let (mut client, map) = (user(&instance, "ann").await, channel("map"));
    let page = json!({ "channel": map, "type": 1, "phase": 2 });
    assert_eq!(client.fail("subscribe", page.clone()).await, (103, false));
    for (token, code) in [(ticket("bob", &map, 3600), 103), (ticket("ann", &map, -1), 109)] {
        let mut page = page.clone();
        page["token"] = token.into();
        assert_eq!(client.fail("subscribe", page).await, (code, false));
    }
    let mut request = page;
    request["token"] = ticket("ann", &map, 3600).into();
    let page = client.ask("subscribe", request.clone()).await;
    (request["phase"], request["epoch"]) = (1.into(), page["epoch"].clone());
    let subscribed = client.ask("subscribe", request.clone()).await;
    assert!(subscribed["expires"] == true && subscribed["type"] == 1, "{subscribed}");
    client.ask("unsubscribe", json!({ "channel": map })).await;
    request.as_object_mut().unwrap().remove("token");
    assert_eq!(client.fail("subscribe", request).await, (103, false));
}
