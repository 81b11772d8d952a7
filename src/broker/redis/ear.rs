//! What is heard on a connection means: a note announces the payload that follows it, a confirmation that a channel is
//! heard from here on, a canary that the connection hears at all.

use std::collections::HashSet;
use std::mem;

use bytes::Bytes;

use super::note::{self, Note};
use super::resp::Frame;
use crate::broker::Event;
use crate::channel::ChannelName;
use crate::message::Message;

/// Turns the frames of one connection, in their order, into events.
#[derive(Default)]
pub(super) struct Ear {
    /// A note whose payload is due next.
    note: Option<(ChannelName, Note)>,
    /// The channel that was heard last: the next message is likely to be of the same.
    last: Option<ChannelName>,
    events: Vec<Event>,
    canary: bool,
}

impl Ear {
    /// Hears a frame. Of channels that are not wanted any more nothing is made.
    pub(super) fn hear(&mut self, frame: &Frame<'_>, wanted: &HashSet<ChannelName>, canary: &str) {
        match *frame {
            Frame::Message { channel, .. } if channel == canary.as_bytes() => self.canary = true,
            Frame::Message { channel, payload } => self.hear_message(channel, payload, wanted),
            Frame::Subscribed(name) => {
                let channel = self.channel(name, wanted);
                self.events.extend(channel.map(Event::Subscribed));
            }
            Frame::Published(_) | Frame::Refused(_) | Frame::Other => {}
        }
    }

    /// What was heard since the last time: the events, to be taken out, and whether a canary was among them.
    pub(super) fn heard(&mut self) -> (&mut Vec<Event>, bool) {
        self.last = None;
        (&mut self.events, mem::take(&mut self.canary))
    }

    fn hear_message(&mut self, name: &[u8], payload: &[u8], wanted: &HashSet<ChannelName>) {
        if let Some(name) = name.strip_prefix(note::PREFIX.as_bytes()) {
            if let (Some(channel), Some(note)) = (self.channel(name, wanted), Note::parse(payload)) {
                let unmatched = self.note.replace((channel, note));
                self.report_missed(unmatched);
            }
        } else if let Some(channel) = self.channel(name, wanted) {
            let payload = Bytes::copy_from_slice(payload);
            let message = match self.note.take() {
                Some((noted, note)) if noted == channel => note.into_message(payload),
                unmatched => {
                    self.report_missed(unmatched);
                    Message::plain(payload)
                }
            };
            self.events.push(Event::Arrived(channel, message));
        }
    }

    fn report_missed(&mut self, unmatched: Option<(ChannelName, Note)>) {
        self.events.extend(unmatched.map(|(channel, _)| Event::Missed(channel)));
    }

    fn channel(&mut self, name: &[u8], wanted: &HashSet<ChannelName>) -> Option<ChannelName> {
        if let Some(last) = &self.last
            && last.as_str().as_bytes() == name
        {
            return Some(last.clone());
        }
        let channel = wanted.get(std::str::from_utf8(name).ok()?)?;
        self.last = Some(channel.clone());
        Some(channel.clone())
    }
}
