//! Whether a client is still there, and may be: the clocks of one connection, looked at once a second with those of all
//! others. It only judges; asking and closing is `connection.rs`.

use std::cell::Cell;

/// A client that answers pings is taken for gone when it has left so many unanswered.
const MOST_UNANSWERED: u32 = 3;
/// How many checks a closing connection has to take its last bytes.
const CLOSING_CHECKS: u32 = 3;

/// When what happened on one connection. Times are the thread's, in seconds.
pub(super) struct Keepalive {
    heard: Cell<u32>,
    asked: Cell<u32>,
    /// When the client last got a page of history.
    page_at: Cell<u32>,
    /// How many checks there were since it began to close.
    closing_checks: Cell<u32>,
    /// When what allows the client to be here ends.
    expires: u32,
    answers_pings: bool,
}

/// How long clients are waited for, in seconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Times {
    /// Silence after which a client is asked whether it is there.
    pub(super) heartbeat: u32,
    /// How long it may take for a page of history. (A client that acknowledges nothing at all, the kernel gives up.)
    pub(super) page: u32,
}

/// What is due for a client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Due {
    /// Nothing.
    Nothing,
    /// It has been silent: ask whether it is there.
    Ping,
    /// It has been silent for too long.
    Gone,
    /// What allowed it to be here has ended.
    Expired,
    /// It keeps a page of history for too long.
    TooSlow,
    /// It was told that it is closed, and does not take that.
    GiveUp,
}

impl Keepalive {
    /// A client that has just come and may stay for so many seconds; `None` for as long as it likes.
    pub(super) fn new(now: u32, holds_for: Option<u64>, answers_pings: bool) -> Self {
        let holds_for = holds_for.map_or(u32::MAX, |seconds| u32::try_from(seconds).unwrap_or(u32::MAX));
        Self {
            heard: Cell::new(now),
            asked: Cell::new(now),
            page_at: Cell::new(now),
            closing_checks: Cell::new(0),
            // The second that has begun does not count.
            expires: now.saturating_add(holds_for).saturating_add(1),
            answers_pings,
        }
    }

    /// The client said something, or was kept from it by us.
    pub(super) fn heard(&self, now: u32) {
        self.heard.set(now);
    }

    /// The client got a page of history.
    pub(super) fn got_page(&self, now: u32) {
        self.page_at.set(now);
    }

    /// Says what is due; called once a second. `closing`: the client was told that it is closed.
    pub(super) fn check(&self, now: u32, closing: bool, times: Times, reads_page: impl FnOnce() -> bool) -> Due {
        let since = |at: u32| now.saturating_sub(at);
        if closing {
            self.closing_checks.set(self.closing_checks.get() + 1);
            return if self.closing_checks.get() > CLOSING_CHECKS { Due::GiveUp } else { Due::Nothing };
        }
        if now >= self.expires {
            Due::Expired
        } else if self.answers_pings && since(self.heard.get()) > MOST_UNANSWERED * times.heartbeat {
            Due::Gone
        } else if since(self.page_at.get()) > times.page && reads_page() {
            Due::TooSlow
        } else if since(self.heard.get().max(self.asked.get())) >= times.heartbeat {
            self.asked.set(now);
            Due::Ping
        } else {
            Due::Nothing
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMES: Times = Times { heartbeat: 15, page: 60 };

    fn check(keepalive: &Keepalive, now: u32) -> Due {
        keepalive.check(now, false, TIMES, || true)
    }

    #[test]
    fn a_silent_client_is_pinged_and_then_taken_for_gone() {
        let keepalive = Keepalive::new(100, None, true);
        assert_eq!((check(&keepalive, 114), check(&keepalive, 115)), (Due::Nothing, Due::Ping));
        assert_eq!((check(&keepalive, 116), check(&keepalive, 130)), (Due::Nothing, Due::Ping));
        assert_eq!((check(&keepalive, 145), check(&keepalive, 146)), (Due::Ping, Due::Gone));
        keepalive.heard(146);
        assert_eq!(check(&keepalive, 147), Due::Nothing);
    }

    #[test]
    fn a_client_may_stay_until_its_last_second_has_ended() {
        let keepalive = Keepalive::new(100, Some(5), false);
        assert_eq!((check(&keepalive, 105), check(&keepalive, 106)), (Due::Nothing, Due::Expired));
        let unlimited = Keepalive::new(100, Some(u64::MAX), false);
        assert_eq!(check(&unlimited, 114), Due::Nothing);
    }

    #[test]
    fn a_page_and_a_close_must_be_taken_in_time() {
        let keepalive = Keepalive::new(100, None, false);
        assert_eq!(check(&keepalive, 161), Due::TooSlow);
        keepalive.got_page(161);
        assert_eq!(check(&keepalive, 162), Due::Ping);
        let closing: Vec<_> = (0..4).map(|_| keepalive.check(163, true, TIMES, || false)).collect();
        assert_eq!(closing, [Due::Nothing, Due::Nothing, Due::Nothing, Due::GiveUp]);
    }
}
