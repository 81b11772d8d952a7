//! Turns the frames of a subscription into events. A position marker announces the payloads that
//! follow it. A confirmation means that the channel is subscribed from here on. A canary proves
//! that the subscription receives messages.

use std::mem;
use std::sync::Arc;

use bytes::Bytes;

use super::names::{Kind, Names};
use super::numberer::Numberer;
use super::numbering::Disorder;
use super::position_marker::PositionMarker;
use super::presence;
use super::resp::Frame;
use super::wanted::Wanted;
use crate::broker::Event;
use crate::channel::ChannelName;
use crate::message::Message;

/// The decoder of one connection.
#[derive(Default)]
pub(super) struct SubscriptionDecoder {
    names: Names,
    /// The last marker, as long as some of its payloads have not arrived.
    announced: Option<(ChannelName, Announced)>,
    /// The channel of the last message, because the next message often has the same.
    last: Option<ChannelName>,
    /// The numbering of plain messages, and why it needs another connection.
    numberer: Option<Arc<Numberer>>,
    numbering_failed: Option<Disorder>,
    events: Vec<Event>,
    canary: bool,
}

/// The payloads that a marker announces.
enum Announced {
    Positions(PositionMarker),
    /// The marker is unreadable. The next payload must not be taken for a message without a
    /// position.
    Unreadable,
}

impl SubscriptionDecoder {
    /// Creates a decoder.
    pub(super) fn new(names: Names, numberer: Option<Arc<Numberer>>) -> Self {
        Self { names, numberer, ..Self::default() }
    }

    /// Why the numbering of plain messages needs another connection.
    pub(super) fn numbering_failed(&self) -> Option<Disorder> {
        self.numbering_failed
    }

    /// Reports that the channel is subscribed from here on.
    pub(super) fn subscribed(&mut self, channel: ChannelName) {
        self.events.push(Event::Subscribed(channel));
    }

    /// Processes a frame. Ignores frames of channels that are no longer wanted. Returns the channel
    /// that the frame confirms.
    pub(super) fn push(&mut self, frame: &Frame<'_>, wanted: &Wanted, canary: &str) -> Option<ChannelName> {
        match *frame {
            Frame::Message { channel, .. } if channel == canary.as_bytes() => self.canary = true,
            Frame::Message { channel, payload }
                if self.numberer.as_ref().is_some_and(|it| it.own().as_bytes() == channel) =>
            {
                self.push_own(payload, wanted);
            }
            Frame::PatternMessage { pattern, channel, payload } => {
                self.push_numbered(pattern, channel, payload, wanted)
            }
            Frame::Message { channel, payload } => self.push_message(channel, payload, wanted),
            // On a Cluster, the sharded subscription to a channel counts, because livebridge publishes
            // there.
            Frame::Subscribed { name, is_sharded } if is_sharded == self.names.is_sharded() => {
                let (Kind::Channel, name) = self.names.parse(name)? else { return None };
                let channel = self.channel(name, wanted)?;
                self.events.push(Event::Subscribed(channel.clone()));
                return Some(channel);
            }
            Frame::Subscribed { .. } | Frame::Unsubscribed(_) => {}
            Frame::Number(_) | Frame::Array(_) | Frame::Map(_) => {}
            Frame::Refused(_) | Frame::Other => {}
        }
        None
    }

    /// The events since the last call, which the caller must remove, and whether a canary arrived.
    pub(super) fn take_events(&mut self) -> (&mut Vec<Event>, bool) {
        self.last = None;
        (&mut self.events, mem::take(&mut self.canary))
    }

    /// Handles what Redis tells the members of the numbering.
    fn push_own(&mut self, payload: &[u8], wanted: &Wanted) {
        let Some(numberer) = &self.numberer else { return };
        let is_wanted = |channel: &ChannelName| wanted.contains(channel);
        if let Err(error) = numberer.on_own(payload, is_wanted, &mut self.events) {
            self.numbering_failed = Some(error);
        }
    }

    /// Handles a message of a channel whose plain messages get positions, whether it is wanted or not.
    fn push_numbered(&mut self, pattern: &[u8], name: &[u8], payload: &[u8], wanted: &Wanted) {
        let Some(numberer) = self.numberer.clone() else { return };
        let Some((kind, name)) = self.names.parse(name) else { return };
        let known = self.last.as_ref().filter(|last| last.as_str().as_bytes() == name).cloned();
        let parse = || wanted.get(name).cloned().or_else(|| std::str::from_utf8(name).ok()?.parse().ok());
        let Some(channel) = known.or_else(parse) else { return };
        // Another rule may come first, or several patterns match.
        if !numberer.is_rule_of(pattern, &channel) {
            return;
        }
        self.last = Some(channel.clone());
        let is_announced = self.announced.as_ref().is_some_and(|(announced, _)| *announced == channel);
        match kind {
            Kind::Channel if is_announced => self.push_payload(channel, Bytes::copy_from_slice(payload)),
            Kind::Channel => {
                let unmatched = self.announced.take();
                self.report_missed(unmatched);
                numberer.on_plain(&channel, Bytes::copy_from_slice(payload));
            }
            Kind::Single => self.push_marker(channel, PositionMarker::parse_single(payload)),
            Kind::Run => self.push_run(channel, payload),
        }
    }

    /// The events since they were taken last, which the caller must remove.
    pub(super) fn events(&mut self) -> &mut Vec<Event> {
        &mut self.events
    }

