//! Keepalive: whether a client still answers, and whether its token is still valid. Checked once a
//! second for each connection. Only decides; `connection.rs` sends pings and closes.

use std::cell::Cell;

use super::clock::Seconds;

/// The number of unanswered pings after which a client counts as gone.
const MOST_UNANSWERED: u32 = 3;
/// The number of checks for which a closing connection may take its last bytes.
const CLOSING_CHECKS: u32 = 3;

/// The times of one connection.
pub(super) struct Keepalive {
    /// When the client last sent anything.
    heard: Cell<Seconds>,
    /// When a ping was last sent.
    asked: Cell<Seconds>,
    /// When the client last got a page of history.
    page_at: Cell<Seconds>,
    /// The number of checks since it began to close.
    closing_checks: Cell<u32>,
    /// When the token of the client expires, or when it must have connected.
    expires: Cell<Seconds>,
    pings: Cell<Pings>,
    /// Whether its silence counts.
    is_read: Cell<bool>,
}

/// When a client is pinged, and what its silence means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Pings {
    /// Never, until it sends its first command.
    AwaitsConnect,
    /// At regular intervals. It answers each time.
    Regular,
    /// While it is silent. It answers each time.
    Silent,
    /// While it is silent. It does not answer.
    Unanswered,
}

/// How long to wait for clients, in seconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Times {
    /// The silence after which a client is sent a ping or a heartbeat.
    pub(super) heartbeat: u32,
    /// The time to read a page of history. (`TCP_USER_TIMEOUT` closes clients that acknowledge
    /// nothing.)
    pub(super) page: u32,
}

/// The action that is due for a client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Due {
    /// Nothing.
    Nothing,
    /// It has been silent: send a ping.
    Ping,
    /// It has been silent for too long.
    Gone,
    /// It has not sent its first command in time.
    NotConnected,
    /// Its token has expired.
    Expired,
    /// It has not read a page of history in time.
    TooSlow,
    /// It has not read its close in time.
    GiveUp,
}

impl Keepalive {
    /// Creates the state of a new client whose token is valid for `holds_for` seconds, or which must
    /// connect within that time; `None` for no limit.
    pub(super) fn new(now: Seconds, holds_for: Option<u64>, pings: Pings) -> Self {
        Self {
            heard: Cell::new(now),
            asked: Cell::new(now),
            page_at: Cell::new(now),
            closing_checks: Cell::new(0),
            expires: Cell::new(end(now, holds_for)),
            pings: Cell::new(pings),
            is_read: Cell::new(true),
        }
    }

    /// Records that the client has connected, or that it has another token, which is valid for
    /// `holds_for` seconds.
    pub(super) fn connected(&self, now: Seconds, holds_for: Option<u64>) {
        if self.pings.get() == Pings::AwaitsConnect {
            self.pings.set(Pings::Regular);
            self.asked.set(now);
        }
        self.expires.set(end(now, holds_for));
    }

    /// Records that the client sent something, or took what waited for it.
    pub(super) fn heard(&self, now: Seconds) {
        self.heard.set(now);
    }

    /// Records whether the client is read. While it is not, its silence means nothing.
    pub(super) fn set_read(&self, is_read: bool) {
        self.is_read.set(is_read);
    }

    /// Records that the client got a page of history.
    pub(super) fn got_page(&self, now: Seconds) {
        self.page_at.set(now);
    }

    /// Returns the action that is due for the client. Called once a second. `closing`: a close has
    /// been sent.
    pub(super) fn check(&self, now: Seconds, closing: bool, times: Times, reads_page: impl FnOnce() -> bool) -> Due {
        let since = |at| now.since(at);
        if closing {
            self.closing_checks.set(self.closing_checks.get() + 1);
            return if self.closing_checks.get() > CLOSING_CHECKS { Due::GiveUp } else { Due::Nothing };
        }
        if !self.is_read.get() {
            self.heard.set(now);
        }
        let (pings, is_over) = (self.pings.get(), now >= self.expires.get());
        let pinged = match pings {
            Pings::AwaitsConnect => return if is_over { Due::NotConnected } else { Due::Nothing },
            Pings::Regular => self.asked.get(),
            Pings::Silent | Pings::Unanswered => self.heard.get().max(self.asked.get()),
        };
        if is_over {
            Due::Expired
        } else if pings != Pings::Unanswered && since(self.heard.get()) > MOST_UNANSWERED * times.heartbeat {
            Due::Gone
        } else if since(self.page_at.get()) > times.page && reads_page() {
            Due::TooSlow
        } else if since(pinged) >= times.heartbeat {
            self.asked.set(now);
            Due::Ping
        } else {
            Due::Nothing
        }
    }
}

