// One chart in pixels: axes, a level to compare with, lines with gaps, moments of events, and a cursor. No library.

import { timeScale } from "./scale.js";

const NS = "http://www.w3.org/2000/svg";
const GAP_MS = 3_500; // a line is not drawn over a longer silence

export function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS(NS, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

export class Chart {
  /** Draws into `host`, as wide as it is and `height` px high. */
  constructor(host, { height, small = false }) {
    this.host = host;
    this.height = height;
    this.small = small;
  }

  /** `series`: `{name, kind, values}`; `y`: its scale; `level`: `{at, text}`; `events`: moments. */
  draw({ times, series, y, level = null, events = [], label, format }) {
    const width = this.host.clientWidth;
    if (!width || !y) return;
    const left = this.small ? 30 : 50, right = this.small ? 6 : 14, top = 8, bottom = this.small ? 16 : 22;
    const x = timeScale(times, width - left - right);
    const px = (t) => left + ((t - x.from) / (x.to - x.from)) * (width - left - right);
    const py = (v) => top + (1 - (v - y.low) / (y.high - y.low)) * (this.height - top - bottom);
    Object.assign(this, { times, series, px, py, x, y, width, top, bottom, left, right });
    const picture = svg("svg", { width, height: this.height, role: "img", "aria-label": label });
    for (const tick of y.ticks) {
      picture.append(svg("path", { class: "grid", d: `M${left} ${line(py(tick))}H${width - right}` }));
      picture.append(svg("text", { class: "tick", x: left - 6, y: py(tick) + 4, "text-anchor": "end" }, format(tick)));
    }
    x.ticks.forEach(({ t, text }, i) => {
      const anchor = i === 0 ? "start" : i === x.ticks.length - 1 ? "end" : "middle";
      picture.append(svg("text", { class: "tick", x: px(t), y: this.height - 3, "text-anchor": anchor }, text));
      if (!this.small) picture.append(svg("path", { class: "grid", d: `M${line(px(t))} ${this.height - bottom}v4` }));
    });
    for (const event of events) {
      if (event.t_ms < x.from) continue;
      const mark = svg("path", { class: `event ${event.kind}`, d: `M${line(px(event.t_ms))} ${top}V${this.height - bottom}` });
      mark.append(svg("title", {}, event.text));
      picture.append(mark);
    }
    if (level) picture.append(...this.level(level));
    for (const one of series) picture.append(...this.line(one));
    this.cursor = svg("g", { class: "cursor" });
    picture.append(this.cursor);
    this.host.replaceChildren(picture);
  }

  level({ at, text }) {
    if (at > this.y.high || at < this.y.low) return [];
    const rule = svg("path", { class: "level", d: `M${this.left} ${line(this.py(at))}H${this.width - this.right}` });
    return text ? [rule, svg("text", { class: "tick strong", x: this.left + 4, y: this.py(at) - 5 }, text)] : [rule];
  }

  /** A path, and a triangle at the edge wherever it goes beyond the axis. */
  line({ kind, values }) {
    let d = "", last = null, wasOut = false;
    const marks = [];
    values.forEach((v, i) => {
      if (v === null || v === undefined || this.times[i] < this.x.from) return;
      const isOut = v > this.y.high ? 1 : v < this.y.low ? -1 : 0;
      const [cx, cy] = [this.px(this.times[i]), this.py(Math.min(Math.max(v, this.y.low), this.y.high))];
      d += `${last === null || this.times[i] - last > GAP_MS ? "M" : "L"}${cx.toFixed(1)} ${cy.toFixed(1)}`;
      if (isOut && !wasOut) marks.push(svg("path", { class: `beyond ${kind}`, d: `M${cx - 4} ${cy + 4 * isOut}h8l-4 ${-6 * isOut}z` }));
      [last, wasOut] = [this.times[i], isOut !== 0];
    });
    return [svg("path", { class: `line ${kind}`, d }), ...marks];
  }

  /** Shows the point at an index on all lines; null takes it away. */
  point(index) {
    if (!this.cursor) return;
    this.cursor.replaceChildren();
    if (index === null || this.times[index] === undefined || this.times[index] < this.x.from) return;
    const cx = this.px(this.times[index]);
    this.cursor.append(svg("path", { class: "hair", d: `M${line(cx)} ${this.top}V${this.height - this.bottom}` }));
    for (const { kind, values } of this.series) {
      const v = values[index];
      if (v === null || v === undefined) continue;
      const cy = this.py(Math.min(Math.max(v, this.y.low), this.y.high));
      this.cursor.append(svg("circle", { class: `dot ${kind}`, cx, cy, r: 3.5 }));
    }
  }

  /** The index of the point nearest to a place on the page, in px from its left. */
  nearest(clientX) {
    if (!this.times?.length) return null;
    const t = this.x.from + ((clientX - this.host.getBoundingClientRect().left - this.left) / (this.width - this.left - this.right)) * (this.x.to - this.x.from);
    let best = this.times.length - 1;
    this.times.forEach((at, i) => { if (Math.abs(at - t) < Math.abs(this.times[best] - t)) best = i; });
    return best;
  }
}

const line = (v) => Math.round(v) + 0.5; // hairlines fall on pixels
