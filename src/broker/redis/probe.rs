//! Checks whether a Redis server is suitable for livebridge, without changing anything in it.
//! Commands that write are tried on keys that do not exist, in a form that has no effect then, or
//! with arguments that Redis refuses after checking the permission. `diagnosis.rs` judges the
//! results.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use redis::{Cmd, FromRedisValue, Value};
use tokio::time::Instant;

use super::cluster_url::ClusterUrl;
use super::connection::{Connection, Role};
use super::diagnosis::{self, Facts};
use super::endpoint::{ANSWER_TIMEOUT, RedisOptions, RedisOptionsError};
use super::error::ClientError;
use super::finder::Finder;
use super::library::{LIFE_KEY, LibraryState, is_refusal};
use super::node::Node;
use super::resp::Frame;
use super::target::Target;
use super::url::UrlError;
use crate::finding::{Finding, Level};
use crate::observability::metrics::{Certificate, Metrics};
use crate::rules::Rules;

/// Replaces the `*` of a pattern, to form a name that no client uses.
const SAMPLE: &str = "livebridge-check";
/// How often a round trip is measured; the fastest one counts.
const PINGS: usize = 5;

/// Checks a Redis server, or all masters of a Redis Cluster. Returns one finding per check.
pub async fn check_redis(options: &RedisOptions, rules: &Rules) -> Vec<Finding> {
    let checked = match ClusterUrl::parse(&options.url) {
        Some(url) => check_cluster(url, options, rules).await,
        None => check_one(options, rules).await,
    };
    checked.unwrap_or_else(|error| {
        vec![match error {
            RedisOptionsError::Url(UrlError { what, form }) => {
                Finding::error(format!("invalid Redis URL: {what}"), format!("use a URL such as {form}"))
            }
            error => Finding::error(error.to_string(), "fix the reported problem"),
        }]
    })
}

async fn check_one(options: &RedisOptions, rules: &Rules) -> Result<Vec<Finding>, RedisOptionsError> {
    // These metrics are discarded.
    let metrics = Arc::new(Metrics::new(1));
    let target = Target::new(options, metrics.clone())?;
    // Any role, because the checks report it.
    let node = Node::new(target, Role::Any, options.names(false)?, rules, metrics);
    Ok(check_server(&node, rules, &format!("livebridge:check:{:016x}", rand::random::<u64>())).await)
}

/// Checks the masters of a Cluster. What is fine on the first one, and on another one too, is
/// reported once.
async fn check_cluster(
    url: Result<ClusterUrl, UrlError>,
    options: &RedisOptions,
    rules: &Rules,
) -> Result<Vec<Finding>, RedisOptionsError> {
    let (finder, names) = (Finder::new(url?, options)?, options.names(true)?);
    let topology = match finder.find(&[]).await {
        Ok(topology) => topology,
        Err(error) => return Ok(vec![diagnosis::unreachable(&finder.place(), &error)]),
    };
    let mut findings = Vec::new();
    let mut moving = 0;
    for (index, (host, port)) in topology.masters.iter().enumerate() {
        let target = Target::Server(finder.endpoint(host, *port)?);
        let node = Node::new(target, Role::Shard, names.clone(), rules, Arc::new(Metrics::new(1)));
        moving += moving_slots(&node).await;
        let prefix = format!("livebridge:check:{:016x}:", rand::random::<u64>());
        let channel = topology.name_in(index, &prefix).unwrap_or(prefix);
        let mut of_shard = check_server(&node, rules, &channel).await.into_iter();
        findings.extend(of_shard.next());
        let place = node.place();
        findings.extend(of_shard.filter_map(|finding| match finding.level {
            Level::Ok if index > 0 => None,
            Level::Ok => Some(finding),
            _ => Some(finding.at(&place)),
        }));
    }
    findings.push(diagnosis::slots(topology.masters.len(), topology.served(), moving));
    Ok(findings)
}

/// How many slots a master is handing over to another one.
async fn moving_slots(node: &Node) -> usize {
    let Ok(mut connection) = node.connect().await else { return 0 };
    let Ok(nodes) = ask::<String>(&mut connection, &["CLUSTER", "NODES"]).await else { return 0 };
    nodes.lines().filter(|line| line.contains("myself")).map(|line| line.matches("->-").count()).sum()
}

