/** The event stream that stands in for a WebSocket: one that can't change its channels, and takes no commands. */
import { RESTARTING, TOKEN_EXPIRED } from "./livebridge-connection.js";

/** The last event of a stream → the close code that says the same on a WebSocket. */
const FAREWELLS = { restarting: RESTARTING, token_expired: TOKEN_EXPIRED, refused: 0 };

export class EventStream {
  /**
   * @param {string} url
   * @param {Record<"welcome" | "gap" | "message", (object: any) => void> & {end: (code: number, reason: string) => void}} handlers
   */
  constructor(url, handlers) {
    const source = (this.#source = new EventSource(url));
    source.onmessage = ({ data }) => {
      const object = JSON.parse(data);
      const kind = /** @type {"welcome" | "gap" | undefined} */ (object.event);
      handlers[kind ?? "message"]?.(object);
    };
    // It would come back by itself, but to the same place and with the same token.
    source.onerror = () => handlers.end(0, "the event stream ended");
    for (const [name, code] of Object.entries(FAREWELLS)) {
      source.addEventListener(`livebridge:${name}`, ({ data }) => {
        const farewell = JSON.parse(data);
        handlers.end(code, farewell.message ?? farewell);
      });
    }
  }

  #source;

  close() {
    this.#source.onerror = null;
    this.#source.close();
  }
}
