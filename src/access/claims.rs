//! The claims of a token (RFC 7519, 4.1). The types of all known claims are checked, also of those
//! that are not used: a token whose `aud` has a wrong type must not be accepted as one without
//! `aud`.

use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer};

use super::action::Action;
use crate::channel::ChannelName;
use crate::channel::ChannelPattern;
use crate::json::Object;

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
    /// The subject; only its type is checked.
    #[serde(default, deserialize_with = "present", rename = "sub")]
    _sub: Option<Text>,
    /// The issuer.
    #[serde(default, deserialize_with = "present")]
    pub iss: Option<String>,
    /// The audience.
    #[serde(default, deserialize_with = "present")]
    pub aud: Option<Audience>,
    /// The channels that it allows.
    #[serde(default, deserialize_with = "object")]
    pub livebridge: Allowed,
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