/// Checks a server. `channel` must be one of its own.
async fn check_server(node: &Node, rules: &Rules, channel: &str) -> Vec<Finding> {
    let place = node.place();
    let mut connection = match node.connect().await {
        Ok(connection) => connection,
        Err(error) => {
            let unreachable = diagnosis::unreachable(&place, &error);
            return std::iter::once(unreachable).chain(certificates(&node.metrics)).collect();
        }
    };
    let mut findings = vec![Finding::ok(format!("Redis answers at {place}"))];
    findings.extend(certificates(&node.metrics));
    match ask::<String>(&mut connection, &["INFO"]).await {
        Ok(info) => {
            let facts = Facts::new(info, config(&mut connection).await);
            if let Some(finding) = diagnosis::wrong_mode(&facts, node.is_sharded()) {
                findings.push(finding);
                return findings;
            }
            findings.extend(diagnosis::server(&facts));
        }
        Err(error) => findings.push(Finding::warning(
            format!("cannot read INFO: {}", cause(&error)),
            "allow INFO to this user, or check version (7 or newer), eviction and persistence by hand",
        )),
    }
    findings.push(permissions(node, &mut connection, channel).await);
    findings.push(functions(&mut connection, node).await);
    findings.push(receiving(node, &mut connection, channel).await);
    findings.extend(coverage(node, &mut connection, rules).await);
    findings.extend(numbering(node, &mut connection, rules).await);
    findings.extend(times(&mut connection).await);
    findings
}

/// How long the certificates of the connections so far are valid.
fn certificates(metrics: &Metrics) -> impl Iterator<Item = Finding> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64);
    [Certificate::Server, Certificate::Client].into_iter().filter_map(move |certificate| {
        Some(diagnosis::certificate(certificate, metrics.certificate_expiry(certificate)? - now))
    })
}

async fn ask<T: FromRedisValue>(connection: &mut Connection, words: &[&str]) -> Result<T, ClientError> {
    connection.call(Cmd::new().arg(words)).await
}

/// The error reply of Redis, or else the error.
fn cause(error: &ClientError) -> String {
    error.refusal().map_or_else(|| error.to_string(), str::to_owned)
}

/// The settings that `INFO` does not report, by name; `None` if the user may not read them.
async fn config(connection: &mut Connection) -> Option<Vec<(String, String)>> {
    let mut settings = Vec::new();
    for name in ["save", "client-output-buffer-limit"] {
        let pairs: Vec<(String, String)> = ask(connection, &["CONFIG", "GET", name]).await.ok()?;
        settings.extend(pairs);
    }
    Some(settings)
}

/// Tries the commands of publishing and reading, on keys that do not exist.
async fn permissions(node: &Node, connection: &mut Connection, channel: &str) -> Finding {
    let key = format!("{channel}:head");
    let key = key.as_str();
    let publishing: [&[&str]; 2] = match node.is_sharded() {
        true => [&["SPUBLISH", channel, ""], &["CLUSTER", "INFO"]],
        false => [&["PUBLISH", channel, ""], &["PUBSUB", "NUMSUB", channel]],
    };
    let storing: [&[&str]; 26] = [
        &["TIME"],
        &["GET", key],
        &["SET", key, "1", "XX"],
        &["EXISTS", key],
        &["DEL", key],
        &["UNLINK", key],
        &["EXPIRE", key, "1"],
        &["PEXPIRE", key, "1"],
        &["LINDEX", key, "0"],
        &["LLEN", key],
        &["LRANGE", key, "0", "-1"],
        &["LTRIM", key, "0", "-1"],
        &["HLEN", key],
        &["HGET", key, "e"],
        &["HGETALL", key],
        &["HSTRLEN", key, "e"],
        &["HMGET", key, "e"],
        &["HDEL", key, "e"],
        // One value is missing, so Redis refuses the command, but only after checking the
        // permission.
        &["HSET", key, "e", "1", "o"],
        &["XRANGE", key, "-", "+"],
        &["ZCARD", key],
        &["ZADD", key, "XX", "1", "e"],
        &["ZREM", key, "e"],
        &["ZSCORE", key, "e"],
        &["ZPOPMIN", key],
        &["ZRANGEBYSCORE", key, "0", "1"],
    ];
    let mut lacking = Vec::new();
    for words in publishing.into_iter().chain(storing) {
        match ask::<Value>(connection, words).await {
            Err(error) if error.code() == Some("NOPERM") => lacking.push(acl_name(words)),
            Err(error) if error.code().is_some_and(|code| code != "ERR") => {
                return diagnosis::refused(words[0], &cause(&error));
            }
            _ => {}
        }
    }
    // RPUSH always has an effect, except on a key of another type.
    if ask::<String>(connection, &["TYPE", LIFE_KEY]).await.is_ok_and(|kind| kind == "string")
        && let Err(error) = ask::<Value>(connection, &["RPUSH", LIFE_KEY, ""]).await
        && error.code() == Some("NOPERM")
    {
        lacking.push("rpush".into());
    }
    diagnosis::permissions(&lacking)
}

