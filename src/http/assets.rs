//! Serves the demo, the browser client and the description of the HTTP surface. They are compiled
//! into the binary, so that a deployment is one file.

use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use warp::reply::Response;

struct Asset {
    path: &'static str,
    kind: &'static str,
    body: &'static [u8],
}

const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";

macro_rules! asset {
    ($path:literal, $kind:expr) => {
        Asset { path: $path, kind: $kind, body: include_bytes!(concat!("../../static/", $path)) }
    };
}

const ASSETS: &[Asset] = &[
    asset!("index.html", HTML),
    asset!("demo.css", "text/css; charset=utf-8"),
    asset!("favicon.svg", "image/svg+xml"),
    asset!("livebridge.js", SCRIPT),
    asset!("livebridge-connection.js", SCRIPT),
    asset!("livebridge-message.js", SCRIPT),
    asset!("livebridge-publish.js", SCRIPT),
    asset!("livebridge-socket.js", SCRIPT),
    asset!("livebridge-events.js", SCRIPT),
    asset!("livebridge-shared.js", SCRIPT),
    asset!("livebridge-worker.js", SCRIPT),
    asset!("demo.js", SCRIPT),
    asset!("plan.js", SCRIPT),
    asset!("sync.js", SCRIPT),
    asset!("unsaved.js", SCRIPT),
    asset!("sheet.js", SCRIPT),
    asset!("console.js", SCRIPT),
    asset!("cursors.js", SCRIPT),
    asset!("chart.js", SCRIPT),
    asset!("crowd.js", SCRIPT),
    asset!("snippet.js", SCRIPT),
    asset!("openapi.json", "application/json"),
];

/// The file with that name; the empty name stands for the demo page.
pub fn find(path: &str) -> Option<Response> {
    let path = if path.is_empty() { "index.html" } else { path };
    let asset = ASSETS.iter().find(|asset| asset.path == path)?;
    let mut response = Response::new(asset.body.into());
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(asset.kind));
    // The files are small and change with the binary, so browsers always revalidate them.
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    headers.insert(
        "content-security-policy",
        HeaderValue::from_static("default-src 'self'; connect-src 'self' ws: wss:; frame-ancestors 'none'"),
    );
    Some(response)
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_file_in_static_is_served() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/static");
        for entry in std::fs::read_dir(folder).expect("static/ is there") {
            let name = entry.expect("readable").file_name().into_string().expect("UTF-8");
            // What makes a package of the client.
            if ["package.json", "tsconfig.json", "README.md", "types"].contains(&&*name) {
                continue;
            }
            assert!(super::find(&name).is_some(), "{name} is not in ASSETS");
        }
    }
}
