/**
 * The sheet's values, shared: what this window commits is published, what the others commit is applied.
 * Knows the feed and the rules of who wins; knows nothing of the DOM.
 *
 * The rule is 'the last commit wins', where last is what the channel's offsets say. A value committed here is
 * shown at once. Until its offset is known, what arrives for the same cell is held back, then the later one stays.
 *
 * What is not saved yet outlives the page. It gets its offset when it is sent, so it wins over what others have set
 * before that, however long ago it was typed.
 */
import { connect, newIdempotencyKey } from "./livebridge.js";
import { SEED, accept } from "./plan.js";
import { Unsaved } from "./unsaved.js";

/** A value that could not be saved is tried again after this long, and at every reconnect. */
const RETRY_MS = 5_000;
/** A value that is not saved after this long is marked. */
const UNSAVED_AFTER_MS = 1_000;
/** The status of a publish that may succeed later. */
const TOO_MANY_REQUESTS = 429;
/** So many of one's own edits can be undone. */
const MOST_UNDONE = 100;

export class SharedSheet extends EventTarget {
  /** @param {{channel: string, me: {name: string, colour: string}, url?: string}} options */
  constructor({ channel, me, url }) {
    super();
    this.channel = channel;
    this.editsSeen = 0;
    this.#me = me;
    this.#cells = new Map([...SEED].map(([name, value]) => [name, { name, value }]));
    // Two livebridges may be behind one origin, each with a path of its own.
    this.#kept = new Unsaved(`${new URL(url ?? ".", import.meta.url).pathname} ${channel}`);
    this.#subscribe(url);
    this.#adopt();
  }

  /** @returns {{name, value, editor?, colour?, unsaved?: boolean}} */
  cell(name) {
    return this.#cells.get(name);
  }

  /** The feed, for what else goes over it. */
  get feed() {
    return this.#feed;
  }

  get unsavedCount() {
    return this.#unsaved.size;
  }

  /** How many of them will be lost if the page is closed now. */
  get unkeptCount() {
    return [...this.#unsaved].filter(({ name }) => !this.#kept.keeps(name)).length;
  }

  /** Shows the value at once and publishes it. */
  commit(name, value) {
    const before = this.#cells.get(name)?.value;
    if (!this.#set(name, value)) return;
    this.#own.push({ name, before, value });
    if (this.#own.length > MOST_UNDONE) this.#own.shift();
  }

  /** Takes back the newest of one's own edits that nobody has changed since. @returns {string | undefined} the cell */
  undo() {
    for (let edit; (edit = this.#own.pop()); ) {
      const { value, editor } = this.#cells.get(edit.name);
      if (value === edit.value && editor === this.#me.name && this.#set(edit.name, edit.before)) return edit.name;
    }
    return undefined;
  }

  #set(name, value) {
    const cell = this.#cells.get(name);
    if (!cell || cell.value === value) return false;
    const { name: editor, colour } = this.#me;
    this.#begin(cell, { value, editor, colour, id: newIdempotencyKey(), at: Date.now() });
    return true;
  }

  /** Shows an edit, and saves it. */
  #begin(cell, pending) {
    const { value, editor, colour } = pending;
    Object.assign(cell, { value, editor, colour, pending });
    this.#kept.keep(cell.name, pending);
    this.#setUnsaved(cell, this.#feed.state !== "open");
    this.#changed(cell, { own: true });
    this.#save(cell);
  }

  /** Goes on with the edits that pages that are gone could not save. */
  #adopt() {
    const has = (name) => this.#cells.has(name);
    this.#kept.adopt(has, (name, edit) => {
      const cell = this.#cells.get(name);
      const { id, at } = edit;
      const known = readEdit({ key: name, data: { ...edit, cell: name } });
      if (!known || cell.pending?.at > at) return;
      // It may have been saved before what the cell shows by now, and only the answer was lost.
      if (!cell.pending && cell.position) cell.held = { ...cell };
      const { value, editor, colour } = known;
      this.#begin(cell, { value, editor, colour, id, at });
    });
  }

  #me;
  #cells;
  /** The edits that are not saved yet, in the browser's storage. */
  #kept;
  /** The cells that are marked as not saved yet. */
  #unsaved = new Set();
  /** One's own edits, the newest last. */
  #own = [];
  #feed;
  /** The next connection is a new subscriber's: begin with the first values, how things stand follows. */
  #fresh = true;
  /** This connection is one: what it says of the past is how things stand, and neither flashes nor counts. */
  #quietPast = true;

