//! A Redis client for any bytes, which shows answers as they are, errors within arrays too.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    Number(i64),
    Text(Vec<u8>),
    Error(String),
    Array(Vec<Answer>),
    Null,
}

impl Answer {
    /// The text of an error.
    pub fn error(&self) -> &str {
        match self {
            Self::Error(text) => text,
            other => panic!("expected an error, got {other:?}"),
        }
    }

    pub fn array(&self) -> &[Answer] {
        match self {
            Self::Array(items) => items,
            other => panic!("expected an array, got {other:?}"),
        }
    }

    /// A text or a number as text.
    pub fn text(&self) -> String {
        match self {
            Self::Text(text) => String::from_utf8_lossy(text).into_owned(),
            Self::Number(number) => number.to_string(),
            other => panic!("expected a text, got {other:?}"),
        }
    }
}

pub struct Client(BufReader<TcpStream>);

impl Client {
    pub fn connect(port: u16) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(super::PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self(BufReader::new(stream))
    }

    /// Sends a command and waits for its answer.
    pub fn ask<T: AsRef<[u8]>>(&mut self, words: &[T]) -> Answer {
        let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
        for word in words.iter().map(AsRef::as_ref) {
            bytes.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
            bytes.extend_from_slice(word);
            bytes.extend_from_slice(b"\r\n");
        }
        self.0.get_mut().write_all(&bytes).unwrap();
        self.next()
    }

    /// Calls a function on a channel.
    pub fn call(&mut self, function: &str, channel: &[u8], arguments: &[&[u8]]) -> Answer {
        let mut words: Vec<&[u8]> = vec![b"FCALL", function.as_bytes(), b"1", channel];
        words.extend(arguments);
        self.ask(&words)
    }

    /// What Redis sends next: an answer, or what arrives on a channel.
    pub fn next(&mut self) -> Answer {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        let (kind, rest) = line.trim_end().split_at(1);
        let number = || rest.parse::<i64>().unwrap();
        match kind {
            "+" => Answer::Text(rest.into()),
            "-" => Answer::Error(rest.into()),
            ":" => Answer::Number(number()),
            "$" | "*" if number() < 0 => Answer::Null,
            "$" => {
                let mut bytes = vec![0; number() as usize + 2];
                self.0.read_exact(&mut bytes).unwrap();
                bytes.truncate(bytes.len() - 2);
                Answer::Text(bytes)
            }
            "*" => Answer::Array((0..number()).map(|_| self.next()).collect()),
            _ => panic!("not RESP2: {line:?}"),
        }
    }

    /// What arrives next on a channel that the connection is subscribed to: the channel and the payload.
    pub fn message(&mut self) -> (String, Vec<u8>) {
        loop {
            if let Answer::Array(items) = self.next()
                && let [kind, channel, Answer::Text(payload)] = &items[..]
                && kind.text() == "message"
            {
                return (channel.text(), payload.clone());
            }
        }
    }
}
