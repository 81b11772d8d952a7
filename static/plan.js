/**
 * The plan that the demo opens with: its columns, the values before anyone has edited them, and how a
 * value is read from what was typed and written on the screen. No DOM, no network. With `?rows=N` in the address, it has
 * so many rows.
 */

const remaining = ({ Budget, Spent }) => Budget - Spent;
const spentShare = ({ Budget, Spent }) => (Budget > 0 ? Math.min(1, Math.max(0, Spent / Budget)) : 0);

/** In the order of their letters. `compute` makes a column read-only, `total` gives it a sum in the footer, `share` a bar. */
export const COLUMNS = [
  { letter: "A", name: "Team", kind: "text" },
  { letter: "B", name: "Owner", kind: "text" },
  { letter: "C", name: "Budget", kind: "number", total: true },
  { letter: "D", name: "Spent", kind: "number", total: true },
  { letter: "E", name: "Forecast", kind: "number", total: true },
  { letter: "F", name: "Remaining", kind: "number", total: true, compute: remaining, share: spentShare },
  { letter: "G", name: "Note", kind: "text" },
];

const ROWS = [
  ["Platform", "Infrastructure", 184000, 121500, 178000, "Second region: Aug"],
  ["Mobile", "Apps", 142000, 96200, 139500, "Biweekly releases"],
  ["Web", "Storefront", 128000, 99400, 133000, "Checkout over by 5k"],
  ["Data", "Analytics", 98000, 52300, 94000, "Warehouse move"],
  ["Security", "Trust office", 64000, 38750, 61000, "Pen test in week 33"],
  ["Design", "Brand studio", 76000, 41900, 72500, ""],
  ["Research", "Labs", 52000, 17800, 44000, "Two studies running"],
  ["Support", "Service desk", 58000, 44100, 57200, "Weekend rota"],
  ["Field sales", "Region north", 112000, 71600, 109000, ""],
  ["Partners", "Alliances", 47000, 21450, 43800, "Renewals due in Sep"],
  ["Marketing", "Growth", 134000, 118200, 136500, "Launch moved up"],
  ["Events", "Growth", 69000, 30900, 66000, "Venue booked"],
];

const MOST_ROWS = 1_000;
const asked = Number(new URLSearchParams(globalThis.location?.search).get("rows"));
while (ROWS.length < Math.min(asked, MOST_ROWS)) {
  const [, owner, ...numbers] = ROWS[ROWS.length % 12];
  ROWS.push([`Team ${ROWS.length + 1}`, owner, ...numbers.slice(0, 3), ""]);
}

export const ROW_COUNT = ROWS.length;

/** Cell name, such as `B4`, → its first value. Computed cells are not in it: they are nobody's to set. */
export const SEED = new Map(
  ROWS.flatMap((values, row) => {
    const columns = COLUMNS.filter((column) => !column.compute);
    return columns.map(({ letter }, i) => [`${letter}${row + 1}`, values[i]]);
  }),
);

const VALUE_LIMIT = 200;
const numbers = new Intl.NumberFormat("en-GB", { maximumFractionDigits: 2 });

/** What a cell shows. A text that someone published into a number column is shown as it is. */
export function format(value) {
  return typeof value === "number" ? numbers.format(value).replace("-", "\u2212") : value;
}

/** The value of what was typed, or `undefined` where the column can't take it. */
export function parse(column, typed) {
  const text = typed.trim().slice(0, VALUE_LIMIT);
  if (column.kind === "text" || text === "") return text;
  const number = Number(text.replace(/[\s,_'’]/g, "").replace("\u2212", "-"));
  return Number.isFinite(number) ? number : undefined;
}

/** A published value, made safe to show: a number or a short text, else `undefined`. */
export function accept(value) {
  if (typeof value === "number" && Number.isFinite(value)) return value;
  if (typeof value === "string") return value.slice(0, VALUE_LIMIT);
  return undefined;
}

/** A row as its columns see it, by column name; what is no number counts as nothing. */
export function rowOf(row, valueOf) {
  return Object.fromEntries(
    COLUMNS.filter((column) => column.kind === "number" && !column.compute).map(({ name, letter }) => {
      const value = valueOf(`${letter}${row}`);
      return [name, typeof value === "number" ? value : 0];
    }),
  );
}
