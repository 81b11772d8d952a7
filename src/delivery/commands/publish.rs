//! Publishes the messages of clients.

use std::sync::Arc;

use bytes::Bytes;

use crate::access::{Action, Permissions};
use crate::app::App;
use crate::broker::Publication;
use crate::channel::ChannelName;
use crate::close::{Close, Code};
use crate::delivery::connection::Connection;
use crate::delivery::dialect::command::{
    Command, CommandError, CommandId, PublishOptions, PublishRequest, Reply, Request,
};
use crate::delivery::subscription::Subscription;
use crate::message::Position;

/// The result of publishing a message.
pub(super) type Published = (Option<CommandId>, Result<Option<Position>, CommandError>);

/// A message, if it may be published.
pub(super) type Checked = (Option<CommandId>, Result<Publication, CommandError>);

/// Checks messages that name their channels.
pub(super) fn check(app: &App, permissions: &Permissions, batch: Vec<Command>) -> Vec<Checked> {
    let most = app.limits.message_bytes;
    let check = |PublishRequest { channel, payload, options }| {
        permissions.check_time()?;
        let channel = channel.ok_or(CommandError::Invalid("a publication needs a channel"))?;
        permissions.check(&channel, Action::Publish).inspect_err(|_| app.metrics.count_refused("forbidden"))?;
        if payload.len() > most {
            return Err(CommandError::TooLarge(most));
        }
        Ok(publication(channel, payload, options))
    };
    each(batch).map(|(id, request)| (id, check(request))).collect()
}

/// Checks messages to the only channel of a connection. `None` if it was closed or told instead.
pub(super) fn to_only_channel(connection: &Connection, batch: Vec<Command>) -> Option<Vec<Checked>> {
    let only = |held: &Subscription| (held.topic().channel.clone(), held.rights());
    let only = connection.session().only_subscription().map(only);
    let Some((channel, rights)) = only else {
        let detail = "name exactly one channel in the URL to publish through this connection";
        connection.close(Close::new(Code::PublishRefused, detail));
        return None;
    };
    if !rights.publish {
        tell(connection, batch[0].id, &CommandError::PublishRefused);
        return None;
    }
    let publication = |request: PublishRequest| publication(channel.clone(), request.payload, request.options);
    Some(each(batch).map(|(id, request)| (id, Ok(publication(request)))).collect())
}

/// Publishes the messages that may be published.
pub(super) async fn publish(app: Arc<App>, checked: Vec<Checked>) -> Vec<Published> {
    let mut batch = Vec::with_capacity(checked.len());
    let waiting: Vec<(Option<CommandId>, Result<(), CommandError>)> = checked
        .into_iter()
        .map(|(id, publication)| (id, publication.map(|publication| batch.push(publication))))
        .collect();
    let mut results = if batch.is_empty() { Vec::new() } else { app.publish(batch).await }.into_iter();
    let mut result_of = |(id, checked): (Option<CommandId>, Result<(), CommandError>)| {
        let published = checked.and_then(|()| results.next().map_or(Ok(None), |result| Ok(result?)));
        (id, published)
    };
    waiting.into_iter().map(&mut result_of).collect()
}

/// Tells the client what became of its messages. Without ids, it learns of the first failure only.
pub(super) fn report(connection: &Connection, results: Vec<Published>) {
    let mut is_told = false;
    for (id, result) in results {
        match (id, result) {
            (Some(id), Ok(position)) => {
                let reply = Reply::Published(position);
                connection.queue_notice(|encoding, out| encoding.dialect.write_reply(id, &reply, out));
            }
            (None, Ok(_)) => {}
            (None, Err(_)) if is_told => {}
            (id, Err(error)) => {
                is_told = true;
                tell(connection, id, &error);
            }
        }
    }
}

/// Tells the client that a message was not published; closes it if the dialect cannot.
fn tell(connection: &Connection, id: Option<CommandId>, error: &CommandError) {
    tracing::debug!(reason = error.code(), "a frame was not published");
    let mut is_told = false;
    connection.queue_notice(|encoding, out| is_told = encoding.dialect.write_error(id, error, out));
    if !is_told {
        let code = if *error == CommandError::PublishRefused { Code::PublishRefused } else { Code::PublishFailed };
        connection.close(Close::new(code, error.to_string()));
    }
}

fn each(batch: Vec<Command>) -> impl Iterator<Item = (Option<CommandId>, PublishRequest)> {
    batch.into_iter().filter_map(|command| match command.request {
        Request::Publish(request) => Some((command.id, request)),
        _ => None,
    })
}

fn publication(channel: ChannelName, payload: Bytes, options: PublishOptions) -> Publication {
    let PublishOptions { key, remove, id } = options;
    Publication { channel, payload, key, remove, id }
}
