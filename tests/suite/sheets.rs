//! Many copies of the demo's sheet, in one Chromium, on several instances: what they come to in the end.

use std::time::Duration;

use serde_json::json;

use crate::support::browser::{Browser, Window};
use crate::support::instance::{Instance, Options};
use crate::support::redis::Redis;

/// Opens fifty sheets as `sheets`, on these instances in turn; `edit()` begins random edits in random sheets.
const OPEN: &str = "import('/sync.js').then(({ SharedSheet }) => {
    const cells = ['A', 'B', 'C', 'D'].flatMap((letter) => [1, 2, 3].map((row) => letter + row));
    const any = (list) => list[Math.floor(Math.random() * list.length)];
    globalThis.sheets = Array.from({ length: 50 }, (_, index) => new SharedSheet({
        channel: 'sheet:fifty', me: { name: `Editor ${index}`, colour: '#0f766e' }, url: URLS[index % URLS.length] }));
    globalThis.states = sheets.map((sheet, index) => (sheet.addEventListener('state', ({ detail }) => states[index] = detail.state), ''));
    globalThis.edits = 0;
    globalThis.edit = () => globalThis.editing = setInterval(() => any(sheets).commit(any(cells), ++edits), 10);
    globalThis.contents = (sheet) => JSON.stringify(cells.map((name) => sheet.cell(name).value));
})";

impl Window {
    async fn until_edits(&self, more: u64) {
        let now = self.eval("edits").await.as_u64().unwrap();
        self.until(&format!("edits >= {}", now + more)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_sheets_on_three_instances_are_equal_in_the_end_whatever_breaks() {
    let browser = Browser::start().await;
    let redis = Redis::start().await;
    let first = Options::redis(&redis).start().await;
    let origin = format!("--allowed-origin {}", first.url("").trim_end_matches('/'));
    let options = || Options::redis(&redis).flag(&origin);
    let (second, third) = tokio::join!(options().start(), options().start());
    let mut instances: Vec<Option<Instance>> = [first, second, third].map(Some).into();
    let addresses: Vec<_> = instances.iter().flatten().map(|instance| instance.address.clone()).collect();
    let urls: Vec<_> = addresses.iter().map(|address| format!("http://{address}/")).collect();
    let window = browser.open_at(&format!("{}healthz", urls[0])).await;
    window.eval(&OPEN.replace("URLS", &json!(urls).to_string())).await;
    window.until("states.every((state) => state === 'open')").await;
    window.eval("void edit()").await;
    for round in 0..4 {
        window.until_edits(50).await;
        let at = round % 3;
        instances[at] = None; // with SIGKILL
        if round == 1 {
            redis.cli(&["CLIENT", "KILL", "TYPE", "pubsub"]);
        }
        window.until_edits(50).await;
        instances[at] = Some(options().listen(&addresses[at]).start().await);
        // Long waits between attempts are not what this is about.
        window.eval("void dispatchEvent(new Event('online'))").await;
    }
    window.until_edits(50).await;
    window.eval("clearInterval(editing)").await;
    tokio::time::timeout(Duration::from_secs(90), async {
        let saved =
            "states.every((state) => state === 'open') && sheets.every(({ unsavedCount }) => unsavedCount === 0)";
        while window.eval(saved).await != true {
            window.eval("void dispatchEvent(new Event('online'))").await;
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    })
    .await
    .expect("all is saved");
    window.until("new Set(sheets.map(contents)).size === 1").await;
    // So it is to somebody who comes only now.
    let late = "import('/sync.js').then(({ SharedSheet }) => void (globalThis.late = new SharedSheet({ channel: 'sheet:fifty', me: {} })))";
    window.eval(late).await;
    window.until("contents(late) === contents(sheets[0])").await;
}
