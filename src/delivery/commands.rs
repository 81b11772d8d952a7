//! Carries out the commands of a client in their order, and writes the answers. Knows neither how
//! commands and answers are written (that is the dialect) nor when the client is read (`task.rs`).
//!
//! Each file in `commands/` has one kind of command: what it needs, as a future that knows nothing of
//! the connection. Here are the state of the client and what a command changes in the connection.
//!
//! One operation runs at a time. Successive publications are one operation, and so are successive
//! subscriptions: a page subscribes to all its channels at once.

mod channel_tokens;
mod connect;
mod history;
pub mod identity;
mod presence;
mod publish;
mod replies;
mod subscribe;
mod subscription;
mod values;

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::FutureExt;
use futures::future::LocalBoxFuture;
use tokio::time::Instant;

use self::channel_tokens::{ChannelTokens, seconds_until};
use self::history::Answer;
use self::identity::{Identity, Refusal, Visitor, refresh_after};
use self::presence::Kind;
use self::publish::Published;
use self::replies::{close, fail, refuse, reply, reply_with_history};
use self::subscribe::{Checked, Joined};
use super::connection::Connection;
use super::dialect::command::{
    Command, CommandError, CommandId, Connected, Reply, Request, SubscribeRequest, Subscribed, SubscriptionEnd, Values,
    ValuesRequest,
};
use super::session::Session;
use super::shard::Shard;
use crate::access::Action;
use crate::app::App;
use crate::channel::ChannelName;
use crate::close::Code;
use crate::hub::held_page::PageRoom;
use crate::presence::Everybody;

/// How many bytes of missed messages go into the answers to subscriptions that are made together.
const MISSED_BYTES: usize = 128 << 10;

/// The commands of a client that are not carried out yet, and what the client may do.
pub(super) struct Commands {
    client: Client,
    queue: VecDeque<Command>,
    /// The memory of the queue, in bytes.
    held: usize,
    running: Option<LocalBoxFuture<'static, Done>>,
    /// The tokens for single subscriptions. `None` until there is one.
    tokens: Option<Box<ChannelTokens>>,
    /// The room of the history in the outbox, until it is written.
    answered: Option<PageRoom>,
}

/// Who sends the commands.
enum Client {
    /// A client whose channels and rights follow from its HTTP request.
    Subscriber,
    /// A client that has not sent its first command.
    Visitor(Box<Visitor>),
    /// A client that was let in.
    Connected(Box<Identity>),
    /// A client that was not.
    Refused,
}

/// The result of an operation.
pub(super) struct Outcome(Done);

enum Done {
    Published(Vec<Published>),
    Subscribed(Vec<(Option<CommandId>, Result<Joined, CommandError>)>),
    Connected(Option<CommandId>, Result<(Identity, Vec<Joined>), Refusal>),
    Refreshed(Option<CommandId>, Result<Identity, Refusal>),
    SubscriptionRefreshed(Option<CommandId>, ChannelName, Result<Option<Instant>, CommandError>),
    SubscriptionExpired(ChannelName),
    Answered(Option<CommandId>, Result<Answer, CommandError>),
    Counted(Option<CommandId>, Kind, Result<Everybody, CommandError>),
    Read(Option<CommandId>, Result<Values, CommandError>),
}

impl Commands {
    /// The state of a client that only publishes, to its only channel.
    pub(super) fn of_subscriber() -> Self {
        Self {
            client: Client::Subscriber,
            queue: VecDeque::new(),
            held: 0,
            running: None,
            tokens: None,
            answered: None,
        }
    }

    /// The state of a client before its first command.
    pub(super) fn of_visitor(visitor: Box<Visitor>) -> Self {
        Self { client: Client::Visitor(visitor), ..Self::of_subscriber() }
    }

    /// Adds a command of the client.
    pub(super) fn push(&mut self, command: Command) {
        self.held += command.weight();
        self.queue.push_back(command);
    }

    /// Takes the next command, if it meets a condition.
    fn next_if(&mut self, is_wanted: impl FnOnce(&Request) -> bool) -> Option<Command> {
        let command = self.queue.pop_front_if(|command| is_wanted(&command.request))?;
        self.held -= command.weight();
        Some(command)
    }

    /// The number of commands that have not started yet.
    pub(super) fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// The memory of the commands that have not started yet, in bytes.
    pub(super) fn held(&self) -> usize {
        self.held
    }

    /// Whether an operation runs. The client is not read meanwhile.
    pub(super) fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Waits until the token of a subscription has expired.
    pub(super) fn poll_expired(&mut self, context: &mut Context<'_>) -> Poll<Outcome> {
        let Some(tokens) = &mut self.tokens else { return Poll::Pending };
        tokens.poll_expired(context).map(|channel| Outcome(Done::SubscriptionExpired(channel)))
    }

