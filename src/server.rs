//! The life of a serving instance: opens the port, starts the threads, accepts, and at the end drains. Neither reads the
//! environment nor listens to signals: whoever calls it decides when it is over.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use futures::FutureExt;
use socket2::{Domain, Socket, Type};
use tokio::net::TcpListener;
use tokio::runtime::Builder;
use tokio::sync::{mpsc, watch};
use tokio::task::{LocalSet, spawn_local};

use crate::app::App;
use crate::broker::memory::MemoryBroker;
use crate::broker::redis::{RedisBroker, UrlError};
use crate::broker::{Broker, Health};
use crate::close::{Close, Code};
use crate::config::Settings;
use crate::http::{edge, routes};
use crate::hub::Hub;
use crate::intake::Intake;
use crate::metrics::Metrics;
use crate::shard::Shard;

/// How many connections may wait to be accepted; the kernel caps it by `net.core.somaxconn`.
const BACKLOG: i32 = 4096;
/// After so long without an acknowledgement the kernel gives a peer up: one that vanished without a FIN is gone.
const PEER_TIMEOUT: Duration = Duration::from_secs(40);
/// How many accepted connections may wait for a thread.
const DOOR: usize = 1024;
/// How long the first connection is put off for a broker that does not answer yet.
const FIRST_BROKER_ATTEMPT: Duration = Duration::from_secs(2);
/// How long to wait when there are no descriptors left.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(50);

