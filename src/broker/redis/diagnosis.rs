//! Interprets the facts about a Redis server: each finding has a level and a suggested fix. Pure
//! functions; `probe.rs` queries the server.

use std::collections::HashMap;
use std::time::Duration;

use super::error::ClientError;
use super::library::LibraryState;
use super::topology::SLOTS;
use crate::finding::Finding;
use crate::observability::metrics::Certificate;

/// A larger clock difference makes message ages and logs hard to compare, in seconds.
const CLOCKS_APART: f64 = 2.0;
/// A longer round trip delays each publish noticeably.
const SLOW: Duration = Duration::from_millis(50);
/// The defaults of `client-output-buffer-limit pubsub` in Redis, in bytes: hard limit and soft
/// limit.
const PUBSUB_HARD: u64 = 32 << 20;
const PUBSUB_SOFT: u64 = 8 << 20;
/// What Redis, Valkey and Redict call the field of `INFO` that tells the mode.
const MODE_FIELDS: [&str; 3] = ["redis_mode", "server_mode", "redict_mode"];
/// A day, in seconds, and how many of them before a certificate expires it should be renewed.
const DAY: i64 = 24 * 60 * 60;
const FEW_DAYS: i64 = 14;

/// What a server reports about itself.
pub(super) struct Facts {
    info: HashMap<String, String>,
    /// The settings by name; `None` if the user may not read them.
    config: Option<HashMap<String, String>>,
}

impl Facts {
    /// Creates the facts from the replies to `INFO` and `CONFIG GET`.
    pub(super) fn new(info: impl AsRef<str>, config: Option<Vec<(String, String)>>) -> Self {
        let lines = info.as_ref().lines().filter_map(|line| line.split_once(':'));
        let info = lines.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect();
        Self { info, config: config.map(HashMap::from_iter) }
    }

    fn info(&self, name: &str) -> &str {
        self.info.get(name).map_or("", String::as_str)
    }

    /// `standalone`, `sentinel` or `cluster`.
    fn mode(&self) -> &str {
        MODE_FIELDS.iter().map(|name| self.info(name)).find(|mode| !mode.is_empty()).unwrap_or_default()
    }
}

/// Redis cannot be reached, or refused the login.
pub(super) fn unreachable(place: &str, error: &ClientError) -> Finding {
    if let ClientError::Tls(problem) = error {
        return Finding::error(format!("Redis at {place} can't be reached: {}", problem.what), problem.fix);
    }
    let why = error.refusal().map_or_else(|| error.to_string(), str::to_owned);
    let (what, fix) = match error.code() {
        Some("NOAUTH" | "WRONGPASS" | "NOPERM") => {
            ("refused the login", "correct the user and password in the Redis URL, or --redis-password")
        }
        _ => (
            "can't be reached",
            "check that Redis runs there, that its `bind` setting and firewalls allow this machine, and that the URL is correct",
        ),
    };
    Finding::error(format!("Redis at {place} {what}: {why}"), fix)
}

/// The server is a Sentinel. No other finding matters then.
pub(super) fn wrong_mode(facts: &Facts, is_sharded: bool) -> Option<Finding> {
    match (facts.mode(), is_sharded) {
        ("sentinel", _) => Some(Finding::error(
            "this is a Redis Sentinel, which holds no data",
            "write redis+sentinel://HOST:PORT/MASTER in the Redis URL; `redis-cli -p PORT SENTINEL MASTERS` shows the names",
        )),
        ("cluster", false) => Some(Finding::error(
            "this is a node of a Redis Cluster, which serves only some of the channels",
            "write redis+cluster://HOST:PORT in the Redis URL to use all of it",
        )),
        _ => None,
    }
}

