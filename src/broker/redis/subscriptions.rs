//! The `SUBSCRIBE` commands of one connection that are queued or unanswered. A command subscribes
//! to many channels, and Redis refuses the whole command because of one of them. So this module
//! remembers each command until Redis answers it, and retries the channels of a refused command one
//! by one. Otherwise only a limited number of channels is in flight at once, so that a channel with
//! priority waits only for these.
//!
//! On a Redis Cluster, a channel has two subscriptions. `SUBSCRIBE` receives what any client
//! publishes with `PUBLISH` on any node. `SSUBSCRIBE` receives `SPUBLISH`, which livebridge uses;
//! one command may name the channels of one hash slot only.

use std::collections::VecDeque;

use super::connection::Connection;
use super::error::{ClientError, is_moved};
use super::names::Names;
use super::wanted::{ByKind, KINDS};
use crate::channel::ChannelName;

/// The maximum number of channels in one command.
const CHUNK: usize = 500;
/// No further channels are sent while this many or more are in flight.
const MOST_IN_FLIGHT: usize = 2 * CHUNK;

/// The subscriptions of a connection.
#[derive(Default)]
pub(super) struct Subscriptions {
    names: Names,
    /// The commands without a complete reply, in the order in which they were sent.
    unanswered: VecDeque<Sent>,
    /// How many channels their `SUBSCRIBE` commands have.
    in_flight: usize,
    numbering: Numbering,
    /// Whether the subscription to the canary has ended, because its hash slot has moved.
    lacks_canary: bool,
    /// The channels to subscribe to, in one queue per kind; the first kind has priority.
    due: [VecDeque<ChannelName>; KINDS],
}

struct Sent {
    what: What,
    /// How many names Redis has not confirmed yet.
    names: usize,
}

/// The subscriptions for the numbering of plain messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Numbering {
    /// Redis has not been asked.
    #[default]
    Idle,
    /// The commands are unanswered; one of them may have been refused.
    Asked {
        is_denied: bool,
    },
    Confirmed,
    /// Redis does not allow them.
    Denied,
}

enum What {
    Canary,
    /// The channel of the numbering.
    Members,
    /// The patterns of the numbering, whose command follows that of [`What::Members`].
    Patterns,
    Subscribe(Vec<ChannelName>),
    Unsubscribe,
}

/// Channels that Redis has refused to subscribe to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// A permission is missing for at least one of them.
    Denied(Vec<ChannelName>),
    /// Their hash slot belongs to another shard, or is moving.
    Moved(Vec<ChannelName>),
    /// The refusal has no consequence for channels.
    Nothing,
}

impl Subscriptions {
    /// Creates an instance without subscriptions.
    pub(super) fn new(names: Names) -> Self {
        Self { names, ..Self::default() }
    }

    /// Subscribes to the channel of the canary.
    pub(super) fn subscribe_canary(&mut self, canary: &str, connection: &mut Connection) {
        let command = if self.names.is_sharded() { "SSUBSCRIBE" } else { "SUBSCRIBE" };
        connection.send(&[command, canary]);
        self.unanswered.push_back(Sent { what: What::Canary, names: 1 });
        self.lacks_canary = false;
    }

    /// Subscribes to the channel of the canary in place of an earlier one, which may have moved to
    /// another shard.
    pub(super) fn replace_canary(&mut self, earlier: &str, canary: &str, connection: &mut Connection) {
        if !self.lacks_canary {
            connection.send(&["SUNSUBSCRIBE", earlier]);
            self.unanswered.push_back(Sent { what: What::Unsubscribe, names: 1 });
        }
        self.subscribe_canary(canary, connection);
    }

    /// Subscribes to what the numbering of plain messages receives: the channels, then the patterns.
    pub(super) fn subscribe_numbering(&mut self, channel: &str, patterns: &[&str], connection: &mut Connection) {
        connection.send(&["SUBSCRIBE", channel]);
        self.unanswered.push_back(Sent { what: What::Members, names: 1 });
        let command: Vec<_> = std::iter::once("PSUBSCRIBE").chain(patterns.iter().copied()).collect();
        connection.send(&command);
        self.unanswered.push_back(Sent { what: What::Patterns, names: patterns.len() });
        self.numbering = Numbering::Asked { is_denied: false };
    }

    /// What became of the subscriptions for the numbering.
    pub(super) fn numbering(&self) -> Numbering {
        self.numbering
    }

    /// Whether the subscription to the canary has ended.
    pub(super) fn lacks_canary(&self) -> bool {
        self.lacks_canary
    }

    /// Handles the end of the subscription to the canary.
    pub(super) fn on_canary_moved(&mut self) {
        self.lacks_canary = true;
    }

    /// Queues channels to subscribe to.
    pub(super) fn subscribe(&mut self, channels: ByKind) {
        for (queue, channels) in self.due.iter_mut().zip(channels) {
            queue.extend(channels);
        }
    }

