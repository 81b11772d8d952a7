//! Who is on the channels of this instance, for channels whose rule has `presence`. Tells the broker,
//! at a change and at regular intervals; hears from it who has come and gone on any instance; and
//! passes changes on to the shards. Knows neither the connections nor how the broker shares what it
//! is told.
//!
//! A client whose connection ends stays for a grace. Within it, a connection of the same user takes
//! its place, and nobody is told.

mod roster;
mod view;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout};

use self::roster::Roster;
use self::view::View;
use crate::broker::{Broker, BrokerError};
use crate::channel::ChannelName;
use crate::observability::metrics::Metrics;
use crate::presence::{Change, Client, News, Update, Updated};

/// How long a client that is away still counts as there.
const GRACE: Duration = Duration::from_secs(5);
/// Changes within this time are written together.
const WINDOW: Duration = Duration::from_millis(100);
/// The same for the end of a connection. Shorter, so that another instance knows of it when the
/// client arrives there.
const END_WINDOW: Duration = Duration::from_millis(20);
/// How often what the broker has is renewed. It holds for `broker::PRESENCE_HOLDS`.
const RENEW: Duration = Duration::from_secs(10);
/// When to try again while the broker is unavailable. After a refusal, it is tried as if to renew.
const RETRY: Duration = Duration::from_secs(1);
/// After a new subscription in the broker, other instances have this time to tell who is there,
/// before who is missing counts as gone.
const SETTLE: Duration = Duration::from_secs(2);
/// How many channels are written at once.
const CHANNELS_AT_ONCE: usize = 256;
/// What other instances do after the grace of this one, once more.
const SLACK: Duration = Duration::from_millis(200);
/// The time for telling the broker at the end of the process.
const LAST_WORD: Duration = Duration::from_secs(1);
/// How long a question waits until the broker has this instance's own changes.
const OWN_CHANGES: Duration = Duration::from_secs(1);
/// How many changes wait for a shard. More are dropped.
const MOST_WAITING: usize = 10_000;

/// The clients of all channels with presence.
pub struct Presence {
    state: Mutex<State>,
    changed: Notify,
    written: Notify,
    lists: Vec<Arc<ChangeList>>,
    metrics: Arc<Metrics>,
}

#[derive(Default)]
struct State {
    channels: HashMap<ChannelName, Roster>,
    /// When to write which channel.
    due: BTreeSet<(Instant, ChannelName)>,
    /// When which client counts as gone; the first comes first, as all have the same grace.
    graces: VecDeque<(Instant, ChannelName, u64)>,
    next_number: u64,
}

/// The changes that a shard has yet to tell.
#[derive(Default)]
pub struct ChangeList {
    changes: Mutex<VecDeque<(ChannelName, Arc<[Change]>)>>,
    arrived: Notify,
}

/// The place of a client on a channel. Dropping it means that the connection has ended.
pub struct Place {
    presence: Arc<Presence>,
    channel: ChannelName,
    number: u64,
    is_told: bool,
    /// Whether the client has said that it leaves.
    is_final: bool,
}

impl Place {
    /// The client has said that it leaves the channel: it is gone at once.
    pub fn leave(mut self) {
        self.is_final = true;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.presence.leave(&self.channel, self.number, self.is_told, self.is_final);
    }
}

impl ChangeList {
    /// Waits for changes, and takes them.
    pub async fn wait(&self, changes: &mut VecDeque<(ChannelName, Arc<[Change]>)>) {
        loop {
            std::mem::swap(&mut *lock(&self.changes), changes);
            if !changes.is_empty() {
                return;
            }
            self.arrived.notified().await;
        }
    }

    /// Adds changes; `false` if there is no room.
    fn push(&self, channel: &ChannelName, changes: &Arc<[Change]>) -> bool {
        let mut waiting = lock(&self.changes);
        if waiting.len() >= MOST_WAITING {
            return false;
        }
        waiting.push_back((channel.clone(), changes.clone()));
        self.arrived.notify_one();
        true
    }
}

impl Presence {
    /// Nobody anywhere. Changes go to this many shards.
    pub(super) fn new(shards: usize, metrics: Arc<Metrics>) -> Arc<Self> {
        let lists = (0..shards).map(|_| Arc::default()).collect();
        Arc::new(Self { state: Mutex::default(), changed: Notify::new(), written: Notify::new(), lists, metrics })
    }

    /// The changes for a shard.
    pub fn list(&self, shard: usize) -> Arc<ChangeList> {
        self.lists[shard].clone()
    }

    /// The number of channels on which this instance has clients.
    pub fn channels(&self) -> usize {
        lock(&self.state).channels.len()
    }

