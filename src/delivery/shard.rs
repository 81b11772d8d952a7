//! The clients of one thread: their connections, their subscriptions, and the fan-out. Everything
//! here runs on one thread, so nothing is locked. The hub reports topics with new entries through a
//! wake list. `server.rs` runs one shard per thread.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use slab::Slab;

use super::attendants::Attendants;
use super::batch::EncodedBatch;
use super::connection::Connection;
use super::context::Context;
use super::encoding::Encoding;
use super::session::{Session, SubscriptionKey};
use super::subscription::{Attendance, NewSubscription};
use crate::app::App;
use crate::channel::ChannelName;
use crate::close::{Close, Code};
use crate::hub::presence::ChangeList;
use crate::hub::topic::Topic;
use crate::hub::wake_list::WakeList;
use crate::observability::metrics::latency::Moment;
use crate::observability::metrics::sample::Sample;
use crate::presence::Change;
use crate::transport::admission::Admitted;
use crate::transport::socket::Socket;

/// The number of offers after which the fan-out yields. Requests and pings are then answered while
/// the fan-out is busy, and messages published meanwhile share the next write.
const OFFERS_PER_YIELD: usize = 64;
const YIELDS: usize = 3;
/// How many joins and leaves are written to a client at once.
const CHANGES_AT_ONCE: usize = 16;
/// The interval of the check for silent connections. One check for all of them, instead of a timer
/// for each.
const SWEEP: Duration = Duration::from_secs(1);

/// The clients of a thread.
pub struct Shard {
    /// The index of the thread.
    pub index: usize,
    /// The state that its connections share.
    pub context: Rc<Context>,
    connections: RefCell<Slab<Rc<Connection>>>,
    topics: RefCell<HashMap<u64, LocalTopic>>,
    /// The clients on channels with presence.
    attendants: RefCell<Attendants>,
    /// The number of offers since the last yield.
    offers: Cell<usize>,
}

/// The subscribers of a topic on this thread.
struct LocalTopic {
    topic: Arc<Topic>,
    groups: Vec<Rc<EncodingGroup>>,
}

/// The subscribers of a topic with the same encoding, and up to where they have been served.
struct EncodingGroup {
    encoding: &'static Encoding,
    subscribers: RefCell<Slab<(Rc<Connection>, SubscriptionKey)>>,
    served: Cell<u64>,
}

impl Shard {
    /// Creates a shard without connections.
    pub fn new(index: usize, app: Arc<App>) -> Rc<Self> {
        Rc::new(Self {
            index,
            context: Context::new(app),
            connections: RefCell::default(),
            topics: RefCell::default(),
            attendants: RefCell::default(),
            offers: Cell::default(),
        })
    }

    /// Whether no connections exist. Connections that are closing count.
    pub fn is_empty(&self) -> bool {
        self.context.alive() == 0
    }

    /// Adds a client that may stay for `holds_for` seconds.
    pub(super) fn connect(
        &self,
        socket: Socket,
        session: Session,
        admitted: Admitted,
        holds_for: Option<u64>,
    ) -> Rc<Connection> {
        let mut connections = self.connections.borrow_mut();
        let entry = connections.vacant_entry();
        let connection = Connection::new(socket, session, &self.context, (admitted, entry.key()), holds_for);
        entry.insert(connection.clone());
        connection
    }

    /// Removes a client and all its subscriptions.
    pub(super) fn disconnect(&self, connection: &Connection) {
        self.connections.borrow_mut().remove(connection.key);
        let keys: Vec<_> = connection.session().subscriptions().map(|(key, _)| key).collect();
        keys.into_iter().for_each(|key| self.unsubscribe(connection, key));
    }

    /// Subscribes a connection to a channel, at any time of its life. Returns the key of the
    /// subscription and the newest offset of the channel.
    pub fn subscribe(&self, connection: &Rc<Connection>, mut new: NewSubscription) -> (SubscriptionKey, Option<u64>) {
        let attendance = new.attendance.take();
        let encoding = connection.session().encoding();
        let topic = new.membership.topic().clone();
        let made = connection.subscribe(new, |key, subscription| {
            let group = self.group(subscription.topic(), encoding);
            group.subscribers.borrow_mut().insert((connection.clone(), key))
        });
        if topic.is_refused() {
            // The topic was refused before this shard subscribed, so wake the shard now.
            self.context.app.hub.wake_list(self.index).push(topic.clone());
        }
        if let Some(Attendance { client, is_told }) = attendance {
            let place = self.context.app.hub.presence().enter(&topic.channel, client, is_told);
            self.attendants.borrow_mut().add(&topic.channel, connection, place, is_told);
        }
        made
    }

