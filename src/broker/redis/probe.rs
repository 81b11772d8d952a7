//! Checks whether a Redis server is suitable for livebridge, without changing anything in it.
//! Commands that write are tried on keys that do not exist, in a form that has no effect then, or
//! with arguments that Redis refuses after checking the permission. `diagnosis.rs` judges the
//! results.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use redis::{Cmd, FromRedisValue, Value};
use tokio::time::Instant;

use super::connection::{Connection, Role};
use super::diagnosis::{self, Facts};
use super::endpoint::{ANSWER_TIMEOUT, RedisOptions, RedisOptionsError};
use super::error::ClientError;
use super::library::{LIFE_KEY, LibraryState, is_refusal};
use super::node::Node;
use super::resp::Frame;
use super::target::Target;
use super::url::UrlError;
use crate::finding::Finding;
use crate::observability::metrics::Metrics;
use crate::rules::Rules;

/// Replaces the `*` of a pattern, to form a name that no client uses.
const SAMPLE: &str = "livebridge-check";
/// How often a round trip is measured; the fastest one counts.
const PINGS: usize = 5;

/// Checks a Redis server. Returns one finding per check.
pub async fn check_redis(options: &RedisOptions, rules: &Rules) -> Vec<Finding> {
    // These metrics are discarded.
    let metrics = Arc::new(Metrics::new(1));
    let target = match Target::new(options, metrics.clone()) {
        Ok(target) => target,
        Err(RedisOptionsError::Url(UrlError { what, form })) => {
            return vec![Finding::error(format!("invalid Redis URL: {what}"), format!("use a URL such as {form}"))];
        }
        Err(error) => return vec![Finding::error(error.to_string(), "fix the reported problem")],
    };
    let place = target.place();
    // Any role, because the checks report it.
    let node = Node::new(target, Role::Any, rules, metrics);
    let mut connection = match node.connect().await {
        Ok(connection) => connection,
        Err(error) => return vec![diagnosis::unreachable(&place, &error)],
    };
    let mut findings = vec![Finding::ok(format!("Redis answers at {place}"))];
    match ask::<String>(&mut connection, &["INFO"]).await {
        Ok(info) => {
            let facts = Facts::new(info, config(&mut connection).await);
            if let Some(finding) = diagnosis::sentinel(&facts) {
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
    let channel = format!("livebridge:check:{:016x}", rand::random::<u64>());
    findings.push(permissions(&mut connection, &channel).await);
    findings.push(functions(&mut connection, &node).await);
    findings.push(receiving(&node, &mut connection, &channel).await);
    findings.extend(coverage(&node, &mut connection, rules).await);
    findings.extend(times(&mut connection).await);
    findings
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
async fn permissions(connection: &mut Connection, channel: &str) -> Finding {
    let key = format!("livebridge:{{{channel}}}:head");
    let key = key.as_str();
    let commands: [&[&str]; 23] = [
        &["PUBLISH", channel, ""],
        &["PUBSUB", "NUMSUB", channel],
        &["TIME"],
        &["GET", key],
        &["SET", key, "1", "XX"],
        &["EXISTS", key],
        &["UNLINK", key],
        &["EXPIRE", key, "1"],
        &["PEXPIRE", key, "1"],
        &["LINDEX", key, "0"],
        &["LLEN", key],
        &["LRANGE", key, "0", "-1"],
        &["LTRIM", key, "0", "-1"],
        &["HLEN", key],
        &["HSTRLEN", key, "e"],
        &["HMGET", key, "e"],
        &["HDEL", key, "e"],
        // One value is missing, so Redis refuses the command, but only after checking the
        // permission.
        &["HSET", key, "e", "1", "o"],
        &["ZADD", key, "XX", "1", "e"],
        &["ZREM", key, "e"],
        &["ZSCORE", key, "e"],
        &["ZPOPMIN", key],
        &["ZRANGEBYSCORE", key, "0", "1"],
    ];
    let mut lacking = Vec::new();
    for words in commands {
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
    let name = if words[0] == "PUBSUB" { words[..2].join("|") } else { words[0].to_owned() };
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
        subscription.send(&["SUBSCRIBE", channel]);
        let (mut subscribed, mut received) = (false, false);
        while !received {
            subscription.read_or_write().await.map_err(|error| error.to_string())?;
            let was_subscribed = subscribed;
            let frames = subscription.frames(|frame| {
                match frame.accepted()? {
                    Frame::Subscribed(_) => subscribed = true,
                    Frame::Message { .. } => received = true,
                    _ => {}
                }
                Ok(())
            });
            frames.map_err(|error| error.to_string())?;
            if subscribed && !was_subscribed {
                ask::<Value>(connection, &["PUBLISH", channel, ""]).await.map_err(|error| cause(&error))?;
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
    let samples: Vec<_> = patterns.iter().map(|pattern| pattern.replace('*', SAMPLE)).collect();
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

/// For each channel, whether Redis refuses the subscription.
async fn refused_channels(node: &Node, channels: &[String]) -> Result<Vec<bool>, ClientError> {
    let mut connection = node.connect().await?;
    channels.iter().for_each(|channel| connection.send(&["SUBSCRIBE", channel]));
    let mut refused = Vec::with_capacity(channels.len());
    while refused.len() < channels.len() {
        connection.read_or_write().await?;
        connection.frames(|frame| {
            match frame {
                Frame::Subscribed(_) => refused.push(false),
                // If Redis refuses the command as such, all channels are affected, and `receiving`
                // reports it.
                Frame::Refused(why) => refused.push(String::from_utf8_lossy(why).contains("channel")),
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
