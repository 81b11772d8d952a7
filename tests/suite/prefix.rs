//! Several applications share a Redis: with a prefix each, none hears, reads or changes what is another's.

use crate::support::channel;
use crate::support::cluster::ClusterSet;
use crate::support::instance::{Instance, Options, command};
use crate::support::redis::Redis;

async fn application(redis_url: String, prefix: &str, rules: &str) -> Instance {
    let options = Options { redis_url: Some(redis_url), ..Options::default() }.rules(rules);
    options.env("LIVEBRIDGE_REDIS_PREFIX", prefix).start().await
}

#[tokio::test(flavor = "multi_thread")]
async fn applications_with_prefixes_do_not_hear_each_other() {
    let redis = Redis::start().await;
    let one = application(redis.url(), "app1:", "[[channel]]\nmatch = 'x:*'\nhistory = { messages = 1 }\n").await;
    let two = application(redis.url(), "app2:", "[[channel]]\nmatch = 'x:*'\nkeyed = true\n").await;
    let channel = channel("x");
    let query = format!("channel={channel}&format=json");
    let (mut of_one, mut of_two) = (one.ws(&query).await, two.ws(&query).await);
    assert_eq!(
        (of_one.json().await["event"].clone(), of_two.json().await["event"].clone()),
        ("welcome".into(), "welcome".into())
    );
    for number in 1..=3 {
        one.publish(&channel, number.to_string()).await;
        assert_eq!(of_one.json().await["offset"], number);
    }
    assert_eq!(two.post(&format!("/publish?channel={channel}&key=a"), "7").await.0, 200);
    let message = of_two.json().await;
    assert!(message["channel"] == channel.as_str() && message["key"] == "a" && message["offset"] == 1, "{message}");
    // Each has the rules of its own.
    let page = one.get_json(&format!("/channels/{channel}/messages")).await;
    assert_eq!(page["messages"].as_array().unwrap().len(), 1, "{page}");
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_clients_name_channels_and_functions_with_the_prefix() {
    let redis = Redis::start().await;
    let instance = application(redis.url(), "app1:", "").await;
    let channel = channel("x");
    let mut socket = instance.ws(&format!("channel={channel}")).await;
    redis.cli(&["PUBLISH", &channel, "of nobody"]);
    redis.cli(&["PUBLISH", &format!("app1:{channel}"), "plain"]);
    assert_eq!(socket.text().await, "plain");
    let name = format!("app1:{channel}");
    redis.cli(&["FCALL", "app1_livebridge_publish", "1", &name, "stored"]);
    assert_eq!(socket.text().await, "stored");
    redis.cli(&["FCALL", "app1_livebridge_publish_many", "1", &name, "payload", "two", "three"]);
    assert_eq!((socket.text().await, socket.text().await), ("two".into(), "three".into()));
    let refused = redis.cli(&["FCALL", "app1_livebridge_publish", "1", &channel, "stored"]);
    assert!(refused.contains("start with app1:"), "{refused}");
    assert_eq!(redis.cli(&["KEYS", "livebridge:{x*"]), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_cluster_a_channel_is_in_the_slot_of_its_name_with_the_prefix() {
    let set = ClusterSet::start().await;
    let (one, two) = (application(set.url(), "app1:", "").await, application(set.url(), "app2:", "").await);
    let channel = channel("x");
    let mut socket = one.ws(&format!("channel={channel}")).await;
    two.publish(&channel, "of the other").await;
    one.publish(&channel, "stored").await;
    assert_eq!(socket.text().await, "stored");
    let name = format!("app1:{channel}");
    set.nodes[set.owner(&name)].cli(&["SPUBLISH", &name, "sharded"]);
    assert_eq!(socket.text().await, "sharded");
    set.nodes[0].cli(&["PUBLISH", &name, "plain"]);
    assert_eq!(socket.text().await, "plain");
}

#[tokio::test]
async fn a_prefix_of_another_form_is_refused_with_the_right_one() {
    let folder = tempfile::tempdir().unwrap();
    let arguments = ["--listen", "127.0.0.1:0", "--redis-url", "redis://127.0.0.1:1", "--redis-prefix", "app 1"];
    let output = command(folder.path()).args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("such as app1:"), "{said}");
}
