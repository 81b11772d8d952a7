//! Tests of freeing memory, of making room for a message, and of refusals.

use super::*;

#[test]
fn what_expires_is_dropped_and_nothing_else_is_looked_at() {
    let mut world = World::new(1 << 30);
    for number in 0..5000 {
        world.publish(&format!("c{number}"), 1);
        world.later(SECOND / 1000);
    }
    // All but the messages of the last second have expired; one step for each message and channel.
    world.later(296 * SECOND);
    assert!(!world.channels.expire(world.now, 1));
    world.later(4 * SECOND);
    let mut steps = 0;
    while world.channels.expire(world.now, 10) {
        steps += 10;
    }
    let left = world.channels.by_age.len();
    assert!((900..=1100).contains(&left), "{left}");
    assert!(steps <= 2 * (5000 - left) + 10, "{steps}");
    assert_eq!((world.channels.held.len(), world.channels.log_bytes > 0), (5000, true));
    world.later(2 * SECOND);
    while world.channels.expire(world.now, 1000) {}
    assert_eq!((world.channels.log_bytes, world.channels.by_age.len()), (0, 0));
    world.check_sums();
    world.later(RETAIN);
    while world.channels.expire(world.now, 1000) {}
    assert_eq!((world.channels.held.len(), world.channels.bytes), (0, 0));
    assert_eq!(world.channels.next_expiry, Micros::MAX);
    world.check_sums();
}

#[test]
fn publishing_elsewhere_gives_back_what_has_aged_as_fast_as_it_adds() {
    let mut world = World::new(1 << 30);
    for _ in 0..100 {
        world.publish("idle", 1000);
        world.send(with_id("idle", 1, &world.channels.bytes.to_string())).expect("there is room");
    }
    world.later(601 * SECOND);
    for _ in 0..2 * 200 / STEPS_PER_PUBLISH + 2 {
        world.publish("busy", 1);
    }
    assert_eq!(world.channels.held[&name("idle")].history.bytes(), 0);
    world.check_sums();
}

#[test]
fn a_retry_is_answered_where_a_new_message_finds_no_room() {
    let mut world = World::new(100_000);
    let accepted = Publication { key: Some("k".into()), ..with_id("sheet", 40_000, "first") };
    assert!(matches!(world.send(accepted.clone()), Ok(Published::New(_))));
    for (bytes, id) in [(40_000, "second"), (100_000, "third"), (20_000, "fourth")] {
        let more = Publication { key: Some(id.into()), ..with_id("sheet", bytes, id) };
        assert!(matches!(world.send(more), Err(BrokerError::Refused(_))), "{bytes}");
    }
    assert!(matches!(world.send(accepted), Ok(Published::Known(Position { offset: 1, .. }))));
    world.check_sums();
}

#[test]
fn a_refused_message_leaves_nothing() {
    let mut world = World::new(100_000);
    world.publish("other", 10_000);
    let (bytes, others) = (world.channels.bytes, world.channels.held.len());
    assert!(matches!(world.send(with_id("a", 100_000, "x")), Err(BrokerError::Refused(_))));
    assert_eq!((world.channels.bytes, world.channels.held.len()), (bytes, others));
    assert_eq!(offsets(&world.read("other", ReadFrom::Oldest)), [1], "nor does it cost others anything");
    let mut full = Publication { key: Some("k".into()), ..publication("sheet", 90_000) };
    full.payload = vec![0; (4 << 20) + 1].into();
    assert!(matches!(world.send(full), Err(BrokerError::KeyedChannelFull(_))));
    assert_eq!(world.channels.held.len(), others);
    world.check_sums();
}

#[test]
fn one_channel_that_fills_up_is_shortened_and_the_others_keep_what_they_have() {
    let mut world = World::new(1 << 20);
    world.history = History { messages: 1_000_000, ..HISTORY };
    for number in 0..20 {
        world.publish(&format!("small-{number}"), 1000);
    }
    for _ in 0..5000 {
        world.publish("large", 1000);
        assert!(world.channels.bytes <= 1 << 20);
    }
    world.publish("small-0", 1000);
    assert_eq!(offsets(&world.read("small-0", ReadFrom::Oldest)), [1, 2]);
    for number in 1..20 {
        assert_eq!(offsets(&world.read(&format!("small-{number}"), ReadFrom::Oldest)), [1]);
    }
    let kept = world.read("large", ReadFrom::Oldest);
    assert_eq!(kept.tail.position.offset, 5000);
    assert!(kept.messages.len() > 500);
    world.check_sums();
}

#[test]
fn an_eighth_is_free_after_room_was_made() {
    let mut world = World::new(1 << 20);
    world.history = History { messages: 1_000_000, ..HISTORY };
    let before = loop {
        let before = world.channels.bytes;
        world.publish("a", 1000);
        world.publish("b", 500);
        if world.channels.bytes < before {
            break before;
        }
    };
    assert!(before > (1 << 20) - 4000, "{before}");
    let made = before - world.channels.bytes;
    assert!((1 << 17) - 4000 < made && made < (1 << 17) + 4000, "{made}");
    world.check_sums();
}

