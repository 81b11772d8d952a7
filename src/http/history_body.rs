//! The response body for a request for history. It is encoded in pieces as the socket takes them: a
//! page of megabytes may become six times as large in JSON, and other clients of the thread wait
//! meanwhile.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::Stream;

use crate::channel::ChannelName;
use crate::hub::held_page::HeldPage;
use crate::json::{self, Envelope};
use crate::message::Message;

/// The approximate size of a piece, in bytes.
const PIECE_BYTES: usize = 64 << 10;
/// A payload of more bytes is encoded in parts of this size, in bytes. A multiple of 3, so that the
/// Base64 of a part has padding only at the end of the payload.
const PART_BYTES: usize = 12 << 10;

/// The rest of a response body.
pub(super) struct HistoryBody {
    page: Arc<HeldPage>,
    /// Encoded bytes that were not taken yet.
    encoded: Vec<u8>,
    /// The index of the next message.
    next: usize,
    /// The large message that is encoded in parts.
    large: Option<Large>,
    is_over: bool,
    /// A piece was taken, and the task has not yielded since.
    others_wait: bool,
}

/// A message that is encoded in parts.
struct Large {
    message: Arc<Message>,
    form: Form,
    /// The start of the next part, in the payload.
    at: usize,
    /// The end of the last part, in the payload.
    end: usize,
}

/// The form of a payload in JSON.
#[derive(Clone, Copy)]
enum Form {
    /// Unchanged, because it is JSON.
    Json,
    /// As a JSON string.
    Text,
    /// As a JSON string of Base64.
    Base64,
}

impl HistoryBody {
    /// Creates the response body for a channel.
    pub(super) fn new(channel: &ChannelName, page: Arc<HeldPage>) -> Self {
        let mut encoded = Vec::with_capacity(PIECE_BYTES.min(256 + 2 * payload_bytes(&page)));
        let tail = page.tail.position;
        encoded.extend_from_slice(b"{\"channel\":");
        json::write(&channel.as_str(), &mut encoded);
        encoded.extend_from_slice(
            format!(",\"epoch\":\"{}\",\"offset\":{},\"messages\":[", tail.epoch, tail.offset).as_bytes(),
        );
        Self { page, encoded, next: 0, large: None, is_over: false, others_wait: false }
    }

    /// Encodes the next piece; `None` at the end.
    pub(super) fn next_piece(&mut self) -> Option<Bytes> {
        while self.encoded.len() < PIECE_BYTES && !self.is_over {
            self.encode_more();
        }
        let piece = std::mem::take(&mut self.encoded);
        (!piece.is_empty()).then(|| piece.into())
    }

    /// Whether no piece is left.
    pub(super) fn is_over(&self) -> bool {
        self.is_over && self.encoded.is_empty()
    }

    /// Returns a stream of a piece that was taken before and of all others.
    pub(super) fn after(mut self, first: Bytes) -> Self {
        self.encoded = first.into();
        self
    }

    fn encode_more(&mut self) {
        if let Some(large) = &mut self.large {
            if large.encode_part(&mut self.encoded) {
                self.large = None;
            }
            return;
        }
        let Some(message) = self.page.messages().get(self.next) else {
            self.encoded.extend_from_slice(b"]}\n");
            self.is_over = true;
            return;
        };
        if self.next > 0 {
            self.encoded.push(b',');
        }
        self.next += 1;
        if message.payload.len() <= PART_BYTES {
            json::write(&Envelope::within(message), &mut self.encoded);
        } else {
            self.large = Some(Large::begin(message, &mut self.encoded));
        }
    }
}

impl Stream for HistoryBody {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        // The socket may take everything at once, so yield between pieces.
        if std::mem::take(&mut self.others_wait) {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.others_wait = true;
        Poll::Ready(self.next_piece().map(Ok))
    }
}

