//! The task that owns the connection of a client: makes its subscriptions, writes bytes that the
//! fan-out could not write, reads the history, and reads from the client. `commands.rs` carries out
//! what the client sends.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::FutureExt;
use futures::future::{LocalBoxFuture, try_join_all};
use tokio::task::coop::consume_budget;
use tokio::task::spawn_local;
use tokio::time::{Instant, Sleep, sleep};
use tracing::{Instrument, Span};

use super::commands::identity::Visitor;
use super::commands::{Commands, Outcome};
use super::connection::Connection;
use super::encoding::Encoding;
use super::framing::websocket::{self, Decoder, Incoming, Opcode};
use super::framing::{Kind, Transport};
use super::rate_limiter::{Excess, RateLimiter, Received};
use super::session::{Session, SubscriptionKey, Waits, outgoing_full};
use super::shard::Shard;
use super::subscription::{Attendance, NewSubscription, Rights};
use crate::backoff::Backoff;
use crate::broker::{BrokerError, ReadFrom, RequestSize};
use crate::channel::ChannelName;
use crate::close::{Close, Code};
use crate::hub::held_page::{HeldPage, PageError};
use crate::hub::topic::{Start, Topic};
use crate::transport::admission::{AddressClaim, Admitted};
use crate::transport::lingering_close::lingering_close;
use crate::transport::socket::Socket;

/// The pause before the same read of the history is repeated.
const REPEAT_PAUSE: Duration = Duration::from_millis(20);
/// How long a client waits for room in the budget for its page.
const ROOM_TIMEOUT: Duration = Duration::from_secs(10);
/// The room for a command around the message that it publishes, in bytes.
const COMMAND_BYTES: usize = 4 << 10;
/// The time for a client to complete the close.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// The maximum number of bytes to read from a client after its close was sent.
const MOST_DRAINED: usize = 1 << 20;

/// The result of a subscription request, before its connection becomes a subscriber's.
pub struct Handshake {
    /// The HTTP response head, sent first.
    pub head: Vec<u8>,
    /// The encoding of all further bytes.
    pub encoding: &'static Encoding,
    /// The channels of the request.
    pub channels: Channels,
    /// How long the client may stay, in seconds; `None` for no limit.
    pub holds_for: Option<u64>,
    /// The claim for the address of the client, if it differs from the peer of the connection.
    pub claim: Option<AddressClaim>,
}

/// The state of the channels of a request.
pub enum Channels {
    /// All channels are joined.
    Joined(Vec<NewSubscription>),
    /// Joined when the broker is available. Such clients count against the connection limits.
    Awaited(Vec<AwaitedChannel>),
    /// The client names them by commands.
    Commanded(Box<Visitor>),
    /// The channels are refused: send this close.
    Refused(Close),
}

/// A channel to join, with the fields of [`NewSubscription`].
pub struct AwaitedChannel {
    /// The name of the channel.
    pub channel: ChannelName,
    /// Where to start.
    pub start: Start,
    /// The rights of the client in the channel.
    pub rights: Rights,
    /// As whom others see the client.
    pub attendance: Option<Attendance>,
}

/// The task of one connection.
struct ConnectionTask {
    connection: Rc<Connection>,
    shard: Rc<Shard>,
    /// `None` for event streams: pipelined requests are ignored.
    decoder: Option<Decoder>,
    limiter: RateLimiter,
    /// Set while the client must not be read.
    pause: Option<Pin<Box<Sleep>>>,
    /// The last read of the history.
    asked: Option<Box<(SubscriptionKey, ReadFrom)>>,
    /// The operation in progress: joining the channels, or a read of the history.
    awaited: Option<LocalBoxFuture<'static, TaskEvent>>,
    commands: Commands,
}

/// The answer of the history for a subscription.
type Answer = (SubscriptionKey, Arc<Topic>, Option<Arc<HeldPage>>);

/// The next event of the task.
enum TaskEvent {
    Readable,
    Pump,
    Resumed,
    Joined(Result<Vec<NewSubscription>, BrokerError>),
    Answered(Answer),
    NoRoomForPage,
    CarriedOut(Outcome),
}

