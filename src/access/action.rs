//! The actions of clients with channels, and which of them need no credentials.

use std::fmt;

use crate::channel::ChannelName;

/// An action with channels.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// Receive messages.
    Subscribe,
    /// Publish messages.
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

/// The rights of clients without credentials for a channel. None by default.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Anonymous {
    /// May subscribe and read the history.
    pub subscribe: bool,
    /// May publish.
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

/// The rights of clients without credentials, for all channels.
pub trait AnonymousRules: fmt::Debug + Send + Sync {
    /// Whether the action is allowed with the channel.
    fn allow(&self, channel: &ChannelName, action: Action) -> bool;

    /// Whether the action is allowed with at least one channel.
    fn allow_anywhere(&self, action: Action) -> bool;
}