impl Large {
    fn begin(message: &Arc<Message>, out: &mut Vec<u8>) -> Self {
        json::write_start_within(message, out);
        let text = message.text();
        let value = text.and_then(json::value_within);
        let (form, at, end) = match (text, value) {
            (_, Some(range)) => (Form::Json, range.start, range.end),
            (Some(text), None) => (Form::Text, 0, text.len()),
            (None, None) => (Form::Base64, 0, message.payload.len()),
        };
        if !matches!(form, Form::Json) {
            out.push(b'"');
        }
        Self { message: message.clone(), form, at, end }
    }

    /// Encodes a part. Returns whether it was the last.
    fn encode_part(&mut self, out: &mut Vec<u8>) -> bool {
        let payload = &self.message.payload;
        let mut end = self.end.min(self.at + PART_BYTES);
        if let Form::Text = self.form {
            // Do not split a character: its continuation bytes begin with the bits 10.
            while end < self.end && payload[end] & 0xc0 == 0x80 {
                end -= 1;
            }
        }
        let part = &payload[self.at..end];
        match self.form {
            Form::Json => out.extend_from_slice(part),
            Form::Text => json::write_unquoted(&String::from_utf8_lossy(part), out),
            Form::Base64 => out.extend_from_slice(STANDARD.encode(part).as_bytes()),
        }
        self.at = end;
        if self.at < self.end {
            return false;
        }
        out.extend_from_slice(match self.form {
            Form::Json => b"}",
            Form::Text => b"\"}",
            Form::Base64 => b"\",\"encoding\":\"base64\"}",
        });
        true
    }
}

fn payload_bytes(page: &HeldPage) -> usize {
    page.messages().iter().map(|message| message.payload.len()).sum()
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::broker::{Page, Tail};
    use crate::hub::held_page::PageBudget;
    use crate::message::Position;

    fn body(payloads: &[Bytes]) -> HistoryBody {
        let message = |(index, payload): (usize, &Bytes)| {
            let position = Some(Position::new(7, index as u64 + 1));
            let key = (index % 2 == 0).then(|| "a \"key\"".into());
            Arc::new(Message { position, key, removed: index % 3 == 0, ..Message::plain(payload.clone()) })
        };
        let messages: Vec<_> = payloads.iter().enumerate().map(message).collect();
        let tail = Tail { position: Position::new(7, payloads.len() as u64), stamp: 1 };
        let page = PageBudget::new(Arc::default()).hold(Page { gap: None, messages, through: tail, tail }, None);
        HistoryBody::new(&"a".parse().expect("a name"), Arc::new(page.expect("no limit")))
    }

    /// Encodes the body in one piece.
    fn whole(body: &HistoryBody) -> Value {
        let messages: Vec<_> = body.page.messages().iter().map(|message| Envelope::within(message)).collect();
        let offset = body.page.tail.position.offset;
        serde_json::json!({"channel": "a", "epoch": "7", "offset": offset, "messages": messages})
    }

    #[test]
    fn an_answer_in_pieces_says_the_same_and_no_piece_is_large() {
        let payloads: Vec<Bytes> = vec![
            "".into(),
            "plain".into(),
            vec![1; 300_000].into(),
            "ä€𐍈\"\\".repeat(30_000).into(),
            format!(" \n[{}1] ", "1,".repeat(90_000)).into(),
            vec![0xff; 100_001].into(),
            "7".into(),
        ];
        for count in 0..=payloads.len() {
            let mut body = body(&payloads[..count]);
            let expected = whole(&body);
            let mut all = Vec::new();
            while let Some(piece) = body.next_piece() {
                assert!(piece.len() < 3 * PIECE_BYTES, "{} bytes", piece.len());
                all.extend_from_slice(&piece);
            }
            assert!(body.is_over() && all.ends_with(b"}\n"));
            assert_eq!(serde_json::from_slice::<Value>(&all).expect("JSON"), expected, "{count} messages");
        }
    }

    #[tokio::test]
    async fn others_run_between_two_pieces() {
        use futures::{FutureExt, StreamExt};
        let mut body = body(&[vec![1; 300_000].into()]);
        assert!(body.next().now_or_never().is_some());
        assert!(body.next().now_or_never().is_none(), "others first");
        assert!(body.next().now_or_never().is_some());
    }
}
