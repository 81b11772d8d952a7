//! The demo in a real Chromium: what people see, not what is on the wire.
//!
//! With `LIVEBRIDGE_SCREENSHOTS=docs/images` the pictures of the README are taken as well.

mod offline;

use std::path::Path;
use std::process::Command;

use serde_json::json;

use crate::support::browser::{Browser, CONTROL, ENTER, Window};
use crate::support::instance::{Instance, Options};
use crate::support::redis::Redis;
use crate::support::tokens::{SECRET, Signer, at};

/// What the page says of its connection.
const STATE: &str = "document.getElementById('connection').dataset.state";

async fn named(redis: &Redis, name: &str) -> Instance {
    Options::redis(redis).flag(&format!("--instance-name {name}")).start().await
}

/// The text of a cell, as a JavaScript expression.
fn cell(name: &str) -> String {
    format!("document.querySelector('[data-cell={name}] .value').textContent")
}

impl Window {
    async fn until_live_on(&self, instance: &str) {
        self.until(&format!("{STATE} === 'open'")).await;
        self.until_text("instance", instance).await;
    }

    async fn until_cell(&self, name: &str, shown: &str) {
        self.until(&format!("{} === '{shown}'", cell(name))).await;
    }

    /// Selects the cell and types a value over the one that is there.
    async fn set(&self, name: &str, value: &str) {
        let selector = format!("[data-cell={name}]");
        self.click(&selector).await;
        self.keys(&selector, &format!("{value}{ENTER}")).await;
    }

    async fn total(&self, column: &str) -> i64 {
        self.eval(&format!("Number(document.querySelector('[data-total={column}]').dataset.value)"))
            .await
            .as_i64()
            .unwrap()
    }

    async fn connect_console(&self, channel: &str) {
        self.fill("#console-channel", channel).await;
        self.click("#console-connect").await;
        self.until_text("console-status", &format!("connected to {channel}")).await;
    }

    /// The frames in the console, as a JavaScript expression.
    const FRAMES: &str = "[...document.querySelectorAll('#console-log .payload')].map((frame) => frame.textContent)";

    async fn until_frames(&self, frames: &[&str]) {
        self.until(&format!("JSON.stringify({}) === JSON.stringify({})", Self::FRAMES, json!(frames))).await;
    }

