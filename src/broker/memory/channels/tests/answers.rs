//! Tests of the results of reads and retries, and of what they leave in the table.

use super::*;

#[test]
fn reading_ten_thousand_names_that_nobody_published_to_leaves_nothing() {
    let world = World::new(1 << 20);
    for number in 0..10_000 {
        let channel = format!("unknown-{number}");
        for from in [ReadFrom::Tail, ReadFrom::Oldest, ReadFrom::Last(5), ReadFrom::Keys] {
            let page = world.read(&channel, from);
            let here = Tail { position: Position::new(world.now, 0), stamp: 0 };
            assert_eq!(page, Page { gap: None, messages: Vec::new(), through: here, tail: here });
        }
        let page = world.read(&channel, ReadFrom::After(Position::new(world.now - 1, 3)));
        let gap = Gap { resumes_after: Position::new(world.now, 0), reason: GapReason::EpochChanged };
        assert_eq!((page.gap, page.messages.len()), (Some(gap), 0));
    }
    assert_eq!((world.channels.held.capacity(), world.channels.bytes), (0, 0));
    world.check_sums();
}

#[test]
fn a_position_from_before_the_first_message_misses_nothing() {
    let mut world = World::new(1 << 20);
    let before = world.read("a", ReadFrom::Tail).tail;
    world.later(SECOND);
    // As long as the channel has no messages, the position stays the same.
    for from in [ReadFrom::After(before.position), ReadFrom::AfterDelivered(before)] {
        assert_eq!(world.read("a", from), Page { gap: None, messages: Vec::new(), through: before, tail: before });
    }
    let first = world.publish("a", 1);
    assert_eq!(first, Position::new(world.now, 1));
    world.publish("a", 1);
    for from in [ReadFrom::After(before.position), ReadFrom::AfterDelivered(before)] {
        let page = world.read("a", from);
        assert_eq!((page.gap, offsets(&page)), (None, vec![1, 2]));
        assert_eq!(page.through.position, Position::new(first.epoch, 2));
    }
    // A loss is still reported.
    world.later(301 * SECOND);
    let page = world.read("a", ReadFrom::After(before.position));
    assert_eq!(page.gap.map(|gap| gap.resumes_after), Some(Position::new(first.epoch, 2)));
    assert_eq!(reason(&page), Some(GapReason::HistoryTrimmed));
}

#[test]
fn a_position_from_before_the_first_key_misses_no_key() {
    let mut world = World::new(1 << 20);
    let before = world.read("sheet", ReadFrom::Tail).tail.position;
    world.later(SECOND);
    for key in ["a", "b", "a"] {
        world.set(key, false);
    }
    world.set("b", true);
    let page = world.read("sheet", ReadFrom::After(before));
    assert_eq!((page.gap, offsets(&page)), (None, vec![1, 2, 3, 4]));
    world.later(301 * SECOND);
    let page = world.read("sheet", ReadFrom::After(before));
    assert_eq!((page.gap, offsets(&page)), (None, vec![3, 4]), "the log is gone, the keys and removals are not");
}

#[test]
fn a_position_is_not_taken_for_one_from_before_the_first_message() {
    let mut world = World::new(1 << 20);
    world.later(30 * 3600 * SECOND);
    let now = world.now;
    let refused = |world: &World, epoch, offset| {
        let page = world.read("a", ReadFrom::After(Position::new(epoch, offset)));
        assert_eq!(reason(&page), Some(GapReason::EpochChanged), "{epoch}:{offset}");
        page
    };
    for existing in [false, true] {
        if existing {
            world.publish("a", 1);
        }
        // From another process, too old, in the future, or not at offset 0.
        for epoch in [START - 1, START, now - RETAIN, now + SECOND] {
            let page = refused(&world, epoch, 0);
            assert_eq!(page.gap.map(|gap| gap.resumes_after), Some(Position::new(world.now, 0)));
        }
        refused(&world, now - SECOND, 1);
        let valid = Position::new(now - RETAIN + 1, 0);
        assert_eq!(reason(&world.read("a", ReadFrom::After(valid))), None);
    }
}

#[test]
fn two_lives_of_a_channel_never_share_an_epoch_and_the_first_is_not_mistaken_for_none() {
    let mut world = World::new(1 << 20);
    let epochs: Vec<_> = (0..100).map(|number| world.publish(&format!("c{number}"), 1).epoch).collect();
    assert!(epochs.is_sorted_by(|one, next| one < next), "in one microsecond");
    let before = world.read("b", ReadFrom::Tail).tail.position;
    let first = world.publish("b", 1);
    assert!(first.epoch >= before.epoch);
    world.channels.drop_channel(&name("b"));
    // Both positions are from before the message that was dropped with the channel.
    for position in [before, Position::new(first.epoch, 0)] {
        assert_eq!(reason(&world.read("b", ReadFrom::After(position))), Some(GapReason::EpochChanged));
    }
    let between = world.read("b", ReadFrom::Tail).tail.position;
    assert_eq!(reason(&world.read("b", ReadFrom::After(between))), None);
    assert!(world.publish("b", 1).epoch > first.epoch);
    assert_eq!(reason(&world.read("b", ReadFrom::After(before))), Some(GapReason::EpochChanged));
    assert_eq!(offsets(&world.read("b", ReadFrom::After(between))), [1]);
}

