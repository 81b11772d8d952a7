/**
 * One connection for all tabs of an origin. The connection lives in a host: a SharedWorker, or one of the tabs, elected
 * by a lock that the next tab gets when that one closes. Each tab remembers how far it has read, and tells a new host.
 */
import { Connection, inTime } from "./livebridge-connection.js";
import { CHANGED, NO_HISTORY, TRIMMED, message } from "./livebridge-message.js";
import { PATIENCE_MS, PublishError } from "./livebridge-publish.js";
import { CommandError } from "./livebridge-socket.js";

/** Tabs of other versions of these messages do not meet. */
const NAME = "livebridge/2 ";
/** How long a host waits before it reads a history again that it could not read. */
const RETRY_MS = 500;

const newId = () => Array.from(crypto.getRandomValues(new Uint32Array(3)), (word) => word.toString(36)).join("");
/** An error as a message. */
const plain = (/** @type {any} */ { message, code, status, temporary, name }) => ({ message, code, status, temporary, name });

/** @typedef {import("./livebridge-connection.js").Place} Place */

/** What a feed has in place of a {@link Connection}: the way to the host. */
export class SharedConnection {
  state = "connecting";
  instance = "";

  /**
   * @param {import("./livebridge-connection.js").Owner} owner
   * @param {{base: URL, token?: string | (() => any), shared: string | true}} options
   */
  constructor(owner, { base, token, shared }) {
    this.#owner = owner;
    this.#base = base;
    this.#token = token;
    this.#name = NAME + base.href + (shared === true ? "" : ` ${shared}`);
    globalThis.addEventListener?.("online", this.#wake);
    globalThis.addEventListener?.("visibilitychange", this.#wake);
  }

  start() {
    const signal = this.#closing.signal;
    // The host learns by this lock that the tab is gone, however it went.
    navigator.locks.request(`${this.#name} ${this.#id}`, { signal }, () => {
      this.#meet();
      return new Promise((resolve) => signal.addEventListener("abort", resolve));
    }).catch(() => {});
  }

  /** @param {string} name @param {import("./livebridge-connection.js").ChannelOptions} options */
  subscribe(name, { since, ...options } = {}) {
    let channel = this.#channels.get(name);
    if (!channel) {
      this.#channels.set(name, (channel = { ...options, name, position: since, live: false, late: false }));
      channel.ready = this.#subscribe(channel);
    }
    return channel.ready;
  }

  /** @param {string} name */
  unsubscribe(name) {
    if (this.#channels.delete(name)) this.#post({ type: "unsubscribe", channel: name });
    for (const [call, { message, reject }] of this.#calls) {
      if (message.channel !== name) continue;
      this.#calls.delete(call);
      reject(new CommandError({ message: `${name} was unsubscribed` }));
    }
    this.#settle();
  }

  /** @param {string} method @param {object} request */
  ask(method, request) {
    return this.#call({ type: "ask", method, request });
  }

  /** @param {import("./livebridge-connection.js").Publication} publication */
  publish(publication) {
    return this.#call({ type: "publish", publication });
  }

  rejoin() {
    if (this.state === "closed") return;
    for (const channel of this.#channels.values()) channel.position = undefined;
    this.#introduce(false);
  }

  wake() {
    this.#post({ type: "wake" });
  }

  close() {
    this.#end({ reason: "closed by the page" });
  }

  #owner;
  #base;
  #token;
  #name;
  #id = newId();
  #closing = new AbortController();
  /** Sends to the host, once there is a way to it. @param {any} body */
  #post = (body) => {};
  /** The id of the host, to see that there is another. */
  #host = "";
  #isHostOpen = false;
  /** @type {Map<string, any>} */
  #channels = new Map();
  #lastCall = 0;
  /** What the host has not answered: asked of the next one again. @type {Map<number, any>} */
  #calls = new Map();
  /** @type {[string, any][]} */
  #early = [];

  #wake = () => globalThis.document?.visibilityState === "visible" && this.wake();

  #meet() {
    const { SharedWorker } = globalThis;
    if (!SharedWorker) return this.#elect();
    try {
      const worker = new SharedWorker(new URL("./livebridge-worker.js", import.meta.url), { type: "module", name: this.#name });
      this.#post = (body) => worker.port.postMessage({ from: this.#id, body });
      worker.port.onmessage = ({ data }) => this.#receive(data);
      // A page of another origin, or a bundler that has not brought the file along.
      worker.onerror = () => this.#host || this.#elect();
      this.#post({ type: "hello" });
    } catch {
      this.#elect();
    }
  }

  #elect() {
    const { signal } = this.#closing;
    const toHost = new BroadcastChannel(this.#name);
    toHost.onmessage = ({ data: { to, body } }) => (to === this.#id || to === "*") && this.#receive(body);
    // An answer may come after the end.
    this.#post = (body) => signal.aborted || toHost.postMessage({ from: this.#id, body });
    this.#post({ type: "hello" });
    signal.addEventListener("abort", () => toHost.close());
    navigator.locks.request(this.#name, { signal }, () => {
      const host = new Host(this.#name);
      const toTabs = new BroadcastChannel(this.#name);
      toTabs.onmessage = ({ data: { from, body } }) =>
        from && host.receive(from, body, (/** @type {any} */ answer) => signal.aborted || toTabs.postMessage({ to: from, body: answer }));
      toTabs.postMessage({ to: "*", body: { type: "host", host: host.id } });
      return new Promise((resolve) =>
        signal.addEventListener("abort", () => {
          host.close();
          toTabs.close();
          resolve(undefined);
        }),
      );
    }).catch(() => {});
  }

  /** @param {any} body  of the host */
  #receive(body) {
    if (this.state === "closed") return;
    const { type, host, call, error, result, name, detail } = body;
    if (type === "host") {
      if (host === this.#host) return;
      this.#host = host;
      this.#introduce(true);
    } else if (type === "state") {
      this.instance = body.instance;
      this.#isHostOpen = detail.state === "open";
      if (detail.state === "closed") this.#end(detail);
      else if (this.#isHostOpen) this.#settle();
      else this.#enter(detail.state, detail);
    } else if (type === "answer") {
      const { resolve, reject } = this.#calls.get(call) ?? {};
      this.#calls.delete(call);
      if (error) reject?.(error.name === "PublishError" ? new PublishError(error.message, error) : new CommandError(error));
      else resolve?.(result);
    } else if (type === "token") {
      this.#tell(body.ask);
    } else if (type === "late") {
      const channel = this.#channels.get(body.channel);
      if (channel) channel.late = true;
      this.#settle();
    } else if (type === "event" && this.#channels.has(detail.channel)) {
      this.#event(name, detail);
    }
  }

  /** @param {string} name @param {any} detail */
  #event(name, detail) {
    const channel = this.#channels.get(detail.channel);
    const { epoch, offset } = detail;
    if (name === "message" && offset !== undefined) {
      const { position } = channel;
      // Other tabs may have begun earlier.
      if (position?.epoch === epoch && offset <= position.offset) return;
      channel.position = { epoch, offset };
    }
    if (name === "unsubscribed") {
      this.#channels.delete(detail.channel);
      if (channel.initial) return this.#end({ reason: detail.reason });
    }
    this.#emit(name, detail);
  }

  /** Says to the host all that it needs to know. @param {boolean} isNew  whether it knows nothing yet */
  #introduce(isNew) {
    this.#isHostOpen = false;
    if (!isNew) this.#post({ type: "bye" });
    this.#enter("connecting");
    for (const channel of this.#channels.values()) {
      if (isNew && channel.live && !channel.position) {
        const [reason, message] = NO_HISTORY;
        this.#emit("gap", { channel: channel.name, reason, message });
      }
      Object.assign(channel, { live: false, late: false });
    }
    const renews = typeof this.#token === "function";
    this.#post({ type: "tab", base: this.#base.href, renews, hasToken: Boolean(this.#token) });
    const waiting = [...this.#calls.values()];
    for (const channel of this.#channels.values()) if (!channel.calls) this.#subscribe(channel).catch(() => {});
    for (const { message } of waiting) {
      if (message.type === "subscribe") this.#post(this.#request(message));
      else if (isNew) this.#post(message);
    }
  }

  /** @param {any} message  with the position that there is by now */
  #request(message) {
    return { ...message, position: this.#channels.get(message.channel)?.position };
  }

  /** @param {any} channel */
  async #subscribe(channel) {
    const { name, last, joinLeave } = channel;
    channel.calls = (channel.calls ?? 0) + 1;
    try {
      const place = await this.#call(this.#request({ type: "subscribe", channel: name, last, joinLeave }));
      // Where a new host goes on, even if no message comes until then.
      channel.position ??= place;
      channel.live = true;
    } catch (/** @type {any} */ error) {
      if (this.#channels.get(name) === channel) {
        this.#channels.delete(name);
        if (channel.initial) this.#end({ reason: error.message });
      }
      throw error;
    } finally {
      channel.calls--;
      this.#settle();
    }
  }

  #settle() {
    const isJoined = [...this.#channels.values()].every(({ live, late }) => live || late);
    if (this.#isHostOpen && isJoined && this.state !== "open" && this.state !== "closed") this.#enter("open");
  }

  /** @param {any} request */
  #call(request) {
    const message = { ...request, call: ++this.#lastCall };
    return new Promise((resolve, reject) => {
      this.#calls.set(message.call, { message, resolve, reject });
      if (this.#host) this.#post(message);
    });
  }

  /** @param {number} ask */
  async #tell(ask) {
    try {
      const token = typeof this.#token === "function" ? await this.#token() : this.#token;
      this.#post({ type: "token", ask, token });
    } catch (error) {
      this.#post({ type: "token", ask, error: plain(error) });
    }
  }

  /** @param {any} detail */
  #end(detail) {
    if (this.state === "closed") return;
    this.#post({ type: "bye" });
    this.#enter("closed", { reason: detail.reason });
    globalThis.removeEventListener?.("online", this.#wake);
    globalThis.removeEventListener?.("visibilitychange", this.#wake);
    for (const { reject } of this.#calls.values()) reject(new CommandError({ message: detail.reason }));
    this.#calls.clear();
    this.#closing.abort();
  }

  /** @param {string} state @param {any} [more] */
  #enter(state, more) {
    this.state = state;
    this.#owner.enter(state, this.instance, more);
    for (const [name, detail] of this.#early.splice(0)) this.#owner.emit(name, detail);
  }

  /** @param {string} name @param {any} detail */
  #emit(name, detail) {
    if (this.state === "connecting") this.#early.push([name, detail]);
    else this.#owner.emit(name, detail);
  }
}

/** Where the connection lives. */
export class Host {
  id = newId();

  /** @param {string} name  of what the tabs share */
  constructor(name) {
    this.#name = name;
  }

  #name;
  #base = "";
  /** @type {Connection | undefined} */
  #connection;
  /** @type {Map<string, any>} */
  #tabs = new Map();
  /** Channel → `{ready, isLate, position, keyed}`; `position`: of what was told last. @type {Map<string, any>} */
  #channels = new Map();
  #lastAsk = 0;
  /** @type {Map<number, any>} */
  #asked = new Map();

  /** @param {string} from @param {any} body @param {(body: any) => void} post  sends to that tab */
  receive(from, body, post) {
    const tab = this.#tabs.get(from);
    if (body.type === "hello") post({ type: "host", host: this.id });
    else if (body.type === "tab") this.#greet(from, body, post);
    else if (!tab) return;
    else if (body.type === "bye") this.#leave(from);
    else if (body.type === "wake") this.#connection?.wake();
    else if (body.type === "token") this.#told(body);
    else if (body.type === "subscribe") this.#subscribe(tab, body);
    else if (body.type === "unsubscribe") this.#unsubscribe(tab, body.channel);
    else this.#pass(tab, body);
  }

  /** Ends without a word: the tabs hear of the next host. */
  close() {
    for (const { channels } of this.#tabs.values()) channels.clear();
    this.#tabs.clear();
    this.#connection?.close();
  }

  /** @param {string} id @param {any} body @param {(body: any) => void} post */
  #greet(id, { base, renews, hasToken }, post) {
    this.#base = base;
    const isKnown = this.#tabs.has(id);
    this.#tabs.set(id, { post, renews, hasToken, channels: new Map() });
    // Held for as long as the tab is there.
    if (!isKnown) navigator.locks.request(`${this.#name} ${id}`, () => this.#leave(id));
    if (this.#connection && this.#connection.state !== "closed") return this.#state(post, this.#connection.state);
    const owner = {
      enter: (/** @type {string} */ state, /** @type {string} */ _, /** @type {any} */ more) => {
        for (const tab of this.#tabs.values()) this.#state(tab.post, state, more);
      },
      emit: (/** @type {string} */ name, /** @type {any} */ detail) => this.#event(name, detail),
      late: (/** @type {string} */ channel) => this.#late(channel),
    };
    const renews_ = () => [...this.#tabs.values()].some((tab) => tab.renews);
    this.#connection = new Connection(owner, { base: new URL(base), token: () => this.#token(), renews: renews_ });
    this.#connection.start();
  }

  /** @param {(body: any) => void} post @param {string} state @param {any} [more] */
  #state(post, state, more) {
    post({ type: "state", instance: this.#connection?.instance ?? "", detail: { state, ...more } });
  }

  /** @param {string} id */
  #leave(id) {
    const tab = this.#tabs.get(id);
    if (!tab) return;
    for (const channel of tab.channels.keys()) this.#unsubscribe(tab, channel);
    this.#tabs.delete(id);
    if (this.#tabs.size > 0) return;
    this.#connection?.close();
    this.#connection = undefined;
    this.#channels.clear();
  }

  /** @param {string} name @param {any} detail */
  #event(name, detail) {
    const shared = this.#channels.get(detail.channel);
    const { epoch, offset } = detail;
    if (name === "message" && shared && offset !== undefined) shared.position = { epoch, offset };
    if (name === "unsubscribed") this.#channels.delete(detail.channel);
    for (const { post, channels } of this.#tabs.values()) {
      const held = channels.get(detail.channel);
      if (held?.later) held.later.push([name, detail]);
      else if (held) post({ type: "event", name, detail });
      if (name === "unsubscribed") channels.delete(detail.channel);
    }
  }

  /** A channel can't be joined for now: the tabs do not wait for it. @param {string} name */
  #late(name) {
    Object.assign(this.#channels.get(name) ?? {}, { isLate: true });
    for (const { post, channels } of this.#tabs.values()) if (channels.has(name)) post({ type: "late", channel: name });
  }

  /** Answers once the tab has what came before, so that it knows whether to ask again. @param {any} tab @param {any} message */
  async #subscribe(tab, { call, channel, last, position }) {
    /** @type {any} */
    const held = { later: [] };
    tab.channels.set(channel, held);
    let shared = this.#channels.get(channel);
    const isFirst = !shared;
    if (!shared) {
      const ready = /** @type {Connection} */ (this.#connection).subscribe(channel, { last, since: position, joinLeave: true });
      this.#channels.set(channel, (shared = { ready }));
    }
    if (shared.isLate) tab.post({ type: "late", channel });
    const isHeld = () => tab.channels.get(channel) === held;
    try {
      const { epoch, offset, keyed } = await shared.ready;
      shared.keyed = keyed;
      if (epoch) shared.position ??= { epoch, offset };
    } catch (error) {
      if (this.#channels.get(channel) === shared) this.#channels.delete(channel);
      if (isHeld()) tab.channels.delete(channel);
      return tab.post({ type: "answer", call, error: plain(error) });
    }
    const tell = (/** @type {string} */ name, /** @type {any} */ detail) => tab.post({ type: "event", name, detail });
    const isLate = () => tab.post({ type: "late", channel });
    if (!isFirst) await this.#catchUp(channel, shared, { last, position }, { isHeld, tell, isLate });
    if (!isHeld()) return;
    for (const [name, detail] of held.later) tell(name, detail);
    held.later = undefined;
    tab.post({ type: "answer", call, result: shared.position });
  }

  /**
   * Tells a tab what it has to know before the messages that come from now on, which are held back meanwhile.
   * @param {string} channel @param {any} shared @param {{last?: number, position?: Place}} from
   * @param {{isHeld: () => boolean, tell: (name: string, detail: any) => void, isLate: () => void}} tab
   */
  async #catchUp(channel, shared, { last, position }, { isHeld, tell, isLate }) {
    const { position: now, keyed } = shared;
    if (!now || (position && position.epoch === now.epoch && position.offset >= now.offset)) return;
    const from = (/** @type {number} */ offset) => ({ epoch: now.epoch, offset: Math.max(0, offset) });
    // All that ever happened to the keys is how they stand.
    const all = keyed ? from(0) : undefined;
    /** @type {Place | undefined} */
    let since = position ?? all ?? (last ? from(now.offset - last) : undefined);
    if (!since) return;
    const missed = (/** @type {[string, string]} */ [reason, message]) => tell("gap", { channel, reason, message });
    let isToldOfGap = !position;
    while (isHeld()) {
      /** @type {{status: number, page?: any}} */
      const answer = await this.#history(channel, since).catch(() => ({ status: 0 }));
      const { status, page } = answer;
      if (page) {
        const { messages, epoch, offset } = page;
        for (const each of messages) tell("message", message(channel, each, epoch, offset));
        const end = messages.at(-1)?.offset ?? offset;
        if (end >= offset) return;
        since = { epoch, offset: end };
      } else if (status === 410) {
        if (!isToldOfGap) missed(since?.epoch === now.epoch ? TRIMMED : CHANGED);
        isToldOfGap = true;
        since = since === all ? undefined : all; // from the oldest on
      } else if (status === 0 || status === 429 || status >= 500) {
        isLate();
        await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
      } else {
        return missed(NO_HISTORY);
      }
    }
  }

  /**
   * A page of the history, by HTTP: an event stream takes no commands.
   * @param {string} channel @param {Place | undefined} since  else from the oldest message on
   * @returns {Promise<{status: number, page?: any}>}
   */
  async #history(channel, since) {
    const token = await this.#token();
    const url = new URL(`channels/${encodeURIComponent(channel)}/messages?limit=1000`, this.#base);
    if (since) url.searchParams.set("since", `${since.epoch}:${since.offset}`);
    const headers = token ? { Authorization: `Bearer ${token}` } : undefined;
    const answer = await fetch(url, { headers, signal: AbortSignal.timeout(PATIENCE_MS) });
    return { status: answer.status, page: answer.ok ? await answer.json() : void answer.body?.cancel() };
  }

  /** @param {any} tab @param {string} channel */
  #unsubscribe(tab, channel) {
    tab.channels.delete(channel);
    if (!this.#channels.has(channel) || [...this.#tabs.values()].some(({ channels }) => channels.has(channel))) return;
    this.#channels.delete(channel);
    this.#connection?.unsubscribe(channel);
  }

  /** Publishes, or asks, for a tab. @param {any} tab @param {any} message */
  async #pass({ post }, { type, call, method, request, publication }) {
    try {
      const connection = /** @type {Connection} */ (this.#connection);
      const result = await (type === "ask" ? connection.ask(method, request) : connection.publish(publication));
      post({ type: "answer", call, result });
    } catch (error) {
      post({ type: "answer", call, error: plain(error) });
    }
  }

  /** Asks the tabs for a token, and takes the first that comes. */
  #token() {
    const tabs = [...this.#tabs.values()].filter(({ hasToken }) => hasToken);
    if (tabs.length === 0) return undefined;
    const asking = tabs.map(({ post }) => {
      const ask = ++this.#lastAsk;
      post({ type: "token", ask });
      const answer = new Promise((resolve, reject) => this.#asked.set(ask, { resolve, reject }));
      // A tab that has gone, or sleeps, says nothing.
      return inTime(answer).finally(() => this.#asked.delete(ask));
    });
    return Promise.any(asking).catch(({ errors }) => Promise.reject(errors[0]));
  }

  /** @param {any} body */
  #told({ ask, token, error }) {
    const { resolve, reject } = this.#asked.get(ask) ?? {};
    if (error) reject?.(error);
    else resolve?.(token);
  }
}
