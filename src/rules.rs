//! The rules file, with the settings for channels: parses and validates it. The first rule that
//! matches a channel applies; without a match the defaults apply. The file may also hold publish
//! keys (`access/keys.rs`).

use std::path::Path;
use std::time::Duration;

use serde::Deserialize;

use crate::access::action::{Action, Anonymous, AnonymousRules};
use crate::access::keys::WrittenKey;
use crate::channel::{ChannelName, ChannelPattern};

/// How much of a channel's history is retained.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct History {
    /// Maximum number of messages.
    pub messages: usize,
    /// Maximum age of a message.
    pub age: Duration,
}

/// The limits of a keyed channel's state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Keyed {
    /// Maximum number of keys.
    pub keys: usize,
    /// Maximum size of all keys and values together, in bytes.
    pub bytes: usize,
}

/// The settings of a channel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rule {
    /// `None`: messages are delivered and not retained.
    pub history: Option<History>,
    /// The limits of the values, if the channel is keyed. Needs a history.
    pub keyed: Option<Keyed>,
    /// The rights of clients without credentials, if access control is configured.
    pub anonymous: Anonymous,
    /// Whether clients can ask who is on the channel.
    pub presence: bool,
    /// Whether clients can be told who comes and goes. Needs presence.
    pub join_leave: bool,
    /// Whether plain messages of Redis clients get positions. Needs a history, and no keys.
    pub numbered: bool,
}

impl Default for Rule {
    /// 100 messages and 5 minutes: enough for a page reload or a lost network, and little memory.
    fn default() -> Self {
        Self {
            history: Some(History { messages: 100, age: Duration::from_secs(300) }),
            keyed: None,
            anonymous: Anonymous::default(),
            presence: false,
            join_leave: false,
            numbered: false,
        }
    }
}

impl Default for Keyed {
    fn default() -> Self {
        Self { keys: 10_000, bytes: 4 << 20 }
    }
}

/// All rules, in the order in which the file lists them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rules {
    channels: Vec<(ChannelPattern, Rule)>,
    publish_keys: Vec<WrittenKey>,
}

/// Why a rules file is not valid.
#[derive(Debug, thiserror::Error)]
pub enum RulesError {
    /// The file cannot be read.
    #[error("cannot read the rules file {path}: {source}")]
    Unreadable {
        /// The path of the file.
        path: String,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// The file is not TOML, or has an unknown key or a value of the wrong type. The text names the
    /// line.
    #[error("in the rules file {path}: {detail}")]
    Malformed {
        /// The path of the file.
        path: String,
        /// The place and the error.
        detail: String,
    },
}

impl Default for Rules {
    /// The rules without a rules file. The channel of the demo's sheet is keyed, so that the sheet
    /// survives a page reload.
    fn default() -> Self {
        let sheet = Rule {
            history: Some(History { messages: 1000, age: Duration::from_secs(3600) }),
            keyed: Some(Keyed::default()),
            ..Rule::default()
        };
        Self { channels: vec![(ChannelPattern::new("sheet:*"), sheet)], publish_keys: Vec::new() }
    }
}

impl Rules {
    /// Reads and validates a rules file.
    ///
    /// # Errors
    /// [`RulesError`] if the file cannot be read or is not valid.
    pub fn load(path: &Path) -> Result<Self, RulesError> {
        let name = path.display().to_string();
        let text =
            std::fs::read_to_string(path).map_err(|source| RulesError::Unreadable { path: name.clone(), source })?;
        Self::parse(&text).map_err(|detail| RulesError::Malformed { path: name, detail })
    }

    /// Parses and validates rules.
    ///
    /// # Errors
    /// A text that names the line or the rule, and the error.
    pub fn parse(text: &str) -> Result<Self, String> {
        let file: File = toml::from_str(text).map_err(|error| place(text, &error))?;
        let rules = file.channel.into_iter().enumerate().map(|(index, written)| {
            let name = written.pattern.clone();
            written.validate().map_err(|what| format!("[[channel]] number {} (match = {name:?}): {what}", index + 1))
        });
        Ok(Self { channels: rules.collect::<Result<_, _>>()?, publish_keys: file.publish_key })
    }

    /// The settings of the channel.
    pub fn of(&self, channel: &ChannelName) -> Rule {
        self.channels.iter().find(|(pattern, _)| pattern.matches(channel)).map_or_else(Rule::default, |(_, rule)| *rule)
    }

