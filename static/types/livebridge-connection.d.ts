export declare const RESTARTING = 3001;
export declare const TOKEN_EXPIRED = 3005;
export type Place = {
    epoch: string;
    offset: number;
};
export type ChannelOptions = {
    last?: number;
    since?: Place;
    joinLeave?: boolean;
    initial?: boolean;
};
export type Owner = {
    enter: (state: string, instance: string, more?: object) => void;
    emit: (name: string, detail: any) => void;
};
export type Publication = {
    channel: string;
    data: any;
    key?: string;
    remove: boolean;
    idempotencyKey: string;
};
/**
 * @typedef {{epoch: string, offset: number}} Place  where a message stands in its channel
 * @typedef {{last?: number, since?: Place, joinLeave?: boolean, initial?: boolean}} ChannelOptions
 * @typedef {{enter: (state: string, instance: string, more?: object) => void, emit: (name: string, detail: any) => void}} Owner
 * @typedef {{channel: string, data: any, key?: string, remove: boolean, idempotencyKey: string}} Publication
 */
/** A publish that the server refused, or that did not get through. `code` and `status` are the server's. */
export declare class PublishError extends Error {
    code: string;
    status: number;
    /** @param {string} message @param {{code?: string, status?: number, cause?: unknown}} more */
    constructor(message: string, { code, status, cause }?: {
        code?: string;
        status?: number;
        cause?: unknown;
    });
    /** Whether the same may well succeed a little later. */
    get temporary(): boolean;
}
export declare class Connection {
    #private;
    state: string;
    /** The name of the instance that it is, or was last, connected to. */
    instance: string;
    /** @param {Owner} owner @param {{base: URL, token?: string | (() => any), renews?: () => boolean}} options */
    constructor(owner: Owner, { base, token, renews }: {
        base: URL;
        token?: string | (() => any);
        renews?: () => boolean;
    });
    /** @returns {Promise<{epoch?: string, offset?: number, keyed: boolean}>} where it begins, once it is joined */
    subscribe(/** @type {string} */ name: string, /** @type {ChannelOptions} */ options?: ChannelOptions): Promise<{
        epoch?: string;
        offset?: number;
        keyed: boolean;
    }>;
    unsubscribe(/** @type {string} */ name: string): void;
    /** Sends a command of the protocol. @returns {Promise<any>} its result */
    ask(/** @type {string} */ method: string, /** @type {object} */ request: object): Promise<any>;
    /**
     * Publishes over the socket what that can take. All else, and what failed there, is posted: that is safe with the
     * same key, works while disconnected, and says in full why a message is refused.
     * @param {Publication} publication
     */
    publish({ channel, data, key, remove, idempotencyKey }: Publication): Promise<any>;
    start(): void;
    /** Forgets how far the channels were read, and joins them anew. */
    rejoin(): void;
    /** Comes back at once where it waits, and finds out whether the server is still there. */
    wake(): void;
    /** Ends for good. */
    close(): void;
}
/** Why messages may have been missed. @type {[string, string]} */
export declare const NO_HISTORY: [string, string];
/** @type {[string, string]} */
export declare const TRIMMED: [string, string];
/** @type {[string, string]} */
export declare const CHANGED: [string, string];
/** @param {any} publication @param {string} [epoch] @param {number} [head]  of the protocol, as pages get it */
export declare function message(/** @type {string} */ channel: string, publication: any, epoch?: string, head?: number): {
    channel: string;
    data: any;
    key: any;
    removed: any;
    past: boolean;
    epoch: string | undefined;
    offset: any;
};
/** @param {any} info  of the protocol */
export declare function person({ client, user, conn_info: info }: any): {
    client: any;
    user: any;
    info: any;
};
