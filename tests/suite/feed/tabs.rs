//! Feeds that share a connection as tabs do. Those of one page are to it what tabs are, and can be told to act at once.

use serde_json::{Value, json};

use super::{BLANK, without_websockets};
use crate::support::browser::{Browser, Window};
use crate::support::instance::{Instance, Options};
use crate::support::tokens::{SECRET, Signer, at};

impl Window {
    /// Opens one more feed, as `other`; `others` has the data of its messages, and the names of other events.
    async fn other_feed(&self, options: &str) {
        self.eval(&format!(
            "void (globalThis.others = [], globalThis.other = livebridge.connect({options}),
            other.on('message', ({{ key, data }}) => others.push(key ? `${{key}}=${{data}}` : data)),
            other.on('gap', ({{ channel, reason }}) => others.push(`${{channel}} ${{reason}}`)))"
        ))
        .await;
    }

    async fn until_others(&self, expected: &Value) {
        self.until(&format!("JSON.stringify(others) === {}", json!(expected.to_string()))).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tabs_that_publish_at_once_each_get_a_token_even_if_one_was_never_given() {
    let browser = Browser::start().await;
    let instance = Options::default().env("LIVEBRIDGE_TOKEN_SECRET", SECRET).start().await;
    let window = browser.open_at(&instance.url(BLANK)).await;
    let allowed = json!({ "subscribe": ["flow"], "publish": ["flow"] });
    let token = json!(Signer::shared(SECRET).sign(&json!({ "exp": at(600), "livebridge": allowed })));
    let asked = "globalThis.asked = (globalThis.asked ?? 0) + 1";
    // That which is asked for second never comes.
    let tokens = format!("() => ({asked}) === 2 ? new Promise(() => {{}}) : {token}");
    window.feed(&format!("{{ channels: ['flow'], shared: true, token: {tokens} }}")).await;
    // Text is posted, and each POST asks for a token.
    window.eval("void (globalThis.published = [], ['1', '2', '3'].map((text) => feed.publish(text).then(() => published.push(text))))").await;
    window.until("published.length === 2").await;
    window.until("published.length === 3").await;
    window.until("String(seen.toSorted()) === '1,2,3'").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tab_goes_on_where_the_host_was_also_where_no_message_had_come() {
    let browser = Browser::start().await;
    let instance = Instance::embedded().await;
    let window = browser.open_at(&instance.url(BLANK)).await;
    instance.publish("flow", "1").await;
    window.eval("void delete globalThis.SharedWorker").await;
    let options = "channels: ['flow', 'empty'], shared: true";
    window.feed(&format!("{{ {options} }}")).await;
    // The next host has to wait for a token until both messages are there.
    window.other_feed(&format!("{{ {options}, token: () => globalThis.gate }}")).await;
    window.until("other.state === 'open'").await;
    window.eval("void (globalThis.gate = new Promise((resolve) => globalThis.goOn = resolve), feed.close())").await;
    window.until("other.state === 'connecting'").await;
    instance.publish("flow", "2").await;
    instance.publish("empty", "3").await;
    window.eval("goOn()").await;
    window.until("other.state === 'open'").await;
    instance.publish("flow", "4").await;
    window.until("others.includes(4)").await;
    assert_eq!(window.eval("others.toSorted()").await, json!([2, 3, 4]), "each once, and no gap");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_of_one_tab_that_can_not_be_joined_for_now_holds_up_no_other() {
    let browser = Browser::start().await;
    let instance = Options::default().flag("--max-new-channels-per-address 1").start().await;
    let window = browser.open_at(&instance.url(BLANK)).await;
    window.feed("{ channels: ['flow'], shared: true }").await;
    // There is one more in each second.
    window
        .other_feed("{ channels: ['flow', ...Array.from({ length: 60 }, (_, index) => `new-${index}`)], shared: true }")
        .await;
    window.until("other.state === 'open'").await;
    instance.publish("flow", "1").await;
    window.until_others(&json!([1])).await;
    assert_eq!(window.eval("feed.state").await, "open");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tab_that_leaves_a_channel_before_it_has_joined_it_goes_on_without() {
    let browser = Browser::start().await;
    let instance = Instance::embedded().await;
    let window = browser.open_at(&instance.url(BLANK)).await;
    window.feed("{ channels: ['flow'], shared: true }").await;
    window.other_feed("{ channels: ['flow', 'left'], shared: true }").await;
    window.eval("void (other.unsubscribe('left'), globalThis.first = other.subscribe('twice', { last: 1 }).catch(({ message }) => message), other.unsubscribe('twice'))").await;
    instance.publish("twice", "1").await;
    assert_eq!(window.outcome("other.subscribe('twice', { last: 1 })").await, Value::Null);
    assert_eq!(window.eval("first").await, "twice was unsubscribed");
    window.until_others(&json!([1])).await;
    window.until("other.state === 'open'").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_an_event_stream_too_a_tab_that_comes_later_is_told_what_came_before() {
    let browser = Browser::start().await;
    let instance = Instance::embedded().await;
    let window = browser.open_at(&format!("http://{}{BLANK}", without_websockets(&instance).await)).await;
    for (key, value) in [("B4", "42"), ("B5", "43")] {
        instance.post(&format!("/publish?channel=sheet:q3&key={key}"), value).await;
    }
    for number in 1..=4 {
        instance.publish("flow", number.to_string()).await;
    }
    window.feed("{ channels: ['sheet:q3', 'flow'], shared: true }").await;
    window.other_feed("{ channels: ['sheet:q3', 'flow'], last: 2, shared: true }").await;
    window.until("other.state === 'open'").await;
    instance.post("/publish?channel=sheet:q3&key=B6", "44").await;
    instance.publish("flow", "5").await;
    window.until("others.includes('B6=44') && others.includes(5)").await;
    assert_eq!(window.eval("others.filter(Number)").await, json!([3, 4, 5]));
    assert_eq!(window.eval("others.filter((each) => !Number(each))").await, json!(["B4=42", "B5=43", "B6=44"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tab_that_can_not_be_told_what_came_before_is_told_of_a_gap() {
    let browser = Browser::start().await;
    let instance = Instance::embedded().await;
    let window = browser.open_at(&instance.url(BLANK)).await;
    instance.publish("flow", "1").await;
    // The host is in this page. Somebody in front of the instance does not let the history through.
    let block = "void (delete globalThis.SharedWorker, globalThis.through = fetch, globalThis.fetch = (url, options) =>
        String(url).includes('/messages') ? Promise.resolve(new Response('', { status: 403 })) : through(url, options))";
    window.eval(block).await;
    window.feed("{ channels: ['flow'], shared: true }").await;
    window.other_feed("{ channels: ['flow'], last: 1, shared: true }").await;
    window.until_others(&json!(["flow no_history"])).await;
    window.until("other.state === 'open'").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_has_ended_reads_no_history_any_more() {
    let browser = Browser::start().await;
    let instance = Instance::embedded().await;
    let window = browser.open_at(&instance.url(BLANK)).await;
    instance.publish("flow", "1").await;
    // The host is in this page, and can't read a history for now.
    let block = "void (delete globalThis.SharedWorker, globalThis.through = fetch, globalThis.reads = [], globalThis.failures = [],
        globalThis.fetch = (url, options) => {
            if (!String(url).includes('/messages')) return through(url, options);
            reads.push(performance.now());
            return Promise.resolve(new Response('', { status: 503 }));
        },
        addEventListener('unhandledrejection', ({ reason }) => failures.push(String(reason))))";
    window.eval(block).await;
    window.feed("{ channels: ['flow'], shared: true }").await;
    window.other_feed("{ channels: ['flow'], last: 1, shared: true }").await;
    window.until("reads.length >= 2").await;
    window.eval("void (feed.close(), reads.length = 0, globalThis.closed = performance.now())").await;
    // It is the host now, and gets it from its connection.
    window.until_others(&json!([1])).await;
    // The former one would have read again three times.
    window.until("performance.now() > closed + 1600").await;
    assert_eq!(window.eval("[reads.length, failures]").await, json!([0, []]));
}
