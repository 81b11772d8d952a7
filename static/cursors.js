/**
 * Who else looks at the sheet, and at which cell: each window says so on a channel beside that of the sheet. Knows the
 * feed, and nothing of the DOM.
 */

/** At most so often a window says where it is, however fast its selection moves. */
const PACE_MS = 100;
/** It says so again after this long, and is taken for gone after that long without a word. */
const AGAIN_MS = 10_000;
const GONE_MS = 25_000;
/** More than these are not shown. */
const MOST_PEOPLE = 200;

export class Cursors extends EventTarget {
  /** Who is here, by an id of their window. @type {Map<string, {name: string, colour: string, cell: string, seenAt: number}>} */
  people = new Map();

  /** @param {{feed: import("./livebridge.js").Feed, channel: string, me: {name: string, colour: string}, id: string}} options */
  constructor({ feed, channel, me, id }) {
    super();
    this.#feed = feed;
    this.#channel = channel;
    this.#me = me;
    this.#id = id;
    feed.on("message", (message) => message.channel === channel && this.#receive(message));
    feed.on("state", ({ state }) => state === "open" && this.#say());
    // Where a token does not allow the channel, nobody sees anybody.
    feed.subscribe(channel).then(() => this.#say(), () => {});
    setInterval(() => (this.#say(), this.#forget()), AGAIN_MS);
    globalThis.addEventListener?.("pagehide", () => this.#publish({ id, gone: true }));
  }

  /** Says that this window's selection is at a cell. */
  move(cell) {
    this.#cell = cell;
    if (this.#timer) return;
    this.#timer = setTimeout(() => ((this.#timer = undefined), this.#say()), PACE_MS);
  }

  #feed;
  #channel;
  #me;
  #id;
  #cell = "A1";
  #timer;

  #receive({ data, past }) {
    const { id, name, colour, cell, gone } = Object(data);
    if (typeof id !== "string" || id === this.#id || past) return;
    if (gone) return this.#remove(id);
    if (typeof name !== "string" || !/^#[0-9a-f]{6}$/i.test(colour) || !/^[A-Z][0-9]{1,4}$/.test(cell)) return;
    const isNew = !this.people.has(id);
    if (isNew && this.people.size >= MOST_PEOPLE) return;
    const before = this.people.get(id)?.cell;
    this.people.set(id, { name: name.slice(0, 40), colour, cell, seenAt: Date.now() });
    this.#changed(before, cell);
    if (isNew) this.move(this.#cell); // so that the newcomer learns of this window
  }

  #say() {
    this.#publish({ id: this.#id, ...this.#me, cell: this.#cell });
  }

  /** A cursor is worth nothing later: it is not sent while disconnected, nor again. */
  #publish(cursor) {
    if (this.#feed.state === "open") this.#feed.publish(cursor, { channel: this.#channel }).catch(() => {});
  }

  #forget() {
    for (const [id, { seenAt }] of this.people) if (Date.now() - seenAt > GONE_MS) this.#remove(id);
  }

  #remove(id) {
    const person = this.people.get(id);
    if (!person) return;
    this.people.delete(id);
    this.#changed(person.cell);
  }

  /** @param {...(string | undefined)} cells  on which there is somebody now, or no longer */
  #changed(...cells) {
    this.dispatchEvent(new CustomEvent("change", { detail: cells }));
  }
}
