//! `livebridge check`: what is wrong with a Redis is found and named, and nothing in it is changed.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Output;

use crate::support::acl;
use crate::support::instance::{Options, command};
use crate::support::redis::Redis;

/// What the program prints about a Redis, and whether it is content.
fn check(url: &str) -> (String, bool) {
    let folder = tempfile::tempdir().unwrap();
    let Output { status, stdout, stderr } =
        command(folder.path()).args(["check", "--redis-url", url]).output().unwrap();
    let text = String::from_utf8(stdout).unwrap();
    assert!(
        text.lines().all(|line| ["ok ", "warning ", "error "].iter().any(|level| line.starts_with(level))),
        "{text}"
    );
    assert!(status.success() != text.contains("error  "), "the exit code says what the lines say: {text}{stderr:?}");
    (text, status.success())
}

/// The one line that holds this.
fn line<'a>(text: &'a str, part: &str) -> &'a str {
    let lines: Vec<_> = text.lines().filter(|line| line.contains(part)).collect();
    let [line] = lines[..] else { panic!("one line with {part:?}: {text}") };
    line
}

async fn with(arguments: &[&str]) -> (Redis, String, bool) {
    let redis = Redis::start_with(arguments).await;
    let (text, content) = check(&redis.url());
    (redis, text, content)
}

#[tokio::test]
async fn a_fit_redis_is_ok_in_every_line_and_as_it_was_before() {
    let redis = Redis::start_with(&["--appendonly", "yes"]).await;
    // As after an instance has been there.
    drop(Options::redis(&redis).start().await);
    redis.cli(&["SET", "somebody's", "own"]);
    let state = || (redis.cli(&["DBSIZE"]), redis.cli(&["FUNCTION", "LIST"]), redis.cli(&["INFO", "keyspace"]));
    let changes =
        || redis.cli(&["INFO", "persistence"]).lines().find(|line| line.starts_with("rdb_changes")).map(str::to_owned);
    let before = (state(), changes());
    let (text, content) = check(&redis.url());
    assert!(content && text.lines().all(|line| line.starts_with("ok ")), "{text}");
    assert!(text.contains("the functions in Redis have this version"), "{text}");
    assert_eq!(before, (state(), changes()));
}

#[tokio::test]
async fn what_a_fresh_redis_lacks_is_a_warning_only() {
    let (_redis, text, content) = with(&["--save", ""]).await;
    assert!(content, "{text}");
    assert!(line(&text, "loses all data when it restarts").starts_with("warning  "), "{text}");
    assert!(line(&text, "the functions can be loaded").starts_with("ok "), "{text}");
    let (_redis, text, _) = with(&["--save", "3600", "1"]).await;
    assert!(line(&text, "only writes snapshots").ends_with("set `appendonly yes`"), "{text}");
}

#[tokio::test]
async fn settings_that_lose_messages_are_warnings() {
    for policy in ["allkeys-lru", "volatile-ttl"] {
        let (_redis, text, content) = with(&["--maxmemory", "100mb", "--maxmemory-policy", policy]).await;
        assert!(line(&text, policy).starts_with("warning  ") && content, "{text}");
    }
    let (_redis, text, _) = with(&["--client-output-buffer-limit", "pubsub", "1mb", "0", "0"]).await;
    assert!(line(&text, "disconnects an instance").starts_with("warning  "), "{text}");
}

#[tokio::test]
async fn other_rules_in_redis_are_told() {
    let redis = Redis::start().await;
    drop(Options::redis(&redis).rules("[[channel]]\nmatch = 'other'\nhistory = false\n").start().await);
    let (text, content) = check(&redis.url());
    assert!(line(&text, "have another version or other rules").starts_with("warning  ") && content, "{text}");
}

