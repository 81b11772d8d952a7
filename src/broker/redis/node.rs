//! The client for one Redis server: its address, its required role, and whether the function
//! library is loaded. Subscriptions, publishing, reading and the canary each open connections of
//! their own here, so none waits for another. When one of them finds the server broken, or the
//! functions missing, all connections of that generation are closed.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex as SyncMutex, PoisonError};

use redis::{Cmd, FromRedisValue, Value};
use tokio::runtime::Handle;
use tokio::sync::Mutex;

use super::connection::{Connection, Role};
use super::error::ClientError;
use super::library::{Function, Keys, LIFE, LIFE_KEY, Library, is_missing};
use super::names::Names;
use super::shared::SharedConnection;
use super::target::Target;
use super::topology::tag_of;
use crate::channel::ChannelName;
use crate::observability::metrics::Metrics;
use crate::observability::metrics::latency::Moment;
use crate::rules::Rules;

/// A server and its state.
pub(super) struct Node {
    target: Target,
    role: Role,
    library: Library,
    pub(super) metrics: Arc<Metrics>,
    /// The connection for rare commands: the canary and loading the functions.
    control: Mutex<Option<Connection>>,
    /// How often all connections were given up; starts at 1.
    generation: AtomicU64,
    /// The generation in which the functions were loaded.
    prepared: AtomicU64,
    /// The runtime that owns the connections, regardless of the calling thread.
    runtime: Handle,
    lives: SyncMutex<Lives>,
}

/// On a Cluster: the slots whose life this instance has written in a generation.
#[derive(Default)]
struct Lives {
    generation: u64,
    slots: HashSet<usize>,
}

impl Node {
    /// Creates a client for a server with this role. Must be called on the runtime that is to own
    /// the connections.
    pub(super) fn new(target: Target, role: Role, names: Names, rules: &Rules, metrics: Arc<Metrics>) -> Self {
        Self {
            target,
            role,
            library: Library::new(rules, names),
            metrics,
            control: Mutex::new(None),
            generation: AtomicU64::new(1),
            prepared: AtomicU64::new(0),
            runtime: Handle::current(),
            lives: SyncMutex::default(),
        }
    }

    /// The functions in Redis.
    pub(super) fn library(&self) -> &Library {
        &self.library
    }

    /// Opens a new connection for the caller.
    pub(super) async fn connect(&self) -> Result<Connection, ClientError> {
        let generation = self.generation();
        let endpoint = self.target.endpoint().await?;
        // The master may have changed.
        let opened = Connection::open(&endpoint, self.role).await.inspect_err(|_| self.target.forget());
        endpoint.report_certificates(&self.metrics);
        let mut connection = opened?;
        connection.generation = generation;
        Ok(connection)
    }

    /// Loads the functions if necessary, and opens a connection.
    pub(super) async fn connect_prepared(&self) -> Result<Connection, ClientError> {
        self.prepare().await?;
        self.connect().await
    }

    /// Loads the functions if necessary, and opens a connection that several callers can share.
    pub(super) async fn connect_shared(&self) -> Result<SharedConnection, ClientError> {
        Ok(SharedConnection::new(self.connect_prepared().await?, &self.runtime))
    }

    /// Loads the functions, unless they are known to be loaded.
    pub(super) async fn prepare(&self) -> Result<(), ClientError> {
        let is_prepared = || self.prepared.load(Ordering::Acquire) == self.generation();
        if is_prepared() {
            return Ok(());
        }
        let mut slot = self.control.lock().await;
        if is_prepared() {
            return Ok(());
        }
        // If a step fails or is cancelled, this drops the connection.
        *slot = None;
        let mut connection = self.connect().await?;
        self.library.load(&mut connection).await?;
        // Records since when the data in Redis is complete. A full Redis refuses this; then,
        // clients that subscribed before a channel's first message get a gap notice.
        if !self.is_sharded()
            && let Err(error) = connection.call::<Value>(&self.life("")).await
        {
            tracing::debug!(%error, "cannot write livebridge:life to Redis");
            if error.refusal().is_none() {
                return Err(error);
            }
        }
        self.prepared.store(connection.generation, Ordering::Release);
        *slot = Some(connection);
        Ok(())
    }

