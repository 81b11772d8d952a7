//! What a token says (RFC 7519, 4.1). The type of every claim that is known is checked, also of those
//! that decide nothing here: a token with an `aud` of a wrong type must not pass for one without.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::action::Action;
use crate::channel::ChannelName;
use crate::channel::ChannelPattern;

/// The claims of a token.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Claims {
    /// Until when it is valid, exclusively, in seconds since 1970. May have a fraction, as all times.
    pub exp: f64,
    /// From when on it is valid.
    #[serde(default, deserialize_with = "present")]
    pub nbf: Option<f64>,
    /// When it was made; checked for its type only.
    #[serde(default, deserialize_with = "present", rename = "iat")]
    _iat: Option<f64>,
    /// Its id; checked for its type only.
    #[serde(default, deserialize_with = "present", rename = "jti")]
    _jti: Option<Text>,
    /// Whose it is; checked for its type only.
    #[serde(default, deserialize_with = "present", rename = "sub")]
    _sub: Option<Text>,
    /// Who made it.
    #[serde(default, deserialize_with = "present")]
    pub iss: Option<String>,
    /// Whom it is for.
    #[serde(default, deserialize_with = "present")]
    pub aud: Option<Audience>,
    /// What it allows.
    #[serde(default, deserialize_with = "object")]
    pub livebridge: Allowed,
}

/// One name or a list of names.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum Audience {
    /// One.
    One(String),
    /// Any number.
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

/// Patterns of channels, by what may be done with them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Allowed {
    /// May be listened to, and their history read.
    #[serde(default)]
    pub subscribe: Vec<ChannelPattern>,
    /// May be published to.
    #[serde(default)]
    pub publish: Vec<ChannelPattern>,
}

impl Allowed {
    /// The patterns of the channels with which this is allowed.
    pub fn patterns(&self, action: Action) -> &[ChannelPattern] {
        match action {
            Action::Publish => &self.publish,
            Action::Subscribe | Action::Read => &self.subscribe,
        }
    }

    /// Whether this is allowed with the channel.
    pub fn covers(&self, action: Action, channel: &ChannelName) -> bool {
        self.patterns(action).iter().any(|pattern| pattern.matches(channel))
    }
}

/// A string that nobody keeps.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Text;

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        std::borrow::Cow::<'_, str>::deserialize(deserializer).map(|_| Self)
    }
}

/// That a member is there, whatever its value.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Present(pub(super) bool);

impl<'de> Deserialize<'de> for Present {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        IgnoredAny::deserialize(deserializer).map(|_| Self(true))
    }
}

/// A member that may be missing but is not `null`.
pub(super) fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

fn object<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Object::deserialize(deserializer).map(|Object(value)| value)
}

/// A value that is written as an object; serde would take an array of its members' values as well.
pub(super) struct Object<T>(pub(super) T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OnlyMap<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for OnlyMap<T> {
            type Value = Object<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Object)
            }
        }

        deserializer.deserialize_map(OnlyMap(PhantomData))
    }
}
