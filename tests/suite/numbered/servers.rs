//! Plain messages with positions where Redis is not a server that allows all and lives on: as a limited user, by
//! scripts in place of functions, after a restart, and with Sentinels.

use std::time::Duration;

use super::{RULES, history, message};
use crate::support::acl;
use crate::support::instance::{Instance, Options, position};
use crate::support::redis::Redis;
use crate::support::sentinel::SentinelSet;
use crate::support::until;

const DOCS: &str = include_str!("../../../docs/redis.md");

/// Creates the user `lb` with these rules, and returns the options of its instances.
fn user(redis: &Redis, rules: &[&str]) -> Options {
    let words = [&["ACL", "SETUSER", "lb", "reset", "on", ">pw"], rules].concat();
    assert_eq!(redis.cli(&words), "OK", "{words:?}");
    Options { redis_url: Some(format!("redis://lb:pw@127.0.0.1:{}/", redis.port)), ..Options::default() }.rules(RULES)
}

/// The rules of the user of an instance, for the channels `orders:*`, with what docs/redis.md adds for the positions of
/// plain messages.
fn documented() -> Vec<String> {
    let own = acl::of_an_instance().into_iter().map(|rule| rule.replace("sheet:", "orders:"));
    let (_, added) = DOCS.split_once("them by name: `").expect("the page says which");
    let (patterns, rest) = added.split_once('`').expect("the first part ends");
    let key = rest.split('`').nth(1).expect("the second part");
    own.chain(patterns.split_whitespace().chain([key]).map(str::to_owned)).collect()
}

