//! The connection of a client as the fan-out sees it: a socket, the session whose bytes go to the
//! socket, and the keepalive. The fan-out writes directly to the socket. If bytes remain, it wakes
//! the task of the connection (`task.rs`).

use std::cell::{Cell, Ref, RefCell};
use std::net::IpAddr;
use std::rc::Rc;
use std::task::{Context as TaskContext, Waker};

use super::batch::EncodedBatch;
use super::context::{ConnectionCount, Context};
use super::encoding::Encoding;
use super::framing::{FrameWriter, Transport};
use super::keepalive::{Due, Keepalive, Pings};
use super::session::{Session, SubscriptionKey, Waits};
use super::subscription::{NewSubscription, Subscription};
use crate::close::{Close, Code};
use crate::observability::metrics::sample::Sample;
use crate::transport::admission::Admitted;
use crate::transport::socket::Socket;

/// Stop reading from a client while its outbox has this many bytes.
const OUTBOX_LIMIT: usize = 16 << 10;

/// The connection of a client, shared between its own task and the fan-out of its thread.
pub struct Connection {
    session: RefCell<Session>,
    pub(super) socket: Socket,
    pub(super) keepalive: Keepalive,
    /// Waker of the task, for changes by the fan-out.
    waker: Cell<Option<Waker>>,
    woken: Cell<bool>,
    /// The connection is abandoned: the task ends without waiting.
    dead: Cell<bool>,
    alive: ConnectionCount,
    /// The index in the shard's slab.
    pub(super) key: usize,
    admitted: Admitted,
}

impl Connection {
    /// Creates a connection that may stay for `holds_for` seconds; `None` for no limit. `key` is
    /// its index in the shard's slab.
    pub(super) fn new(
        socket: Socket,
        session: Session,
        context: &Rc<Context>,
        (admitted, key): (Admitted, usize),
        holds_for: Option<u64>,
    ) -> Rc<Self> {
        let encoding = session.encoding();
        let (pings, holds_for) = match encoding.transport() {
            Transport::EventStream => (Pings::Unanswered, holds_for),
            Transport::WebSocket if encoding.dialect.awaits_connect() => {
                (Pings::AwaitsConnect, Some(context.app.limits.request_time.as_secs()))
            }
            Transport::WebSocket => (Pings::Silent, holds_for),
        };
        Rc::new(Self {
            session: RefCell::new(session),
            socket,
            keepalive: Keepalive::new(context.now(), holds_for, pings),
            waker: Cell::default(),
            woken: Cell::new(false),
            dead: Cell::new(false),
            alive: context.count_alive(),
            key,
            admitted,
        })
    }

