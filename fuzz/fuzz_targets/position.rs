//! `Last-Event-ID`: a list of positions is read, or taken for positions of another history, and what is read says the same when
//! written.
#![no_main]

mod common;

use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use livebridge::app::App;
use livebridge::http::query::Query;
use livebridge::message::Position;
use livebridge::hub::topic::Start;

static APP: LazyLock<Arc<App>> = LazyLock::new(common::app);

fuzz_target!(|input: (u8, &str)| {
    let (count, list) = input;
    if let Ok(position) = list.parse::<Position>() {
        assert_eq!(position.to_string().parse(), Ok(position));
    }
    let named: Vec<_> = (0..=count % 4).map(|number| format!("channel={number}")).collect();
    let query = Query::parse(&named.join("&"));
    let channels = query.channels(&APP).expect("so many are allowed");
    let read = |list: &str| query.event_starts(&channels, Some(list.as_bytes())).expect("a gap is no error");
    let starts = read(list);
    assert_eq!(starts.len(), channels.len());
    let written: Vec<_> = starts
        .iter()
        .map(|start| match start {
            Start::Live => String::new(),
            Start::After(position) => position.to_string(),
            Start::Oldest => "earliest".into(),
            Start::Last(_) => panic!("nobody asked for the last messages"),
        })
        .collect();
    assert_eq!(read(&written.join(",")), starts);
});