#[test]
fn a_channel_ends_a_day_after_its_last_message() {
    let mut world = World::new(1 << 20);
    let first = world.publish("a", 1);
    world.later(RETAIN - 1);
    assert_eq!(world.read("a", ReadFrom::Tail).tail.position, first);
    world.publish("a", 1);
    world.later(RETAIN - 1);
    world.publish("other", 1);
    assert_eq!(world.read("a", ReadFrom::Tail).tail.position, Position::new(first.epoch, 2));
    world.later(1);
    assert_eq!(world.read("a", ReadFrom::Tail).tail.position, Position::new(world.now, 0));
    assert_eq!(world.publish("a", 1).offset, 1);
    // Even though its entry in the order has the time of its first message.
    world.later(IDLE_STEP / 2);
    let last = world.publish("a", 1);
    world.later(RETAIN - 1);
    world.channels.expire(world.now, 1000);
    assert_eq!(world.read("a", ReadFrom::Tail).tail.position, last);
    world.check_sums();
}

#[test]
fn age_and_count_bound_exactly_what_is_read() {
    let mut world = World::new(1 << 20);
    world.history = History { messages: 3, age: Duration::from_secs(10) };
    for _ in 0..5 {
        world.publish("a", 1);
        world.later(SECOND);
    }
    assert_eq!(offsets(&world.read("a", ReadFrom::Oldest)), [3, 4, 5]);
    world.later(7 * SECOND + 1000);
    // Nothing has dropped the expired messages: they still use memory.
    assert_eq!(offsets(&world.read("a", ReadFrom::Oldest)), [4, 5]);
    assert_eq!(offsets(&world.read("a", ReadFrom::Last(3))), [4, 5]);
    let epoch = world.read("a", ReadFrom::Tail).tail.position.epoch;
    assert_eq!(reason(&world.read("a", ReadFrom::After(Position::new(epoch, 2)))), Some(GapReason::HistoryTrimmed));
    assert_eq!(offsets(&world.read("a", ReadFrom::After(Position::new(epoch, 3)))), [4, 5]);
}

#[test]
fn stamps_never_decrease() {
    let mut world = World::new(1 << 20);
    for time in [0, 5 * SECOND, 2 * SECOND, 9 * SECOND] {
        world.now = START + time;
        world.publish("a", 1);
    }
    let stamps: Vec<_> =
        world.read("a", ReadFrom::Oldest).messages.iter().map(|message| message.stamp - START / 1000).collect();
    assert_eq!(stamps, [0, 5000, 5000, 9000]);
}

#[test]
fn a_thousand_removals_are_remembered_and_then_the_oldest_is_forgotten() {
    let mut world = World::new(1 << 30);
    world.history = History { messages: 1, ..HISTORY };
    let epoch = world.set("stays", false).epoch;
    for number in 0..1001 {
        world.set(&format!("gone-{number}"), true);
    }
    let changed = |offset| world.read("sheet", ReadFrom::After(Position::new(epoch, offset)));
    assert_eq!((reason(&changed(1)), changed(1).messages.len()), (Some(GapReason::HistoryTrimmed), 1));
    assert_eq!((reason(&changed(2)), offsets(&changed(2))), (None, (3..=1002).collect()));
    assert_eq!((reason(&changed(900)), offsets(&changed(900))), (None, (901..=1002).collect()));
    world.check_sums();
}

#[test]
fn an_id_answers_its_retry_and_refuses_another_message() {
    let mut world = World::new(1 << 20);
    let Ok(Published::New(message)) = world.send(with_id("a", 1, "x")) else { panic!("there is room") };
    world.later(599 * SECOND);
    let Ok(Published::Known(position)) = world.send(with_id("a", 1, "x")) else { panic!("it is a retry") };
    assert_eq!(Some(position), message.position);
    assert!(matches!(world.send(with_id("a", 2, "x")), Err(BrokerError::IdReused)));
    assert!(matches!(world.send(with_id("b", 2, "x")), Ok(Published::New(_))), "another channel");
    world.later(SECOND);
    assert!(matches!(world.send(with_id("a", 2, "x")), Ok(Published::New(_))), "ten minutes later");
    world.check_sums();
}
