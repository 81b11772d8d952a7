//! The claims of a token (RFC 7519, 4.1). The types of all known claims are checked, also of those
//! that are not used: a token whose `aud` has a wrong type must not be accepted as one without
//! `aud`.

use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::action::Action;
use crate::channel::ChannelName;
use crate::channel::ChannelPattern;
use crate::json::Object;
use crate::presence::MOST_INFO_BYTES;

/// The claims of a token.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Claims {
    /// The time of expiry (exclusive), in seconds since 1970. Like all times it may have a
    /// fraction.
    pub exp: f64,
    /// The time from which it is valid, in seconds since 1970.
    #[serde(default, deserialize_with = "present")]
    pub nbf: Option<f64>,
    /// The time of issue; only its type is checked.
    #[serde(default, deserialize_with = "present", rename = "iat")]
    _iat: Option<f64>,
    /// The id; only its type is checked.
    #[serde(default, deserialize_with = "present", rename = "jti")]
    _jti: Option<Text>,
    /// The subject: the user.
    #[serde(default, deserialize_with = "present")]
    pub sub: Option<Box<str>>,
    /// What others on a channel may know about the user: JSON on one line. Too long a value is left
    /// out.
    #[serde(default, deserialize_with = "short_json")]
    pub info: Option<Box<str>>,
    /// The issuer.
    #[serde(default, deserialize_with = "present")]
    pub iss: Option<String>,
    /// The audience.
    #[serde(default, deserialize_with = "present")]
    pub aud: Option<Audience>,
    /// The channel that a token for a single subscription allows.
    #[serde(default, deserialize_with = "present")]
    pub channel: Option<Box<str>>,
    /// The channels that it allows.
    #[serde(default, deserialize_with = "object")]
    pub livebridge: Allowed,
}

impl Claims {
    /// Whether a subscription to the channel may be made with this token, as one for that subscription.
    pub fn covers_subscription(&self, channel: &ChannelName) -> bool {
        self.channel.as_deref() == Some(channel.as_str()) || self.livebridge.covers(Action::Subscribe, channel)
    }
}

/// A name or a list of names.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum Audience {
    /// A single name.
    One(String),
    /// Any number of names.
    Several(Vec<String>),
}

impl Audience {
    /// The names.
    pub fn names(&self) -> &[String] {
        match self {
            Self::One(name) => std::slice::from_ref(name),
            Self::Several(names) => names,
        }
    }
}

/// Any value, as it is written, without line ends; `None` if it is longer than others may be told.
fn short_json<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Box<str>>, D::Error> {
    let value = Box::<RawValue>::deserialize(deserializer)?;
    // Within JSON, line ends are white space.
    let line = value.get().replace(['\n', '\r'], " ");
    Ok(Some(line).filter(|line| line.len() <= MOST_INFO_BYTES && line != "null").map(Box::from))
}

/// Channel patterns by action.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Allowed {
    /// Channels to subscribe to, and whose history to read.
    #[serde(default)]
    pub subscribe: Vec<ChannelPattern>,
    /// Channels to publish to.
    #[serde(default)]
    pub publish: Vec<ChannelPattern>,
}

impl Allowed {
    /// The patterns of the channels for which the action is allowed.
    pub fn patterns(&self, action: Action) -> &[ChannelPattern] {
        match action {
            Action::Publish => &self.publish,
            Action::Subscribe | Action::Read => &self.subscribe,
        }
    }

    /// Whether the action is allowed with the channel.
    pub fn covers(&self, action: Action, channel: &ChannelName) -> bool {
        self.patterns(action).iter().any(|pattern| pattern.matches(channel))
    }
}

/// A string whose value is discarded.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Text;

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        std::borrow::Cow::<'_, str>::deserialize(deserializer).map(|_| Self)
    }
}

/// Whether a member is present, with any value.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Present(pub(super) bool);

impl<'de> Deserialize<'de> for Present {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        IgnoredAny::deserialize(deserializer).map(|_| Self(true))
    }
}

/// Deserializes a member that may be missing but must not be `null`.
pub(super) fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

fn object<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Object::deserialize(deserializer).map(|Object(value)| value)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_claim_for_others_has_a_bound_and_is_on_one_line() {
        let info = |info: &str| {
            let claims: Claims = serde_json::from_str(&format!("{{\"exp\": 1, \"info\": {info}}}")).expect("claims");
            claims.info.map(String::from)
        };
        assert_eq!(info("{\n\"a\": 1.50\r\n}"), Some("{ \"a\": 1.50  }".into()));
        let most = json!("x".repeat(MOST_INFO_BYTES - 2)).to_string();
        assert_eq!(info(&most), Some(most.clone()));
        assert_eq!([info(&json!("x".repeat(MOST_INFO_BYTES - 1)).to_string()), info("null")], [None, None]);
    }
}
