//! Whether a client is still there, and may be: the clocks of one connection, looked at once a second with those of all others.
//! It only judges; asking, closing and giving up is `connection.rs`.

use std::cell::Cell;

/// Silence after which the other side is asked whether it is there, and after which it is taken for gone, in seconds.
const ASK_AFTER: u32 = 15;
const GONE_AFTER: u32 = 45;
/// How many looks a closing connection has to take its last bytes.
const ENDING_LOOKS: u32 = 3;

/// When what happened on one connection. Times are the shard's, in seconds.
pub(super) struct Presence {
    heard: Cell<u32>,
    asked: Cell<u32>,
    /// When the client last got a page of history.
    page_at: Cell<u32>,
    /// How many looks it has been ending for.
    ending_looks: Cell<u32>,
    /// When its permit ends.
    expires: u32,
    answers_heartbeats: bool,
}

/// What is to be done with a client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    /// Nothing.
    Stays,
    /// It has been silent: ask whether it is there.
    IsAsked,
    /// It has been silent for too long.
    Gone,
    /// Its permit has ended.
    Expired,
    /// It keeps a page of history for too long.
    TooSlow,
    /// It was told to go, and does not take that.
    Lingers,
}

impl Presence {
    /// A client that has just come, for so many seconds; `None` for as long as it likes. `answers_heartbeats`: whether its
    /// silence means that it is gone.
    pub(super) fn new(now: u32, holds_for: Option<u64>, answers_heartbeats: bool) -> Self {
        let holds_for = holds_for.map_or(u32::MAX, |seconds| u32::try_from(seconds).unwrap_or(u32::MAX));
        Self {
            heard: Cell::new(now),
            asked: Cell::new(now),
            page_at: Cell::new(now),
            ending_looks: Cell::new(0),
            // The second that has begun does not count.
            expires: now.saturating_add(holds_for).saturating_add(1),
            answers_heartbeats,
        }
    }

    /// Whether it is there by WebSocket: only that answers.
    pub(super) fn answers_heartbeats(&self) -> bool {
        self.answers_heartbeats
    }

    /// The client said something.
    pub(super) fn heard(&self, now: u32) {
        self.heard.set(now);
    }

    /// The client got a page of history.
    pub(super) fn got_page(&self, now: u32) {
        self.page_at.set(now);
    }

    /// Judges, once a second. `ending`: it was told to go; `page_time`: how long it may take for a page. (Who takes nothing at all,
    /// the kernel gives up.)
    pub(super) fn look(&self, now: u32, ending: bool, page_time: u32, reads_page: impl FnOnce() -> bool) -> Verdict {
        let since = |at: u32| now.saturating_sub(at);
        if ending {
            self.ending_looks.set(self.ending_looks.get() + 1);
            return if self.ending_looks.get() > ENDING_LOOKS { Verdict::Lingers } else { Verdict::Stays };
        }
        if now >= self.expires {
            Verdict::Expired
        } else if self.answers_heartbeats && since(self.heard.get()) > GONE_AFTER {
            Verdict::Gone
        } else if since(self.page_at.get()) > page_time && reads_page() {
            Verdict::TooSlow
        } else if since(self.heard.get().max(self.asked.get())) >= ASK_AFTER {
            self.asked.set(now);
            Verdict::IsAsked
        } else {
            Verdict::Stays
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(presence: &Presence, now: u32) -> Verdict {
        presence.look(now, false, 60, || true)
    }

    #[test]
    fn who_is_silent_is_asked_and_then_taken_for_gone() {
        let presence = Presence::new(100, None, true);
        assert_eq!((look(&presence, 114), look(&presence, 115)), (Verdict::Stays, Verdict::IsAsked));
        assert_eq!((look(&presence, 116), look(&presence, 130)), (Verdict::Stays, Verdict::IsAsked));
        assert_eq!((look(&presence, 145), look(&presence, 146)), (Verdict::IsAsked, Verdict::Gone));
        presence.heard(146);
        assert_eq!(look(&presence, 147), Verdict::Stays);
    }

    #[test]
    fn a_permit_ends_when_its_last_second_has() {
        let presence = Presence::new(100, Some(5), false);
        assert_eq!((look(&presence, 105), look(&presence, 106)), (Verdict::Stays, Verdict::Expired));
        let unlimited = Presence::new(100, Some(u64::MAX), false);
        assert_eq!(look(&unlimited, 114), Verdict::Stays);
    }

    #[test]
    fn a_page_and_a_farewell_must_be_taken_in_time() {
        let presence = Presence::new(100, None, false);
        assert_eq!(look(&presence, 161), Verdict::TooSlow);
        presence.got_page(161);
        assert_eq!(look(&presence, 162), Verdict::IsAsked);
        let looks: Vec<_> = (0..4).map(|_| presence.look(163, true, 60, || false)).collect();
        assert_eq!(looks, [Verdict::Stays, Verdict::Stays, Verdict::Stays, Verdict::Lingers]);
    }
}
