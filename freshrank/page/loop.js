// The loop with its rates, the processes, and what the joiner has counted.

import { bytes, duration, el, percent, rate, whole } from "./format.js";

const STATIONS = [
  ["ranker", "ranks and logs"], ["joiner", "makes labels"], ["trainer", "scores, then learns"], ["ranker", "serves the new one"],
];

export function drawLoop({ flow, processes }) {
  const up = (name) => processes.some((p) => p.name.startsWith(name) && p.up);
  const arrows = [["events", flow.events_per_s], ["examples", flow.examples_per_s], ["snapshots", flow.snapshots_per_s], ["feedback", flow.feedback_per_s]];
  const nodes = [arrow("rankings asked", flow.rankings_per_s)];
  STATIONS.forEach(([name, what], i) => {
    const down = up(name) ? [] : [el("em", "", "not answering")];
    nodes.push(el("li", `station${up(name) ? "" : " down"}`, el("strong", "", name), el("span", "", what), ...down), arrow(...arrows[i]));
  });
  document.getElementById("loop").replaceChildren(...nodes);
}

function arrow(name, perSecond) {
  return el("li", `arrow${perSecond ? "" : " idle"}`, el("b", "", rate(perSecond)), el("i"), el("span", "", name));
}

export function drawProcesses({ processes }) {
  document.getElementById("processes").tBodies[0].replaceChildren(...processes.map((p) => el("tr", "",
    Object.assign(el("th", "", p.name), { scope: "row" }),
    el("td", p.up ? "good" : "gone", p.up ? (p.restarts ? `up, restarted ${p.restarts}×` : "up") : "not answering"),
    el("td", "", duration(p.uptime_ms)), el("td", "", percent(p.cpu_share)), el("td", "", bytes(p.resident_bytes)))));
}

export function drawCounters({ join, lag }) {
  const rows = Object.entries(join).map(([name, value]) => [name.replaceAll("_", " "), whole(value)]);
  const partitions = Object.entries(lag.joiner_ms).map(([partition, ms]) => [`partition ${partition} behind`, duration(ms)]);
  document.getElementById("join").replaceChildren(...[...rows, ...partitions].map(([name, value]) =>
    el("div", "", el("dt", "", name), el("dd", "", value))));
}