    /// Polls the operation that runs.
    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Poll<Outcome> {
        let Some(running) = &mut self.running else { return Poll::Pending };
        running.poll_unpin(context).map(|done| {
            self.running = None;
            Outcome(done)
        })
    }

    /// Carries out commands until an operation runs, or until the client must read first.
    pub(super) fn start(&mut self, shard: &Shard, connection: &Rc<Connection>) {
        let may_start = || !connection.must_read_first() && connection.session().ending().is_none();
        if may_start() {
            self.answered = None;
        }
        while self.running.is_none() && may_start() {
            let Some(command) = self.next_if(|_| true) else { return };
            self.carry_out(command, shard, connection);
        }
    }

    /// Publishes what the client sent before it left, unless it was closed for what it may not do, or was told to
    /// try again.
    pub(super) async fn finish(&mut self, shard: &Shard, connection: &Rc<Connection>) {
        if let Some(running) = self.running.take() {
            running.await;
        }
        let (Client::Subscriber | Client::Connected(_)) = &self.client else { return };
        let close = connection.session().ending().map(|close| close.code);
        if let Some(Code::TokenExpired | Code::PublishFailed | Code::PublishRefused | Code::TooFast) = close {
            return;
        }
        self.queue.retain(|command| matches!(command.request, Request::Publish(_)));
        self.held = self.queue.iter().map(Command::weight).sum();
        if let Some(first) = self.next_if(|_| true) {
            self.publish(first, shard, connection);
        }
        if let Some(running) = self.running.take() {
            running.await;
        }
    }

    fn carry_out(&mut self, command: Command, shard: &Shard, connection: &Rc<Connection>) {
        let app = shard.context.app.clone();
        let id = command.id;
        match (&self.client, command.request) {
            (Client::Visitor(visitor), Request::Connect(request)) => {
                if !request.reads_epochs {
                    connection.change(Session::end_with_epochs);
                }
                let letting_in = connect::connect(app, (**visitor).clone(), *request, connection.address());
                self.running = Some(letting_in.map(move |result| Done::Connected(id, result)).boxed_local());
            }
            (Client::Visitor(_) | Client::Refused, _) => close(connection, "the first command must be a `connect`"),
            (Client::Connected(_), Request::Connect(_)) => close(connection, "the client is connected already"),
            (_, Request::Publish(request)) => {
                self.publish(Command { request: Request::Publish(request), ..command }, shard, connection);
            }
            // Other clients have no other commands.
            (Client::Subscriber, _) => {}
            (_, Request::Nothing) => {}
            (_, Request::Ping) => reply(connection, id, &Reply::Pong),
            (_, Request::Refused(error)) => fail(connection, id, &error),
            (Client::Connected(_), Request::Subscribe(request)) => self.subscribe(id, *request, shard, connection),
            (Client::Connected(_), Request::Values(request)) => self.read_values(id, *request, app, connection),
            (_, Request::Unsubscribe(channel)) => {
                unsubscribe(&channel, shard, connection);
                self.set_token(&channel, None, connection);
                reply(connection, id, &Reply::Unsubscribed);
            }
            (Client::Connected(identity), Request::History(request)) => {
                match self.may_see(identity, &request.channel, Action::Read, connection) {
                    Ok(()) => {
                        let reading = history::read(app, *request, connection.address());
                        self.running = Some(reading.map(move |result| Done::Answered(id, result)).boxed_local());
                    }
                    Err(error) => fail(connection, id, &error),
                }
            }
            (Client::Connected(_), Request::Presence(channel)) => self.count(id, Kind::List, channel, connection),
            (Client::Connected(_), Request::PresenceStats(channel)) => self.count(id, Kind::Stats, channel, connection),
            (Client::Connected(identity), Request::RefreshSubscription(request)) => {
                let ((channel, token), identity) = (*request, (**identity).clone());
                let checking = async move {
                    let result = channel_tokens::check(&identity, &channel, &token).await;
                    Done::SubscriptionRefreshed(id, channel, result)
                };
                self.running = Some(checking.boxed_local());
            }
            (Client::Connected(identity), Request::Refresh(token)) => {
                let checking = identity::refresh(app, token, identity.address, identity.client);
                self.running = Some(checking.map(move |result| Done::Refreshed(id, result)).boxed_local());
            }
        }
    }

