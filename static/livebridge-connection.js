/**
 * The connection of a page: when to connect and where to go on, over a WebSocket or, where that is blocked, an event
 * stream. Knows channels and positions, but not who asks for them: a feed (livebridge.js), or the tabs that share it
 * (livebridge-shared.js).
 */
import { CHANGED, NO_HISTORY, TRIMMED, message, person } from "./livebridge-message.js";
import { JSON_TYPE, PATIENCE_MS, backoff, encode, post } from "./livebridge-publish.js";
import { CommandError, CommandSocket } from "./livebridge-socket.js";

/** The clients of an instance that restarts come back spread over this time, not all at once. */
const RESTART_SPREAD_MS = 2_000;
/** A connection that lived for less counts as one more failed attempt. */
const STABLE_AFTER_MS = 5_000;
/** Longer messages are posted: the server closes a socket that sends more than its limit. */
const SOCKET_MESSAGE_LENGTH = 16_384;
const LONGEST_TIMER_MS = 2 ** 31 - 1;

/** Close codes; the table with their reasons is in docs/centrifuge.md. */
const ABNORMAL = 1006;
export const RESTARTING = 3001;
export const TOKEN_EXPIRED = 3005;
const UNAUTHORIZED = 3500;
const NOT_CONNECTED = 3502;
/** The code of an error that says the same of a token. */
const ERROR_TOKEN_EXPIRED = 109;

/**
 * @typedef {{epoch: string, offset: number}} Place  where a message stands in its channel
 * @typedef {{last?: number, since?: Place, joinLeave?: boolean, initial?: boolean}} ChannelOptions
 * @typedef {{
 *   enter: (state: string, instance: string, more?: object) => void,
 *   emit: (name: string, detail: any) => void,
 *   late?: (channel: string) => void,
 * }} Owner  `late`: a channel can't be joined for now.
 * @typedef {{channel: string, data: any, key?: string, remove: boolean, idempotencyKey: string}} Publication
 */

/** What is known of a channel. */
class Channel {
  /** @param {string} name @param {ChannelOptions} options */
  constructor(name, { last, since, joinLeave, initial = false }) {
    this.name = name;
    this.last = last;
    this.joinLeave = joinLeave;
    /** Named when the feed was opened, so that the feed ends where this is refused. */
    this.initial = initial;
    /** Where the next connection goes on. @type {Place | undefined} */
    this.position = since;
    /** The newest offset at the time of joining. @type {number | undefined} */
    this.head = undefined;
    /** Whether it was joined since the last (re)join: then what is no resume leaves a gap. */
    this.joined = false;
    /** Whether this connection has joined it. */
    this.live = false;
    /** How often this connection has tried to join it in vain. */
    this.attempt = 0;
    /** @type {any} */
    this.timer = undefined;
    /** Who waits for it. @type {{resolve: Function, reject: Function}[]} */
    this.waiting = [];
  }
}

export class Connection {
  state = "connecting";
  /** The name of the instance that it is, or was last, connected to. */
  instance = "";

