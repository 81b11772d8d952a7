//! Loads the Lua code of `functions/` into Redis and builds calls of it. The code is a library of
//! Redis Functions, or a script that is called by its hash, if Redis does not support or allow
//! functions.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicBool, Ordering};

use redis::Value;

use super::connection::Connection;
use super::error::ClientError;
use super::names::Names;
use crate::channel::ChannelPattern;
use crate::rules::{Rule, Rules};

/// In order of dependency.
const SOURCES: [&str; 6] = [
    include_str!("functions/channel.lua"),
    include_str!("functions/publish.lua"),
    include_str!("functions/plan.lua"),
    include_str!("functions/presence.lua"),
    include_str!("functions/number.lua"),
    include_str!("functions/format1.lua"),
];
/// The name of the library, without the prefix of an application.
const NAME: &str = "livebridge";
/// The format of arguments, replies, position markers and keys. Increase it with any change to one
/// of them. The new functions must still answer calls of the previous format, because instances of
/// both share one Redis during a rolling upgrade.
const FORMAT: u32 = 3;
const FORMAT_LINE: &str = "-- format ";

/// A function in Redis.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Function {
    name: &'static str,
    /// The index in [`FUNCTIONS`].
    index: usize,
    /// The flags of its registration. A full Redis allows functions that need no more memory.
    flags: &'static str,
}

const fn function(name: &'static str, index: usize, flags: &'static str) -> Function {
    Function { name, index, flags }
}

pub(super) const PUBLISH: Function = function("publish", 0, "");
pub(super) const PUBLISH_MANY: Function = function("publish_many", 1, "");
pub(super) const PLAN: Function = function("plan", 2, "'no-writes'");
pub(super) const RENEW: Function = function("renew", 3, "'allow-oom'");
pub(super) const ADOPT: Function = function("adopt_channel", 4, "'allow-oom'");
pub(super) const LIFE: Function = function("life", 5, "");
/// Only instances of format 1 call it.
const READ: Function = function("read", 6, "'allow-oom'");
pub(super) const PRESENCE_WRITE: Function = function("presence_write", 7, "");
pub(super) const PRESENCE_READ: Function = function("presence_read", 8, "'no-writes'");
pub(super) const NUMBER: Function = function("number", 9, "");
pub(super) const MEMBER: Function = function("member", 10, "'allow-oom'");
const FUNCTIONS: [Function; 11] =
    [PUBLISH, PUBLISH_MANY, PLAN, RENEW, ADOPT, LIFE, READ, PRESENCE_WRITE, PRESENCE_READ, NUMBER, MEMBER];
/// The names of the functions for other clients, in the same order.
const FULL_NAMES: [&str; 11] = [
    "livebridge_publish",
    "livebridge_publish_many",
    "livebridge_plan",
    "livebridge_renew",
    "livebridge_adopt",
    "livebridge_life",
    "livebridge_read",
    "livebridge_presence_write",
    "livebridge_presence_read",
    "livebridge_number",
    "livebridge_member",
];

/// The key that [`LIFE`] writes.
pub(super) const LIFE_KEY: &str = "livebridge:life";

/// The maximum number of words in a call: that of a publish with a key and an id.
const MOST_WORDS: usize = 13;

/// The keys that a call names.
pub(super) enum Keys<'a> {
    /// The channel, [`LIFE_KEY`], or the key with who is on the channel.
    Name(Cow<'a, str>),
    /// On a Cluster, the head and the history of the channel. While their slot moves to another
    /// shard, Redis then serves the call only where both of them are.
    HeadAndHistory([String; 2]),
}

/// Which function library Redis has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum LibraryState {
    /// No library.
    Nothing,
    /// The library of this version, with the same rules.
    Same,
    /// The library of another version or with other rules.
    Other,
    /// A library of a later format. It answers calls of this format too, and must stay for the
    /// instances that need it.
    Newer,
}

/// The Lua code, including the rules of this instance.
pub(super) struct Library {
    function_source: String,
    script_source: String,
    script_hash: String,
    use_script: AtomicBool,
    names: Names,
    name: String,
    full_names: [String; FUNCTIONS.len()],
}

