export type Message = {
    channel: string;
    data: any;
    key?: string;
    removed: boolean;
    past: boolean;
    epoch?: string;
    offset?: number;
};
export type Position = {
    channel: string;
    epoch?: string;
    offset?: number;
};
export type Person = {
    client: string;
    user: string;
    info?: any;
};
export type State = "connecting" | "open" | "waiting" | "closed";
export type Events = {
    message: Message;
    state: {
        state: State;
        instance: string;
        retryInMs?: number;
        reason?: string;
    };
    gap: {
        channel: string;
        reason: string;
        message: string;
    };
    join: Person & {
        channel: string;
    };
    leave: Person & {
        channel: string;
    };
    unsubscribed: {
        channel: string;
        code: number;
        reason: string;
    };
};
export type SubscribeOptions = {
    last?: number;
    joinLeave?: boolean;
};
export type ConnectOptions = SubscribeOptions & {
    channels?: string[];
    url?: string | URL;
    token?: string | (() => string | undefined | Promise<string | undefined>);
    shared?: boolean | string;
};
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
import { CommandError } from "./livebridge-socket.js";
export { CommandError, PublishError };
/** Opens a feed. It connects at once, after the caller had the chance to add its listeners. @param {ConnectOptions} options */
export declare function connect(options?: ConnectOptions): Feed;
/** A fresh Idempotency-Key. Not `randomUUID`: that exists in secure contexts only. */
export declare function newIdempotencyKey(): string;
/** Its {@link Events} are `CustomEvent`s whose `detail` is what `on` hands over. */
export declare class Feed extends EventTarget {
    #private;
    /** @type {State} */
    state: State;
    /** The name of the instance that this feed is, or was last, connected to. */
    instance: string;
    /** @param {ConnectOptions} options */
    constructor({ channels, url, token, shared, ...options }?: ConnectOptions);
    /**
     * Calls `listener` with the detail of each event of that name.
     * @template {keyof Events} Name
     * @param {Name} name @param {(detail: Events[Name]) => void} listener
     * @returns {() => void} ends it
     */
    on<Name extends keyof Events>(name: Name, listener: (detail: Events[Name]) => void): () => void;
    /**
     * Subscribes to one more channel, on the same connection.
     * @param {string} channel @param {SubscribeOptions} [options]
     * @returns {Promise<void>} once messages of the channel arrive
     * @throws {CommandError} if the server refuses it; `code` 103: the token does not allow it
     */
    subscribe(channel: string, options?: SubscribeOptions): Promise<void>;
    /** @param {string} channel */
    unsubscribe(channel: string): void;
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
    publish(data: any, { channel, key, remove, idempotencyKey }?: {
        channel?: string;
        key?: string;
        remove?: boolean;
        idempotencyKey?: string;
    }): Promise<Position>;
    /** Who is on a channel. @param {string} channel @returns {Promise<Person[]>} @throws {CommandError} */
    presence(channel: string): Promise<Person[]>;
    /** How many are. @param {string} channel @returns {Promise<{clients: number, users: number}>} @throws {CommandError} */
    presenceStats(channel: string): Promise<{
        clients: number;
        users: number;
    }>;
    /** Forgets how far the channels were read and joins them anew: a keyed channel tells all its values again. */
    rejoin(): void;
    /** Ends the feed for good. */
    close(): void;
}
