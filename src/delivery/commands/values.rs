//! Reads the values of a keyed channel by pages, for a client that then subscribes to it as a map.
//!
//! Nothing is kept between two pages: the client says where the next one begins. A page has no value that
//! is newer than the first page, as the client gets such values with its subscription, which begins at the
//! position of the first page.

use std::net::IpAddr;
use std::sync::Arc;

use super::identity::Identity;
use super::subscribe::{NO_MAP, enter};
use crate::app::App;
use crate::broker::{PAGE_MESSAGES, ReadFrom, RequestSize};
use crate::delivery::dialect::command::{CommandError, Since, Values, ValuesAfter, ValuesRequest};
use crate::hub::held_page::HeldPage;
use crate::hub::topic::Topic;
use crate::message::{Message, Position};

/// The maximum size of the values of a page, which a client may be slow to receive. A page may exceed
/// it with a single value.
const MOST_BYTES: usize = 128 << 10;

/// Reads a page. What it needs of the history counts for `address`.
pub(super) async fn read(
    app: Arc<App>,
    identity: Identity,
    request: ValuesRequest,
    address: Option<IpAddr>,
) -> Result<Values, CommandError> {
    let (membership, _) = enter(&app, &identity, request.token.as_ref(), &request.channel, RequestSize::Small).await?;
    let topic = membership.topic();
    if topic.rule.keyed.is_none() {
        return Err(NO_MAP);
    }
    let limit = request.limit.unwrap_or(PAGE_MESSAGES).min(PAGE_MESSAGES);
    let Some(page) = values_of(&app, topic, address).await? else {
        // Before the first message there are no values.
        let tail = topic.delivered().map(|tail| tail.position).ok_or(NO_MAP)?;
        return page_of(&[], (tail, tail), request.after, limit);
    };
    page_of(page.messages(), (page.through.position, page.settled()), request.after, limit)
}

/// All values, newer than the last page that the client has got, or as new.
async fn values_of(
    app: &Arc<App>,
    topic: &Topic,
    address: Option<IpAddr>,
) -> Result<Option<Arc<HeldPage>>, CommandError> {
    if topic.delivered().is_none_or(|tail| tail.position.offset == 0) {
        return Ok(None);
    }
    Ok(app.hub.history(topic, ReadFrom::Keys, address).await?)
}

/// The values of `messages` that belong to a page. `through` is the position of the messages; up to
/// `settled`, there is one value of each key.
fn page_of(
    messages: &[Arc<Message>],
    (through, settled): (Position, Position),
    after: Option<ValuesAfter>,
    limit: usize,
) -> Result<Values, CommandError> {
    let (position, after) = match after {
        None => (settled, 0),
        Some(ValuesAfter { position: Since { epoch, offset }, offset: after }) => {
            // Another history, or one that has lost its end.
            if epoch != Some(through.epoch) || offset > through.offset {
                return Err(CommandError::PositionGone);
            }
            (Position::new(through.epoch, offset), after)
        }
    };
    let begin = messages.partition_point(|message| offset_of(message) <= after);
    let end = messages.partition_point(|message| offset_of(message) <= position.offset).max(begin);
    let mut size = 0;
    let fits = |message: &&Arc<Message>| {
        let is_first = size == 0;
        size += message.weight();
        is_first || size <= MOST_BYTES
    };
    let taken: Vec<_> = messages[begin..end].iter().take(limit).take_while(fits).cloned().collect();
    let next_after = taken.last().filter(|_| begin + taken.len() < end).map(|last| offset_of(last));
    Ok(Values { position, messages: taken, next_after })
}

fn offset_of(message: &Message) -> u64 {
    message.position.map_or(0, |position| position.offset)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::{Page, Tail};

    fn value(key: &str, offset: u64) -> Arc<Message> {
        Arc::new(Message { position: Some(Position::new(7, offset)), key: Some(key.into()), ..Message::plain("value") })
    }

    fn page(messages: impl Into<Vec<Arc<Message>>>, through: u64) -> Page {
        let tail = Tail { position: Position::new(7, through), stamp: 1 };
        Page { gap: None, messages: messages.into(), through: tail, tail }
    }

    fn values(page: &Page, after: Option<ValuesAfter>, limit: usize) -> Result<Values, CommandError> {
        page_of(&page.messages, (page.through.position, page.settled()), after, limit)
    }

    fn keys(values: &Values) -> Vec<&str> {
        values.messages.iter().filter_map(|message| message.key.as_deref()).collect()
    }

    fn after(epoch: u64, offset: u64, after: u64) -> Option<ValuesAfter> {
        Some(ValuesAfter { position: Since { epoch: Some(epoch), offset }, offset: after })
    }

    #[test]
    fn pages_go_on_where_the_last_one_ended_and_leave_out_what_has_changed_since() {
        let first = page([value("a", 2), value("b", 3), value("c", 5)], 6);
        let got = values(&first, None, 1).expect("a page");
        assert_eq!((keys(&got), got.position, got.next_after), (vec!["a"], Position::new(7, 6), Some(2)));
        // `b` has changed: the client gets it with the changes after 6.
        let later = page([value("a", 2), value("c", 5), value("b", 8)], 9);
        let got = values(&later, after(7, 6, 2), 9).expect("a page");
        assert_eq!((keys(&got), got.position, got.next_after), (vec!["c"], Position::new(7, 6), None));
        let got = values(&later, after(7, 6, 7), 9).expect("a page");
        assert_eq!((keys(&got), got.next_after), (vec![], None));
        for (epoch, offset) in [(8, 6), (7, 10)] {
            assert_eq!(values(&later, after(epoch, offset, 2), 9).err(), Some(CommandError::PositionGone));
        }
    }

    #[test]
    fn a_page_ends_at_its_size_but_has_one_value() {
        let large = |key: &str, offset| {
            Arc::new(Message { payload: vec![0; MOST_BYTES].into(), ..Message::clone(&value(key, offset)) })
        };
        let all = page([large("a", 1), large("b", 2)], 2);
        let got = values(&all, None, 9).expect("a page");
        assert_eq!((keys(&got), got.next_after), (vec!["a"], Some(1)));
        let got = values(&all, after(7, 2, 1), 9).expect("a page");
        assert_eq!((keys(&got), got.next_after), (vec!["b"], None));
    }

    #[test]
    fn what_changed_during_the_read_belongs_to_the_changes() {
        let gone = Arc::new(Message { removed: true, ..Message::clone(&value("b", 7)) });
        for last in [value("a", 7), gone] {
            let all = page([value("a", 2), value("b", 3), value("c", 6), last], 8);
            let got = values(&all, None, 9).expect("a page");
            assert_eq!((keys(&got), got.position), (vec!["a", "b", "c"], Position::new(7, 6)));
        }
    }
}
