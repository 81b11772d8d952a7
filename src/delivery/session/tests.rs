//! Tests of a session on a real hub with the embedded broker: subscriptions start and end, and
//! sockets take any number of bytes.

use super::*;
use crate::broker::memory::MemoryBroker;
use crate::broker::{Broker, Publication, RequestSize};
use crate::channel::ChannelName;
use crate::delivery::encoding::{EVENTS, MULTI_CHANNEL_EVENTS, WEBSOCKET_JSON, WEBSOCKET_RAW};
use crate::delivery::framing::websocket::{self, Opcode};
use crate::delivery::subscription::Rights;
use crate::hub::Hub;
use crate::hub::dispatch::Dispatcher;
use crate::hub::log::LogBounds;
use crate::hub::topic::Start;
use crate::observability::metrics::Metrics;
use crate::rules::Rules;
use crate::transport::byte_budget::Budget;

/// A hub whose channels keep histories, and a session.
struct World {
    broker: Arc<MemoryBroker>,
    hub: Arc<Hub>,
    session: Session,
    batch: EncodedBatch,
    /// The number of bytes that the socket takes before it is full.
    room: usize,
    taken: Vec<u8>,
}

impl World {
    fn new(encoding: &'static Encoding) -> Self {
        let dispatcher = Arc::new(Dispatcher::new(usize::MAX, 1, Arc::new(Metrics::new(1))));
        let rules = Arc::new(Rules::parse("[[channel]]\nmatch = '*'\nhistory = { messages = 100 }\n").expect("rules"));
        let broker = Arc::new(MemoryBroker::new(dispatcher.clone(), rules.clone()));
        let bounds = LogBounds { entries: 100, bytes: 1 << 20 };
        let hub = Hub::new(dispatcher, broker.clone(), rules, bounds, Arc::default());
        tokio::spawn(hub.clone().run());
        let session = Session::new(encoding, Vec::new(), 1);
        Self { broker, hub, session, batch: EncodedBatch::default(), room: usize::MAX, taken: Vec::new() }
    }

    async fn subscribe(&mut self, channel: &str, start: Start) -> SubscriptionKey {
        let membership = self.hub.join(&name(channel), RequestSize::Small).await.expect("a broker");
        let rights = Rights { publish: channel == "a" };
        self.session.subscribe(NewSubscription { membership, start, rights, page: None, attendance: None }).0
    }

    /// Publishes, and returns the position as text.
    async fn publish(&self, channel: &str, payload: &str) -> String {
        let publication = Publication {
            channel: name(channel),
            payload: payload.to_owned().into(),
            key: None,
            remove: false,
            id: None,
        };
        let result = self.broker.publish(vec![publication]).await.remove(0).expect("a broker");
        result.expect("a history").to_string()
    }

    /// Offers the log of a topic from `cursor` on, like the fan-out.
    fn offer(&mut self, key: SubscriptionKey, topic: &Topic, cursor: u64) -> bool {
        assert!(self.batch.fill(topic, cursor, self.session.encoding()));
        let Self { session, batch, room, taken, .. } = self;
        session.offer(key, batch, &mut EncodedBatch::default(), &mut |bytes| take(bytes, room, taken))
    }

    fn pump(&mut self) -> Waits {
        let Self { session, batch, room, taken, .. } = self;
        session.pump(batch, &mut |bytes| take(bytes, room, taken))
    }

    fn topic(&self, key: SubscriptionKey) -> Arc<Topic> {
        self.session.subscription(key).expect("a subscription").topic().clone()
    }

    fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.taken)
    }
}

/// Text frames.
fn frames(payloads: &[&str]) -> Vec<u8> {
    let mut out = Vec::new();
    payloads.iter().for_each(|payload| websocket::write(Opcode::Text, payload.as_bytes(), &mut out));
    out
}

fn name(channel: &str) -> ChannelName {
    channel.parse().expect("a name")
}

fn take(bytes: &[u8], room: &mut usize, taken: &mut Vec<u8>) -> io::Result<usize> {
    let length = bytes.len().min(*room);
    if length == 0 {
        return Err(io::ErrorKind::WouldBlock.into());
    }
    *room -= length;
    taken.extend_from_slice(&bytes[..length]);
    Ok(length)
}