/// Findings from `INFO` and `CONFIG GET`.
pub(super) fn server(facts: &Facts) -> Vec<Finding> {
    let mut findings = vec![version(facts), role(facts.info("role"))];
    findings.push(memory(facts.info("maxmemory"), facts.info("maxmemory_policy")));
    let aof = facts.info("aof_enabled") == "1";
    match &facts.config {
        Some(config) => {
            let setting = |name: &str| config.get(name).map_or("", String::as_str);
            findings.push(persistence(aof, setting("save")));
            findings.push(output_buffer(setting("client-output-buffer-limit")));
        }
        None => findings.push(Finding::warning(
            "this user may not read Redis' settings, so persistence and output buffers are not checked",
            "allow CONFIG GET, or check by hand that `appendonly` is on and `client-output-buffer-limit pubsub` has its default",
        )),
    }
    findings
}

fn version(facts: &Facts) -> Finding {
    // Valkey names the version of Redis that it is compatible with, and its own.
    let version = facts.info("redis_version");
    let what = match facts.info("valkey_version") {
        "" => format!("Redis version {version}"),
        own => format!("Valkey version {own}"),
    };
    match version.split('.').next().and_then(|major| major.parse::<u32>().ok()) {
        Some(7..) => Finding::ok(what),
        Some(6) => Finding::warning(
            format!("Redis {version} does not support functions, so other clients cannot call `livebridge_publish`"),
            "use Redis 7 or newer",
        ),
        _ => Finding::error(what, "use Redis 7 or newer, or Valkey"),
    }
}

fn role(role: &str) -> Finding {
    match role {
        "slave" => {
            Finding::error("this Redis is a replica: nothing can be published", "use the master in the Redis URL")
        }
        _ => Finding::ok("this Redis accepts writes"),
    }
}

fn memory(most: &str, policy: &str) -> Finding {
    match (most.parse::<u64>().unwrap_or(0), policy) {
        (0, _) => Finding::ok("Redis has no memory limit (maxmemory 0), so nothing is evicted"),
        (_, "noeviction") => Finding::ok("a full Redis refuses new messages and evicts nothing (noeviction)"),
        (_, policy) => Finding::warning(
            format!(
                "a full Redis may evict histories and keyed values (maxmemory-policy {policy}); clients then get a gap notice"
            ),
            "set `maxmemory-policy noeviction`, or give livebridge a Redis of its own",
        ),
    }
}

fn persistence(aof: bool, save: &str) -> Finding {
    match (aof, save) {
        (true, _) => Finding::ok("Redis keeps its data across a restart (appendonly)"),
        (false, "") => Finding::warning(
            "Redis loses all data when it restarts; clients then get a gap notice",
            "set `appendonly yes`",
        ),
        (false, _) => Finding::warning(
            "Redis only writes snapshots: a crash loses everything after the last one, and clients get a gap notice",
            "set `appendonly yes`",
        ),
    }
}

/// Parses a setting such as `normal 0 0 0 slave 268435456 67108864 60 pubsub 33554432 8388608 60`.
fn output_buffer(limits: &str) -> Finding {
    let mut words = limits.split_whitespace().skip_while(|&word| word != "pubsub").skip(1);
    let mut bytes = || words.next().and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
    let (hard, soft) = (bytes(), bytes());
    let small = |limit: u64, usual: u64| limit != 0 && limit < usual;
    if small(hard, PUBSUB_HARD) || small(soft, PUBSUB_SOFT) {
        return Finding::warning(
            format!(
                "Redis disconnects an instance that is {hard} bytes behind, or {soft} bytes for a while; a burst can cause this"
            ),
            "set `client-output-buffer-limit pubsub 32mb 8mb 60`, the default, or more",
        );
    }
    Finding::ok("the output buffer for subscribers has its default size or more")
}

/// Redis refused a command for a reason other than permissions.
pub(super) fn refused(command: &str, why: &str) -> Finding {
    Finding::error(format!("Redis refuses {command}: {why}"), "fix the reported problem")
}