/// Why an instance could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The port can't be had.
    #[error("cannot listen on {address}: {source}; choose another with --listen")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The Redis URL can't be understood.
    #[error(transparent)]
    RedisUrl(#[from] UrlError),
    /// A thread can't be started.
    #[error("cannot start a thread: {0}")]
    Thread(#[source] io::Error),
}

/// A started instance.
pub struct Server {
    /// Where it listens; the port is known even where 0 was asked for.
    pub address: SocketAddr,
    /// What its parts share.
    pub app: Arc<App>,
    listener: TcpListener,
    doors: Vec<mpsc::Sender<(TcpStream, SocketAddr)>>,
    threads: Vec<thread::JoinHandle<()>>,
    draining: watch::Sender<bool>,
    drain: Duration,
}

impl Server {
    /// Opens the port and starts all parts, on a current-thread runtime that is to run them.
    pub fn start(settings: Settings) -> Result<Self, StartError> {
        raise_descriptor_limit();
        let listen_error = |source| StartError::Listen { address: settings.listen, source };
        let listener = listen(settings.listen).map_err(listen_error)?;
        let address = listener.local_addr().map_err(listen_error)?;

        let metrics = Arc::new(Metrics::new(settings.threads));
        let rules = Arc::new(settings.rules);
        let intake = Arc::new(Intake::default());
        let broker: Arc<dyn Broker> = match &settings.redis_url {
            None => Arc::new(MemoryBroker::new(intake.clone(), rules.clone())),
            Some(url) => {
                // People may give two instances one name; the canary must still tell them apart.
                let unique = format!("{}:{:016x}", settings.instance, rand::random::<u64>());
                let (intake, rules, metrics) = (intake.clone(), rules.clone(), metrics.clone());
                Arc::new(RedisBroker::start(url, &unique, intake, rules, metrics)?)
            }
        };
        let hub = Hub::new(broker, rules, settings.log, settings.threads, metrics.clone());
        tokio::spawn(hub.clone().run(intake));
        tokio::spawn(hub.clone().sweep());
        let app = App::new(settings.instance, settings.default_channel, settings.limits, hub, metrics);

        let (draining, _) = watch::channel(false);
        let mut doors = Vec::new();
        let mut threads = Vec::new();
        for index in 0..settings.threads {
            let (door, entrance) = mpsc::channel(DOOR);
            let (app, draining) = (app.clone(), draining.subscribe());
            let run = move || run_shard(index, app, entrance, draining);
            let name = format!("shard-{index}");
            threads.push(thread::Builder::new().name(name).spawn(run).map_err(StartError::Thread)?);
            doors.push(door);
        }
        Ok(Self { address, app, listener, doors, threads, draining, drain: settings.drain })
    }

    /// Accepts connections until `stop` resolves; then tells everybody, waits for them within the bound, and returns.
    pub async fn run_until(self, stop: impl Future<Output = ()>) {
        tokio::select! {
            () = self.accept() => {}
            () = stop => {}
        }
        self.app.start_draining();
        // Who had connected before we stopped listening gets an answer, too.
        while let Some(Ok(pending)) = self.listener.accept().now_or_never() {
            if let Ok(stream) = pending.0.into_std() {
                let _ = self.doors[0].try_send((stream, pending.1));
            }
        }
        let Self { listener, doors, threads, draining, drain, .. } = self;
        drop((listener, doors));
        let _ = draining.send(true);
        let joined = tokio::task::spawn_blocking(move || threads.into_iter().for_each(|thread| drop(thread.join())));
        // Each thread ends by itself when its last connection has; the bound is for those that do not.
        let _ = tokio::time::timeout(drain + Duration::from_secs(1), joined).await;
    }

    async fn accept(&self) {
        // A load balancer may send clients as soon as the port accepts them: better when they can be served.
        let broker = self.app.hub.broker();
        let up = async {
            while broker.health() != Health::Up {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let _ = tokio::time::timeout(FIRST_BROKER_ATTEMPT, up).await;
        // Round robin: each thread gets its share of the subscribers, and so of the work.
        for door in self.doors.iter().cycle() {
            let accepted = loop {
                match self.listener.accept().await {
                    Ok((stream, peer)) => break (stream, peer),
                    // Out of descriptors: those who are here stay, the others wait in the backlog.
                    Err(error) if matches!(error.raw_os_error(), Some(EMFILE | ENFILE)) => {
                        tracing::warn!(%error, "no descriptor for another connection; raise `ulimit -n`");
                        tokio::time::sleep(EXHAUSTED_PAUSE).await;
                    }
                    // The client was gone before it was accepted.
                    Err(error) => tracing::debug!(%error, "a connection was not accepted"),
                }
            };
            // Each thread has a poll of its own: the socket moves from this one's to that one's.
            let accepted = match accepted.0.into_std() {
                Ok(stream) => (stream, accepted.1),
                Err(error) => {
                    tracing::debug!(%error, "a connection broke before it was served");
                    continue;
                }
            };
            // A thread's end is the process's: there is nothing left to accept for.
            if door.send(accepted).await.is_err() {
                return;
            }
        }
    }
}

const EMFILE: i32 = 24;
const ENFILE: i32 = 23;

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), None)?;
    socket.set_reuse_address(true)?;
    // Accepted sockets inherit these two, which saves two system calls for each.
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_user_timeout(Some(PEER_TIMEOUT))?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

fn raise_descriptor_limit() {
    match rlimit::increase_nofile_limit(u64::MAX) {
        Ok(limit) => tracing::debug!(limit, "descriptors"),
        Err(error) => tracing::warn!(%error, "cannot raise the limit of descriptors"),
    }
}

/// One thread: serves the connections that come through the door until the instance drains and the last has gone.
fn run_shard(
    index: usize,
    app: Arc<App>,
    mut entrance: mpsc::Receiver<(TcpStream, SocketAddr)>,
    draining: watch::Receiver<bool>,
) {
    let runtime = match Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return tracing::error!(%error, "a thread could not start its runtime"),
    };
    let doorbell = app.hub.doorbell(index);
    let routes = routes::routes(app.clone());
    LocalSet::new().block_on(&runtime, async move {
        let shard = Shard::new(index, app);
        spawn_local(shard.clone().fan_out(doorbell));
        spawn_local(shard.clone().sweep());
        let mut requests = tokio::task::JoinSet::new();
        while let Some((stream, peer)) = entrance.recv().await {
            while requests.try_join_next().is_some() {}
            match tokio::net::TcpStream::from_std(stream) {
                Ok(stream) => {
                    let serve = edge::serve(stream, peer, routes.clone(), shard.clone(), draining.clone());
                    requests.spawn_local(serve);
                }
                Err(error) => tracing::debug!(%error, "a connection broke before it was served"),
            }
        }
        shard.close_all(&Close::new(Code::Restarting, "this instance is stopping; connect again after a moment"));
        while !requests.is_empty() || !shard.is_empty() {
            tokio::select! {
                _ = requests.join_next(), if !requests.is_empty() => {}
                () = tokio::time::sleep(Duration::from_millis(20)) => {}
            }
            shard.close_all(&Close::new(Code::Restarting, "this instance is stopping; connect again after a moment"));
        }
    });
}
