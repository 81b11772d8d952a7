//! The table of all channels of the embedded broker, their expiry, and the limit on their total
//! memory. Only making room when the limit is reached looks through all channels.

use std::collections::{BTreeSet, HashMap};

use super::clock::Micros;
use super::history::{ChannelHistory, RETAIN};
use crate::broker::{BrokerError, Page, Publication, ReadFrom, Tail};
use crate::channel::ChannelName;
use crate::fair_share::fair_size;
use crate::message::{Gap, GapReason, Message, Position};
use crate::rules::{History, Keyed};

/// The estimated memory of a channel without its name and its messages: the struct itself and its
/// entries in the table and in the two ordered sets, including their spare capacity.
const CHANNEL_BYTES: usize = size_of::<Channel>() + 192;
/// How many expired messages, ids and channels a publish drops at most. A publish adds at most one
/// of each, so any value above three keeps up.
const STEPS_PER_PUBLISH: usize = 16;
/// How long a message may stay in memory after it has expired. All messages of a channel that
/// expire within this time are dropped together.
const SLACK: Micros = 1_000_000;
/// The precision of the order of idle channels.
const IDLE_STEP: Micros = 1_000_000;

/// The channels that have messages, and the limits on them.
pub(super) struct Channels {
    held: HashMap<ChannelName, Box<Channel>>,
    /// All channels, ordered by the time of the last message, at most [`IDLE_STEP`] late.
    by_idle: BTreeSet<(Micros, ChannelName)>,
    /// The channels with messages or ids that can expire, ordered by the time of their next check.
    /// The check may be early, but never late.
    by_age: BTreeSet<(Micros, ChannelName)>,
    /// Nothing expires before this time.
    next_expiry: Micros,
    bytes: usize,
    log_bytes: usize,
    most_bytes: usize,
    last_epoch: u64,
    /// Channels that are not in the table have had no messages since this time.
    complete_since: Micros,
}

struct Channel {
    history: ChannelHistory,
    /// The channel's entry in `by_idle`.
    idle_since: Micros,
    /// The channel's entry in `by_age`.
    look_at: Option<Micros>,
}

/// The outcome of publishing a message.
#[derive(Debug)]
pub(super) enum Published {
    /// The message is new.
    New(Message),
    /// The message is a retry of the one at this position.
    Known(Position),
}

impl Channels {
    /// Creates an empty table, complete since `now`. All channels together may use `most_bytes`
    /// bytes.
    pub(super) fn new(most_bytes: usize, now: Micros) -> Self {
        Self {
            held: HashMap::new(),
            by_idle: BTreeSet::new(),
            by_age: BTreeSet::new(),
            next_expiry: Micros::MAX,
            bytes: 0,
            log_bytes: 0,
            most_bytes,
            last_epoch: 0,
            complete_since: now,
        }
    }

    /// The memory of all channels, in bytes.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Stores a message. The digest distinguishes it from others that are published with the same
    /// id.
    ///
    /// # Errors
    /// The id was used for another message, the keyed channel is full, or there is no room. In
    /// these cases nothing is stored.
    pub(super) fn publish(
        &mut self,
        publication: Publication,
        digest: u64,
        bounds: History,
        keyed: Option<Keyed>,
        now: Micros,
    ) -> Result<Published, BrokerError> {
        self.expire(now, STEPS_PER_PUBLISH);
        let name = publication.channel.clone();
        if let Some(history) = self.living(&name, now) {
            if let Some(known) = publication.id.as_ref().and_then(|id| history.known(id, now)) {
                let retry = known.digest == digest;
                return retry.then(|| Published::Known(history.position(known.offset))).ok_or(BrokerError::IdReused);
            }
            let growth = self.check(history, &publication, keyed)?;
            self.make_room(growth, &name)?;
        } else {
            // The channel may have expired without having been dropped yet.
            self.drop_channel(&name);
            let history = ChannelHistory::new(self.time(now), bounds, keyed.is_some());
            let growth = self.check(&history, &publication, keyed)? + CHANNEL_BYTES + name.as_str().len();
            self.make_room(growth, &name)?;
            self.open(&name, history);
        }
        Ok(Published::New(self.add(&name, publication, digest, now)))
    }

    /// Implements [`super::super::Broker::read`].
    pub(super) fn read(&self, name: &ChannelName, from: ReadFrom, limit: usize, now: Micros) -> Page {
        let Some(history) = self.living(name, now) else { return self.read_nothing(from, now) };
        let begins = history.position(0);
        let translate = |position: Position| {
            let missed_nothing = position.offset == 0
                && position.epoch < begins.epoch
                && self.had_no_messages(position.epoch, begins.epoch);
            if missed_nothing { begins } else { position }
        };
        let from = match from {
            ReadFrom::After(position) => ReadFrom::After(translate(position)),
            ReadFrom::AfterIfKept(position) => ReadFrom::AfterIfKept(translate(position)),
            ReadFrom::AfterDelivered(tail) => {
                ReadFrom::AfterDelivered(Tail { position: translate(tail.position), stamp: tail.stamp })
            }
            other => other,
        };
        history.read(from, limit, now)
    }