/// Plain messages have positions, in the history and live.
async fn works(redis: &Redis, options: Options) {
    let (one, two) = (options.clone().start().await, options.start().await);
    until("both are members", || async { redis.listeners("livebridge:numbered:") == 2 }).await;
    let mut socket = two.ws("channel=orders:1&format=json").await;
    let mut client = redis.client();
    for number in 1..=20_u64 {
        drop(client.ask(&["PUBLISH", "orders:1", &number.to_string()]));
        let live = message(&mut socket).await;
        assert_eq!((live["data"].as_u64(), live["offset"].as_u64()), (Some(number), Some(number)));
    }
    let expected: Vec<_> = (1..=20).map(|number: u64| (number.to_string(), number)).collect();
    assert_eq!(history(&one, "orders:1", 20).await, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_user_that_the_docs_describe_may_do_all_that_positions_of_plain_messages_need() {
    let redis = Redis::start().await;
    let rules = documented();
    works(&redis, user(&redis, &rules.iter().map(String::as_str).collect::<Vec<_>>())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn scripts_give_plain_messages_positions_where_functions_are_not_allowed() {
    let redis = Redis::start().await;
    works(&redis, user(&redis, &["~*", "&*", "+@all", "-function", "-fcall"])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn patterns_that_redis_does_not_allow_concern_their_channels_only() {
    let redis = Redis::start().await;
    let all = ["~*", "+@all", "&livebridge:*", "&orders:*", "&sheet:*"];
    let instance = user(&redis, &all).start().await;
    let mut socket = instance.ws("channel=sheet:1").await;
    let (status, text) = instance.get("/events?channel=orders:1").await;
    assert!(status == 403 && text.contains("channel_refused"), "{text}");
    instance.publish("sheet:1", "well").await;
    assert_eq!(socket.text().await, "well");
    assert_eq!(instance.get("/readyz").await.0, 200);
    assert!(instance.log().contains("the patterns or the channel that"), "{}", instance.log());
    assert_eq!(instance.metric("livebridge_broker_disconnects_total").await, 0.0);
    // Another channel asks Redis again.
    let more = ["&livebridge:note:orders:*", "&livebridge:run:orders:*"];
    assert_eq!(redis.cli(&[&["ACL", "SETUSER", "lb"], &more[..]].concat()), "OK");
    let mut orders = instance.ws("channel=orders:2&format=json").await;
    until("it is a member", || async { instance.metric("livebridge_numbering_takeovers_total").await == 1.0 }).await;
    drop(redis.client().ask(&["PUBLISH", "orders:2", "7"]));
    assert_eq!(message(&mut orders).await["offset"], 1);
}

/// Publishes plain messages with these numbers, and waits until the client has them, at successive offsets.
async fn goes_on(redis: &Redis, instance: &Instance, numbers: std::ops::RangeInclusive<u64>, since: &str) -> String {
    let mut socket = instance.ws(&format!("channel=orders:1&format=json&since={since}")).await;
    let mut client = redis.client();
    let mut last = String::new();
    for number in numbers {
        drop(client.ask(&["PUBLISH", "orders:1", &number.to_string()]));
        let live = message(&mut socket).await;
        assert_eq!((live["data"].as_u64(), live["offset"].as_u64()), (Some(number), Some(number)));
        last = position(&live).expect("a position");
    }
    last
}

/// Waits until an instance gives positions on a server that may be new.
async fn until_numbering(redis: &Redis, instances: &[&Instance]) {
    until("all are members again", || async {
        let members = redis.cli(&["HKEYS", "livebridge:{}:members"]);
        let count = members.lines().filter(|name| name.parse::<u64>().is_ok()).count();
        redis.listeners("livebridge:numbered:") == instances.len() && count == instances.len()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn positions_of_plain_messages_go_on_after_redis_was_killed_and_has_its_data_back() {
    let mut redis = Redis::persistent().await;
    let options = Options::redis(&redis).rules(RULES);
    let (one, two) = (options.clone().start().await, options.start().await);
    until_numbering(&redis, &[&one, &two]).await;
    let last = goes_on(&redis, &one, 1..=20, "earliest").await;
    redis.stop();
    redis.start_again().await;
    until_numbering(&redis, &[&one, &two]).await;
    let again = goes_on(&redis, &two, 21..=40, &last).await;
    assert_eq!(again.split(':').next(), last.split(':').next(), "the same epoch");
    assert_eq!(history(&one, "orders:1", 40).await.len(), 40);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_comes_back_empty_begins_a_new_epoch_of_plain_messages_and_tells_a_gap() {
    let mut redis = Redis::start().await;
    let options = Options::redis(&redis).rules(RULES);
    let (one, two) = (options.clone().start().await, options.start().await);
    until_numbering(&redis, &[&one, &two]).await;
    let last = goes_on(&redis, &one, 1..=20, "earliest").await;
    let mut listening = one.ws("channel=orders:1&format=json").await;
    redis.stop();
    redis.start_again().await;
    until_numbering(&redis, &[&one, &two]).await;
    drop(redis.client().ask(&["PUBLISH", "orders:1", "1"]));
    let mut gap = false;
    let live = loop {
        let envelope = listening.json().await;
        gap |= envelope["event"] == "gap";
        if !envelope["data"].is_null() {
            break envelope;
        }
    };
    assert!(gap, "the client is told that positions before it are gone");
    let first = position(&live).expect("a position");
    assert_ne!(first.split(':').next(), last.split(':').next(), "another epoch");
    assert!(first.ends_with(":1"), "{first}");
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_failover_plain_messages_have_positions_on_the_new_master() {
    let mut set = SentinelSet::start().await;
    let options = Options { redis_url: Some(set.url()), ..Options::default() }.rules(RULES);
    let (one, two) = (options.clone().start().await, options.start().await);
    until_numbering(set.master(), &[&one, &two]).await;
    let last = goes_on(set.master(), &one, 1..=20, "earliest").await;
    let replicated = || async { set.servers[1].cli(&["LLEN", "livebridge:{orders:1}:history"]) == "40" };
    until("the replica has all of them", replicated).await;
    let before = set.master_port().expect("a master");
    set.master().stop();
    set.until_failed_over(before).await;
    until_numbering(set.master(), &[&one, &two]).await;
    let again = goes_on(set.master(), &two, 21..=40, &last).await;
    assert_eq!(again.split(':').next(), last.split(':').next(), "nothing was lost, so the epoch goes on");
    // The former master comes back as a replica, with whatever it believed.
    set.until_it_follows(before).await;
    tokio::time::timeout(Duration::from_secs(10), goes_on(set.master(), &one, 41..=60, &again)).await.expect("in time");
}
