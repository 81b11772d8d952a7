//! Wakes a shard, which waits here in `Shard::fan_out`, with the list of topics that have new
//! entries for it.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

use crate::hub::topic::Topic;

/// The topics with new entries for one shard.
#[derive(Default)]
pub struct WakeList {
    topics: Mutex<Vec<Arc<Topic>>>,
    changed: Notify,
}

impl WakeList {
    /// Waits until a topic has new entries. Takes all such topics.
    pub async fn wait(&self, topics: &mut Vec<Arc<Topic>>) {
        loop {
            std::mem::swap(&mut *self.topics.lock().unwrap_or_else(PoisonError::into_inner), topics);
            if !topics.is_empty() {
                return;
            }
            self.changed.notified().await;
        }
    }

    /// Adds a topic and wakes the shard. The topic makes sure that it is listed at most
    /// once.
    pub(crate) fn push(&self, topic: Arc<Topic>) {
        self.topics.lock().unwrap_or_else(PoisonError::into_inner).push(topic);
        self.changed.notify_one();
    }
}
