//! What clients do with channels, and which of it needs no credentials.

use std::fmt;

use crate::channel::ChannelName;

/// What a request wants to do with channels.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// Receive messages.
    Subscribe,
    /// Publish.
    Publish,
    /// Read the history.
    Read,
}

impl Action {
    /// The action as a subject in error messages, such as "publishing to".
    pub(super) fn doing(self) -> &'static str {
        match self {
            Self::Subscribe => "subscribing to",
            Self::Publish => "publishing to",
            Self::Read => "reading",
        }
    }
}

/// What clients without a key or a token may do with a channel. Nothing by default.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Anonymous {
    /// Subscribe, and read the history.
    pub subscribe: bool,
    /// Publish.
    pub publish: bool,
}

impl Anonymous {
    /// Whether the action is allowed.
    pub fn allows(self, action: Action) -> bool {
        match action {
            Action::Publish => self.publish,
            Action::Subscribe | Action::Read => self.subscribe,
        }
    }
}

/// What clients without credentials may do with each channel.
pub trait AnonymousRules: fmt::Debug + Send + Sync {
    /// Whether the action is allowed with the channel.
    fn allow(&self, channel: &ChannelName, action: Action) -> bool;

    /// Whether the action is allowed with any channel.
    fn allow_anywhere(&self, action: Action) -> bool;
}
