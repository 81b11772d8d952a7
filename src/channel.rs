//! Channel names: which are allowed, and why; and patterns over them. The rules for a channel are in
//! `rules.rs`.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::Deserialize;

/// The longest channel name, in bytes. Long enough for a path or two UUIDs, short enough for a header line.
pub const MAX_LENGTH: usize = 255;

/// Names that start so belong to livebridge itself (position notes, stored history, canaries), or to Redis, which tells there of
/// keys and servers that are no client's business.
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

/// Why a text is not a channel name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChannelError {
    /// No characters at all.
    #[error("a channel name must not be empty; leave the parameter out for the default channel")]
    Empty,
    /// More than [`MAX_LENGTH`] bytes.
    #[error("a channel name has at most {MAX_LENGTH} bytes, this one has {0}")]
    TooLong(usize),
    /// A character that Redis patterns, cluster hash tags, header lines or URLs would trip over.
    #[error(
        "a channel name must not contain {0:?}: no white space, control characters or any of * ? [ ] {{ }} \\ \" < >"
    )]
    Character(char),
    /// A name of livebridge's own, or of Redis'.
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

/// U+FFFD is what bytes that are no UTF-8 were read as: with it, names that differ would become one.
fn forbidden(character: char) -> bool {
    character.is_whitespace() || character.is_control() || "*?[]{}\\\"<>\u{FFFD}".contains(character)
}

/// A pattern over channel names in which `*` stands for any text.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(transparent)]
pub struct ChannelPattern(String);

impl ChannelPattern {
    /// A pattern as it is written.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Whether the channel matches.
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

    /// The pattern as written.
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