    /// Takes the results of an operation over.
    pub(super) fn apply(&mut self, Outcome(done): Outcome, shard: &Shard, connection: &Rc<Connection>) {
        match done {
            Done::Published(results) => publish::report(connection, results),
            Done::Subscribed(results) => {
                let mut room = MISSED_BYTES;
                for (id, result) in results {
                    match result.and_then(|joined| self.join(joined, &mut room, shard, connection)) {
                        Ok((_, subscribed)) => reply(connection, id, &Reply::Subscribed(&subscribed)),
                        Err(error) => fail(connection, id, &error),
                    }
                }
            }
            Done::Connected(id, Ok((identity, joined))) => {
                let ping_seconds = shard.context.app.limits.heartbeat_seconds;
                let mut room = MISSED_BYTES;
                let joined =
                    joined.into_iter().filter_map(|joined| self.join(joined, &mut room, shard, connection).ok());
                let subscriptions: Vec<_> = joined.collect();
                let (client, refresh_after) = (identity.client.to_string(), identity.refresh_after());
                let instance = &shard.context.app.instance;
                let connected =
                    Connected { client, instance, refresh_after, ping_seconds, subscriptions: &subscriptions };
                reply(connection, id, &Reply::Connected(&connected));
                self.identify(identity, connection);
            }
            Done::Connected(id, Err(refusal)) => {
                self.client = Client::Refused;
                refuse(connection, id, refusal);
            }
            Done::Refreshed(id, Ok(identity)) => {
                reply(connection, id, &Reply::Refreshed(identity.refresh_after()));
                self.end_forbidden(&identity, shard, connection);
                self.identify(identity, connection);
            }
            Done::Refreshed(id, Err(refusal)) => refuse(connection, id, refusal),
            Done::SubscriptionRefreshed(id, channel, Ok(expiry)) => {
                if connection.session().find(&channel).is_some() {
                    self.set_token(&channel, expiry, connection);
                }
                let refresh_after = expiry.map(|expiry| refresh_after(seconds_until(expiry)));
                reply(connection, id, &Reply::SubscriptionRefreshed(refresh_after));
            }
            Done::SubscriptionRefreshed(id, _, Err(error)) => fail(connection, id, &error),
            Done::SubscriptionExpired(channel) => {
                if connection.session().find(&channel).is_some() {
                    end(&channel, SubscriptionEnd::Expired, shard, connection);
                }
            }
            Done::Answered(id, Ok(answer)) => self.answered = reply_with_history(id, answer, connection),
            Done::Read(id, Ok(values)) => reply(connection, id, &Reply::Values(&values)),
            Done::Counted(id, Kind::List, Ok(all)) => reply(connection, id, &Reply::Presence(&all)),
            Done::Counted(id, Kind::Stats, Ok(all)) => reply(connection, id, &Reply::PresenceStats(&all)),
            Done::Answered(id, Err(error)) | Done::Counted(id, _, Err(error)) | Done::Read(id, Err(error)) => {
                fail(connection, id, &error);
            }
        }
    }

    fn identify(&mut self, identity: Identity, connection: &Connection) {
        connection.connected(identity.permissions.holds_for());
        self.client = Client::Connected(identity.into());
    }

    /// Makes a subscription, and remembers how long its token holds.
    fn join(
        &mut self,
        joined: Joined,
        room: &mut usize,
        shard: &Shard,
        connection: &Rc<Connection>,
    ) -> Result<(ChannelName, Subscribed), CommandError> {
        let expiry = joined.expiry;
        let (channel, subscribed) = subscription::make(joined, room, shard, connection)?;
        self.set_token(&channel, expiry, connection);
        Ok((channel, subscribed))
    }

    /// Records when the token of a subscription expires; `None` if it has none that does.
    fn set_token(&mut self, channel: &ChannelName, expiry: Option<Instant>, connection: &Connection) {
        if expiry.is_some() || self.tokens.is_some() {
            let tokens = self.tokens.get_or_insert_default();
            tokens.set(channel, expiry);
            let session = connection.session();
            if tokens.len() > session.subscription_count() {
                tokens.retain(|channel| session.find(channel).is_some());
            }
        }
    }

    /// Whether there is a subscription to the channel with a token of its own.
    fn has_token(&self, channel: &ChannelName, connection: &Connection) -> bool {
        self.tokens.as_ref().is_some_and(|tokens| tokens.has(channel)) && connection.session().find(channel).is_some()
    }

    /// Checks whether the client may see the history of a channel, or who is there. Whoever is subscribed by a token for
    /// the channel may.
    fn may_see(
        &self,
        identity: &Identity,
        channel: &ChannelName,
        action: Action,
        connection: &Connection,
    ) -> Result<(), CommandError> {
        let app = &connection.context().app;
        if self.has_token(channel, connection) {
            return Ok(());
        }
        Ok(identity.permissions.check(channel, action).inspect_err(|_| app.metrics.count_refused("forbidden"))?)
    }