/// Starts the task of a client under the span of the request. `early`: bytes after the request.
pub fn start(handshake: Handshake, socket: Socket, shard: Rc<Shard>, mut admitted: Admitted, early: &[u8]) {
    let Handshake { head, encoding, channels, holds_for, claim } = handshake;
    claim.into_iter().for_each(|claim| admitted.hold(claim));
    let session = Session::new(encoding, head, channels.count());
    let connection = shard.connect(socket, session, admitted, holds_for);
    let app = shard.context.app.clone();
    let is_websocket = encoding.transport() == Transport::WebSocket;
    let around_message = if encoding.dialect.awaits_connect() { COMMAND_BYTES } else { 0 };
    let mut task = ConnectionTask {
        decoder: is_websocket.then(|| Decoder::new(app.limits.message_bytes + around_message, encoding.inflates)),
        limiter: RateLimiter::new(app.limits.rates, app.incoming.clone(), shard.context.now()),
        connection,
        shard,
        pause: None,
        asked: None,
        awaited: None,
        commands: Commands::of_subscriber(),
    };
    match channels {
        Channels::Joined(subscriptions) => task.subscribe(subscriptions),
        Channels::Awaited(channels) => task.join(channels),
        Channels::Commanded(visitor) => task.commands = Commands::of_visitor(visitor),
        Channels::Refused(close) => task.connection.close(close),
    }
    if !early.is_empty() {
        task.receive(&mut early.to_vec());
    }
    // Not `run(self)`, whose future would hold the task twice.
    spawn(async move { task.run().await });
}

/// Starts a task in the current span. Without logging, it does not spend memory on the span.
fn spawn(task: impl Future<Output = ()> + 'static) {
    let span = Span::current();
    if span.is_disabled() {
        spawn_local(task);
    } else {
        spawn_local(task.instrument(span));
    }
}

impl Channels {
    fn count(&self) -> usize {
        match self {
            Self::Joined(subscriptions) => subscriptions.len(),
            Self::Awaited(channels) => channels.len(),
            // Most have one channel, and a list that grows has room for four.
            Self::Commanded(_) => 1,
            Self::Refused(_) => 0,
        }
    }
}

impl ConnectionTask {
    /// Subscribes to the channels of the handshake, and tells the client where it starts in each.
    fn subscribe(&self, subscriptions: Vec<NewSubscription>) {
        let made = subscriptions.into_iter().map(|new| {
            tracing::debug!(channel = %new.membership.topic().channel, "subscribed");
            self.shard.subscribe(&self.connection, new)
        });
        let made: Vec<_> = made.collect();
        let instance = &self.shard.context.app.instance;
        self.connection.change(|session| session.write_connected(instance, &made));
    }

    /// Joins the channels as soon as the broker is available. Tells the client that it waits. This
    /// also shows proxies that the stream has started.
    fn join(&mut self, channels: Vec<AwaitedChannel>) {
        self.connection.queue_notice(|encoding, out| encoding.dialect.write_waiting(out));
        let hub = self.shard.context.app.hub.clone();
        let size = RequestSize::of(channels.len());
        let joining = channels.into_iter().map(move |AwaitedChannel { channel, start, rights, attendance }| {
            let hub = hub.clone();
            async move {
                let membership = hub.join_when_available(&channel, size).await?;
                Ok(NewSubscription { membership, start, rights, page: None, attendance })
            }
        });
        self.awaited = Some(try_join_all(joining).map(TaskEvent::Joined).boxed_local());
    }

    async fn run(&mut self) {
        self.serve().await;
        // On the heap: every idle connection would carry its size.
        Box::pin(self.commands.finish(&self.shard, &self.connection)).await;
        self.shard.disconnect(&self.connection);
        let close = self.connection.session().ending().cloned();
        let code = close.as_ref().map_or(Code::Gone, |close| close.code);
        self.shard.context.app.metrics.count_close(code);
        tracing::debug!(reason = code.name(), "a subscriber has gone");
        // A client that sent a close sends nothing more that could reset the connection.
        let closed_itself = matches!(code, Code::Client(_));
        if close.is_some() && !closed_itself && !self.connection.is_dead() {
            // On the heap: every idle connection would carry its size.
            Box::pin(lingering_close(&self.connection.socket, CLOSE_TIMEOUT, MOST_DRAINED)).await;
        }
    }

