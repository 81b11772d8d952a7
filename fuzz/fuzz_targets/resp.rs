//! What a Redis sends on the connection that hears messages: a frame is the same wherever the bytes are cut, and none
//! reaches beyond what has arrived.
#![no_main]

use libfuzzer_sys::fuzz_target;
use livebridge::broker::redis::resp::parse;

fuzz_target!(|bytes: &[u8]| {
    let mut at = 0;
    while let Ok(Some((frame, length))) = parse(&bytes[at..]) {
        assert!(length > 0 && length <= bytes.len() - at);
        assert_eq!(parse(&bytes[at..at + length]), Ok(Some((frame, length))));
        assert!(!matches!(parse(&bytes[at..at + length - 1]), Ok(Some((_, shorter))) if shorter == length));
        at += length;
    }
});