    /// Reads who is on a channel.
    fn count(&mut self, id: Option<CommandId>, kind: Kind, channel: ChannelName, connection: &Connection) {
        let Client::Connected(identity) = &self.client else { return };
        match self.may_see(identity, &channel, Action::Subscribe, connection) {
            Ok(()) => {
                let reading = presence::read(connection.context().app.clone(), channel);
                self.running = Some(reading.map(move |result| Done::Counted(id, kind, result)).boxed_local());
            }
            Err(error) => fail(connection, id, &error),
        }
    }

    /// Ends the subscriptions that a new token of the client does not allow. Those with tokens of their own need it only
    /// to be of the same user.
    fn end_forbidden(&self, identity: &Identity, shard: &Shard, connection: &Connection) {
        let user = if let Client::Connected(before) = &self.client { before.permissions.user() } else { None };
        let is_same_user = user == identity.permissions.user();
        let reason = |channel: &ChannelName| {
            if self.has_token(channel, connection) {
                return (!is_same_user).then_some(SubscriptionEnd::Expired);
            }
            let is_forbidden = identity.permissions.check(channel, Action::Subscribe).is_err();
            is_forbidden.then_some(SubscriptionEnd::NotAllowed)
        };
        let channels =
            |session: &Session| session.subscriptions().map(|(_, held)| held.topic().channel.clone()).collect();
        let channels: Vec<ChannelName> = channels(&connection.session());
        for channel in channels {
            if let Some(why) = reason(&channel) {
                end(&channel, why, shard, connection);
            }
        }
    }

    /// Publishes this message and those that follow it.
    fn publish(&mut self, first: Command, shard: &Shard, connection: &Rc<Connection>) {
        let mut batch = vec![first];
        while let Some(next) = self.next_if(|next| matches!(next, Request::Publish(_))) {
            batch.push(next);
        }
        let app = shard.context.app.clone();
        let checked = match &self.client {
            Client::Connected(identity) => publish::check(&app, &identity.permissions, batch),
            _ => match publish::to_only_channel(connection, batch) {
                Some(checked) => checked,
                None => return,
            },
        };
        self.running = Some(publish::publish(app, checked).map(Done::Published).boxed_local());
    }

    /// Reads values for a client that is about to subscribe to a map.
    fn read_values(&mut self, id: Option<CommandId>, request: ValuesRequest, app: Arc<App>, connection: &Connection) {
        let Client::Connected(identity) = &self.client else { return };
        if connection.session().find(&request.channel).is_some() {
            return fail(connection, id, &CommandError::AlreadySubscribed);
        }
        let reading = values::read(app, (**identity).clone(), request, connection.address());
        self.running = Some(reading.map(move |result| Done::Read(id, result)).boxed_local());
    }

    /// Subscribes to this channel and to those of the commands that follow.
    fn subscribe(
        &mut self,
        id: Option<CommandId>,
        first: SubscribeRequest,
        shard: &Shard,
        connection: &Rc<Connection>,
    ) {
        let app = shard.context.app.clone();
        let most = app.limits.channels;
        let mut checked = vec![(id, may_subscribe(first, &[], connection, most))];
        while checked.len() < most
            && let Some(next) = self.next_if(|next| matches!(next, Request::Subscribe(_)))
            && let Command { id, request: Request::Subscribe(request), .. } = next
        {
            let next = may_subscribe(*request, &checked, connection, most);
            checked.push((id, next));
        }
        let Client::Connected(identity) = &self.client else { return };
        let joining = subscribe::join_all(app, (**identity).clone(), checked, connection.address());
        self.running = Some(joining.map(Done::Subscribed).boxed_local());
    }
}

/// Checks what the connection allows. `others` are about to be made.
fn may_subscribe(
    request: SubscribeRequest,
    others: &[Checked],
    connection: &Connection,
    most: usize,
) -> Result<SubscribeRequest, CommandError> {
    let session = connection.session();
    let mut others = others.iter().filter_map(|(_, other)| other.as_ref().ok());
    let others_count = others.clone().count();
    if session.find(&request.channel).is_some() || others.any(|other| other.channel == request.channel) {
        Err(CommandError::AlreadySubscribed)
    } else if session.subscription_count() + others_count >= most {
        connection.context().app.metrics.count_refused("channels");
        Err(CommandError::TooManyChannels(most))
    } else {
        Ok(request)
    }
}

fn unsubscribe(channel: &ChannelName, shard: &Shard, connection: &Connection) {
    let key = connection.session().find(channel);
    if let Some(key) = key {
        shard.leave(connection, key);
    }
}

/// Ends a subscription, and tells the client why.
fn end(channel: &ChannelName, why: SubscriptionEnd, shard: &Shard, connection: &Connection) {
    unsubscribe(channel, shard, connection);
    connection.queue_notice(|encoding, out| {
        encoding.dialect.write_unsubscribed(channel, why, out);
    });
}
