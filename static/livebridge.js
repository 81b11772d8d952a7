/**
 * The browser client of livebridge: ES modules, no dependencies.
 *
 *     import { connect } from "/livebridge.js";
 *
 *     const feed = connect({ channels: ["sheet:q3"] });
 *     feed.on("message", ({ key, data }) => show(key, data));
 *     await feed.publish({ value: 42 }, { key: "B4" });
 *     await feed.subscribe("sheet:q4");
 *
 * It keeps one connection open, remembers how far each channel was read and resumes from there after a disconnect, so
 * that nothing is lost or seen twice. Where that can't be had, it says so with a `gap`. What goes over the wire is
 * described in docs/centrifuge.md, who may do what in docs/access.md.
 *
 * @typedef {{channel: string, data: any, key?: string, removed: boolean, past: boolean, epoch?: string, offset?: number}}
 *   Message  `data`: the parsed JSON, a string where the payload is not JSON, a `Uint8Array` where it is not text.
 *   `past`: published before this connection joined, and here because of a resume, `last` or a keyed channel.
 * @typedef {{channel: string, epoch?: string, offset?: number}} Position  No epoch and offset: no history is kept.
 * @typedef {{client: string, user: string, info?: any}} Person  One connection; `user` and `info` are of its token.
 * @typedef {"connecting" | "open" | "waiting" | "closed"} State
 *   "waiting": disconnected, the next attempt follows by itself. "closed": for good, `reason` says why.
 * @typedef {{
 *   message: Message,
 *   state: {state: State, instance: string, retryInMs?: number, reason?: string},
 *   gap: {channel: string, reason: string, message: string},
 *   join: Person & {channel: string},
 *   leave: Person & {channel: string},
 *   unsubscribed: {channel: string, code: number, reason: string},
 * }} Events  `gap`: messages of the channel may have been missed. `unsubscribed`: a new token does not allow it.
 * @typedef {{last?: number, joinLeave?: boolean}} SubscribeOptions
 *   `last`: begin with the last N messages. `joinLeave`: tell who comes and goes, where the channel's rule has it.
 * @typedef {SubscribeOptions & {
 *   channels?: string[],
 *   url?: string | URL,
 *   token?: string | (() => string | undefined | Promise<string | undefined>),
 *   shared?: boolean | string,
 * }} ConnectOptions
 *   `url`: where livebridge is; default: where this module came from, else the page's origin. `token`: shown at every
 *   connect and publish; a function is asked anew whenever one is needed. `shared`: one connection for all tabs of the
 *   origin that say the same here; they share its rights.
 */
import { PublishError } from "./livebridge-publish.js";
import { Connection } from "./livebridge-connection.js";
import { person } from "./livebridge-message.js";
import { CommandError } from "./livebridge-socket.js";

export { CommandError, PublishError };

/** Opens a feed. It connects at once, after the caller had the chance to add its listeners. @param {ConnectOptions} options */
export function connect(options = {}) {
  return new Feed(options);
}

/** A fresh Idempotency-Key. Not `randomUUID`: that exists in secure contexts only. */
export function newIdempotencyKey() {
  return Array.from(crypto.getRandomValues(new Uint32Array(4)), (word) => word.toString(36)).join("");
}

/** Its {@link Events} are `CustomEvent`s whose `detail` is what `on` hands over. */
export class Feed extends EventTarget {
  /** @type {State} */
  state = "connecting";
  /** The name of the instance that this feed is, or was last, connected to. */
  instance = "";