    /// The place of the channel's rule in the order of precedence; `None` if the defaults apply.
    pub fn index_of(&self, channel: &ChannelName) -> Option<usize> {
        self.channels.iter().position(|(pattern, _)| pattern.matches(channel))
    }

    /// The patterns and their rules, in order of precedence.
    pub fn iter(&self) -> impl Iterator<Item = &(ChannelPattern, Rule)> {
        self.channels.iter()
    }

    /// The publish keys, not yet validated.
    pub fn publish_keys(&self) -> &[WrittenKey] {
        &self.publish_keys
    }
}

impl AnonymousRules for Rules {
    fn allow(&self, channel: &ChannelName, action: Action) -> bool {
        self.of(channel).anonymous.allows(action)
    }

    fn allow_anywhere(&self, action: Action) -> bool {
        self.channels.iter().any(|(_, rule)| rule.anonymous.allows(action))
    }
}

/// The place and the error, without the line itself that the parser would quote: it may contain a
/// key.
fn place(text: &str, error: &toml::de::Error) -> String {
    let line = error
        .span()
        .map(|span| 1 + text.as_bytes()[..span.start.min(text.len())].iter().filter(|&&byte| byte == b'\n').count());
    line.map_or_else(|| error.message().to_owned(), |line| format!("line {line}: {}", error.message()))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    channel: Vec<WrittenRule>,
    #[serde(default)]
    publish_key: Vec<WrittenKey>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenRule {
    #[serde(rename = "match")]
    pattern: String,
    history: Option<WrittenHistory>,
    keyed: Option<WrittenKeyed>,
    plain: Option<WrittenPlain>,
    #[serde(default)]
    anonymous: Vec<WrittenAction>,
    #[serde(default)]
    presence: bool,
    #[serde(default)]
    join_leave: bool,
}

#[derive(Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum WrittenAction {
    Subscribe,
    Publish,
}

#[derive(Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum WrittenPlain {
    Relayed,
    Numbered,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected `false` or { messages = 100, age = \"5m\" }")]