    /// Drops expired data, in at most `steps` steps. Returns whether more may be left.
    pub(super) fn expire(&mut self, now: Micros, steps: usize) -> bool {
        if now < self.next_expiry {
            return false;
        }
        let mut left = steps;
        while left > 0 {
            if self.by_age.first().is_some_and(|(look_at, _)| *look_at <= now) {
                left -= self.drop_aged_of_first(now, left).min(left);
            } else if self.by_idle.first().is_some_and(|(since, _)| since + RETAIN <= now) {
                self.drop_first_idle(now);
                left -= 1;
            } else {
                break;
            }
        }
        let look_at = self.by_age.first().map(|(look_at, _)| *look_at);
        let idle = self.by_idle.first().map(|(since, _)| since + RETAIN);
        self.next_expiry = look_at.into_iter().chain(idle).min().unwrap_or(Micros::MAX);
        left == 0
    }

    /// The channel's history, if the channel has messages and has not expired.
    fn living(&self, name: &ChannelName, now: Micros) -> Option<&ChannelHistory> {
        self.held.get(name).map(|channel| &channel.history).filter(|history| !history.has_expired(now))
    }

    /// The current time as an epoch: later than the epoch of every channel so far.
    fn time(&self, now: Micros) -> u64 {
        now.max(self.last_epoch + 1)
    }

    /// Whether a channel certainly had no messages between two times, provided that the table has
    /// no channel from that time.
    fn had_no_messages(&self, from: u64, to: u64) -> bool {
        from >= self.complete_since && to.checked_sub(from).is_some_and(|time| time < RETAIN)
    }

    /// Reads a channel without messages. It is at offset 0 of an epoch that is the time of the
    /// read. A client that resumes from such a position has missed nothing, if no channel of this
    /// name existed in the meantime.
    fn read_nothing(&self, from: ReadFrom, now: Micros) -> Page {
        let now = self.time(now);
        let mut position = Position::new(now, 0);
        let mut gap = None;
        if let ReadFrom::After(theirs)
        | ReadFrom::AfterIfKept(theirs)
        | ReadFrom::AfterDelivered(Tail { position: theirs, .. }) = from
        {
            if theirs.offset == 0 && self.had_no_messages(theirs.epoch, now) {
                position = theirs;
            } else {
                gap = Some(Gap { resumes_after: position, reason: GapReason::EpochChanged });
            }
        }
        let tail = Tail { position, stamp: 0 };
        Page { gap, messages: Vec::new(), through: tail, tail }
    }

    /// Checks whether a message may be stored, apart from the room for it. Returns how many bytes
    /// it needs.
    fn check(
        &self,
        history: &ChannelHistory,
        publication: &Publication,
        keyed: Option<Keyed>,
    ) -> Result<usize, BrokerError> {
        history.check(publication, keyed)?;
        let (log, lasting) = history.growth(publication);
        // Keys and ids cannot be shortened, so those of one channel must not displace all other
        // channels.
        let share = self.most_bytes / 2;
        if lasting > 0 && history.lasting_bytes() + lasting > share {
            return Err(BrokerError::Refused(format!(
                "the keys and Idempotency-Keys of this channel use {share} bytes, half of the limit of the \
                 embedded broker; use fewer, or Redis"
            )));
        }
        Ok(log + lasting)
    }

    fn open(&mut self, name: &ChannelName, history: ChannelHistory) {
        self.last_epoch = history.epoch();
        self.bytes += CHANNEL_BYTES + name.as_str().len();
        let idle_since = history.published();
        self.by_idle.insert((idle_since, name.clone()));
        self.next_expiry = self.next_expiry.min(idle_since + RETAIN);
        self.held.insert(name.clone(), Box::new(Channel { history, idle_since, look_at: None }));
    }

    fn add(&mut self, name: &ChannelName, publication: Publication, digest: u64, now: Micros) -> Message {
        let channel = self.held.get_mut(name).expect("it was found or opened before");
        let before = (channel.history.bytes(), channel.history.log_bytes());
        let message = channel.history.publish(publication, digest, now);
        self.bytes = self.bytes + channel.history.bytes() - before.0;
        self.log_bytes = self.log_bytes + channel.history.log_bytes() - before.1;
        let published = channel.history.published();
        if published >= channel.idle_since + IDLE_STEP {
            self.by_idle.remove(&(channel.idle_since, name.clone()));
            self.by_idle.insert((published, name.clone()));
            channel.idle_since = published;
        }
        let next = channel.history.next_expiry().map(|expiry| expiry + SLACK);
        if next.is_some_and(|next| channel.look_at.is_none_or(|look_at| next < look_at)) {
            self.schedule(name);
        }
        message
    }

