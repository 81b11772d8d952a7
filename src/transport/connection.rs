//! A subscriber's socket and the task that owns it: it reads, it writes what the fan-out could not, it asks the history,
//! it publishes. The fan-out itself writes straight to the socket, and wakes the task only if that is full.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::LocalBoxFuture;
use tokio::net::TcpStream;

use super::meter::{Meter, Read};
use super::presence::{Presence, Verdict};
use crate::admission::Admitted;
use crate::backoff::Backoff;
use crate::batch::Batch;
use crate::broker::{BrokerError, From, Page, Publication};
use crate::close::{Close, Code};
use crate::linger::linger;
use crate::metrics::sample::Sample;
use crate::session::{Session, Waits};
use crate::shard::Shard;
use crate::topic::Topic;

/// How long to wait before the history is asked the same again.
const REPEAT_PAUSE: Duration = Duration::from_millis(20);
/// How long the other side has for its part of a close.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// With so many bytes waiting for the connection's own sake (pongs, error notices) the client is not read further: who asks
/// without reading the answers has to wait.
const MOST_POSTED: usize = 16 << 10;
/// How much a client may still send after it was told to go.
const MOST_DRAINED: usize = 1 << 20;

/// What a client's bytes mean, by transport.
pub trait Inbound {
    /// Reads a chunk; adds what is to be published to `messages`. An error ends the connection.
    fn receive(
        &mut self,
        chunk: &mut [u8],
        connection: &Connection,
        messages: &mut VecDeque<Bytes>,
    ) -> Result<(), Close>;

    /// How many frames were in what was read since this was last asked.
    fn take_frames(&mut self) -> usize {
        0
    }

    /// How many bytes it holds of what is not complete yet.
    fn held(&self) -> usize {
        0
    }
}

/// What a subscriber may do beside listening, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct Permit {
    /// For how many seconds it may stay; `None` for as long as it likes.
    pub holds_for: Option<u64>,
    /// Whether it may publish to its channel.
    pub may_publish: bool,
}

/// A subscriber's socket, shared between its own task and the fan-out of its thread.
pub struct Connection {
    pub(crate) session: RefCell<Session>,
    stream: TcpStream,
    shard: Rc<Shard>,
    /// The task waits with this; woken when its session changed under it.
    waker: Cell<Option<Waker>>,
    woken: Cell<bool>,
    presence: Presence,
    /// What the history was asked last.
    asked_history: Cell<Option<From>>,
    may_publish: bool,
    /// What the client has sent.
    meter: Meter,
    _admitted: Admitted,
    /// Given up: nothing is waited for any more.
    dead: Cell<bool>,
}

/// What the history answered, and to which of the channels.
type Answer = (usize, Option<Arc<Page>>);

/// What the task does next.
enum Event {
    Readable,
    Pump,
    Answered(Answer),
    Published(Vec<Result<(), BrokerError>>),
}

/// What the task has under way beside its socket. Empty, and small, on an idle connection.
#[derive(Default)]
struct UnderWay {
    history: Option<LocalBoxFuture<'static, Answer>>,
    publish: Option<LocalBoxFuture<'static, Vec<Result<(), BrokerError>>>>,
    messages: VecDeque<Bytes>,
}

impl Connection {
    /// A subscriber's socket. `answers_heartbeats`: whether silence of the client means that it is gone.
    pub fn new(
        stream: TcpStream,
        session: Session,
        shard: Rc<Shard>,
        admitted: Admitted,
        permit: Permit,
        answers_heartbeats: bool,
    ) -> Rc<Self> {
        let now = shard.now.get();
        let meter = Meter::new(&shard.app, now);
        shard.alive.set(shard.alive.get() + 1);
        Rc::new(Self {
            session: RefCell::new(session),
            stream,
            shard,
            waker: Cell::default(),
            woken: Cell::new(false),
            presence: Presence::new(now, permit.holds_for, answers_heartbeats),
            asked_history: Cell::new(None),
            may_publish: permit.may_publish,
            meter,
            _admitted: admitted,
            dead: Cell::new(false),
        })
    }

    /// Drives the subscriber until it ends. `early` are bytes that the client sent ahead.
    pub async fn drive(self: Rc<Self>, early: Bytes, mut inbound: impl Inbound) {
        let registration = self.shard.register(&self);
        self.run(early, &mut inbound).await;
        self.shard.unregister(&registration);
        let close = self.session.borrow().ending().cloned();
        let code = close.as_ref().map_or(Code::Gone, |close| close.code);
        self.shard.app.metrics.count_close(code);
        tracing::debug!(reason = code.name(), "a subscriber has gone");
        if close.is_some() && !self.dead.get() {
            // On the heap: every idle connection would carry its size.
            Box::pin(linger(&self.stream, CLOSE_TIMEOUT, MOST_DRAINED)).await;
        }
    }

