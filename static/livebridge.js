/**
 * The browser client of livebridge: one ES module, no dependencies.
 *
 *     import { connect } from "/livebridge.js";
 *
 *     const feed = connect({ channels: ["sheet:q3"] });
 *     feed.on("message", ({ key, data }) => show(key, data));
 *     await feed.publish({ value: 42 }, { key: "B4" });
 *
 * It keeps one WebSocket open, remembers how far each channel was read and resumes from there after a
 * disconnect, so that nothing is lost or seen twice. Where that can't be had, it says so with a `gap`.
 * What goes over the wire is described in docs/protocol.md, who may do what in docs/access.md.
 *
 * @typedef {{channel: string, data: any, key?: string, removed: boolean, past: boolean, epoch?: string, offset?: number}}
 *   Message  `data`: the parsed JSON, a string where the payload is not JSON, a `Uint8Array` where it is not text.
 *   `past`: published before this connection joined, and here because of a resume, `last` or a keyed channel.
 * @typedef {{channel: string, epoch?: string, offset?: number}} Position  No epoch and offset: no history is kept.
 * @typedef {"connecting" | "open" | "waiting" | "closed"} State
 *   "waiting": disconnected, the next attempt follows by itself. "closed": for good, `reason` says why.
 */

/** How long an attempt may take until the server's welcome, and a publish until its answer. */
const PATIENCE_MS = 10_000;
/** Full jitter: a random wait between 0 and BASE · 2^attempt, the latter at most CAP. */
const BACKOFF_BASE_MS = 500;
const BACKOFF_CAP_MS = 15_000;
/** The clients of an instance that restarts come back spread over this time, not all at once. */
const RESTART_SPREAD_MS = 2_000;
/** A connection that lived for less counts as one more failed attempt. */
const STABLE_AFTER_MS = 5_000;
const PUBLISH_RETRIES = 3;

/** Close codes; the table with their reasons is in docs/protocol.md. */
const RESTARTING = 1012;
const TOKEN_EXPIRED = 4003;
/** The same again would end the same way: protocol error, invalid UTF-8, publish refused, too big. */
const FINAL = new Set([1002, 1007, 1008, 1009]);

/**
 * Opens a feed. It connects at once, after the caller had the chance to add its listeners.
 *
 * @param {object} options
 * @param {string[]} options.channels  what to listen to, in order
 * @param {string | URL} [options.url]  where livebridge is; default: where this module came from, else the page's origin
 * @param {number} [options.last]  begin with the last N messages of each channel
 * @param {string | (() => string | Promise<string>)} [options.token]  shown at every connect and publish; a function is
 *   asked anew before each, so that it can fetch a fresh one from your backend
 * @returns {Feed}
 */
export function connect(options) {
  return new Feed(options);
}

/** A publish that the server refused, or that did not get through. `code` and `status` are the server's. */
export class PublishError extends Error {
  constructor(message, { code = "unreachable", status = 0, cause } = {}) {
    super(message, { cause });
    Object.assign(this, { name: "PublishError", code, status });
  }

  /** Whether the same may well succeed a little later. */
  get temporary() {
    return this.status === 0 || (this.status >= 502 && this.status <= 504);
  }
}

/** A fresh Idempotency-Key. Not `randomUUID`: that exists in secure contexts only. */
export function newIdempotencyKey() {
  return Array.from(crypto.getRandomValues(new Uint32Array(4)), (word) => word.toString(36)).join("");
}

/**
 * Events, each a `CustomEvent` whose `detail` is what `on` hands over:
 *
 * - `message`  {@link Message}
 * - `state`    `{state, instance, retryInMs?, reason?}`
 * - `gap`      `{channel, reason, message}`: messages of this channel may have been missed
 */
export class Feed extends EventTarget {
  /** @type {State} */
  state = "connecting";
  /** The name of the instance that this feed is, or was last, connected to. */
  instance = "";