    /// Whether a `SUBSCRIBE` command can be sent.
    pub(super) fn has_due(&self) -> bool {
        self.in_flight < MOST_IN_FLIGHT && self.due.iter().any(|queue| !queue.is_empty())
    }

    /// Sends `SUBSCRIBE` commands for the next channels that are still wanted.
    pub(super) fn send_due(&mut self, is_wanted: impl Fn(&ChannelName) -> bool, connection: &mut Connection) {
        while self.in_flight < MOST_IN_FLIGHT
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
        for (command, channels) in self.commands(["SUBSCRIBE", "SSUBSCRIBE"], channels) {
            let names = command.len() - 1;
            connection.send(&command);
            self.in_flight += channels.len();
            self.unanswered.push_back(Sent { what: What::Subscribe(channels.to_vec()), names });
        }
    }

    /// Ends the subscriptions to channels.
    pub(super) fn unsubscribe(&mut self, channels: &[ChannelName], connection: &mut Connection) {
        for chunk in channels.chunks(CHUNK) {
            for (command, _) in self.commands(["UNSUBSCRIBE", "SUNSUBSCRIBE"], chunk) {
                let names = command.len() - 1;
                connection.send(&command);
                self.unanswered.push_back(Sent { what: What::Unsubscribe, names });
            }
        }
    }

