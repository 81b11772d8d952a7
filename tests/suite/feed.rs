//! `livebridge.js` in a real Chromium: what a page gets, whatever happens to its connection.

mod tabs;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};

use crate::support::balancer::Balancer;
use crate::support::browser::{Browser, Window};
use crate::support::instance::{Instance, Options};
use crate::support::redis::Redis;
use crate::support::tokens::{SECRET, Signer, at};
use crate::support::until;

/// A page of the instance's origin that has no connection of its own, and allows inline scripts.
const BLANK: &str = "/healthz";

/// Waits until an instance has so many subscribers of a transport. The number is sampled now and then.
async fn until_connected(instance: &Instance, transport: &str, count: usize) {
    let line = format!("livebridge_connections{{transport=\"{transport}\"}} {count}\n");
    until(&line, || async { instance.get("/metrics").await.1.contains(&line) }).await;
}

async fn until_subscribed(instance: &Instance, count: usize) {
    until("so many subscriptions", || async { instance.metric("livebridge_subscriptions").await == count as f64 })
        .await;
}

impl Window {
    /// Opens a feed as `feed`; `seen` has the data of its messages, `told` all else.
    async fn feed(&self, options: &str) {
        self.eval(&format!(
            "import('/livebridge.js').then((module) => {{
                globalThis.livebridge = module, globalThis.seen = [], globalThis.told = [];
                globalThis.feed = livebridge.connect({options});
                feed.on('message', ({{ channel, data }}) => seen.push(channel === 'flow' ? data : `${{channel}} ${{data}}`));
                for (const name of ['gap', 'join', 'leave', 'unsubscribed']) feed.on(name, (detail) => told.push([name, detail]));
                feed.on('state', (detail) => told.push(['state', detail]));
            }})"
        ))
        .await;
        self.until("feed.state === 'open'").await;
    }

    /// What a promise comes to: its value, or `{failed}` with what describes the error.
    async fn outcome(&self, promise: &str) -> Value {
        self.eval(&format!(
            "{promise}.then((value) => value ?? null, ({{ name, code, status, temporary, message }}) => ({{ failed: {{ name, code, status, temporary, message }} }}))"
        ))
        .await
    }

    async fn until_seen(&self, expected: &Value) {
        self.until(&format!("JSON.stringify(seen) === {}", json!(expected.to_string()))).await;
    }

    /// Waits for the messages 1 to `last` of `flow`, each once and in order.
    async fn until_flowed(&self, last: usize) {
        self.until(&format!("seen.at(-1) === {last} || seen.length > {last}")).await;
        let flowed = "seen.every((number, index) => number === index + 1)";
        assert_eq!(self.eval(flowed).await, true, "{}", self.eval("JSON.stringify(seen)").await);
    }

    /// The states that it went through.
    async fn states(&self) -> Value {
        self.eval("told.filter(([name]) => name === 'state').map(([, { state }]) => state)").await
    }
}

/// Publishes the numbers from 1 on to `flow`, until it is stopped.
struct Flow {
    stopped: Arc<std::sync::atomic::AtomicBool>,
    task: tokio::task::JoinHandle<usize>,
    count: Arc<AtomicUsize>,
}

