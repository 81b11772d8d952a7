//! The task that owns a client's connection: it begins with a handshake's subscriptions, writes what the fan-out could
//! not, asks the history, reads what the client says, and publishes it.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::FutureExt;
use futures::future::{LocalBoxFuture, try_join_all};
use tokio::task::spawn_local;
use tokio::time::{Instant, Sleep, sleep};
use tracing::{Instrument, Span};

use super::connection::Connection;
use super::dialect::{Command, CommandId};
use super::encoding::Encoding;
use super::framing::Transport;
use super::framing::websocket::{self, Decoder, Incoming, Opcode};
use super::rate_limiter::{Excess, RateLimiter, Received};
use super::session::{Session, SubscriptionKey, Waits, outgoing_full};
use super::shard::Shard;
use super::subscription::{NewSubscription, Rights, Subscription};
use crate::backoff::Backoff;
use crate::broker::{BrokerError, Publication, ReadFrom, RequestSize};
use crate::channel::ChannelName;
use crate::close::{Close, Code};
use crate::hub::held_page::{HeldPage, PageError};
use crate::hub::topic::{Start, Topic};
use crate::transport::admission::{AddressClaim, Admitted};
use crate::transport::lingering_close::lingering_close;
use crate::transport::socket::Socket;

/// How long to wait before the history is asked the same again.
const REPEAT_PAUSE: Duration = Duration::from_millis(20);
/// How long a client waits for others to take their pages, if there is no room for its own.
const ROOM_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the client has for its part of a close.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// How many bytes a client may still send after it was told that it is closed.
const MOST_DRAINED: usize = 1 << 20;

/// What a request agreed on with a client before its connection became a subscriber's.
pub struct Handshake {
    /// What the client is sent first: the response's head.
    pub head: Vec<u8>,
    /// What all further bytes look like.
    pub encoding: &'static Encoding,
    /// The channels.
    pub channels: Channels,
    /// For how many seconds the client may stay; `None` for as long as it likes.
    pub holds_for: Option<u64>,
    /// The address that the client is counted for, where that is not the other end of its connection.
    pub claim: Option<AddressClaim>,
}

/// How far a client's channels were joined.
pub enum Channels {
    /// They are.
    Joined(Vec<NewSubscription>),
    /// They will be when the broker is available. Such a client is bounded as every other one is, by the limits on
    /// connections: it holds what it would hold as a subscriber, and sleeps until its channels are there.
    Awaited(Vec<AwaitedChannel>),
    /// They won't be: the client is told why, and closed.
    Refused(Close),
}

/// A channel that is to be joined, and what [`NewSubscription`] says of it.
pub struct AwaitedChannel {
    /// Which channel.
    pub channel: ChannelName,
    /// Where to begin.
    pub start: Start,
    /// What the client may do there.
    pub rights: Rights,
}

/// The task of one connection.
struct ConnectionTask {
    connection: Rc<Connection>,
    shard: Rc<Shard>,
    /// Of a WebSocket. An event stream's client says nothing: requests behind one that never ends are not answered.
    decoder: Option<Decoder>,
    limiter: RateLimiter,
    /// While the client must not be read.
    pause: Option<Pin<Box<Sleep>>>,
    /// What the history was asked last.
    asked: Option<Box<(SubscriptionKey, ReadFrom)>>,
    /// What must come before the client can go on: its channels are being joined, or the history was asked.
    awaited: Option<LocalBoxFuture<'static, Event>>,
    publishing: Option<LocalBoxFuture<'static, Vec<Published>>>,
    /// What the client asked for and is not begun yet.
    commands: VecDeque<Command>,
}

/// What the history answered, and to which subscription.
type Answer = (SubscriptionKey, Arc<Topic>, Option<Arc<HeldPage>>);

/// What became of a client's message.
type Published = (Option<CommandId>, Result<(), BrokerError>);

/// What the task does next.
enum Event {
    Readable,
    Pump,
    Resumed,
    Joined(Result<Vec<NewSubscription>, BrokerError>),
    Answered(Answer),
    NoRoomForPage,
    Published(Vec<Published>),
}

/// Begins a client's life. `early` is what it sent behind its request. The task names in the log what the request's span
/// does.
pub fn start(handshake: Handshake, socket: Socket, shard: Rc<Shard>, mut admitted: Admitted, early: &[u8]) {
    let Handshake { head, encoding, channels, holds_for, claim } = handshake;
    claim.into_iter().for_each(|claim| admitted.hold(claim));
    let session = Session::new(encoding, head, channels.count());
    let connection = shard.connect(socket, session, admitted, holds_for);
    let app = shard.context.app.clone();
    let is_websocket = encoding.transport() == Transport::WebSocket;
    let mut task = ConnectionTask {
        decoder: is_websocket.then(|| Decoder::new(app.limits.message_bytes)),
        limiter: RateLimiter::new(app.limits.rates, app.incoming.clone(), shard.context.now()),
        connection,
        shard,
        pause: None,
        asked: None,
        awaited: None,
        publishing: None,
        commands: VecDeque::new(),
    };
    match channels {
        Channels::Joined(subscriptions) => task.subscribe(subscriptions),
        Channels::Awaited(channels) => task.join(channels),
        Channels::Refused(close) => task.connection.close(close),
    }
    if !early.is_empty() {
        task.receive(&mut early.to_vec());
        task.publish();
    }
    // Not `run(self)`, whose future would hold the task twice.
    spawn(async move { task.run().await });
}

