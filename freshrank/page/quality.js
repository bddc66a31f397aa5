// NE and calibration, scenario by scenario and task by task: small charts on the same axes, and a table.

import { el, fixed, whole } from "./format.js";
import { Plot } from "./plot.js";
import { valueScale } from "./scale.js";

const SHARE = 0.96; // of the points, that the common axis must show
const plots = ["ne", "calibration"].map((measure) => [measure, new Plot(document.getElementById(`${measure}-charts`), { height: 96, small: true })]);
const NAMES = { ne: "Normalized entropy", calibration: "Calibration" };

export function drawQuality({ quality, schema }, history) {
  const scenarios = ["all", ...schema.scenarios];
  for (const [measure, plot] of plots) {
    const cells = schema.tasks.flatMap((task) => scenarios.map((scenario) => ({
      name: `${task}.${scenario}`, group: task, title: scenario, label: `${NAMES[measure]} of ${task} in ${scenario} over time, with a line at 1`,
      series: [{ name: "", kind: "main", values: history.column(`${measure}.${task}.${scenario}`) }],
    })));
    const y = valueScale(cells.flatMap((cell) => cell.series[0].values), { include: [1], share: SHARE, count: 3 });
    plot.draw(history.times, cells, {
      y, level: { at: 1 }, format: (v, axis) => fixed(v, axis ? axis.digits : 3), label: `${NAMES[measure]} by task and scenario`,
    });
  }
  drawTable(quality, schema, scenarios);
}

function drawTable(quality, schema, scenarios) {
  const table = document.getElementById("quality");
  const groups = el("tr", "", el("td"), ...schema.tasks.map((task) => Object.assign(el("th", "group", task), { scope: "colgroup", colSpan: 4 })));
  const heads = ["scenario", ...schema.tasks.flatMap(() => ["NE", "calibration", "AUC", "rows"])];
  table.tHead.replaceChildren(groups, el("tr", "", ...heads.map((text) => Object.assign(el("th", "", text), { scope: "col" }))));
  table.tBodies[0].replaceChildren(...scenarios.map((scenario) => {
    const cells = schema.tasks.flatMap((task) => {
      const q = quality[task]?.[scenario] ?? {};
      const known = q.ne !== undefined && q.ne !== null;
      return [
        el("td", known ? (q.ne < 1 ? "good" : "poor") : "", fixed(q.ne), known && q.ne >= 1 ? el("span", "mark", " ≥ 1") : ""),
        el("td", "", fixed(q.calibration, 2)), el("td", "", fixed(q.auc)), el("td", "", whole(q.n)),
      ];
    });
    const added = schema.added.includes(scenario) ? [" ", el("small", "", "added")] : [];
    return el("tr", scenario === "all" ? "all" : "", Object.assign(el("th", "", scenario, ...added), { scope: "row" }), ...cells);
  }));
}