    /// Updates the channel's entry in `by_age`.
    fn schedule(&mut self, name: &ChannelName) {
        let Some(channel) = self.held.get_mut(name) else { return };
        if let Some(look_at) = channel.look_at.take() {
            self.by_age.remove(&(look_at, name.clone()));
        }
        channel.look_at = channel.history.next_expiry().map(|expiry| expiry + SLACK);
        if let Some(look_at) = channel.look_at {
            self.next_expiry = self.next_expiry.min(look_at);
            self.by_age.insert((look_at, name.clone()));
        }
    }

    /// Drops expired data of the first channel in `by_age`. Returns the number of steps.
    fn drop_aged_of_first(&mut self, now: Micros, most: usize) -> usize {
        let Some((_, name)) = self.by_age.pop_first() else { return 1 };
        let Some(channel) = self.held.get_mut(&name) else { return 1 };
        channel.look_at = None;
        let before = (channel.history.bytes(), channel.history.log_bytes());
        let count = channel.history.drop_aged(now, most);
        self.bytes -= before.0 - channel.history.bytes();
        self.log_bytes -= before.1 - channel.history.log_bytes();
        self.schedule(&name);
        count + 1
    }

    /// Drops the first channel in `by_idle`. If it has received messages since it was inserted
    /// there, moves it to its current place instead.
    fn drop_first_idle(&mut self, now: Micros) {
        let Some((_, name)) = self.by_idle.pop_first() else { return };
        let Some(channel) = self.held.get_mut(&name) else { return };
        if channel.history.has_expired(now) {
            self.drop_channel(&name);
        } else {
            channel.idle_since = channel.history.published();
            self.by_idle.insert((channel.idle_since, name));
        }
    }

    fn drop_channel(&mut self, name: &ChannelName) {
        let Some(channel) = self.held.remove(name) else { return };
        self.by_idle.remove(&(channel.idle_since, name.clone()));
        if let Some(look_at) = channel.look_at {
            self.by_age.remove(&(look_at, name.clone()));
        }
        self.bytes -= CHANNEL_BYTES + name.as_str().len() + channel.history.bytes();
        self.log_bytes -= channel.history.log_bytes();
        self.complete_since = self.complete_since.max(channel.history.epoch() + 1);
    }

    /// Makes room for `needed` bytes of a channel's next message. Frees more than that at once, so
    /// that the next messages do not have to look through all channels again. First shortens the
    /// largest logs. If this does not free enough, drops the channels that have been idle for
    /// longest.
    fn make_room(&mut self, needed: usize, name: &ChannelName) -> Result<(), BrokerError> {
        let most = self.most_bytes;
        if self.bytes + needed <= most {
            return Ok(());
        }
        if needed <= most {
            let spare = (most / 8).min(self.log_bytes / 2);
            self.shorten_logs(most - needed.max(spare));
            if self.bytes + needed.max(most / 64) > most {
                self.drop_idle(most - needed.max(most / 8), name);
            }
        }
        if self.bytes + needed <= most {
            return Ok(());
        }
        Err(BrokerError::Refused(format!(
            "the embedded broker has reached its limit of {most} bytes of history; shorten the histories, or use Redis"
        )))
    }

    /// Shortens the largest logs to a common size, until all channels together use at most `bytes`.
    fn shorten_logs(&mut self, bytes: usize) {
        let others = self.bytes - self.log_bytes;
        let sizes = self.held.values().map(|channel| channel.history.log_bytes()).filter(|&size| size > 0);
        let height = fair_size(sizes.collect(), bytes.saturating_sub(others));
        for channel in self.held.values_mut() {
            let before = channel.history.log_bytes();
            if before > height {
                channel.history.shorten_to(height);
                self.bytes -= before - channel.history.log_bytes();
                self.log_bytes -= before - channel.history.log_bytes();
                // Messages are dropped as a whole, so this may free enough before every log was
                // shortened.
                if self.bytes <= bytes {
                    return;
                }
            }
        }
    }

    /// Drops the channels that have been idle for longest, except `but`, until all channels
    /// together use at most `bytes`.
    fn drop_idle(&mut self, bytes: usize, but: &ChannelName) {
        let mut kept = None;
        while self.bytes > bytes
            && let Some(first) = self.by_idle.pop_first()
        {
            if first.1 == *but {
                kept = Some(first);
            } else {
                self.drop_channel(&first.1);
            }
        }
        self.by_idle.extend(kept);
    }
}

#[cfg(test)]
mod tests;