    /// The commands that subscribe to or unsubscribe from channels, and the channels of each. The
    /// last name is that of a channel, because markers must arrive before Redis confirms it.
    fn commands<'a>(
        &self,
        [plain, sharded]: [&str; 2],
        channels: &'a [ChannelName],
    ) -> Vec<(Vec<String>, &'a [ChannelName])> {
        let names = |channel: &ChannelName| {
            let [single, run] = self.names.companions(channel.as_str());
            [single, run, self.names.channel(channel.as_str()).into_owned()]
        };
        let head = |name: &str| std::iter::once(name.to_owned());
        if !self.names.is_sharded() {
            return vec![(head(plain).chain(channels.iter().flat_map(names)).collect(), channels)];
        }
        let one_by_one = channels.chunks(1).map(|one| (head(sharded).chain(names(&one[0])).collect(), one));
        let all = head(plain)
            .chain(channels.iter().map(|channel| self.names.channel(channel.as_str()).into_owned()))
            .collect();
        std::iter::once((all, channels)).chain(one_by_one).collect()
    }

    /// Handles the confirmation of a subscription to a name.
    pub(super) fn on_subscribed(&mut self) {
        if !matches!(self.unanswered.front(), Some(Sent { what: What::Unsubscribe, .. })) {
            self.on_confirmation();
        }
    }

    /// Handles the end of the subscription to a name. Returns whether a command has asked for it.
    pub(super) fn on_unsubscribed(&mut self) -> bool {
        let is_asked = matches!(self.unanswered.front(), Some(Sent { what: What::Unsubscribe, .. }));
        if is_asked {
            self.on_confirmation();
        }
        is_asked
    }

    fn on_confirmation(&mut self) {
        let Some(first) = self.unanswered.front_mut() else { return };
        first.names -= 1;
        if first.names == 0 {
            self.take_answered();
        }
    }

    fn take_answered(&mut self) -> Option<What> {
        let what = self.unanswered.pop_front()?.what;
        match &what {
            What::Subscribe(channels) => self.in_flight -= channels.len(),
            What::Patterns => {
                let is_denied = matches!(self.numbering, Numbering::Asked { is_denied: true });
                self.numbering = if is_denied { Numbering::Denied } else { Numbering::Confirmed };
            }
            What::Canary | What::Members | What::Unsubscribe => {}
        }
        Some(what)
    }

    /// Handles the refusal of a command.
    ///
    /// # Errors
    /// [`ClientError::Refused`] if the refusal concerns the whole connection.
    pub(super) fn on_refusal(&mut self, why: &[u8]) -> Result<Refusal, ClientError> {
        let said = String::from_utf8_lossy(why);
        let (is_moved, is_denied) = (is_moved(&said), said.starts_with("NOPERM"));
        if let Numbering::Asked { is_denied: was_denied } = &mut self.numbering {
            let first = self.unanswered.front().map(|sent| &sent.what);
            *was_denied |= is_denied && matches!(first, Some(What::Members | What::Patterns));
        }
        match self.take_answered() {
            Some(What::Subscribe(channels)) if is_denied => Ok(Refusal::Denied(channels)),
            Some(What::Subscribe(channels)) if is_moved => Ok(Refusal::Moved(channels)),
            Some(What::Canary) if is_moved => {
                self.lacks_canary = true;
                Ok(Refusal::Moved(Vec::new()))
            }
            Some(What::Members | What::Patterns) if is_denied => Ok(Refusal::Nothing),
            // Messages of unwanted channels are ignored.
            Some(What::Unsubscribe) if is_denied || is_moved => Ok(Refusal::Nothing),
            // The subscriptions ended by themselves while the command to end them was on its way.
            None if is_moved => Ok(Refusal::Nothing),
            _ => Err(ClientError::Refused(said.into_owned())),
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
            return channels.into_iter().next().filter(is_wanted);
        }
        channels
            .chunks(1)
            .filter(|channel| is_wanted(&channel[0]))
            .for_each(|channel| self.subscribe_at_once(channel, connection));
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many names a channel has: its own and those of its companions.
    const NAMES: usize = 3;

    fn channels(names: &[&str]) -> Vec<ChannelName> {
        names.iter().map(|name| name.parse().expect("valid")).collect()
    }

    fn sent(names: &[&str]) -> Sent {
        Sent { what: What::Subscribe(channels(names)), names: names.len() * NAMES }
    }

    /// The commands in the output buffer, without lengths.
    fn written(connection: &mut Connection) -> String {
        let bytes = String::from_utf8(connection.outgoing().split().to_vec()).expect("UTF-8");
        let words = bytes.split("\r\n").filter(|line| !line.starts_with('$') && !line.is_empty());
        words.map(|word| if word.starts_with('*') { "|" } else { word }).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_refusal_concerns_the_first_command_that_is_not_answered() {
        let unsubscribe = Sent { what: What::Unsubscribe, names: NAMES };
        let unanswered = VecDeque::from([sent(&["a"]), unsubscribe, sent(&["b", "c"]), sent(&["d"])]);
        let mut subscriptions = Subscriptions { unanswered, in_flight: 4, ..Subscriptions::default() };
        (0..NAMES).for_each(|_| subscriptions.on_subscribed());
        assert_eq!(subscriptions.on_refusal(b"NOPERM no").expect("local"), Refusal::Nothing);
        let refused = subscriptions.on_refusal(b"NOPERM no").expect("local");
        assert_eq!(refused, Refusal::Denied(channels(&["b", "c"])));
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
    fn a_limited_number_of_channels_is_in_flight_at_once() {
        let name = |number: usize| -> ChannelName { format!("c{number}").parse().expect("valid") };
        let mut subscriptions = Subscriptions::default();
        subscriptions.subscribe([(0..3 * CHUNK).map(name).collect(), vec![], vec![], vec![]]);
        let mut connection = Connection::unconnected();
        subscriptions.send_due(|_| true, &mut connection);
        assert_eq!((subscriptions.unanswered.len(), subscriptions.has_due()), (2, false));
        (0..CHUNK * NAMES).for_each(|_| subscriptions.on_subscribed());
        assert!(subscriptions.has_due(), "one is answered");
    }

    #[test]
    fn on_a_cluster_each_channel_has_a_sharded_subscription_of_its_own() {
        let (mut subscriptions, mut connection) = (Subscriptions::new(Names::new("", true)), Connection::unconnected());
        subscriptions.subscribe([channels(&["a", "b"]), vec![], vec![], vec![]]);
        subscriptions.send_due(|_| true, &mut connection);
        let expected = "| SUBSCRIBE a b | SSUBSCRIBE livebridge:note:{a} livebridge:run:{a} a \
                        | SSUBSCRIBE livebridge:note:{b} livebridge:run:{b} b";
        assert_eq!(written(&mut connection), expected);
        subscriptions.unsubscribe(&channels(&["a"]), &mut connection);
        let expected = "| UNSUBSCRIBE a | SUNSUBSCRIBE livebridge:note:{a} livebridge:run:{a} a";
        assert_eq!(written(&mut connection), expected);
    }

    #[test]
    fn a_subscription_that_ends_by_itself_is_told_from_one_that_was_ended() {
        let (mut subscriptions, mut connection) = (Subscriptions::new(Names::new("", true)), Connection::unconnected());
        subscriptions.subscribe_at_once(&channels(&["a"]), &mut connection);
        assert!(!subscriptions.on_unsubscribed(), "the slot of another channel has moved");
        subscriptions.on_subscribed();
        let refused = subscriptions.on_refusal(b"MOVED 7 127.0.0.1:7001").expect("local");
        assert_eq!(refused, Refusal::Moved(channels(&["a"])));
        subscriptions.unsubscribe(&channels(&["a"]), &mut connection);
        assert!((0..4).all(|_| subscriptions.on_unsubscribed()) && !subscriptions.on_unsubscribed());
        assert_eq!((subscriptions.in_flight, subscriptions.unanswered.len()), (0, 0));
        assert_eq!(subscriptions.on_refusal(b"MOVED 7 127.0.0.1:7001").expect("local"), Refusal::Nothing);
    }
}
