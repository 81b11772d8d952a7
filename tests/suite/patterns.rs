//! The patterns of rules: the matcher in Redis finds what the one in Rust finds, and is as cheap.

use std::sync::Arc;

use livebridge::broker::redis::{RedisBroker, RedisOptions};
use livebridge::broker::{Broker, Health};
use livebridge::channel::ChannelName;
use livebridge::channel::ChannelPattern;
use livebridge::hub::event_queue::EventQueue;
use livebridge::observability::metrics::Metrics;
use livebridge::rules::Rules;
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, TestRunner};

use crate::support::instance::Options;
use crate::support::redis::Redis;
use crate::support::resp::{Answer, Client};
use crate::support::until;

/// Text of few characters, so that pieces repeat and overlap.
fn text(most: usize) -> impl Strategy<Value = String> {
    let few = prop::sample::select(vec!["a", "b"]);
    let others = prop::sample::select(vec![":", "é", "🐎", "%", ".", "-"]);
    let character = prop_oneof![3 => few, 1 => others];
    prop::collection::vec(character, 0..=most).prop_map(|pieces| pieces.concat())
}

fn pattern() -> impl Strategy<Value = String> {
    let piece = prop_oneof![2 => Just("*".to_owned()), 3 => text(2)];
    prop::collection::vec(piece, 1..8).prop_map(|pieces| pieces.concat()).prop_filter("not empty", |it| !it.is_empty())
}

/// A pattern's number and what may stand for its asterisks, how much of that is taken away at the end, and what is added.
type Filling = (Index, Vec<String>, usize, String);

fn filling() -> impl Strategy<Value = Filling> {
    let rest = prop_oneof![4 => Just(String::new()), 1 => text(2)];
    // Where nothing stands for the asterisks and the end is missing, the last pieces overlap, perhaps.
    let fills = prop_oneof![2 => prop::collection::vec(text(3), 8), 1 => Just(vec![String::new(); 8])];
    (any::<Index>(), fills, prop::sample::select(vec![0, 0, 0, 1, 2]), rest)
}

fn names(patterns: &[String], fillings: &[Filling]) -> Vec<ChannelName> {
    let name = |(index, fills, missing, rest): &Filling| {
        let pieces: Vec<_> = patterns[index.index(patterns.len())].split('*').collect();
        let (last, others) = pieces.split_last()?;
        let filled = others.iter().zip(fills).flat_map(|(piece, fill)| [*piece, fill]);
        let text: String = filled.chain([*last]).collect();
        let kept = text.chars().count().saturating_sub(*missing);
        let text: String = text.chars().take(kept).collect();
        (text + rest).parse().ok()
    };
    fillings.iter().filter_map(name).collect()
}

/// Rules of which every other keeps a history.
fn rules(patterns: &[String]) -> Rules {
    let rule = |(number, pattern): (usize, &String)| {
        format!("[[channel]]\nmatch = {pattern:?}\nhistory = {}\n", number % 2 == 1)
    };
    Rules::parse(&patterns.iter().enumerate().map(rule).collect::<String>()).unwrap()
}

/// Loads the functions with these rules.
fn load(redis: &Redis, rules: &Arc<Rules>) {
    // Its connections end with it.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let metrics = Arc::new(Metrics::new(1));
    runtime.block_on(async {
        let broker = RedisBroker::start(
            &RedisOptions::new(&redis.url()),
            "loader",
            Arc::new(EventQueue::default()),
            rules.clone(),
            metrics,
        );
        let broker = broker.unwrap();
        until("the functions are loaded", || async { broker.health() == Health::Up }).await;
    });
}

fn keeps_history(client: &mut Client, name: &ChannelName) -> bool {
    match client.call("livebridge_plan", name.as_str().as_bytes(), &[b"0", b"0", b"tail"]) {
        Answer::Array(items) => !items.is_empty(),
        other => panic!("{name}: {other:?}"),
    }
}

#[test]
fn random_patterns_match_the_same_names_in_redis_as_in_rust() {
    let redis = tokio::runtime::Runtime::new().unwrap().block_on(Redis::start());
    let mut client = redis.client();
    let client = std::cell::RefCell::new(&mut client);
    let inputs = (prop::collection::vec(pattern(), 1..5), prop::collection::vec(filling(), 60));
    let config = Config { cases: 60, failure_persistence: None, max_shrink_iters: 200, ..Config::default() };
    let outcome = TestRunner::new(config).run(&inputs, |(patterns, fillings)| {
        let rules = Arc::new(rules(&patterns));
        load(&redis, &rules);
        for name in names(&patterns, &fillings) {
            let found = keeps_history(&mut client.borrow_mut(), &name);
            let expected = rules.of(&name).history.is_some();
            prop_assert_eq!(found, expected, "{:?} against {:?}", name, patterns);
        }
        Ok(())
    });
    assert!(outcome.is_ok(), "{}", outcome.unwrap_err());
}

#[tokio::test]
async fn a_pattern_with_many_asterisks_costs_redis_next_to_nothing() {
    let redis = Redis::start().await;
    let pattern = "t:*:*:*:*:private";
    let rules = format!("[[channel]]\nmatch = '{pattern}'\nhistory = false\n");
    let _instance = Options::redis(&redis).rules(&rules).start().await;
    let colons: ChannelName = format!("t{}", ":".repeat(181)).parse().unwrap();
    let sane: ChannelName = format!("t:{}", "user:42:".repeat(30)).parse().unwrap();
    let mut client = redis.client();
    for name in [colons, sane] {
        assert!(!ChannelPattern::new(pattern).matches(&name));
        redis.reset_counts();
        assert!(keeps_history(&mut client, &name));
        let usage = redis.usage()["fcall"];
        assert_eq!(usage.calls, 1);
        // The backtracking matcher of Lua took 1.5 s for the first of them.
        assert!(usage.usec < 5000, "{} µs for {name}", usage.usec);
    }
}