/// Starts a task that says in the log what it is about; where nothing of it is logged, without the memory for that.
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
            Self::Refused(_) => 0,
        }
    }
}

impl ConnectionTask {
    /// Subscribes to the channels of the handshake, and tells the client where it starts in them.
    fn subscribe(&self, subscriptions: Vec<NewSubscription>) {
        let made = subscriptions.into_iter().map(|new| {
            tracing::debug!(channel = %new.membership.topic().channel, "subscribed");
            self.shard.subscribe(&self.connection, new)
        });
        let made: Vec<_> = made.collect();
        let instance = &self.shard.context.app.instance;
        self.connection.change(|session| session.write_connected(instance, &made));
    }

    /// Joins the channels as soon as the broker is available. The client is told that it waits: to what is on the way
    /// the stream has begun, and heartbeats keep it.
    fn join(&mut self, channels: Vec<AwaitedChannel>) {
        self.connection.notify(|encoding, out| encoding.dialect.write_waiting(out));
        let hub = self.shard.context.app.hub.clone();
        let size = RequestSize::of(channels.len());
        let joining = channels.into_iter().map(move |AwaitedChannel { channel, start, rights }| {
            let hub = hub.clone();
            async move {
                let membership = hub.join_when_available(&channel, size).await?;
                Ok(NewSubscription { membership, start, rights })
            }
        });
        self.awaited = Some(try_join_all(joining).map(Event::Joined).boxed_local());
    }

    async fn run(&mut self) {
        self.exchange().await;
        // What the client said before it left counts.
        while let Some(publishing) = self.publishing.take() {
            let _ = publishing.await;
            self.publish();
        }
        self.shard.disconnect(&self.connection);
        let close = self.connection.session().ending().cloned();
        let code = close.as_ref().map_or(Code::Gone, |close| close.code);
        self.shard.context.app.metrics.count_close(code);
        tracing::debug!(reason = code.name(), "a subscriber has gone");
        // A client that closed has said its last: nothing that it still sends could reset the connection.
        let closed_itself = matches!(code, Code::Client(_));
        if close.is_some() && !closed_itself && !self.connection.is_dead() {
            // On the heap: every idle connection would carry its size.
            Box::pin(lingering_close(&self.connection.socket, CLOSE_TIMEOUT, MOST_DRAINED)).await;
        }
    }

    async fn exchange(&mut self) {
        let mut waits = Waits::News;
        loop {
            if waits == Waits::Turn || self.connection.session().reads_page() {
                // On the heap: every idle connection would carry its size.
                Box::pin(self.shard.context.pace.turn()).await;
            }
            waits = self.connection.take_turn();
            match waits {
                Waits::End | Waits::Gone => return,
                Waits::History(key, from) if self.awaited.is_none() => self.awaited = self.ask(key, from),
                _ => {}
            }
            let event = poll_fn(|context| self.poll(context, waits)).await;
            if self.connection.is_dead() {
                return;
            }
            match event {
                Event::Readable => {
                    if !self.read() {
                        return;
                    }
                }
                Event::Pump => {}
                Event::Resumed => {
                    // A client that we do not listen to is not silent.
                    self.connection.keepalive.heard(self.shard.context.now());
                    let debt = self.limiter.debt(self.shard.context.app.limits.rates, self.shard.context.now());
                    self.pause_reading(debt);
                }
                Event::Joined(Ok(subscriptions)) => self.subscribe(subscriptions),
                Event::Joined(Err(error)) => {
                    self.connection.finish(Close::new(Code::ChannelRefused, error.to_string()))
                }
                Event::Answered((key, topic, page)) => {
                    self.connection.keepalive.got_page(self.shard.context.now());
                    self.connection.change(|session| session.answered(key, &topic, page));
                }
                Event::NoRoomForPage => {
                    self.shard.context.app.metrics.count_refused("outgoing_bytes");
                    self.connection.finish(outgoing_full());
                }
                Event::Published(results) => {
                    // Less than before, so there is room for it.
                    let _ = self.limiter.hold(self.decoder.as_ref().map_or(0, Decoder::held));
                    self.report(results);
                }
            }
            self.publish();
        }
    }

    /// What can happen: the session changed; the socket has room again, if that is waited for; the
    /// channels are joined; the history has answered, or the broker; the client may be read again; it
    /// said something, if nothing of what it said before waits to be published or answered. If nothing
    /// of this happens, the session may have more to write.
    fn poll(&mut self, context: &mut Context<'_>, waits: Waits) -> Poll<Event> {
        match self.poll_event(context, waits) {
            Poll::Pending if waits == Waits::Turn => Poll::Ready(Event::Pump),
            event => event,
        }
    }

