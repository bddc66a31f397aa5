// Who looks at whom: the attention between scenarios, and what the gates give to their experts. Tables with ground colors.

import { el } from "./format.js";
import { scrolled } from "./plot.js";

const GATES = {
  cgc: "experts of a task, and those of all tasks",
  "sei.shared": "experts that all scenarios share",
  "sei.own": "experts of a scenario's own",
};
let drawn = "";

export function drawGates({ attention, gates, schema }) {
  const now = JSON.stringify([attention, gates, schema.scenarios]);
  if (now === drawn) return; // it changes every few seconds: what is being read stays
  drawn = now;
  const scenarios = schema.scenarios.filter((name) => name in attention);
  const looks = scenarios.map((name) => [name, scenarios.map((other) => (other === name ? null : attention[name][other] ?? 0))]);
  show("attention", scenarios.length > 1 ? [heatMap("scenario", scenarios, looks, "Attention between scenarios")] : [absent()]);
  show("experts", gates.length ? gates.flatMap(drawGate) : [absent()]);
}

function drawGate({ gate, heads }) {
  const name = (expert, task) => (task && expert.startsWith(`${task}.`) ? `own ${+expert.slice(task.length + 1) + 1}` : expert.replace(/^shared\.(\d+)$/, (_, k) => `shared ${+k + 1}`));
  const columns = [...new Set(heads.flatMap((head) => Object.keys(head.mean).map((expert) => name(expert, head.task))))];
  const rows = heads.map(({ scenario, task, mean }) => {
    const named = Object.fromEntries(Object.entries(mean).map(([expert, weight]) => [name(expert, task), weight]));
    return [task === "all" ? scenario : `${scenario} · ${task}`, columns.map((column) => named[column] ?? null)];
  });
  return [el("h3", "", gate, " ", el("small", "", GATES[gate] ?? "")), heatMap("head", columns, rows, `Gate ${gate}`)];
}

/** Shares from 0 to 1 as numbers on a ground that is the darker the more; null is no cell. */
function heatMap(corner, columns, rows, name) {
  const head = el("tr", "", ...[corner, ...columns].map((text) => Object.assign(el("th", "", text), { scope: "col" })));
  const body = rows.map(([title, values]) => el("tr", "", Object.assign(el("th", "", title), { scope: "row" }), ...values.map((value) => {
    if (value === null) return el("td", "none", "–");
    const cell = el("td", "heat", `${Math.round(100 * value)} %`);
    cell.style.setProperty("--share", `${Math.round(100 * value)}%`);
    return cell;
  })));
  const table = el("table", "heatmap", el("thead", "", head), el("tbody", "", ...body));
  table.style.setProperty("--columns", columns.length);
  return scrolled(table, name);
}

const absent = () => el("p", "note", "Not measured: the network has none, or the trainer has not been asked yet.");
const show = (id, nodes) => document.getElementById(id).replaceChildren(...nodes);
