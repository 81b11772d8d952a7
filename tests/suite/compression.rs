//! permessage-deflate (RFC 7692): who offers it gets large messages compressed, all others as before.

use std::io::Read;

use flate2::read::DeflateDecoder;
use flate2::{Compress, Compression, FlushCompress};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::browser::Browser;
use crate::support::centrifuge_protobuf as protobuf;
use crate::support::instance::{Instance, Options};
use crate::support::{channel, soon};

const OFFER: &str = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n";
const TAIL: [u8; 4] = [0, 0, 0xFF, 0xFF];
const COMPRESSED: u8 = 0x40;

fn rows(length: usize) -> String {
    let row = r#"{"cell":"B4","value":17,"by":"somebody"},"#;
    format!("[{}0]", row.repeat(length / row.len()))
}

/// The same as a test of Protobuf sees it: a value without spaces.
fn large(length: usize) -> String {
    serde_json::from_str::<serde_json::Value>(&rows(length)).unwrap().to_string()
}

fn inflate(mut payload: Vec<u8>) -> Vec<u8> {
    payload.extend(TAIL);
    // An empty last block, which ends the stream.
    payload.extend([0x01, 0x00, 0x00, 0xFF, 0xFF]);
    let mut message = Vec::new();
    DeflateDecoder::new(&*payload).read_to_end(&mut message).unwrap();
    message
}

async fn compressing() -> Instance {
    Options::default().flag("--compression on").start().await
}

/// A client that offers compression, by hand.
struct Client {
    stream: TcpStream,
    /// The head of the response.
    head: String,
}

impl Client {
    async fn connect(instance: &Instance, path: &str) -> Self {
        let mut stream = TcpStream::connect(&instance.address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\n{OFFER}{}", crate::support::raw::HANDSHAKE);
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(soon("the head", stream.read_u8()).await.unwrap());
        }
        Self { stream, head: String::from_utf8(head).unwrap().to_lowercase() }
    }

    /// The first byte and the payload of the next frame.
    async fn frame(&mut self) -> (u8, Vec<u8>) {
        soon("a frame", async {
            let first = self.stream.read_u8().await.unwrap();
            let length = match self.stream.read_u8().await.unwrap() {
                126 => self.stream.read_u16().await.unwrap().into(),
                127 => self.stream.read_u64().await.unwrap(),
                short => short.into(),
            };
            let mut payload = vec![0; length as usize];
            self.stream.read_exact(&mut payload).await.unwrap();
            (first, payload)
        })
        .await
    }

    /// The next message, and whether it was compressed.
    async fn message(&mut self) -> (bool, String) {
        let (first, mut payload) = self.frame().await;
        let is_compressed = first & COMPRESSED != 0;
        if is_compressed {
            payload = inflate(payload);
        }
        (is_compressed, String::from_utf8(payload).unwrap())
    }

    /// Sends a compressed text.
    async fn send(&mut self, text: &[u8]) {
        self.send_compressed(0x81, text).await;
    }

    /// Sends a compressed message whose first byte is this otherwise.
    async fn send_compressed(&mut self, first: u8, message: &[u8]) {
        let mut compressed = Vec::with_capacity(message.len() + 100);
        Compress::new(Compression::best(), false).compress_vec(message, &mut compressed, FlushCompress::Sync).unwrap();
        self.send_frame(first | COMPRESSED, compressed.strip_suffix(&TAIL).unwrap()).await;
    }