    /// The session of the connection.
    pub fn session(&self) -> Ref<'_, Session> {
        self.session.borrow()
    }

    /// The address for which the connection counts; `None` if connections of the address have no
    /// limit.
    pub(super) fn address(&self) -> Option<IpAddr> {
        self.admitted.address()
    }

    pub(super) fn context(&self) -> &Rc<Context> {
        self.alive.context()
    }

    /// Subscribes to a channel. `list` adds the subscription to the fan-out and returns its key
    /// there. Returns the key of the subscription and the newest offset of the channel.
    pub(super) fn subscribe(
        &self,
        new: NewSubscription,
        list: impl FnOnce(SubscriptionKey, &Subscription) -> usize,
    ) -> (SubscriptionKey, Option<u64>) {
        let mut session = self.session.borrow_mut();
        let (key, head) = session.subscribe(new);
        if let Some(subscription) = session.subscription_mut(key) {
            subscription.fan_out_key = list(key, subscription);
        }
        // Deliver entries that arrived before the fan-out knew the subscription.
        self.wake();
        (key, head)
    }

    pub(super) fn unsubscribe(&self, key: SubscriptionKey) -> Option<Subscription> {
        self.session.borrow_mut().unsubscribe(key)
    }

    /// The client has connected, or has another token. It may stay for `holds_for` seconds.
    pub(super) fn connected(&self, holds_for: Option<u64>) {
        self.keepalive.connected(self.context().now(), holds_for);
    }

    pub(super) fn change<T>(&self, change: impl FnOnce(&mut Session) -> T) -> T {
        change(&mut self.session.borrow_mut())
    }

    /// Writes a batch of the fan-out for one of the subscriptions. If bytes remain, wakes the task.
    pub(super) fn offer(&self, key: SubscriptionKey, batch: &EncodedBatch) {
        let context = self.context();
        let mut session = self.session.borrow_mut();
        // Do not clear `scratch`: the next subscriber may use the same frames.
        let mut scratch = context.scratch.borrow_mut();
        if !session.offer(key, batch, &mut scratch, &mut |bytes| context.write(&self.socket, bytes)) {
            self.wake();
        }
        self.context().count_delivered(session.take_delivered());
    }

    /// Writes pending bytes, for the task. Later changes wake the task again.
    pub(super) fn write_due(&self) -> Waits {
        self.woken.set(false);
        self.pump()
    }

    /// Writes as many of the pending bytes as the socket takes now.
    fn pump(&self) -> Waits {
        let context = self.context();
        let mut session = self.session.borrow_mut();
        let mut scratch = context.scratch.borrow_mut();
        let waits = session.pump(&mut scratch, &mut |bytes| context.write(&self.socket, bytes));
        scratch.clear();
        context.count_delivered(session.take_delivered());
        waits
    }

    /// Adds notices for the client to the outbox.
    pub(super) fn queue_notice(&self, write: impl FnOnce(&'static Encoding, &mut FrameWriter<'_>)) {
        self.session.borrow_mut().queue_notice(write);
        self.wake();
    }

    /// Adds control bytes to the outbox.
    pub(super) fn queue_control(&self, write: impl FnOnce(&mut Vec<u8>)) {
        self.session.borrow_mut().queue_control(write);
        self.wake();
    }

    /// Whether the outbox is full, so the client is not read now.
    pub(super) fn must_read_first(&self) -> bool {
        self.session.borrow().outbox_bytes() >= OUTBOX_LIMIT
    }

    /// Closes the connection after the partly written frame.
    pub(super) fn close(&self, close: Close) {
        self.session.borrow_mut().end(close);
        self.wake();
    }

    /// Closes the connection. Writes pending messages first, as many as the socket takes now,
    /// because the fan-out may not have reached this connection.
    pub(super) fn finish(&self, close: Close) {
        if self.session.borrow().ending().is_none() {
            while self.pump() == Waits::Permit {}
            self.close(close);
        }
    }

    fn give_up(&self) {
        self.dead.set(true);
        self.wake();
    }

    /// Whether the connection is abandoned.
    pub(super) fn is_dead(&self) -> bool {
        self.dead.get()
    }

    fn wake(&self) {
        self.woken.set(true);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Whether the session changed since the last call. If not, the next change wakes the task.
    pub(super) fn poll_woken(&self, context: &mut TaskContext<'_>) -> bool {
        if self.woken.take() {
            return true;
        }
        self.waker.set(Some(context.waker().clone()));
        false
    }

    /// Checks whether the client still answers and whether its token is valid. Called once a
    /// second.
    pub(super) fn check(&self) {
        let now = self.context().now();
        let ending = self.session.borrow().ending().is_some();
        match self.keepalive.check(now, ending, self.context().times(), || self.session.borrow().reads_page()) {
            Due::Nothing => {}
            Due::Ping if self.must_read_first() => {}
            Due::Ping => self.queue_notice(|encoding, out| encoding.dialect.write_keepalive(out)),
            Due::Gone => {
                self.close(Close::new(Code::Gone, "the pings are not answered"));
                // A dialect may have a code for it, and the client may still be there.
                if self.session.borrow().encoding().dialect.close_number(Code::Gone).is_none() {
                    self.give_up();
                }
            }
            Due::NotConnected => self.close(Close::new(Code::NotConnected, "the first command did not come in time")),
            Due::Expired => self.close(Close::new(Code::TokenExpired, "connect again with a fresh token")),
            Due::TooSlow => {
                self.session.borrow_mut().end_as_too_slow();
                self.wake();
            }
            Due::GiveUp => self.give_up(),
        }
    }

    /// Adds the connection to the counts of its thread.
    pub(super) fn count_in(&self, sample: &mut Sample) {
        let session = self.session.borrow();
        match session.encoding().transport() {
            Transport::WebSocket => sample.websockets += 1,
            Transport::EventStream => sample.event_streams += 1,
        }
        sample.subscriptions += session.subscriptions().count();
        if let Some(backlog) = session.backlog() {
            sample.behind += 1;
            sample.backlog = sample.backlog.max(backlog);
        }
    }
}
