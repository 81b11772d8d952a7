//! The `SUBSCRIBE` commands of one connection that are queued or unanswered. A command subscribes
//! to many channels, and Redis refuses the whole command because of one of them. So this module
//! remembers each command until Redis answers it, and retries the channels of a refused command one
//! by one. Otherwise at most two commands are in flight at once, so that a channel with priority
//! waits only for these.

use std::collections::VecDeque;

use super::connection::Connection;
use super::error::ClientError;
use super::position_marker::{RUN_PREFIX, SINGLE_PREFIX};
use super::wanted::{ByKind, KINDS};
use crate::channel::ChannelName;

/// The maximum number of channels in one command.
const CHUNK: usize = 500;
/// How many `SUBSCRIBE` commands are in flight at once.
const COMMANDS_AT_ONCE: usize = 2;
/// The number of names of a channel: its own and those of its companions.
const NAMES: usize = 3;

/// The subscriptions of a connection.
#[derive(Default)]
pub(super) struct Subscriptions {
    /// The commands without a complete reply, in the order in which they were sent.
    unanswered: VecDeque<Sent>,
    /// How many of them are `SUBSCRIBE` commands for channels.
    subscribing: usize,
    /// The channels to subscribe to, in one queue per kind; the first kind has priority.
    due: [VecDeque<ChannelName>; KINDS],
}

struct Sent {
    what: What,
    /// How many names Redis has not confirmed yet.
    names: usize,
}

enum What {
    Canary,
    Subscribe(Vec<ChannelName>),
    Unsubscribe,
}

impl Subscriptions {
    /// Subscribes to the channel of the canary.
    pub(super) fn subscribe_canary(&mut self, canary: &str, connection: &mut Connection) {
        connection.send(&["SUBSCRIBE", canary]);
        self.unanswered.push_back(Sent { what: What::Canary, names: 1 });
    }

    /// Queues channels to subscribe to.
    pub(super) fn subscribe(&mut self, channels: ByKind) {
        for (queue, channels) in self.due.iter_mut().zip(channels) {
            queue.extend(channels);
        }
    }

    /// Whether a `SUBSCRIBE` command can be sent.
    pub(super) fn has_due(&self) -> bool {
        self.subscribing < COMMANDS_AT_ONCE && self.due.iter().any(|queue| !queue.is_empty())
    }

    /// Sends `SUBSCRIBE` commands for the next channels that are still wanted.
    pub(super) fn send_due(&mut self, is_wanted: impl Fn(&ChannelName) -> bool, connection: &mut Connection) {
        while self.subscribing < COMMANDS_AT_ONCE
            && let Some(chunk) = self.take_due(&is_wanted)
        {
            self.subscribe_at_once(&chunk, connection);
        }
    }

    fn take_due(&mut self, is_wanted: impl Fn(&ChannelName) -> bool) -> Option<Vec<ChannelName>> {
        for queue in &mut self.due {
            let mut chunk = Vec::new();
            while chunk.len() < CHUNK
                && let Some(channel) = queue.pop_front()
            {
                if is_wanted(&channel) {
                    chunk.push(channel);
                }
            }
            // Frees the memory of a long queue as it empties.
            queue.shrink_to(queue.len().max(CHUNK));
            if !chunk.is_empty() {
                return Some(chunk);
            }
        }
        None
    }

    /// Subscribes to channels and to the companions for their position markers.
    fn subscribe_at_once(&mut self, channels: &[ChannelName], connection: &mut Connection) {
        connection.send(&command("SUBSCRIBE", channels));
        self.subscribing += 1;
        self.unanswered.push_back(Sent { what: What::Subscribe(channels.to_vec()), names: channels.len() * NAMES });
    }

    /// Ends the subscriptions to channels.
    pub(super) fn unsubscribe(&mut self, channels: &[ChannelName], connection: &mut Connection) {
        for chunk in channels.chunks(CHUNK) {
            connection.send(&command("UNSUBSCRIBE", chunk));
            self.unanswered.push_back(Sent { what: What::Unsubscribe, names: chunk.len() * NAMES });
        }
    }

