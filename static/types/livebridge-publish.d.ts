/**
 * Publishing with a `POST`, again and again until the server has answered: each attempt has the same Idempotency-Key.
 * Works without a connection, and knows none.
 */
/** How long an attempt may take: of this, and of a connection. */
export declare const PATIENCE_MS = 10000;
export declare const JSON_TYPE = "application/json";
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
/**
 * @param {string} url @param {[string, BodyInit]} content  as {@link encode} returns it
 * @param {string} idempotencyKey @param {() => Promise<string | undefined>} freshToken
 * @returns {Promise<any>} the position of the message
 * @throws {PublishError}
 */
export declare function post(url: string, [type, body]: [string, BodyInit], idempotencyKey: string, freshToken: () => Promise<string | undefined>): Promise<any>;
/** @returns {[string, BodyInit]} content type and body */
export declare function encode(/** @type {any} */ data: any): [string, BodyInit];
/** How long to wait before one more attempt. @param {number} attempt */
export declare function backoff(attempt: number): number;
