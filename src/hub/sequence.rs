//! Decides when each message of a channel may be delivered: in the order of the offsets, without
//! duplicates and without holes. A pure state machine: its inputs are messages that arrive and
//! pages of the history. Its outputs are entries for the log, and requests to read the history,
//! which `hub.rs` does.

use crate::broker::{Page, Tail};
use crate::message::{Entry, Message, Position};

/// The maximum number and bytes of messages that are held while the history is read. Beyond that,
/// messages are read from the history afterwards.
const HELD_MESSAGES: usize = 10_000;
const HELD_BYTES: usize = 8 << 20;

/// What to do after an event.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Next {
    /// Nothing.
    Continue,
    /// Read the history from [`Sequencer::delivered`] on, and pass the page to
    /// [`Sequencer::apply_page`].
    Check,
}

/// The order of one channel, as one instance delivers it.
#[derive(Debug)]
pub struct Sequencer {
    /// Whether the channel is keyed, so that its values end with the epoch.
    keyed: bool,
    /// The last delivered message. `None` before the first read of the history, or if the channel
    /// keeps none.
    delivered: Option<Tail>,
    mode: Mode,
    /// How many messages without a position were dropped while the history was read.
    dropped: u64,
}

#[derive(Debug)]
enum Mode {
    /// There is no subscription in the broker yet.
    Closed,
    /// Messages are delivered as they arrive.
    Live,
    /// The history is being read, and messages that arrive are held. `again`: more messages were
    /// missed in the meantime. `trigger_epoch`: the new epoch that caused the read.
    Checking { held: Vec<Message>, held_bytes: usize, again: bool, trigger_epoch: Option<u64> },
}

impl Sequencer {
    /// Creates the order of a channel in an unknown state.
    pub fn new(keyed: bool) -> Self {
        Self { keyed, delivered: None, mode: Mode::Closed, dropped: 0 }
    }

    /// The last delivered message.
    pub fn delivered(&self) -> Option<Tail> {
        self.delivered
    }

    /// Whether messages are delivered as they arrive.
    pub fn is_live(&self) -> bool {
        matches!(self.mode, Mode::Live)
    }

    /// How many messages without a position were dropped since the last call.
    pub fn take_dropped(&mut self) -> u64 {
        std::mem::take(&mut self.dropped)
    }

    /// Messages may have been missed: the channel was (re)subscribed, or a message was lost.
    pub fn require_check(&mut self) -> Next {
        match &mut self.mode {
            Mode::Checking { again, .. } => {
                *again = true;
                Next::Continue
            }
            Mode::Closed | Mode::Live => self.begin_check(Vec::new(), None),
        }
    }

    /// Handles a message from the broker.
    pub fn arrive(&mut self, message: Message, out: &mut dyn FnMut(Entry)) -> Next {
        match &mut self.mode {
            // A late message of an earlier subscription.
            Mode::Closed => Next::Continue,
            Mode::Checking { held, held_bytes, again, .. } => {
                *held_bytes += message.payload.len();
                if held.len() < HELD_MESSAGES && *held_bytes <= HELD_BYTES {
                    held.push(message);
                } else if message.position.is_some() {
                    *again = true;
                } else {
                    self.dropped += 1;
                }
                Next::Continue
            }
            Mode::Live => match self.relation(&message) {
                Relation::Follows => {
                    self.deliver(message, out);
                    Next::Continue
                }
                // Redis sends each message once, so a repeated offset means another history.
                Relation::Repeats | Relation::Ahead => self.begin_check(vec![message], None),
            },
        }
    }

    /// Handles a page of the history; `None` if the channel keeps none.
    pub fn apply_page(&mut self, page: Option<Page>, out: &mut dyn FnMut(Entry)) -> Next {
        let Mode::Checking { held, again, trigger_epoch, .. } = std::mem::replace(&mut self.mode, Mode::Live) else {
            return Next::Continue;
        };
        let mut incomplete = again;
        match page {
            None => self.delivered = None,
            // The first page only sets the position: clients that want earlier messages read the
            // history.
            Some(page) if self.delivered.is_none() => self.delivered = Some(page.tail),
            Some(page) => {
                page.gap.map(Entry::Gap).into_iter().for_each(&mut *out);
                page.messages.into_iter().map(Entry::Message).for_each(&mut *out);
                self.delivered = Some(page.through);
                incomplete |= page.through.position != page.tail.position;
            }
        }
        let mut held = held.into_iter();
        while let Some(message) = held.next() {
            match self.relation(&message) {
                // If messages are missing, do not accept offset 1 of a new epoch yet.
                Relation::Follows if !(incomplete && self.is_foreign(&message)) => self.deliver(message, out),
                Relation::Repeats => {}
                // The page has no such epoch, so that epoch is over: drop the message.
                Relation::Ahead if self.is_foreign(&message) && trigger_epoch == epoch(&message) => {}
                Relation::Follows | Relation::Ahead => {
                    let trigger_epoch = if self.is_foreign(&message) { epoch(&message) } else { None };
                    return self.begin_check(std::iter::once(message).chain(held).collect(), trigger_epoch);
                }
            }
        }
        if incomplete { self.begin_check(Vec::new(), None) } else { Next::Continue }
    }

    /// How a message relates to what was delivered.
    fn relation(&self, message: &Message) -> Relation {
        let (Some(position), Some(delivered)) = (message.position, self.delivered) else {
            return Relation::Follows;
        };
        let delivered = delivered.position;
        if position.epoch == delivered.epoch {
            match position.offset {
                offset if offset == delivered.offset + 1 => Relation::Follows,
                offset if offset <= delivered.offset => Relation::Repeats,
                _ => Relation::Ahead,
            }
        } else if position.epoch > delivered.epoch && position.offset == 1 && self.loses_no_values(delivered) {
            // No message was lost, so offset 1 starts the next epoch. Not so on a keyed channel with
            // messages, whose values are gone: the read of the history then reports the gap.
            Relation::Follows
        } else if position.epoch < delivered.epoch {
            Relation::Repeats
        } else {
            Relation::Ahead
        }
    }

    /// Whether the end of the delivered epoch loses no values of a keyed channel.
    fn loses_no_values(&self, delivered: Position) -> bool {
        !self.keyed || delivered.offset == 0
    }

    fn deliver(&mut self, message: Message, out: &mut dyn FnMut(Entry)) {
        if let Some(position) = message.position {
            self.delivered = Some(Tail { position, stamp: message.stamp });
        }
        out(message.into());
    }

    /// Whether the message has another epoch than the delivered ones.
    fn is_foreign(&self, message: &Message) -> bool {
        matches!((self.delivered, epoch(message)), (Some(tail), Some(epoch)) if tail.position.epoch != epoch)
    }

    fn begin_check(&mut self, held: Vec<Message>, trigger_epoch: Option<u64>) -> Next {
        let held_bytes = held.iter().map(|message| message.payload.len()).sum();
        self.mode = Mode::Checking { held, held_bytes, again: false, trigger_epoch };
        Next::Check
    }
}

/// How a message relates to what was delivered.
enum Relation {
    Follows,
    Repeats,
    Ahead,
}

fn epoch(message: &Message) -> Option<u64> {
    message.position.map(|position| position.epoch)
}
