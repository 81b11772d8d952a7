//! Channel names, the reasons for their restrictions, and patterns of names. `rules.rs` has the
//! rules for channels.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::Deserialize;

/// The maximum length of a channel name, in bytes: enough for a path or two UUIDs, and short enough
/// for a header line.
pub const MAX_LENGTH: usize = 255;

/// Prefixes of reserved names. livebridge uses its own for position markers, stored history and
/// canaries. Redis publishes events about its keys and servers on the others, which clients must
/// not receive.
pub const RESERVED_PREFIXES: [&str; 5] = ["livebridge:", "__keyspace@", "__keyevent@", "__sentinel__:", "__redis__:"];

/// A valid channel name. Cheap to clone: all clones share one text.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChannelName(Arc<str>);

impl ChannelName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for ChannelName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ChannelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ChannelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// Why a text is not a valid channel name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChannelError {
    /// The name is empty.
    #[error("a channel name must not be empty; leave the parameter out for the default channel")]
    Empty,
    /// The name is longer than [`MAX_LENGTH`] bytes.
    #[error("a channel name has at most {MAX_LENGTH} bytes, this one has {0}")]
    TooLong(usize),
    /// The name has a character with a special meaning in Redis patterns, cluster hash tags, header
    /// lines or URLs.
    #[error(
        "a channel name must not contain {0:?}: no white space, control characters or any of * ? [ ] {{ }} \\ \" < >"
    )]
    Character(char),
    /// The name is reserved for livebridge or Redis.
    #[error("channel names that start with {0:?} are reserved; choose another name")]
    Reserved(&'static str),
}

impl FromStr for ChannelName {
    type Err = ChannelError;

    fn from_str(name: &str) -> Result<Self, ChannelError> {
        if name.is_empty() {
            return Err(ChannelError::Empty);
        }
        if name.len() > MAX_LENGTH {
            return Err(ChannelError::TooLong(name.len()));
        }
        if let Some(bad) = name.chars().find(|&character| forbidden(character)) {
            return Err(ChannelError::Character(bad));
        }
        if let Some(prefix) = RESERVED_PREFIXES.into_iter().find(|prefix| name.starts_with(prefix)) {
            return Err(ChannelError::Reserved(prefix));
        }
        Ok(Self(name.into()))
    }
}

/// U+FFFD replaces bytes that are not UTF-8; if it were allowed, different names could become
/// equal.
fn forbidden(character: char) -> bool {
    character.is_whitespace() || character.is_control() || "*?[]{}\\\"<>\u{FFFD}".contains(character)
}

/// A pattern of channel names, in which `*` matches any text.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(transparent)]
pub struct ChannelPattern(String);

impl ChannelPattern {
    /// Creates a pattern from its text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Whether the pattern matches the channel.
    pub fn matches(&self, channel: &ChannelName) -> bool {
        let mut pieces = self.0.split('*');
        let name = channel.as_str();
        let Some(mut rest) = pieces.next().and_then(|first| name.strip_prefix(first)) else { return false };
        let mut pieces = pieces.peekable();
        if pieces.peek().is_none() {
            return rest.is_empty();
        }
        while let Some(piece) = pieces.next() {
            if pieces.peek().is_none() {
                return rest.ends_with(piece);
            }
            let Some(at) = rest.find(piece) else { return false };
            rest = &rest[at + piece.len()..];
        }
        true
    }

    /// The text of the pattern.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_every_script_and_the_usual_separators_are_taken() {
        for name in ["live", "sheet:q3", "users/42/inbox", "наши-правки", "a|b,c;d=e&f%g", "x".repeat(255).as_str()]
        {
            assert_eq!(name.parse::<ChannelName>().expect(name).as_str(), name);
        }
    }

    #[test]
    fn names_that_would_confuse_redis_headers_or_ourselves_are_refused() {
        assert_eq!("".parse::<ChannelName>(), Err(ChannelError::Empty));
        assert_eq!("x".repeat(256).parse::<ChannelName>(), Err(ChannelError::TooLong(256)));
        assert_eq!("livebridge:note:a".parse::<ChannelName>(), Err(ChannelError::Reserved("livebridge:")));
        assert_eq!("__keyevent@0__:set".parse::<ChannelName>(), Err(ChannelError::Reserved("__keyevent@")));
        for bad in ["a b", "a\nb", "a*", "a{b}", "a\u{7f}", "a\u{2028}", "<a>", "a\u{fffd}"] {
            assert!(matches!(bad.parse::<ChannelName>(), Err(ChannelError::Character(_))), "{bad:?}");
        }
    }

    #[test]
    fn patterns_match_like_a_shell_without_its_traps() {
        let matches = |pattern: &str, name: &str| ChannelPattern::new(pattern).matches(&name.parse().expect(name));
        assert!(matches("*", "a") && matches("a", "a") && matches("a*", "a") && matches("*a", "ba"));
        assert!(matches("a*b*c", "a-b-b-c") && matches("user:*:inbox", "user:42:inbox"));
        assert!(!matches("a", "ab") && !matches("a*b", "a") && !matches("ab*b", "ab") && !matches("a*b*c", "acb"));
    }
}
