//! A serving instance: opens the port, starts the threads, accepts connections, and drains at the
//! end. It neither reads the environment nor handles signals: the caller decides when it stops.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use tokio::runtime::Builder;
use tokio::sync::mpsc;
use tokio::task::{JoinSet, LocalSet, spawn_local};

use crate::allocator;
use crate::app::App;
use crate::broker::memory::MemoryBroker;
use crate::broker::redis::{RedisBroker, RedisOptionsError};
use crate::broker::{Broker, Health};
use crate::config::Settings;
use crate::config::limits::Drain as DrainTimes;
use crate::delivery::drain::close_evenly;
use crate::delivery::shard::Shard;
use crate::drain::Drain;
use crate::http::{connection, routes};
use crate::hub::Hub;
use crate::hub::dispatch::Dispatcher;
use crate::observability::log_throttle::LogThrottle;
use crate::observability::metrics::Metrics;
use crate::transport::accept::{Acceptor, HandedOver, listen};
use crate::transport::admission::Admission;
use crate::transport::byte_budget::Budget;

/// Maximum number of accepted connections that wait for another thread.
const ACCEPTED_QUEUE: usize = 1024;
/// A thread accepts this many connections before it checks for new messages and requests again.
const ACCEPTED_AT_ONCE: usize = 16;
/// How long to wait for the first connection to the broker, at most.
const FIRST_BROKER_ATTEMPT: Duration = Duration::from_secs(2);