#[tokio::test]
async fn a_living_session_subscribes_and_unsubscribes_at_any_time() {
    let mut world = World::new(&WEBSOCKET_RAW);
    let a = world.subscribe("a", Start::Live).await;
    assert_eq!(world.session.only_subscription().map(Subscription::rights), Some(Rights { publish: true }));
    world.publish("a", "1").await;
    world.publish("b", "before it was subscribed to").await;
    assert_eq!((world.pump(), world.take()), (Waits::News, frames(&["1"])));

    let b = world.subscribe("b", Start::Live).await;
    assert!(world.session.only_subscription().is_none());
    world.publish("b", "2").await;
    world.publish("a", "3").await;
    assert_eq!((world.pump(), world.take()), (Waits::News, frames(&["3", "2"])));

    let ended = world.session.unsubscribe(a).expect("a subscription");
    world.publish("a", "4").await;
    world.publish("b", "5").await;
    let topic = world.topic(b);
    assert!(world.offer(b, &topic, topic.end() - 1));
    assert!(world.offer(a, ended.topic(), 0), "the subscription is gone, so there is nothing to do");
    assert_eq!(world.take(), frames(&["5"]));

    // The key is reused. An answer for the earlier subscription does not affect this one.
    let again = world.subscribe("a", Start::After(Position::new(1, 1))).await;
    assert!(again == a && matches!(world.pump(), Waits::History(key, _) if key == a));
    world.session.set_page(again, &topic, None);
    assert!(matches!(world.pump(), Waits::History(..)));
    let topic = world.topic(a);
    world.session.set_page(again, &topic, None);
    world.publish("a", "6").await;
    assert_eq!((world.pump(), world.take()), (Waits::News, frames(&["6"])));
    assert_eq!(world.session.take_delivered(), 5);
}

#[tokio::test]
async fn unsubscribe_sends_only_the_rest_of_a_partial_frame() {
    let mut world = World::new(&WEBSOCKET_RAW);
    let a = world.subscribe("a", Start::Live).await;
    let b = world.subscribe("b", Start::Live).await;
    world.publish("a", "first").await;
    world.publish("a", "second").await;
    world.publish("b", "third").await;
    world.room = 4;
    let topic = world.topic(a);
    assert!(!world.offer(a, &topic, 0));
    world.session.unsubscribe(a);
    world.room = usize::MAX;
    assert_eq!((world.pump(), world.take()), (Waits::News, frames(&["first", "third"])));
    world.session.unsubscribe(b);
    assert_eq!((world.pump(), world.session.subscriptions().count()), (Waits::News, 0));
}

#[tokio::test]
async fn delivery_goes_on_from_whatever_byte_the_socket_stopped_at() {
    for encoding in [&WEBSOCKET_RAW, &WEBSOCKET_JSON, &EVENTS, &MULTI_CHANNEL_EVENTS] {
        let mut world = World::new(encoding);
        let key = world.subscribe("a", Start::Live).await;
        let mut boundaries = vec![0];
        for payload in ["one", "two", "three"] {
            world.publish("a", payload).await;
            world.pump();
            boundaries.push(world.taken.len());
        }
        let (topic, whole) = (world.topic(key), world.take());
        for (cut, offered) in (0..=whole.len()).flat_map(|cut| [(cut, true), (cut, false)]) {
            world.session = Session::new(encoding, Vec::new(), 1);
            let key = world.subscribe("a", Start::Last(3)).await;
            world.room = cut;
            if offered {
                world.offer(key, &topic, 0);
            } else {
                world.pump();
            }
            // A notice comes after the partly written frame and before other frames.
            world.session.queue_control(|out| out.push(b'!'));
            world.room = usize::MAX;
            assert_eq!(world.pump(), Waits::News);
            let mut taken = world.take();
            let notice = taken.iter().position(|&byte| byte == b'!').expect("the notice");
            assert!(boundaries.contains(&notice), "{notice} in {boundaries:?}, cut at {cut}");
            taken.remove(notice);
            assert_eq!(taken, whole, "cut at {cut}, offered: {offered}");
            assert_eq!(world.session.take_delivered(), 3);
        }
    }
}

#[tokio::test]
async fn an_event_of_several_channels_lists_the_positions_of_the_client_that_gets_it() {
    let mut world = World::new(&MULTI_CHANNEL_EVENTS);
    let mut ids = Vec::new();
    let b_before = world.publish("b", "before").await;
    for order in [["a", "b"], ["b", "a"], ["a", "b"]] {
        world.session = Session::new(&MULTI_CHANNEL_EVENTS, Vec::new(), 2);
        let mut a = 0;
        for channel in order {
            let key = world.subscribe(channel, Start::Live).await;
            a = if channel == "a" { key } else { a };
        }
        let (topic, end) = (world.topic(a), world.topic(a).end());
        let position = world.publish("a", "x").await;
        assert!(world.offer(a, &topic, end), "it needs no turn of its own");
        let text = String::from_utf8(world.take()).expect("UTF-8");
        let id = text.lines().find_map(|line| line.strip_prefix("id: ")).expect("an id").to_owned();
        ids.push((id, [position, b_before.clone()]));
    }
    for (index, (id, [a, b])) in ids.into_iter().enumerate() {
        assert_eq!(id, if index == 1 { format!("{b},{a}") } else { format!("{a},{b}") });
    }
}