impl Library {
    /// Generates the code for these rules and names.
    pub(super) fn new(rules: &Rules, names: Names) -> Self {
        let (prefix, is_sharded) = (lua_text(names.prefix()), names.is_sharded());
        let constants = format!("{}local PREFIX, SHARDED = {prefix}, {is_sharded}\n", rules_in_lua(rules));
        let body = constants + &SOURCES.join("\n");
        let (name, full_names) = (names.function(NAME), FULL_NAMES.map(|name| names.function(name)));
        let mut function_source = format!("#!lua name={name}\n{FORMAT_LINE}{FORMAT}\n{body}\n");
        let mut script_source = body;
        script_source.push_str("\nlocal call = table.remove(ARGV, 1)\n");
        for (Function { name, flags, .. }, full_name) in FUNCTIONS.into_iter().zip(&full_names) {
            // Writing to a String cannot fail.
            let _ = writeln!(
                function_source,
                "redis.register_function{{function_name='{full_name}', callback={name}, flags={{{flags}}}}}"
            );
            let _ = writeln!(script_source, "if call == '{name}' then return {name}(KEYS, ARGV) end");
        }
        let script_hash = sha1_smol::Sha1::from(&script_source).hexdigest();
        Self {
            function_source,
            script_source,
            script_hash,
            use_script: AtomicBool::new(false),
            names,
            name,
            full_names,
        }
    }

    /// Queries which function library Redis has.
    pub(super) async fn held(&self, connection: &mut Connection) -> Result<LibraryState, ClientError> {
        let mut command = redis::cmd("FUNCTION");
        command.arg("LIST").arg("LIBRARYNAME").arg(&self.name).arg("WITHCODE");
        let libraries: Vec<HashMap<String, Value>> = connection.call(&command).await?;
        let Some(Value::BulkString(code)) = libraries.first().and_then(|library| library.get("library_code")) else {
            return Ok(LibraryState::Nothing);
        };
        Ok(match format_of(code) {
            _ if code == self.function_source.as_bytes() => LibraryState::Same,
            format if format > FORMAT => LibraryState::Newer,
            _ => LibraryState::Other,
        })
    }

    /// Loads the library, or the script if Redis does not support or allow functions.
    pub(super) async fn load(&self, connection: &mut Connection) -> Result<(), ClientError> {
        // Does not load an identical library again, because a full Redis would refuse it.
        match self.held(connection).await {
            Ok(held @ (LibraryState::Same | LibraryState::Newer)) => {
                if held == LibraryState::Newer {
                    tracing::info!("using the newer function library in Redis");
                }
                self.use_script.store(false, Ordering::Relaxed);
                return Ok(());
            }
            Ok(LibraryState::Other) => {
                tracing::info!("replaced the function library in Redis (other version or rules)")
            }
            Ok(LibraryState::Nothing) | Err(ClientError::Refused(_)) => {}
            Err(error) => return Err(error),
        }
        let mut load = redis::cmd("FUNCTION");
        load.arg("LOAD").arg("REPLACE").arg(&self.function_source);
        let Err(error) = connection.call::<Value>(&load).await else {
            self.use_script.store(false, Ordering::Relaxed);
            return Ok(());
        };
        if !is_refusal(&error) {
            return Err(error);
        }
        tracing::debug!(%error, "Redis does not allow functions; using scripts");
        self.use_script.store(true, Ordering::Relaxed);
        connection.call::<Value>(redis::cmd("SCRIPT").arg("LOAD").arg(&self.script_source)).await.map(drop)
    }

    /// What things are called.
    pub(super) fn names(&self) -> &Names {
        &self.names
    }