/// The name of a command in ACL rules, with its subcommand if it has one.
fn acl_name(words: &[&str]) -> String {
    let name = if ["PUBSUB", "CLUSTER"].contains(&words[0]) { words[..2].join("|") } else { words[0].to_owned() };
    name.to_lowercase()
}

/// Whether the functions are loaded, or can be.
async fn functions(connection: &mut Connection, node: &Node) -> Finding {
    // The arguments name nothing that exists, so only the permission matters.
    let may = async |connection: &mut Connection, words: &[&str]| !matches!(ask::<Value>(connection, words).await, Err(error) if is_refusal(&error));
    let held = node.library().held(connection).await;
    let functions = may(connection, &["FUNCTION", "LOAD", "#!lua name=livebridge_check\n"]).await
        && may(connection, &["FCALL", "livebridge_check", "0"]).await;
    let scripts = may(connection, &["SCRIPT", "LOAD", "this is no Lua"]).await
        && may(connection, &["EVALSHA", "0000000000000000000000000000000000000000", "0"]).await;
    diagnosis::functions(held.unwrap_or(LibraryState::Nothing), functions, scripts)
}

/// Whether a published message arrives on another connection.
async fn receiving(node: &Node, connection: &mut Connection, channel: &str) -> Finding {
    let received = async {
        let mut subscription = node.connect().await.map_err(|error| error.to_string())?;
        let [subscribe, publish] = match node.is_sharded() {
            true => ["SSUBSCRIBE", "SPUBLISH"],
            false => ["SUBSCRIBE", "PUBLISH"],
        };
        subscription.send(&[subscribe, channel]);
        let (mut subscribed, mut received) = (false, false);
        while !received {
            subscription.read_or_write().await.map_err(|error| error.to_string())?;
            let was_subscribed = subscribed;
            let frames = subscription.frames(|frame| {
                match frame.accepted()? {
                    Frame::Subscribed { .. } => subscribed = true,
                    Frame::Message { .. } => received = true,
                    _ => {}
                }
                Ok(())
            });
            frames.map_err(|error| error.to_string())?;
            if subscribed && !was_subscribed {
                ask::<Value>(connection, &[publish, channel, ""]).await.map_err(|error| cause(&error))?;
            }
        }
        Ok(())
    };
    diagnosis::receiving(
        tokio::time::timeout(ANSWER_TIMEOUT, received).await.unwrap_or_else(|_| Err("none arrived in time".into())),
    )
}

/// Whether the ACL of this user covers the channels of the rules. Subscribes to a sample name for
/// each pattern, and accesses its keys without changing them. `None` if the connection fails, which
/// `receiving` reports.
async fn coverage(node: &Node, connection: &mut Connection, rules: &Rules) -> Option<Finding> {
    let patterns: Vec<_> = rules.iter().map(|(pattern, _)| pattern.as_str()).collect();
    let samples: Vec<_> =
        patterns.iter().map(|pattern| node.names().channel(&pattern.replace('*', SAMPLE)).into_owned()).collect();
    let refused = tokio::time::timeout(ANSWER_TIMEOUT, refused_channels(node, &samples)).await.ok()?.ok()?;
    let mut lacking = Vec::new();
    for ((pattern, sample), mut is_refused) in patterns.into_iter().zip(&samples).zip(refused) {
        for key in [sample.clone(), format!("livebridge:{{{sample}}}:history")] {
            // This range keeps every element of a list.
            let touched = ask::<Value>(connection, &["LTRIM", &key, "0", "-1"]).await;
            is_refused |= touched.is_err_and(|error| error.is_refused_key());
        }
        if is_refused {
            lacking.push(pattern.to_owned());
        }
    }
    Some(diagnosis::coverage(&lacking))
}

