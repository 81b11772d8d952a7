/**
 * One WebSocket that speaks commands and replies: the client protocol of Centrifuge, version 2, as JSON
 * (docs/centrifuge.md). Knows frames, ids, pings and silence; knows neither channels nor when to come back.
 */
/** Why a command was not carried out. `code` is the server's number (docs/centrifuge.md), 0 if it was not reached. */
export declare class CommandError extends Error {
    code: number;
    /** Whether the same may well succeed a little later. */
    temporary: boolean;
    /** @param {{code?: number, message: string, temporary?: boolean}} error */
    constructor({ code, message, temporary }: {
        code?: number;
        message: string;
        temporary?: boolean;
    });
}
export type Done = (error: CommandError | undefined, result?: any) => void;
/** @typedef {(error: CommandError | undefined, result?: any) => void} Done */
export declare class CommandSocket {
    #private;
    /**
     * @param {string} url
     * @param {{open: () => void, push: (push: any) => void, end: (code: number, reason: string) => void}} handlers
     */
    constructor(url: string, handlers: {
        open: () => void;
        push: (push: any) => void;
        end: (code: number, reason: string) => void;
    });
    /** Sends a command. `done` runs with the frame that answers it, before what follows there. @param {Done} done */
    call(/** @type {string} */ method: string, /** @type {object} */ request: object, done: Done): void;
    /** From now on, the server is gone if it is silent for longer than its pings are apart. */
    watch(/** @type {number} */ pingSeconds: number): void;
    /** Whether the server is still heard; the timers of a page that slept come late. */
    check(): void;
    close(): void;
}