/// The commands that this user may not call.
pub(super) fn permissions(lacking: &[String]) -> Finding {
    if lacking.is_empty() {
        return Finding::ok("this user may call all commands that livebridge needs");
    }
    Finding::error(
        format!("this user may not call {} on livebridge's keys and channels", lacking.join(", ")),
        format!("ACL SETUSER … +{} ~livebridge:* ~CHANNELS &*", lacking.join(" +")),
    )
}

/// Whether the function library is in Redis and belongs to this version, or can be loaded.
pub(super) fn functions(held: LibraryState, functions: bool, scripts: bool) -> Finding {
    match (held, functions, scripts) {
        (LibraryState::Same, true, _) => Finding::ok("the functions in Redis have this version and these rules"),
        (LibraryState::Newer, true, _) => Finding::warning(
            "the functions in Redis are newer than this instance; it uses them with the rules that they contain",
            "update this instance; to return to this version for good: FUNCTION DELETE livebridge",
        ),
        (LibraryState::Other, true, _) => Finding::warning(
            "the functions in Redis have another version or other rules; the next instance that connects replaces them",
            "give all instances the same version and the same rules",
        ),
        (LibraryState::Nothing, true, _) => Finding::ok("the functions can be loaded"),
        (_, false, true) => Finding::warning(
            "this user may not load or call functions: livebridge uses scripts instead, and other clients cannot call `livebridge_publish`",
            "to use functions: ACL SETUSER … +function +fcall",
        ),
        (_, false, false) => Finding::error(
            "this user may neither load and call functions nor scripts",
            "ACL SETUSER … +function +fcall (or +script +evalsha)",
        ),
    }
}

/// Whether all slots of a Cluster have a master, and stay where they are.
pub(super) fn slots(masters: usize, served: usize, moving: usize) -> Finding {
    if served < SLOTS {
        return Finding::error(
            format!("{} of {SLOTS} slots have no master: their channels are not served", SLOTS - served),
            "redis-cli --cluster check HOST:PORT, then --cluster fix",
        );
    }
    let what = format!("the Redis Cluster has {masters} masters, and all {SLOTS} slots have a master");
    match moving {
        0 => Finding::ok(what),
        moving => Finding::warning(
            format!(
                "{moving} {} moving: new channels there wait for the end",
                if moving == 1 { "slot is" } else { "slots are" }
            ),
            "if nobody is resharding: redis-cli --cluster fix HOST:PORT",
        ),
    }
}

/// Whether published messages arrive.
pub(super) fn receiving(received: Result<(), String>) -> Finding {
    match received {
        Ok(()) => Finding::ok("published messages arrive"),
        Err(why) => Finding::error(
            format!("published messages do not arrive: {why}"),
            "allow SUBSCRIBE on all channels: ACL SETUSER … +subscribe +unsubscribe &*",
        ),
    }
}

/// The patterns of the rules whose channels the ACL of this user does not cover.
pub(super) fn coverage(lacking: &[String]) -> Finding {
    if lacking.is_empty() {
        return Finding::ok("this user may access the channels of the rules");
    }
    let patterns = |sigil: char| lacking.iter().map(|pattern| format!(" {sigil}{pattern}")).collect::<String>();
    Finding::warning(
        format!(
            "the ACL of this user does not cover these channels of the rules, which are refused: {}",
            lacking.join(", ")
        ),
        format!("ACL SETUSER … ~livebridge:* &livebridge:*{}{}", patterns('~'), patterns('&')),
    )
}

/// The rules of the ACL that this user lacks for `plain = "numbered"`.
pub(super) fn numbering(lacking: &[String]) -> Finding {
    if lacking.is_empty() {
        return Finding::ok("this user may give plain messages their positions");
    }
    Finding::warning(
        "the ACL of this user does not allow what `plain = \"numbered\"` needs, so these channels do not work",
        format!("ACL SETUSER … +psubscribe {}", lacking.join(" ")),
    )
}

/// How long a round trip takes.
pub(super) fn round_trip(took: Duration) -> Finding {
    let what = format!("Redis round trip: {:.1} ms", took.as_secs_f64() * 1000.0);
    if took < SLOW {
        Finding::ok(what)
    } else {
        Finding::warning(what, "run the instances closer to Redis: each publish takes a round trip")
    }
}

