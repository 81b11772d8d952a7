//! Runs the numbering of plain messages on one server: knows the rules, parses what Redis tells the members, and
//! sends the requests of the [`Participant`], which decides everything. `subscriber.rs` passes on what arrives.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

use super::connection::Connection;
use super::endpoint::ANSWER_TIMEOUT;
use super::error::ClientError;
use super::library::{Function, Keys, Library, MEMBER, NUMBER, is_missing};
use super::names::Names;
use super::node::Node;
use super::numbering::{Announcement, Answer, Append, Disorder, Limits, Marker, Participant, Place};
use super::resp::{self, Frame, Item, Items};
use crate::broker::Event;
use crate::channel::ChannelName;
use crate::message::Position;
use crate::observability::log_throttle::LogThrottle;
use crate::observability::metrics::Metrics;
use crate::rules::Rules;

/// The interval in which members are renewed, as in `functions/number.lua`.
const RENEWAL: Duration = Duration::from_millis(500);
/// How much may wait for positions on an instance. Redis serves no other client while it appends, so a request has
/// a limit too.
const LIMITS: Limits = Limits { waiting_bytes: 64 << 20, append_messages: 256, append_bytes: 256 << 10 };
/// From this number of channels in a round trip on, a rest follows that is as long as the round trip, up to a limit. Redis
/// serves producers meanwhile, so that the next round trip appends more messages with each call.
const MANY_CHANNELS: usize = 16;
/// See [`MANY_CHANNELS`].
const LONGEST_REST: Duration = Duration::from_millis(5);

/// The numbering on one server.
pub(super) struct Numberer {
    rules: Arc<Rules>,
    names: Names,
    /// The channel on which Redis tells the members what happens.
    own: String,
    /// The patterns to subscribe to, with the index of the rule of each.
    patterns: HashMap<String, usize>,
    state: Mutex<State>,
    due: Notify,
    metrics: Arc<Metrics>,
}

struct State {
    participant: Participant,
    /// The word of a barrier that has to be requested.
    join: Option<u64>,
    is_leader: bool,
}

/// What goes to Redis in one round trip.
#[derive(Debug)]
enum Request {
    Renew(Vec<u64>),
    Join { word: u64, highest: u64 },
    Barrier { highest: u64 },
    Append(Append),
    Remove(Vec<u64>),
}

impl Numberer {
    /// Creates the numbering; `None` if no rule asks for it.
    pub(super) fn new(rules: Arc<Rules>, names: &Names, metrics: Arc<Metrics>) -> Option<Self> {
        let numbered = rules.iter().enumerate().filter(|(_, (_, rule))| rule.numbered);
        let patterns: HashMap<_, _> = numbered
            .flat_map(|(index, (pattern, _))| names.patterns(pattern).map(|pattern| (pattern, index)))
            .collect();
        let state = State { participant: Participant::new(LIMITS), join: None, is_leader: false };
        (!patterns.is_empty()).then(|| Self {
            rules,
            names: names.clone(),
            own: names.numbered(),
            patterns,
            state: Mutex::new(state),
            due: Notify::new(),
            metrics,
        })
    }

    /// The channel to subscribe to before the patterns.
    pub(super) fn own(&self) -> &str {
        &self.own
    }

    /// The patterns to subscribe to. Those of companions are in the same command.
    pub(super) fn patterns(&self) -> Vec<&str> {
        self.patterns.keys().map(String::as_str).collect()
    }

    /// Whether plain messages of the channel get positions.
    pub(super) fn numbers(&self, channel: &ChannelName) -> bool {
        self.rules.of(channel).numbered
    }

    /// Whether the rule of the channel is the one with this pattern, so that the message counts.
    pub(super) fn is_rule_of(&self, pattern: &[u8], channel: &ChannelName) -> bool {
        let index = std::str::from_utf8(pattern).ok().and_then(|pattern| self.patterns.get(pattern));
        index.is_some() && self.rules.index_of(channel).as_ref() == index
    }

    /// All subscriptions are confirmed: the instance becomes a member.
    pub(super) fn on_subscribed(&self) {
        let word = rand::random::<u64>() | 1;
        let mut state = self.lock();
        state.participant.on_connected(word);
        state.join = Some(word);
        drop(state);
        self.due.notify_one();
    }

    /// The connection has ended.
    pub(super) fn on_disconnected(&self) {
        let mut state = self.lock();
        state.join = None;
        state.participant.on_disconnected();
        self.count(&mut state);
        drop(state);
        self.due.notify_one();
    }

    /// The instance is about to stop.
    pub(super) fn leave(&self) {
        let word = rand::random::<u64>() | 1;
        let mut state = self.lock();
        if state.participant.leave(word) {
            state.join = Some(word);
        }
        drop(state);
        self.due.notify_one();
    }

    /// Handles a plain message.
    pub(super) fn on_plain(&self, channel: &ChannelName, payload: Bytes) {
        self.lock().participant.on_plain(channel, payload);
    }

