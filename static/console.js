/**
 * The raw console: a bare WebSocket without envelopes, so that each frame is seen as it came.
 * The sheet uses livebridge.js; this shows what is there without it.
 */
import { copyButton, curlLine } from "./snippet.js";

const MAX_ROWS = 200;
/** Longer payloads are cut on the screen, and say how long they are. */
const MAX_SHOWN = 20_000;
const MAX_SHOWN_BYTES = 64;
const DEFAULT_CHANNEL = "live";

/** Wires the console up with the elements whose ids start with `console-` and `curl-`. */
export function startConsole() {
  const $ = (id) => document.getElementById(id);
  const channelField = $("console-channel");
  const connectButton = $("console-connect");
  const messageField = $("console-message");
  const sendButton = $("console-send");
  const log = $("console-log");
  const status = $("console-status");
  const count = $("console-count");
  const channel = () => channelField.value.trim() || DEFAULT_CHANNEL;

  let socket = null;
  let received = 0;
  /** What came since the last frame of the screen; never more than the log can show. */
  let fresh = [];

  function connect() {
    const name = channel();
    const address = new URL(`ws?channel=${encodeURIComponent(name)}`, document.baseURI);
    address.protocol = address.protocol.replace("http", "ws");
    const own = (socket = new WebSocket(address));
    own.binaryType = "arraybuffer";
    own.onopen = () => own === socket && say("open", `connected to ${name}`);
    own.onmessage = ({ data }) => own === socket && add(data);
    own.onclose = ({ code, reason }) => {
      if (own !== socket) return;
      socket = null;
      const lost = "could not connect, or the connection was lost";
      say("closed", code === 1006 ? lost : `closed with ${code}${reason && `: ${reason}`}`);
    };
    say("connecting", `connecting to ${name} …`);
  }

  function disconnect() {
    const own = socket;
    socket = null;
    own?.close();
    say("closed", "not connected");
  }

  function say(state, text) {
    status.textContent = text;
    status.dataset.state = state;
    connectButton.textContent = socket ? "Disconnect" : "Connect";
    connectButton.setAttribute("aria-pressed", String(state === "open"));
    sendButton.disabled = state !== "open";
  }

  function add(data) {
    received += 1;
    fresh.push({ data, at: new Date() });
    if (fresh.length > MAX_ROWS) fresh.shift();
    if (fresh.length === 1) requestAnimationFrame(show);
  }

  /** Once per frame of the screen, however many messages came. Follows the end unless someone scrolled up. */
  function show() {
    const following = log.scrollHeight - log.scrollTop - log.clientHeight < 24;
    log.append(...fresh.map(row));
    fresh = [];
    while (log.childElementCount > MAX_ROWS) log.firstElementChild.remove();
    count.textContent = received.toLocaleString("en-GB");
    if (following) log.scrollTop = log.scrollHeight;
  }

  channelField.addEventListener("input", showCurl);
  channelField.addEventListener("change", () => {
    if (!socket) return;
    disconnect();
    connect();
  });
  $("console-form").addEventListener("submit", (event) => {
    event.preventDefault();
    if (socket) disconnect();
    else connect();
  });
  $("console-send-form").addEventListener("submit", (event) => {
    event.preventDefault();
    if (socket?.readyState !== WebSocket.OPEN) return;
    socket.send(messageField.value);
    messageField.select();
  });
  $("console-clear").addEventListener("click", () => {
    log.replaceChildren();
    count.textContent = String((received = 0));
  });

  function showCurl() {
    $("curl-line").textContent = curlLine("hello", channel());
  }
  copyButton($("curl-copy"), () => $("curl-line").textContent);
  showCurl();
}

function row({ data, at }) {
  const item = document.createElement("li");
  const time = document.createElement("time");
  time.dateTime = at.toISOString();
  time.textContent = at.toLocaleTimeString("en-GB") + "." + String(at.getMilliseconds()).padStart(3, "0");
  const payload = document.createElement("span");
  payload.className = "payload";
  if (typeof data === "string") {
    payload.textContent = data.length > MAX_SHOWN ? `${data.slice(0, MAX_SHOWN)}… (${data.length} characters)` : data;
  } else {
    payload.classList.add("binary");
    payload.textContent = `${data.byteLength} bytes: ${hex(data)}`;
  }
  item.append(time, payload);
  return item;
}

function hex(buffer) {
  const bytes = new Uint8Array(buffer, 0, Math.min(buffer.byteLength, MAX_SHOWN_BYTES));
  const text = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join(" ");
  return buffer.byteLength > MAX_SHOWN_BYTES ? `${text} …` : text;
}
