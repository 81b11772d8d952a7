//! The body of a batch, a JSON object on each line: all of it becomes what serde_json makes of each line by itself, or it is
//! refused with the line's number.
#![no_main]

mod common;

use std::sync::{Arc, LazyLock};

use futures::FutureExt;
use libfuzzer_sys::fuzz_target;
use livebridge::access::{Action, Credentials, Permissions};
use livebridge::app::App;
use livebridge::http::publish::parse_batch;
use serde_json::Value;

static APP: LazyLock<Arc<App>> = LazyLock::new(common::app);
/// Everybody may do everything.
static PERMISSIONS: LazyLock<Permissions> = LazyLock::new(|| {
    let identified = APP.access.identify(&Credentials::default(), Action::Publish).now_or_never();
    identified.expect("nothing is waited for").expect("nobody is refused")
});

fuzz_target!(|body: &[u8]| {
    let lines: Vec<&[u8]> = body.split(|&byte| byte == b'\n').collect();
    let written: Vec<_> = lines.iter().filter(|line| !line.iter().all(u8::is_ascii_whitespace)).collect();
    let batch = match parse_batch(&APP, &["other".parse().expect("a name")], &PERMISSIONS, body, Some("id")) {
        Ok(batch) => batch,
        Err(error) => {
            let line = error.line.expect("a number");
            assert!((1..=lines.len()).contains(&line) && !error.message.is_empty());
            assert!(error.status == 400 || error.status == 413);
            return;
        }
    };
    assert!(batch.len() == written.len() && batch.len() <= common::MOST_MESSAGES);
    for (line, publication) in written.iter().zip(&batch) {
        assert!(publication.payload.len() <= common::MOST_BYTES);
        assert!(publication.id.is_some() && (!publication.remove || publication.key.is_some()));
        // Deeper, or with larger numbers, than a Value can be: the bridge hands such data on unread.
        let Ok(line) = serde_json::from_slice::<Value>(line) else { continue };
        assert_eq!(publication.channel.as_str(), line["channel"].as_str().unwrap_or("other"));
        assert_eq!(publication.key.as_deref(), line["key"].as_str());
        match (&line["data"], line["encoding"].as_str()) {
            (_, Some(encoding)) => assert_eq!(encoding, "base64"),
            (Value::String(text), None) => assert_eq!(text.as_bytes(), publication.payload),
            (data, None) => assert_eq!(Some(data), serde_json::from_slice(&publication.payload).ok().as_ref()),
        }
    }
});
