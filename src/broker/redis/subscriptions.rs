//! What one connection was asked to subscribe, and what Redis said of it. One command names many
//! channels, and Redis refuses the whole command for one of them. So the commands are remembered until
//! they are answered, and the channels of a refused one are tried one by one.

use std::collections::VecDeque;

use super::connection::{Connection, ConnectionError};
use super::position_marker::{RUN_PREFIX, SINGLE_PREFIX};
use crate::channel::ChannelName;

/// How many channels one command names.
const CHUNK: usize = 500;
/// The names of a channel: itself and its companions.
const NAMES: usize = 3;

/// The commands of a connection that are not answered yet, in the order in which they were sent.
#[derive(Default)]
pub(super) struct Subscriptions {
    unanswered: VecDeque<Sent>,
}

struct Sent {
    what: What,
    /// How many names Redis has yet to confirm.
    names: usize,
}

enum What {
    Canary,
    Subscribe(Vec<ChannelName>),
    Unsubscribe,
}

impl Subscriptions {
    /// Subscribes the canary's channel.
    pub(super) fn subscribe_canary(&mut self, canary: &str, connection: &mut Connection) {
        connection.send(&["SUBSCRIBE", canary]);
        self.unanswered.push_back(Sent { what: What::Canary, names: 1 });
    }

    /// Subscribes channels, and the companions on which their positions come.
    pub(super) fn subscribe(&mut self, channels: &[ChannelName], connection: &mut Connection) {
        channels.chunks(CHUNK).for_each(|chunk| self.subscribe_at_once(chunk, connection));
    }

    fn subscribe_at_once(&mut self, channels: &[ChannelName], connection: &mut Connection) {
        connection.send(&command("SUBSCRIBE", channels));
        self.unanswered.push_back(Sent { what: What::Subscribe(channels.to_vec()), names: channels.len() * NAMES });
    }

    /// Ends the subscriptions of channels.
    pub(super) fn unsubscribe(&mut self, channels: &[ChannelName], connection: &mut Connection) {
        for chunk in channels.chunks(CHUNK) {
            connection.send(&command("UNSUBSCRIBE", chunk));
            self.unanswered.push_back(Sent { what: What::Unsubscribe, names: chunk.len() * NAMES });
        }
    }

    /// Redis confirmed a name.
    pub(super) fn confirmed(&mut self) {
        let Some(first) = self.unanswered.front_mut() else { return };
        first.names -= 1;
        if first.names == 0 {
            self.unanswered.pop_front();
        }
    }

    /// Redis refused a command. Returns the channels that it named, if it was for the lack of a
    /// permission and does not concern the connection as such.
    pub(super) fn refused(&mut self, why: &[u8]) -> Result<Vec<ChannelName>, ConnectionError> {
        let what = self.unanswered.pop_front().map(|sent| sent.what);
        match what {
            Some(What::Subscribe(channels)) if why.starts_with(b"NOPERM") => Ok(channels),
            // What is heard without being wanted is ignored.
            Some(What::Unsubscribe) if why.starts_with(b"NOPERM") => Ok(Vec::new()),
            _ => Err(ConnectionError::Refused(String::from_utf8_lossy(why).into_owned())),
        }
    }

    /// Subscribes the channels of a refused command one by one, if they are still wanted. Returns the
    /// channel if it was the only one, and so is the one that Redis refuses.
    pub(super) fn retry(
        &mut self,
        channels: Vec<ChannelName>,
        is_wanted: impl Fn(&ChannelName) -> bool,
        connection: &mut Connection,
    ) -> Option<ChannelName> {
        if channels.len() == 1 {
            return channels.into_iter().next();
        }
        channels
            .chunks(1)
            .filter(|channel| is_wanted(&channel[0]))
            .for_each(|channel| self.subscribe_at_once(channel, connection));
        None
    }
}

fn command(name: &str, channels: &[ChannelName]) -> Vec<String> {
    let mut command = Vec::with_capacity(1 + channels.len() * NAMES);
    command.push(name.to_owned());
    // Companions first: when the channel itself is confirmed, its markers are heard already.
    let names = |channel: &ChannelName| -> [String; NAMES] {
        [format!("{SINGLE_PREFIX}{channel}"), format!("{RUN_PREFIX}{channel}"), channel.to_string()]
    };
    command.extend(channels.iter().flat_map(names));
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(channels: &[&str]) -> Sent {
        let channels: Vec<ChannelName> = channels.iter().map(|name| name.parse().expect("valid")).collect();
        let names = channels.len() * NAMES;
        Sent { what: What::Subscribe(channels), names }
    }

    #[test]
    fn a_refusal_concerns_the_first_command_that_is_not_answered() {
        let unsubscribe = Sent { what: What::Unsubscribe, names: NAMES };
        let unanswered = VecDeque::from([sent(&["a"]), unsubscribe, sent(&["b", "c"]), sent(&["d"])]);
        let mut subscriptions = Subscriptions { unanswered };
        (0..NAMES).for_each(|_| subscriptions.confirmed());
        assert_eq!(subscriptions.refused(b"NOPERM no").expect("local"), Vec::new());
        let refused = subscriptions.refused(b"NOPERM no").expect("local");
        assert_eq!(refused.iter().map(ChannelName::as_str).collect::<Vec<_>>(), ["b", "c"]);
        assert!(subscriptions.refused(b"ERR broken").is_err(), "what is no permission concerns the connection");
        assert!(subscriptions.refused(b"NOPERM no").is_err(), "nothing was asked");
    }

    #[test]
    fn a_canary_that_is_refused_concerns_the_connection() {
        let canary = Sent { what: What::Canary, names: 1 };
        let mut subscriptions = Subscriptions { unanswered: VecDeque::from([canary]) };
        assert!(subscriptions.refused(b"NOPERM no").is_err());
    }
}