    /// Handles what Redis tells the members. Adds events of channels that are wanted.
    pub(super) fn on_own(
        &self,
        text: &[u8],
        is_wanted: impl Fn(&ChannelName) -> bool,
        out: &mut Vec<Event>,
    ) -> Result<(), Disorder> {
        let text = String::from_utf8_lossy(text);
        let mut state = self.lock();
        if let Some(marker) = parse_marker(&text, &self.names) {
            let (is_wanted, mut numbered) = (is_wanted(&marker.channel), 0);
            state.participant.on_marker(&marker, &mut |event| {
                numbered += u64::from(matches!(event, Event::Arrived(..)));
                out.extend(is_wanted.then_some(event));
            });
            self.metrics.numbering.numbered.inc_by(numbered);
        } else if let Some(announcement) = parse_announcement(&text) {
            state.participant.on_announcement(announcement)?;
        } else {
            tracing::warn!("unreadable message on {}", self.own);
        }
        Ok(())
    }

    /// Sends what is due, after messages have arrived.
    pub(super) fn wake(&self) {
        let mut state = self.lock();
        self.count(&mut state);
        if state.is_leader {
            self.due.notify_one();
        }
    }

    fn count(&self, state: &mut State) {
        let metrics = &self.metrics.numbering;
        metrics.waiting.set(i64::try_from(state.participant.waiting()).unwrap_or(i64::MAX));
        let lost = state.participant.take_lost();
        if lost > 0 {
            metrics.lost.inc_by(lost);
            static REPEATED: LazyLock<LogThrottle> = LazyLock::new(LogThrottle::default);
            if REPEATED.happened("lost").is_some() {
                tracing::warn!(
                    lost_since_start = metrics.lost.get(),
                    "dropped plain messages without positions: there was no room, or this instance stood still"
                );
            }
        }
        let is_leader = state.participant.is_leader();
        if is_leader && !state.is_leader {
            metrics.takeovers.inc();
            tracing::info!("this instance gives plain messages their positions");
        }
        state.is_leader = is_leader;
    }