    fn push_message(&mut self, name: &[u8], payload: &[u8], wanted: &Wanted) {
        let Some((kind, name)) = self.names.parse(name) else { return };
        let Some(channel) = self.channel(name, wanted) else { return };
        match kind {
            Kind::Channel => self.push_payload(channel, Bytes::copy_from_slice(payload)),
            Kind::Single => self.push_marker(channel, PositionMarker::parse_single(payload)),
            Kind::Run => self.push_run(channel, payload),
        }
    }

    /// Handles a marker of several messages, or news of who is on the channel, which share a channel.
    fn push_run(&mut self, channel: ChannelName, payload: &[u8]) {
        match presence::parse_news(payload) {
            None => self.push_marker(channel, PositionMarker::parse_run(payload)),
            Some(Some(news)) => self.events.push(Event::Presence(channel, news)),
            Some(None) => tracing::debug!(%channel, "unreadable news of who is on the channel"),
        }
    }

    fn push_marker(&mut self, channel: ChannelName, marker: Option<PositionMarker>) {
        let marker = marker.map_or(Announced::Unreadable, Announced::Positions);
        let unmatched = self.announced.replace((channel, marker));
        self.report_missed(unmatched);
    }

    fn push_payload(&mut self, channel: ChannelName, payload: Bytes) {
        let message = match self.announced.take() {
            Some((announced, Announced::Positions(mut marker))) if announced == channel => {
                let message = marker.message(payload);
                if !marker.is_complete() {
                    self.announced = Some((announced, Announced::Positions(marker)));
                }
                message
            }
            Some((announced, Announced::Unreadable)) if announced == channel => {
                tracing::warn!(%channel, "unreadable position marker; reading the history instead");
                return self.events.push(Event::Missed(channel));
            }
            unmatched => {
                self.report_missed(unmatched);
                Message::plain(payload)
            }
        };
        self.events.push(Event::Arrived(channel, message));
    }

    fn report_missed(&mut self, unmatched: Option<(ChannelName, Announced)>) {
        self.events.extend(unmatched.map(|(channel, _)| Event::Missed(channel)));
    }

    fn channel(&mut self, name: &[u8], wanted: &Wanted) -> Option<ChannelName> {
        if let Some(last) = &self.last
            && last.as_str().as_bytes() == name
        {
            return Some(last.clone());
        }
        let channel = wanted.get(name)?;
        self.last = Some(channel.clone());
        Some(channel.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::RequestSize;

    /// Decodes messages, and describes the events in short.
    fn decode(messages: &[(&str, &str)]) -> Vec<String> {
        let mut wanted = Wanted::default();
        ["a", "b"].iter().for_each(|name| wanted.insert(&name.parse().expect("valid"), RequestSize::Small));
        let mut decoder = SubscriptionDecoder::default();
        for (channel, payload) in messages {
            let frame = Frame::Message { channel: channel.as_bytes(), payload: payload.as_bytes() };
            decoder.push(&frame, &wanted, "livebridge:canary:1");
        }
        let events = decoder.take_events().0.drain(..).map(|event| match event {
            Event::Subscribed(channel) => format!("subscribed {channel}"),
            Event::Missed(channel) => format!("missed {channel}"),
            Event::Refused(channel) => format!("refused {channel}"),
            Event::Presence(channel, news) => {
                format!("{channel}: {} came, {} went", news.joined.len(), news.left.len())
            }
            Event::Arrived(channel, message) => {
                let offset = message.position.map_or("-".into(), |position| position.offset.to_string());
                format!("{channel} {offset} {}", message.text().unwrap_or_default())
            }
        });
        events.collect()
    }

    #[test]
    fn a_marker_and_its_payloads_become_messages_with_positions() {
        let single = decode(&[("livebridge:note:a", "7 3 1 0"), ("a", "x"), ("a", "plain")]);
        assert_eq!(single, ["a 3 x", "a - plain"]);
        let run = decode(&[("livebridge:run:a", "7 3 1 2"), ("a", "x"), ("a", "y"), ("a", "plain")]);
        assert_eq!(run, ["a 3 x", "a 4 y", "a - plain"]);
    }

    #[test]
    fn news_of_who_is_there_touch_no_message() {
        let decoded = decode(&[
            ("livebridge:note:a", "7 3 1 0"),
            ("livebridge:run:a", "presence 5 0\n+u x \n-y"),
            ("a", "x"),
            ("livebridge:run:a", "presence rubbish"),
            ("a", "plain"),
        ]);
        assert_eq!(decoded, ["a: 1 came, 1 went", "a 3 x", "a - plain"]);
    }

    #[test]
    fn a_marker_without_its_payloads_is_reported_as_missed() {
        let replaced = decode(&[("livebridge:note:a", "7 3 1 0"), ("livebridge:note:a", "7 4 1 0"), ("a", "x")]);
        assert_eq!(replaced, ["missed a", "a 4 x"]);
        let cut = decode(&[("livebridge:run:a", "7 3 1 3"), ("a", "x"), ("livebridge:note:a", "7 6 1 0"), ("a", "y")]);
        assert_eq!(cut, ["a 3 x", "missed a", "a 6 y"]);
    }

    #[test]
    fn a_payload_of_another_channel_has_no_part_in_a_marker() {
        assert_eq!(decode(&[("livebridge:note:a", "7 3 1 0"), ("b", "x")]), ["missed a", "b - x"]);
    }

    #[test]
    fn what_an_unreadable_marker_announces_is_read_from_the_history() {
        assert_eq!(decode(&[("livebridge:note:a", "rubbish"), ("a", "x"), ("a", "y")]), ["missed a", "a - y"]);
    }

    #[test]
    fn channels_that_are_not_wanted_are_ignored() {
        assert_eq!(decode(&[("livebridge:note:c", "7 3 1 0"), ("c", "x"), ("a", "y")]), ["a - y"]);
    }
}