    async fn send_frame(&mut self, first: u8, payload: &[u8]) {
        let mut frame = vec![first, 0x80 | 126];
        frame.extend(u16::try_from(payload.len()).unwrap().to_be_bytes());
        // A mask of zeros changes nothing.
        frame.extend([0; 4]);
        frame.extend(payload);
        self.stream.write_all(&frame).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_offers_compression_gets_large_messages_compressed_and_all_others_as_they_are() {
    let instance = compressing().await;
    let channel = channel("deflate");
    let path = format!("/ws?channel={channel}");
    let (mut one, mut two) = (Client::connect(&instance, &path).await, Client::connect(&instance, &path).await);
    assert!(one.head.contains(
        "sec-websocket-extensions: permessage-deflate; server_no_context_takeover; client_no_context_takeover\r\n"
    ));
    let mut plain = instance.ws(&format!("channel={channel}")).await;
    for (message, compressed) in
        [(rows(1024), true), ("short".into(), false), (rows(100_000), true), (rows(1024), true)]
    {
        instance.publish(&channel, message.clone()).await;
        assert_eq!(plain.text().await, message);
        for client in [&mut one, &mut two] {
            assert_eq!(client.message().await, (compressed, message.clone()));
        }
    }
    let mut late = Client::connect(&instance, &format!("{path}&last=4")).await;
    for length in [1024, 0, 100_000, 1024] {
        let (_, text) = late.message().await;
        assert!(text == rows(length) || length == 0 && text == "short", "what one client gets alone: {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_sdk_that_speaks_protobuf_gets_compressed_bytes() {
    let instance = compressing().await;
    let channel = channel("deflate");
    instance.publish(&channel, "first").await;
    let path = "/connection/websocket?format=protobuf";
    let (mut one, mut two) = (Client::connect(&instance, path).await, Client::connect(&instance, path).await);
    for client in [&mut one, &mut two] {
        for command in [json!({ "id": 1, "connect": {} }), json!({ "id": 2, "subscribe": { "channel": channel } })] {
            client.send_frame(0x82, &protobuf::command(&command)).await;
            let (first, reply) = client.frame().await;
            assert_eq!((first, &protobuf::reply(&reply)["id"]), (0x82, &command["id"]));
        }
    }
    instance.publish(&channel, large(2000)).await;
    for client in [&mut one, &mut two] {
        let (first, compressed) = client.frame().await;
        assert_eq!(first, 0x82 | COMPRESSED);
        let push = protobuf::reply(&inflate(compressed));
        assert_eq!(push["push"]["pub"]["data"].to_string(), large(2000));
    }
    // What it compresses itself.
    one.send_compressed(0x82, &protobuf::publish(3, &channel, large(2000).as_bytes())).await;
    assert_eq!(protobuf::reply(&inflate(two.frame().await.1))["push"]["pub"]["data"].to_string(), large(2000));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_setting_no_offer_is_accepted() {
    let instance = Instance::embedded().await;
    let channel = channel("plain");
    let mut client = Client::connect(&instance, &format!("/ws?channel={channel}")).await;
    assert!(client.head.starts_with("http/1.1 101 ") && !client.head.contains("extensions"), "{}", client.head);
    instance.publish(&channel, rows(1024)).await;
    assert_eq!(client.message().await, (false, rows(1024)));
    client.send(b"no compression was agreed on").await;
    assert_eq!(client.frame().await.0, 0x88, "a close");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_client_compresses_is_published_as_it_was() {
    let instance = Options::default().flag("--compression on --max-message-bytes 100000").start().await;
    let channel = channel("sent");
    let mut plain = instance.ws(&format!("channel={channel}")).await;
    let mut client = Client::connect(&instance, &format!("/ws?channel={channel}")).await;
    for message in [rows(90_000), "x".into()] {
        client.send(message.as_bytes()).await;
        assert_eq!(plain.text().await, message);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_does_not_compress_may_be_as_large_as_any_other() {
    let instance = Options::default().flag("--compression on --max-message-bytes 60000").start().await;
    let channel = channel("random");
    let mut plain = instance.ws(&format!("channel={channel}")).await;
    let mut client = Client::connect(&instance, &format!("/ws?channel={channel}")).await;
    let mut message = vec![0xFF; 60_000];
    rand::fill(&mut message[1..]);
    client.send_compressed(0x82, &message).await;
    assert_eq!(plain.bytes().await, message);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_unfolds_beyond_the_limit_closes_its_client_alone() {
    let instance = Options::default().flag("--compression on --max-message-bytes 100000").start().await;
    let channel = channel("bomb");
    let mut plain = instance.ws(&format!("channel={channel}")).await;
    for (message, code) in [(vec![b'x'; 8 << 20], 1009_u16), (vec![0xFF; 9_000], 1007)] {
        let mut client = Client::connect(&instance, &format!("/ws?channel={channel}")).await;
        client.send(&message).await;
        let (first, payload) = client.frame().await;
        assert_eq!((first, &payload[..2]), (0x88, &code.to_be_bytes()[..]));
    }
    instance.publish(&channel, "fine").await;
    assert_eq!(plain.text().await, "fine");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_agrees_on_it_and_reads_and_sends_compressed_messages() {
    let instance = compressing().await;
    let browser = Browser::start().await;
    let window = browser.open(&instance).await;
    let script = format!(
        "(() => {{
            const socket = new WebSocket(location.origin.replace('http', 'ws') + '/ws?channel=deflate');
            window.seen = [];
            socket.onmessage = ({{ data }}) => window.seen.push(data);
            socket.onopen = () => {{ window.agreed = socket.extensions; socket.send('{}'); }};
         }})()",
        rows(5000)
    );
    window.eval(&script).await;
    window.until("window.seen.length === 1").await;
    assert_eq!(window.eval("window.seen[0]").await, rows(5000));
    let agreed = window.eval("window.agreed").await.to_string();
    assert!(agreed.contains("permessage-deflate"), "{agreed}");
}