#[test]
fn channels_idle_for_longest_are_dropped_where_logs_are_not_what_takes_the_room() {
    let mut world = World::new(1 << 20);
    let keyed = |channel: &str| Publication { key: Some("k".into()), ..publication(channel, 20_000) };
    let sheets: Vec<_> = (0..60).map(|number| format!("sheet-{number}")).collect();
    for sheet in &sheets[..40] {
        world.send(keyed(sheet)).expect("there is room");
        world.later(2 * SECOND);
    }
    world.send(keyed(&sheets[0])).expect("there is room");
    world.later(2 * SECOND);
    for sheet in &sheets[40..] {
        world.send(keyed(sheet)).expect("room is made");
        world.later(2 * SECOND);
        assert!(world.channels.bytes <= 1 << 20);
    }
    let held: Vec<_> = sheets.iter().filter(|sheet| world.channels.held.contains_key(&name(sheet))).collect();
    assert!(held.contains(&&sheets[0]), "it was not idle");
    let idle = sheets[1..].iter().filter(|sheet| held.contains(sheet)).collect::<Vec<_>>();
    assert!(idle.len() > 35 && sheets.ends_with(&idle.into_iter().cloned().collect::<Vec<_>>()));
    let page = world.read(&sheets[1], ReadFrom::After(Position::new(START + SECOND + 2 * SECOND, 1)));
    assert_eq!(reason(&page), Some(GapReason::EpochChanged), "its clients are told");
    world.check_sums();
}

#[test]
fn a_channel_is_not_dropped_for_a_message_of_its_own() {
    let mut world = World::new(1 << 20);
    let keyed = |channel: &str, key: &str| Publication { key: Some(key.into()), ..publication(channel, 20_000) };
    world.send(keyed("sheet", "first")).expect("there is room");
    // Fills the memory with keys alone.
    for number in 0.. {
        world.channels.shorten_logs(0);
        if world.channels.bytes + 42_000 > 1 << 20 {
            break;
        }
        world.later(2 * SECOND);
        world.send(keyed(&format!("sheet-{number}"), "k")).expect("there is room");
    }
    let held = world.channels.held.len();
    world.send(keyed("sheet", "second")).expect("the others are idle as well");
    assert_eq!(offsets(&world.read("sheet", ReadFrom::Keys)), [1, 2]);
    assert!(world.channels.held.len() < held);
    world.check_sums();
}

#[test]
fn many_channels_count_with_their_names_and_can_not_fill_the_memory() {
    let mut world = World::new(1 << 20);
    for number in 0..10_000 {
        world.publish(&format!("{number:0>200}"), 1);
        assert!(world.channels.bytes <= 1 << 20);
        world.later(SECOND / 100);
    }
    let count = world.channels.held.len();
    assert!(count > 500 && count * (CHANNEL_BYTES + 200) <= 1 << 20, "{count}");
    world.check_sums();
}

#[test]
fn the_keys_and_ids_of_one_channel_take_half_at_most() {
    let mut world = World::new(1 << 20);
    world.publish("other", 1000);
    let refused = (0..10_000).find_map(|number| {
        let id: String = format!("{number:0>200}");
        world.send(with_id("a", 1, &id)).err()
    });
    assert!(matches!(refused, Some(BrokerError::Refused(_))), "{refused:?}");
    let lasting = world.channels.held[&name("a")].history.lasting_bytes();
    assert!(lasting <= 1 << 19 && lasting > (1 << 19) - 1000);
    world.publish("a", 1);
    world.publish("other", 1000);
    assert_eq!(offsets(&world.read("other", ReadFrom::Oldest)), [1, 2]);
    world.later(600 * SECOND + SECOND);
    while world.channels.expire(world.now, 1000) {}
    assert!(matches!(world.send(with_id("a", 1, "new")), Ok(Published::New(_))));
    world.check_sums();
}

#[test]
fn forty_thousand_ids_cost_each_publish_no_more_than_one() {
    let mut world = World::new(1 << 30);
    for number in 0..40_000 {
        assert!(matches!(world.send(with_id("a", 1, &number.to_string())), Ok(Published::New(_))));
        // Nothing has expired, so publishing touched only the message itself.
        assert!(world.now < world.channels.next_expiry);
        world.later(1000);
    }
    let with_all = world.channels.bytes;
    assert!(with_all > 40_000 * 100);
    for _ in 0..40 {
        world.later(SECOND);
        world.publish("b", 1);
    }
    assert_eq!(world.channels.by_age.len(), 2, "one place for a channel, not for an id");
    world.later(600 * SECOND);
    let mut calls = 0;
    while world.channels.expire(world.now, 100) {
        calls += 1;
    }
    assert!((390..=410).contains(&calls), "{calls}");
    assert_eq!(world.channels.bytes, 2 * (CHANNEL_BYTES + 1), "what the two channels themselves take");
    world.check_sums();
}

#[test]
fn the_sums_hold_whatever_happens() {
    let mut world = World::new(60_000);
    world.history = History { messages: 8, age: Duration::from_secs(3) };
    let mut random = 1_u64;
    let mut next = move |bound: u64| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % bound
    };
    for _ in 0..20_000 {
        let keyed = next(2) == 0;
        let channel = format!("{}-{}", if keyed { "sheet" } else { "c" }, next(6));
        let key = (keyed && next(4) > 0).then(|| Arc::from(format!("k{}", next(5))));
        let remove = key.is_some() && next(3) == 0;
        let id = (next(3) == 0).then(|| Arc::from(format!("i{}", next(200))));
        let (size, pause) = (next(13), next(39));
        let payload = vec![0; next(1 << size) as usize].into();
        let _ = world.send(Publication { channel: name(&channel), payload, key, remove, id });
        let steps = next(30);
        world.later(next(1 << pause));
        world.channels.expire(world.now, steps as usize);
        assert!(world.channels.bytes <= 60_000);
        world.check_sums();
    }
}