    async fn serve(&mut self) {
        let mut waits = Waits::News;
        loop {
            if waits == Waits::Permit || self.connection.session().reads_page() {
                // On the heap: every idle connection would carry its size.
                Box::pin(self.shard.context.pace.acquire()).await;
            }
            waits = self.connection.write_due();
            match waits {
                Waits::End | Waits::Gone => return,
                Waits::Unsubscribe(key) => {
                    self.shard.unsubscribe(&self.connection, key);
                    continue;
                }
                Waits::History(key, from) if self.awaited.is_none() => self.awaited = self.ask(key, from),
                _ => {}
            }
            self.commands.start(&self.shard, &self.connection);
            let event = poll_fn(|context| self.poll(context, waits)).await;
            if self.connection.is_dead() {
                return;
            }
            match event {
                TaskEvent::Readable => {
                    if !self.read() {
                        return;
                    }
                }
                TaskEvent::Pump => {}
                TaskEvent::Resumed => {
                    let debt = self.limiter.debt(self.shard.context.app.limits.rates, self.shard.context.now());
                    self.pause_reading(debt);
                }
                TaskEvent::Joined(Ok(subscriptions)) => self.subscribe(subscriptions),
                TaskEvent::Joined(Err(error)) => {
                    self.connection.finish(Close::new(Code::ChannelRefused, error.to_string()))
                }
                TaskEvent::Answered((key, topic, page)) => {
                    self.connection.keepalive.got_page(self.shard.context.now());
                    self.connection.change(|session| session.set_page(key, &topic, page));
                }
                TaskEvent::NoRoomForPage => {
                    self.shard.context.app.metrics.count_refused("outgoing_bytes");
                    self.connection.finish(outgoing_full());
                }
                TaskEvent::CarriedOut(outcome) => {
                    // This shrinks the reservation, so it cannot fail.
                    let held = self.decoder.as_ref().map_or(0, Decoder::held) + self.commands.held();
                    let _ = self.limiter.hold(held);
                    self.commands.apply(outcome, &self.shard, &self.connection);
                    // Thousands of commands may be ready at once.
                    consume_budget().await;
                }
            }
        }
    }

    /// Waits for the first of these events, in this order:
    /// * the session changed, or the socket has room again and the session waits for that;
    /// * the channels are joined, or the history has answered;
    /// * an operation of the client is done, or the pause of reading is over;
    /// * the client sent bytes, unless an operation or a pause is pending or the outbox is full;
    /// * without any of these, a session that has more to write continues.
    fn poll(&mut self, context: &mut Context<'_>, waits: Waits) -> Poll<TaskEvent> {
        match self.poll_event(context, waits) {
            Poll::Pending if waits == Waits::Permit => Poll::Ready(TaskEvent::Pump),
            event => event,
        }
    }

    fn poll_event(&mut self, context: &mut Context<'_>, waits: Waits) -> Poll<TaskEvent> {
        if self.connection.poll_woken(context) {
            return Poll::Ready(TaskEvent::Pump);
        }
        if waits == Waits::Room && self.connection.socket.poll_write_ready(context).is_ready() {
            // It reads. With a full outbox, it is neither pinged nor read itself.
            self.connection.keepalive.heard(self.shard.context.now());
            return Poll::Ready(TaskEvent::Pump);
        }
        if let Some(awaited) = &mut self.awaited
            && let Poll::Ready(event) = awaited.poll_unpin(context)
        {
            self.awaited = None;
            return Poll::Ready(event);
        }
        if let Poll::Ready(outcome) = self.commands.poll_expired(context) {
            return Poll::Ready(TaskEvent::CarriedOut(outcome));
        }
        let must_wait = self.commands.is_running() || self.pause.is_some();
        self.connection.keepalive.set_read(!must_wait);
        if self.commands.is_running() {
            return self.commands.poll(context).map(TaskEvent::CarriedOut);
        }
        if let Some(pause) = &mut self.pause {
            return pause.poll_unpin(context).map(|()| {
                self.pause = None;
                TaskEvent::Resumed
            });
        }
        if self.connection.must_read_first() {
            return Poll::Pending;
        }
        self.connection.socket.poll_read_ready(context).map(|_| TaskEvent::Readable)
    }

