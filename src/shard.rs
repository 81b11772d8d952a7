//! One thread's share of the subscribers: who is there, and the fan-out. Everything in here runs on one thread, so nothing
//! is locked; what other threads have to say comes through the doorbell (new messages) and the door (new connections).

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use slab::Slab;

use crate::app::App;
use crate::batch::Batch;
use crate::close::Close;
use crate::dialect::Dialect;
use crate::hub::Doorbell;
use crate::metrics::latency::Moment;
use crate::metrics::sample::Sample;
use crate::topic::Topic;
use crate::transport::connection::Connection;

/// After so many offers the fan-out lets others on its thread run: requests and pings are answered while it is busy, and what is
/// published meanwhile shares the next write.
const TURN: usize = 64;
const STEPS: usize = 3;
/// How often the connections are looked through for those that are silent. One look for all, not a timer for each.
const SWEEP: Duration = Duration::from_secs(1);

/// What a thread's connections share.
pub struct Shard {
    /// Which thread.
    pub index: usize,
    /// What the whole instance shares.
    pub app: Arc<App>,
    connections: RefCell<Slab<Rc<Connection>>>,
    /// Connections that exist, those included that are not registered yet or are saying goodbye.
    pub(crate) alive: Cell<usize>,
    /// How many offers there were since others could run.
    offers: Cell<usize>,
    /// What was written to sockets and is not in the metrics yet: counted here, where it costs no atomic operation.
    pub(crate) written: Cell<Written>,
    topics: RefCell<HashMap<u64, LocalTopic>>,
    /// Where bytes are read into, and frames encoded into, by whoever has its turn.
    pub(crate) scratch: RefCell<Vec<u8>>,
    pub(crate) read_buffer: RefCell<Box<[u8]>>,
    /// Seconds since the thread began; advanced by the sweep, read by everybody.
    pub(crate) now: Cell<u32>,
}

/// Writes to sockets, and what was offered to subscribers.
#[derive(Clone, Copy, Default)]
pub(crate) struct Written {
    /// Messages, once for each subscriber.
    messages: u64,
    /// How many writes, each a system call.
    pub(crate) writes: u64,
    /// How many bytes the sockets took.
    pub(crate) bytes: u64,
}

/// A topic's subscribers on this thread.
struct LocalTopic {
    topic: Arc<Topic>,
    feeds: Vec<Rc<Feed>>,
}

/// The subscribers of a topic that share a dialect, and up to where they have been served.
struct Feed {
    dialect: &'static dyn Dialect,
    /// Each with the index of the channel within the subscriber.
    subscribers: RefCell<Slab<(Rc<Connection>, usize)>>,
    served: Cell<u64>,
}

/// Where a connection stands in the tables: what it takes to leave them.
pub struct Registration {
    connection: usize,
    feeds: Box<[(u64, Rc<Feed>, usize)]>,
}

impl Shard {
    /// A thread's share, without connections.
    pub fn new(index: usize, app: Arc<App>) -> Rc<Self> {
        Rc::new(Self {
            index,
            app,
            connections: RefCell::default(),
            alive: Cell::new(0),
            offers: Cell::default(),
            written: Cell::default(),
            topics: RefCell::default(),
            scratch: RefCell::default(),
            read_buffer: RefCell::new(vec![0; 64 << 10].into()),
            now: Cell::new(0),
        })
    }

    /// How many subscribers there are.
    pub fn len(&self) -> usize {
        self.connections.borrow().len()
    }

    /// How long a subscriber may take for a page of history, in seconds: as long as others for a response.
    pub fn page_time(&self) -> u32 {
        u32::try_from(2 * self.app.limits.request_time.as_secs()).unwrap_or(u32::MAX)
    }

    /// Whether there are none, not even one that is saying goodbye.
    pub fn is_empty(&self) -> bool {
        self.alive.get() == 0
    }

    /// Takes a connection into the fan-out.
    pub fn register(&self, connection: &Rc<Connection>) -> Registration {
        let session = connection.session.borrow();
        let feeds = session.topics().enumerate().map(|(slot, topic)| {
            let feed = self.feed(topic, session.dialect());
            let key = feed.subscribers.borrow_mut().insert((connection.clone(), slot));
            (topic.id, feed, key)
        });
        let feeds = feeds.collect();
        let connection = self.connections.borrow_mut().insert(connection.clone());
        Registration { connection, feeds }
    }

    /// Takes a connection out of the fan-out.
    pub fn unregister(&self, registration: &Registration) {
        self.connections.borrow_mut().remove(registration.connection);
        let mut topics = self.topics.borrow_mut();
        for (id, feed, key) in &registration.feeds {
            feed.subscribers.borrow_mut().remove(*key);
            if feed.subscribers.borrow().is_empty()
                && let Some(local) = topics.get_mut(id)
            {
                local.feeds.retain(|held| !Rc::ptr_eq(held, feed));
                if local.feeds.is_empty() {
                    local.topic.abandoned(self.index);
                    topics.remove(id);
                }
            }
        }
    }

