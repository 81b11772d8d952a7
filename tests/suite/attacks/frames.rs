//! WebSocket frames that RFC 6455 forbids, or that are too large: each closes the connection with its code, and nothing of them
//! is published.

use futures::StreamExt;
use tokio::io::AsyncWriteExt;
use tokio_tungstenite::WebSocketStream;
use tungstenite::Message;
use tungstenite::protocol::Role;

use super::{ROGUE, assert_untouched, beside, read_through};
use crate::support::instance::{Instance, Options};
use crate::support::raw::{self, HANDSHAKE};
use crate::support::{channel, soon};

const MASK: [u8; 4] = [0x37, 0xFA, 0x21, 0x3D];

/// A masked frame with a first byte of choice.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    match payload.len() {
        length @ 0..=125 => frame.push(0x80 | length as u8),
        length => {
            frame.push(0x80 | 126);
            frame.extend(u16::try_from(length).unwrap().to_be_bytes());
        }
    }
    frame.extend(MASK);
    frame.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

fn all(frames: &[Vec<u8>]) -> Vec<u8> {
    frames.concat()
}

/// Sends the bytes on a new connection, and what would be a message after them; returns the close code.
async fn closed_with(instance: &Instance, channel: &str, bytes: &[u8]) -> Option<u16> {
    let mut stream = raw::connect_from(ROGUE, instance).await;
    let request = format!("GET /ws?channel={channel} HTTP/1.1\r\n{HANDSHAKE}");
    stream.write_all(request.as_bytes()).await.unwrap();
    read_through(&mut stream, b"\r\n\r\n").await;
    stream.write_all(bytes).await.unwrap();
    let _ = stream.write_all(&frame(0x81, b"after")).await;
    let mut socket = WebSocketStream::from_raw_socket(stream, Role::Client, None).await;
    loop {
        match soon("a close", socket.next()).await {
            Some(Ok(Message::Close(close))) => return close.map(|close| close.code.into()),
            Some(Ok(Message::Pong(_))) => {}
            other => panic!("{other:?} before a close"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frame_that_the_standard_forbids_closes_its_connection_and_publishes_nothing() {
    let instance = Instance::embedded().await;
    let channel = channel("forbidden");
    let mut attacks: Vec<(String, Vec<u8>, u16)> = vec![
        ("unmasked".into(), b"\x81\x01x".to_vec(), 1002),
        ("unmasked ping".into(), b"\x89\x00".to_vec(), 1002),
        ("a ping in pieces".into(), frame(0x09, b"x"), 1002),
        ("a close in pieces".into(), frame(0x08, b""), 1002),
        ("a ping of 126 bytes".into(), frame(0x89, &[b'x'; 126]), 1002),
        ("a close of 126 bytes".into(), frame(0x88, &[3; 126]), 1002),
        ("half a close code".into(), frame(0x88, b"\x03"), 1002),
        ("a close reason that is no UTF-8".into(), frame(0x88, b"\x03\xE8\xC0\xAF"), 1007),
        ("a continuation of nothing".into(), frame(0x80, b"x"), 1002),
        ("a message within another".into(), all(&[frame(0x01, b"x"), frame(0x81, b"y")]), 1002),
    ];
    for bit in [0x10, 0x20, 0x40] {
        attacks.push((format!("reserved bit {bit:#x}"), frame(0x81 | bit, b"x"), 1002));
        attacks.push((format!("reserved bit {bit:#x} of a ping"), frame(0x89 | bit, b"x"), 1002));
    }
    for opcode in [0x3, 0x4, 0x5, 0x6, 0x7, 0xB, 0xC, 0xD, 0xE, 0xF] {
        attacks.push((format!("opcode {opcode:#x}"), frame(0x80 | opcode, b"x"), 1002));
    }
    for code in [0_u16, 1, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65_535] {
        attacks.push((format!("close code {code}"), frame(0x88, &code.to_be_bytes()), 1002));
    }
    beside(&instance, async {
        for (what, bytes, expected) in &attacks {
            assert_eq!(closed_with(&instance, &channel, bytes).await, Some(*expected), "{what}");
        }
    })
    .await;
    assert_untouched(&instance, &channel).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn text_that_is_not_utf8_is_refused_however_it_is_split() {
    let instance = Instance::embedded().await;
    let channel = channel("text");
    // Overlong, a surrogate, beyond Unicode, a lone continuation, one that ends too early.
    let wrong: [&[u8]; 6] = [b"\xC0\xAF", b"\xE0\x80\xAF", b"\xED\xA0\x80", b"\xF4\x90\x80\x80", b"a\x80", b"\xE2\x82"];
    beside(&instance, async {
        for bytes in wrong {
            assert_eq!(closed_with(&instance, &channel, &frame(0x81, bytes)).await, Some(1007), "{bytes:?}");
            for cut in 0..=bytes.len() {
                let (one, other) = bytes.split_at(cut);
                let split = all(&[frame(0x01, one), frame(0x89, b"?"), frame(0x80, other)]);
                assert_eq!(closed_with(&instance, &channel, &split).await, Some(1007), "{bytes:?} at {cut}");
            }
        }
    })
    .await;
    assert_untouched(&instance, &channel).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_over_the_limit_is_refused_in_one_frame_or_in_many() {
    let instance = Options::default().flag("--max-message-bytes 1000").start().await;
    let channel = channel("over");
    let piece = vec![b'x'; 250];
    let pieces = [frame(0x02, &piece), frame(0x00, &piece), frame(0x00, &piece), frame(0x00, &piece)].concat();
    let attacks = [
        frame(0x82, &[b'x'; 1001]),
        // The header alone is enough, and a length that overflows is none.
        vec![0x82, 0xFF, 0, 0, 0, 1, 0, 0, 0, 0],
        vec![0x82, 0xFF, 0x80, 0, 0, 0, 0, 0, 0, 0],
        vec![0x82, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF],
        [pieces.clone(), frame(0x80, b"x")].concat(),
        [pieces, frame(0x00, b""), frame(0x89, b"?"), frame(0x00, b"x")].concat(),
    ];
    beside(&instance, async {
        for bytes in &attacks {
            assert_eq!(closed_with(&instance, &channel, bytes).await, Some(1009), "{:?}", &bytes[..10]);
        }
    })
    .await;
    assert_untouched(&instance, &channel).await;
}
