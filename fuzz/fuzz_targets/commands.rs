//! The commands of a Centrifuge client, a JSON object on each line: each is read with its id and its payload as written, or
//! the frame ends with a close.
#![no_main]

use libfuzzer_sys::fuzz_target;
use livebridge::close::Code;
use livebridge::delivery::dialect::command::Request;
use livebridge::delivery::encoding::CENTRIFUGE;
use livebridge::delivery::framing::Kind;
use serde_json::Value;

fuzz_target!(|frame: &[u8]| {
    let lines: Vec<_> = frame.split(|&byte| byte == b'\n').map(<[u8]>::trim_ascii).filter(|line| !line.is_empty()).collect();
    let mut commands = Vec::new();
    let read = CENTRIFUGE.dialect.commands(Kind::Text, frame.to_vec().into(), &mut |command| commands.push(command));
    match read {
        Ok(()) => assert!(!lines.is_empty() && commands.len() == lines.len()),
        Err(close) => assert!(close.code == Code::CommandInvalid && commands.len() <= lines.len()),
    }
    for (line, command) in lines.iter().zip(&commands) {
        assert_eq!(command.size, line.len());
        match &command.request {
            Request::Publish(request) => {
                let is_there = line.windows(request.payload.len().max(1)).any(|part| part == request.payload);
                let is_json = serde_json::from_slice::<&serde_json::value::RawValue>(&request.payload).is_ok();
                assert!(request.channel.is_some() && (is_there && is_json || request.payload.is_empty() && request.options.remove));
                assert!(!request.options.remove || request.options.key.is_some());
            }
            Request::Subscribe(request) if request.map.is_some() => {
                assert!(request.all_or_nothing && request.recover.is_some_and(|since| since.epoch.is_some()));
            }
            Request::Values(request) => {
                assert!(request.limit != Some(0) && request.after.is_none_or(|after| after.position.epoch.is_some()));
            }
            Request::Connect(request) => assert!(request.subscriptions.iter().all(|request| request.map.is_none())),
            _ => {}
        }
        // Numbers that a Value cannot hold are read by others.
        let Ok(value) = serde_json::from_slice::<Value>(line) else { continue };
        assert_eq!(value["id"].as_u64().unwrap_or(0), command.id.map_or(0, |id| id.get().into()), "{value}");
    }
});