  #subscribe(url) {
    this.#feed = connect({ channels: [this.channel], url });
    this.#feed.on("message", (message) => message.channel === this.channel && this.#receive(message));
    this.#feed.on("gap", ({ channel }) => {
      if (channel !== this.channel) return;
      this.#fresh = true;
      this.#feed.rejoin();
    });
    this.#feed.on("state", (state) => {
      if (state.state === "open") this.#opened();
      this.#emit("state", state);
    });
  }

  #opened() {
    this.#quietPast = this.#fresh;
    if (this.#fresh) this.#reset();
    this.#fresh = false;
    for (const cell of this.#cells.values()) if (cell.pending) this.#save(cell);
    this.#adopt();
  }

  #reset() {
    for (const cell of this.#cells.values()) {
      cell.position = cell.held = undefined;
      if (cell.pending || cell.value === SEED.get(cell.name)) continue;
      Object.assign(cell, { value: SEED.get(cell.name), editor: undefined, colour: undefined });
      this.#changed(cell, { quiet: true });
    }
  }

  #receive(message) {
    const quiet = message.past && this.#quietPast;
    const edit = readEdit(message);
    if (!edit) return;
    if (!quiet) this.editsSeen += 1;
    this.#emit("edit", { ...edit, quiet });
    const cell = this.#cells.get(edit.name);
    if (cell.pending) cell.held = edit;
    else this.#apply(cell, edit, quiet);
  }

  #apply(cell, edit, quiet = false) {
    if (!isAfter(edit.position, cell.position)) return; // our own, come back
    const { value, editor, colour, position } = edit;
    Object.assign(cell, { value, editor, colour, position });
    this.#changed(cell, { quiet });
  }

  /** One publish per cell at a time, so that a retry never overtakes the value after it. */
  async #save(cell) {
    if (cell.saving) return;
    cell.saving = true;
    const { value, editor, colour, id } = cell.pending;
    const late = setTimeout(() => this.#mark(cell, true), UNSAVED_AFTER_MS);
    const began = performance.now();
    let position, failure;
    try {
      const edit = { cell: cell.name, value, editor, colour };
      position = await this.#feed.publish(edit, { channel: this.channel, key: cell.name, idempotencyKey: id });
      this.#emit("saved", { inMs: performance.now() - began });
    } catch (error) {
      failure = error;
    }
    clearTimeout(late);
    cell.saving = false;
    if (cell.pending.id !== id) return this.#save(cell); // edited again meanwhile
    if (failure) {
      if (failure.temporary) setTimeout(() => cell.pending && this.#save(cell), RETRY_MS);
      else if (failure.status !== TOO_MANY_REQUESTS) this.#kept.forget(cell.name); // the next page would be refused as well
      this.#emit("unsaved", { name: cell.name, message: failure.message });
    } else {
      cell.position = position.offset === undefined ? undefined : position;
      cell.pending = undefined;
      this.#kept.forget(cell.name);
      const { held } = cell;
      cell.held = undefined;
      if (held) this.#apply(cell, held);
    }
    this.#mark(cell, Boolean(failure));
  }

  #mark(cell, unsaved) {
    this.#setUnsaved(cell, unsaved);
    this.#changed(cell, { quiet: true });
  }

  #setUnsaved(cell, unsaved) {
    cell.unsaved = unsaved;
    if (unsaved) this.#unsaved.add(cell);
    else this.#unsaved.delete(cell);
  }

  #changed(cell, how) {
    this.#emit("cell", { cell, ...how });
  }

  #emit(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }
}

/**
 * An edit is this page's `{cell, value, editor, colour}`, or any bare number or text with a cell as its key, so that
 * `curl -d 95000 '…/publish?channel=sheet:q3&key=C4'` is one too. A removed key is back at its first value.
 */
function readEdit({ key, data, removed, epoch, offset }) {
  const own = typeof data === "object" && data !== null;
  const name = own ? (data.cell ?? key) : key;
  if (!SEED.has(name)) return undefined;
  const value = removed ? SEED.get(name) : accept(own ? data.value : data);
  if (value === undefined) return undefined;
  const editor = own && typeof data.editor === "string" ? data.editor.slice(0, 40) : "";
  const colour = own && /^#[0-9a-f]{6}$/i.test(data.colour) ? data.colour : undefined;
  return { name, value, editor, colour, position: offset === undefined ? undefined : { epoch, offset } };
}

/** Without positions, or across epochs, what came later is later. */
function isAfter(a, b) {
  return !a || !b || a.epoch !== b.epoch || a.offset > b.offset;
}
