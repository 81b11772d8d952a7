//! A client of the Centrifuge protocol, by hand: JSON over a WebSocket.

use std::collections::VecDeque;

use serde_json::{Value, json};

use super::instance::Instance;
use super::ws::Socket;

pub struct Client {
    pub socket: Socket,
    /// What was pushed while a reply was awaited.
    pushed: VecDeque<Value>,
    next_id: u64,
}

impl Client {
    /// Opens a connection, without the first command.
    pub async fn open(instance: &Instance) -> Self {
        Self::over(Socket::connect(&format!("ws://{}/connection/websocket", instance.address)).await)
    }

    pub fn over(socket: Socket) -> Self {
        Self { socket, pushed: VecDeque::new(), next_id: 1 }
    }

    /// Connects without a token.
    pub async fn connect(instance: &Instance) -> Self {
        Self::connect_with(instance, json!({})).await.0
    }

    /// Connects; returns the result too.
    pub async fn connect_with(instance: &Instance, request: Value) -> (Self, Value) {
        let mut client = Self::open(instance).await;
        let result = client.ask("connect", request).await;
        (client, result)
    }

    /// Sends a command, and returns the result that its reply must have.
    pub async fn ask(&mut self, method: &str, request: Value) -> Value {
        let reply = self.reply(method, request).await;
        assert!(reply.get(method).is_some(), "{method}: {reply}");
        reply[method].clone()
    }

    /// Sends a command, and returns the error that its reply must have: the code, and whether it is temporary.
    pub async fn fail(&mut self, method: &str, request: Value) -> (u64, bool) {
        let reply = self.reply(method, request).await;
        let error = &reply["error"];
        assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{method}: {reply}");
        (error["code"].as_u64().unwrap(), error["temporary"] == true)
    }

    async fn reply(&mut self, method: &str, request: Value) -> Value {
        self.reply_to(method, &request.to_string()).await
    }

    /// Sends a command whose request is written by hand, and returns its reply.
    pub async fn reply_to(&mut self, method: &str, request: &str) -> Value {
        let id = self.next_id;
        self.next_id += 1;
        self.socket.send(format!(r#"{{"id":{id},"{method}":{request}}}"#)).await;
        loop {
            let message = self.next().await;
            if message["id"] == id {
                return message;
            }
            assert!(message.get("push").is_some(), "an unexpected reply: {message}");
            self.pushed.push_back(message["push"].clone());
        }
    }

    /// The next reply or push. Pings are answered.
    pub async fn next(&mut self) -> Value {
        loop {
            let text = self.socket.text().await;
            assert!(!text.contains('\n'), "a line end in {text}");
            if text != "{}" {
                return serde_json::from_str(&text).unwrap();
            }
            self.socket.send("{}").await;
        }
    }

    /// The next push.
    pub async fn push(&mut self) -> Value {
        if let Some(push) = self.pushed.pop_front() {
            return push;
        }
        let message = self.next().await;
        assert!(message.get("push").is_some(), "expected a push, got {message}");
        message["push"].clone()
    }

    /// The next push, which must be a publication: its channel and itself, without the epoch, which the first message of an
    /// epoch has.
    pub async fn publication(&mut self) -> (String, Value) {
        let push = self.push().await;
        assert!(push.get("pub").is_some(), "expected a publication, got {push}");
        let mut publication = push["pub"].clone();
        let epoch = publication.as_object_mut().unwrap().remove("epoch");
        assert_eq!(epoch.is_some(), publication["offset"] == 1, "{push}");
        (push["channel"].as_str().unwrap().to_owned(), publication)
    }

    /// The data of the next publications.
    pub async fn data(&mut self, count: usize) -> Vec<Value> {
        let mut found = Vec::new();
        for _ in 0..count {
            found.push(self.publication().await.1["data"].clone());
        }
        found
    }

    /// The code of the close frame that must come next.
    pub async fn closed(&mut self) -> u16 {
        let (code, reason) = self.socket.closed().await;
        assert!(serde_json::from_str::<Value>(&reason).is_err(), "an SDK reads {reason} as JSON");
        code
    }
}

/// The data of publications in a result.
pub fn data_of(result: &Value) -> Vec<Value> {
    let publications = result["publications"].as_array().map_or(&[][..], Vec::as_slice);
    publications.iter().map(|publication| publication["data"].clone()).collect()
}
