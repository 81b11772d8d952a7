//! The Server-Sent Events dialects (WHATWG HTML, 9.2): for one channel, with the same frames for
//! all subscribers; and for several channels, with the subscriber's position in each as `id:`.

use std::io::Write;
use std::ops::Range;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::json::connected;
use super::{Dialect, SubscriberData, SubscriptionStart};
use crate::channel::ChannelName;
use crate::close::{Close, Code};
use crate::delivery::framing::FrameWriter;
use crate::json::{self, Envelope, GapNotice};
use crate::message::{Entry, Message, Position};

/// The delay before a client reconnects, in milliseconds. Each client gets a random one, so that
/// clients that were disconnected together do not reconnect together. `EventSource` keeps the last
/// value, so the first message of a stream sets the usual value again.
const USUAL_RETRY: Range<u32> = 2000..4000;
/// The delay if this instance stops. Other instances are available already.
const RESTART_RETRY: Range<u32> = 500..2500;
/// The delay after a refusal.
const REFUSED_RETRY: Range<u32> = 1000..5000;

/// The notice for a client that waits for the broker: a comment, visible when reading the stream by
/// hand.
const WAITING: &[u8] = b": the broker is unavailable; the stream begins when it is back\n";

/// Events of one channel.
pub struct SingleChannelEvents;

/// Events of several channels.
pub struct MultiChannelEvents;

/// Events of any channels, each with the object that `format=json` has on a WebSocket. They have no
/// `id:`, as the objects say where a client goes on.
pub struct JsonEvents;

impl Dialect for JsonEvents {
    fn write_connected(&self, instance: &str, starts: &[SubscriptionStart<'_>], out: &mut FrameWriter<'_>) {
        out.text(|out| write_object(&connected(instance, starts), out));
    }

    fn write_entry(&self, channel: &ChannelName, entry: &Entry, out: &mut FrameWriter<'_>) -> Result<(), Close> {
        out.text(|out| match entry {
            Entry::Message(message) => write_object(&Envelope::new(channel, message), out),
            Entry::Gap(gap) => write_object(&GapNotice::new(channel, gap), out),
        });
        Ok(())
    }

    fn write_waiting(&self, out: &mut FrameWriter<'_>) {
        out.text(|out| out.extend_from_slice(WAITING));
    }

    /// The same events as those of other streams.
    fn write_farewell(&self, close: &Close, out: &mut FrameWriter<'_>) {
        write_farewell(close, out);
    }
}

impl Dialect for SingleChannelEvents {
    fn write_connected(&self, instance: &str, starts: &[SubscriptionStart<'_>], out: &mut FrameWriter<'_>) {
        out.text(|out| {
            write_retry(USUAL_RETRY, out);
            if starts.iter().any(|start| start.position.is_some()) {
                write_id(starts.iter().map(|start| start.position), out);
            }
            write_notice("welcome", &connected(instance, starts), out);
        });
    }

    fn write_entry(&self, channel: &ChannelName, entry: &Entry, out: &mut FrameWriter<'_>) -> Result<(), Close> {
        out.text(|out| {
            if entry.position().is_some() {
                write_id([entry.position()], out);
            }
            write_event(channel, None, entry, out);
        });
        Ok(())
    }

    fn write_waiting(&self, out: &mut FrameWriter<'_>) {
        out.text(|out| out.extend_from_slice(WAITING));
    }

    fn write_farewell(&self, close: &Close, out: &mut FrameWriter<'_>) {
        write_farewell(close, out);
    }
}

impl Dialect for MultiChannelEvents {
    fn is_per_subscriber(&self) -> bool {
        true
    }

