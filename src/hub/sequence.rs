//! Decides what of a channel may be delivered when: in the order of the offsets, none twice, none missing. A pure state
//! machine: it is told what arrived and what the history says, and answers what to append to the log and whether
//! the history must be asked. Who asks is `hub.rs`.

use crate::broker::{Page, Tail};
use crate::message::{Entry, Message, Position};

/// The most messages, and the most of their bytes, that are held while the history is being asked. What does not
/// fit is read from the history afterwards.
const HELD_MESSAGES: usize = 10_000;
const HELD_BYTES: usize = 8 << 20;

/// What to do after an event.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Next {
    /// Nothing more.
    Continue,
    /// Read the history from [`Sequencer::delivered`] and hand the page to [`Sequencer::checked`].
    Check,
}

/// The order of one channel, as one instance delivers it.
#[derive(Debug)]
pub struct Sequencer {
    /// Whether the channel has a state that ends with its epoch.
    keyed: bool,
    /// Up to where has been delivered; `None` until the history was first asked, or where the channel keeps none.
    delivered: Option<Tail>,
    mode: Mode,
    /// Messages without a position that had to be dropped while the history was being asked.
    dropped: u64,
}

#[derive(Debug)]
enum Mode {
    /// Nobody has subscribed in the broker yet.
    Closed,
    /// What arrives is next.
    Live,
    /// The history is being asked; what arrives meanwhile is held. `again`: something else was missed since.
    /// `foreign`: the epoch that it was asked about.
    Checking { held: Vec<Message>, held_bytes: usize, again: bool, foreign: Option<u64> },
}

impl Sequencer {
    /// The order of a channel of which nothing is known yet.
    pub fn new(keyed: bool) -> Self {
        Self { keyed, delivered: None, mode: Mode::Closed, dropped: 0 }
    }

    /// Up to where has been delivered.
    pub fn delivered(&self) -> Option<Tail> {
        self.delivered
    }

    /// Whether what arrives is delivered at once.
    pub fn is_live(&self) -> bool {
        matches!(self.mode, Mode::Live)
    }

    /// How many messages without a position were dropped since the last call.
    pub fn take_dropped(&mut self) -> u64 {
        std::mem::take(&mut self.dropped)
    }

    /// Something may have been missed: the channel was (re)subscribed, or a message is known to be lost.
    pub fn suspect(&mut self) -> Next {
        match &mut self.mode {
            Mode::Checking { again, .. } => {
                *again = true;
                Next::Continue
            }
            Mode::Closed | Mode::Live => self.begin_check(Vec::new(), None),
        }
    }

    /// A message arrived from the broker.
    pub fn arrive(&mut self, message: Message, out: &mut dyn FnMut(Entry)) -> Next {
        match &mut self.mode {
            // A straggler of an earlier subscription.
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
                // On a connection in order even a repetition is a sign that the history went another way.
                Relation::Repeats | Relation::Ahead => self.begin_check(vec![message], None),
            },
        }
    }

    /// The history answered; `None` if the channel keeps none.
    pub fn checked(&mut self, page: Option<Page>, out: &mut dyn FnMut(Entry)) -> Next {
        let Mode::Checking { held, again, foreign, .. } = std::mem::replace(&mut self.mode, Mode::Live) else {
            return Next::Continue;
        };
        let mut incomplete = again;
        match page {
            None => self.delivered = None,
            // The first answer only says where the channel stands: whoever wants the past reads the history.
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
                // While something before it is known to be missing, not even the first message of a new epoch follows.
                Relation::Follows if !(incomplete && self.is_foreign(&message)) => self.deliver(message, out),
                Relation::Repeats => {}
                // The history was asked because of this epoch and does not know it: it has ended meanwhile.
                Relation::Ahead if self.is_foreign(&message) && foreign == epoch(&message) => {}
                Relation::Follows | Relation::Ahead => {
                    let foreign = if self.is_foreign(&message) { epoch(&message) } else { None };
                    return self.begin_check(std::iter::once(message).chain(held).collect(), foreign);
                }
            }
        }
        if incomplete { self.begin_check(Vec::new(), None) } else { Next::Continue }
    }

    /// Where the message belongs, relative to what was delivered.
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
        } else if position.epoch > delivered.epoch && position.offset == 1 && self.nothing_ends_with_it(delivered) {
            // A new epoch from its first message on, right behind what was delivered, on a connection that lost
            // nothing: the old epoch has ended and nobody who listens missed any of it. (But the values of a keyed
            // channel have gone with it, which is told.)
            Relation::Follows
        } else if position.epoch < delivered.epoch {
            Relation::Repeats
        } else {
            Relation::Ahead
        }
    }

    /// Whether no values of a keyed channel go with the epoch that was delivered.
    fn nothing_ends_with_it(&self, delivered: Position) -> bool {
        !self.keyed || delivered.offset == 0
    }

    fn deliver(&mut self, message: Message, out: &mut dyn FnMut(Entry)) {
        if let Some(position) = message.position {
            self.delivered = Some(Tail { position, stamp: message.stamp });
        }
        out(message.into());
    }

    /// Whether the message is of another epoch than what was delivered.
    fn is_foreign(&self, message: &Message) -> bool {
        matches!((self.delivered, epoch(message)), (Some(tail), Some(epoch)) if tail.position.epoch != epoch)
    }

    fn begin_check(&mut self, held: Vec<Message>, foreign: Option<u64>) -> Next {
        let held_bytes = held.iter().map(|message| message.payload.len()).sum();
        self.mode = Mode::Checking { held, held_bytes, again: false, foreign };
        Next::Check
    }
}

/// Where a message belongs, relative to what was delivered.
enum Relation {
    Follows,
    Repeats,
    Ahead,
}

fn epoch(message: &Message) -> Option<u64> {
    message.position.map(|position| position.epoch)
}