  /** @param {Owner} owner @param {{base: URL, token?: string | (() => any), renews?: () => boolean}} options */
  constructor(owner, { base, token, renews = () => typeof token === "function" }) {
    this.#owner = owner;
    this.#base = base;
    this.#token = token;
    this.#renews = renews;
    for (const [name, listener] of this.#listeners) globalThis.addEventListener?.(name, listener);
  }

  /** @returns {Promise<{epoch?: string, offset?: number, keyed: boolean}>} where it begins, once what came before is told */
  subscribe(/** @type {string} */ name, /** @type {ChannelOptions} */ options = {}) {
    let channel = this.#channels.get(name);
    const isNew = !channel;
    if (!channel) this.#channels.set(name, (channel = new Channel(name, options)));
    const { live, waiting } = channel;
    if (live) return Promise.resolve(told(channel));
    const joined = new Promise((resolve, reject) => waiting.push({ resolve, reject }));
    if (isNew && this.#isConnected) this.#join(channel);
    else if (isNew && this.#stream) this.#open();
    return joined;
  }

  unsubscribe(/** @type {string} */ name) {
    const channel = this.#channels.get(name);
    if (!channel) return;
    this.#forget(channel, new CommandError({ message: `${name} was unsubscribed` }));
    if (this.#isConnected) this.#socket?.call("unsubscribe", { channel: name }, () => {});
    else if (this.#stream) this.#open();
    this.#settle();
  }

  /** Sends a command of the protocol. @returns {Promise<any>} its result */
  ask(/** @type {string} */ method, /** @type {object} */ request) {
    return new Promise((resolve, reject) => {
      /** @type {import("./livebridge-socket.js").Done} */
      const done = (error, result) => (error ? reject(error) : resolve(result));
      if (this.#isConnected) this.#socket?.call(method, request, done);
      else if (this.#stream) done(new CommandError({ code: 108, message: "an event stream takes no commands" }));
      else done(new CommandError({ message: "there is no connection" }));
    });
  }

  /**
   * Publishes over the socket what that can take. All else, and what failed there, is posted: that is safe with the
   * same key, works while disconnected, and says in full why a message is refused.
   * @param {Publication} publication
   */
  async publish({ channel, data, key, remove, idempotencyKey }) {
    const content = encode(data ?? (remove ? "" : null));
    const [type, body] = content;
    const isPosted = type !== JSON_TYPE || /** @type {string} */ (body).length > SOCKET_MESSAGE_LENGTH;
    if (this.#isConnected && !isPosted) {
      const request = { channel, data: data ?? null, key, removed: remove || undefined, idempotency_key: idempotencyKey };
      const position = await inTime(this.ask("publish", request)).catch(() => null);
      if (position) return { channel, ...position };
    }
    const pairs = [["channel", channel], ...(key === undefined ? [] : [["key", key]]), ...(remove ? [["remove", "true"]] : [])];
    return post(this.#address("publish", pairs), content, idempotencyKey, () => this.#freshToken());
  }

  start() {
    queueMicrotask(() => this.state === "connecting" && this.#open());
  }

  /** Forgets how far the channels were read, and joins them anew. */
  rejoin() {
    if (this.state === "closed") return;
    for (const channel of this.#channels.values()) Object.assign(channel, { position: undefined, joined: false });
    this.#open();
  }

  /** Comes back at once where it waits, and finds out whether the server is still there. */
  wake() {
    this.#socket?.check();
    if (this.state !== "waiting") return;
    this.#attempt = 0;
    this.#open();
  }

  /** Ends for good. */
  close() {
    this.#end("closed by the page");
  }

  #owner;
  #base;
  #token;
  #renews;
  /** Counts the attempts to connect, and their ends: a token that comes too late is for none of them. */
  #turn = 0;
  /** @type {Map<string, Channel>} */
  #channels = new Map();
  /** @type {CommandSocket | null} */
  #socket = null;
  /** Whether the server has let the socket in, so that it takes commands. */
  #isConnected = false;
  /** @type {{close: () => void} | null} */
  #stream = null;
  /** Whether the next attempt is an event stream. */
  #overEvents = false;
  #openedAt = 0;
  #attempt = 0;
  /** Runs out while connecting (not all is joined) and while waiting (the next attempt is due). @type {any} */
  #timer;
  /** The token is renewed. @type {any} */
  #refreshTimer;
  /** Tells what came before all channels were joined, right after that. @type {(() => void)[]} */
  #early = [];

  /** @type {[string, () => void][]} */
  #listeners = [
    ["offline", () => (this.#socket || this.#stream) && this.#lost(0, "the browser is offline")],
    ["online", () => ((this.#overEvents = false), this.wake())],
    // It bubbles up to the window, and does not exist in a worker.
    ["visibilitychange", () => globalThis.document?.visibilityState === "visible" && this.wake()],
  ];

  async #open() {
    this.#drop();
    const turn = ++this.#turn;
    const url = this.#address("connection/websocket", []);
    this.#timer = setTimeout(() => this.#lost(0, `no welcome within ${PATIENCE_MS / 1000} s`, url), PATIENCE_MS);
    this.#enter("connecting");
    let token;
    try {
      token = await this.#freshToken();
      if (turn !== this.#turn) return; // closed, lost or opened anew meanwhile
      if (this.#overEvents && this.#channels.size > 0) return await this.#openStream(token, turn);
    } catch (/** @type {any} */ error) {
      if (turn === this.#turn) this.#lost(0, `no token: ${error.message}`);
      return;
    }
    try {
      const socket = (this.#socket = new CommandSocket(url, {
        open: () => {
          socket.call("connect", token ? { token } : {}, (error, result) => this.#answered(error, result));
          for (const channel of this.#channels.values()) this.#join(channel);
        },
        push: (push) => this.#pushed(push),
        end: (code, reason) => this.#lost(code, reason, url),
      }));
    } catch (/** @type {any} */ error) {
      this.#end(error.message); // a URL that the browser refuses, such as ws: from an https: page
    }
  }

  async #freshToken() {
    return typeof this.#token === "function" ? this.#token() : this.#token;
  }

  // Over a WebSocket

  /** @param {CommandError | undefined} error @param {any} result  of `connect` */
  #answered(error, result) {
    if (!error) {
      this.instance = result.node ?? "";
      this.#isConnected = true;
      this.#socket?.watch(result.ping ?? 0);
      this.#refreshAfter(result);
      this.#settle();
    } else if (error.code === ERROR_TOKEN_EXPIRED) {
      this.#lost(TOKEN_EXPIRED, error.message);
    } else if (error.code !== 0) {
      if (error.temporary || this.#renews()) this.#lost(0, error.message);
      else this.#end(error.message);
    }
  }

  /** @param {{expires?: boolean, ttl?: number}} result */
  #refreshAfter({ expires, ttl = 0 }) {
    clearTimeout(this.#refreshTimer);
    if (!expires || !this.#renews()) return;
    this.#refreshTimer = setTimeout(() => this.#refresh(), Math.min(ttl * 1000, LONGEST_TIMER_MS));
  }

  /** Without a new token the server closes the connection, and the next attempt asks for one again. */
  async #refresh() {
    const socket = this.#socket;
    const again = () => this.#refreshAfter({ expires: true, ttl: 1 + Math.random() });
    const token = await this.#freshToken().catch(() => null);
    if (!socket || socket !== this.#socket) return;
    if (!token) return again();
    socket.call("refresh", { token }, (error, result) => {
      if (socket === this.#socket) error ? again() : this.#refreshAfter(result);
    });
  }

  /** @param {Channel} channel */
  #join(channel) {
    clearTimeout(channel.timer);
    const { name, position, joined, last, joinLeave } = channel;
    // What is no longer all there is told from the oldest message on.
    const start = position || joined ? "oldest" : last;
    const request = { channel: name, ...(position && { recover: true, ...position }), join_leave: joinLeave, data: { livebridge: { describe: true, start } } };
    this.#socket?.call("subscribe", request, (error, result) => {
      if (channel !== this.#channels.get(name)) return;
      if (error) this.#notJoined(channel, error);
      else this.#joined(channel, result);
    });
  }

  /** @param {Channel} channel @param {any} result */
  #joined(channel, result) {
    const { position: before, joined } = channel;
    const { recoverable, epoch, offset = 0, recovered, data, publications = [] } = result;
    channel.position = recoverable ? { epoch, offset } : undefined;
    if ((joined || before) && !recovered) this.#gap(channel, before && (before.epoch === epoch ? TRIMMED : CHANGED));
    Object.assign(channel, { head: data?.head, keyed: data?.keyed, attempt: 0 });
    for (const publication of publications) this.#message(channel, publication);
    this.#isLive(channel);
    this.#settle();
  }

  /** @param {Channel} channel @param {CommandError} error */
  #notJoined(channel, error) {
    if (error.code === 0) return; // the connection was lost
    if (error.temporary || error.code === ERROR_TOKEN_EXPIRED) {
      channel.timer = setTimeout(() => this.#join(channel), backoff(channel.attempt++));
      this.#owner.late?.(channel.name);
      this.#settle();
    } else {
      this.#refused(channel, error);
    }
  }

  /** @param {Channel} channel @param {CommandError} error */
  #refused(channel, error) {
    if (channel.initial) return this.#end(error.message);
    const { name, joined } = channel;
    this.#forget(channel, error);
    if (joined) this.#emit("unsubscribed", { channel: name, code: error.code, reason: error.message });
    this.#settle();
  }

  /** @param {any} push */
  #pushed({ channel: name, pub, join, leave, unsubscribe }) {
    const channel = this.#channels.get(name);
    // What comes before the answer is of an earlier subscription.
    if (!channel?.live) return;
    if (pub) this.#message(channel, pub);
    else if (join) this.#emit("join", { channel: name, ...person(join.info) });
    else if (leave) this.#emit("leave", { channel: name, ...person(leave.info) });
    else if (unsubscribe) {
      const { code, reason } = unsubscribe;
      channel.live = false;
      if (code < 2500) this.#refused(channel, new CommandError({ code, message: reason }));
      else channel.timer = setTimeout(() => this.#join(channel), backoff(channel.attempt++));
    }
  }

  // Over Server-Sent Events

  /** @param {string | undefined} token @param {number} turn */
  async #openStream(token, turn) {
    const { EventStream } = await import("./livebridge-events.js");
    if (turn !== this.#turn) return;
    const channels = [...this.#channels.values()];
    const pairs = [["format", "json"], ...channels.map(({ name }) => ["channel", name])];
    const last = channels.find((channel) => channel.last !== undefined && !channel.position)?.last;
    if (channels.some(({ position }) => position)) {
      pairs.push(["since", channels.map(({ position }) => (position ? `${position.epoch}:${position.offset}` : "")).join()]);
    }
    if (last !== undefined) pairs.push(["last", String(last)]);
    if (token) pairs.push(["token", token]); // an event stream of a browser has no headers of its own
    const url = this.#address("events", pairs);
    this.#stream = new EventStream(url, {
      welcome: (welcome) => this.#welcomed(welcome),
      gap: ({ channel: name, epoch, offset, reason, message }) => {
        const channel = this.#channels.get(name);
        if (!channel) return;
        Object.assign(channel, { position: epoch && { epoch, offset }, head: undefined });
        this.#emit("gap", { channel: name, reason, message });
      },
      message: (envelope) => {
        const channel = this.#channels.get(envelope.channel);
        if (channel) this.#message(channel, envelope);
      },
      end: (code, reason) => this.#lost(code, reason, url),
    });
  }

  /** @param {{instance: string, channels: any[]}} welcome */
  #welcomed({ instance, channels }) {
    this.instance = instance;
    for (const { channel: name, epoch, offset, head, keyed } of channels) {
      const channel = this.#channels.get(name);
      if (!channel) continue;
      if (channel.joined && !channel.position) this.#gap(channel);
      Object.assign(channel, { position: epoch && { epoch, offset }, head, keyed });
      this.#isLive(channel);
    }
    this.#settle();
  }

  // Over either

  /** @param {Channel} channel @param {any} publication */
  #message(channel, publication) {
    const { epoch = channel.position?.epoch, offset } = publication;
    if (offset !== undefined) {
      if (epoch !== channel.position?.epoch) channel.head = undefined;
      channel.position = { epoch, offset };
    }
    this.#emit("message", message(channel.name, publication, epoch, channel.head));
  }

  /** @param {Channel} channel @param {[string, string]} [reason] */
  #gap({ name }, [reason, message] = NO_HISTORY) {
    this.#emit("gap", { channel: name, reason, message });
  }

  /** @param {Channel} channel */
  #isLive(channel) {
    Object.assign(channel, { live: true, joined: true });
    const place = told(channel);
    for (const { resolve } of channel.waiting.splice(0)) this.#inTurn(() => resolve(place));
  }

  /** @param {Channel} channel @param {CommandError} error */
  #forget(channel, error) {
    clearTimeout(channel.timer);
    this.#channels.delete(channel.name);
    for (const { reject } of channel.waiting.splice(0)) reject(error);
  }

  /** The connection is open once all that it began with is joined. What has to be tried again does not hold up the rest. */
  #settle() {
    if (this.state !== "connecting" || !(this.#isConnected || this.#stream)) return;
    if ([...this.#channels.values()].some(({ live, attempt }) => !live && !attempt)) return;
    clearTimeout(this.#timer);
    this.#openedAt = Date.now();
    this.#enter("open");
  }

  /** @param {number} code @param {string} reason @param {string} [url] */
  #lost(code, reason, url) {
    const wasOpen = this.state === "open";
    this.#drop();
    // The same again would end the same way. Not so a message that is too big: it is posted, and refused there.
    const isFinal = code >= UNAUTHORIZED && code < 4000 && code !== NOT_CONNECTED;
    const isToken = code === TOKEN_EXPIRED || code === UNAUTHORIZED;
    if (isToken ? !this.#renews() : isFinal) return this.#end(reason || `the server closed with code ${code}`);
    if (wasOpen && Date.now() - this.#openedAt > STABLE_AFTER_MS) this.#attempt = 0;
    // A token that was not even let in may be the one that is handed out again and again.
    const soon = code === RESTARTING || (code === TOKEN_EXPIRED && wasOpen);
    const retryInMs = Math.round(soon ? Math.random() * RESTART_SPREAD_MS : backoff(this.#attempt++));
    this.#timer = setTimeout(() => this.#open(), retryInMs);
    this.#enter("waiting", { retryInMs, reason: reason || "the connection was lost" });
    if (url && !wasOpen && (code === 0 || code === ABNORMAL)) this.#askWhy(url);
  }

  /**
   * A browser hides why a handshake failed; the same request without the upgrade tells. If there is any answer, it is
   * the WebSocket that does not get through, or the event stream: the next attempt is the other.
   * @param {string} url
   */
  async #askWhy(url) {
    const overEvents = !this.#overEvents;
    const signal = AbortSignal.timeout(PATIENCE_MS);
    const answer = await fetch(url, { signal }).catch(() => fetch(url, { signal, mode: "no-cors" })).catch(() => null);
    if (!answer || this.state === "open" || this.state === "closed") return void answer?.body?.cancel();
    // A function may have a better token the next time.
    const isFinal = (this.#renews() ? [400, 403] : [400, 401, 403]).includes(answer.status);
    const { error } = isFinal ? await answer.json().catch(() => ({})) : (answer.body?.cancel(), {});
    const refused = error && [...this.#channels.values()].filter(({ initial, joined }) => !initial && !joined);
    // A stream is refused as a whole: the channels that were added last are the reason, if there are any.
    if (refused?.length) for (const channel of refused) this.#forget(channel, new CommandError({ ...error, code: 103 }));
    else if (error) this.#end(error.message);
    else this.#overEvents = overEvents;
  }

  #drop() {
    clearTimeout(this.#timer);
    clearTimeout(this.#refreshTimer);
    this.#turn++;
    const transports = [this.#socket, this.#stream];
    this.#socket = this.#stream = null;
    this.#isConnected = false;
    for (const channel of this.#channels.values()) {
      clearTimeout(channel.timer);
      Object.assign(channel, { live: false, attempt: 0 });
    }
    for (const transport of transports) transport?.close();
  }

  /** @param {string} reason */
  #end(reason) {
    if (this.state === "closed") return;
    this.#drop();
    for (const [name, listener] of this.#listeners) globalThis.removeEventListener?.(name, listener);
    for (const channel of [...this.#channels.values()]) this.#forget(channel, new CommandError({ message: reason }));
    this.#enter("closed", { reason });
  }

  /** @param {string} path @param {string[][]} pairs */
  #address(path, pairs) {
    const query = pairs.map(([name, value]) => `${name}=${encodeURIComponent(value)}`).join("&");
    return new URL(query ? `${path}?${query}` : path, this.#base).href;
  }

  /** @param {string} state @param {object} [more] */
  #enter(state, more) {
    this.state = state;
    this.#owner.enter(state, this.instance, more);
    for (const tell of this.#early.splice(0)) tell();
  }

  /** @param {string} name @param {any} detail */
  #emit(name, detail) {
    this.#inTurn(() => this.#owner.emit(name, detail));
  }

  /** @param {() => void} tell */
  #inTurn(tell) {
    if (this.state === "connecting") this.#early.push(tell);
    else tell();
  }
}

/** @param {any} channel */
function told({ position, keyed = false }) {
  return { ...position, keyed };
}

/** @param {Promise<any>} answer @returns {Promise<any>} the same, or an error where it does not come */
export function inTime(answer) {
  return new Promise((resolve, reject) => {
    const late = new CommandError({ message: `no answer within ${PATIENCE_MS / 1000} s` });
    const timer = setTimeout(() => reject(late), PATIENCE_MS);
    answer.then(resolve, reject).finally(() => clearTimeout(timer));
  });
}
