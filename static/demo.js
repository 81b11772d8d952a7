/** The demo page: who is here, the shared sheet, what the header says of them, the console. */
import { Chart } from "./chart.js";
import { startConsole } from "./console.js";
import { Crowd } from "./crowd.js";
import { Cursors } from "./cursors.js";
import { newIdempotencyKey } from "./livebridge.js";
import { format } from "./plan.js";
import { SheetView } from "./sheet.js";
import { copyButton, curlLine } from "./snippet.js";
import { SharedSheet } from "./sync.js";

const DEFAULT_SHEET = "q3";
const HINT_MS = 8_000;

/** Dark enough for white text on them. */
const COLOURS = [
  ["Teal", "#0f766e"],
  ["Cobalt", "#1d4ed8"],
  ["Crimson", "#be123c"],
  ["Violet", "#6d28d9"],
  ["Amber", "#b45309"],
  ["Forest", "#15803d"],
  ["Plum", "#a21caf"],
  ["Ocean", "#0369a1"],
  ["Rust", "#c2410c"],
  ["Olive", "#4d7c0f"],
  ["Rose", "#db2777"],
  ["Indigo", "#4338ca"],
];
const BIRDS = "Heron Curlew Kestrel Plover Swift Wren Osprey Lark Avocet Magpie Siskin Tern Ibis Dunlin Jay Egret".split(" ");

const $ = (id) => document.getElementById(id);
const me = whoAmI();
const sheetName = new URLSearchParams(location.search).get("sheet") || DEFAULT_SHEET;
const sheet = new SharedSheet({ channel: `sheet:${sheetName}`, me });
let hintTimer;
let newestEdit;
let countdown;

document.documentElement.style.setProperty("--me", me.colour);
$("me").textContent = me.name;
$("sheet-channel").textContent = sheet.channel;
$("second-window").href = location.href;
if (sheetName !== DEFAULT_SHEET) document.title = `${sheetName} · livebridge`;

const chart = new Chart({ figure: $("chart"), valueOf: (name) => sheet.cell(name)?.value ?? "" });
const cursors = new Cursors({ feed: sheet.feed, channel: `cursors:${sheetName}`, me, id: newIdempotencyKey() });
const crowd = new Crowd({ feed: sheet.feed, channel: sheet.channel, colours: COLOURS });
const view = new SheetView({ table: $("sheet"), sheet, onSelect: showSelected, onHint: showHint, onDraw: () => chart.draw() });
sheet.addEventListener("state", ({ detail }) => showConnection(detail));
sheet.addEventListener("cell", showUnsaved);
sheet.addEventListener("edit", ({ detail }) => showEdit(detail));
sheet.addEventListener("saved", ({ detail }) => ($("latency").textContent = `${Math.max(1, Math.round(detail.inMs))} ms`));
cursors.addEventListener("change", ({ detail }) => showPeople(detail));
$("crowd").addEventListener("click", () => {
  if (crowd.isThere) crowd.stop();
  else crowd.start();
  $("crowd").textContent = crowd.isThere ? "Stop them" : "Simulate 50 editors";
});
sheet.addEventListener("unsaved", ({ detail }) => showHint(`${detail.name} is not saved yet: ${detail.message}`));
copyButton($("cell-curl-copy"), () => $("cell-curl").textContent);
startConsole();

/** A name and a colour for this window, kept for as long as it is open. */
function whoAmI() {
  const key = "livebridge.editor";
  try {
    const kept = JSON.parse(sessionStorage.getItem(key));
    if (kept?.name && kept?.colour) return kept;
  } catch {
    // no storage: a new name with each load
  }
  const [adjective, colour] = pick(COLOURS);
  const fresh = { name: `${adjective} ${pick(BIRDS)}`, colour };
  try {
    sessionStorage.setItem(key, JSON.stringify(fresh));
  } catch {
    // the same
  }
  return fresh;
}

function pick(list) {
  return list[Math.floor(Math.random() * list.length)];
}

function showConnection({ state, instance, retryInMs, reason = "" }) {
  const words = {
    connecting: [instance ? "reconnecting, last on " : "connecting …", ""],
    open: ["live on ", ""],
    waiting: [instance ? "disconnected from " : "disconnected", ", retrying"],
    closed: [instance ? "disconnected from " : "not connected", `: ${reason}`],
  };
  const [before, after] = words[state];
  $("connection").dataset.state = state;
  $("connection").title = reason;
  $("connection-before").textContent = before;
  $("instance").textContent = instance;
  $("connection-after").textContent = after;
  $("connection-countdown").textContent = "";
  clearInterval(countdown);
  if (state !== "waiting") return;
  // The seconds are for the eye only: a screen reader would have to read each of them.
  const due = Date.now() + retryInMs;
  const tick = () => {
    const seconds = Math.max(1, Math.ceil((due - Date.now()) / 1000));
    $("connection-countdown").textContent = ` in ${seconds} s`;
  };
  tick();
  countdown = setInterval(tick, 1000);
}

function showUnsaved() {
  const [count, unkept] = [sheet.unsavedCount, sheet.unkeptCount];
  const lost = unkept === 0 ? "" : `, ${unkept} of them lost if you close this page`;
  $("unsaved").textContent = count === 0 ? "" : `${count} not saved yet${lost}`;
}

/** Only the newest, once per frame of the screen. */
function showEdit(edit) {
  if (!newestEdit) requestAnimationFrame(drawEdit);
  newestEdit = edit.quiet && newestEdit ? newestEdit : edit;
}

function drawEdit() {
  const { name, value, editor, colour, quiet } = newestEdit;
  newestEdit = undefined;
  $("edits").textContent = sheet.editsSeen.toLocaleString("en-GB");
  if (quiet) return;
  $("last-edit").style.setProperty("--ink", colour ?? "var(--someone)");
  $("last-edit").textContent = `${editor || "Someone"} set ${name} to ${format(value) || "empty"}`;
}

/** Each is a dot of their colour, and a frame around their cell. */
function showPeople(cells) {
  const people = [...cursors.people.values()];
  for (const cell of new Set(cells)) view.showPeople(cell, people.filter((person) => person.cell === cell));
  const dots = people.slice(0, 8).map(({ name, colour }) => {
    const dot = document.createElement("i");
    dot.title = name;
    dot.style.background = colour;
    return dot;
  });
  $("people").replaceChildren(...dots, people.length > dots.length ? `+${people.length - dots.length}` : "");
  $("people").ariaLabel = people.map(({ name }) => name).join(", ");
  $("people").parentElement.hidden = people.length === 0;
}

function showSelected({ name, column, value, editor, unsaved }) {
  cursors.move(name);
  $("cell-name").textContent = name;
  $("cell-value").textContent = column.compute ? `${format(value)}  =  Budget − Spent` : format(value);
  $("cell-by").textContent = unsaved ? "not saved yet" : editor ? `last set by ${editor}` : "";
  // A computed cell can't be set; the line stays at a value that can.
  if (!column.compute) $("cell-curl").textContent = curlLine(String(value), sheet.channel, `&key=${name}`);
}

function showHint(text, { stay = false } = {}) {
  clearTimeout(hintTimer);
  $("hint").textContent = text;
  if (text && !stay) hintTimer = setTimeout(() => showHint(""), HINT_MS);
}
