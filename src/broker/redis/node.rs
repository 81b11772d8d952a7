//! One Redis server, as its users see it: where it is, which role it must have, and whether our
//! functions are in it. Subscriptions, publishing, reading and the canary each open connections of
//! their own here, and none waits for another's. When one finds the server broken, or without the
//! functions, the connections of that generation are given up together.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use redis::{Cmd, FromRedisValue, Value};
use tokio::runtime::Handle;
use tokio::sync::Mutex;

use super::connection::{Connection, Role};
use super::endpoint::Endpoint;
use super::error::ClientError;
use super::library::{Function, LIFE, LIFE_KEY, Library, is_missing};
use super::shared::SharedConnection;
use crate::observability::metrics::Metrics;
use crate::observability::metrics::latency::Moment;
use crate::rules::Rules;

/// A server, and what is known about it.
pub(super) struct Node {
    endpoint: Endpoint,
    role: Role,
    library: Library,
    pub(super) metrics: Arc<Metrics>,
    /// For what is asked now and then: the canary, loading the functions.
    control: Mutex<Option<Connection>>,
    /// Counts how often all connections were given up; starts at 1.
    generation: AtomicU64,
    /// The generation for which the functions are known to be there.
    prepared: AtomicU64,
    /// Where connections live, whichever thread asks for one.
    runtime: Handle,
}

impl Node {
    /// A server that must have a role. To be called on the runtime that is to own the connections.
    pub(super) fn new(endpoint: Endpoint, role: Role, rules: &Rules, metrics: Arc<Metrics>) -> Self {
        Self {
            endpoint,
            role,
            library: Library::new(rules),
            metrics,
            control: Mutex::new(None),
            generation: AtomicU64::new(1),
            prepared: AtomicU64::new(0),
            runtime: Handle::current(),
        }
    }

    /// The server's functions.
    pub(super) fn library(&self) -> &Library {
        &self.library
    }

    /// Opens a connection of the caller's own.
    pub(super) async fn connect(&self) -> Result<Connection, ClientError> {
        let generation = self.generation();
        let mut connection = Connection::open(&self.endpoint, self.role).await?;
        connection.generation = generation;
        Ok(connection)
    }

    /// The same, with the functions in place.
    pub(super) async fn connect_prepared(&self) -> Result<Connection, ClientError> {
        self.prepare().await?;
        self.connect().await
    }

    /// Opens a connection on which many can ask at once, with the functions in place.
    pub(super) async fn connect_shared(&self) -> Result<SharedConnection, ClientError> {
        Ok(SharedConnection::new(self.connect_prepared().await?, &self.runtime))
    }

    /// Loads the functions, unless they are known to be there.
    pub(super) async fn prepare(&self) -> Result<(), ClientError> {
        let is_prepared = || self.prepared.load(Ordering::Acquire) == self.generation();
        if is_prepared() {
            return Ok(());
        }
        let mut slot = self.control.lock().await;
        if is_prepared() {
            return Ok(());
        }
        // Anything that fails, or is dropped, under way takes the connection along.
        *slot = None;
        let mut connection = self.connect().await?;
        self.library.load(&mut connection).await?;
        // Since when the data in this Redis has been whole. A Redis that is full refuses it, and then
        // those who were here before a channel's first message are told of a gap.
        if let Err(error) = connection.call::<Value>(&self.function(LIFE, LIFE_KEY)).await {
            tracing::debug!(%error, "cannot note in Redis since when its data is whole");
            if error.refusal().is_none() {
                return Err(error);
            }
        }
        self.prepared.store(connection.generation, Ordering::Release);
        *slot = Some(connection);
        Ok(())
    }

    /// Sends one small message, as the canary does.
    pub(super) async fn publish_plain(&self, channel: &str, payload: &str) -> Result<(), ClientError> {
        let mut command = redis::cmd("PUBLISH");
        command.arg(channel).arg(payload);
        self.call::<Value>(&command).await.map(drop)
    }

    /// Asks on the control connection.
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

    /// The beginning of a call of a function on a key.
    pub(super) fn function(&self, function: Function, key: &str) -> Cmd {
        let mut command = Cmd::new();
        command.arg(self.library.call(function, key));
        command
    }

    /// Tells connections of before all were given up from later ones.
    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Has all users let go of the connections of a generation, the current one or an earlier one: the
    /// next command of each opens another. What runs on one ends with an error of its own.
    pub(super) fn give_up(&self, generation: u64) {
        let _ = self.generation.compare_exchange(generation, generation + 1, Ordering::AcqRel, Ordering::Acquire);
    }

    /// Has the functions loaded again, before the next connection, if this refusal says that they are
    /// missing, as after a restart or a flush.
    pub(super) fn reload_if_missing(&self, refusal: &str, generation: u64) {
        if is_missing(refusal) {
            self.give_up(generation);
        }
    }
}