    /// Adds a client to a channel. `is_told`: whether its shard tells it of changes.
    pub fn enter(self: &Arc<Self>, channel: &ChannelName, client: Arc<Client>, is_told: bool) -> Place {
        let mut state = lock(&self.state);
        state.next_number += 1;
        let next = state.next_number;
        let roster = state.channels.entry(channel.clone()).or_default();
        let number = roster.enter(client, next);
        if is_told {
            roster.listeners += 1;
            if roster.view.is_none() {
                (roster.view, roster.looks) = (Some(View::new(next)), None);
            }
        }
        state.write_in(channel, WINDOW);
        self.changed.notify_one();
        Place { presence: self.clone(), channel: channel.clone(), number, is_told, is_final: false }
    }

    fn leave(&self, channel: &ChannelName, number: u64, was_told: bool, is_final: bool) {
        let mut state = lock(&self.state);
        let Some(roster) = state.channels.get_mut(channel) else { return };
        if was_told {
            roster.listeners -= 1;
            if roster.listeners == 0 {
                roster.view = None;
            }
        }
        if is_final {
            roster.remove(number);
        } else {
            let at = Instant::now() + GRACE;
            roster.leave(number, at);
            state.graces.push_back((at, channel.clone(), number));
        }
        state.write_in(channel, END_WINDOW);
        self.changed.notify_one();
    }

    /// Waits until the broker has what has changed on a channel of this instance, so that a client that has just
    /// subscribed sees itself.
    pub(super) async fn write_now(&self, channel: &ChannelName) {
        let is_written = async {
            let mut wanted = None;
            loop {
                let written = self.written.notified();
                {
                    let mut state = lock(&self.state);
                    let Some(roster) = state.channels.get(channel) else { return };
                    let wanted = *wanted.get_or_insert(roster.version);
                    if roster.stored.is_some_and(|stored| stored >= wanted) {
                        return;
                    }
                    state.write_in(channel, Duration::ZERO);
                }
                self.changed.notify_one();
                written.await;
            }
        };
        let _ = timeout(OWN_CHANGES, is_written).await;
    }

    /// The channel is subscribed in the broker anew, which may have lost what it was told.
    pub(super) fn on_subscribed(&self, channel: &ChannelName) {
        let mut state = lock(&self.state);
        let Some(roster) = state.channels.get_mut(channel) else { return };
        roster.settles = Some(Instant::now() + SETTLE);
        state.write_in(channel, WINDOW);
        self.changed.notify_one();
    }

    /// Takes news from the broker.
    pub(super) fn hear(&self, channel: &ChannelName, news: &News) {
        let mut state = lock(&self.state);
        let Some(roster) = state.channels.get_mut(channel) else { return };
        let Some(view) = &mut roster.view else { return };
        let changes = view.hear(news);
        if let Some(recheck) = news.recheck {
            let at = Instant::now() + recheck;
            roster.looks = roster.looks.map(|looks| looks.min(at));
            state.write_in(channel, recheck);
            self.changed.notify_one();
        }
        self.tell(channel, changes);
    }

    fn tell(&self, channel: &ChannelName, changes: Vec<Change>) {
        if changes.is_empty() {
            return;
        }
        let changes: Arc<[Change]> = changes.into();
        for list in &self.lists {
            if !list.push(channel, &changes) {
                self.metrics.presence.dropped.inc_by(changes.len() as u64);
            }
        }
    }

    /// Keeps the broker informed as long as the process runs.
    pub(super) async fn run(&self, broker: &dyn Broker) {
        loop {
            let due = lock(&self.state).next_due();
            let waiting = async {
                match due {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = waiting => self.write_due(broker, Instant::now(), None).await,
                () = self.changed.notified() => {}
            }
        }
    }

    /// Tells the broker about all who have left, when the instance stops: their graces go on without
    /// it.
    pub async fn finish(&self, broker: &dyn Broker) {
        {
            let mut state = lock(&self.state);
            let channels: Vec<_> = state.channels.keys().cloned().collect();
            channels.iter().for_each(|channel| state.write_in(channel, Duration::ZERO));
        }
        let all = async {
            while lock(&self.state).is_due(Instant::now()) {
                self.write_due(broker, Instant::now(), Some(GRACE + SLACK)).await;
            }
        };
        let _ = timeout(LAST_WORD, all).await;
    }

    /// Writes the channels that are due.
    async fn write_due(&self, broker: &dyn Broker, now: Instant, recheck: Option<Duration>) {
        let updates = lock(&self.state).take_due(now, recheck);
        let written: Vec<_> = updates.iter().map(|update| (update.channel.clone(), update.version)).collect();
        if written.is_empty() {
            return;
        }
        let results = broker.write_presence(updates).await;
        let now = Instant::now();
        for ((channel, version), result) in written.into_iter().zip(results) {
            let changes = match result {
                Ok(updated) => lock(&self.state).apply(&channel, version, &updated, now),
                Err(error) => {
                    self.metrics.presence.failed.inc();
                    tracing::debug!(%channel, %error, "cannot write who is on the channel");
                    lock(&self.state).fail(&channel, &error, now);
                    Vec::new()
                }
            };
            self.tell(&channel, changes);
        }
        self.written.notify_waiters();
    }
}

impl State {
    /// Writes a channel after some time at the latest, but not more often than every [`WINDOW`].
    fn write_in(&mut self, channel: &ChannelName, time: Duration) {
        let Some(roster) = self.channels.get_mut(channel) else { return };
        let soonest = roster.wrote.map(|at| at + WINDOW);
        let at = (Instant::now() + time).max(soonest.unwrap_or_else(Instant::now));
        if roster.due.is_none_or(|due| at < due) {
            self.write_at(channel, Some(at));
        }
    }

