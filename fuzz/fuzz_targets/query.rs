//! A request's query string: what comes out is within the bounds, or refused with a sentence.
#![no_main]

mod common;

use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use livebridge::app::App;
use livebridge::channel::{ChannelName, MAX_LENGTH};
use livebridge::http::error::ApiError;
use livebridge::http::query::{MOST_KEY_BYTES, Query};
use livebridge::hub::topic::Start;

static APP: LazyLock<Arc<App>> = LazyLock::new(common::app);

/// What a parser made of it, once its objection is one that a client can use.
fn checked<T>(result: Result<T, ApiError>) -> Option<T> {
    if let Err(error) = &result {
        assert!(error.status.is_client_error() && !error.code.is_empty() && !error.message.is_empty());
        assert!(error.message.len() < 2000, "{}", error.message.len());
    }
    result.ok()
}

fuzz_target!(|raw: &str| {
    let query = Query::parse(raw);
    checked(query.wants_json());
    if let Some((key, remove)) = checked(query.key()) {
        assert!(!remove || key.is_some());
        assert!(key.is_none_or(|key| (1..=MOST_KEY_BYTES).contains(&key.len())));
    }
    let Some(channels) = checked(query.channels(&APP)) else { return };
    assert!((1..=common::MOST_CHANNELS).contains(&channels.len()));
    for (index, channel) in channels.iter().enumerate() {
        assert!(channel.as_str().len() <= MAX_LENGTH && !channels[..index].contains(channel));
        assert_eq!(channel.as_str().parse::<ChannelName>().as_ref(), Ok(channel));
    }
    if let Some(starts) = checked(query.starts(&channels)) {
        assert_eq!(starts.len(), channels.len());
        assert!(starts.iter().all(|start| !matches!(start, Start::Last(count) if *count > 1000)));
    }
});
