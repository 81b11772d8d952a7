//! What a channel, its companions, its keys and the functions are called in Redis: with the prefix
//! of this application, and on a Redis Cluster with the companions in the channel's hash slot.

use std::borrow::Cow;

use super::position_marker::{RUN_PREFIX, SINGLE_PREFIX};
use super::topology::slot_of;
use crate::channel::ChannelPattern;

/// The prefix of the channel on which the numbering of plain messages tells all instances what happens.
const NUMBERED_PREFIX: &str = "livebridge:numbered:";

/// The naming scheme.
#[derive(Clone, Debug, Default)]
pub(super) struct Names {
    /// Empty, or a prefix that ends with a colon.
    prefix: String,
    is_sharded: bool,
}

/// What a name in Redis stands for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// A channel.
    Channel,
    /// The companion whose markers announce one payload each.
    Single,
    /// The companion whose markers announce several payloads.
    Run,
}

/// A prefix that is not valid.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("--redis-prefix must be 1 to 32 letters, digits or underscores, and then a colon, such as app1:")]
pub struct PrefixError;

/// The maximum length of a prefix without its colon.
const MOST_PREFIX: usize = 32;

/// Checks a prefix. It becomes part of the names of functions, which allow few characters.
///
/// # Errors
/// [`PrefixError`] if it has another form.
pub(super) fn check_prefix(prefix: &str) -> Result<(), PrefixError> {
    let name = prefix.strip_suffix(':').ok_or(PrefixError)?;
    let is_plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if is_plain && (1..=MOST_PREFIX).contains(&name.len()) { Ok(()) } else { Err(PrefixError) }
}

impl Names {
    /// Creates a scheme. `is_sharded`: for the nodes of a Redis Cluster.
    pub(super) fn new(prefix: &str, is_sharded: bool) -> Self {
        Self { prefix: prefix.to_owned(), is_sharded }
    }

    pub(super) fn is_sharded(&self) -> bool {
        self.is_sharded
    }

    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The Redis channel of a channel.
    pub(super) fn channel<'a>(&self, channel: &'a str) -> Cow<'a, str> {
        if self.prefix.is_empty() { channel.into() } else { format!("{}{channel}", self.prefix).into() }
    }

    /// The Redis channels of its companions.
    pub(super) fn companions(&self, channel: &str) -> [String; 2] {
        let channel = self.channel(channel);
        [SINGLE_PREFIX, RUN_PREFIX].map(|companion| match self.is_sharded {
            true => format!("{companion}{{{channel}}}"),
            false => format!("{companion}{channel}"),
        })
    }

    /// The channel on which the numbering of plain messages tells all instances what happens.
    pub(super) fn numbered(&self) -> String {
        format!("{NUMBERED_PREFIX}{}", self.prefix)
    }

    /// The key with the members of the numbering.
    pub(super) fn members(&self) -> String {
        format!("livebridge:{{{}}}:members", self.prefix)
    }

    /// The Redis patterns for the channels that match a pattern, and for their companions.
    pub(super) fn patterns(&self, pattern: &ChannelPattern) -> [String; 3] {
        let mut glob = self.prefix.clone();
        for character in pattern.as_str().chars() {
            // All but the asterisk stand for themselves.
            if "?[]\\".contains(character) {
                glob.push('\\');
            }
            glob.push(character);
        }
        [SINGLE_PREFIX, RUN_PREFIX, ""].map(|companion| format!("{companion}{glob}"))
    }

    /// A key of a channel, such as `history`. All of them are in one hash slot.
    pub(super) fn key(&self, channel: &str, kind: &str) -> String {
        format!("livebridge:{{{}{channel}}}:{kind}", self.prefix)
    }

    /// The hash slot of a channel, its companions and its keys.
    pub(super) fn slot(&self, channel: &str) -> usize {
        slot_of(&self.channel(channel))
    }

    /// The name of the library or a function, such as `app1_livebridge_publish`.
    pub(super) fn function(&self, name: &str) -> String {
        format!("{}{name}", self.prefix.replace(':', "_"))
    }

    /// The channel that a name in Redis belongs to, and what the name stands for.
    pub(super) fn parse<'a>(&self, name: &'a [u8]) -> Option<(Kind, &'a [u8])> {
        let (kind, name) = if let Some(name) = name.strip_prefix(SINGLE_PREFIX.as_bytes()) {
            (Kind::Single, without_hash_tag(name))
        } else if let Some(name) = name.strip_prefix(RUN_PREFIX.as_bytes()) {
            (Kind::Run, without_hash_tag(name))
        } else {
            (Kind::Channel, name)
        };
        Some((kind, name.strip_prefix(self.prefix.as_bytes())?))
    }
}

/// Removes the braces around a name. Channel names have none.
fn without_hash_tag(name: &[u8]) -> &[u8] {
    name.strip_prefix(b"{").and_then(|tag| tag.strip_suffix(b"}")).unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_to_their_channel_and_back() {
        for (prefix, is_sharded) in [("", false), ("", true), ("app1:", false), ("app1:", true)] {
            let names = Names::new(prefix, is_sharded);
            let [single, run] = names.companions("sheet:q3");
            let channel = names.channel("sheet:q3");
            let parsed = [channel.as_bytes(), single.as_bytes(), run.as_bytes()].map(|name| names.parse(name));
            let expected = [Kind::Channel, Kind::Single, Kind::Run].map(|kind| Some((kind, &b"sheet:q3"[..])));
            assert_eq!(parsed, expected, "{names:?}");
        }
        let names = Names::new("app1:", false);
        assert_eq!(
            (names.channel("a").as_ref(), names.key("a", "head")),
            ("app1:a", "livebridge:{app1:a}:head".into())
        );
        assert_eq!(names.function("livebridge_publish"), "app1_livebridge_publish");
        assert_eq!((names.parse(b"a"), names.parse(b"app2:a")), (None, None), "of another application");
    }

    #[test]
    fn a_prefix_ends_with_its_only_colon() {
        assert!(["app1:", "a_B:", &format!("{}:", "x".repeat(32))].iter().all(|prefix| check_prefix(prefix).is_ok()));
        let wrong = ["", ":", "app1", "a:b:", "a-b:", "a b:", "é:", &format!("{}:", "x".repeat(33))];
        assert!(wrong.iter().all(|prefix| check_prefix(prefix).is_err()));
    }
}