    async fn run(&self, early: Bytes, inbound: &mut dyn Inbound) {
        let mut under_way = UnderWay::default();
        if !early.is_empty() {
            self.take_in(&mut early.to_vec(), inbound, &mut under_way);
        }
        self.exchange(inbound, &mut under_way).await;
        // What the client said before it left counts.
        while let Some(publish) = under_way.publish.take() {
            let _ = publish.await;
            self.publish(&mut under_way);
        }
    }

    async fn exchange(&self, inbound: &mut dyn Inbound, under_way: &mut UnderWay) {
        loop {
            let waits = self.pump();
            match &waits {
                Waits::End | Waits::Gone => return,
                Waits::History(slot, from) if under_way.history.is_none() => {
                    under_way.history = Some(self.ask(*slot, *from));
                }
                _ => {}
            }
            match poll_fn(|context| self.poll(context, &waits, under_way)).await {
                _ if self.dead.get() => return,
                Event::Readable => {
                    if !self.read(inbound, under_way) {
                        return;
                    }
                }
                Event::Pump => {}
                Event::Answered((slot, page)) => {
                    self.presence.got_page(self.shard.now.get());
                    self.session.borrow_mut().answered(slot, page);
                }
                Event::Published(results) => {
                    // Less than before, so there is room for it.
                    let _ = self.meter.hold(inbound.held());
                    self.report(results);
                }
            }
            self.publish(under_way);
        }
    }

    /// What can happen: the session changed; the socket has room again, if that is waited for; something under way has
    /// ended; the client said something, if nothing of what it said before waits to be published or answered.
    fn poll(&self, context: &mut Context<'_>, waits: &Waits, under_way: &mut UnderWay) -> Poll<Event> {
        if self.woken.take() {
            return Poll::Ready(Event::Pump);
        }
        self.waker.set(Some(context.waker().clone()));
        if *waits == Waits::Room && self.stream.poll_write_ready(context).is_ready() {
            return Poll::Ready(Event::Pump);
        }
        if let Some(history) = &mut under_way.history
            && let Poll::Ready(answer) = history.poll_unpin(context)
        {
            under_way.history = None;
            return Poll::Ready(Event::Answered(answer));
        }
        if let Some(publish) = &mut under_way.publish {
            return publish.poll_unpin(context).map(|results| {
                under_way.publish = None;
                Event::Published(results)
            });
        }
        if self.meter.holds_back() || self.session.borrow().posted() >= MOST_POSTED {
            return Poll::Pending;
        }
        self.stream.poll_read_ready(context).map(|_| Event::Readable)
    }

    fn pump(&self) -> Waits {
        let mut scratch = self.shard.scratch.borrow_mut();
        let waits = self.session.borrow_mut().pump(&mut scratch, &mut |bytes| self.write(bytes));
        if scratch.capacity() > 1 << 20 {
            *scratch = Vec::new();
        }
        waits
    }

