//! What a WebSocket client sends, in chunks of any size: the decoder must say the same of it however it is cut.
#![no_main]

use libfuzzer_sys::fuzz_target;
use livebridge::delivery::framing::websocket::{Decoder, Incoming};

const LIMIT: usize = 4096;

/// All that the decoder says of the bytes, as text, up to its first objection or a close: a connection reads nothing after
/// either.
fn decode(bytes: &[u8], chunk: usize) -> Vec<String> {
    let mut decoder = Decoder::new(LIMIT, true);
    let mut said: Vec<String> = Vec::new();
    for piece in bytes.chunks(chunk.max(1)) {
        let mut piece = piece.to_vec();
        let result = decoder.decode(&mut piece, |incoming: Incoming| said.push(format!("{incoming:?}")));
        if let Err(close) = result {
            said.push(format!("{close:?}"));
            break;
        }
        if said.last().is_some_and(|last| last.starts_with("Close")) {
            break;
        }
    }
    said
}

fuzz_target!(|input: (u8, Vec<u8>)| {
    let (chunk, bytes) = input;
    assert_eq!(decode(&bytes, usize::from(chunk)), decode(&bytes, bytes.len()));
});
