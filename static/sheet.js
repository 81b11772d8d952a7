/**
 * The grid on the screen: cells, selection, editing, totals. Follows the ARIA grid pattern with a roving
 * tabindex, so that Tab enters and leaves the grid and the arrows move within it.
 */
import { COLUMNS, ROW_COUNT, format, parse, rowOf } from "./plan.js";

/** How long a changed cell stays lit; as long as the animations in demo.css. */
const FLASH_MS = 2_400;
const PAGE_ROWS = 10;
/** In a sheet with more rows, the first columns do not stay in place: each of their cells would be a layer of its own. */
const LONG = 50;
/** More cells than these are not lit at a time: that is more than anybody follows, and than a browser moves at ease. */
const MOST_LIT = 12;

export class SheetView {
  /** @param {{table: HTMLTableElement, sheet: import("./sync.js").SharedSheet, onSelect: Function, onHint: Function, onDraw?: Function}} options */
  constructor({ table, sheet, onSelect, onHint, onDraw = () => {} }) {
    this.#sheet = sheet;
    this.#table = table;
    this.#onSelect = onSelect;
    this.#onHint = onHint;
    this.#onDraw = onDraw;
    this.#build();
    for (let row = 1; row <= ROW_COUNT; row++) for (const { letter } of COLUMNS) this.#paint(`${letter}${row}`);
    this.#paintTotals();
    onDraw();
    sheet.addEventListener("cell", ({ detail }) => this.#show(detail));
    table.addEventListener("keydown", (event) => this.#onKey(event));
    table.addEventListener("pointerdown", (event) => this.#onPress(event));
    table.addEventListener("click", ({ target }) => this.#onClick(target.closest("td[data-cell]")));
    table.addEventListener("dblclick", ({ target }) => this.#edit(target.closest("td[data-cell]")));
    table.addEventListener("focusin", ({ target }) => this.#onFocus(target.closest("td[data-cell]")));
    table.addEventListener("copy", (event) => this.#onCopy(event));
    table.addEventListener("paste", (event) => this.#onPaste(event));
    this.#select(this.#cells.get("A1"));
  }

  #sheet;
  #table;
  #onSelect;
  #onHint;
  #onDraw;
  /** Cell name → its `td`. */
  #cells = new Map();
  #selected;
  /** The cell that a finger came down on while it was selected already. */
  #pressedAgain = null;
  /** `{td, input, before, rival}` while a cell is being edited; `rival`: someone else has set it since. */
  #editing = null;
  #flashTimers = new Map();
  /** Cells to be painted with the next frame of the screen, however often they change until then. */
  #stale = new Set();

  // What the grid is made of

  #build() {
    this.#table.classList.toggle("long", ROW_COUNT > LONG);
    const head = this.#table.createTHead().insertRow();
    head.setAttribute("role", "row");
    head.append(make("th", { className: "corner", role: "columnheader", ariaLabel: "Row" }));
    for (const column of COLUMNS) {
      const th = make("th", { className: column.kind, role: "columnheader", scope: "col" });
      th.append(make("span", { className: "letter", textContent: column.letter, ariaHidden: "true" }), column.name);
      th.dataset.column = column.letter;
      head.append(th);
    }
    const body = this.#table.createTBody();
    for (let row = 1; row <= ROW_COUNT; row++) {
      const tr = body.insertRow();
      tr.setAttribute("role", "row");
      tr.append(make("th", { role: "rowheader", scope: "row", textContent: String(row) }));
      for (const column of COLUMNS) {
        const td = make("td", { className: column.kind, role: "gridcell", tabIndex: -1, ariaSelected: "false" });
        td.ariaReadOnly = column.compute ? "true" : "false";
        td.dataset.cell = `${column.letter}${row}`;
        td.dataset.column = column.letter;
        td.append(make("span", { className: "value" }));
        this.#cells.set(td.dataset.cell, td);
        tr.append(td);
      }
    }
    const foot = this.#table.createTFoot().insertRow();
    foot.setAttribute("role", "row");
    foot.append(make("th", { role: "rowheader", scope: "row", textContent: "Σ", ariaLabel: "Total" }));
    for (const column of COLUMNS) {
      const td = make("td", { className: column.kind, role: "gridcell", ariaReadOnly: "true" });
      td.dataset.column = column.letter;
      if (column.total) {
        td.dataset.total = column.name;
        td.append(make("span", { className: "value" }));
      }
      if (column.letter === "A") td.textContent = "Total";
      foot.append(td);
    }
  }

  // What it shows

  #show({ cell, own = false, quiet = false }) {
    const td = this.#cells.get(cell.name);
    if (this.#stale.size === 0) requestAnimationFrame(() => this.#draw());
    this.#stale.add(cell.name);
    for (const { letter, compute } of COLUMNS) if (compute) this.#stale.add(letter + rowNumber(td));
    if (!own && !quiet) this.#flash(td, cell);
    if (!own && !quiet && this.#editing?.td === td) this.#rival(cell);
    if (td === this.#selected) this.#onSelect(this.#describe(td));
  }

  #draw() {
    for (const name of this.#stale) this.#paint(name);
    this.#stale.clear();
    this.#paintTotals();
    this.#onDraw();
  }

  /** Shows who else is at a cell. @param {string} name @param {{name: string, colour: string}[]} people */
  showPeople(name, people) {
    const td = this.#cells.get(name);
    if (!td) return;
    td.toggleAttribute("data-people", people.length > 0);
    if (people.length === 0) return;
    td.dataset.people = people.length > 2 ? `${people[0].name} and ${people.length - 1} others` : people.map((one) => one.name).join(", ");
    td.style.setProperty("--person", people[0].colour);
  }

  #paint(name) {
    const td = this.#cells.get(name);
    const column = columnOf(td);
    const value = this.#valueOf(td);
    td.firstChild.textContent = format(value);
    td.classList.toggle("negative", typeof value === "number" && value < 0);
    if (column.share) td.style.setProperty("--share", column.share(this.#row(rowNumber(td))));
    const { editor, colour, unsaved = false } = this.#sheet.cell(name) ?? {};
    td.classList.toggle("edited", editor !== undefined);
    td.style.setProperty("--ink", colour ?? "var(--someone)");
    td.toggleAttribute("data-unsaved", unsaved);
    const title = unsaved ? "Not saved yet" : editor ? `Last set by ${editor}` : "";
    if (td.title !== title) td.title = title;
  }

  #paintTotals() {
    const rows = Array.from({ length: ROW_COUNT }, (_, i) => this.#row(i + 1));
    for (const { name, total, compute } of COLUMNS) {
      if (!total) continue;
      const sum = rows.reduce((sum, row) => sum + (compute ? compute(row) : row[name]), 0);
      const td = this.#table.querySelector(`[data-total="${name}"]`);
      if (td.dataset.value === String(sum)) continue;
      td.firstChild.textContent = format(sum);
      td.dataset.value = sum;
      td.classList.toggle("negative", sum < 0);
    }
  }

  /** Lights the cell in its editor's colour. Two animations of one look take turns: a change of name restarts it. */
  #flash(td, { editor, colour }) {
    if (this.#flashTimers.size >= MOST_LIT && !this.#flashTimers.has(td)) return;
    td.style.setProperty("--ink", colour ?? "var(--someone)");
    td.dataset.flash = td.dataset.flash === "a" ? "b" : "a";
    td.dataset.editor = editor || "from outside";
    clearTimeout(this.#flashTimers.get(td));
    const end = () => (this.#flashTimers.delete(td), delete td.dataset.flash);
    this.#flashTimers.set(td, setTimeout(end, FLASH_MS));
  }

  #row(row) {
    return rowOf(row, (name) => this.#sheet.cell(name).value);
  }

  #valueOf(td) {
    const { compute } = columnOf(td);
    return compute ? compute(this.#row(rowNumber(td))) : this.#sheet.cell(td.dataset.cell).value;
  }

  #describe(td) {
    const { editor, unsaved } = this.#sheet.cell(td.dataset.cell) ?? {};
    const column = columnOf(td);
    return { name: td.dataset.cell, column, value: this.#valueOf(td), editor, unsaved };
  }

  // Selection

  #select(td) {
    if (this.#selected) {
      this.#selected.tabIndex = -1;
      this.#selected.ariaSelected = "false";
    }
    this.#selected = td;
    td.tabIndex = 0;
    td.ariaSelected = "true";
    this.#onSelect(this.#describe(td));
  }

  #onFocus(td) {
    if (td && td !== this.#selected) this.#select(td);
  }

  /** A double click edits; so does a tap on the selected cell, for want of a keyboard. */
  #onPress({ pointerType }) {
    this.#pressedAgain = pointerType === "mouse" ? null : document.activeElement;
  }

  #onClick(td) {
    if (td && td === this.#pressedAgain) this.#edit(td);
  }

  #move(columns, rows) {
    const column = clamp(COLUMNS.indexOf(columnOf(this.#selected)) + columns, 0, COLUMNS.length - 1);
    const row = clamp(rowNumber(this.#selected) + rows, 1, ROW_COUNT);
    this.#cells.get(COLUMNS[column].letter + row).focus();
  }

  /** The next cell that can be edited, row by row, as Tab goes. */
  #moveToEditable(step) {
    const editable = [...this.#cells.values()].filter((td) => !columnOf(td).compute);
    const next = editable[editable.indexOf(this.#selected) + step] ?? this.#selected;
    next.focus();
  }

  #onKey(event) {
    if (this.#editing) return this.#onEditKey(event);
    const { key } = event;
    const control = event.ctrlKey || event.metaKey;
    const moves = {
      ArrowLeft: [-1, 0],
      ArrowRight: [1, 0],
      ArrowUp: [0, -1],
      ArrowDown: [0, 1],
      Home: [-Infinity, control ? -Infinity : 0],
      End: [Infinity, control ? Infinity : 0],
      PageUp: [0, -PAGE_ROWS],
      PageDown: [0, PAGE_ROWS],
    };
    if (Object.hasOwn(moves, key) && !event.altKey) {
      const [columns, rows] = moves[key];
      this.#move(columns, rows);
    } else if (key === "Enter" || key === "F2") {
      this.#edit(this.#selected);
    } else if (key === "Delete" || key === "Backspace") {
      if (!columnOf(this.#selected).compute) this.#sheet.commit(this.#selected.dataset.cell, "");
    } else if (control && !event.shiftKey && key.toLowerCase() === "z") {
      const name = this.#sheet.undo();
      if (name) this.#cells.get(name).focus();
      this.#onHint(name ? `${name} is as it was` : "Nothing of yours is left to undo");
    } else {
      const typed = [...key].length === 1 && key !== " " && !(control && !event.getModifierState("AltGraph"));
      // The key itself goes on into the field that has the focus now.
      if (typed || key === "Process") this.#edit(this.#selected, "");
      return;
    }
    event.preventDefault();
  }

  // Editing

  #edit(td, text) {
    if (!td || this.#editing?.td === td) return;
    const column = columnOf(td);
    if (column.compute) return this.#onHint(`${column.name} is computed from the other columns`);
    const value = this.#valueOf(td);
    const input = make("input", { className: "editor", autocomplete: "off", spellcheck: false });
    input.ariaLabel = `${column.name}, row ${rowNumber(td)}`;
    input.inputMode = column.kind === "number" ? "decimal" : "text";
    input.enterKeyHint = "done";
    input.maxLength = 200;
    input.value = text ?? String(value);
    this.#editing = { td, input, before: value, rival: false };
    td.classList.add("editing");
    td.append(input);
    input.focus();
    input.setSelectionRange(input.value.length, input.value.length);
    input.addEventListener("blur", () => this.#finish(true));
    input.addEventListener("input", () => this.#invalid(input, false));
  }

  #onEditKey(event) {
    if (event.isComposing) return;
    const { td } = this.#editing;
    if (event.key === "Escape") {
      this.#finish(false);
      td.focus();
    } else if (event.key === "Enter") {
      if (this.#finish(true, { deliberate: true })) {
        td.focus();
        this.#move(0, event.shiftKey ? -1 : 1);
      }
    } else if (event.key === "Tab") {
      if (this.#finish(true, { deliberate: true })) {
        td.focus();
        this.#moveToEditable(event.shiftKey ? -1 : 1);
      }
    } else {
      return;
    }
    event.preventDefault();
  }

  /**
   * Ends editing; `false` where the text is not valid and stays to be fixed. `deliberate`: by a key, not by going
   * elsewhere. Who goes elsewhere without having typed did not mean to undo what someone else set meanwhile.
   */
  #finish(commit, { deliberate = false } = {}) {
    if (!this.#editing) return true;
    const { td, input, before, rival } = this.#editing;
    const column = columnOf(td);
    const value = parse(column, input.value);
    const invalid = commit && value === undefined;
    this.#onHint(invalid ? `${column.name} takes a number` : "");
    if (invalid && deliberate) {
      this.#invalid(input, true);
      return false;
    }
    this.#editing = null; // first: removing the field blurs it
    td.classList.remove("editing");
    td.removeAttribute("data-rival");
    input.remove();
    if (commit && !invalid && (deliberate || !rival || value !== before)) this.#sheet.commit(td.dataset.cell, value);
    return true;
  }

  #invalid(input, invalid) {
    input.ariaInvalid = String(invalid);
    if (!invalid && !this.#editing?.rival) this.#onHint("");
  }

  /** Someone else set the cell that is being typed into. The typing stays; the page says what happened. */
  #rival({ value, editor }) {
    const { td } = this.#editing;
    const who = editor || "Someone";
    this.#editing.rival = true;
    td.dataset.rival = `${who}: ${format(value) || "empty"}`;
    const happened = `${who} set ${td.dataset.cell} to “${format(value)}” while you type`;
    this.#onHint(`${happened}. Enter replaces it, Escape keeps it.`, { stay: true });
  }

  // The clipboard: a cell is copied, a range is pasted

  #onCopy(event) {
    if (this.#editing) return;
    event.clipboardData.setData("text/plain", String(this.#valueOf(this.#selected)));
    event.preventDefault();
  }

  #onPaste(event) {
    if (this.#editing) return;
    event.preventDefault();
    const lines = event.clipboardData.getData("text/plain").replace(/\r?\n$/, "").split(/\r?\n/);
    const [first, top] = [COLUMNS.indexOf(columnOf(this.#selected)), rowNumber(this.#selected)];
    const refused = new Set();
    lines.forEach((line, down) => {
      line.split("\t").forEach((text, right) => {
        const column = COLUMNS[first + right];
        const name = column && column.letter + (top + down);
        if (!this.#cells.has(name)) return; // beyond the sheet
        const value = parse(column, text);
        if (column.compute) refused.add(`${column.name} is computed from the other columns`);
        else if (value === undefined) refused.add(`${column.name} takes a number`);
        else this.#sheet.commit(name, value);
      });
    });
    if (refused.size > 0) this.#onHint([...refused].join(". "));
  }
}

function columnOf(td) {
  return COLUMNS.find(({ letter }) => letter === td.dataset.column);
}

function rowNumber(td) {
  return Number(td.dataset.cell.slice(1));
}

function clamp(value, low, high) {
  return Math.min(high, Math.max(low, value));
}

/** An element with these properties. `role` and the `aria…` ones are reflected too. */
function make(tag, properties) {
  const element = document.createElement(tag);
  const { role, ...rest } = properties;
  if (role) element.setAttribute("role", role);
  return Object.assign(element, rest);
}