    /// Writes what the socket takes now. Never waits.
    fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        let mut counted = self.shard.written.get();
        counted.writes += 1;
        let taken = self.stream.try_write(bytes);
        counted.bytes += taken.as_ref().map_or(0, |&taken| taken as u64);
        self.shard.written.set(counted);
        taken
    }

    /// Adds itself to what its thread has.
    pub(crate) fn count_in(&self, sample: &mut Sample) {
        let session = self.session.borrow();
        let transport =
            if self.presence.answers_heartbeats() { &mut sample.websockets } else { &mut sample.event_streams };
        *transport += 1;
        sample.subscriptions += session.topics().count();
        if let Some(backlog) = session.backlog() {
            sample.behind += 1;
            sample.backlog = sample.backlog.max(backlog);
        }
    }

    /// The fan-out has a batch for one of the channels.
    pub(crate) fn offer(&self, slot: usize, batch: &Batch) {
        if !self.session.borrow_mut().offer(slot, batch, &mut |bytes| self.write(bytes)) {
            self.wake();
        }
    }

    /// Adds bytes that concern the connection itself.
    pub(crate) fn post(&self, write: impl FnOnce(&'static dyn crate::dialect::Dialect, &mut Vec<u8>)) {
        self.session.borrow_mut().post(write);
        self.wake();
    }

    /// Closes the connection, after the frame that is under way.
    pub(crate) fn close(&self, close: Close) {
        self.session.borrow_mut().end(close);
        self.wake();
    }

    /// Closes the connection after what its channels have for it now, as far as its socket takes that: a message that others
    /// received before must not be left to the fan-out, which may not have had its turn here yet.
    pub(crate) fn finish(&self, close: Close) {
        if self.session.borrow().ending().is_none() {
            self.pump();
            self.close(close);
        }
    }

    fn give_up(&self) {
        self.dead.set(true);
        self.wake();
    }

    fn wake(&self) {
        self.woken.set(true);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// The sweep looks: whether the client is still there, and may be.
    pub(crate) fn look(&self, now: u32) {
        if self.meter.holds_back() {
            // Whom we do not listen to is not silent.
            self.presence.heard(now);
            if self.meter.pay_off(&self.shard.app, now) {
                self.wake();
            }
        }
        let ending = self.session.borrow().ending().is_some();
        match self.presence.look(now, ending, self.shard.page_time(), || self.session.borrow().reads_page()) {
            Verdict::Stays => {}
            Verdict::IsAsked if self.session.borrow().posted() >= MOST_POSTED => {}
            Verdict::IsAsked => self.post(|dialect, out| dialect.heartbeat(out)),
            Verdict::Gone => {
                self.session.borrow_mut().end(Close::new(Code::Gone, ""));
                self.give_up();
            }
            Verdict::Expired => self.close(Close::new(Code::TokenExpired, "connect again with a fresh token")),
            Verdict::TooSlow => {
                self.session.borrow_mut().end_as_too_slow();
                self.wake();
            }
            Verdict::Lingers => self.give_up(),
        }
    }

    /// Reads once. `false` if the client is gone.
    fn read(&self, inbound: &mut dyn Inbound, under_way: &mut UnderWay) -> bool {
        let mut buffer = self.shard.read_buffer.borrow_mut();
        match self.stream.try_read(&mut buffer) {
            Ok(0) => false,
            Ok(length) => {
                self.presence.heard(self.shard.now.get());
                self.take_in(&mut buffer[..length], inbound, under_way);
                true
            }
            Err(error) => error.kind() == io::ErrorKind::WouldBlock,
        }
    }

    fn take_in(&self, chunk: &mut [u8], inbound: &mut dyn Inbound, under_way: &mut UnderWay) {
        if self.session.borrow().ending().is_some() {
            return;
        }
        let bytes = chunk.len();
        let received = inbound.receive(chunk, self, &mut under_way.messages);
        let complete: usize = under_way.messages.iter().map(Bytes::len).sum();
        let read = Read { frames: inbound.take_frames(), bytes, held: inbound.held() + complete };
        if let Err(close) = received.and_then(|()| self.meter.count(&self.shard.app, self.shard.now.get(), &read)) {
            self.close(close);
        }
        self.publish(under_way);
    }

    /// Begins to publish what the client said, in its order; one batch at a time.
    fn publish(&self, under_way: &mut UnderWay) {
        if under_way.publish.is_some() || under_way.messages.is_empty() {
            return;
        }
        let messages = std::mem::take(&mut under_way.messages);
        let Some(channel) = self.only_channel() else {
            let detail = "name exactly one channel in the URL to publish through this connection";
            self.close(Close::new(Code::PublishRefused, detail));
            return;
        };
        if !self.may_publish {
            self.tell("publish_refused", "this token allows no publishing to the channel".into(), Code::PublishRefused);
            return;
        }
        let publication =
            |payload| Publication { channel: channel.clone(), payload, key: None, remove: false, id: None };
        let batch: Vec<_> = messages.into_iter().map(publication).collect();
        let app = self.shard.app.clone();
        under_way.publish = Some(
            async move {
                let results = app.publish(batch).await;
                results.into_iter().map(|result| result.map(drop)).collect()
            }
            .boxed_local(),
        );
    }

    fn only_channel(&self) -> Option<crate::channel::ChannelName> {
        let session = self.session.borrow();
        let mut topics = session.topics();
        match (topics.next(), topics.next()) {
            (Some(topic), None) => Some(topic.channel.clone()),
            _ => None,
        }
    }

    /// Tells the client, once for a batch, if something of it was not published.
    fn report(&self, results: Vec<Result<(), BrokerError>>) {
        let Some(error) = results.into_iter().find_map(Result::err) else { return };
        self.tell(error.code(), error.to_string(), Code::PublishFailed);
    }

    /// Tells the client that it was not published, or closes it where the dialect has no words for that.
    fn tell(&self, code: &str, message: String, otherwise: Code) {
        tracing::debug!(reason = code, "a frame was not published");
        let mut told = false;
        self.session.borrow_mut().post(|dialect, out| told = dialect.publish_error(code, &message, out));
        if !told {
            self.close(Close::new(otherwise, message));
        }
    }

    fn ask(&self, slot: usize, from: From) -> LocalBoxFuture<'static, Answer> {
        let topic: Option<Arc<Topic>> = self.session.borrow().topics().nth(slot).cloned();
        let app = self.shard.app.clone();
        // The same question again: the history is ahead of what this instance has heard yet.
        let repeated = self.asked_history.replace(Some(from)) == Some(from);
        async move {
            let Some(topic) = topic else { return (slot, None) };
            if repeated {
                tokio::time::sleep(REPEAT_PAUSE).await;
            }
            let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));
            // The client waits with us: its socket is read meanwhile, so its leaving ends this.
            loop {
                match app.hub.history(&topic, from).await {
                    Ok(page) => return (slot, page),
                    Err(error) => tracing::debug!(%error, "the history did not answer"),
                }
                tokio::time::sleep(backoff.next_delay()).await;
            }
        }
        .boxed_local()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.shard.alive.set(self.shard.alive.get() - 1);
    }
}
