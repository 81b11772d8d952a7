//! A client of the Centrifuge protocol, by hand, in either of its forms.

use std::collections::VecDeque;

use serde_json::{Value, json};

use super::centrifuge_protobuf as protobuf;
use super::instance::Instance;
use super::ws::Socket;

/// The forms of the protocol.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Form {
    #[default]
    Json,
    Protobuf,
}

pub struct Client {
    pub socket: Socket,
    form: Form,
    /// What was pushed while a reply was awaited.
    pushed: VecDeque<Value>,
    next_id: u64,
}

impl Form {
    /// Where clients of this form connect that offer no subprotocol.
    fn path(self) -> &'static str {
        match self {
            Self::Json => "/connection/websocket",
            Self::Protobuf => "/connection/websocket?format=protobuf",
        }
    }
}

impl Client {
    /// Opens a connection in the form of the instance's clients, without the first command.
    pub async fn open(instance: &Instance) -> Self {
        Self::open_at(instance, instance.form.path(), instance.form).await
    }

    /// Opens a connection in this form.
    pub async fn open_at(instance: &Instance, path: &str, form: Form) -> Self {
        Self::over(Socket::connect(&format!("ws://{}{path}", instance.address)).await).in_form(form)
    }

    /// The same connection in another form.
    pub fn in_form(self, form: Form) -> Self {
        Self { form, ..self }
    }

    /// A client of the JSON form.
    pub fn over(socket: Socket) -> Self {
        Self { socket, form: Form::Json, pushed: VecDeque::new(), next_id: 1 }
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
        let shown: String = reply.to_string().chars().take(1000).collect();
        assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{method}: {shown}");
        (error["code"].as_u64().unwrap(), error["temporary"] == true)
    }

    async fn reply(&mut self, method: &str, request: Value) -> Value {
        self.reply_to(method, &request.to_string()).await
    }

    /// Sends a command whose request is written by hand, and returns its reply.
    pub async fn reply_to(&mut self, method: &str, request: &str) -> Value {
        let id = self.next_id;
        self.next_id += 1;
        let command = format!(r#"{{"id":{id},"{method}":{request}}}"#);
        match self.form {
            Form::Json => self.socket.send(command).await,
            Form::Protobuf => self.send([serde_json::from_str(&command).unwrap()]).await,
        }
        loop {
            let message = self.next().await;
            if message["id"] == id {
                return message;
            }
            assert!(message.get("push").is_some(), "an unexpected reply: {message}");
            self.pushed.push_back(message["push"].clone());
        }
    }

    /// Sends commands in one frame.
    pub async fn send(&mut self, commands: impl IntoIterator<Item = Value>) {
        let commands = commands.into_iter();
        match self.form {
            Form::Json => {
                let lines: Vec<_> = commands.map(|command| command.to_string()).collect();
                self.socket.send(lines.join("\n")).await;
            }
            Form::Protobuf => {
                let frame: Vec<u8> = commands.flat_map(|command| protobuf::command(&command)).collect();
                self.socket.send(frame).await;
            }
        }
    }

    /// The next reply or push. Pings are answered.
    pub async fn next(&mut self) -> Value {
        loop {
            let message = match self.form {
                Form::Json => {
                    let text = self.socket.text().await;
                    assert!(!text.contains('\n'), "a line end in {text}");
                    serde_json::from_str(&text).unwrap()
                }
                Form::Protobuf => protobuf::reply(&self.socket.bytes().await),
            };
            if message != json!({}) {
                return message;
            }
            self.send([json!({})]).await;
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
