//! Edits that the page could not save before it was closed: another one saves them, once.

use serde_json::{Value, json};

use super::{STATE, named};
use crate::support::browser::{Browser, Window};
use crate::support::instance::{Instance, Options};
use crate::support::redis::Redis;

const ENTRIES: &str = "Object.keys(localStorage).filter((key) => key.startsWith('livebridge.unsaved ')).length";

impl Window {
    /// Sets cells of a page whose instance is not there.
    async fn set_offline(&self, cells: &[(&str, &str)]) {
        self.until(&format!("{STATE} === 'waiting' || {STATE} === 'connecting'")).await;
        for (name, value) in cells {
            self.set(name, value).await;
        }
        self.until_text("unsaved", &format!("{} not saved yet", cells.len())).await;
    }

    /// Closes the tab; the browser stays, with a blank one.
    async fn leave(&self) {
        let page = self.another_tab("about:blank").await;
        let blank = self.tab().await;
        self.enter(&page).await;
        self.close_tab().await;
        self.enter(&blank).await;
    }

    async fn until_all_is_saved(&self) {
        self.until(&format!("{STATE} === 'open' && {ENTRIES} === 0")).await;
        self.until_text("unsaved", "").await;
    }
}

/// What was set, in the order of the server: `[cell, value]`.
async fn edits(instance: &Instance) -> Value {
    let history = instance.get_json("/channels/sheet:q3/messages?limit=1000").await;
    let edits = history["messages"].as_array().unwrap().iter();
    edits.map(|message| json!([message["key"], message["data"]["value"]])).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn edits_made_offline_outlive_the_page_and_arrive_once_in_the_order_of_the_server() {
    let browser = Browser::start().await;
    let redis = Redis::start().await;
    let (east, west) = (named(&redis, "east").await, named(&redis, "west").await);
    let (one, two) = tokio::join!(browser.open(&east), browser.open(&west));
    one.until_live_on("east").await;
    let editor = one.text("#me").await;
    let address = east.address.clone();
    drop(east);
    one.set_offline(&[("C2", "1"), ("C3", "3")]).await;
    // Only the last value of a cell is sent.
    one.set("C2", "2").await;
    one.leave().await;
    two.until_live_on("west").await;
    for (name, value) in [("C2", "8"), ("D2", "9")] {
        two.set(name, value).await;
    }
    two.until_text("unsaved", "").await;

    let east = Options::redis(&redis).listen(&address).flag("--instance-name east-again").start().await;
    one.visit(&east.url("/")).await;
    one.until_live_on("east-again").await;
    one.until_all_is_saved().await;
    // It was typed before, and comes later.
    for window in [&one, &two] {
        for (name, shown) in [("C2", "2"), ("C3", "3"), ("D2", "9")] {
            window.until_cell(name, shown).await;
        }
    }
    two.until_text("edits", "4").await;
    let mut set = edits(&west).await;
    set.as_array_mut().unwrap()[2..].sort_by_key(ToString::to_string);
    assert_eq!(set, json!([["C2", 8], ["D2", 9], ["C2", 2], ["C3", 3]]));
    let title = two.eval("document.querySelector('[data-cell=C2]').title").await;
    assert_eq!(title, format!("Last set by {editor}"), "and not by who sent it");
    one.reload().await;
    one.until_live_on("east-again").await;
    one.until_cell("C2", "2").await;
    assert_eq!(edits(&west).await.as_array().unwrap().len(), 4, "nothing is sent again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tab_sends_the_edits_of_one_that_was_closed_and_leaves_those_of_the_others_alone() {
    let browser = Browser::start().await;
    let redis = Redis::start().await;
    let east = named(&redis, "east").await;
    let window = browser.open(&east).await;
    window.until_live_on("east").await;
    let first = window.another_tab(&east.url("/")).await;
    window.until_live_on("east").await;
    let second = window.another_tab(&east.url("/")).await;
    window.until_live_on("east").await;
    let third = window.tab().await;
    let address = east.address.clone();
    drop(east);
    for (tab, edits) in [
        (&third, &[("C3", "3"), ("D3", "3")] as &[_]),
        (&first, &[("C1", "1"), ("D1", "1")]),
        (&second, &[("C2", "2")]),
    ] {
        window.enter(tab).await;
        window.set_offline(edits).await;
    }
    assert_eq!(window.eval(ENTRIES).await, 5);
    let take = "import('/unsaved.js').then(({ Unsaved }) => {
        globalThis.taken = [];
        const asked = new Unsaved('/ sheet:q3').adopt(() => true, (cell) => taken.push(cell));
        asked.then(() => taken.push('nothing else'));
    })";
    window.eval(take).await;
    window.until("globalThis.taken?.includes('nothing else')").await;
    assert_eq!(window.eval("taken").await, json!(["nothing else"]), "all of their pages are there");
    window.enter(&third).await;
    window.close_tab().await;
    window.enter(&first).await;
    let east = Options::redis(&redis).listen(&address).flag("--instance-name east-again").start().await;
    for tab in [&first, &second] {
        window.enter(tab).await;
        window.until_live_on("east-again").await;
    }
    window.until_all_is_saved().await;
    for tab in [&first, &second] {
        window.enter(tab).await;
        for (name, shown) in [("C1", "1"), ("C2", "2"), ("C3", "3"), ("D1", "1"), ("D3", "3")] {
            window.until_cell(name, shown).await;
        }
    }
    let mut set = edits(&east).await;
    set.as_array_mut().unwrap().sort_by_key(ToString::to_string);
    assert_eq!(set, json!([["C1", 1], ["C2", 2], ["C3", 3], ["D1", 1], ["D3", 3]]));
}