    fn write_connected(&self, instance: &str, starts: &[SubscriptionStart<'_>], out: &mut FrameWriter<'_>) {
        SingleChannelEvents.write_connected(instance, starts, out);
    }

    fn write_entry(&self, channel: &ChannelName, entry: &Entry, out: &mut FrameWriter<'_>) -> Result<(), Close> {
        out.text(|out| write_event(channel, Some(channel), entry, out));
        Ok(())
    }

    fn write_subscriber_entry(
        &self,
        channel: &ChannelName,
        entry: &Entry,
        subscriber: &SubscriberData<'_>,
        out: &mut FrameWriter<'_>,
    ) -> Result<(), Close> {
        out.text(|out| {
            if entry.position().is_some() {
                write_id(subscriber.positions.iter().copied(), out);
            }
            write_event(channel, Some(channel), entry, out);
        });
        Ok(())
    }

    fn write_waiting(&self, out: &mut FrameWriter<'_>) {
        out.text(|out| out.extend_from_slice(WAITING));
    }

    fn write_farewell(&self, close: &Close, out: &mut FrameWriter<'_>) {
        write_farewell(close, out);
    }
}

/// Writes all positions, in the order of the channels, separated by commas; an empty one for a
/// channel without a position.
fn write_id(positions: impl IntoIterator<Item = Option<Position>>, out: &mut Vec<u8>) {
    out.extend_from_slice(b"id: ");
    for (index, position) in positions.into_iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        if let Some(position) = position {
            write_number(position.epoch, out);
            out.push(b':');
            write_number(position.offset, out);
        }
    }
    out.push(b'\n');
}

/// Writes a decimal number. For a list of a hundred positions, this takes a third of the time of
/// `write!`.
fn write_number(mut number: u64, out: &mut Vec<u8>) {
    // The number of digits of `u64::MAX`.
    let mut digits = [0; 20];
    let mut begin = digits.len();
    loop {
        begin -= 1;
        digits[begin] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[begin..]);
}

fn write_event(channel: &ChannelName, event: Option<&ChannelName>, entry: &Entry, out: &mut Vec<u8>) {
    match entry {
        Entry::Message(message) => {
            if let Some(event) = event {
                out.extend_from_slice(b"event: ");
                out.extend_from_slice(event.as_str().as_bytes());
                out.push(b'\n');
            }
            write_payload(message, out);
        }
        Entry::Gap(gap) => {
            out.extend_from_slice(b"event: livebridge:gap\ndata: ");
            json::write(&GapNotice::new(channel, gap), out);
            out.push(b'\n');
        }
    }
    out.push(b'\n');
}

/// Writes a notice as an event, because an event stream has no close codes. Each event has data,
/// even one with `retry:`, because some clients deliver an empty message for an event without data.
fn write_farewell(close: &Close, out: &mut FrameWriter<'_>) {
    let farewell = |retry| Farewell { code: close.code.name(), message: close.detail(), retry };
    match close.code {
        Code::Restarting => out.text(|out| farewell(RESTART_RETRY).write("restarting", out)),
        Code::Refused(_) => out.text(|out| farewell(REFUSED_RETRY).write("refused", out)),
        // A page cannot see the status of the next request, and `EventSource` gives up after a 401.
        // So tell it before.
        Code::TokenExpired => out.text(|out| write_notice("token_expired", &close.reason(), out)),
        _ => {}
    }
}

/// Writes why a stream ends and how long to wait before reconnecting.
#[derive(serde::Serialize)]
struct Farewell<'a> {
    code: &'a str,
    message: &'a str,
    #[serde(skip)]
    retry: Range<u32>,
}

impl Farewell<'_> {
    fn write(self, name: &str, out: &mut Vec<u8>) {
        write_retry(self.retry.clone(), out);
        write_notice(name, &self, out);
    }
}

fn write_retry(milliseconds: Range<u32>, out: &mut Vec<u8>) {
    // Writing to memory does not fail.
    let _ = writeln!(out, "retry: {}", rand::random_range(milliseconds));
}

/// Writes a complete event of livebridge.
fn write_notice(name: &str, data: &impl serde::Serialize, out: &mut Vec<u8>) {
    // Writing to memory does not fail.
    let _ = write!(out, "event: livebridge:{name}\ndata: ");
    json::write(data, out);
    out.extend_from_slice(b"\n\n");
}

/// Writes a complete event whose data is an object. Line ends within it are white space between
/// its parts, and begin further lines of data.
fn write_object(object: &impl serde::Serialize, out: &mut Vec<u8>) {
    let mut text = Vec::new();
    json::write(object, &mut text);
    write_lines(&text, out);
    out.push(b'\n');
}

fn write_payload(message: &Message, out: &mut Vec<u8>) {
    let Some(text) = message.text() else {
        out.extend_from_slice(b"data: data:application/octet-stream;base64,");
        out.extend_from_slice(STANDARD.encode(&message.payload).as_bytes());
        out.push(b'\n');
        return;
    };
    write_lines(text.as_bytes(), out);
}

/// Writes lines of data. CR, LF and CR LF end a line in an event stream; `EventSource` joins lines
/// with LF.
fn write_lines(text: &[u8], out: &mut Vec<u8>) {
    let mut rest = text;
    loop {
        let end = memchr::memchr2(b'\r', b'\n', rest);
        out.extend_from_slice(b"data: ");
        out.extend_from_slice(&rest[..end.unwrap_or(rest.len())]);
        out.push(b'\n');
        let Some(end) = end else { return };
        let skip = if rest[end..].starts_with(b"\r\n") { 2 } else { 1 };
        rest = &rest[end + skip..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delivery::encoding::BARE_EVENTS;

    fn encoded(payload: &[u8]) -> String {
        let channel: ChannelName = "a".parse().expect("valid");
        let mut out = Vec::new();
        let entry = Message::plain(payload.to_vec()).into();
        SingleChannelEvents.write_entry(&channel, &entry, &mut BARE_EVENTS.writer(&mut out)).expect("no close");
        String::from_utf8(out).expect("UTF-8")
    }

    #[test]
    fn every_kind_of_line_end_begins_a_data_line() {
        assert_eq!(encoded(b"a\nb\r\nc\rd\n"), "data: a\ndata: b\ndata: c\ndata: d\ndata: \n\n");
        assert_eq!(encoded(b""), "data: \n\n");
    }

    #[test]
    fn bytes_become_a_data_url() {
        assert_eq!(encoded(&[0xff, 0]), "data: data:application/octet-stream;base64,/wA=\n\n");
    }

    #[test]
    fn an_id_lists_a_position_for_each_channel() {
        let mut out = Vec::new();
        write_id([Some(Position::new(5, 10)), None, Some(Position::new(u64::MAX, 0))], &mut out);
        assert_eq!(out, b"id: 5:10,,18446744073709551615:0\n");
    }
}