    /// Reads once. Returns `false` if the client is gone.
    fn read(&mut self) -> bool {
        let context = self.shard.context.clone();
        let mut buffer = context.read_buffer.borrow_mut();
        match self.connection.socket.try_read(&mut buffer) {
            Ok(0) => false,
            Ok(length) => {
                self.connection.keepalive.heard(context.now());
                self.receive(&mut buffer[..length]);
                true
            }
            Err(error) => error.kind() == io::ErrorKind::WouldBlock,
        }
    }

    /// Decodes bytes from the client.
    fn receive(&mut self, chunk: &mut [u8]) {
        let Some(decoder) = &mut self.decoder else { return };
        if self.connection.session().ending().is_some() {
            return;
        }
        let bytes = chunk.len();
        let dialect = self.connection.session().encoding().dialect;
        let (connection, commands) = (&self.connection, &mut self.commands);
        let mut closed = None;
        let decoded = decoder.decode(chunk, |incoming| match incoming {
            Incoming::Message { text, bytes } => {
                let kind = if text { Kind::Text } else { Kind::Binary };
                let read = dialect.commands(kind, bytes.into(), &mut |command| commands.push(command));
                closed = closed.take().or(read.err());
            }
            Incoming::Ping(payload) => connection.queue_control(|out| websocket::write(Opcode::Pong, &payload, out)),
            Incoming::Pong => {}
            Incoming::Close(code) => closed = closed.take().or(Some(Close::answer(code))),
        });
        // Several commands in a frame count as several frames.
        let frames = decoder.take_frames().max(commands.waiting());
        let received = Received { frames, bytes, held: decoder.held() + commands.held() };
        if let Err(close) = decoded.and(closed.map_or(Ok(()), Err)).and_then(|()| self.count(&received)) {
            self.connection.close(close);
        }
    }

    /// Counts received bytes and frames against the limits.
    fn count(&mut self, received: &Received) -> Result<(), Close> {
        let context = &self.shard.context;
        let app = &context.app;
        let debt = self.limiter.count(app.limits.rates, context.now(), received).map_err(|excess| {
            if excess == Excess::IncomingBytes {
                app.metrics.count_refused("incoming_bytes");
            }
            excess.close()
        })?;
        if !debt.is_zero() && self.pause.is_none() {
            app.metrics.throttled.inc();
        }
        self.pause_reading(debt);
        Ok(())
    }

    fn pause_reading(&mut self, time: Duration) {
        self.pause = (!time.is_zero()).then(|| Box::pin(sleep(time)));
    }

    fn ask(&mut self, key: SubscriptionKey, from: ReadFrom) -> Option<LocalBoxFuture<'static, TaskEvent>> {
        let topic = self.connection.session().subscription(key)?.topic().clone();
        let (app, client) = (self.shard.context.app.clone(), self.connection.address());
        // Repeated read: the log lacks messages that the history has. Wait briefly.
        let repeated = self.asked.as_deref() == Some(&(key, from));
        self.asked = Some(Box::new((key, from)));
        let answer = async move {
            if repeated {
                sleep(REPEAT_PAUSE).await;
            }
            let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));
            let began = Instant::now();
            // Its socket is read meanwhile, so this loop ends when the client leaves.
            loop {
                match app.hub.history(&topic, from, client).await {
                    Ok(page) => return TaskEvent::Answered((key, topic, page)),
                    Err(PageError::OutgoingFull) if began.elapsed() > ROOM_TIMEOUT => return TaskEvent::NoRoomForPage,
                    Err(error) => tracing::debug!(%error, "the history did not answer"),
                }
                sleep(backoff.next_delay()).await;
            }
        };
        Some(answer.boxed_local())
    }
}
