//! Builds the commands of one publishing round trip, and splits the replies. Messages of one
//! channel share a call of a Lua function, and each gets its own result. This module does no I/O.

use std::collections::HashMap;

use bytes::BytesMut;

use super::library::{Library, PUBLISH, PUBLISH_MANY};
use super::resp::{self, Frame, Item};
use crate::broker::Publication;
use crate::channel::ChannelName;
use crate::message::Position;
use crate::rules::Rules;

/// The maximum number of messages of one call, and a soft limit on its payload bytes. Redis serves
/// no other client during a call; one of this size takes less than a millisecond.
const CALL_MESSAGES: usize = 256;
const CALL_BYTES: usize = 256 << 10;

/// The position of a message, if it has one, or the error text from Redis.
pub(super) type Answer = Result<Option<Position>, String>;

/// One command, and the messages that it publishes, by their index in the batch.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Call {
    kind: Kind,
    messages: Vec<usize>,
    bytes: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A plain `PUBLISH`, because the channel keeps no history.
    Plain,
    /// A call of the function for one message, because of its id or key on a channel without a history.
    Alone,
    /// A call of the function for one message or for many.
    Function,
}

/// Groups a batch into calls. Messages of a channel stay in order.
pub(super) fn group(batch: &[&Publication], rules: &Rules) -> Vec<Call> {
    let mut calls: Vec<Call> = Vec::new();
    let mut open: HashMap<&ChannelName, usize> = HashMap::new();
    let mut last: Option<(&ChannelName, usize, bool)> = None;
    for (index, publication) in batch.iter().enumerate() {
        let Publication { channel, payload, .. } = publication;
        // Consecutive messages usually have the same channel, which needs no lookup.
        let known = last.filter(|(last, ..)| *last == channel);
        let keeps_history = known.map_or_else(|| rules.of(channel).history.is_some(), |(.., keeps)| keeps);
        let kind = kind_of(publication, keeps_history);
        let current = known.map(|(_, call, _)| call).or_else(|| open.get(channel).copied());
        let has_room = |call: &Call| {
            (kind, call.kind) == (Kind::Function, Kind::Function)
                && call.messages.len() < CALL_MESSAGES
                && call.bytes + payload.len() <= CALL_BYTES
        };
        let call = match current.filter(|&call| has_room(&calls[call])) {
            Some(call) => call,
            None => {
                calls.push(Call { kind, messages: Vec::new(), bytes: 0 });
                let call = calls.len() - 1;
                if batch.len() > 1 {
                    open.insert(channel, call);
                }
                call
            }
        };
        calls[call].messages.push(index);
        calls[call].bytes += payload.len();
        last = Some((channel, call, keeps_history));
    }
    calls
}

fn kind_of(publication: &Publication, keeps_history: bool) -> Kind {
    let Publication { key, remove, id, .. } = publication;
    if keeps_history {
        Kind::Function
    } else if key.is_some() || *remove || id.is_some() {
        Kind::Alone
    } else {
        Kind::Plain
    }
}

impl Call {
    /// Appends the command to the output buffer.
    pub(super) fn write(&self, batch: &[&Publication], library: &Library, out: &mut BytesMut) {
        let first = batch[self.messages[0]];
        let channel = first.channel.as_str();
        if self.kind == Kind::Plain {
            let channel = library.names().channel(channel);
            let words = [library.publish_command().as_bytes(), channel.as_bytes(), &first.payload];
            return resp::write_command(words.into_iter(), out);
        }
        let keys = library.keys(channel);
        let words = match &self.messages[..] {
            [_] => publish_one_words(first, library.call(PUBLISH, &keys)),
            _ => self.publish_many_words(batch, library.call(PUBLISH_MANY, &keys)),
        };
        resp::write_command(words.into_iter(), out);
    }

    fn publish_many_words<'a>(&self, batch: &[&'a Publication], mut words: Vec<&'a [u8]>) -> Vec<&'a [u8]> {
        let messages = || self.messages.iter().map(|&index| batch[index]);
        let (keys, ids) = (messages().any(|it| it.key.is_some()), messages().any(|it| it.id.is_some()));
        let columns: &[u8] = match (keys, ids) {
            (false, false) => b"payload",
            (false, true) => b"payload,id",
            (true, false) => b"payload,key,remove",
            (true, true) => b"payload,key,remove,id",
        };
        words.push(columns);
        let text = |text: &'a Option<std::sync::Arc<str>>| text.as_deref().unwrap_or_default().as_bytes();
        for message in messages() {
            words.push(&message.payload);
            if keys {
                words.extend([text(&message.key), if message.remove { b"1" } else { b"" }]);
            }
            if ids {
                words.push(text(&message.id));
            }
        }
        words
    }

    /// Splits the reply to the command among its messages, and stores the results in `answers` by
    /// their index in the batch.
    pub(super) fn answer(&self, frame: &Frame<'_>, answers: &mut [Answer]) {
        let unexpected = || Err("ERR unexpected reply".to_owned());
        let refused = |why: &[u8]| Err(String::from_utf8_lossy(why).into_owned());
        match *frame {
            // `PUBLISH` returns the number of receiving Redis clients, which says nothing about the
            // clients of livebridge.
            Frame::Number(_) => self.fill(&Ok(None), answers),
            Frame::Refused(why) => self.fill(&refused(why), answers),
            Frame::Array(items) if items.len() == 0 => self.fill(&Ok(None), answers),
            Frame::Array(mut items) if items.len() == self.messages.len() + 1 => {
                let epoch = items.next().and_then(number);
                for (&index, item) in self.messages.iter().zip(items) {
                    answers[index] = match (epoch, item) {
                        (Some(epoch), Item::Number(offset)) => Ok(Some(Position::new(epoch, offset))),
                        (_, Item::Refused(why)) => refused(why),
                        (_, Item::Text(text)) => position(text).map_or_else(unexpected, |position| Ok(Some(position))),
                        _ => unexpected(),
                    };
                }
            }
            _ => self.fill(&unexpected(), answers),
        }
    }

    fn fill(&self, answer: &Answer, answers: &mut [Answer]) {
        self.messages.iter().for_each(|&index| answers[index] = answer.clone());
    }
}