/// Why an instance cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The port cannot be opened.
    #[error("cannot listen on {address}: {source}; choose another with --listen")]
    Listen {
        /// The configured address.
        address: SocketAddr,
        /// The error of the operating system.
        source: io::Error,
    },
    /// The URL of Redis is not valid, or a file that it needs is not.
    #[error(transparent)]
    Redis(#[from] RedisOptionsError),
    /// A thread cannot be started.
    #[error("cannot start a thread: {0}")]
    Thread(#[source] io::Error),
}

/// A started instance.
pub struct Server {
    /// The address on which it listens. If the configured port is 0, this has the port that the
    /// system chose.
    pub address: SocketAddr,
    /// The state that all parts share.
    pub app: Arc<App>,
    threads: Vec<thread::JoinHandle<()>>,
    drain: DrainTimes,
}

/// The parameters of a thread.
struct Thread {
    index: usize,
    /// The thread's own listening socket, the queue of connections handed to it, and the queues of
    /// all threads.
    listener: TcpListener,
    handed_over: mpsc::Receiver<HandedOver>,
    senders: Vec<mpsc::Sender<HandedOver>>,
    app: Arc<App>,
    /// The number of threads.
    threads: usize,
    /// The time over which a drain spreads the closing of the subscribers.
    window: Duration,
}

impl Server {
    /// Opens the port and starts all parts of an instance. Must be called on a current-thread
    /// runtime.
    ///
    /// # Errors
    /// [`StartError`] if the port, the Redis URL or a thread cannot be used.
    pub fn start(settings: Settings) -> Result<Self, StartError> {
        let descriptors = raise_descriptor_limit();
        let listen_error = |source| StartError::Listen { address: settings.listen, source };
        let listeners = listen(settings.listen, settings.threads).map_err(listen_error)?;
        let address = listeners[0].local_addr().map_err(listen_error)?;

        let metrics = Arc::new(Metrics::new(settings.threads));
        let rules = settings.rules;
        let dispatcher = Arc::new(Dispatcher::new(settings.log_bytes_total, settings.threads, metrics.clone()));
        let broker: Arc<dyn Broker> = match &settings.redis {
            None => Arc::new(MemoryBroker::new(dispatcher.clone(), rules.clone())),
            Some(options) => {
                // Two instances may have the same configured name, but their canaries must differ.
                let unique = format!("{}:{:016x}", settings.instance, rand::random::<u64>());
                let (sink, rules, metrics) = (dispatcher.clone(), rules.clone(), metrics.clone());
                Arc::new(RedisBroker::start(options, &unique, sink, rules, metrics)?)
            }
        };
        let outgoing = Budget::new(settings.outgoing_bytes);
        let hub = Hub::new(dispatcher, broker.clone(), rules, settings.log, outgoing.clone());
        tokio::spawn(hub.clone().run());
        tokio::spawn(hub.clone().sweep());
        tokio::spawn(hub.clone().keep_presence());
        tokio::spawn(allocator::give_back());
        let admission = Admission::new(settings.admission, descriptors, settings.threads, metrics.clone());
        let incoming = Budget::new(settings.incoming_bytes);
        if let Some(jwks) = settings.access.remote_keys() {
            tokio::spawn(jwks.clone().keep_fresh());
        }
        let app = Arc::new(App {
            instance: settings.instance,
            default_channel: settings.default_channel,
            limits: settings.limits,
            broker,
            hub,
            metrics,
            admission,
            access: settings.access,
            incoming,
            outgoing,
            failures: LogThrottle::default(),
            drain: Drain::default(),
        });

        let ways = (0..settings.threads).map(|_| mpsc::channel(ACCEPTED_QUEUE));
        let (senders, receivers): (Vec<_>, Vec<_>) = ways.unzip();
        let mut threads = Vec::new();
        for (index, (listener, handed_over)) in listeners.into_iter().zip(receivers).enumerate() {
            // The rest of the time is for clients to answer the close frame.
            let window = settings.drain.time * 3 / 4;
            let (app, senders) = (app.clone(), senders.clone());
            let thread = Thread { index, listener, handed_over, senders, app, threads: settings.threads, window };
            let name = format!("shard-{index}");
            threads.push(thread::Builder::new().name(name).spawn(|| thread.run()).map_err(StartError::Thread)?);
        }
        Ok(Self { address, app, threads, drain: settings.drain })
    }

    /// Serves until `stop` resolves. Then closes all subscribers, waits for them up to the
    /// configured time, and returns.
    pub async fn run_until(self, stop: impl Future<Output = ()>) {
        stop.await;
        self.app.drain.start_leaving();
        // Without a configured notice, skip even the one tick that the timer would take.
        if !self.drain.notice.is_zero() {
            tokio::time::sleep(self.drain.notice).await;
        }
        self.app.drain.start_draining();
        self.app.broker.leave();
        tracing::info!("draining: new work is refused");
        let Self { threads, drain, app, .. } = self;
        let joined = tokio::task::spawn_blocking(move || threads.into_iter().for_each(|thread| drop(thread.join())));
        // A thread ends after its last connection. The timeout covers threads whose connections do
        // not end.
        let _ = tokio::time::timeout(drain.time + Duration::from_secs(1), joined).await;
        app.hub.presence().finish(&*app.broker).await;
    }
}

/// Waits for the broker for a limited time: a load balancer sends clients as soon as the port
/// accepts connections.
async fn first_broker_attempt(app: &App) {
    let broker = &app.broker;
    let up = async {
        while matches!(broker.health(), Health::Down(_)) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let _ = tokio::time::timeout(FIRST_BROKER_ATTEMPT, up).await;
}

/// Raises the soft limit on descriptors to the hard limit; returns the resulting limit.
fn raise_descriptor_limit() -> u64 {
    rlimit::increase_nofile_limit(u64::MAX).unwrap_or_else(|error| {
        tracing::warn!(%error, "cannot raise the limit of descriptors");
        rlimit::getrlimit(rlimit::Resource::NOFILE).map_or(u64::MAX, |(soft, _)| soft)
    })
}

impl Thread {
    /// Serves connections until the instance drains and the last connection ends.
    fn run(self) {
        let runtime = match Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => return tracing::error!(%error, "cannot start the runtime of a thread"),
        };
        LocalSet::new().block_on(&runtime, self.serve());
    }

    async fn serve(self) {
        let Self { index, listener, handed_over, senders, app, threads, window } = self;
        let acceptor = match Acceptor::new(index, listener, app.admission.clone(), senders) {
            Ok(acceptor) => acceptor,
            Err(error) => return tracing::error!(%error, "cannot use the listening socket of a thread"),
        };
        let shard = Shard::new(index, app.clone());
        spawn_local(shard.clone().sweep());
        spawn_local(shard.clone().tell_presence(app.hub.presence().list(index)));
        spawn_local(allocator::give_back());
        // In this order, after every round of the thread's tasks: a message never waits for the
        // requests of thousands of clients, nor a new connection for clients that catch up.
        tokio::select! {
            biased;
            () = shard.clone().fan_out(app.hub.wake_list(index)) => {}
            () = serve_connections(acceptor, handed_over, &shard, threads, window) => {}
            () = shard.context.pace.grant() => {}
        }
    }
}

/// Serves connections until the instance drains and the last connection ends.
async fn serve_connections(
    acceptor: Acceptor,
    mut handed_over: mpsc::Receiver<HandedOver>,
    shard: &Rc<Shard>,
    threads: usize,
    window: Duration,
) {
    let app = shard.context.app.clone();
    let routes = routes::routes(app.clone());
    let mut requests = JoinSet::new();
    let mut serve = |accepted| {
        while requests.try_join_next().is_some() {}
        requests.spawn_local(connection::serve(accepted, routes.clone(), shard.clone()));
    };
    let mut draining = pin!(app.drain.draining());
    tokio::select! {
        () = first_broker_attempt(&app) => {}
        () = &mut draining => {}
    }
    let mut accepted = 0_usize;
    // Possible events: the instance drains, a connection arrives, or another thread hands one over.
    loop {
        tokio::select! {
            biased;
            () = &mut draining => break,
            Some(connection) = handed_over.recv() => connection.take().into_iter().for_each(&mut serve),
            connection = acceptor.accept() => serve(connection),
        }
        accepted += 1;
        if accepted.is_multiple_of(ACCEPTED_AT_ONCE) {
            tokio::task::yield_now().await;
        }
    }
    acceptor.pending().for_each(&mut serve);
    drop(acceptor);
    // The other threads stop accepting too, so only a few more can follow.
    while let Some(connection) = handed_over.recv().await {
        connection.take().into_iter().for_each(&mut serve);
    }
    close_evenly(shard, window, threads).await;
    // A request that was under way may have become a subscription in the meantime.
    while requests.join_next().await.is_some() {
        close_evenly(shard, Duration::ZERO, threads).await;
    }
    close_evenly(shard, Duration::ZERO, threads).await;
}