    fn feed(&self, topic: &Arc<Topic>, dialect: &'static dyn Dialect) -> Rc<Feed> {
        let mut topics = self.topics.borrow_mut();
        let local = topics.entry(topic.id).or_insert_with(|| {
            topic.served(self.index, None);
            LocalTopic { topic: topic.clone(), feeds: Vec::new() }
        });
        if let Some(feed) = local.feeds.iter().find(|feed| feed.dialect.name() == dialect.name()) {
            return feed.clone();
        }
        let feed = Rc::new(Feed { dialect, subscribers: RefCell::default(), served: Cell::new(topic.end()) });
        local.feeds.push(feed.clone());
        feed
    }

    /// Delivers what is new, for as long as the thread lives.
    pub async fn fan_out(self: Rc<Self>, doorbell: Arc<Doorbell>) {
        let mut topics = Vec::new();
        let mut batch = Batch::default();
        loop {
            doorbell.wait(&mut topics).await;
            for topic in topics.drain(..) {
                let since = topic.unmark(self.index);
                self.serve(&topic, &mut batch, since).await;
            }
            batch.shrink();
            self.let_others_run().await;
        }
    }

    /// Brings all subscribers of a topic up to the end of its log. `since` is when the first message came that is new.
    async fn serve(&self, topic: &Arc<Topic>, batch: &mut Batch, since: Option<Moment>) {
        let feeds = match self.topics.borrow().get(&topic.id) {
            Some(local) => local.feeds.clone(),
            None => return,
        };
        for feed in &feeds {
            while batch.fill(topic, feed.served.get(), feed.dialect) {
                self.deliver(feed, batch).await;
                feed.served.set(batch.next());
            }
        }
        if let Some(since) = since {
            self.app.metrics.latency.delivery.observe(since);
        }
        // Those that came meanwhile count as well: the log must keep what any of them has yet to read.
        let topics = self.topics.borrow();
        let feeds = topics.get(&topic.id).map_or(&[][..], |local| &local.feeds);
        if let Some(served) = feeds.iter().map(|feed| feed.served.get()).min() {
            topic.served(self.index, Some(served));
        }
    }

    /// Offers a batch to each subscriber of a feed.
    async fn deliver(&self, feed: &Feed, batch: &Batch) {
        let mut key = 0;
        // Subscribers come and go while others run: keys stay, and whoever comes begins behind this batch.
        loop {
            {
                let subscribers = feed.subscribers.borrow();
                let turn = key..(key + TURN).min(subscribers.capacity());
                if turn.is_empty() {
                    break;
                }
                key = turn.end;
                let mut offers = 0;
                for (connection, slot) in turn.filter_map(|key| subscribers.get(key)) {
                    connection.offer(*slot, batch);
                    offers += 1;
                }
                let mut counted = self.written.get();
                counted.messages += (offers * batch.len()) as u64;
                self.written.set(counted);
                self.offers.set(self.offers.get() + offers);
            }
            // Over all channels: ten thousand of them with a subscriber each take as long as one with ten thousand.
            if self.offers.get() >= TURN {
                self.let_others_run().await;
            }
        }
    }

    /// Ends the turn of the fan-out.
    async fn let_others_run(&self) {
        self.offers.set(0);
        self.count_written();
        // What is ready, and what follows from that on this thread: a request is read, its message goes to Redis, an answer is handed on.
        for _ in 0..STEPS {
            tokio::task::yield_now().await;
        }
    }

    fn count_written(&self) {
        let Written { messages, writes, bytes } = self.written.take();
        self.app.metrics.messages_out.inc_by(messages);
        self.app.metrics.writes.inc_by(writes);
        self.app.metrics.bytes_out.inc_by(bytes);
    }

    /// Looks through the connections for those that are silent, for as long as the thread lives.
    pub async fn sweep(self: Rc<Self>) {
        let mut ticks = tokio::time::interval(SWEEP);
        loop {
            ticks.tick().await;
            self.now.set(self.now.get() + SWEEP.as_secs() as u32);
            let mut sample = Sample::default();
            for (_, connection) in self.connections.borrow().iter() {
                connection.look(self.now.get());
                connection.count_in(&mut sample);
            }
            self.app.metrics.set_sample(self.index, sample);
            self.count_written();
        }
    }

    /// The keys of the connections that there are now.
    pub fn keys(&self) -> Vec<usize> {
        self.connections.borrow().iter().map(|(key, _)| key).collect()
    }

    /// Closes one of the connections, after what its channels have for it now.
    pub fn close(&self, key: usize, close: &Close) {
        if let Some(connection) = self.connections.borrow().get(key) {
            connection.finish(close.clone());
        }
    }

    /// Closes all connections, each after what its channels have for it now.
    pub fn close_all(&self, close: &Close) {
        for (_, connection) in self.connections.borrow().iter() {
            connection.finish(close.clone());
        }
    }
}
