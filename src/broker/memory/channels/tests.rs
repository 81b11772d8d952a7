//! Tests of what the table of channels keeps, forgets and refuses, with times that the tests
//! choose.

use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::broker::PAGE_MESSAGES;

mod answers;
mod bounds;

const START: Micros = 1_800_000_000_000_000;
const SECOND: Micros = 1_000_000;
const HISTORY: History = History { messages: 100, age: Duration::from_secs(300) };
const KEYED: Keyed = Keyed { keys: 10_000, bytes: 4 << 20 };

/// A table and its rules: channels whose names start with `sheet` are keyed.
struct World {
    channels: Channels,
    history: History,
    now: Micros,
}

impl World {
    fn new(most_bytes: usize) -> Self {
        Self { channels: Channels::new(most_bytes, START), history: HISTORY, now: START + SECOND }
    }

    fn send(&mut self, publication: Publication) -> Result<Published, BrokerError> {
        let keyed = publication.channel.as_str().starts_with("sheet").then_some(KEYED);
        // Any digest works that differs for different payloads.
        let digest = publication.payload.len() as u64;
        self.channels.publish(publication, digest, self.history, keyed, self.now)
    }

    fn publish(&mut self, channel: &str, bytes: usize) -> Position {
        let published = self.send(publication(channel, bytes)).expect("there is room");
        let Published::New(message) = published else { panic!("{published:?}") };
        message.position.expect("the channel keeps a history")
    }

    fn set(&mut self, key: &str, remove: bool) -> Position {
        let publication = Publication { key: Some(key.into()), remove, ..publication("sheet", 1) };
        let Ok(Published::New(message)) = self.send(publication) else { panic!("there is room") };
        message.position.expect("the channel keeps a history")
    }

    fn read(&self, channel: &str, from: ReadFrom) -> Page {
        self.channels.read(&name(channel), from, PAGE_MESSAGES, self.now)
    }

    fn later(&mut self, time: Micros) {
        self.now += time;
    }

    /// The sums that the table keeps match its contents.
    fn check_sums(&self) {
        let Channels { held, by_idle, by_age, bytes, log_bytes, .. } = &self.channels;
        let fixed = |(name, _): (&ChannelName, _)| CHANNEL_BYTES + name.as_str().len();
        let of_channels: usize = held.values().map(|channel| channel.history.bytes()).sum();
        assert_eq!(*bytes, held.iter().map(fixed).sum::<usize>() + of_channels);
        assert_eq!(*log_bytes, held.values().map(|channel| channel.history.log_bytes()).sum::<usize>());
        assert_eq!(by_idle.len(), held.len());
        assert_eq!(by_age.len(), held.values().filter(|channel| channel.look_at.is_some()).count());
    }
}

fn name(channel: &str) -> ChannelName {
    channel.parse().expect("a valid name")
}

fn publication(channel: &str, bytes: usize) -> Publication {
    Publication { channel: name(channel), payload: vec![b'x'; bytes].into(), key: None, remove: false, id: None }
}

fn with_id(channel: &str, bytes: usize, id: &str) -> Publication {
    Publication { id: Some(id.into()), ..publication(channel, bytes) }
}

fn offsets(page: &Page) -> Vec<u64> {
    page.messages.iter().filter_map(|message| Some(message.position?.offset)).collect()
}

fn reason(page: &Page) -> Option<GapReason> {
    page.gap.map(|gap| gap.reason)
}