  constructor({ channels, url, last, token } = {}) {
    super();
    if (!Array.isArray(channels) || channels.length === 0) throw new TypeError("connect needs channels: [name, …]");
    this.#channels = [...new Set(channels)];
    this.#base = baseUrl(url);
    this.#last = last;
    this.#token = token;
    globalThis.addEventListener?.("offline", this.#onOffline);
    globalThis.addEventListener?.("online", this.#onOnline);
    queueMicrotask(() => this.state === "connecting" && this.#open());
  }

  /** Calls `listener` with the detail of each event of that name. @returns {() => void} ends it */
  on(name, listener) {
    const handle = (event) => listener(event.detail);
    this.addEventListener(name, handle);
    return () => this.removeEventListener(name, handle);
  }

  /**
   * Publishes one message. A string, Blob, buffer or typed array goes out as it is, all else as JSON. What may succeed
   * later is retried under the same Idempotency-Key, so the message appears once. The feed may be disconnected.
   *
   * @param {any} data  may be left out with `remove`
   * @param {object} [options]
   * @param {string} [options.channel]  default: the feed's channel, where it has exactly one
   * @param {string} [options.key]  on a keyed channel: the key whose new value this message is
   * @param {boolean} [options.remove]  on a keyed channel: removes the key
   * @param {string} [options.idempotencyKey]  to go on with an earlier call that failed
   * @returns {Promise<Position>} where the message stands now
   * @throws {PublishError}
   */
  async publish(data, { channel, key, remove = false, idempotencyKey = newIdempotencyKey() } = {}) {
    if (channel === undefined && this.#channels.length > 1) throw new TypeError("publish: say to which channel");
    const pairs = [["channel", channel ?? this.#channels[0]]];
    if (key !== undefined) pairs.push(["key", key]);
    if (remove) pairs.push(["remove", "true"]);
    const [type, body] = encode(data ?? (remove ? "" : null));
    const headers = { "Content-Type": type, "Idempotency-Key": idempotencyKey };

    for (let attempt = 0; ; attempt++) {
      let failure, retryAfterMs;
      try {
        const token = await this.#freshToken();
        if (token) headers.Authorization = `Bearer ${token}`;
        const signal = AbortSignal.timeout(PATIENCE_MS);
        const answer = await fetch(this.#address("publish", pairs), { method: "POST", headers, body, signal });
        if (answer.ok) return (await answer.json()).messages[0];
        failure = await refusal(answer);
        retryAfterMs = Number(answer.headers.get("Retry-After")) * 1000;
      } catch (cause) {
        failure = new PublishError(`livebridge could not be reached: ${cause.message}`, { cause });
      }
      if (!failure.temporary || attempt === PUBLISH_RETRIES) throw failure;
      const waitMs = Math.min(BACKOFF_CAP_MS, Math.max(retryAfterMs || 0, backoff(attempt)));
      await new Promise((resolve) => setTimeout(resolve, waitMs));
    }
  }

  /** Forgets how far the channels were read and joins them anew: a keyed channel tells all its values again. */
  rejoin() {
    if (this.state === "closed") return;
    this.#positions.clear();
    this.#joined = false;
    this.#open();
  }

  /** Ends the feed for good. */
  close() {
    this.#end("closed by the page");
  }

  #channels;
  #base;
  #last;
  #token;
  /** Counts the attempts to connect, and their ends: a token that comes too late is for none of them. */
  #turn = 0;
  /** Channel → `EPOCH:OFFSET`, where the next connection resumes. */
  #positions = new Map();
  /** Channel → the newest offset at the time of joining. */
  #heads = new Map();
  /** Whether a connection was open since the last (re)join: then what is no resume leaves a gap. */
  #joined = false;
  #socket = null;
  #openedAt = 0;
  #attempt = 0;
  /** Runs out while connecting (no welcome came) and while waiting (the next attempt is due). */
  #timer;

  #onOffline = () => this.#socket && this.#lost(0, "the browser is offline");
  #onOnline = () => {
    if (this.state === "open") return;
    this.#attempt = 0;
    this.#open();
  };

  async #open() {
    this.#drop();
    const turn = ++this.#turn;
    let token, url, socket;
    this.#timer = setTimeout(() => this.#lost(0, `no welcome within ${PATIENCE_MS / 1000} s`, url), PATIENCE_MS);
    this.#enter("connecting");
    try {
      token = this.#token && (await this.#freshToken());
    } catch (error) {
      if (turn === this.#turn) this.#lost(0, `no token: ${error.message}`);
      return;
    }
    if (turn !== this.#turn) return; // closed, lost or opened anew meanwhile
    url = this.#subscription(token);
    try {
      socket = new WebSocket(url.replace(/^http/, "ws"));
    } catch (error) {
      return this.#end(error.message); // a URL that the browser refuses, such as ws: from an https: page
    }
    this.#socket = socket;
    // A socket that was dropped may still speak; only the current one is heard.
    socket.onmessage = ({ data }) => socket === this.#socket && this.#receive(data);
    socket.onclose = ({ code, reason }) => socket === this.#socket && this.#lost(code, reason, url);
  }

  async #freshToken() {
    return typeof this.#token === "function" ? this.#token() : this.#token;
  }

  #receive(frame) {
    const envelope = JSON.parse(frame);
    const { event, channel, key, removed = false, epoch, offset, reason, message } = envelope;
    if (event === "welcome") {
      this.#welcomed(envelope);
    } else if (event === "gap") {
      this.#remember(envelope);
      this.#heads.delete(channel);
      this.#emit("gap", { channel, reason, message });
    } else if (event === undefined) {
      this.#remember(envelope);
      const data = envelope.encoding === "base64" ? fromBase64(envelope.data) : envelope.data;
      const past = offset <= this.#heads.get(channel); // false where either is missing
      this.#emit("message", { channel, data, key, removed, past, epoch, offset });
    }
  }

  #welcomed({ instance, channels }) {
    clearTimeout(this.#timer);
    const lost = this.#joined ? this.#channels.filter((channel) => !this.#positions.has(channel)) : [];
    for (const start of channels) this.#remember(start);
    this.#heads = new Map(channels.map(({ channel, head }) => [channel, head]));
    this.instance = instance;
    this.#openedAt = Date.now();
    this.#joined = true;
    this.#enter("open");
    const message = "the channel keeps no history: what came while disconnected is lost";
    for (const channel of lost) this.#emit("gap", { channel, reason: "no_history", message });
  }

  /** A message without a position (a plain Redis PUBLISH) leaves the last known one as it is. */
  #remember({ channel, epoch, offset }) {
    if (epoch !== undefined && offset !== undefined) this.#positions.set(channel, `${epoch}:${offset}`);
  }

  #lost(code, reason, url) {
    const wasOpen = this.state === "open";
    this.#drop();
    // The same token again would be refused.
    const final = FINAL.has(code) || (code === TOKEN_EXPIRED && typeof this.#token !== "function");
    if (final) return this.#end(reason || `the server closed with code ${code}`);
    if (wasOpen && Date.now() - this.#openedAt > STABLE_AFTER_MS) this.#attempt = 0;
    // A token that was not even let in may be the one that is handed out again and again.
    const soon = code === RESTARTING || (code === TOKEN_EXPIRED && wasOpen);
    const retryInMs = Math.round(soon ? Math.random() * RESTART_SPREAD_MS : backoff(this.#attempt++));
    this.#timer = setTimeout(() => this.#open(), retryInMs);
    this.#enter("waiting", { retryInMs, reason: reason || "the connection was lost" });
    if (url && !wasOpen && this.#attempt === 1) this.#askWhy(url);
  }

  /** A browser hides why a handshake failed; the same request without the upgrade tells: 426 if nothing else is wrong. */
  async #askWhy(url) {
    const answer = await fetch(url).catch(() => null);
    // A function may have a better token the next time.
    const final = typeof this.#token === "function" ? [400, 403] : [400, 401, 403];
    if (!final.includes(answer?.status)) return;
    const { message } = await refusal(answer);
    if (this.state !== "open") this.#end(message);
  }

  #drop() {
    clearTimeout(this.#timer);
    this.#turn++;
    const socket = this.#socket;
    this.#socket = null;
    socket?.close();
  }

  #end(reason) {
    if (this.state === "closed") return;
    this.#drop();
    globalThis.removeEventListener?.("offline", this.#onOffline);
    globalThis.removeEventListener?.("online", this.#onOnline);
    this.#enter("closed", { reason });
  }

  #subscription(token) {
    const pairs = this.#channels.map((channel) => ["channel", channel]);
    if (this.#positions.size > 0) {
      pairs.push(["since", this.#channels.map((channel) => this.#positions.get(channel) ?? "").join(",")]);
    } else if (this.#last !== undefined) {
      pairs.push(["last", this.#last]);
    }
    if (token) pairs.push(["token", token]); // a page can set no header on a WebSocket
    return this.#address("ws", [...pairs, ["format", "json"]]);
  }

  #address(path, pairs) {
    const query = pairs.map(([name, value]) => `${name}=${encodeURIComponent(value)}`).join("&");
    return new URL(`${path}?${query}`, this.#base).href;
  }

  #enter(state, more) {
    this.state = state;
    this.#emit("state", { state, instance: this.instance, ...more });
  }

  #emit(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }
}

/** The directory that `ws` and `publish` are in; also right behind a proxy that serves livebridge under a path. */
function baseUrl(url) {
  const own = new URL(import.meta.url);
  const served = own.protocol.startsWith("http") && own.pathname.endsWith("/livebridge.js");
  const fallback = served ? new URL(".", own) : globalThis.location?.origin;
  const base = new URL(url === undefined ? fallback : String(url).replace(/^ws/, "http"), globalThis.location?.href);
  base.search = base.hash = "";
  if (!base.pathname.endsWith("/")) base.pathname += "/";
  return base;
}

function backoff(attempt) {
  return Math.random() * Math.min(BACKOFF_CAP_MS, BACKOFF_BASE_MS * 2 ** attempt);
}

/** @returns {[string, BodyInit]} content type and body */
function encode(data) {
  if (typeof data === "string") return ["text/plain; charset=utf-8", data];
  const binary = data instanceof Blob || data instanceof ArrayBuffer || ArrayBuffer.isView(data);
  return binary ? ["application/octet-stream", data] : ["application/json", JSON.stringify(data)];
}

async function refusal(answer) {
  const { error } = await answer.json().catch(() => ({}));
  const message = error?.message ?? `the server answered ${answer.status}`;
  return new PublishError(message, { code: error?.code, status: answer.status });
}

function fromBase64(text) {
  return Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
}
