/**
 * Publishing with a `POST`, again and again until the server has answered: each attempt has the same Idempotency-Key.
 * Works without a connection, and knows none.
 */

/** How long an attempt may take: of this, and of a connection. */
export const PATIENCE_MS = 10_000;
/** Full jitter: a random wait between 0 and BASE · 2^attempt, the latter at most CAP. */
const BACKOFF_BASE_MS = 500;
const BACKOFF_CAP_MS = 15_000;
const RETRIES = 3;

export const JSON_TYPE = "application/json";

/** A publish that the server refused, or that did not get through. `code` and `status` are the server's. */
export class PublishError extends Error {
  /** @param {string} message @param {{code?: string, status?: number, cause?: unknown}} more */
  constructor(message, { code = "unreachable", status = 0, cause } = {}) {
    super(message, { cause });
    this.name = "PublishError";
    this.code = code;
    this.status = status;
  }

  /** Whether the same may well succeed a little later. */
  get temporary() {
    return this.status === 0 || (this.status >= 502 && this.status <= 504);
  }
}

/**
 * @param {string} url @param {[string, BodyInit]} content  as {@link encode} returns it
 * @param {string} idempotencyKey @param {() => Promise<string | undefined>} freshToken
 * @returns {Promise<any>} the position of the message
 * @throws {PublishError}
 */
export async function post(url, [type, body], idempotencyKey, freshToken) {
  /** @type {Record<string, string>} */
  const headers = { "Content-Type": type, "Idempotency-Key": idempotencyKey };
  for (let attempt = 0; ; attempt++) {
    let failure, retryAfterMs;
    try {
      const token = await freshToken();
      if (token) headers.Authorization = `Bearer ${token}`;
      const signal = AbortSignal.timeout(PATIENCE_MS);
      const answer = await fetch(url, { method: "POST", headers, body, signal });
      if (answer.ok) return (await answer.json()).messages[0];
      const { error } = await answer.json().catch(() => ({}));
      const message = error?.message ?? `the server answered ${answer.status}`;
      failure = new PublishError(message, { code: error?.code, status: answer.status });
      retryAfterMs = Number(answer.headers.get("Retry-After")) * 1000;
    } catch (/** @type {any} */ cause) {
      failure = new PublishError(`livebridge could not be reached: ${cause.message}`, { cause });
    }
    if (!failure.temporary || attempt === RETRIES) throw failure;
    const waitMs = Math.min(BACKOFF_CAP_MS, Math.max(retryAfterMs || 0, backoff(attempt)));
    await new Promise((resolve) => setTimeout(resolve, waitMs));
  }
}

/** @returns {[string, BodyInit]} content type and body */
export function encode(/** @type {any} */ data) {
  if (typeof data === "string") return ["text/plain; charset=utf-8", data];
  const binary = data instanceof Blob || data instanceof ArrayBuffer || ArrayBuffer.isView(data);
  return binary ? ["application/octet-stream", /** @type {BodyInit} */ (data)] : [JSON_TYPE, JSON.stringify(data)];
}

/** How long to wait before one more attempt. @param {number} attempt */
export function backoff(attempt) {
  return Math.random() * Math.min(BACKOFF_CAP_MS, BACKOFF_BASE_MS * 2 ** attempt);
}
