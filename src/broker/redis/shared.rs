//! A connection that several callers share. It sends commands in the order of the calls; replies
//! return in the same order. A task owns the connection. The connection ends with the task, and the
//! task with the last handle.

use std::collections::VecDeque;

use redis::{Cmd, FromRedisValue};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::connection::Connection;
use super::endpoint::ANSWER_TIMEOUT;
use super::error::ClientError;
use super::reply::Reply;

/// How many commands wait to be sent. Beyond that, callers wait.
const QUEUE: usize = 64;

/// A handle of a shared connection.
#[derive(Clone)]
pub(super) struct SharedConnection {
    requests: mpsc::Sender<Request>,
    generation: u64,
}

struct Request {
    command: Vec<u8>,
    sender: oneshot::Sender<Reply>,
}

impl SharedConnection {
    /// Shares a connection. Its task runs on this runtime.
    pub(super) fn new(connection: Connection, runtime: &Handle) -> Self {
        let generation = connection.generation;
        let (requests, arriving) = mpsc::channel(QUEUE);
        runtime.spawn(drive(connection, arriving));
        Self { requests, generation }
    }

    /// See [`super::node::Node::generation`].
    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    /// Whether two handles refer to the same connection.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.requests.same_channel(&other.requests)
    }

    /// Sends a command and waits for its reply, for at most [`ANSWER_TIMEOUT`].
    ///
    /// # Errors
    /// [`ClientError::Refused`] if Redis replied with an error. After any other error, the
    /// connection cannot be used any more.
    pub(super) async fn call<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, ClientError> {
        let (sender, reply) = oneshot::channel();
        let request = Request { command: command.get_packed_command(), sender };
        let answered = async {
            self.requests.send(request).await.map_err(|_| ClientError::Closed)?;
            reply.await.unwrap_or(Err(ClientError::Closed))
        };
        let value = timeout(ANSWER_TIMEOUT, answered).await.unwrap_or_else(|_| Err(ClientError::timed_out()))?;
        Ok(redis::from_redis_value(value)?)
    }
}

async fn drive(mut connection: Connection, mut requests: mpsc::Receiver<Request>) {
    let mut waiting: VecDeque<oneshot::Sender<Reply>> = VecDeque::new();
    loop {
        tokio::select! {
            request = requests.recv() => match request {
                Some(Request { command, sender }) => {
                    connection.outgoing().extend_from_slice(&command);
                    waiting.push_back(sender);
                }
                None => return,
            },
            progress = connection.read_or_write() => {
                let answered = progress.and_then(|()| {
                    connection.replies(|reply| {
                        let sender = waiting.pop_front().ok_or(ClientError::Unexpected("Redis"))?;
                        // The receiver is gone if the caller has given up.
                        let _ = sender.send(reply);
                        Ok(())
                    })
                });
                if waiting.is_empty() {
                    connection.give_back();
                }
                if let Err(error) = answered {
                    tracing::debug!(%error, "a shared connection to Redis has ended");
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn replies_reach_their_callers_in_order_and_the_end_reaches_all() {
        let (ours, mut theirs) = tokio::io::duplex(1 << 10);
        let shared = SharedConnection::new(Connection::over(Box::new(ours)), &Handle::current());
        let ask = |word: &'static str| {
            let shared = shared.clone();
            tokio::spawn(async move { shared.call::<String>(&redis::cmd(word)).await })
        };
        let (one, two) = (ask("ONE"), ask("TWO"));
        let mut asked = vec![0; 26];
        theirs.read_exact(&mut asked).await.expect("both are sent before one is answered");
        let one_came_first =
            asked.windows(3).position(|part| part == b"ONE") < asked.windows(3).position(|part| part == b"TWO");
        let replies: &[u8] = if one_came_first { b"+one\r\n-ERR no\r\n" } else { b"-ERR no\r\n+one\r\n" };
        theirs.write_all(replies).await.expect("it reads");
        assert_eq!(one.await.expect("no panic").expect("answered"), "one");
        assert_eq!(two.await.expect("no panic").expect_err("refused").refusal(), Some("ERR no"));
        let three = ask("THREE");
        drop(theirs);
        assert!(matches!(three.await.expect("no panic"), Err(ClientError::Closed)));
    }
}