enum WrittenHistory {
    Switch(bool),
    Bounds(WrittenHistoryBounds),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenHistoryBounds {
    messages: Option<usize>,
    age: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected `true`, `false` or { keys = 10000, bytes = 4194304 }")]
enum WrittenKeyed {
    Switch(bool),
    Bounds(WrittenKeyedBounds),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenKeyedBounds {
    keys: Option<usize>,
    bytes: Option<usize>,
}

/// Upper limits for the values of a rule. Redis keeps the history of a channel in one key, and
/// reading a page must not take too long.
const MOST_MESSAGES: usize = 100_000;
const LONGEST_AGE: Duration = Duration::from_secs(7 * 24 * 3600);
const MOST_KEYS: usize = 100_000;
const MOST_KEYED_BYTES: usize = 64 << 20;

impl WrittenRule {
    fn validate(self) -> Result<(ChannelPattern, Rule), String> {
        if self.pattern.is_empty() {
            return Err("`match` must not be empty; use \"*\" for every channel".into());
        }
        let mut rule = Rule::default();
        match self.history {
            None | Some(WrittenHistory::Switch(true)) => {}
            Some(WrittenHistory::Switch(false)) => rule.history = None,
            Some(WrittenHistory::Bounds(bounds)) => rule.history = Some(history(bounds)?),
        }
        match self.keyed {
            None | Some(WrittenKeyed::Switch(false)) => {}
            Some(WrittenKeyed::Switch(true)) => rule.keyed = Some(Keyed::default()),
            Some(WrittenKeyed::Bounds(bounds)) => rule.keyed = Some(keyed(&bounds)?),
        }
        if rule.keyed.is_some() && rule.history.is_none() {
            return Err("a keyed channel needs a history; remove `history = false`".into());
        }
        if self.join_leave && !self.presence {
            return Err("`join_leave` needs presence; add `presence = true`".into());
        }
        (rule.presence, rule.join_leave) = (self.presence, self.join_leave);
        rule.numbered = self.plain == Some(WrittenPlain::Numbered);
        if rule.numbered && rule.history.is_none() {
            return Err("`plain = \"numbered\"` needs a history; remove `history = false`".into());
        }
        if rule.numbered && rule.keyed.is_some() {
            return Err("a keyed channel cannot have `plain = \"numbered\"`, because plain messages have no key".into());
        }
        rule.anonymous = Anonymous {
            subscribe: self.anonymous.contains(&WrittenAction::Subscribe),
            publish: self.anonymous.contains(&WrittenAction::Publish),
        };
        Ok((ChannelPattern::new(self.pattern), rule))
    }
}

fn history(written: WrittenHistoryBounds) -> Result<History, String> {
    let WrittenHistoryBounds { messages, age } = written;
    let default = History { messages: 100, age: Duration::from_secs(300) };
    let messages = in_range("history.messages", messages.unwrap_or(default.messages), 1, MOST_MESSAGES)?;
    let age = match age {
        None => default.age,
        Some(text) => humantime::parse_duration(&text)
            .map_err(|error| format!("`history.age` = {text:?}: {error}; write it as \"90s\", \"5m\" or \"1h\""))?,
    };
    if age < Duration::from_secs(1) || age > LONGEST_AGE {
        return Err("`history.age` must be between 1s and 7days".into());
    }
    Ok(History { messages, age })
}

fn keyed(written: &WrittenKeyedBounds) -> Result<Keyed, String> {
    let WrittenKeyedBounds { keys, bytes } = *written;
    let default = Keyed::default();
    Ok(Keyed {
        keys: in_range("keyed.keys", keys.unwrap_or(default.keys), 1, MOST_KEYS)?,
        bytes: in_range("keyed.bytes", bytes.unwrap_or(default.bytes), 1024, MOST_KEYED_BYTES)?,
    })
}

fn in_range(name: &str, value: usize, least: usize, most: usize) -> Result<usize, String> {
    if (least..=most).contains(&value) {
        Ok(value)
    } else {
        Err(format!("`{name}` must be between {least} and {most}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn channel(name: &str) -> ChannelName {
        name.parse().expect("a valid name")
    }

    #[test]
    fn the_first_rule_that_matches_wins_and_defaults_fill_the_rest() {
        let rules = Rules::parse(
            "[[channel]]\nmatch = 'sheet:*'\nkeyed = true\nhistory = { messages = 7 }\n[[channel]]\nmatch = '*'\nhistory = false\n",
        )
        .expect("valid rules");
        let sheet = rules.of(&channel("sheet:q3"));
        assert_eq!(sheet.history, Some(History { messages: 7, age: Duration::from_secs(300) }));
        assert_eq!(sheet.keyed, Some(Keyed::default()));
        assert_eq!(rules.of(&channel("live")).history, None);
        assert_eq!(Rules::parse("").expect("empty is valid").of(&channel("live")), Rule::default());
    }

    #[test]
    fn a_mistake_is_named_with_its_place() {
        for (text, part) in [
            ("[[channel]]\nmatch = 'a'\nhistroy = false\n", "histroy"),
            ("[[channel]]\nhistory = false\n", "match"),
            ("[[channel]]\nmatch = 'a'\nhistory = { age = 'soon' }\n", "history.age"),
            ("[[channel]]\nmatch = 'a'\nhistory = { messages = 0 }\n", "history.messages"),
            ("[[channel]]\nmatch = 'a'\nhistory = false\nkeyed = true\n", "needs a history"),
            ("[[channel]]\nmatch = 'a'\njoin_leave = true\n", "needs presence"),
            ("[[channel]]\nmatch = 'a'\npresence = 'yes'\n", "line 3"),
            ("[[channel]]\nmatch = 'a'\nplain = 'numbered'\nhistory = false\n", "needs a history"),
            ("[[channel]]\nmatch = 'a'\nplain = 'numbered'\nkeyed = true\n", "no key"),
            ("[[channel]]\nmatch = 'a'\nplain = 'counted'\n", "line 3"),
            ("[[channel]\n", "line 1"),
            ("[[channel]]\nmatch = 'a'\nanonymous = ['read']\n", "line 3"),
            ("[[publish_key]]\nkey = 'a'\nchannel = 'b'\n", "`channel`"),
        ] {
            let error = Rules::parse(text).expect_err(text);
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn a_mistake_in_a_line_with_a_key_does_not_show_it() {
        for text in [
            "[[publish_key]]\nkey = 'open sesame', x\n",
            "[[publish_key]]\nkey = 'open sesame\n",
            "key = 'open sesame'\n",
        ] {
            let error = Rules::parse(text).expect_err(text);
            assert!(error.starts_with("line ") && !error.contains("open"), "{error}");
        }
        let rules = Rules::parse("[[publish_key]]\nkey = 'open sesame'\n").expect("checked later");
        assert!(!format!("{rules:?}").contains("open"), "{rules:?}");
    }
}