/// The end of a time from now on; the current, incomplete second does not count.
fn end(now: Seconds, holds_for: Option<u64>) -> Seconds {
    let holds_for = holds_for.map_or(u32::MAX, |seconds| u32::try_from(seconds).unwrap_or(u32::MAX));
    Seconds(now.0.saturating_add(holds_for).saturating_add(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMES: Times = Times { heartbeat: 15, page: 60 };

    fn check(keepalive: &Keepalive, now: Seconds) -> Due {
        keepalive.check(now, false, TIMES, || true)
    }

    #[test]
    fn a_silent_client_is_pinged_and_then_taken_for_gone() {
        let keepalive = Keepalive::new(Seconds(100), None, Pings::Silent);
        assert_eq!((check(&keepalive, Seconds(114)), check(&keepalive, Seconds(115))), (Due::Nothing, Due::Ping));
        assert_eq!((check(&keepalive, Seconds(116)), check(&keepalive, Seconds(130))), (Due::Nothing, Due::Ping));
        assert_eq!((check(&keepalive, Seconds(145)), check(&keepalive, Seconds(146))), (Due::Ping, Due::Gone));
        keepalive.heard(Seconds(146));
        assert_eq!(check(&keepalive, Seconds(147)), Due::Nothing);
    }

    #[test]
    fn the_silence_of_a_client_that_is_not_read_does_not_count() {
        let keepalive = Keepalive::new(Seconds(100), None, Pings::Regular);
        keepalive.set_read(false);
        keepalive.got_page(Seconds(200));
        assert_eq!((check(&keepalive, Seconds(115)), check(&keepalive, Seconds(161))), (Due::Ping, Due::Ping));
        keepalive.set_read(true);
        assert_eq!((check(&keepalive, Seconds(206)), check(&keepalive, Seconds(207))), (Due::Ping, Due::Gone));
    }

    #[test]
    fn a_client_may_stay_until_its_last_second_has_ended() {
        let keepalive = Keepalive::new(Seconds(100), Some(5), Pings::Unanswered);
        assert_eq!((check(&keepalive, Seconds(105)), check(&keepalive, Seconds(106))), (Due::Nothing, Due::Expired));
        let unlimited = Keepalive::new(Seconds(100), Some(u64::MAX), Pings::Unanswered);
        assert_eq!(check(&unlimited, Seconds(114)), Due::Nothing);
    }

    #[test]
    fn a_client_with_commands_connects_in_time_and_is_then_pinged_even_while_it_sends() {
        let keepalive = Keepalive::new(Seconds(100), Some(30), Pings::AwaitsConnect);
        assert_eq!(
            (check(&keepalive, Seconds(130)), check(&keepalive, Seconds(131))),
            (Due::Nothing, Due::NotConnected)
        );
        keepalive.connected(Seconds(131), Some(20));
        keepalive.heard(Seconds(145));
        assert_eq!((check(&keepalive, Seconds(145)), check(&keepalive, Seconds(146))), (Due::Nothing, Due::Ping));
        assert_eq!((check(&keepalive, Seconds(151)), check(&keepalive, Seconds(152))), (Due::Nothing, Due::Expired));
        keepalive.connected(Seconds(152), None);
        assert_eq!(check(&keepalive, Seconds(152)), Due::Nothing, "another token");
    }

    #[test]
    fn a_page_and_a_close_must_be_taken_in_time() {
        let keepalive = Keepalive::new(Seconds(100), None, Pings::Unanswered);
        assert_eq!(check(&keepalive, Seconds(161)), Due::TooSlow);
        keepalive.got_page(Seconds(161));
        assert_eq!(check(&keepalive, Seconds(162)), Due::Ping);
        let closing: Vec<_> = (0..4).map(|_| keepalive.check(Seconds(163), true, TIMES, || false)).collect();
        assert_eq!(closing, [Due::Nothing, Due::Nothing, Due::Nothing, Due::GiveUp]);
    }
}
