/**
 * The edits of a sheet that are not saved yet, in the browser's storage, so that they outlive the page that made them:
 * the next page of the sheet sends them. Knows what a page has to keep, not what it means.
 *
 * Each page has entries of its own, and holds a lock of its name for as long as it is there. Other pages take over the
 * entries of those that are gone, so two pages neither overwrite each other's nor send the same. If a page ends while
 * it sends an edit, the next one sends it again under the same id, and the server stores it once.
 */
import { newIdempotencyKey } from "./livebridge.js";

/** A page keeps no more than this: some 100 KB of the 5 MB that an origin has. */
const MOST_KEPT = 500;

export class Unsaved {
  /** @param {string} sheet  what its pages have in common */
  constructor(sheet) {
    this.#pages = `livebridge.unsaved ${encodeURIComponent(sheet)} `;
    this.#page = this.#pages + newIdempotencyKey();
    // Until the page ends. Where it is refused, so is the storage.
    navigator.locks?.request(this.#page, () => new Promise(() => {})).catch(() => {});
  }

  /** Keeps an edit of a cell in place of the one before. @param {string} cell @param {{id: string, at: number}} edit */
  keep(cell, edit) {
    this.forget(cell);
    // Without locks, which exist in secure contexts only, nobody could say whether its page is gone.
    if (!navigator.locks || this.#kept.size >= MOST_KEPT) return;
    try {
      localStorage.setItem(`${this.#page} ${cell}`, JSON.stringify(edit));
      this.#kept.add(cell);
    } catch {
      // The storage is full, or forbidden.
    }
  }

  /** @param {string} cell */
  forget(cell) {
    if (this.#kept.delete(cell)) localStorage.removeItem(`${this.#page} ${cell}`);
  }

  /** Whether the edit of a cell would outlive the page. @param {string} cell */
  keeps(cell) {
    return this.#kept.has(cell);
  }

  /**
   * Takes over what pages that are gone have left: of each cell, the newest edit.
   * @param {(cell: string) => boolean} has  whether this page has the cell; what it has not is left for one that has
   * @param {(cell: string, edit: any) => void} take
   */
  async adopt(has, take) {
    if (!this.#entries().length) return;
    await navigator.locks.request(this.#pages, async () => {
      const { held, pending } = await navigator.locks.query();
      const living = new Set([...held, ...pending].map(({ name }) => name));
      const left = this.#entries().filter(({ page, cell }) => !living.has(page) && has(cell));
      const edits = left.map(({ key, cell }) => ({ cell, edit: read(key) })).filter(({ edit }) => edit);
      // Removed first: there may be no room for both.
      for (const { key } of left) localStorage.removeItem(key);
      edits.sort((a, b) => a.edit.at - b.edit.at);
      for (const [cell, edit] of new Map(edits.map(({ cell, edit }) => [cell, edit]))) take(cell, edit);
    });
  }

  #pages;
  #page;
  /** The cells with an entry of this page. */
  #kept = new Set();

  /** What all pages of the sheet have in the storage. */
  #entries() {
    try {
      const keys = Object.keys(localStorage).filter((key) => key.startsWith(this.#pages));
      return keys.map((key) => {
        const end = key.lastIndexOf(" ");
        return { key, page: key.slice(0, end), cell: key.slice(end + 1) };
      });
    } catch {
      return []; // no storage
    }
  }
}

/** What a page kept there; `undefined` where something else wrote it. @param {string} key */
function read(key) {
  try {
    const edit = JSON.parse(localStorage.getItem(key));
    return typeof edit.id === "string" && typeof edit.at === "number" ? edit : undefined;
  } catch {
    return undefined;
  }
}