#[tokio::test]
async fn functions_of_a_later_version_stay_and_are_used() {
    let redis = Redis::start().await;
    let one = Options::redis(&redis).start().await;
    let held = || redis.cli(&["FUNCTION", "LIST", "LIBRARYNAME", "livebridge", "WITHCODE"]);
    let listed = held();
    let code = listed.split("library_code\n").nth(1).unwrap();
    let later = code.replacen("-- format 3", "-- format 99", 1);
    assert_eq!(redis.cli(&["FUNCTION", "LOAD", "REPLACE", &later]), "livebridge");
    let two = Options::redis(&redis).start().await;
    redis.cli(&["CLIENT", "KILL", "TYPE", "normal"]);
    redis.cli(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    crate::support::until("had again", || async { one.metric("livebridge_broker_reconnects_total").await == 1.0 })
        .await;
    crate::support::until("used", || async { one.post("/publish", "x").await.0 == 200 }).await;
    assert!(held().contains("-- format 99"), "an earlier version has replaced it");
    assert!(two.log().contains("newer function library"), "{}", two.log());
    let (text, content) = check(&redis.url());
    assert!(line(&text, "newer than this instance").starts_with("warning  ") && content, "{text}");
}

#[tokio::test]
async fn a_redis_that_does_not_answer_or_let_in_is_an_error_without_the_password() {
    let (text, content) = check("redis://user:SECRET@127.0.0.1:1/");
    assert!(!content && line(&text, "can't be reached").contains("127.0.0.1:1"), "{text}");
    let redis = Redis::start().await;
    redis.cli(&["CONFIG", "SET", "requirepass", "right"]);
    let (wrong, content) = check(&format!("redis://:SECRET@127.0.0.1:{}/", redis.port));
    assert!(!content && line(&wrong, "refused the login").contains("correct the user and password"), "{wrong}");
    let (none, content) = check(&redis.url());
    assert!(!content && line(&none, "refused the login").contains("NOAUTH"), "{none}");
    let (unread, content) = check("http://user:SECRET@127.0.0.1/");
    assert!(!content && line(&unread, "invalid Redis URL").contains("redis://"), "{unread}");
    assert!(![text, wrong, none, unread].concat().contains("SECRET"));
    let (_, content) = check(&format!("redis://:right@127.0.0.1:{}/", redis.port));
    assert!(content);
}

#[tokio::test]
async fn missing_permissions_are_named_and_mended_by_what_is_printed() {
    let redis = Redis::start().await;
    let user = |rules: &str| {
        let mut words = vec!["ACL", "SETUSER", "lb", "reset", "on", ">pw", "~*", "&*"];
        words.extend(rules.split(' '));
        assert_eq!(redis.cli(&words), "OK");
        check(&format!("redis://lb:pw@127.0.0.1:{}/", redis.port))
    };
    let (text, content) = user("+@all -zadd -hset");
    assert!(!content && line(&text, "may not call").contains("+hset +zadd"), "{text}");
    let (text, content) = user("+@all -subscribe");
    assert!(!content && line(&text, "do not arrive").contains("+subscribe"), "{text}");
    let (text, content) = user("+@all -function -fcall");
    assert!(content && line(&text, "uses scripts instead").starts_with("warning  "), "{text}");
    let (text, content) = user("+@all -function -fcall -evalsha");
    assert!(!content && line(&text, "neither load and call functions nor scripts").starts_with("error  "), "{text}");
    let (text, content) = user("+@all -config -info");
    assert!(content && line(&text, "cannot read INFO").starts_with("warning  "), "{text}");
    let (text, content) = user("+@all -config");
    assert!(content && line(&text, "may not read Redis' settings").starts_with("warning  "), "{text}");
    let (text, content) = user("+@all resetkeys ~other:*");
    assert!(!content && line(&text, "may not call").contains("~livebridge:*"), "{text}");
}

#[tokio::test]
async fn an_acl_that_does_not_cover_the_channels_of_the_rules_is_a_warning() {
    let redis = Redis::start().await;
    let folder = tempfile::tempdir().unwrap();
    let rules = ["sheet:*", "orders", "*:log"].map(|pattern| format!("[[channel]]\nmatch = '{pattern}'\n")).concat();
    std::fs::write(folder.path().join("livebridge.toml"), rules).unwrap();
    let user = |acl: &str| {
        let mut words = vec!["ACL", "SETUSER", "lb", "reset", "on", ">pw", "+@all"];
        words.extend(acl.split(' '));
        assert_eq!(redis.cli(&words), "OK");
        let url = format!("redis://lb:pw@127.0.0.1:{}/", redis.port);
        let output = command(folder.path()).args(["check", "--redis-url", &url]).output().unwrap();
        (String::from_utf8(output.stdout).unwrap(), output.status.success())
    };
    redis.cli(&["RPUSH", "orders", "somebody's", "own"]);
    let (text, content) = user("~* &sheet:* &livebridge:*");
    let told = line(&text, "does not cover");
    assert!(content && told.starts_with("warning  ") && told.contains("refused: orders, *:log"), "{text}");
    assert!(told.ends_with("ACL SETUSER … ~livebridge:* &livebridge:* ~orders ~*:log &orders &*:log"), "{text}");
    // A channel's name is a key as well: that of the function's call.
    for keys in
        ["~livebridge:* ~sheet:* ~*:log", "~livebridge:{sheet:* ~sheet:* ~livebridge:check ~livebridge:{*:log* ~*:log"]
    {
        let (text, _) = user(&format!("{keys} &*"));
        assert!(line(&text, "does not cover").contains("refused: orders - "), "{keys}: {text}");
    }
    let (text, _) = user("~livebridge:* ~sheet:* ~orders ~*:log &livebridge:* &sheet:* &orders &*:log");
    assert!(line(&text, "may access the channels of the rules").starts_with("ok "), "{text}");
    assert_eq!(redis.cli(&["LRANGE", "orders", "0", "-1"]), "somebody's\nown", "nothing is changed");
}

#[tokio::test]
async fn an_acl_without_what_numbered_plain_messages_need_is_a_warning_that_says_how_to_mend_it() {
    let redis = Redis::start().await;
    let folder = tempfile::tempdir().unwrap();
    let rules = "[[channel]]\nmatch = 'orders:*'\nplain = 'numbered'\n[[channel]]\nmatch = 'sheet:*'\n";
    std::fs::write(folder.path().join("livebridge.toml"), rules).unwrap();
    let user = |acl: &str| {
        let mut words = vec!["ACL", "SETUSER", "lb", "reset", "on", ">pw", "+@all", "~*"];
        words.extend(acl.split(' '));
        assert_eq!(redis.cli(&words), "OK");
        let url = format!("redis://lb:pw@127.0.0.1:{}/", redis.port);
        let output = command(folder.path()).args(["check", "--redis-url", &url]).output().unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap()
    };
    // Redis compares patterns with the rules of a user by name, so `livebridge:*` is not enough.
    let text = user("&orders:* &sheet:* &livebridge:*");
    let told = line(&text, "`plain = \"numbered\"` needs");
    assert!(told.starts_with("warning  "), "{text}");
    let (_, fix) = told.split_once("ACL SETUSER … +psubscribe ").unwrap();
    assert_eq!(fix, "&livebridge:note:orders:* &livebridge:run:orders:*");
    let text = user(&format!("&orders:* &sheet:* &livebridge:* {fix}"));
    assert!(line(&text, "may give plain messages their positions").starts_with("ok "), "{text}");
    let text = user(&format!(
        "&orders:* &sheet:* &livebridge:* {fix} resetkeys ~orders:* ~sheet:* ~livebridge:{{orders:* ~livebridge:{{sheet:* ~livebridge:check* ~livebridge:life"
    ));
    assert!(line(&text, "`plain = \"numbered\"` needs").ends_with(" ~livebridge:{}:members"), "{text}");
    let text = user(&format!("&orders:* &sheet:* &livebridge:* {fix} -psubscribe"));
    assert!(line(&text, "`plain = \"numbered\"` needs").contains("+psubscribe &"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_user_that_the_docs_tell_to_create_may_do_all_that_is_needed() {
    let redis = Redis::start_with(&["--appendonly", "yes"]).await;
    let mut words = vec!["ACL", "SETUSER", "lb", "reset", "on", ">pw"];
    words.extend(acl::of_an_instance());
    assert_eq!(redis.cli(&words), "OK");
    let url = format!("redis://lb:pw@127.0.0.1:{}/", redis.port);
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("livebridge.toml"), "[[channel]]\nmatch = 'sheet:*'\n").unwrap();
    let output = command(folder.path()).args(["check", "--redis-url", &url]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.lines().all(|line| line.starts_with("ok ")), "{text}");
    let instance = Options { redis_url: Some(url), ..Options::default() }.start().await;
    let mut socket = instance.ws("channel=sheet:docs&last=1").await;
    let (status, answer) = instance.post("/publish?channel=sheet:docs&key=A1", "1").await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!(socket.text().await, "1");
    assert_eq!(instance.get("/events?channel=other").await.0, 403, "no other channel");
}

#[test]
fn the_user_that_the_docs_tell_to_create_may_call_what_the_functions_call_and_little_else() {
    let functions = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/broker/redis/functions");
    let code = std::fs::read_dir(functions).unwrap().map(|file| std::fs::read_to_string(file.unwrap().path()).unwrap());
    let code: String = code.collect();
    let called = ["redis.call('", "redis.pcall('"].into_iter().flat_map(|call| code.split(call).skip(1));
    let mut needed: BTreeSet<_> = called.map(|rest| rest.split('\'').next().unwrap().to_lowercase()).collect();
    assert!(needed.remove("pubsub") && needed.len() > 20, "the functions are written differently now: {needed:?}");
    let own =
        "pubsub|numsub fcall function|list function|load psubscribe publish subscribe unsubscribe config|get info type";
    needed.extend(own.split(' ').map(str::to_owned));
    let allowed = acl::of_an_instance().into_iter().filter_map(|rule| rule.strip_prefix('+').map(str::to_owned));
    assert_eq!(allowed.collect::<BTreeSet<_>>(), needed);
}

#[tokio::test]
async fn a_replica_takes_nothing() {
    let master = Redis::start().await;
    let replica = Redis::start_with(&["--save", "", "--replicaof", "127.0.0.1", &master.port.to_string()]).await;
    let (text, content) = check(&replica.url());
    assert!(!content && line(&text, "is a replica").contains("use the master"), "{text}");
}

#[tokio::test]
async fn few_descriptors_are_a_warning() {
    let folder = tempfile::tempdir().unwrap();
    let mut shell = std::process::Command::new("sh");
    shell.current_dir(folder.path()).env_clear();
    let script = "ulimit -n 256 && exec \"$0\" check";
    let output = shell.args(["-c", script, crate::support::instance::BINARY]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && line(&text, "descriptors is 256").starts_with("warning  "), "{text}");
}

#[tokio::test]
async fn a_node_of_a_redis_cluster_is_an_error() {
    let (_redis, text, content) = with(&["--save", "", "--cluster-enabled", "yes"]).await;
    let found = text.lines().find(|line| line.contains("is a node of a Redis Cluster"));
    assert!(found.is_some_and(|line| line.starts_with("error  ")) && !content, "{text}");
}
