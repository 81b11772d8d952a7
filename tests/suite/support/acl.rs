//! The Redis users that docs/deployment.md tells to create.

use super::redis::Redis;
use super::sentinel;

const DOCS: &str = include_str!("../../../docs/deployment.md");
pub const PASSWORD: &str = "secret";
/// The channels of the documentation.
const DOCUMENTED: &str = "sheet:*";
/// All that does not begin with `livebridge:`.
const ALL_OTHERS: [&str; 6] = ["[^l]*", "l[^i]*", "li[^v]*", "liv[^e]*", "live", "live[^b]*"];

/// The rules of the user that the page creates by a command with this beginning, behind its password.
pub fn documented(beginning: &str) -> Vec<&'static str> {
    let mut rules = after(beginning);
    assert_eq!(rules.next(), Some(">PASSWORD"));
    rules.collect()
}

/// The words of a command of the page, behind its beginning.
fn after(beginning: &str) -> impl Iterator<Item = &'static str> {
    let (_, rest) = DOCS.split_once(beginning).unwrap_or_else(|| panic!("the page has no {beginning}"));
    rest.split("\n\n").next().unwrap().split_whitespace()
}

/// The rules of the user of an instance.
pub fn of_an_instance() -> Vec<&'static str> {
    documented("ACL SETUSER livebridge reset on")
}

/// Creates the user of an instance, with the channels of the tests in place of those of the page.
pub fn create_user(redis: &Redis) {
    let rules = of_an_instance().into_iter().flat_map(|rule| match rule.strip_suffix(DOCUMENTED) {
        Some(kind) => ALL_OTHERS.iter().map(|pattern| format!("{kind}{pattern}")).collect(),
        None => vec![rule.to_owned()],
    });
    create(redis, &rules.collect::<Vec<_>>());
}

/// Creates the user of an instance on a node of a Cluster.
pub fn create_user_of_cluster(node: &Redis) {
    create_user(node);
    let more = after("ACL SETUSER livebridge +cluster|info");
    let words = ["ACL", "SETUSER", "livebridge", "+cluster|info"].into_iter().chain(more);
    assert_eq!(node.cli(&words.collect::<Vec<_>>()), "OK");
}

/// Creates the user of an instance on a Sentinel.
pub fn create_user_of_sentinel(sentinel: &Redis) {
    create(sentinel, &documented("ACL SETUSER livebridge-sentinel reset on"));
}

/// The URL of a Redis that Sentinels name, with the users of both.
pub fn sentinel_url<'a>(sentinels: impl IntoIterator<Item = &'a Redis>) -> String {
    let url = sentinel::url(sentinels).replacen("://", &format!("://livebridge:{PASSWORD}@"), 1);
    format!("{url}?sentinel_user=livebridge&sentinel_password={PASSWORD}")
}

fn create(redis: &Redis, rules: &[impl AsRef<str>]) {
    let password = format!(">{PASSWORD}");
    let mut words = vec!["ACL", "SETUSER", "livebridge", "reset", "on", &password];
    words.extend(rules.iter().map(AsRef::as_ref));
    assert_eq!(redis.cli(&words), "OK", "{words:?}");
}