/// How long a certificate is still valid, in seconds.
pub(super) fn certificate(certificate: Certificate, seconds: i64) -> Finding {
    let (whose, renew) = match certificate {
        Certificate::Server => ("the certificate of Redis", "renew it"),
        Certificate::Client => ("the client certificate (--redis-cert)", "renew it, and restart the instances"),
    };
    match seconds / DAY {
        _ if seconds < 0 => Finding::error(format!("{whose} has expired"), renew),
        days if days < FEW_DAYS => Finding::warning(format!("{whose} expires in {days} days"), renew),
        days => Finding::ok(format!("{whose} is valid for {days} days")),
    }
}

/// How far Redis' clock is ahead of this machine's, in seconds.
pub(super) fn clocks(ahead: f64) -> Finding {
    if ahead.abs() < CLOCKS_APART {
        return Finding::ok(format!("the clocks of Redis and this machine are {:.0} ms apart", ahead.abs() * 1000.0));
    }
    let way = if ahead > 0.0 { "ahead of" } else { "behind" };
    Finding::warning(
        format!(
            "the clock of Redis is {:.0} s {way} that of this machine; the age of messages counts by the clock of Redis",
            ahead.abs()
        ),
        "synchronize both clocks with NTP",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finding::Level;

    #[test]
    fn versions_are_judged_by_their_major_number() {
        let facts = |info: &str| Facts::new(info, None);
        let judged = ["5.0.7", "6.2.1", "7.0.15", "8.2", "", "x"]
            .map(|text| version(&facts(&format!("redis_version:{text}"))).level);
        let (ok, warning, error) = (Level::Ok, Level::Warning, Level::Error);
        assert_eq!(judged, [error, warning, ok, ok, error, error]);
        let valkey = version(&facts("redis_version:7.2.4\r\nvalkey_version:9.1.2\r\n"));
        assert_eq!(valkey, Finding::ok("Valkey version 9.1.2"));
    }

    #[test]
    fn others_have_names_of_their_own_for_the_mode() {
        for name in ["redict_mode", "server_mode", "redis_mode"] {
            let facts = |mode: &str| Facts::new(format!("{name}:{mode}\r\nrole:master\r\n"), None);
            let wrong = ["sentinel", "cluster", "standalone"].map(|mode| wrong_mode(&facts(mode), false).is_some());
            assert_eq!(wrong, [true, true, false]);
        }
    }

    #[test]
    fn clocks_and_round_trips_are_judged_by_how_far_they_are_off() {
        let judged = [0.01, -0.01, 3.0, -3.0].map(|ahead| clocks(ahead).level);
        assert_eq!(judged, [Level::Ok, Level::Ok, Level::Warning, Level::Warning]);
        assert!(clocks(-3.4).to_string().contains("3 s behind"));
        assert_eq!(round_trip(Duration::from_millis(60)).level, Level::Warning);
    }

    #[test]
    fn certificates_are_judged_by_how_long_they_are_valid() {
        let judged = [-1, 0, 14 * DAY - 1, 14 * DAY].map(|seconds| certificate(Certificate::Client, seconds).level);
        assert_eq!(judged, [Level::Error, Level::Warning, Level::Warning, Level::Ok]);
        assert!(certificate(Certificate::Server, 90 * DAY).to_string().contains("of Redis is valid for 90 days"));
    }

    #[test]
    fn an_output_buffer_without_a_limit_is_no_small_one() {
        let judged =
            ["pubsub 0 0 0", "normal 1 1 1 pubsub 33554432 8388608 60", "pubsub 1048576 0 0", "pubsub 0 1024 60"];
        let (ok, warning) = (Level::Ok, Level::Warning);
        assert_eq!(judged.map(|limits| output_buffer(limits).level), [ok, ok, warning, warning]);
    }
}
