//! A Server-Sent Events client.

use std::pin::Pin;

use futures::{Stream, StreamExt};

use super::soon;

/// An event as a browser would dispatch it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    pub kind: String,
    pub data: String,
    pub id: Option<String>,
}

pub struct Events {
    body: Pin<Box<dyn Stream<Item = reqwest::Result<bytes::Bytes>> + Send>>,
    buffer: Vec<u8>,
    /// The last id that was seen.
    pub last_id: Option<String>,
    /// After how many milliseconds to reconnect, once it was said.
    pub retry: Option<u64>,
}

impl Events {
    /// Connects, and reads the welcome.
    pub async fn connect(url: &str, last_event_id: Option<&str>) -> Self {
        let mut events = Self::try_connect(url, last_event_id).await.unwrap();
        assert_eq!(events.next().await.kind, "livebridge:welcome");
        events
    }

    pub async fn try_connect(url: &str, last_event_id: Option<&str>) -> reqwest::Result<Self> {
        let mut request = reqwest::Client::new().get(url);
        if let Some(id) = last_event_id {
            request = request.header("last-event-id", id);
        }
        let response = soon("an event stream", request.send()).await?.error_for_status()?;
        assert_eq!(response.headers()["content-type"], "text/event-stream; charset=utf-8");
        Ok(Self { body: Box::pin(response.bytes_stream()), buffer: Vec::new(), last_id: None, retry: None })
    }

    /// The next event, welcome and gaps included; comments are skipped.
    pub async fn next(&mut self) -> Event {
        soon("an event", self.try_next()).await.expect("the stream ended")
    }

    /// The next event, or `None` at the end of the stream.
    pub async fn try_next(&mut self) -> Option<Event> {
        loop {
            while let Some(end) = self.buffer.windows(2).position(|pair| pair == b"\n\n") {
                let block: Vec<u8> = self.buffer.drain(..end + 2).collect();
                if let Some(event) = self.parse(&String::from_utf8(block).unwrap()) {
                    return Some(event);
                }
            }
            self.buffer.extend_from_slice(&self.body.next().await?.ok()?);
        }
    }

    fn parse(&mut self, block: &str) -> Option<Event> {
        let mut event = Event { kind: "message".into(), data: String::new(), id: None };
        let mut data = Vec::new();
        for line in block.lines() {
            match line.split_once(": ") {
                Some(("event", value)) => event.kind = value.into(),
                Some(("data", value)) => data.push(value),
                Some(("id", value)) => self.last_id = Some(value.into()),
                Some(("retry", value)) => self.retry = Some(value.parse().unwrap()),
                _ => assert!(line.is_empty() || line.starts_with(':'), "{line:?}"),
            }
        }
        event.id.clone_from(&self.last_id);
        event.data = data.join("\n");
        (!data.is_empty()).then_some(event)
    }
}