fn publish_one_words<'a>(publication: &'a Publication, mut words: Vec<&'a [u8]>) -> Vec<&'a [u8]> {
    let Publication { channel: _, payload, key, remove, id } = publication;
    words.push(payload);
    if let Some(key) = key {
        words.extend([b"key", key.as_bytes()]);
    }
    if *remove {
        words.push(b"remove");
    }
    if let Some(id) = id {
        words.extend([b"id", id.as_bytes()]);
    }
    words
}

fn number(item: Item<'_>) -> Option<u64> {
    match item {
        Item::Number(number) => Some(number),
        Item::Text(text) => std::str::from_utf8(text).ok()?.parse().ok(),
        _ => None,
    }
}

fn position(text: &[u8]) -> Option<Position> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn publication(channel: &str, bytes: usize) -> Publication {
        let channel = channel.parse().expect("valid");
        Publication { channel, payload: vec![b'x'; bytes].into(), key: None, remove: false, id: None }
    }

    fn places(batch: &[Publication]) -> Vec<Vec<usize>> {
        let rules = Rules::parse("[[channel]]\nmatch = 'plain*'\nhistory = false\n").expect("rules");
        let batch: Vec<_> = batch.iter().collect();
        group(&batch, &rules).into_iter().map(|call| call.messages).collect()
    }

    #[test]
    fn messages_of_one_channel_share_a_call_and_keep_their_order() {
        let batch = ["a", "b", "a", "plain", "a", "plain", "b"].map(|channel| publication(channel, 1));
        assert_eq!(places(&batch), [vec![0, 2, 4], vec![1, 6], vec![3], vec![5]]);
    }

    #[test]
    fn messages_without_history_share_no_call() {
        let mut batch = ["plain"; 4].map(|channel| publication(channel, 1));
        batch[1].key = Some("refused".into());
        batch[2].id = Some("once".into());
        batch[3].id = Some("twice".into());
        assert_eq!(places(&batch), [vec![0], vec![1], vec![2], vec![3]]);
        let rules = Rules::parse("[[channel]]\nmatch = 'plain*'\nhistory = false\n").expect("rules");
        let batch: Vec<_> = batch.iter().collect();
        let kinds: Vec<_> = group(&batch, &rules).iter().map(|call| call.kind).collect();
        assert_eq!(kinds, [Kind::Plain, Kind::Alone, Kind::Alone, Kind::Alone]);
    }

    #[test]
    fn a_call_has_a_bound_in_messages_and_bytes() {
        let many: Vec<_> = (0..CALL_MESSAGES + 1).map(|_| publication("a", 1)).collect();
        assert_eq!(places(&many).iter().map(Vec::len).collect::<Vec<_>>(), [CALL_MESSAGES, 1]);
        let large = [CALL_BYTES + 1, 1, CALL_BYTES, 1].map(|bytes| publication("a", bytes));
        assert_eq!(places(&large), [vec![0], vec![1], vec![2], vec![3]]);
    }

    #[test]
    fn each_message_gets_its_own_part_of_an_answer() {
        let call = Call { kind: Kind::Function, messages: vec![2, 0, 1], bytes: 3 };
        let mut answers = vec![Ok(None); 3];
        let bytes = b"*4\r\n$1\r\n7\r\n:3\r\n-LIVEBRIDGE_FULL 9 keys\r\n$3\r\n6:5\r\n";
        let (frame, _) = resp::parse(bytes).expect("RESP3").expect("whole");
        call.answer(&frame, &mut answers);
        let expected =
            [Err("LIVEBRIDGE_FULL 9 keys".into()), Ok(Some(Position::new(6, 5))), Ok(Some(Position::new(7, 3)))];
        assert_eq!(answers, expected);
        let (frame, _) = resp::parse(b"*2\r\n:7\r\n:3\r\n").expect("RESP3").expect("whole");
        call.answer(&frame, &mut answers);
        assert!(answers.iter().all(Result::is_err), "an answer with too few parts is no answer");
    }
}