    /// Ends a subscription because the client says so: the others see it leave at once.
    pub fn leave(&self, connection: &Connection, key: SubscriptionKey) {
        let place = connection.session().subscription(key).and_then(|subscription| {
            let topic = subscription.topic();
            topic.rule.presence.then(|| self.attendants.borrow_mut().take(&topic.channel, connection))?
        });
        self.unsubscribe(connection, key);
        if let Some(place) = place {
            place.leave();
        }
    }

    /// Ends a subscription, at any time of the life of the connection.
    pub fn unsubscribe(&self, connection: &Connection, key: SubscriptionKey) {
        let Some(subscription) = connection.unsubscribe(key) else { return };
        if subscription.topic().rule.presence {
            // Its connection may come back, and does so often.
            drop(self.attendants.borrow_mut().take(&subscription.topic().channel, connection));
        }
        let encoding = connection.session().encoding();
        let mut topics = self.topics.borrow_mut();
        let Some(local) = topics.get_mut(&subscription.topic().id) else { return };
        local.groups.retain(|group| {
            if !group.encoding.is(encoding) {
                return true;
            }
            let mut subscribers = group.subscribers.borrow_mut();
            subscribers.remove(subscription.fan_out_key);
            !subscribers.is_empty()
        });
        if local.groups.is_empty() {
            local.topic.record_no_subscribers(self.index);
            topics.remove(&subscription.topic().id);
        }
    }

    fn group(&self, topic: &Arc<Topic>, encoding: &'static Encoding) -> Rc<EncodingGroup> {
        let mut topics = self.topics.borrow_mut();
        let local = topics.entry(topic.id).or_insert_with(|| {
            topic.record_served(self.index, None);
            LocalTopic { topic: topic.clone(), groups: Vec::new() }
        });
        if let Some(group) = local.groups.iter().find(|group| group.encoding.is(encoding)) {
            return group.clone();
        }
        let group =
            Rc::new(EncodingGroup { encoding, subscribers: RefCell::default(), served: Cell::new(topic.end()) });
        local.groups.push(group.clone());
        group
    }

    /// Delivers new entries as long as the thread runs.
    pub async fn fan_out(self: Rc<Self>, wake_list: Arc<WakeList>) {
        let mut topics = Vec::new();
        let mut batch = EncodedBatch::new(self.context.app.outgoing.clone());
        loop {
            wake_list.wait(&mut topics).await;
            for topic in topics.drain(..) {
                let since = topic.take_notification(self.index);
                self.serve(&topic, &mut batch, since).await;
            }
            batch.clear();
            self.context.scratch.borrow_mut().clear();
            self.let_others_run().await;
        }
    }

    /// Serves all subscribers of a topic up to the end of its log. `since`: arrival time of the
    /// oldest new message.
    async fn serve(&self, topic: &Arc<Topic>, batch: &mut EncodedBatch, since: Option<Moment>) {
        let groups = match self.topics.borrow().get(&topic.id) {
            Some(local) => local.groups.clone(),
            None => return,
        };
        if topic.is_refused() {
            let close = refused(topic);
            for group in &groups {
                group.subscribers.borrow().iter().for_each(|(_, (connection, _))| connection.finish(close.clone()));
            }
            return;
        }
        for group in &groups {
            while batch.fill(topic, group.served.get(), group.encoding) {
                self.deliver(group, batch).await;
                group.served.set(batch.resume_at());
            }
        }
        if let Some(since) = since {
            self.context.app.metrics.latency.delivery.observe(since);
        }
        // Include groups added during the awaits: the log must keep their unread entries.
        let topics = self.topics.borrow();
        let groups = topics.get(&topic.id).map_or(&[][..], |local| &local.groups);
        if let Some(served) = groups.iter().map(|group| group.served.get()).min() {
            topic.record_served(self.index, Some(served));
        }
    }