    /// Sends requests, one round trip after the other, as long as the process runs.
    pub(super) async fn run(self: Arc<Self>, node: Arc<Node>) {
        let mut connection = None;
        let mut renewals = interval(RENEWAL);
        renewals.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let renews = tokio::select! {
                _ = renewals.tick() => true,
                () = self.due.notified() => false,
            };
            let requests = self.take_requests(renews);
            if requests.is_empty() {
                continue;
            }
            let began = Instant::now();
            let round = timeout(2 * ANSWER_TIMEOUT, round_trip(&node, &mut connection, &requests)).await;
            let answers = round.unwrap_or_else(|_| Err(ClientError::timed_out())).unwrap_or_else(|error| {
                tracing::debug!(%error, "the numbering of plain messages had no answer");
                connection = None;
                Vec::new()
            });
            self.apply(&requests, &answers);
            if requests.len() >= MANY_CHANNELS {
                sleep(began.elapsed().min(LONGEST_REST)).await;
            }
        }
    }

    fn take_requests(&self, renews: bool) -> Vec<Request> {
        let mut state = self.lock();
        let mut requests = Vec::new();
        let State { participant, join, .. } = &mut *state;
        let highest = participant.highest_barrier();
        if renews {
            participant.retry();
            let members = participant.to_renew();
            requests.extend((!members.is_empty()).then_some(Request::Renew(members)));
            requests.extend(participant.wants_barrier().then_some(Request::Barrier { highest }));
        }
        requests.extend(participant.appends().into_iter().map(Request::Append));
        requests.extend(join.take().map(|word| Request::Join { word, highest }));
        let remove = participant.to_remove();
        requests.extend((!remove.is_empty()).then_some(Request::Remove(remove)));
        requests
    }

    fn apply(&self, requests: &[Request], answers: &[Answer]) {
        let mut state = self.lock();
        let mut is_refused = false;
        for (index, request) in requests.iter().enumerate() {
            let answer = answers.get(index).copied().unwrap_or(Answer::Failed);
            match request {
                Request::Append(append) => {
                    is_refused |= !matches!(answer, Answer::Through(_));
                    self.metrics.numbering.refused.inc_by(u64::from(!matches!(answer, Answer::Through(_))));
                    state.participant.on_answer(append.since, &append.channel, answer);
                }
                // It may be executed late, so that there are two barriers, which does no harm.
                Request::Join { word, .. } if answer == Answer::Failed => state.join = state.join.or(Some(*word)),
                _ => {}
            }
        }
        self.count(&mut state);
        if !is_refused && requests.iter().any(|request| matches!(request, Request::Append(_))) {
            self.due.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every statement leaves the state consistent, so a poisoned lock is safe to use.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sends the requests and returns the answers.
async fn round_trip(
    node: &Node,
    slot: &mut Option<Connection>,
    requests: &[Request],
) -> Result<Vec<Answer>, ClientError> {
    let mut connection = match slot.take().filter(|connection| connection.generation == node.generation()) {
        Some(connection) => connection,
        None => node.connect_prepared().await?,
    };
    requests.iter().for_each(|request| write(request, node.library(), &mut connection));
    let mut answers = Vec::with_capacity(requests.len());
    let mut lacks_library = false;
    while answers.len() < requests.len() {
        connection.read_or_write().await?;
        connection.frames(|frame| {
            answers.push(match frame {
                Frame::Array(items) if items.len() == 0 && matches!(requests[answers.len()], Request::Append(_)) => {
                    Answer::Older
                }
                Frame::Array(items) if items.len() == 0 => Answer::Through(Place::default()),
                Frame::Array(items) => place(items).map_or(Answer::Failed, Answer::Through),
                Frame::Refused(why) => {
                    let why = String::from_utf8_lossy(why);
                    lacks_library |= is_missing(&why);
                    report_refusal(&why);
                    Answer::Failed
                }
                _ => Answer::Failed,
            });
            Ok(())
        })?;
    }
    if lacks_library {
        node.give_up(connection.generation);
    } else {
        *slot = Some(connection);
    }
    Ok(answers)
}

/// Logs that Redis refused a request, unless it only lacks the library.
fn report_refusal(why: &str) {
    static REPEATED: LazyLock<LogThrottle> = LazyLock::new(LogThrottle::default);
    if !is_missing(why)
        && let Some(times) = REPEATED.happened("refused")
    {
        tracing::warn!(%why, times, "Redis refuses what gives plain messages their positions; run `livebridge check`");
    }
}

fn place(mut items: Items<'_>) -> Option<Place> {
    let mut next = || match items.next()? {
        Item::Number(number) => Some(number),
        Item::Text(text) => std::str::from_utf8(text).ok()?.parse().ok(),
        _ => None,
    };
    Some(Place::new(next()?, next()?))
}

fn write(request: &Request, library: &Library, connection: &mut Connection) {
    let members = Keys::Name(library.names().members().into());
    let numbers = |numbers: &[u64]| numbers.iter().map(ToString::to_string).collect::<Vec<_>>();
    let mut send = |function: Function, keys: &Keys<'_>, words: Vec<String>, payloads: &[Bytes]| {
        let mut command = library.call(function, keys);
        command.extend(words.iter().map(String::as_bytes));
        command.extend(payloads.iter().map(|payload| &payload[..]));
        resp::write_command(command.into_iter(), connection.outgoing());
    };
    match request {
        Request::Renew(all) => send(MEMBER, &members, [vec!["renew".into()], numbers(all)].concat(), &[]),
        Request::Remove(all) => send(MEMBER, &members, [vec!["remove".into()], numbers(all)].concat(), &[]),
        Request::Join { word, highest } => {
            send(MEMBER, &members, vec!["join".into(), word.to_string(), highest.to_string()], &[]);
        }
        Request::Barrier { highest } => {
            send(MEMBER, &members, vec!["barrier".into(), "0".into(), highest.to_string()], &[]);
        }
        Request::Append(append) => {
            let words = numbers(&[append.since, append.place.barrier, append.place.index]);
            send(NUMBER, &library.keys(append.channel.as_str()), words, &append.payloads);
        }
    }
}

/// Parses `n CHANNEL EPOCH OFFSET STAMP BARRIER INDEX COUNT BYTES`.
fn parse_marker(text: &str, names: &Names) -> Option<Marker> {
    let mut words = text.strip_prefix("n ")?.split(' ');
    let (_, channel) = names.parse(words.next()?.as_bytes())?;
    let channel = std::str::from_utf8(channel).ok()?.parse().ok()?;
    let mut next = || words.next()?.parse::<u64>().ok();
    let first = Position::new(next()?, next()?);
    let stamp = next()?;
    let place = Place::new(next()?, next()?);
    let count = usize::try_from(next()?).ok()?;
    let bytes = usize::try_from(next()?).ok()?;
    Some(Marker { channel, first, stamp, place, count, bytes })
}

/// Parses `m BARRIER WORD MEMBER...`.
fn parse_announcement(text: &str) -> Option<Announcement> {
    let mut words = text.strip_prefix("m ")?.split(' ').map(str::parse::<u64>);
    let (barrier, word) = (words.next()?.ok()?, words.next()?.ok()?);
    let members = words.collect::<Result<_, _>>().ok()?;
    Some(Announcement { barrier: (barrier > 0).then_some((barrier, word)), members })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_redis_tells_the_members_is_understood_and_nothing_else() {
        let names = Names::new("app1:", false);
        let marker = parse_marker("n app1:orders 9 4 99 7 2 3 30", &names).expect("a marker");
        let expected = Marker {
            channel: "orders".parse().expect("valid"),
            first: Position::new(9, 4),
            stamp: 99,
            place: Place::new(7, 2),
            count: 3,
            bytes: 30,
        };
        assert_eq!(marker, expected);
        let announcement = parse_announcement("m 8 5 7 8").expect("an announcement");
        assert_eq!((announcement.barrier, announcement.members), (Some((8, 5)), vec![7, 8]));
        assert_eq!(parse_announcement("m 0 0").map(|it| (it.barrier, it.members)), Some((None, vec![])));
        for text in ["", "m", "m x 0", "n app1:orders 9 4 99 7 2 3", "n orders 9 4 99 7 2 3 30"] {
            assert!(parse_marker(text, &names).is_none() && parse_announcement(text).is_none(), "{text}");
        }
    }
}