    async fn assert_clean_console(&self) {
        assert_eq!(self.console().await, [""; 0]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edit_in_one_window_flashes_in_a_window_on_another_instance() {
    let browser = Browser::start().await;
    let redis = Redis::start().await;
    let (east, west) = (named(&redis, "east").await, named(&redis, "west").await);
    let (one, two) = tokio::join!(browser.open(&east), browser.open(&west));
    one.until_live_on("east").await;
    two.until_live_on("west").await;
    let before = two.total("Budget").await;
    assert_eq!(two.text("[data-cell=C2] .value").await, "142,000");
    let editor = one.text("#me").await;
    // The flash is over soon: note it when it comes.
    two.eval(
        "void (globalThis.flashed = new Promise((resolve) => new MutationObserver(([{ target }], observer) => {
            const style = getComputedStyle(target);
            resolve([target.dataset.cell, target.dataset.editor, style.getPropertyValue('--ink'), style.animationName]);
            observer.disconnect();
        }).observe(document.getElementById('sheet'), { subtree: true, attributeFilter: ['data-flash'] })))",
    )
    .await;

    one.set("C2", "150000").await;

    two.until_cell("C2", "150,000").await;
    let colour = one.eval("getComputedStyle(document.documentElement).getPropertyValue('--me')").await;
    assert_eq!(two.eval("flashed").await, json!(["C2", editor, colour, "flash-a"]));
    assert_eq!(two.text("#last-edit").await, format!("{editor} set C2 to 150,000"));
    for window in [&one, &two] {
        assert_eq!(window.total("Budget").await, before + 8_000);
        assert_eq!(window.total("Remaining").await, window.total("Budget").await - window.total("Spent").await);
        assert_eq!(window.text("[data-cell=F2] .value").await, "53,800");
        window.until_text("edits", "1").await;
    }
    assert_eq!(one.text("#unsaved").await, "");
    assert_eq!(one.eval("document.querySelectorAll('[data-flash]').length").await, 0, "one's own edit is no news");

    two.set("G2", "Agreed").await;
    one.until_cell("G2", "Agreed").await;
    one.assert_clean_console().await;
    two.assert_clean_console().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_curl_posts_sets_a_cell_and_the_line_that_the_page_offers_works() {
    let browser = Browser::start().await;
    let redis = Redis::start().await;
    let (east, west) = (named(&redis, "east").await, named(&redis, "west").await);
    let window = browser.open(&west).await;
    window.until_live_on("west").await;
    let (status, answer) = east.post("/publish?channel=sheet:q3&key=C4", "95000").await;
    assert_eq!(status, 200, "{answer}");
    window.until_cell("C4", "95,000").await;
    window.until_text("last-edit", "Someone set C4 to 95,000").await;

    window.click("[data-cell=G6]").await;
    let line = window.text("#cell-curl").await.replacen("curl -d ''", "curl -sS -d \"it's mine\"", 1);
    let curl = Command::new("sh").args(["-c", &line]).output().unwrap();
    assert!(curl.status.success(), "{line}: {curl:?}");
    window.until(&format!("{} === \"it's mine\"", cell("G6"))).await;

    let (status, _) = east.post("/publish?channel=sheet:q3&key=C4&remove=true", "").await;
    assert_eq!(status, 200);
    window.until_cell("C4", "98,000").await;
    window.assert_clean_console().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_console_shows_what_redis_publishes_verbatim_and_sends() {
    let browser = Browser::start().await;
    let redis = Redis::start().await;
    let instance = named(&redis, "east").await;
    let window = browser.open(&instance).await;
    window.until_live_on("east").await;
    window.connect_console("news").await;
    let odd = "<b>&amp;</b> {\"a\": [1,\u{a0}2]}  \u{1f600}\nsecond line";
    redis.cli(&["PUBLISH", "news", odd]);
    window.until_frames(&[odd]).await;
    instance.publish("news", vec![0, 255]).await;
    window.until_frames(&[odd, "2 bytes: 00 ff"]).await;
    window.fill("#console-message", "from the page").await;
    window.click("#console-send").await;
    window.until_frames(&[odd, "2 bytes: 00 ff", "from the page"]).await;
    window.until_text("console-count", "3").await;

    // A plain PUBLISH, without a position, is an edit as well.
    redis.cli(&["PUBLISH", "sheet:q3", r#"{"cell":"B1","value":"Redis","editor":"redis-cli"}"#]);
    window.until_cell("B1", "Redis").await;
    window.click("#console-connect").await;
    window.until_text("console-status", "not connected").await;
    window.assert_clean_console().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_whose_instance_is_killed_says_so_comes_back_and_has_missed_nothing() {
    let browser = Browser::start().await;
    let redis = Redis::start().await;
    let (east, west) = (named(&redis, "east").await, named(&redis, "west").await);
    let (one, two) = tokio::join!(browser.open(&east), browser.open(&west));
    one.until_live_on("east").await;
    two.until_live_on("west").await;
    one.set("C1", "1").await;
    two.until_cell("C1", "1").await;
    one.assert_clean_console().await;

    let address = east.address.clone();
    drop(east); // with SIGKILL
    one.until(&format!(
        "{STATE} !== 'open' && document.getElementById('connection').innerText.includes('disconnected from east')"
    ))
    .await;
    two.set("C2", "2").await;
    one.set("C3", "3").await;
    one.until_text("unsaved", "1 not saved yet").await;
    // Publishing gave up: from here on it is the sheet that keeps trying.
    one.until("document.getElementById('hint').textContent.startsWith('C3 is not saved yet: ')").await;
    assert_eq!(one.text("[data-cell=C2] .value").await, "142,000");

    let _east = Options::redis(&redis).listen(&address).flag("--instance-name east-again").start().await;
    one.until_live_on("east-again").await;
    one.until_cell("C2", "2").await;
    one.until_text("unsaved", "").await;
    two.until_cell("C3", "3").await;
    one.until_text("edits", "3").await;
    two.until_text("edits", "3").await;
    let expected = ["net::ERR_CONNECTION_REFUSED", "net::ERR_CONNECTION_RESET", "net::ERR_EMPTY_RESPONSE"];
    let refused = |line: &String| expected.iter().any(|error| line.contains(error)) && line.contains(&address);
    let others: Vec<_> = one.console().await.into_iter().filter(|line| !refused(line)).collect();
    assert_eq!(others, [""; 0], "beyond the attempts while nobody listened");
    two.assert_clean_console().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_and_a_later_window_show_the_sheet_as_it_stands_without_flashing_it() {
    let browser = Browser::start().await;
    let instance = Options::default().flag("--instance-name only").start().await;
    let window = browser.open(&instance).await;
    window.until_live_on("only").await;
    window.set("A1", "Renamed").await;
    window.set("C1", "200000").await;
    window.until_text("edits", "2").await;
    let editor = window.text("#me").await;
    let total = window.total("Budget").await;

    window.reload().await;
    window.until_cell("C1", "200,000").await;
    assert_eq!(window.text("#me").await, editor, "who one is outlives a reload");
    let later = browser.open(&instance).await;
    later.until_cell("C1", "200,000").await;
    for window in [&window, &later] {
        window.until_live_on("only").await;
        assert_eq!(window.text("[data-cell=A1] .value").await, "Renamed");
        assert_eq!(window.total("Budget").await, total);
        assert_eq!(window.text("#edits").await, "0", "how it stands is no news");
        assert_eq!(window.eval("document.querySelectorAll('[data-editor]').length").await, 0, "nothing flashed");
        let title = window.eval("document.querySelector('[data-cell=C1]').title").await;
        assert_eq!(title, format!("Last set by {editor}"));
        window.assert_clean_console().await;
    }
    // The embedded broker's memory ends with it: the page begins anew with whatever there is.
    let address = instance.address.clone();
    drop(instance);
    let again = Options::default().listen(&address).flag("--instance-name anew").start().await;
    later.until_live_on("anew").await;
    later.until_cell("C1", "184,000").await;
    let (status, _) = again.post("/publish?channel=sheet:q3&key=C1", "7").await;
    assert_eq!(status, 200);
    later.until_cell("C1", "7").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_source_resumes_after_its_instance_is_restarted() {
    let browser = Browser::start().await;
    let redis = Redis::start().await;
    let (east, west) = (named(&redis, "east").await, named(&redis, "west").await);
    let window = browser.open(&east).await;
    window
        .eval(
            "void (globalThis.heard = [], globalThis.welcomes = 0, globalThis.source = new EventSource('events?channel=feed'),
            source.onmessage = ({ data }) => heard.push(data),
            source.addEventListener('livebridge:welcome', () => welcomes++))",
        )
        .await;
    window.until("welcomes === 1").await;
    west.publish("feed", "one").await;
    window.until("String(heard) === 'one'").await;
    let address = east.address.clone();
    drop(east);
    window.until("source.readyState === EventSource.CONNECTING").await;
    west.publish("feed", "two").await;
    west.publish("feed", "three").await;
    let _east = Options::redis(&redis).listen(&address).start().await;
    window.until("String(heard) === 'one,two,three'").await;
    west.publish("feed", "four").await;
    window.until("String(heard) === 'one,two,three,four'").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_source_survives_an_outage_of_redis_in_which_it_has_to_reconnect_and_a_socket_is_told_why_it_ends() {
    let browser = Browser::start().await;
    let mut redis = Redis::persistent().await;
    let (east, west) = (named(&redis, "east").await, named(&redis, "west").await);
    let window = browser.open(&east).await;
    window
        .eval(
            "void (globalThis.heard = [], globalThis.source = new EventSource('events?channel=feed'),
            source.onmessage = ({ data }) => heard.push(data),
            globalThis.ask = () => Object.assign(globalThis, { told: null, socket: new WebSocket('ws', ['livebridge']) })
                .socket.onclose = ({ code, reason }) => told = `${code} ${reason}`)",
        )
        .await;
    window.until("source.readyState === EventSource.OPEN").await;
    west.publish("feed", "one").await;
    window.until("String(heard) === 'one'").await;
    let address = east.address.clone();
    redis.stop();
    drop(east);
    window.until("source.readyState === EventSource.CONNECTING").await;
    let east = Options::redis(&redis).listen(&address).start_unready();
    window.until("source.readyState === EventSource.OPEN").await;
    window.eval("void ask()").await;
    window.until("told !== null && told.startsWith('1013 broker_unavailable: ')").await;
    redis.start_again().await;
    for instance in [&east, &west] {
        instance.until_ready(true).await;
    }
    west.publish("feed", "two").await;
    window.until("String(heard) === 'one,two'").await;
    window.eval("void ask()").await;
    window.until("socket.readyState === WebSocket.OPEN && socket.protocol === 'livebridge'").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_fits_a_phone_and_a_desktop_in_light_and_dark() {
    let browser = Browser::start().await;
    let redis = Redis::start().await;
    let (east, west) = (named(&redis, "lb-east").await, named(&redis, "lb-west").await);
    let (one, two) = tokio::join!(browser.open(&east), browser.open(&west));
    // Who edits is drawn at random; a picture should not be.
    for (window, name, colour) in [(&one, "Teal Heron", "#0f766e"), (&two, "Crimson Swift", "#be123c")] {
        let editor = json!({ "name": name, "colour": colour }).to_string();
        window.eval(&format!("sessionStorage.setItem('livebridge.editor', {})", json!(editor))).await;
        window.reload().await;
    }
    one.until_live_on("lb-east").await;
    two.until_live_on("lb-west").await;
    one.connect_console("live").await;
    for (name, value) in [("C2", "150000"), ("D11", "141000"), ("G6", "Rebrand on hold")] {
        two.set(name, value).await;
    }
    one.set("E4", "96500").await;
    one.until_cell("G6", "Rebrand on hold").await;
    east.publish("live", "hello").await;
    redis.cli(&["PUBLISH", "live", r#"{"order":1042,"status":"paid"}"#]);
    east.publish("live", "from curl, from Redis, from anywhere").await;
    one.until(&format!("{}.length === 3", Window::FRAMES)).await;
    one.click("[data-cell=C5]").await;

    for (name, width, height, scheme, budget, note) in [
        ("demo", 1280, 800, "light", "131000", "Moved to week 40"),
        ("demo-dark", 1280, 800, "dark", "132500", "Moved to week 41"),
        ("demo-phone", 360, 740, "light", "131500", "Moved to week 42"),
    ] {
        let metrics = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500 });
        one.devtools("Emulation.setDeviceMetricsOverride", &metrics).await;
        let scheme = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        one.devtools("Emulation.setEmulatedMedia", &scheme).await;
        one.until(&format!("document.documentElement.clientWidth === {width}")).await;
        let too_wide = "document.documentElement.scrollWidth > document.documentElement.clientWidth";
        assert_eq!(one.eval(too_wide).await, false, "{name}: the page scrolls sideways");
        // Lit cells at their brightest: the flash is a moment, the picture another.
        one.until("!document.querySelector('[data-flash]')").await;
        two.set("C3", budget).await;
        let edit = json!({ "value": note, "editor": "Cobalt Tern", "colour": "#1d4ed8" });
        let (status, _) = west.post("/publish?channel=sheet:q3&key=G9", edit.to_string()).await;
        assert_eq!(status, 200);
        one.until("document.querySelectorAll('[data-flash]').length === 2").await;
        one.eval(
            "document.getAnimations().forEach((each) => {
                if (!/flash|tag/.test(each.animationName)) return;
                each.pause();
                each.currentTime = 400;
            })",
        )
        .await;
        let picture = one.screenshot().await;
        one.eval("document.getAnimations().forEach((each) => each.play())").await;
        assert!(picture.starts_with(b"\x89PNG"));
        if let Some(folder) = std::env::var_os("LIVEBRIDGE_SCREENSHOTS") {
            std::fs::write(Path::new(&folder).join(format!("{name}.png")), picture).unwrap();
        }
    }
    one.assert_clean_console().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_scripts_of_the_readme_work_as_they_stand() {
    let browser = Browser::start().await;
    let instance = Instance::embedded().await;
    let window = browser.open(&instance).await;
    // A page of the same origin that allows inline scripts, unlike the demo.
    window.eval("location.href = '/healthz'").await;
    window.until("location.pathname === '/healthz' && document.readyState === 'complete'").await;
    window.eval("(() => { window.seen = []; console.log = (...words) => seen.push(JSON.stringify(words)); })()").await;
    let plain = crate::readme::blocks("js").concat().replace("127.0.0.1:8000", &instance.address);
    let module = crate::readme::blocks("html").concat();
    let module = module.split_once('>').unwrap().1.rsplit_once("</script>").unwrap().0.to_owned();
    for (kind, script) in [("text/javascript", plain), ("module", module)] {
        let insert = "(() => { const script = document.createElement('script'); script.type = KIND; script.textContent = SCRIPT; document.body.append(script); })()";
        let insert = insert.replace("KIND", &json!(kind).to_string()).replace("SCRIPT", &json!(script).to_string());
        window.eval(&insert).await;
    }
    crate::support::until("a socket and a stream listen", || async {
        instance.metric("livebridge_connections").await >= 3.0
    })
    .await;
    instance.publish("live", "hello").await;
    window.until("seen.filter((line) => line === '[\"hello\"]').length === 2").await;
    window.until("seen.includes('[\"B4\",{\"value\":42}]')").await;
}

#[tokio::test]
async fn the_browser_client_comes_back_with_a_fresh_token_and_misses_nothing() {
    let options = Options::default().env("LIVEBRIDGE_TOKEN_SECRET", SECRET).flag("--token-leeway-seconds 0");
    let instance = options.start().await;
    let browser = Browser::start().await;
    let window = browser.open(&instance).await;
    let token = |seconds| {
        let allowed = json!({ "subscribe": ["a"], "publish": ["a"] });
        Signer::shared(SECRET).sign(&json!({ "exp": at(seconds), "livebridge": allowed }))
    };
    // The second that it asks for is stale: it asks for another.
    let tokens = json!([token(4), token(-60), token(600)]);
    let script = format!(
        "import('/livebridge.js').then(({{ connect }}) => {{
            const tokens = {tokens};
            window.seen = [], window.reasons = [];
            window.feed = connect({{ channels: ['a'], token: async () => tokens.length > 1 ? tokens.shift() : tokens[0] }});
            feed.on('message', ({{ data }}) => seen.push(data));
            feed.on('state', ({{ reason }}) => reason && reasons.push(reason));
        }})"
    );
    window.eval(&script).await;
    window.until("feed.state === 'open'").await;
    let publish = async |data: &str| {
        let headers = [("authorization", &*format!("Bearer {}", token(600)))];
        assert_eq!(instance.post_with("/publish?channel=a", &headers, data.to_owned()).await.0, 200);
    };
    publish("1").await;
    window.until("seen.length === 1").await;
    window.until("reasons.some((reason) => reason.startsWith('token_expired'))").await;
    publish("2").await;
    window.until("JSON.stringify(seen) === '[1,2]'").await;
    // Publishing shows the token as well.
    window.eval("feed.publish(3)").await;
    window.until("JSON.stringify(seen) === '[1,2,3]'").await;
    // A token that can't be exchanged ends it, with the server's own reason.
    window
        .eval(&format!(
            "import('/livebridge.js').then(({{ connect }}) => void (window.other = connect({{ channels: ['b'], token: {} }})))",
            json!(token(600))
        ))
        .await;
    window.until("other.state === 'closed'").await;
}

/// The people at a cell, as the page names them.
fn people(name: &str) -> String {
    format!("(document.querySelector('[data-cell={name}]').dataset.people ?? '')")
}

#[tokio::test(flavor = "multi_thread")]
async fn each_window_shows_where_the_others_are_until_they_leave() {
    let browser = Browser::start().await;
    let redis = Redis::start().await;
    let (east, west) = (named(&redis, "east").await, named(&redis, "west").await);
    let (one, two) = tokio::join!(browser.open(&east), browser.open(&west));
    one.until_live_on("east").await;
    two.until_live_on("west").await;
    let editor = one.text("#me").await;
    one.click("[data-cell=C5]").await;
    two.until(&format!("{} === {}", people("C5"), json!(editor))).await;
    one.click("[data-cell=B3]").await;
    two.until(&format!(
        "{} === {} && !document.querySelector('[data-cell=C5][data-people]')",
        people("B3"),
        json!(editor)
    ))
    .await;
    let colour = one.eval("getComputedStyle(document.documentElement).getPropertyValue('--me')").await;
    let shown = two.eval("document.querySelector('[data-cell=B3]').style.getPropertyValue('--person')").await;
    assert_eq!((shown, two.eval("document.querySelectorAll('#people i').length").await), (colour, json!(1)));
    // Who comes later sees those who are there already.
    two.reload().await;
    two.until(&format!("{} === {}", people("B3"), json!(editor))).await;
    one.eval("location.href = '/healthz'").await;
    two.until("document.querySelectorAll('[data-people]').length === 0 && document.getElementById('people').parentElement.hidden").await;
    two.assert_clean_console().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_is_pasted_and_ones_own_edits_are_undone_but_not_those_of_others() {
    let browser = Browser::start().await;
    let instance = Options::default().flag("--instance-name only").start().await;
    let (one, two) = tokio::join!(browser.open(&instance), browser.open(&instance));
    one.until_live_on("only").await;
    two.until_live_on("only").await;
    one.click("[data-cell=C2]").await;
    one.eval(
        "void (() => {
            const clipboardData = new DataTransfer();
            clipboardData.setData('text/plain', '1\\t2\\r\\n3\\tnone\\r\\n');
            document.querySelector('[data-cell=C2]').dispatchEvent(new ClipboardEvent('paste', { clipboardData, bubbles: true }));
        })()",
    )
    .await;
    for (name, shown) in [("C2", "1"), ("D2", "2"), ("C3", "3"), ("D3", "99,400")] {
        two.until_cell(name, shown).await;
    }
    one.until_text("hint", "Spent takes a number").await;
    one.until("/^[0-9]+ ms$/.test(document.getElementById('latency').textContent)").await;
    two.set("C3", "9").await;
    one.until_cell("C3", "9").await;
    let undo = format!("{CONTROL}z");
    for (name, shown) in [("D2", "96,200"), ("C2", "142,000")] {
        one.keys("[data-cell=A1]", &undo).await;
        two.until_cell(name, shown).await;
    }
    one.keys("[data-cell=A1]", &undo).await;
    one.until_text("hint", "Nothing of yours is left to undo").await;
    assert_eq!(two.text("[data-cell=C3] .value").await, "9");
    one.assert_clean_console().await;
}

#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::print_stdout, reason = "a measurement for who runs it with --nocapture")]
async fn fifty_editors_that_are_not_there_keep_a_thousand_cells_in_motion() {
    let browser = Browser::start().await;
    let instance = Options::default().flag("--instance-name only").start().await;
    let window = browser.open_at(&instance.url("/?rows=143")).await;
    window.until_live_on("only").await;
    assert_eq!(window.eval("document.querySelectorAll('td[data-cell]').length").await, 1001);
    window.click("#crowd").await;
    window
        .eval(
            "void (globalThis.frames = [], requestAnimationFrame(function next(now) {
            if (globalThis.frameAt) frames.push(now - frameAt);
            globalThis.frameAt = now;
            requestAnimationFrame(next);
        }), globalThis.began = performance.now())",
        )
        .await;
    window.until("Number(document.getElementById('edits').textContent.replaceAll(',', '')) > 1000").await;
    let seconds = window.eval("(performance.now() - began) / 1000").await;
    let longest = window.eval("[...frames].sort((a, b) => a - b).slice(-3)").await;
    println!("1,000 edits in {seconds} s; the longest frames, in ms: {longest}");
    let bar = "getComputedStyle(document.querySelector('#chart .spent')).transform";
    assert_ne!(window.eval(bar).await, "none");
    window.click("#crowd").await;
    window.until_text("crowd", "Simulate 50 editors").await;
    window.assert_clean_console().await;
}