    fn poll_event(&mut self, context: &mut Context<'_>, waits: Waits) -> Poll<Event> {
        if self.connection.poll_woken(context) {
            return Poll::Ready(Event::Pump);
        }
        if waits == Waits::Room && self.connection.socket.poll_write_ready(context).is_ready() {
            return Poll::Ready(Event::Pump);
        }
        if let Some(awaited) = &mut self.awaited
            && let Poll::Ready(event) = awaited.poll_unpin(context)
        {
            self.awaited = None;
            return Poll::Ready(event);
        }
        if let Some(publishing) = &mut self.publishing {
            return publishing.poll_unpin(context).map(|results| {
                self.publishing = None;
                Event::Published(results)
            });
        }
        if let Some(pause) = &mut self.pause {
            return pause.poll_unpin(context).map(|()| {
                self.pause = None;
                Event::Resumed
            });
        }
        if self.connection.must_read_first() {
            return Poll::Pending;
        }
        self.connection.socket.poll_read_ready(context).map(|_| Event::Readable)
    }

    /// Reads once. `false` if the client is gone.
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

    /// Understands what the client sent.
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
            // Its kind follows from its bytes, for those who receive it.
            Incoming::Message { bytes, .. } => match dialect.command(bytes.into()) {
                Ok(command) => commands.push_back(command),
                Err(close) => closed = closed.take().or(Some(close)),
            },
            Incoming::Ping(payload) => connection.post(|out| websocket::write(Opcode::Pong, &payload, out)),
            Incoming::Pong => {}
            Incoming::Close(code) => closed = closed.take().or(Some(Close::answer(code))),
        });
        let waiting: usize = commands.iter().map(|command| command.payload.len()).sum();
        let received = Received { frames: decoder.take_frames(), bytes, held: decoder.held() + waiting };
        if let Err(close) = decoded.and(closed.map_or(Ok(()), Err)).and_then(|()| self.count(&received)) {
            self.connection.close(close);
        }
    }

    /// Counts what was read against the limits.
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

    /// Begins to publish what the client said, in its order; one batch at a time.
    fn publish(&mut self) {
        if self.publishing.is_some() || self.commands.is_empty() {
            return;
        }
        let commands = std::mem::take(&mut self.commands);
        let only = |held: &Subscription| (held.topic().channel.clone(), held.rights());
        let Some((channel, rights)) = self.connection.session().only_subscription().map(only) else {
            let detail = "name exactly one channel in the URL to publish through this connection";
            return self.connection.close(Close::new(Code::PublishRefused, detail));
        };
        if !rights.publish {
            let message = "this token does not allow publishing to the channel";
            return self.tell(commands[0].id, "publish_refused", message.into(), Code::PublishRefused);
        }
        let ids: Vec<_> = commands.iter().map(|command| command.id).collect();
        let publication = |command: Command| Publication {
            channel: channel.clone(),
            payload: command.payload,
            key: None,
            remove: false,
            id: None,
        };
        let batch: Vec<_> = commands.into_iter().map(publication).collect();
        let app = self.shard.context.app.clone();
        let publishing = async move {
            let results = app.publish(batch).await;
            ids.into_iter().zip(results.into_iter().map(|result| result.map(drop))).collect()
        };
        self.publishing = Some(publishing.boxed_local());
    }

    /// Tells the client, once for a batch, if something of it was not published.
    fn report(&self, results: Vec<Published>) {
        let failed = |(id, result): Published| result.err().map(|error| (id, error));
        if let Some((id, error)) = results.into_iter().find_map(failed) {
            self.tell(id, error.code(), error.to_string(), Code::PublishFailed);
        }
    }

    /// Tells the client that it was not published, or closes it where the dialect has no words for that.
    fn tell(&self, id: Option<CommandId>, code: &str, message: String, otherwise: Code) {
        tracing::debug!(reason = code, "a frame was not published");
        let mut told = false;
        self.connection.notify(|encoding, out| told = encoding.dialect.write_error(id, code, &message, out));
        if !told {
            self.connection.close(Close::new(otherwise, message));
        }
    }

    fn ask(&mut self, key: SubscriptionKey, from: ReadFrom) -> Option<LocalBoxFuture<'static, Event>> {
        let topic = self.connection.session().subscription(key)?.topic().clone();
        let (app, client) = (self.shard.context.app.clone(), self.connection.address());
        // The same question again: the history is ahead of what this instance has heard yet.
        let repeated = self.asked.as_deref() == Some(&(key, from));
        self.asked = Some(Box::new((key, from)));
        let answer = async move {
            if repeated {
                sleep(REPEAT_PAUSE).await;
            }
            let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));
            let began = Instant::now();
            // The client waits with us: its socket is read meanwhile, so its leaving ends this.
            loop {
                match app.hub.history(&topic, from, client).await {
                    Ok(page) => return Event::Answered((key, topic, page)),
                    Err(PageError::OutgoingFull) if began.elapsed() > ROOM_TIMEOUT => return Event::NoRoomForPage,
                    Err(error) => tracing::debug!(%error, "the history did not answer"),
                }
                sleep(backoff.next_delay()).await;
            }
        };
        Some(answer.boxed_local())
    }
}
