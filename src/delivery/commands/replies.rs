//! Writes the replies to commands into the outbox of a connection.

use super::history::Answer;
use super::identity::Refusal;
use crate::close::{Close, Code};
use crate::delivery::connection::Connection;
use crate::delivery::dialect::command::{CommandError, CommandId, Reply};
use crate::hub::held_page::PageRoom;

/// Replies with a result. A command without an id has no reply.
pub(super) fn reply(connection: &Connection, id: Option<CommandId>, reply: &Reply<'_>) {
    let Some(id) = id else { return };
    connection.queue_notice(|encoding, out| encoding.dialect.write_reply(id, reply, out));
}

/// Replies with an error.
pub(super) fn fail(connection: &Connection, id: Option<CommandId>, error: &CommandError) {
    tracing::debug!(reason = error.code(), "a command failed");
    connection.queue_notice(|encoding, out| {
        encoding.dialect.write_error(id, error, out);
    });
}

/// Replies with an error, or closes the connection, as the refusal wants it.
pub(super) fn refuse(connection: &Connection, id: Option<CommandId>, refusal: Refusal) {
    match refusal {
        Refusal::Answer(error) => fail(connection, id, &error),
        Refusal::Close(close) => connection.close(close),
    }
}

/// Closes the connection for a command that may not come here.
pub(super) fn close(connection: &Connection, detail: &'static str) {
    connection.close(Close::new(Code::CommandInvalid, detail));
}

/// Replies with a part of a history, if there is room for it as it is encoded, which may take several times the
/// bytes of its page. Returns the room.
pub(super) fn reply_with_history(id: Option<CommandId>, answer: Answer, connection: &Connection) -> Option<PageRoom> {
    let before = connection.session().outbox_bytes();
    reply(connection, id, &Reply::History(&answer.messages, answer.page.tail.position));
    drop(answer);
    let bytes = connection.session().outbox_bytes() - before;
    let app = &connection.context().app;
    let room = app.hub.take_page_room(bytes, connection.address()).inspect_err(|error| {
        app.metrics.count_refused("outgoing_bytes");
        connection.change(|session| session.take_back(bytes));
        fail(connection, id, &error.clone().into());
    });
    room.ok()
}
