/** Two bars for each team, its budget and what is spent of it. They move when the sheet changes. */
import { ROW_COUNT } from "./plan.js";

/** The chart shows the first teams only. */
const MOST_TEAMS = 12;

export class Chart {
  /** @param {{figure: HTMLElement, valueOf: (cell: string) => string | number}} options */
  constructor({ figure, valueOf }) {
    this.#valueOf = valueOf;
    for (let row = 1; row <= Math.min(ROW_COUNT, MOST_TEAMS); row++) {
      const team = document.createElement("div");
      team.className = "team";
      const bars = ["budget", "spent"].map((name) => Object.assign(document.createElement("i"), { className: name }));
      const label = document.createElement("span");
      team.append(...bars, label);
      figure.append(team);
      this.#teams.push({ row, bars, label });
    }
  }

  /** Draws what the sheet says now. */
  draw() {
    const rows = this.#teams.map(({ row }) => ["C", "D"].map((letter) => Math.max(0, Number(this.#valueOf(letter + row)) || 0)));
    const most = Math.max(1, ...rows.flat());
    this.#teams.forEach(({ row, bars, label }, index) => {
      bars.forEach((bar, which) => bar.style.setProperty("--height", String(rows[index][which] / most)));
      label.textContent = String(this.#valueOf(`A${row}`));
    });
  }

  #valueOf;
  /** @type {{row: number, bars: HTMLElement[], label: HTMLElement}[]} */
  #teams = [];
}
