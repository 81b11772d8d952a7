//! Random interleavings of what can happen to two channels of one instance, against a simple model. The hub, its logs,
//! sequencers and sessions are the real ones; broker, fan-out and sockets are simulated, so that a case takes a
//! millisecond and can be shrunk.
//!
//! Whatever happens, each subscriber's bytes decode to messages that follow each other without a hole, or to a notice
//! that is true; and once all is whole again each subscriber that is still there stands at the channel's end.

mod script;
mod world;

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use livebridge::broker::{
    Broker, BrokerError, Event, EventSink, Health, Page, Publication, ReadFrom, RequestSize, Tail,
};
use livebridge::channel::ChannelName;
use livebridge::delivery::batch::EncodedBatch;
use livebridge::delivery::encoding::WEBSOCKET_JSON;
use livebridge::delivery::session::{Session, Waits};
use livebridge::delivery::subscription::{NewSubscription, Rights};
use livebridge::hub::dispatch::Dispatcher;
use livebridge::hub::held_page::HeldPage;
use livebridge::hub::log::LogBounds;
use livebridge::hub::topic::{Start, Topic};
use livebridge::hub::wake_list::WakeList;
use livebridge::hub::{Hub, Membership};
use livebridge::message::{Gap, GapReason, Message, Position};
use livebridge::observability::metrics::Metrics;
use livebridge::rules::Rules;
use proptest::prelude::*;
use proptest::test_runner::Config;
use serde_json::Value;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use self::script::*;
use self::world::*;

const CHANNELS: [&str; 2] = ["a", "b"];
const CLIENTS: usize = 4;
/// So short that whoever blocks for a few messages falls behind.
const LOG: LogBounds = LogBounds { entries: 6, bytes: 1 << 20 };

/// Something that happens.
#[derive(Clone, Debug)]
enum Op {
    Publish {
        channel: usize,
        size: usize,
    },
    /// A message without a position, as from a plain Redis client.
    PublishPlain {
        channel: usize,
    },
    /// A message that is stored but never heard. `told`: the broker knows (`Missed`), else only the offsets show it.
    PublishUnheard {
        channel: usize,
        told: bool,
    },
    Disconnect,
    Reconnect,
    /// So many answers of the history, which all wait, come back.
    Answer {
        count: usize,
    },
    /// From now on the history answers what it held when it was asked, or when the answer comes back.
    AnswerEarly {
        early: bool,
    },
    /// From now on a page holds so many messages.
    PageLimit {
        messages: usize,
    },
    Trim {
        channel: usize,
        kept: usize,
    },
    /// The history is lost.
    NewEpoch {
        channel: usize,
    },
    Join {
        client: usize,
        channels: Vec<usize>,
        start: How,
    },
    Leave {
        client: usize,
    },
    /// The fan-out has its turn.
    Serve,
    /// A client's socket takes so many bytes more.
    Read {
        client: usize,
        bytes: usize,
    },
    /// The hub and whoever else can run does.
    Run,
}

#[derive(Clone, Copy, Debug)]
enum How {
    Live,
    Last(usize),
    /// From what the client held before, if anything.
    Resume,
}

fn op() -> impl Strategy<Value = Op> {
    let channel = 0..CHANNELS.len();
    let client = 0..CLIENTS;
    let channels = prop_oneof![Just(vec![0]), Just(vec![1]), Just(vec![0, 1]), Just(vec![1, 0])];
    let how = prop_oneof![2 => Just(How::Live), 1 => (0_usize..6).prop_map(How::Last), 3 => Just(How::Resume)];
    prop_oneof![
        12 => (channel.clone(), 0_usize..300).prop_map(|(channel, size)| Op::Publish { channel, size }),
        3 => channel.clone().prop_map(|channel| Op::PublishPlain { channel }),
        3 => (channel.clone(), any::<bool>()).prop_map(|(channel, told)| Op::PublishUnheard { channel, told }),
        2 => Just(Op::Disconnect),
        3 => Just(Op::Reconnect),
        6 => (1_usize..4).prop_map(|count| Op::Answer { count }),
        1 => any::<bool>().prop_map(|early| Op::AnswerEarly { early }),
        1 => (1_usize..5).prop_map(|messages| Op::PageLimit { messages }),
        1 => (channel.clone(), 0_usize..5).prop_map(|(channel, kept)| Op::Trim { channel, kept }),
        1 => channel.prop_map(|channel| Op::NewEpoch { channel }),
        6 => (client.clone(), channels, how).prop_map(|(client, channels, start)| Op::Join { client, channels, start }),
        2 => client.clone().prop_map(|client| Op::Leave { client }),
        6 => Just(Op::Serve),
        6 => (client, 1_usize..800).prop_map(|(client, bytes)| Op::Read { client, bytes }),
        10 => Just(Op::Run),
    ]
}

proptest! {
    #![proptest_config(Config { cases: 1000, failure_persistence: None, max_shrink_iters: 4000, ..Config::default() })]

    #[test]
    fn every_subscriber_gets_all_in_order_or_is_told(
        ops in prop::collection::vec(op(), 1..120),
        small_history in any::<bool>(),
        chunk in 1_usize..400,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let outcome = runtime.block_on(async {
            let mut world = World::new(small_history, chunk);
            for op in &ops {
                world.apply(op).await?;
            }
            world.heal().await
        });
        prop_assert!(outcome.is_ok(), "{}", outcome.unwrap_err());
    }
}
