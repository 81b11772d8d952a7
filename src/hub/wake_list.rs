//! What a shard is woken through: the topics that have something new for it.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

use crate::hub::topic::Topic;

/// The topics that have something new for one shard.
#[derive(Default)]
pub struct WakeList {
    topics: Mutex<Vec<Arc<Topic>>>,
    changed: Notify,
}

impl WakeList {
    /// Waits until some topic has something new, and takes all that have.
    pub async fn wait(&self, topics: &mut Vec<Arc<Topic>>) {
        loop {
            std::mem::swap(&mut *self.topics.lock().unwrap_or_else(PoisonError::into_inner), topics);
            if !topics.is_empty() {
                return;
            }
            self.changed.notified().await;
        }
    }

    /// Adds a topic and wakes the shard. A topic is listed at most once, by the marks in the topic.
    pub(crate) fn push(&self, topic: Arc<Topic>) {
        self.topics.lock().unwrap_or_else(PoisonError::into_inner).push(topic);
        self.changed.notify_one();
    }
}
