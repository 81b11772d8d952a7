//! The commands of a Centrifuge client in the Protobuf form, each with its length before it: all of a frame is read, with ids and
//! payloads as they are in it, or the frame ends with a close.
#![no_main]

use libfuzzer_sys::fuzz_target;
use livebridge::close::Code;
use livebridge::delivery::dialect::command::Request;
use livebridge::delivery::encoding::CENTRIFUGE_PROTOBUF;
use livebridge::delivery::framing::Kind;

fuzz_target!(|frame: &[u8]| {
    let dialect = CENTRIFUGE_PROTOBUF.dialect;
    let mut commands = Vec::new();
    let read = dialect.commands(Kind::Binary, frame.to_vec().into(), &mut |command| commands.push(command));
    let mut rest = frame;
    for command in &commands {
        let message = split(&mut rest);
        assert_eq!(command.size, message.len());
        if let Request::Publish(request) = &command.request {
            let length = request.payload.len();
            assert!(length == 0 || message.windows(length).any(|part| part == request.payload));
            assert!(request.channel.is_some());
        }
    }
    match read {
        Ok(()) => assert!(!commands.is_empty() && rest.is_empty()),
        Err(close) => assert_eq!(close.code, Code::CommandInvalid),
    }
    let mut is_taken = false;
    assert!(dialect.commands(Kind::Text, frame.to_vec().into(), &mut |_| is_taken = true).is_err() && !is_taken);
});

/// Takes a message off the frame, with the length before it.
fn split<'a>(rest: &mut &'a [u8]) -> &'a [u8] {
    let mut length = 0;
    for shift in (0..).step_by(7) {
        let byte = *rest.split_off_first().expect("a length");
        length |= usize::from(byte & 0x7F) << shift;
        if byte & 0x80 == 0 {
            break;
        }
    }
    rest.split_off(..length).expect("a message")
}
