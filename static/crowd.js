/** Fifty editors that are not there: they set cells of the sheet at random, over the feed of this window. */
import { SEED } from "./plan.js";

const EDITORS = 50;
/** All of them together: ten edits every 50 ms, 200 a second. */
const PACE_MS = 50;
const EDITS = 10;

export class Crowd {
  /** @param {{feed: import("./livebridge.js").Feed, channel: string, colours: [string, string][]}} options */
  constructor({ feed, channel, colours }) {
    this.#feed = feed;
    this.#channel = channel;
    this.#colours = colours;
  }

  get isThere() {
    return this.#timer !== undefined;
  }

  start() {
    const numbers = [...SEED].filter(([, value]) => typeof value === "number").map(([name]) => name);
    this.#timer = setInterval(() => {
      if (this.#feed.state !== "open") return; // what nobody typed need not be kept
      for (let count = 0; count < EDITS; count++) this.#edit(numbers[Math.floor(Math.random() * numbers.length)]);
    }, PACE_MS);
  }

  stop() {
    clearInterval(this.#timer);
    this.#timer = undefined;
  }

  #feed;
  #channel;
  #colours;
  /** @type {any} */
  #timer;

  #edit(cell) {
    const editor = Math.floor(Math.random() * EDITORS);
    const [, colour] = this.#colours[editor % this.#colours.length];
    const value = Math.round((SEED.get(cell) || 100_000) * (0.7 + 0.6 * Math.random()));
    const edit = { cell, value, editor: `Editor ${editor + 1}`, colour };
    this.#feed.publish(edit, { channel: this.#channel, key: cell }).catch(() => {});
  }
}