    fn write_at(&mut self, channel: &ChannelName, at: Option<Instant>) {
        let Some(roster) = self.channels.get_mut(channel) else { return };
        if let Some(before) = std::mem::replace(&mut roster.due, at) {
            self.due.remove(&(before, channel.clone()));
        }
        self.due.extend(at.map(|at| (at, channel.clone())));
    }

    /// When there is something to do.
    fn next_due(&self) -> Option<Instant> {
        let write = self.due.first().map(|(at, _)| *at);
        let grace = self.graces.front().map(|(at, ..)| *at);
        write.into_iter().chain(grace).min()
    }

    fn is_due(&self, now: Instant) -> bool {
        self.due.first().is_some_and(|(at, _)| *at <= now + WINDOW)
    }

    /// Ends the graces that are over, and takes what to write now.
    fn take_due(&mut self, now: Instant, recheck: Option<Duration>) -> Vec<Update> {
        while let Some((at, ..)) = self.graces.front()
            && *at <= now
            && let Some((at, channel, number)) = self.graces.pop_front()
        {
            let roster = self.channels.get_mut(&channel);
            if roster.is_some_and(|roster| roster.end_grace(number, at)) {
                self.write_in(&channel, Duration::ZERO);
            }
        }
        let mut updates = Vec::new();
        // At the end of the process, nothing else comes.
        let until = if recheck.is_some() { now + WINDOW } else { now };
        while updates.len() < CHANNELS_AT_ONCE
            && self.due.first().is_some_and(|(at, _)| *at <= until)
            && let Some((at, channel)) = self.due.pop_first()
        {
            let Some(roster) = self.channels.get_mut(&channel).filter(|roster| roster.due == Some(at)) else {
                continue;
            };
            roster.due = None;
            roster.wrote = Some(now);
            let record = (roster.stored != Some(roster.version)).then(|| roster.record(now));
            roster.settles.take_if(|at| *at <= now);
            let wants_all = roster.next_look(now).is_some_and(|at| at <= now);
            let version = roster.version;
            updates.push(Update { channel, version, record, wants_all, recheck });
        }
        updates
    }

    /// Takes over what the broker says. Returns the changes to tell.
    fn apply(&mut self, channel: &ChannelName, version: u64, updated: &Updated, now: Instant) -> Vec<Change> {
        let Some(roster) = self.channels.get_mut(channel) else { return Vec::new() };
        roster.stored = (!updated.is_outdated).then_some(version);
        updated.taken_over.iter().for_each(|(id, former)| roster.rename(id, former));
        if roster.is_empty() && roster.stored == Some(roster.version) {
            self.write_at(channel, None);
            self.channels.remove(channel);
            return Vec::new();
        }
        let mut changes = Vec::new();
        if updated.is_outdated {
            // The others notice within this time too that the broker has lost what it was told.
            roster.settles = Some(now + RENEW + SLACK);
        } else if let Some(all) = &updated.all
            && let Some(mut view) = roster.view.take()
        {
            let began = view.began;
            let seen = view.see(all, |id| roster.has_come_since(began, id));
            let again = if seen.is_some() { all.holds_for.map_or(RENEW, |time| time + SLACK) } else { WINDOW };
            roster.looks = Some(now + again.min(RENEW));
            roster.view = Some(view);
            changes = seen.unwrap_or_default();
        }
        let renew = if updated.is_outdated { now } else { now + RENEW };
        let next = roster.next_look(now).map_or(renew, |at| at.min(renew));
        let due = roster.due.map_or(next, |due| due.min(next));
        self.write_at(channel, Some(due));
        changes
    }

    fn fail(&mut self, channel: &ChannelName, error: &BrokerError, now: Instant) {
        let Some(roster) = self.channels.get_mut(channel) else { return };
        roster.stored = None;
        roster.settles = Some(now + RETRY + SETTLE);
        if roster.is_empty() {
            // What the broker has of this instance expires.
            self.write_at(channel, None);
            self.channels.remove(channel);
            return;
        }
        let retry = if matches!(error, BrokerError::Unavailable(_)) { RETRY } else { RENEW };
        self.write_at(channel, Some(now + retry));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every statement leaves the data consistent, so a poisoned lock is safe to use.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