    /// Handles the confirmation of a name.
    pub(super) fn on_confirmation(&mut self) {
        let Some(first) = self.unanswered.front_mut() else { return };
        first.names -= 1;
        if first.names == 0 {
            self.take_answered();
        }
    }

    fn take_answered(&mut self) -> Option<What> {
        let what = self.unanswered.pop_front()?.what;
        self.subscribing -= usize::from(matches!(what, What::Subscribe(_)));
        Some(what)
    }

    /// Handles the refusal of a command. If a permission is missing, returns the channels of the
    /// command.
    ///
    /// # Errors
    /// [`ClientError::Refused`] if the refusal concerns the whole connection.
    pub(super) fn on_refusal(&mut self, why: &[u8]) -> Result<Vec<ChannelName>, ClientError> {
        match self.take_answered() {
            Some(What::Subscribe(channels)) if why.starts_with(b"NOPERM") => Ok(channels),
            // Messages of unwanted channels are ignored.
            Some(What::Unsubscribe) if why.starts_with(b"NOPERM") => Ok(Vec::new()),
            _ => Err(ClientError::Refused(String::from_utf8_lossy(why).into_owned())),
        }
    }

    /// Subscribes to the channels of a refused command one by one, if they are still wanted. If the
    /// command had only one channel, returns it, because this is the one that Redis refuses.
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
    // Companions first: markers already arrive when Redis confirms the channel itself.
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
        let mut subscriptions = Subscriptions { unanswered, subscribing: 3, ..Subscriptions::default() };
        (0..NAMES).for_each(|_| subscriptions.on_confirmation());
        assert_eq!(subscriptions.on_refusal(b"NOPERM no").expect("local"), Vec::new());
        let refused = subscriptions.on_refusal(b"NOPERM no").expect("local");
        assert_eq!(refused.iter().map(ChannelName::as_str).collect::<Vec<_>>(), ["b", "c"]);
        assert!(subscriptions.on_refusal(b"ERR broken").is_err(), "what is no permission concerns the connection");
        assert!(subscriptions.on_refusal(b"NOPERM no").is_err(), "nothing was asked");
    }

    #[test]
    fn a_canary_that_is_refused_concerns_the_connection() {
        let canary = Sent { what: What::Canary, names: 1 };
        let mut subscriptions = Subscriptions { unanswered: VecDeque::from([canary]), ..Subscriptions::default() };
        assert!(subscriptions.on_refusal(b"NOPERM no").is_err());
    }

    #[test]
    fn channels_of_the_first_kind_come_first_and_unwanted_ones_not_at_all() {
        let name = |number: usize| -> ChannelName { format!("c{number}").parse().expect("valid") };
        let mut subscriptions = Subscriptions::default();
        subscriptions.subscribe([vec![], vec![], vec![], (0..3 * CHUNK).map(name).collect()]);
        let mut take = |small: Vec<ChannelName>| {
            subscriptions.subscribe([vec![], vec![], small, vec![]]);
            subscriptions.take_due(|channel| *channel != name(0)).map(|chunk| (chunk[0].clone(), chunk.len()))
        };
        assert_eq!(take(Vec::new()), Some((name(1), CHUNK)));
        let small = name(9_999);
        assert_eq!(take(vec![small.clone()]), Some((small, 1)), "whatever waits longer");
        assert_eq!(take(vec![name(0)]), Some((name(CHUNK + 1), CHUNK)));
        assert_eq!(take(Vec::new()), Some((name(2 * CHUNK + 1), CHUNK - 1)));
        assert_eq!(take(Vec::new()), None);
    }

    #[test]
    fn two_commands_are_in_flight_at_once() {
        let name = |number: usize| -> ChannelName { format!("c{number}").parse().expect("valid") };
        let mut subscriptions = Subscriptions::default();
        subscriptions.subscribe([(0..3 * CHUNK).map(name).collect(), vec![], vec![], vec![]]);
        let mut connection = Connection::unconnected();
        subscriptions.send_due(|_| true, &mut connection);
        assert_eq!((subscriptions.unanswered.len(), subscriptions.has_due()), (COMMANDS_AT_ONCE, false));
        (0..CHUNK * NAMES).for_each(|_| subscriptions.on_confirmation());
        assert!(subscriptions.has_due(), "one is answered");
    }
}