impl Flow {
    fn start(instance: &Instance) -> Self {
        let url = instance.url("/publish?channel=flow");
        let stopped = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let count = Arc::new(AtomicUsize::new(0));
        let (told, counted) = (stopped.clone(), count.clone());
        let task = tokio::spawn(async move {
            let client = reqwest::Client::builder().no_proxy().build().unwrap();
            let mut number = 0;
            while !told.load(Ordering::Relaxed) {
                number += 1;
                let answer = client.post(&url).body(number.to_string()).send().await.unwrap();
                assert_eq!(answer.status(), 200);
                counted.store(number, Ordering::Relaxed);
                // The rate of the messages, not a wait for anything.
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
            number
        });
        Self { stopped, task, count }
    }

    /// Waits for so many more messages.
    async fn go_on(&self, more: usize) {
        let enough = self.count.load(Ordering::Relaxed) + more;
        until("messages flow", || async { self.count.load(Ordering::Relaxed) >= enough }).await;
    }

    /// Returns the last number.
    async fn stop(self) -> usize {
        self.stopped.store(true, Ordering::Relaxed);
        self.task.await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_feed_subscribes_and_unsubscribes_at_any_time_on_one_connection() {
    let browser = Browser::start().await;
    let instance = Instance::embedded().await;
    let window = browser.open_at(&instance.url(BLANK)).await;
    window.feed("{ channels: ['a'] }").await;
    instance.publish("b", "before").await;
    assert_eq!(window.outcome("feed.subscribe('b', { last: 1 })").await, Value::Null);
    assert_eq!(window.outcome("feed.subscribe('c')").await, Value::Null);
    for channel in ["a", "b", "c"] {
        instance.publish(channel, "1").await;
    }
    window.until_seen(&json!(["b before", "a 1", "b 1", "c 1"])).await;
    window.eval("void feed.unsubscribe('b')").await;
    until_subscribed(&instance, 2).await;
    for channel in ["b", "a", "c"] {
        instance.publish(channel, "2").await;
    }
    window.until_seen(&json!(["b before", "a 1", "b 1", "c 1", "a 2", "c 2"])).await;
    until_connected(&instance, "websocket", 1).await;
    assert_eq!(window.states().await, json!(["connecting", "open"]));

    let refused = window.outcome("feed.subscribe('no*name')").await;
    assert_eq!(refused["failed"]["code"], 107, "{refused}");
    window.eval("void feed.close()").await;
    until_connected(&instance, "websocket", 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_that_is_left_and_subscribed_again_at_once_tells_nothing_twice() {
    let browser = Browser::start().await;
    let instance = Instance::embedded().await;
    let window = browser.open_at(&instance.url(BLANK)).await;
    window.feed("{}").await;
    // Where somebody reads a channel already, its log has the last messages.
    window.eval("void (globalThis.reader = livebridge.connect({ channels: ['flow'] }))").await;
    window.until("reader.state === 'open'").await;
    for number in 1..=5 {
        instance.publish("flow", number.to_string()).await;
    }
    let again = "(() => {
        globalThis.first = feed.subscribe('flow', { last: 5 }).catch(({ message }) => message);
        feed.unsubscribe('flow');
        return feed.subscribe('flow', { last: 5 });
    })()";
    assert_eq!(window.outcome(again).await, Value::Null);
    assert_eq!(window.eval("first").await, "flow was unsubscribed");
    // The feed has this channel, and no other.
    assert_eq!(window.outcome("feed.publish(6)").await["offset"], 6);
    window.until("seen.includes(6)").await;
    assert_eq!(window.eval("seen").await, json!([1, 2, 3, 4, 5, 6]));
    assert_eq!(window.eval("told.filter(([name]) => name === 'gap').length").await, 0, "nothing was missed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_that_can_not_be_joined_for_now_holds_up_no_other() {
    let browser = Browser::start().await;
    let instance = Options::default().flag("--max-new-channels-per-address 1").start().await;
    let window = browser.open_at(&instance.url(BLANK)).await;
    // There is one more in each second.
    window.feed("{ channels: ['flow', ...Array.from({ length: 60 }, (_, index) => `new-${index}`)] }").await;
    assert_eq!(window.states().await, json!(["connecting", "open"]));
    instance.publish("flow", "1").await;
    window.until("seen.includes(1)").await;
    until_connected(&instance, "websocket", 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publish_is_acknowledged_with_its_position_and_a_refused_one_says_why() {
    let browser = Browser::start().await;
    let options = Options::default().env("LIVEBRIDGE_TOKEN_SECRET", SECRET);
    let instance = options.start().await;
    let window = browser.open_at(&instance.url(BLANK)).await;
    let allowed = json!({ "subscribe": ["flow", "sheet:*"], "publish": ["flow", "sheet:*"] });
    let token = Signer::shared(SECRET).sign(&json!({ "exp": at(600), "livebridge": allowed }));
    window.feed(&format!("{{ channels: ['flow'], token: {} }}", json!(token))).await;
    let requests = "performance.getEntriesByType('resource').filter(({ name }) => name.includes('/publish')).length";
    for offset in 1..=3 {
        let position = window.outcome(&format!("feed.publish({offset})")).await;
        assert_eq!((&position["channel"], &position["offset"]), (&json!("flow"), &json!(offset)), "{position}");
    }
    let again = "(async () => [await feed.publish(4, { idempotencyKey: 'k' }), await feed.publish(4, { idempotencyKey: 'k' })])()";
    let positions = window.outcome(again).await;
    assert_eq!((&positions[0], &positions[0]["offset"]), (&positions[1], &json!(4)), "{positions}");
    window.until_flowed(4).await;
    assert_eq!(window.eval(requests).await, 0, "all of it on the socket");
    let keyed = window.outcome("feed.publish({ value: 1 }, { channel: 'sheet:q3', key: 'B4' })").await;
    assert_eq!(keyed["offset"], 1, "{keyed}");

    // What the socket does not take as it is: text, and more than a frame should hold.
    assert_eq!(window.outcome("feed.publish('5')").await["offset"], 5);
    window.until_flowed(5).await;
    assert_eq!(window.outcome("feed.publish('x'.repeat(100_000).split(''))").await["offset"], 6);
    for (options, code, status) in
        [("{ channel: 'other' }", "forbidden", 403), ("{ key: 'B4' }", "channel_not_keyed", 400)]
    {
        let refused = window.outcome(&format!("feed.publish(1, {options})")).await;
        let failed = &refused["failed"];
        assert_eq!(
            (&failed["name"], &failed["code"], &failed["status"]),
            (&json!("PublishError"), &json!(code), &json!(status)),
            "{refused}"
        );
    }
    assert_eq!(window.eval("feed.state").await, "open", "a refusal ends nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publish_whose_answer_was_lost_is_sent_again_and_appears_once() {
    let browser = Browser::start().await;
    let redis = Redis::start().await;
    let rules = "[[channel]]\nmatch = \"bare\"\nhistory = false\n";
    let instance = Options::redis(&redis).rules(rules).start().await;
    let window = browser.open_at(&instance.url(BLANK)).await;
    // A connection that ends with the answer to the publication of a 1.
    window
        .eval(
            "void (globalThis.WebSocket = class extends WebSocket {
                send(frame) {
                    super.send(frame);
                    if (!frame.includes('\"data\":1')) return;
                    super.onmessage = () => this.close();
                }
                set onmessage(listener) { super.onmessage = listener }
            })",
        )
        .await;
    window.feed("{ channels: ['flow', 'bare'] }").await;
    window.eval("void (globalThis.reader = livebridge.connect({ channels: ['flow', 'bare'] }))").await;
    window
        .eval(
            "void (globalThis.read = [], reader.on('message', ({ channel, data }) => read.push(`${channel} ${data}`)))",
        )
        .await;
    window.until("reader.state === 'open'").await;
    for channel in ["flow", "bare"] {
        let published = window.outcome(&format!("feed.publish(1, {{ channel: '{channel}' }})")).await;
        assert_eq!(published["channel"], channel, "{published}");
        window.until("feed.state === 'open'").await;
    }
    assert_eq!(window.outcome("reader.publish(2, { channel: 'bare' })").await["channel"], "bare");
    window.until("read.at(-1) === 'bare 2'").await;
    assert_eq!(window.eval("read").await, json!(["flow 1", "bare 1", "bare 2"]));
    let cuts = "told.filter(([name, { state }]) => state === 'waiting').length";
    assert_eq!(window.eval(cuts).await, 2, "{}", window.states().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_feed_whose_instance_is_killed_goes_on_at_another_with_nothing_lost_or_twice() {
    let browser = Browser::start().await;
    let redis = Redis::start().await;
    let named = |name: &str| Options::redis(&redis).flag(&format!("--instance-name {name}")).start();
    let (east, west) = tokio::join!(named("east"), named("west"));
    let balancer = Balancer::start(vec![east.address.clone(), west.address.clone()]).await;
    let window = browser.open_at(&format!("http://{}{BLANK}", balancer.address)).await;
    window.feed("{ channels: ['flow', 'quiet'] }").await;
    // It may have come to either.
    let (killed, left) = if window.eval("feed.instance").await == "east" { (east, west) } else { (west, east) };
    let flow = Flow::start(&left);
    flow.go_on(50).await;
    drop(killed);
    flow.go_on(100).await;
    window.until("told.filter(([name, { state }]) => state === 'open').length === 2").await;
    flow.go_on(50).await;
    let last = flow.stop().await;
    window.until_flowed(last).await;
    left.publish("quiet", "1").await;
    window.until("seen.at(-1) === 'quiet 1'").await;
    assert_eq!(window.eval("told.filter(([name]) => name !== 'state').length").await, 0, "nothing was missed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_feed_is_told_what_it_missed_and_gets_what_is_left() {
    let browser = Browser::start().await;
    let redis = Redis::start().await;
    let rules = "[[channel]]\nmatch = \"flow\"\nhistory = { messages = 3, age = \"1h\" }\n[[channel]]\nmatch = \"bare\"\nhistory = false\n";
    let (east, west) =
        tokio::join!(Options::redis(&redis).rules(rules).start(), Options::redis(&redis).rules(rules).start());
    let window = browser.open_at(&east.url(BLANK)).await;
    window.feed("{ channels: ['flow', 'bare'] }").await;
    west.publish("flow", "1").await;
    window.until_seen(&json!([1])).await;
    let address = east.address.clone();
    drop(east);
    window.until("feed.state === 'waiting'").await;
    for number in 2..=9 {
        west.publish("flow", number.to_string()).await;
    }
    let _east = Options::redis(&redis).rules(rules).listen(&address).start().await;
    // It would wait for longer and longer; that the network is back is a reason not to.
    window.eval("void dispatchEvent(new Event('online'))").await;
    window.until("feed.state === 'open'").await;
    west.publish("flow", "10").await;
    window.until_seen(&json!([1, 7, 8, 9, 10])).await;
    let gaps = "told.filter(([name]) => name === 'gap').map(([, { channel, reason }]) => `${channel} ${reason}`)";
    assert_eq!(window.eval(gaps).await, json!(["flow history_trimmed", "bare no_history"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_renewed_on_the_same_connection() {
    let browser = Browser::start().await;
    let options = Options::default().env("LIVEBRIDGE_TOKEN_SECRET", SECRET).flag("--token-leeway-seconds 0");
    let instance = options.start().await;
    let window = browser.open_at(&instance.url(BLANK)).await;
    let token = |seconds, channels: &[&str]| {
        let allowed = json!({ "subscribe": channels, "publish": channels });
        Signer::shared(SECRET).sign(&json!({ "exp": at(seconds), "livebridge": allowed }))
    };
    let tokens = json!([token(4, &["flow", "lost"]), token(600, &["flow"])]);
    let next = "globalThis.asked = (globalThis.asked ?? -1) + 1";
    window.feed(&format!("{{ channels: ['flow'], token: () => {tokens}[{next}] }}")).await;
    assert_eq!(window.outcome("feed.subscribe('lost')").await, Value::Null);
    // The new token does not allow one of the channels.
    window.until("told.some(([name, { channel }]) => name === 'unsubscribed' && channel === 'lost')").await;
    let publish = "feed.publish(1)";
    assert_eq!(window.outcome(publish).await["offset"], 1);
    window.until_flowed(1).await;
    assert_eq!((window.states().await, window.eval("asked").await), (json!(["connecting", "open"]), json!(1)));
}

/// In front of an instance: answers 403 itself where somebody asks for a WebSocket.
async fn without_websockets(instance: &Instance) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, target) = (listener.local_addr().unwrap().to_string(), instance.address.clone());
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let target = target.clone();
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.windows(4).any(|end| end == b"\r\n\r\n")
                    && client.read_buf(&mut head).await.unwrap_or(0) > 0
                {}
                if head.starts_with(b"GET /connection/websocket") {
                    let refusal = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 7\r\nConnection: close\r\n\r\nBlocked";
                    return drop(client.write_all(refusal).await);
                }
                let Ok(mut server) = TcpStream::connect(target).await else { return };
                // Another request on the same connection is seen by nobody: it is the page's own.
                let _ = server.write_all(&head).await;
                let _ = copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn where_websockets_are_blocked_an_event_stream_carries_the_feed() {
    let browser = Browser::start().await;
    let redis = Redis::start().await;
    let (east, west) = tokio::join!(Options::redis(&redis).start(), Options::redis(&redis).start());
    let window = browser.open_at(&format!("http://{}{BLANK}", without_websockets(&east).await)).await;
    west.post("/publish?channel=sheet:q3&key=B4", "42").await;
    window.feed("{ channels: ['flow', 'sheet:q3'] }").await;
    window.eval("void feed.on('message', (message) => globalThis.newest = message)").await;
    window.until_seen(&json!(["sheet:q3 42"])).await;
    until_connected(&east, "sse", 1).await;
    west.post("/publish?channel=sheet:q3&key=B5", "{\n\"value\": 1\n}").await;
    window
        .until("globalThis.newest?.key === 'B5' && newest.data.value === 1 && newest.offset === 2 && !newest.past")
        .await;
    west.publish("flow", vec![0, 255]).await;
    window.until("globalThis.newest?.data instanceof Uint8Array && String(newest.data) === '0,255'").await;
    assert_eq!(window.outcome("feed.subscribe('c')").await, Value::Null);
    assert_eq!(window.outcome("feed.publish({ a: 1 }, { channel: 'c' })").await["offset"], 1);
    window.until("newest.channel === 'c' && newest.data.a === 1").await;
    for number in 1..=3 {
        west.publish("d", number.to_string()).await;
    }
    window.eval("void (seen.length = 0)").await;
    assert_eq!(window.outcome("feed.subscribe('d', { last: 2 })").await, Value::Null);
    window.until_seen(&json!(["d 2", "d 3"])).await;
    window.eval("void (seen.length = 0, told.length = 0)").await;

    let address = east.address.clone();
    let flow = Flow::start(&west);
    flow.go_on(20).await;
    drop(east);
    flow.go_on(20).await;
    let _east = Options::redis(&redis).listen(&address).start().await;
    flow.go_on(20).await;
    let last = flow.stop().await;
    window.until("feed.state === 'open'").await;
    window.until_flowed(last).await;
    assert_eq!(window.eval("told.filter(([name]) => name !== 'state').length").await, 0, "nothing was missed");
}

/// Tabs of one browser with a feed of `flow` and `sheet:q3` each, on one connection.
async fn tabs_share(prepare: &str) {
    let browser = Browser::start().await;
    let redis = Redis::start().await;
    let instance = Options::redis(&redis).start().await;
    let url = instance.url(BLANK);
    instance.post("/publish?channel=sheet:q3&key=B4", "42").await;
    let window = browser.open_at(&url).await;
    let options = "{ channels: ['flow', 'sheet:q3'], shared: true }";
    let flow = Flow::start(&instance);
    let mut tabs = Vec::new();
    for number in 0..3 {
        if number > 0 {
            window.another_tab(&url).await;
        }
        tabs.push(window.tab().await);
        window.eval(&format!("void ({prepare})")).await;
        window.feed(options).await;
        // Whenever a tab comes, it knows how the sheet stands.
        window.until("seen.includes('sheet:q3 42')").await;
        window.eval("void (globalThis.seen = seen.filter(Number))").await;
        flow.go_on(20).await;
    }
    until_connected(&instance, "websocket", 1).await;
    until_subscribed(&instance, 2).await;

    // The first one has held it, if a tab does.
    window.enter(&tabs[0]).await;
    window.close_tab().await;
    flow.go_on(100).await;
    window.enter(&tabs[1]).await;
    window.until("feed.state === 'open'").await;
    assert_eq!(window.outcome("feed.publish({ a: 1 }, { channel: 'other' })").await["offset"], 1);
    assert_eq!(window.outcome("feed.subscribe('no*name')").await["failed"]["code"], 107);
    let last = flow.stop().await;
    for tab in &tabs[1..] {
        window.enter(tab).await;
        window.until(&format!("seen.at(-1) === {last}")).await;
        let flowed = "seen.length > 100 && seen.every((number, index) => number === seen[0] + index)";
        assert_eq!(window.eval(flowed).await, true, "{}", window.eval("JSON.stringify(seen)").await);
        assert_eq!(window.eval("told.filter(([name]) => name !== 'state').length").await, 0, "nothing was missed");
    }
    until_connected(&instance, "websocket", 1).await;
    until_subscribed(&instance, 2).await;
    window.eval("void feed.close()").await;
    window.enter(&tabs[1]).await;
    instance.publish("flow", "\"still here\"").await;
    window.until("seen.at(-1) === 'still here'").await;
    window.eval("void feed.close()").await;
    until_connected(&instance, "websocket", 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tabs_share_the_connection_of_a_worker_and_a_tab_that_closes_takes_nothing_with_it() {
    tabs_share("0").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tabs_share_the_connection_of_one_of_them_and_lose_nothing_when_it_is_closed() {
    tabs_share("delete globalThis.SharedWorker").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_feed_that_waits_for_long_comes_back_at_once_when_the_network_does() {
    let browser = Browser::start().await;
    let instance = Instance::embedded().await;
    let window = browser.open_at(&instance.url(BLANK)).await;
    // The longest wait at each attempt.
    window.eval("void (Math.random = () => 0.999)").await;
    window.feed("{ channels: ['a'] }").await;
    let address = instance.address.clone();
    drop(instance);
    window.until("told.at(-1)[1].retryInMs > 7000").await;
    let instance = Options::default().listen(&address).start().await;
    window.eval("void (globalThis.at = performance.now(), dispatchEvent(new Event('online')))").await;
    window.until("feed.state === 'open'").await;
    let waited = window.eval("performance.now() - at").await.as_f64().unwrap();
    assert!(waited < 5000.0, "{waited} ms");
    // So it does when the tab is looked at again.
    drop(instance);
    window.until("told.at(-1)[1].retryInMs > 7000").await;
    let _instance = Options::default().listen(&address).start().await;
    window.eval("void (globalThis.at = performance.now(), document.dispatchEvent(new Event('visibilitychange', { bubbles: true })))").await;
    window.until("feed.state === 'open'").await;
    let waited = window.eval("performance.now() - at").await.as_f64().unwrap();
    assert!(waited < 5000.0, "{waited} ms");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_too_big_is_refused_and_the_feed_goes_on() {
    let browser = Browser::start().await;
    let instance = Options::default().flag("--max-message-bytes 4096").start().await;
    let window = browser.open_at(&instance.url(BLANK)).await;
    window.feed("{ channels: Array.from({ length: 90 }, (_, index) => `a fairly long name of a channel `.repeat(3).replaceAll(' ', '-') + index).concat('flow') }").await;
    let refused = window.outcome("feed.publish({ text: 'x'.repeat(12000) }, { channel: 'flow' })").await;
    assert_eq!(
        (&refused["failed"]["code"], &refused["failed"]["status"]),
        (&json!("body_too_large"), &json!(413)),
        "{refused}"
    );
    window.until("feed.state === 'open'").await;
    assert_eq!(window.outcome("feed.publish(1, { channel: 'flow' })").await["offset"], 1);
    window.until_flowed(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_feed_tells_who_is_there_and_who_comes_and_goes() {
    let rules = "[[channel]]\nmatch = 'sheet:*'\npresence = true\njoin_leave = true\n";
    let instance = Options::default().rules(rules).env("LIVEBRIDGE_TOKEN_SECRET", SECRET).start().await;
    let browser = Browser::start().await;
    let window = browser.open_at(&instance.url(BLANK)).await;
    let token = |user: &str| {
        let claims = json!({ "sub": user, "exp": at(600), "livebridge": { "subscribe": ["sheet:*"] } });
        json!(Signer::shared(SECRET).sign(&claims)).to_string()
    };
    window.feed(&format!("{{ channels: ['sheet:1'], joinLeave: true, token: {} }}", token("ada"))).await;
    window.until("told.some(([name, { user }]) => name === 'join' && user === 'ada')").await;
    window
        .eval(&format!("globalThis.other = livebridge.connect({{ channels: ['sheet:1'], token: {} }})", token("bob")))
        .await;
    window.until("told.some(([name, { user }]) => name === 'join' && user === 'bob')").await;
    assert_eq!(
        window.eval("feed.presence('sheet:1').then((all) => all.map(({ user }) => user).sort())").await,
        json!(["ada", "bob"])
    );
    assert_eq!(window.eval("feed.presenceStats('sheet:1')").await, json!({ "clients": 2, "users": 2 }));
    window.eval("other.unsubscribe('sheet:1')").await;
    window.until("told.some(([name, { user }]) => name === 'leave' && user === 'bob')").await;
    let refused = window.outcome("feed.presence('plain')").await;
    assert!(refused["failed"]["code"] == 103 || refused["failed"]["code"] == 108, "{refused}");
}