    /// Publishes a small message; used for the canary.
    pub(super) async fn publish_plain(&self, channel: &str, payload: &str) -> Result<(), ClientError> {
        let mut command = redis::cmd(self.library.publish_command());
        command.arg(channel).arg(payload);
        self.call::<Value>(&command).await.map(drop)
    }

    /// Sends a command on the control connection.
    async fn call<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, ClientError> {
        self.prepare().await?;
        let mut slot = self.control.lock().await;
        let mut connection = match slot.take() {
            Some(connection) => connection,
            None => self.connect().await?,
        };
        let asked = Moment::now();
        let answer = connection.call(command).await;
        if answer.as_ref().is_err_and(|error| error.refusal().is_none()) {
            self.give_up(connection.generation);
        } else {
            self.metrics.latency.redis_round_trip.observe(asked);
            *slot = Some(connection);
        }
        answer
    }

    /// Starts the call of a function on a channel.
    pub(super) fn function(&self, function: Function, channel: &str) -> Cmd {
        let mut command = Cmd::new();
        command.arg(self.library.call(function, &self.library.keys(channel)));
        command
    }

    /// Starts the call of a function on who is on a channel.
    pub(super) fn presence_function(&self, function: Function, channel: &ChannelName) -> Cmd {
        let key = self.names().key(channel.as_str(), "presence");
        let mut command = Cmd::new();
        command.arg(self.library.call(function, &Keys::Name(key.into())));
        command
    }

    /// Starts the call of [`LIFE`] for a channel.
    pub(super) fn life(&self, channel: &str) -> Cmd {
        let key = self.life_key(channel);
        let mut command = Cmd::new();
        command.arg(self.library.call(LIFE, &Keys::Name(key.into())));
        command
    }

    /// The key that proves since when no data of a channel has been lost.
    pub(super) fn life_key(&self, channel: &str) -> String {
        if self.is_sharded() {
            format!("{LIFE_KEY}:{{{}}}", tag_of(self.names().slot(channel)))
        } else {
            LIFE_KEY.to_owned()
        }
    }

    /// Whether the key with the life of a channel's slot has yet to be written on this shard, which
    /// the caller must then do. On a standalone server, [`Self::prepare`] has written the only one.
    pub(super) fn lacks_life(&self, channel: &str) -> bool {
        if !self.is_sharded() {
            return false;
        }
        // Every statement leaves the set consistent, so a poisoned lock is safe to use.
        let mut lives = self.lives.lock().unwrap_or_else(PoisonError::into_inner);
        let generation = self.generation();
        if lives.generation != generation {
            *lives = Lives { generation, slots: HashSet::new() };
        }
        lives.slots.insert(self.names().slot(channel))
    }

    /// What things are called on this server.
    pub(super) fn names(&self) -> &Names {
        self.library.names()
    }

    /// Whether the server is a shard of a Cluster.
    pub(super) fn is_sharded(&self) -> bool {
        self.names().is_sharded()
    }

    /// The address for messages to people, without user and password.
    pub(super) fn place(&self) -> String {
        self.target.place()
    }

    /// The current generation. Connections of earlier generations have been given up.
    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Resolves when the Sentinels name another master.
    pub(super) async fn switched(&self) {
        self.target.switched().await;
    }

    /// Gives up all connections of a generation: their users open new ones for their next command.
    /// Commands in flight fail by themselves. Does nothing if the generation is already over.
    pub(super) fn give_up(&self, generation: u64) {
        self.target.forget();
        let _ = self.generation.compare_exchange(generation, generation + 1, Ordering::AcqRel, Ordering::Acquire);
    }

    /// If this error reply says that the functions are missing (after a restart or a flush), loads
    /// them again before the next connection.
    pub(super) fn reload_if_missing(&self, refusal: &str, generation: u64) {
        if is_missing(refusal) {
            self.give_up(generation);
        }
    }
}