#[tokio::test]
async fn a_client_that_is_closed_gets_the_frame_under_way_and_then_the_close() {
    let mut world = World::new(&WEBSOCKET_RAW);
    let key = world.subscribe("a", Start::Live).await;
    let position = world.publish("a", "first").await;
    world.publish("a", "second").await;
    let topic = world.topic(key);
    world.room = 3;
    world.offer(key, &topic, 0);
    assert_eq!(world.session.backlog(), Some(1));
    let held = world.session.subscription(key).and_then(|held| held.position).expect("a position");
    assert_eq!(held.to_string(), position);
    world.session.end(too_slow(Some(held)));
    world.session.end(Close::new(Code::Restarting, "a second reason does not count"));
    world.room = usize::MAX;
    assert_eq!(world.pump(), Waits::End);
    let mut expected = frames(&["first"]);
    let close = too_slow(Some(held));
    websocket::write_close(close.code.number(), &close.reason(), &mut expected);
    assert_eq!(world.take(), expected);
}

#[tokio::test]
async fn a_session_that_catches_up_writes_one_batch_in_a_turn_and_its_channels_take_turns() {
    let mut world = World::new(&WEBSOCKET_RAW);
    let (a, b) = (world.subscribe("a", Start::Live).await, world.subscribe("b", Start::Live).await);
    for channel in ["a", "b"] {
        for number in 10..30 {
            world.publish(channel, &format!("{channel}{number}").repeat(4000)).await;
        }
    }
    world.hub.join(&name("c"), RequestSize::Small).await.expect("all before it was heard");
    let mut received = Vec::new();
    while world.pump() == Waits::Permit {
        let taken = world.take();
        assert!(taken.len() < OWN_BYTES + 13_000, "{} bytes in one turn", taken.len());
        received.push(taken[4]);
    }
    assert_eq!(received[..4], *b"abab", "a batch of the one, then a batch of the other");
    let last = world.take();
    assert!(last.len() < OWN_BYTES, "{} bytes in one turn", last.len());
    let ends = [a, b].map(|key| world.session.subscription(key).expect("a subscription").backlog());
    assert_eq!((ends, received.len()), ([0, 0], 6));
}

#[tokio::test]
async fn a_large_frame_that_sockets_cut_is_held_once_and_counted_until_all_have_it() {
    const FRAME: usize = 50_000 + 4;
    let outgoing = Budget::new(FRAME + 1000);
    let mut world = World::new(&WEBSOCKET_RAW);
    world.batch = EncodedBatch::new(outgoing.clone());
    let first = world.subscribe("a", Start::Live).await;
    world.publish("a", &"x".repeat(50_000)).await;
    let one = std::mem::replace(&mut world.session, Session::new(&WEBSOCKET_RAW, Vec::new(), 1));
    let second = world.subscribe("a", Start::Last(1)).await;
    let topic = world.topic(second);
    let two = std::mem::replace(&mut world.session, one);
    world.room = 1000;
    assert!(!world.offer(first, &topic, 0), "its socket is full");
    let one = std::mem::replace(&mut world.session, two);
    world.room = 2000;
    let World { session, batch, room, taken, .. } = &mut world;
    assert!(
        !session.offer(second, batch, &mut EncodedBatch::default(), &mut |bytes| take(bytes, room, taken)),
        "its socket is full"
    );
    assert_eq!(outgoing.used(), FRAME, "both have the same bytes");
    assert!(world.session.ending().is_none());
    drop(one);
    world.batch.clear();
    assert_eq!(outgoing.used(), FRAME);
    // Another frame exceeds the budget: its subscriber is closed, and the rest of the frame is held
    // until then.
    let two = std::mem::replace(&mut world.session, Session::new(&WEBSOCKET_RAW, Vec::new(), 1));
    let third = world.subscribe("a", Start::Last(1)).await;
    world.room = 1000;
    assert!(!world.offer(third, &topic, 0));
    assert_eq!(world.session.ending().and_then(|close| close.code.number()), Some(1013));
    assert_eq!(outgoing.used(), 2 * FRAME);
    drop(std::mem::replace(&mut world.session, two));
    world.batch.clear();
    world.room = usize::MAX;
    world.taken.clear();
    assert_eq!((world.pump(), world.take().len()), (Waits::News, FRAME - 2000));
    assert_eq!(outgoing.used(), 0);
}
