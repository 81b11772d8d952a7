//! Who is on a channel, and who is told of it.

mod instances;

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::brokers::{Setup, promises};
use crate::support::centrifuge_client::Client;
use crate::support::instance::{Instance, Options};
use crate::support::tokens::{SECRET, Signer, claims};
use crate::support::{PATIENCE, channel, soon, until};

const RULES: &str = "
[[channel]]
match = 'room*'
presence = true
join_leave = true
anonymous = ['subscribe', 'publish']

[[channel]]
match = 'bare*'
history = false
presence = true
join_leave = true
anonymous = ['subscribe', 'publish']

[[channel]]
match = 'quiet*'
presence = true
anonymous = ['subscribe', 'publish']

[[channel]]
match = 'private*'
presence = true

[[channel]]
match = 'plain*'
anonymous = ['subscribe', 'publish']
";

/// How long a client that is away still counts as there.
const GRACE: Duration = Duration::from_secs(5);

fn options() -> Options {
    Options::default().rules(RULES).env("LIVEBRIDGE_TOKEN_SECRET", SECRET)
}

promises!(
    options();
    everybody_is_seen_on_every_instance,
    a_client_sees_itself_at_once,
    who_comes_and_goes_is_told_once,
    who_is_away_for_three_seconds_makes_no_noise,
    an_anonymous_client_that_comes_back_is_another,
    who_may_not_subscribe_may_not_ask,
    a_channel_tells_only_what_its_rule_asks_for,
);

/// The same for clients of the Protobuf form.
mod protobuf {
    use super::*;
    use crate::support::centrifuge_client::Form;

    promises!(
        options().form(Form::Protobuf);
        everybody_is_seen_on_every_instance,
        who_comes_and_goes_is_told_once,
    );
}

/// A token of a user that may subscribe anywhere, with what others may know about it.
fn token_of(user: &str) -> String {
    let mut claims = claims(&["*"], &["*"]);
    claims["sub"] = user.into();
    claims["info"] = json!({ "name": user.to_uppercase() });
    Signer::shared(SECRET).sign(&claims)
}

/// A connected client, and its id.
async fn connect(instance: &Instance, user: Option<&str>) -> (Client, String) {
    let request = user.map_or(json!({}), |user| json!({ "token": token_of(user) }));
    let (client, connected) = Client::connect_with(instance, request).await;
    (client, connected["client"].as_str().unwrap().to_owned())
}

/// A client on a channel, which is told who comes and goes where the rule allows it, and its id.
async fn join(instance: &Instance, user: Option<&str>, channel: &str) -> (Client, String) {
    let (mut client, id) = connect(instance, user).await;
    client.ask("subscribe", json!({ "channel": channel, "join_leave": true })).await;
    (client, id)
}

/// The next join or leave that a client is told of: which of them, and of whom.
async fn told(client: &mut Client) -> (&'static str, Value) {
    // Pings go on whatever else happens.
    let push = soon("a join or leave", client.push()).await;
    let kind = ["join", "leave"].into_iter().find(|kind| push.get(*kind).is_some());
    let kind = kind.unwrap_or_else(|| panic!("expected a join or leave, got {push}"));
    (kind, push[kind]["info"].clone())
}

/// The ids in the next joins, sorted.
async fn joined(client: &mut Client, count: usize) -> Vec<String> {
    let mut ids = Vec::new();
    while ids.len() < count {
        let (kind, info) = told(client).await;
        assert_eq!(kind, "join", "{info}");
        ids.push(info["client"].as_str().unwrap().to_owned());
    }
    ids.sort();
    ids
}

fn sorted<const N: usize>(ids: [&String; N]) -> Vec<String> {
    let mut ids = ids.map(Clone::clone).to_vec();
    ids.sort();
    ids
}

/// Sees that a client is told nothing up to a message that is published now.
async fn is_told_nothing(client: &mut Client, instance: &Instance, channel: &str) {
    static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
    let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let mut publisher = connect(instance, None).await.0;
    publisher.ask("publish", json!({ "channel": channel, "data": number })).await;
    loop {
        let push = client.push().await;
        if push.get("unsubscribe").is_some() {
            // The first message of a channel begins its epoch. The subscription is made again.
            client.ask("subscribe", json!({ "channel": channel, "join_leave": true })).await;
            return;
        }
        assert!(push.get("pub").is_some(), "{push}");
        if push["pub"]["data"] == number {
            return;
        }
    }
}