/// An entry as a page that is gone may have left it, as a JavaScript expression that writes it.
fn left(page: &str, cell: &str, value: u64, id: &str, at: u64) -> String {
    let edit = json!({ "value": value, "editor": EDITOR, "colour": COLOUR, "id": id, "at": at }).to_string();
    format!("localStorage.setItem('livebridge.unsaved %2F%20sheet%3Aq3 {page} {cell}', {})", json!(edit))
}

const EDITOR: &str = "Teal Heron";
const COLOUR: &str = "#0f766e";

#[tokio::test(flavor = "multi_thread")]
async fn an_edit_whose_answer_was_lost_does_not_come_after_those_that_followed_it() {
    let browser = Browser::start().await;
    let instance = Options::default().flag("--instance-name only").start().await;
    let window = browser.open_at(&instance.url("/healthz")).await;
    // Byte for byte as the page sends it: another message would not be taken for the same.
    let edit = format!(r#"{{"cell":"C2","value":1,"editor":"{EDITOR}","colour":"{COLOUR}"}}"#);
    for (id, edit) in [("once", &*edit), ("another", "2")] {
        let headers = [("idempotency-key", id), ("content-type", "application/json")];
        assert_eq!(instance.post_with("/publish?channel=sheet:q3&key=C2", &headers, edit.to_owned()).await.0, 200);
    }
    window.eval(&left("gone", "C2", 1, "once", 1)).await;
    window.visit(&instance.url("/")).await;
    window.until_live_on("only").await;
    window.until_all_is_saved().await;
    window.until_cell("C2", "2").await;
    // Nor if it is found once the page shows what followed it. Of two that were left, the later one stays.
    for entry in
        [left("gone", "C2", 1, "once", 1), left("gone", "D2", 6, "late", 9), left("gone-too", "D2", 5, "early", 8)]
    {
        window.eval(&entry).await;
    }
    window.eval("(dispatchEvent(new Event('offline')), dispatchEvent(new Event('online')))").await;
    window.until_all_is_saved().await;
    window.until_cell("D2", "6").await;
    window.until_cell("C2", "2").await;
    let set = edits(&instance).await;
    assert_eq!(set.as_array().unwrap().iter().filter(|edit| edit[0] == "C2").count(), 2, "{set}");
}

/// Fills the storage of an origin to the last character.
const FILL: &str = "(() => { for (let size = 1 << 22; size > 0; size >>= 1) {
    try { localStorage.setItem('x'.repeat(size), ''); } catch { continue; }
} })()";
const FORBID: &str = "Object.defineProperty(window, 'localStorage', {
    get() { throw new DOMException('no storage', 'SecurityError'); } })";

#[tokio::test(flavor = "multi_thread")]
async fn a_page_without_room_in_the_storage_or_without_a_storage_says_what_it_cannot_keep() {
    let browser = Browser::start().await;
    let mut instance = Options::default().flag("--instance-name only").start().await;
    let address = instance.address.clone();
    let window = browser.open(&instance).await;
    window.until_live_on("only").await;
    for value in [1, 2] {
        if value == 1 {
            window.eval(FILL).await;
        } else {
            window.devtools("Page.addScriptToEvaluateOnNewDocument", &json!({ "source": FORBID })).await;
            window.reload().await;
            window.until_live_on("only").await;
        }
        drop(instance); // with SIGKILL
        window.until(&format!("{STATE} === 'waiting'")).await;
        window.set("C2", &value.to_string()).await;
        window.until_text("unsaved", "1 not saved yet, 1 of them lost if you close this page").await;
        instance = Options::default().listen(&address).flag("--instance-name only").start().await;
        window.until_live_on("only").await;
        window.until_text("unsaved", "").await;
        assert_eq!(edits(&instance).await, json!([["C2", value]]));
    }
}