  /** @param {ConnectOptions} options */
  constructor({ channels = [], url, token, shared, ...options } = {}) {
    super();
    if (!Array.isArray(channels)) throw new TypeError("connect needs channels: [name, …]");
    this.#names = new Map(channels.map((name) => [name, undefined]));
    const base = baseUrl(url);
    const owner = {
      enter: (/** @type {any} */ state, /** @type {string} */ instance, /** @type {object | undefined} */ more) => {
        Object.assign(this, { state, instance });
        this.#emit("state", { state, instance, ...more });
      },
      emit: (/** @type {string} */ name, /** @type {any} */ detail) => {
        if (name === "unsubscribed") this.#names.delete(detail.channel);
        this.#emit(name, detail);
      },
    };
    const canShare = shared && globalThis.navigator?.locks && globalThis.BroadcastChannel;
    this.#connection = canShare
      ? import("./livebridge-shared.js").then(({ SharedConnection }) => new SharedConnection(owner, { base, token, shared }))
      : new Connection(owner, { base, token });
    this.#with((connection) => {
      // Where one is refused, the feed ends and says why.
      for (const name of this.#names.keys()) connection.subscribe(name, { ...options, initial: true }).catch(() => {});
      connection.start();
    });
  }

  /**
   * Calls `listener` with the detail of each event of that name.
   * @template {keyof Events} Name
   * @param {Name} name @param {(detail: Events[Name]) => void} listener
   * @returns {() => void} ends it
   */
  on(name, listener) {
    const handle = (/** @type {any} */ event) => listener(event.detail);
    this.addEventListener(name, handle);
    return () => this.removeEventListener(name, handle);
  }

  /**
   * Subscribes to one more channel, on the same connection.
   * @param {string} channel @param {SubscribeOptions} [options]
   * @returns {Promise<void>} once messages of the channel arrive
   * @throws {CommandError} if the server refuses it; `code` 103: the token does not allow it
   */
  async subscribe(channel, options) {
    const call = {};
    this.#names.set(channel, call);
    try {
      await this.#with((connection) => connection.subscribe(channel, options));
    } catch (error) {
      // It may have been unsubscribed, and subscribed again.
      if (this.#names.get(channel) === call) this.#names.delete(channel);
      throw error;
    }
  }

  /** @param {string} channel */
  unsubscribe(channel) {
    this.#names.delete(channel);
    this.#with((connection) => connection.unsubscribe(channel));
  }

  /**
   * Publishes one message. A string, Blob, buffer or typed array goes out as it is, all else as JSON. What may succeed
   * later is retried under the same Idempotency-Key, so the message appears once. The feed may be disconnected.
   *
   * @param {any} data  may be left out with `remove`
   * @param {{channel?: string, key?: string, remove?: boolean, idempotencyKey?: string}} [options]
   *   `channel`: may be left out where the feed has exactly one. `key`: on a keyed channel, the key whose new value this
   *   is. `remove`: removes the key. `idempotencyKey`: to go on with an earlier call that failed.
   * @returns {Promise<Position>} where the message stands now
   * @throws {PublishError}
   */
  async publish(data, { channel, key, remove = false, idempotencyKey = newIdempotencyKey() } = {}) {
    if (channel === undefined && this.#names.size !== 1) throw new TypeError("publish: say to which channel");
    const publication = { channel: channel ?? [...this.#names.keys()][0], data, key, remove, idempotencyKey };
    return this.#with((connection) => connection.publish(publication));
  }

  /** Who is on a channel. @param {string} channel @returns {Promise<Person[]>} @throws {CommandError} */
  async presence(channel) {
    const { presence = {} } = await this.#ask("presence", { channel });
    return Object.values(presence).map(person);
  }

  /** How many are. @param {string} channel @returns {Promise<{clients: number, users: number}>} @throws {CommandError} */
  async presenceStats(channel) {
    const { num_clients: clients = 0, num_users: users = 0 } = await this.#ask("presence_stats", { channel });
    return { clients, users };
  }

  /** Forgets how far the channels were read and joins them anew: a keyed channel tells all its values again. */
  rejoin() {
    this.#with((connection) => connection.rejoin());
  }

  /** Ends the feed for good. */
  close() {
    this.#with((connection) => connection.close());
  }

  /** The channels, in the order in which they came, each with the call that subscribed it. @type {Map<string, object | undefined>} */
  #names;
  /** A promise where the module of shared connections is still being loaded. @type {any} */
  #connection;

  /** @param {(connection: Connection) => any} use */
  #with(use) {
    return this.#connection instanceof Promise ? this.#connection.then(use) : use(this.#connection);
  }

  /** @param {string} method @param {object} request @returns {Promise<any>} */
  async #ask(method, request) {
    return this.#with((connection) => connection.ask(method, request));
  }

  /** @param {string} name @param {any} detail */
  #emit(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }
}

/** The directory that `publish` is in; also right behind a proxy that serves livebridge under a path. @param {string | URL} [url] */
function baseUrl(url) {
  const own = new URL(import.meta.url ?? globalThis.location?.href); // some bundles have no address of their own
  const served = own.protocol.startsWith("http") && own.pathname.endsWith("/livebridge.js");
  const fallback = served ? new URL(".", own) : globalThis.location?.origin;
  const base = new URL(url === undefined ? fallback : String(url).replace(/^ws/, "http"), globalThis.location?.href);
  base.search = base.hash = "";
  if (!base.pathname.endsWith("/")) base.pathname += "/";
  return base;
}