    /// Offers a batch to each subscriber of a group.
    async fn deliver(&self, group: &EncodingGroup, batch: &EncodedBatch) {
        let mut key = 0;
        // The slab may change at each yield. Indexes stay valid. A new subscriber may be offered the
        // batch or not: its cursor decides what it takes, and its own task writes the rest.
        loop {
            {
                let subscribers = group.subscribers.borrow();
                let slots = key..(key + OFFERS_PER_YIELD).min(subscribers.capacity());
                if slots.is_empty() {
                    break;
                }
                key = slots.end;
                let mut offers = 0;
                for (connection, subscription) in slots.filter_map(|key| subscribers.get(key)) {
                    connection.offer(*subscription, batch);
                    offers += 1;
                }
                self.offers.set(self.offers.get() + offers);
            }
            // Counted across channels: many small channels cost as much as one large one.
            if self.offers.get() >= OFFERS_PER_YIELD {
                self.let_others_run().await;
            }
        }
    }

    /// Tells clients who comes and goes, as long as the thread runs.
    pub async fn tell_presence(self: Rc<Self>, list: Arc<ChangeList>) {
        let mut waiting = VecDeque::new();
        loop {
            list.wait(&mut waiting).await;
            for (channel, changes) in waiting.drain(..) {
                let told = self.attendants.borrow().told(&channel);
                if told.is_empty() {
                    continue;
                }
                for part in changes.chunks(CHANGES_AT_ONCE) {
                    self.tell(&told, &channel, part).await;
                }
            }
        }
    }

    /// Writes changes once for each encoding, and adds them to the outboxes of clients. A client that
    /// does not read misses them.
    async fn tell(&self, told: &[Rc<Connection>], channel: &ChannelName, changes: &[Change]) {
        let mut written: Option<(&Encoding, Vec<u8>)> = None;
        for (index, connection) in told.iter().enumerate() {
            let encoding = connection.session().encoding();
            if written.as_ref().is_none_or(|(known, _)| !known.is(encoding)) {
                let mut bytes = Vec::new();
                changes.iter().for_each(|change| {
                    encoding.dialect.write_presence_change(channel, change, &mut encoding.writer(&mut bytes));
                });
                written = Some((encoding, bytes));
            }
            if connection.must_read_first() {
                self.context.app.metrics.presence.dropped.inc_by(changes.len() as u64);
            } else if let Some((_, bytes)) = &written {
                connection.queue_control(|out| out.extend_from_slice(bytes));
            }
            if (index + 1).is_multiple_of(OFFERS_PER_YIELD) {
                self.let_others_run().await;
            }
        }
        self.let_others_run().await;
    }

    /// Yields to the other tasks of the thread.
    async fn let_others_run(&self) {
        self.offers.set(0);
        self.context.flush_counts();
        // Yield several times: reading a request, sending it to Redis and passing on the answer are
        // separate polls.
        for _ in 0..YIELDS {
            tokio::task::yield_now().await;
        }
    }

    /// Checks for silent connections as long as the thread runs.
    pub async fn sweep(self: Rc<Self>) {
        let mut ticks = tokio::time::interval(SWEEP);
        loop {
            ticks.tick().await;
            self.context.advance_clock(SWEEP.as_secs() as u32);
            let mut sample = Sample::default();
            for (_, connection) in self.connections.borrow().iter() {
                connection.check();
                connection.count_in(&mut sample);
            }
            self.context.app.metrics.set_sample(self.index, sample);
            self.context.flush_counts();
        }
    }

    /// The keys of the current connections.
    pub fn keys(&self) -> Vec<usize> {
        self.connections.borrow().iter().map(|(key, _)| key).collect()
    }

    /// Closes a connection after writing its pending messages.
    pub fn close(&self, key: usize, close: &Close) {
        if let Some(connection) = self.connections.borrow().get(key) {
            connection.finish(close.clone());
        }
    }

    /// Closes all connections, each after writing its pending messages.
    pub fn close_all(&self, close: &Close) {
        for (_, connection) in self.connections.borrow().iter() {
            connection.finish(close.clone());
        }
    }
}

/// The close for subscribers of a channel that the broker refuses.
fn refused(topic: &Topic) -> Close {
    Close::new(Code::ChannelRefused, format!("the broker refuses the channel {}", topic.channel))
}
