// How an event becomes a ranking: its stages one after the other, and the whole way over time.

import { duration, el, put, whole } from "./format.js";
import { Plot } from "./plot.js";
import { roundStep, valueScale } from "./scale.js";

const GOAL_MS = 1000;
const STAGES = {
  joined: "the joiner makes its label",
  trained: "the trainer learns it",
  published: "a snapshot with it goes out",
  applied: "the ranker swaps it in",
  served: "the next request is ranked by it",
};
const table = document.getElementById("stages");
const plot = new Plot(document.getElementById("freshness-curve"), { height: 264 });

export function drawFreshness({ stages, freshness, events }, history) {
  drawStages(stages, freshness);
  const series = [
    { name: "half within", kind: "main", values: history.column("freshness_p50_ms") },
    { name: "99 % within", kind: "second", values: history.column("freshness_p99_ms") },
  ];
  const y = valueScale(series.flatMap((s) => s.values), { include: [0, GOAL_MS] });
  plot.draw(history.times, [{ name: "all", label: "Freshness over time, with the goal of 1 s", series }], {
    y, level: { at: GOAL_MS, text: "goal 1 s" }, events, format: (v, axis) => (axis ? `${v / 1000} s` : duration(v)), label: "Freshness over time",
  });
}

/** Each stage begins where the one before typically ended; the thin part goes on to its 99th percentile. */
function drawStages(stages, freshness) {
  const isMeasured = Object.values(stages).some((stage) => stage.p50 !== null);
  const total = { p50: freshness.p50_ms, p99: freshness.p99_ms };
  let start = 0;
  const rows = Object.entries(STAGES).map(([name, what]) => {
    const { p50, p99 } = stages[name];
    const row = { name, what, p50, p99, start };
    start += p50 ?? 0;
    return row;
  });
  rows.push({ name: "event → served", what: "the whole way", ...total, start: 0, isTotal: true });
  const ends = rows.flatMap((row) => [row.start + (row.p50 ?? 0), row.start + (row.p99 ?? 0)]);
  const longest = Math.max(...ends, GOAL_MS);
  const { step } = roundStep(longest, 4);
  const high = Math.ceil(longest / step) * step;
  const at = (ms) => `${((100 * ms) / high).toFixed(2)}%`;
  table.tBodies[0].replaceChildren(...rows.map((row) => {
    const bar = el("div", "track");
    if (row.p50 !== null && row.p99 !== null) {
      bar.append(place(el("i", "typical"), at(row.start), at(row.p50)), place(el("i", "tail"), at(row.start + row.p50), at(Math.max(row.p99 - row.p50, 0))));
    }
    const head = Object.assign(el("th", "", row.isTotal ? row.name : `→ ${row.name}`, el("small", "", row.what)), { scope: "row" });
    return el("tr", row.isTotal ? "total" : "", head, ...["p50", "p99"].map((name) => named(name, duration(row[name]))), el("td", "lane", bar));
  }));
  const axis = el("div", "axis");
  for (let tick = 0; tick <= high + step / 2; tick += step) axis.append(place(el("span", "", tick ? `${+(tick / 1000).toFixed(2)} s` : "0"), at(tick)));
  table.tFoot.rows[0].cells[1].replaceChildren(axis);
  table.style.setProperty("--goal", at(GOAL_MS));
  put("stages-note", isMeasured ? `Over the ${whole(stages.served.n)} actions of the last minute.` : "The stages are not measured yet.");
}

function named(name, text) {
  const cell = el("td", "", text);
  cell.dataset.name = name; // shown where there is no head of the table
  return cell;
}

function place(element, left, width = null) {
  element.style.left = left;
  if (width !== null) element.style.width = width;
  return element;
}