/// How many clients and users are on a channel.
async fn stats(client: &mut Client, channel: &str) -> (u64, u64) {
    let stats = client.ask("presence_stats", json!({ "channel": channel })).await;
    (stats["num_clients"].as_u64().unwrap_or(0), stats["num_users"].as_u64().unwrap_or(0))
}

/// Waits until so many clients and users are on a channel.
async fn until_stats(client: &mut Client, channel: &str, expected: (u64, u64)) {
    let began = Instant::now();
    while stats(client, channel).await != expected {
        assert!(began.elapsed() < PATIENCE, "there are never {expected:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn until_there_are(instance: &Instance, channel: &str, clients: u64) -> Value {
    let path = format!("/channels/{channel}/presence");
    until("the clients are seen", || async { instance.get_json(&path).await["num_clients"] == clients }).await;
    instance.get_json(&path).await
}

async fn everybody_is_seen_on_every_instance(setup: Setup) {
    let room = channel("room");
    let (mut alice, alice_id) = connect(&setup.one, Some("alice/ä")).await;
    alice.ask("subscribe", json!({ "channel": room })).await;
    let (_again, again_id) = join(setup.two(), Some("alice/ä"), &room).await;
    let (_nobody, nobody_id) = join(setup.two(), None, &room).await;
    let _raw = setup.two().ws(&format!("channel={room}&token={}", token_of("bob"))).await;
    let _events = setup.one.events(&format!("channel={room}&channel=quiet:x&token={}", token_of("carol"))).await;
    for instance in [&setup.one, setup.two()] {
        let all = until_there_are(instance, &room, 5).await;
        assert_eq!((&all["num_users"], &all["complete"], &all["channel"]), (&4.into(), &true.into(), &room[..].into()));
        let clients = all["clients"].as_array().unwrap();
        let of = |id: &str| clients.iter().find(|client| client["client"] == id).unwrap_or_else(|| panic!("{all}"));
        let expected = json!({ "client": alice_id, "user": "alice/ä", "info": { "name": "ALICE/Ä" } });
        assert_eq!(of(&alice_id), &expected);
        assert_eq!(of(&nobody_id), &json!({ "client": nobody_id }));
        let users: Vec<_> = clients.iter().filter_map(|client| client["user"].as_str()).collect();
        assert!(users.contains(&"bob") && users.contains(&"carol"), "{all}");
        // Without a subscription.
        let mut client = connect(instance, None).await.0;
        let presence = client.ask("presence", json!({ "channel": room })).await["presence"].clone();
        assert_eq!(presence.as_object().unwrap().len(), 5);
        let expected = json!({ "client": again_id, "user": "alice/ä", "conn_info": { "name": "ALICE/Ä" } });
        assert_eq!(presence[&again_id], expected);
        assert_eq!(stats(&mut client, &room).await, (5, 4));
        assert_eq!(client.ask("presence", json!({ "channel": "room:empty" })).await, json!({ "presence": {} }));
        assert_eq!(stats(&mut client, "room:empty").await, (0, 0));
    }
}

async fn a_client_sees_itself_at_once(setup: Setup) {
    let room = channel("room");
    let (mut client, id) = connect(&setup.one, Some("alice")).await;
    for _ in 0..3 {
        client.ask("subscribe", json!({ "channel": room })).await;
        let all = setup.one.get_json(&format!("/channels/{room}/presence")).await;
        assert_eq!(all["clients"][0]["client"], id, "{all}");
        assert_eq!(stats(&mut client, &room).await, (1, 1));
        client.ask("unsubscribe", json!({ "channel": room })).await;
        assert_eq!(stats(&mut client, &room).await, (0, 0));
    }
}

async fn who_comes_and_goes_is_told_once(setup: Setup) {
    let room = channel("room");
    let (mut here, here_id) = join(&setup.one, Some("here"), &room).await;
    assert_eq!(joined(&mut here, 1).await, [&here_id[..]], "itself too");
    let (mut there, there_id) = join(setup.two(), Some("there"), &room).await;
    assert_eq!(joined(&mut there, 1).await, [&there_id[..]], "whoever is there already is no news");
    let (kind, info) = told(&mut here).await;
    let expected = json!({ "client": there_id, "user": "there", "conn_info": { "name": "THERE" } });
    assert_eq!((kind, info), ("join", expected));
    let (mut guest, guest_id) = join(setup.two(), Some("guest"), &room).await;
    for client in [&mut here, &mut there, &mut guest] {
        assert_eq!(joined(client, 1).await, [&guest_id[..]]);
    }
    // Who says so leaves at once, and who is cut off after a grace.
    let began = Instant::now();
    guest.ask("unsubscribe", json!({ "channel": room })).await;
    for client in [&mut here, &mut there] {
        assert_eq!(
            told(client).await,
            ("leave", json!({ "client": guest_id, "user": "guest", "conn_info": { "name": "GUEST" } }))
        );
    }
    assert!(began.elapsed() < GRACE, "{:?}", began.elapsed());
    let began = Instant::now();
    drop(there);
    let (kind, info) = told(&mut here).await;
    assert_eq!((kind, info["client"].as_str()), ("leave", Some(&there_id[..])));
    assert!(began.elapsed() >= GRACE, "{:?}", began.elapsed());
    assert_eq!(stats(&mut here, &room).await, (1, 1));
    is_told_nothing(&mut here, setup.two(), &room).await;
}

async fn who_is_away_for_three_seconds_makes_no_noise(setup: Setup) {
    let room = channel("room");
    let (mut here, here_id) = join(&setup.one, None, &room).await;
    joined(&mut here, 1).await;
    let (mut there, there_id) = join(setup.two(), None, &room).await;
    joined(&mut there, 1).await;
    let (moving, moving_id) = join(&setup.one, Some("moving"), &room).await;
    let (staying, staying_id) = join(setup.two(), Some("staying"), &room).await;
    assert_eq!(joined(&mut here, 3).await, sorted([&there_id, &moving_id, &staying_id]));
    assert_eq!(joined(&mut there, 2).await, sorted([&moving_id, &staying_id]));
    drop((moving, staying));
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(stats(&mut here, &room).await, (4, 3), "nobody is gone yet");
    let (_moved, moved_id) = join(setup.two(), Some("moving"), &room).await;
    let (_stayed, stayed_id) = join(setup.two(), Some("staying"), &room).await;
    // The graces would be over, and whatever came late would be told.
    tokio::time::sleep(GRACE).await;
    is_told_nothing(&mut here, setup.two(), &room).await;
    is_told_nothing(&mut there, &setup.one, &room).await;
    let presence = there.ask("presence", json!({ "channel": room })).await["presence"].clone();
    let ids: Vec<_> = presence.as_object().unwrap().keys().cloned().collect();
    assert_eq!(ids, sorted([&here_id, &there_id, &moving_id, &staying_id]), "under their former ids");
    assert!(!ids.contains(&moved_id) && !ids.contains(&stayed_id));
    assert_eq!(stats(&mut here, &room).await, (4, 3));
}

async fn an_anonymous_client_that_comes_back_is_another(setup: Setup) {
    let room = channel("room");
    let (mut here, here_id) = join(&setup.one, None, &room).await;
    let (before, before_id) = join(setup.two(), None, &room).await;
    assert_eq!(joined(&mut here, 2).await, sorted([&here_id, &before_id]));
    drop(before);
    until_leaving(&setup, &room).await;
    let (_after, after_id) = join(&setup.one, None, &room).await;
    assert_eq!(joined(&mut here, 1).await, [&after_id[..]]);
    assert_eq!(told(&mut here).await, ("leave", json!({ "client": before_id })));
    // The same connection is no other client.
    let (mut python, connected) = Client::connect_with(setup.two(), json!({ "name": "python" })).await;
    python.ask("subscribe", json!({ "channel": room, "join_leave": true })).await;
    for client in [&mut here, &mut python] {
        assert_eq!(joined(client, 1).await, [connected["client"].as_str().unwrap()]);
    }
    is_told_nothing(&mut python, &setup.one, &room).await;
    tokio::time::sleep(GRACE).await;
    is_told_nothing(&mut here, &setup.one, &room).await;
    assert_eq!(stats(&mut here, &room).await, (3, 1), "whoever has no name is one user");
}

/// Waits until Redis knows that somebody's connection has ended.
async fn until_leaving(setup: &Setup, channel: &str) {
    let Some(redis) = &setup.redis else { return };
    let key = format!("livebridge:{{{channel}}}:presence");
    let leaves = |line: &str| line.split(' ').nth(1) == Some("-") && !line.starts_with("0 ");
    until("a client is leaving", || async { redis.cli(&["HVALS", &key]).lines().any(leaves) }).await;
}

async fn who_may_not_subscribe_may_not_ask(setup: Setup) {
    let private = channel("private");
    let (mut alice, _) = join(&setup.one, Some("alice"), &private).await;
    until_stats(&mut alice, &private, (1, 1)).await;
    let others = Signer::shared(SECRET).sign(&claims(&["others"], &[]));
    let (mut mallory, _) = Client::connect_with(setup.two(), json!({ "token": others })).await;
    let mut nobody = connect(setup.two(), None).await.0;
    for method in ["presence", "presence_stats"] {
        for client in [&mut mallory, &mut nobody] {
            assert_eq!(client.fail(method, json!({ "channel": private })).await, (103, false), "{method}");
        }
        assert_eq!(alice.fail(method, json!({})).await, (107, false), "{method}");
    }
    let path = format!("/channels/{private}/presence");
    assert_eq!(setup.two().get(&path).await.0, 401);
    assert_eq!(setup.two().get(&format!("{path}?token={others}")).await.0, 403);
    assert_eq!(setup.two().get(&format!("{path}?token={}", token_of("alice"))).await.0, 200);
    assert_eq!(setup.two().get("/channels/a%20b/presence").await.0, 400);
}

async fn a_channel_tells_only_what_its_rule_asks_for(setup: Setup) {
    let [plain, quiet] = ["plain", "quiet"].map(channel);
    let (mut client, _) = join(&setup.one, Some("alice"), &plain).await;
    for method in ["presence", "presence_stats"] {
        assert_eq!(client.fail(method, json!({ "channel": plain })).await, (108, false), "{method}");
    }
    let (status, body) = setup.one.get(&format!("/channels/{plain}/presence")).await;
    assert!(status == 404 && body.contains("no_presence"), "{status} {body}");
    let (mut listener, _) = join(&setup.one, Some("bob"), &quiet).await;
    let (_other, _) = join(setup.two(), None, &quiet).await;
    until_there_are(setup.two(), &quiet, 2).await;
    is_told_nothing(&mut listener, setup.two(), &quiet).await;
    for (instance, rooms) in [(&setup.one, 1), (setup.two(), 1)] {
        assert_eq!(instance.metric("livebridge_presence_channels").await, f64::from(rooms), "not of {plain}");
        assert_eq!(instance.metric("livebridge_presence_failed_total").await, 0.0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_clients_are_listed_and_all_are_counted() {
    const MOST_LISTED: usize = livebridge::presence::MOST_LISTED;
    let (instance, room) = (options().start().await, channel("quiet"));
    let mut sockets = Vec::new();
    for _ in 0..MOST_LISTED + 10 {
        sockets.push(instance.ws(&format!("channel={room}")).await);
    }
    let all = until_there_are(&instance, &room, MOST_LISTED as u64 + 10).await;
    assert_eq!(all["clients"].as_array().unwrap().len(), MOST_LISTED);
    assert_eq!((&all["complete"], &all["num_users"]), (&false.into(), &1.into()));
    sockets.truncate(3);
    until("the others are gone", || async {
        instance.get_json(&format!("/channels/{room}/presence")).await["complete"] == true
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_read_misses_joins_and_keeps_no_memory() {
    let (instance, room) = (options().flag("--log-bytes 67108864").start().await, channel("room"));
    let (mut other, _) = connect(&instance, None).await;
    let (_deaf, _) = join(&instance, Some("deaf"), &room).await;
    let mut claims = claims(&["*"], &[]);
    claims["info"] = "x".repeat(1000).into();
    let token = Signer::shared(SECRET).sign(&claims);
    // More than the kernel takes for a client that does not read.
    for _ in 0..20 {
        instance.publish(&room, "x".repeat(1 << 20)).await;
    }
    let mut sockets = Vec::new();
    let began = Instant::now();
    while instance.metric("livebridge_presence_dropped_total").await == 0.0 {
        assert!(began.elapsed() < PATIENCE && sockets.len() < 200, "everything piles up");
        sockets.push(instance.ws(&format!("channel={room}&token={token}")).await);
    }
    assert!(sockets.len() > 5, "there is room for some");
    until_stats(&mut other, &room, (1 + sockets.len() as u64, 2)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn join_leave_needs_presence() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("livebridge.toml"), "[[channel]]\nmatch = 'a'\njoin_leave = true\n").unwrap();
    let output = crate::support::instance::command(folder.path()).arg("check").output().unwrap();
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(!output.status.success() && said.contains("add `presence = true`"), "{said}");
}
