/**
 * One WebSocket that speaks commands and replies: the client protocol of Centrifuge, version 2, as JSON
 * (docs/centrifuge.md). Knows frames, ids, pings and silence; knows neither channels nor when to come back.
 */

/** Commands of one moment share a frame, up to this size: every server takes as much. */
const FRAME_LENGTH = 2_048;
/** The server may be late with a ping by as much. */
const PING_DELAY_MS = 10_000;

/** Why a command was not carried out. `code` is the server's number (docs/centrifuge.md), 0 if it was not reached. */
export class CommandError extends Error {
  /** @param {{code?: number, message: string, temporary?: boolean}} error */
  constructor({ code = 0, message, temporary = code === 0 }) {
    super(message);
    this.name = "CommandError";
    this.code = code;
    /** Whether the same may well succeed a little later. */
    this.temporary = temporary;
  }
}

/** @typedef {(error: CommandError | undefined, result?: any) => void} Done */

export class CommandSocket {
  /**
   * @param {string} url
   * @param {{open: () => void, push: (push: any) => void, end: (code: number, reason: string) => void}} handlers
   */
  constructor(url, handlers) {
    this.#handlers = handlers;
    const socket = (this.#socket = new WebSocket(url.replace(/^http/, "ws")));
    socket.onopen = () => this.#socket && handlers.open();
    socket.onmessage = ({ data }) => this.#receive(data);
    socket.onclose = ({ code, reason }) => this.#socket && handlers.end(code, reason);
  }

  #handlers;
  /** `null` once it is closed: a closed socket may still speak, and is no longer heard. */
  /** @type {WebSocket | null} */
  #socket;
  #lastId = 0;
  /** @type {Map<number, Done>} */
  #calls = new Map();
  /** @type {string[]} */
  #lines = [];
  #heardAt = 0;
  #quietMs = 0;
  /** @type {any} */
  #timer;

  /** Sends a command. `done` runs with the frame that answers it, before what follows there. @param {Done} done */
  call(/** @type {string} */ method, /** @type {object} */ request, done) {
    const id = ++this.#lastId;
    this.#calls.set(id, done);
    this.#send(JSON.stringify({ id, [method]: request }));
  }

  /** From now on, the server is gone if it is silent for longer than its pings are apart. */
  watch(/** @type {number} */ pingSeconds) {
    this.#quietMs = pingSeconds * 1000 + PING_DELAY_MS;
    this.check();
  }

  /** Whether the server is still heard; the timers of a page that slept come late. */
  check() {
    clearTimeout(this.#timer);
    if (!this.#socket || !this.#quietMs) return;
    const leftMs = this.#heardAt + this.#quietMs - Date.now();
    if (leftMs <= 0) this.#handlers.end(0, "the server is silent");
    else this.#timer = setTimeout(() => this.check(), leftMs);
  }

  close() {
    clearTimeout(this.#timer);
    const socket = this.#socket;
    this.#socket = null;
    socket?.close();
    const error = new CommandError({ message: "the connection was lost" });
    for (const done of this.#calls.values()) done(error);
    this.#calls.clear();
  }

  /** @param {string} line */
  #send(line) {
    if (this.#lines.push(line) === 1) queueMicrotask(() => this.#flush());
  }

  #flush() {
    let frame = "";
    for (const line of this.#lines.splice(0)) {
      if (frame && frame.length + line.length > FRAME_LENGTH) {
        this.#socket?.send(frame);
        frame = "";
      }
      frame += frame ? `\n${line}` : line;
    }
    this.#socket?.send(frame);
  }

  /** @param {string} frame */
  #receive(frame) {
    this.#heardAt = Date.now();
    for (const line of frame.split("\n")) {
      if (!this.#socket) return;
      if (!line) continue;
      const { id, error, push, ...result } = JSON.parse(line);
      if (push) {
        this.#handlers.push(push);
      } else if (id) {
        const done = this.#calls.get(id);
        this.#calls.delete(id);
        done?.(error && new CommandError(error), Object.values(result)[0]);
      } else {
        this.#send("{}"); // a ping
      }
    }
  }
}