/// Whether the ACL of this user allows what rules with `plain = "numbered"` need: their patterns, and the channel
/// and the key of the members. `None` if there is no such rule, or if the connection fails.
async fn numbering(node: &Node, connection: &mut Connection, rules: &Rules) -> Option<Finding> {
    let names = node.names();
    let patterns: Vec<_> =
        rules.iter().filter(|(_, rule)| rule.numbered).flat_map(|(it, _)| names.patterns(it)).collect();
    if patterns.is_empty() || node.is_sharded() {
        return None;
    }
    let (own, members) = (names.numbered(), names.members());
    let commands = patterns.iter().map(|pattern| ["PSUBSCRIBE", pattern]).chain([["SUBSCRIBE", &own]]);
    let refused = tokio::time::timeout(ANSWER_TIMEOUT, refusals(node, commands)).await.ok()?.ok()?;
    let names = patterns.iter().chain([&own]).zip(refused);
    let mut lacking: Vec<_> = names.filter(|(_, is_refused)| *is_refused).map(|(name, _)| format!("&{name}")).collect();
    let touched = ask::<Value>(connection, &["HGET", &members, "barrier"]).await;
    if touched.is_err_and(|error| error.is_refused_key()) {
        lacking.push(format!("~{members}"));
    }
    Some(diagnosis::numbering(&lacking))
}

/// For each channel, whether Redis refuses the subscription. If Redis refuses the command as such, all channels are
/// affected, and `receiving` reports it.
async fn refused_channels(node: &Node, channels: &[String]) -> Result<Vec<bool>, ClientError> {
    refusals(node, channels.iter().map(|channel| ["SUBSCRIBE", channel])).await
}

/// For each subscription to one channel or pattern, whether Redis refuses it because of the channel, or, for patterns,
/// the command.
async fn refusals<'a>(node: &Node, commands: impl Iterator<Item = [&'a str; 2]>) -> Result<Vec<bool>, ClientError> {
    let mut connection = node.connect().await?;
    let is_pattern: Vec<_> = commands
        .map(|command| {
            connection.send(&command);
            command[0] == "PSUBSCRIBE"
        })
        .collect();
    let mut refused = Vec::with_capacity(is_pattern.len());
    while refused.len() < is_pattern.len() {
        connection.read_or_write().await?;
        connection.frames(|frame| {
            match frame {
                Frame::Subscribed { .. } => refused.push(false),
                Frame::Refused(why) => {
                    let is_channel = String::from_utf8_lossy(why).contains("channel");
                    refused.push(is_channel || is_pattern.get(refused.len()) == Some(&true));
                }
                _ => {}
            }
            Ok(())
        })?;
    }
    Ok(refused)
}

/// The difference of the clocks, and the round-trip time.
async fn times(connection: &mut Connection) -> Vec<Finding> {
    let mut fastest: Option<(Duration, f64)> = None;
    for _ in 0..PINGS {
        let asked = Instant::now();
        let Ok((seconds, micros)) = ask::<(f64, f64)>(connection, &["TIME"]).await else { continue };
        let took = asked.elapsed();
        let here = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
        // Assume that Redis read its clock halfway through the round trip.
        let ahead = seconds + micros / 1e6 - (here - took.as_secs_f64() / 2.0);
        if fastest.is_none_or(|(before, _)| took < before) {
            fastest = Some((took, ahead));
        }
    }
    fastest.map_or_else(Vec::new, |(took, ahead)| vec![diagnosis::round_trip(took), diagnosis::clocks(ahead)])
}
