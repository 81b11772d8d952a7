//! Asks Redis Sentinels for the address of a master, and notices when the master changes. The
//! address may change at any time; each new connection checks that the server really is a master.
//! See the Redis documentation, "Sentinel client spec".

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use redis::Cmd;
use tokio::time::{Instant, timeout};

use super::connection::{Connection, Role};
use super::endpoint::Endpoint;
use super::error::ClientError;
use super::resp::{Frame, Item};
use crate::observability::metrics::Metrics;

/// The time limit for one Sentinel, after which the next one is asked.
const SENTINEL_TIMEOUT: Duration = Duration::from_millis(500);
/// How often the watched Sentinel is queried, in case its announcement was lost.
const RECHECK: Duration = Duration::from_secs(2);
/// The delay before watching another Sentinel.
const NEXT_SENTINEL: Duration = Duration::from_millis(500);
/// The channel on which a Sentinel announces `NAME OLD_HOST OLD_PORT NEW_HOST NEW_PORT`.
const SWITCH: &str = "+switch-master";

/// The Sentinels of one master.
pub(super) struct Sentinels {
    sentinels: Vec<Endpoint>,
    /// The name of the master.
    name: String,
    /// The login and the TLS settings for the master; the Sentinels supply its address.
    template: Endpoint,
    /// The index of the Sentinel that answered last, which is asked first.
    preferred: AtomicUsize,
    master: Mutex<Master>,
    metrics: Arc<Metrics>,
}

#[derive(Default)]
struct Master {
    /// The master, unless it may have changed.
    current: Option<Endpoint>,
    /// The last known master, used while no Sentinel answers.
    last: Option<Endpoint>,
}

impl Sentinels {
    /// Creates a client of the Sentinels at some addresses. The login and the TLS settings of
    /// `template` are for the master.
    pub(super) fn new(sentinels: Vec<Endpoint>, name: String, template: Endpoint, metrics: Arc<Metrics>) -> Self {
        Self { sentinels, name, template, preferred: AtomicUsize::new(0), master: Mutex::default(), metrics }
    }

    /// The address of the master.
    ///
    /// # Errors
    /// [`ClientError::UnknownMaster`] if a Sentinel answers, but does not know the name.
    /// [`ClientError::NoSentinel`] if no Sentinel answers, and none has answered before.
    pub(super) async fn master(&self) -> Result<Endpoint, ClientError> {
        if let Some(master) = self.lock().current.clone() {
            return Ok(master);
        }
        let found = self.ask_in_turn().await;
        let mut master = self.lock();
        match found {
            Ok(found) => {
                if master.last.as_ref().is_some_and(|last| last.place() != found.place()) {
                    self.metrics.failovers.inc();
                    tracing::info!(master = found.place(), "following the Sentinels to another master");
                }
                *master = Master { current: Some(found.clone()), last: Some(found.clone()) };
                Ok(found)
            }
            // The master may work although all Sentinels are down.
            Err(error @ ClientError::NoSentinel(_)) => master.last.clone().ok_or(error),
            Err(error) => Err(error),
        }
    }

    /// Makes the next connection ask the Sentinels again.
    pub(super) fn forget(&self) {
        self.lock().current = None;
    }

    /// Resolves when a Sentinel names another master than the current one.
    pub(super) async fn switched(&self) {
        loop {
            let preferred = self.preferred.load(Ordering::Relaxed);
            match self.watch(&self.sentinels[preferred]).await {
                Ok(()) => return,
                Err(error) => tracing::debug!(%error, "cannot watch a Sentinel"),
            }
            let next = (preferred + 1) % self.sentinels.len();
            self.preferred.store(next, Ordering::Relaxed);
            tokio::time::sleep(NEXT_SENTINEL).await;
        }
    }

    /// The addresses of all Sentinels, for messages to people.
    pub(super) fn place(&self) -> String {
        let places: Vec<_> = self.sentinels.iter().map(Endpoint::place).collect();
        format!("the master {:?} of the Sentinels {}", self.name, places.join(", "))
    }

    async fn ask_in_turn(&self) -> Result<Endpoint, ClientError> {
        let (preferred, count) = (self.preferred.load(Ordering::Relaxed), self.sentinels.len());
        let mut failure = ClientError::NoSentinel("none is named".into());
        for index in (0..count).map(|turn| (preferred + turn) % count) {
            let asked = timeout(SENTINEL_TIMEOUT, self.ask(&self.sentinels[index])).await;
            match asked.unwrap_or_else(|_| Err(ClientError::timed_out())) {
                Ok(Some((host, port))) => {
                    self.preferred.store(index, Ordering::Relaxed);
                    let master = self.template.at(&host, port);
                    return master.map_err(|error| ClientError::NoSentinel(error.to_string()));
                }
                Ok(None) => failure = ClientError::UnknownMaster(self.name.clone()),
                // An unknown name is a better error than a Sentinel that does not answer.
                Err(_) if matches!(failure, ClientError::UnknownMaster(_)) => {}
                Err(error) => {
                    failure = ClientError::NoSentinel(format!("{}: {error}", self.sentinels[index].place()));
                }
            }
        }
        Err(failure)
    }

    async fn ask(&self, sentinel: &Endpoint) -> Result<Option<(String, u16)>, ClientError> {
        let mut connection = Connection::open(sentinel, Role::Any).await?;
        connection.call(Cmd::new().arg(&self.question())).await
    }

    /// The command that asks for the address of the master.
    fn question(&self) -> [&str; 3] {
        ["SENTINEL", "GET-MASTER-ADDR-BY-NAME", &self.name]
    }

    /// Watches one Sentinel until it names another master.
    async fn watch(&self, sentinel: &Endpoint) -> Result<(), ClientError> {
        let mut connection = Connection::open(sentinel, Role::Any).await?;
        connection.send(&["SUBSCRIBE", SWITCH]);
        let mut due = Instant::now();
        let (mut unanswered, mut switched) = (0, false);
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(due) => {
                    if unanswered > 1 {
                        return Err(ClientError::timed_out());
                    }
                    unanswered += 1;
                    connection.send(&self.question());
                    due = Instant::now() + RECHECK;
                }
                progress = connection.read_or_write() => progress?,
            }
            connection.frames(|frame| {
                match frame.accepted()? {
                    Frame::Message { channel, payload } if channel == SWITCH.as_bytes() => {
                        switched |= self.is_named(payload)
                    }
                    Frame::Array(mut address) => {
                        unanswered = 0;
                        if let (Some(Item::Text(host)), Some(Item::Text(port))) = (address.next(), address.next()) {
                            switched |= !self.is_current(host, port);
                        }
                    }
                    _ => {}
                }
                Ok(())
            })?;
            if switched {
                return Ok(());
            }
        }
    }

    /// Whether an announcement concerns this master.
    fn is_named(&self, announcement: &[u8]) -> bool {
        announcement.split(|&byte| byte == b' ').next() == Some(self.name.as_bytes())
    }

    fn is_current(&self, host: &[u8], port: &[u8]) -> bool {
        let text = |bytes| std::str::from_utf8(bytes).ok();
        let Some((host, port)) = text(host).zip(text(port).and_then(|port| port.parse().ok())) else { return true };
        self.lock().last.as_ref().is_none_or(|master| master.is_at(host, port))
    }

    fn lock(&self) -> MutexGuard<'_, Master> {
        // Every statement leaves the data consistent, so a poisoned lock is safe to use.
        self.master.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