    /// The command that publishes a message without storing it. On a Cluster, only the subscribers
    /// of the channel's own shard receive it.
    pub(super) fn publish_command(&self) -> &'static str {
        if self.names.is_sharded() { "SPUBLISH" } else { "PUBLISH" }
    }

    /// The keys for calls on a channel.
    pub(super) fn keys<'a>(&self, channel: &'a str) -> Keys<'a> {
        if self.names.is_sharded() {
            Keys::HeadAndHistory(["head", "history"].map(|kind| self.names.key(channel, kind)))
        } else {
            Keys::Name(self.names.channel(channel))
        }
    }

    /// The words of a function call, without its arguments.
    pub(super) fn call<'a>(&'a self, function: Function, keys: &'a Keys<'a>) -> Vec<&'a [u8]> {
        let mut words: Vec<&[u8]> = Vec::with_capacity(MOST_WORDS);
        let use_script = self.use_script.load(Ordering::Relaxed);
        if use_script {
            words.extend([&b"EVALSHA"[..], self.script_hash.as_bytes()]);
        } else {
            words.extend([&b"FCALL"[..], self.full_names[function.index].as_bytes()]);
        }
        match keys {
            Keys::Name(name) => words.extend([&b"1"[..], name.as_bytes()]),
            Keys::HeadAndHistory([head, history]) => words.extend([&b"2"[..], head.as_bytes(), history.as_bytes()]),
        }
        if use_script {
            words.push(function.name.as_bytes());
        }
        words
    }
}

/// The format that the code declares; 0 if it declares none.
fn format_of(code: &[u8]) -> u32 {
    let mut lines = code.split(|&byte| byte == b'\n').filter_map(|line| std::str::from_utf8(line).ok());
    lines.nth(1).and_then(|line| line.strip_prefix(FORMAT_LINE)?.parse().ok()).unwrap_or(0)
}

/// Whether Redis refuses the command as such, because it is unknown or denied.
pub(super) fn is_refusal(error: &ClientError) -> bool {
    error.code() == Some("NOPERM") || error.refusal().is_some_and(|said| said.contains("unknown"))
}

/// Whether the error reply means that the code is missing, for example after a restart or `FUNCTION
/// FLUSH`.
pub(super) fn is_missing(refusal: &str) -> bool {
    refusal.starts_with("NOSCRIPT") || refusal.contains("Function not found")
}

/// The rules as Lua tables.
fn rules_in_lua(rules: &Rules) -> String {
    let listed: String = rules.iter().map(|(pattern, rule)| rule_in_lua(Some(pattern), rule)).collect();
    format!(
        "local RULES = {{{listed}}}\nlocal DEFAULT_RULE = {}\n",
        rule_in_lua(None, &Rule::default()).trim_end_matches(',')
    )
}

fn rule_in_lua(pattern: Option<&ChannelPattern>, rule: &Rule) -> String {
    let mut table = String::from("{");
    if let Some(pattern) = pattern {
        let pieces: Vec<_> = pattern.as_str().split('*').map(lua_text).collect();
        let _ = write!(table, "match={{{}}},", pieces.join(","));
    }
    if let Some(history) = rule.history {
        let _ = write!(table, "messages={},age={},", history.messages, history.age.as_millis());
    }
    if let Some(keyed) = rule.keyed {
        let _ = write!(table, "keyed=true,keys={},bytes={},", keyed.keys, keyed.bytes);
    }
    table + "},"
}

/// A quoted Lua string. Every byte except letters and digits becomes a decimal escape.
fn lua_text(text: &str) -> String {
    let mut lua = String::from("'");
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() {
            lua.push(char::from(byte));
        } else {
            let _ = write!(lua, "\\{byte:03}");
        }
    }
    lua + "'"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_function_is_where_its_index_says() {
        for (index, function) in FUNCTIONS.into_iter().enumerate() {
            let own = FULL_NAMES[index].strip_prefix("livebridge_").expect("a prefix");
            assert!(function.index == index && function.name.starts_with(own), "{function:?} {own}");
        }
    }

    #[test]
    fn code_says_its_format() {
        let library = Library::new(&Rules::default(), Names::default());
        assert_eq!(format_of(library.function_source.as_bytes()), FORMAT);
        assert_eq!(
            [format_of(b"#!lua name=x\n-- format 12\n"), format_of(b"-- format 12"), format_of(b"")],
            [12, 0, 0]
        );
    }

    #[test]
    fn a_pattern_cannot_leave_its_quotes() {
        assert_eq!(lua_text("a:'\\"), r"'a\058\039\092'");
    }
}
