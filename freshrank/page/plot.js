// Charts that belong together: one cursor for mouse and keys, values beside the names, and the numbers as a table.

import { Chart } from "./chart.js";
import { duration, el } from "./format.js";
import { steady } from "./scale.js";

const TABLE_ROWS = 12;
const MARKED = ["you", "fault", "well"]; // events that stand in the charts

export class Plot {
  /** `host` gets the charts, by the names of `cells`; `options` as the constructor of a Chart. */
  constructor(host, options) {
    this.options = options;
    this.index = null;
    this.cells = new Map();
    this.grid = el("div", "charts");
    this.grid.tabIndex = 0;
    this.grid.setAttribute("role", "group");
    this.when = el("p", "when");
    this.spoken = el("p", "hidden");
    this.spoken.setAttribute("aria-live", "polite");
    this.table = el("table");
    this.details = el("details", "data", el("summary", "", "Data as a table"), scrolled(this.table, ""));
    this.details.addEventListener("toggle", () => this.fill());
    host.replaceChildren(this.when, this.grid, this.spoken, this.details);
    this.grid.addEventListener("pointermove", (event) => this.hover(event));
    this.grid.addEventListener("pointerleave", () => this.move(null));
    this.grid.addEventListener("blur", () => this.move(null));
    this.grid.addEventListener("keydown", (event) => this.key(event));
  }

  /** `cells`: `{name, group, label, series}`; all are drawn on the same axes. */
  draw(times, cells, { y, level, events = [], format, label }) {
    this.format = format;
    this.times = times;
    this.y = steady(this.y, y);
    this.table.parentNode.setAttribute("aria-label", `${label}, data`);
    this.grid.setAttribute("aria-label", `${label}. Left and right arrow keys read values.`);
    if ([...this.cells.keys()].join() !== cells.map((cell) => cell.name).join()) this.build(cells);
    for (const cell of cells) {
      const mine = this.cells.get(cell.name);
      mine.series = cell.series;
      mine.chart.draw({ times, series: cell.series, y: this.y, level, events: events.filter(({ kind }) => MARKED.includes(kind)), label: cell.label, format: (v) => format(v, this.y) });
    }
    this.read();
    if (this.details.open) this.fill();
  }

  build(cells) {
    this.cells.clear();
    const groups = new Map();
    for (const cell of cells) {
      const host = el("div", "plot");
      const legend = el("p", "legend");
      const figure = el("div", "cell", el("p", "name", cell.title ?? ""), legend, host);
      if (!cell.title) figure.firstChild.remove();
      this.cells.set(cell.name, { chart: new Chart(host, this.options), legend, series: [], title: cell.title });
      if (!groups.has(cell.group)) groups.set(cell.group, []);
      groups.get(cell.group).push(figure);
    }
    this.grid.replaceChildren(...[...groups].map(([name, figures]) => {
      const row = el("div", "cells", ...figures);
      return name ? el("div", "row", el("h3", "", name), row) : row;
    }));
  }

  hover(event) {
    const host = event.target.closest(".plot");
    const cell = [...this.cells.values()].find(({ chart }) => chart.host === host);
    this.move(cell ? cell.chart.nearest(event.clientX) : null);
  }

  key(event) {
    const last = this.times?.length - 1;
    const step = { ArrowLeft: -1, ArrowRight: 1, PageUp: -30, PageDown: 30 }[event.key];
    const at = step ? Math.min(Math.max((this.index ?? last) + step, 0), last) : { Home: 0, End: last, Escape: null }[event.key];
    if (at === undefined || !(last >= 0)) return;
    event.preventDefault();
    this.move(at);
    if (at === null) return;
    const values = [...this.cells.values()].flatMap(({ title, series }) =>
      series.map((one) => `${[title, one.name].filter(Boolean).join(" ")} ${this.format(one.values[at], null)}`));
    this.spoken.textContent = `${this.moment(at)}: ${values.join(", ")}`;
  }

  /** The cursor stays at its moment while time goes on. */
  move(index) {
    this.index = index;
    this.at = index === null ? null : this.times[index];
    this.read();
  }

  read() {
    if (this.at !== null && this.at !== undefined) {
      const found = this.times.indexOf(this.at);
      [this.index, this.at] = found < 0 ? [null, null] : [found, this.at];
    }
    const shown = this.index ?? this.times.length - 1;
    this.when.textContent = this.index === null ? "" : this.moment(this.index);
    for (const { chart, legend, series } of this.cells.values()) {
      chart.point(this.index);
      legend.replaceChildren(...series.map((one) => el("span", `key ${one.kind}`, one.name ? `${one.name} ` : "", el("b", "", this.format(one.values[shown], null)))));
    }
  }

  moment(index) {
    const ago = this.times.at(-1) - this.times[index];
    return ago < 500 ? "now" : `${duration(ago)} ago`;
  }

  fill() {
    if (!this.details.open || !this.times?.length) return;
    const columns = [...this.cells.entries()].flatMap(([name, { series, title }]) =>
      series.map((one) => ({ head: [title ? name.replaceAll(".", " ") : "", one.name].filter(Boolean).join(" "), values: one.values })));
    const step = Math.max(1, Math.floor(this.times.length / TABLE_ROWS));
    const rows = this.times.map((_, i) => i).reverse().filter((_, i) => i % step === 0).slice(0, TABLE_ROWS);
    const head = el("thead", "", el("tr", "", ...["time", ...columns.map((c) => c.head)].map((text) => Object.assign(el("th", "", text), { scope: "col" }))));
    const body = el("tbody", "", ...rows.map((i) => el("tr", "", Object.assign(el("th", "", this.moment(i)), { scope: "row" }),
      ...columns.map((c) => el("td", "", this.format(c.values[i], null))))));
    this.table.replaceChildren(head, body);
  }
}

/** A table in a box of its own that scrolls sideways, reachable by keys. */
export function scrolled(table, name) {
  const box = el("div", "scroll", table);
  box.tabIndex = 0;
  box.setAttribute("role", "region");
  box.setAttribute("aria-label", name);
  return box;
}
