//! A client's connection as the fan-out sees it: a socket, the session whose bytes go there, and the clocks that say
//! whether the client is still there. The fan-out writes straight to the socket, and wakes the connection's own task
//! (`task.rs`) for what remains.

use std::cell::{Cell, Ref, RefCell};
use std::net::IpAddr;
use std::rc::Rc;
use std::task::{Context as TaskContext, Waker};

use super::batch::EncodedBatch;
use super::context::{Alive, Context};
use super::encoding::Encoding;
use super::framing::{FrameWriter, Transport};
use super::keepalive::{Due, Keepalive};
use super::session::{Session, SubscriptionKey, Waits};
use super::subscription::{NewSubscription, Subscription};
use crate::close::{Close, Code};
use crate::observability::metrics::sample::Sample;
use crate::transport::admission::Admitted;
use crate::transport::socket::Socket;

/// With so many bytes waiting that concern the connection itself (pongs, notices) the client is not read further: one
/// that asks without reading the answers has to wait.
const MOST_POSTED: usize = 16 << 10;

/// A client's connection, shared between its own task and the fan-out of its thread.
pub struct Connection {
    session: RefCell<Session>,
    pub(super) socket: Socket,
    pub(super) keepalive: Keepalive,
    /// The task waits with this; woken when its session changed under it.
    waker: Cell<Option<Waker>>,
    woken: Cell<bool>,
    /// Given up: nothing is waited for any more.
    dead: Cell<bool>,
    alive: Alive,
    /// Where its thread lists it.
    pub(super) key: usize,
    admitted: Admitted,
}

impl Connection {
    /// A connection that may stay for so many seconds; `None` for as long as it likes.
    pub(super) fn new(
        socket: Socket,
        session: Session,
        context: &Rc<Context>,
        (admitted, key): (Admitted, usize),
        holds_for: Option<u64>,
    ) -> Rc<Self> {
        let answers_pings = session.encoding().transport() == Transport::WebSocket;
        Rc::new(Self {
            session: RefCell::new(session),
            socket,
            keepalive: Keepalive::new(context.now(), holds_for, answers_pings),
            waker: Cell::default(),
            woken: Cell::new(false),
            dead: Cell::new(false),
            alive: context.count_alive(),
            key,
            admitted,
        })
    }

    /// Its session.
    pub fn session(&self) -> Ref<'_, Session> {
        self.session.borrow()
    }

    /// The address that it counts for; `None` if its connections have no limit.
    pub(super) fn address(&self) -> Option<IpAddr> {
        self.admitted.address()
    }

    pub(super) fn context(&self) -> &Rc<Context> {
        self.alive.context()
    }

    /// Subscribes to a channel, which the fan-out lists under the key that `list` returns.
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
        // What came between the start and the listing.
        self.wake();
        (key, head)
    }

    pub(super) fn unsubscribe(&self, key: SubscriptionKey) -> Option<Subscription> {
        self.session.borrow_mut().unsubscribe(key)
    }

    pub(super) fn change<T>(&self, change: impl FnOnce(&mut Session) -> T) -> T {
        change(&mut self.session.borrow_mut())
    }

    /// The fan-out has a batch for one of the subscriptions.
    pub(super) fn offer(&self, key: SubscriptionKey, batch: &EncodedBatch) {
        let context = self.context();
        let mut session = self.session.borrow_mut();
        // Kept until the next batch: the frames may be those of the next subscriber, too.
        let mut scratch = context.scratch.borrow_mut();
        if !session.offer(key, batch, &mut scratch, &mut |bytes| context.write(&self.socket, bytes)) {
            self.wake();
        }
        self.context().count_delivered(session.take_delivered());
    }

    /// The task's turn: writes what is due, whatever it was woken for.
    pub(super) fn take_turn(&self) -> Waits {
        self.woken.set(false);
        self.pump()
    }

    /// Writes what is due, as far as the socket takes it now.
    fn pump(&self) -> Waits {
        let context = self.context();
        let mut session = self.session.borrow_mut();
        let mut scratch = context.scratch.borrow_mut();
        let waits = session.pump(&mut scratch, &mut |bytes| context.write(&self.socket, bytes));
        scratch.clear();
        context.count_delivered(session.take_delivered());
        waits
    }

    /// Adds messages that concern the connection itself.
    pub(super) fn notify(&self, write: impl FnOnce(&'static Encoding, &mut FrameWriter<'_>)) {
        self.session.borrow_mut().notify(write);
        self.wake();
    }

    /// Adds bytes that concern the connection itself.
    pub(super) fn post(&self, write: impl FnOnce(&mut Vec<u8>)) {
        self.session.borrow_mut().post(write);
        self.wake();
    }

    /// Whether so much is waiting that the client must read before it is read.
    pub(super) fn must_read_first(&self) -> bool {
        self.session.borrow().posted() >= MOST_POSTED
    }

    /// Closes the connection, after the frame that is under way.
    pub(super) fn close(&self, close: Close) {
        self.session.borrow_mut().end(close);
        self.wake();
    }

    /// Closes the connection after what its channels have for it now, as far as its socket takes that: a message that others
    /// received before must not be left to the fan-out, which may not have had its turn here yet.
    pub(super) fn finish(&self, close: Close) {
        if self.session.borrow().ending().is_none() {
            while self.pump() == Waits::Turn {}
            self.close(close);
        }
    }

    fn give_up(&self) {
        self.dead.set(true);
        self.wake();
    }

    /// Whether nothing is waited for any more.
    pub(super) fn is_dead(&self) -> bool {
        self.dead.get()
    }

    fn wake(&self) {
        self.woken.set(true);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Whether the session changed since this was last asked; if not, the task is woken when it does.
    pub(super) fn poll_woken(&self, context: &mut TaskContext<'_>) -> bool {
        if self.woken.take() {
            return true;
        }
        self.waker.set(Some(context.waker().clone()));
        false
    }

    /// Checks whether the client is still there, and may be; called once a second.
    pub(super) fn check(&self) {
        let now = self.context().now();
        let ending = self.session.borrow().ending().is_some();
        match self.keepalive.check(now, ending, self.context().times(), || self.session.borrow().reads_page()) {
            Due::Nothing => {}
            Due::Ping if self.must_read_first() => {}
            Due::Ping => self.notify(|encoding, out| encoding.dialect.write_keepalive(out)),
            Due::Gone => {
                self.session.borrow_mut().end(Close::new(Code::Gone, ""));
                self.give_up();
            }
            Due::Expired => self.close(Close::new(Code::TokenExpired, "connect again with a fresh token")),
            Due::TooSlow => {
                self.session.borrow_mut().end_as_too_slow();
                self.wake();
            }
            Due::GiveUp => self.give_up(),
        }
    }

    /// Adds itself to what its thread has.
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
