// The curves, kept on the page: every second only what is new is fetched. Columns of equal length; null is a gap.

import { getJson } from "./http.js";

export class History {
  constructor() {
    this.times = [];
    this.columns = new Map();
  }

  /** Fetches what has come since the last time, and forgets what is older than `keep_ms`. */
  async load(keep_ms) {
    const { t_ms, ...more } = await getJson(`/api/history?since=${this.times.at(-1) ?? 0}`);
    for (const name of Object.keys(more)) {
      if (!this.columns.has(name)) this.columns.set(name, this.times.map(() => null));
    }
    this.times.push(...t_ms);
    for (const [name, values] of this.columns) values.push(...(more[name] ?? t_ms.map(() => null)));
    const first = this.times.findIndex((t) => t > this.times.at(-1) - keep_ms);
    if (first > 0) for (const values of [this.times, ...this.columns.values()]) values.splice(0, first);
  }

  column(name) {
    return this.columns.get(name) ?? this.times.map(() => null);
  }
}
