// What else goes on over time: lift, churn, how far behind everybody is, and the blender's weights.

import { duration, el, fixed, percent } from "./format.js";
import { Plot } from "./plot.js";
import { valueScale } from "./scale.js";

const plotOf = (id, options = { height: 170 }) => new Plot(document.getElementById(id), options);
const [lift, churn, lag] = ["lift-curve", "churn-curve", "lag-curve"].map((id) => plotOf(id));
const weights = plotOf("weights-charts", { height: 130, small: true });

export function drawTrends({ events, weights: byScenario, schema }, history) {
  const one = (plot, label, format, include, ...series) => {
    const named = series.map(([name, kind, column]) => ({ name, kind, values: history.column(column) }));
    const y = valueScale(named.flatMap((s) => s.values), { include });
    plot.draw(history.times, [{ name: "all", label, series: named }], { y, events, format, label });
  };
  const seconds = (v, axis) => (axis ? `${+(v / 1000).toFixed(2)} s` : duration(v));
  one(lift, "True utility of the rankings over time", (v, axis) => fixed(v, axis ? axis.digits : 3), [],
    ["served", "main", "lift_served"], ["random", "second", "lift_random"], ["oracle", "third", "lift_oracle"]);
  one(churn, "Requests with another first item from one version to the next", percent, [0], ["another first item", "main", "top1_changed"]);
  one(lag, "Event time that joiner, trainer and served model are behind", seconds, [0],
    ["joiner", "third", "joiner_lag_ms"], ["trainer", "second", "trainer_lag_ms"], ["served", "main", "model_age_ms"]);
  drawWeights(byScenario, schema, history);
}

function drawWeights(byScenario, schema, history) {
  const kinds = ["main", "third", "second"];
  const cells = schema.scenarios.filter((name) => name in byScenario).map((scenario) => ({
    name: scenario, title: scenario, label: `Weights of the tasks in ${scenario} over time`,
    series: schema.tasks.map((task, i) => ({ name: task, kind: kinds[i % 3], values: history.column(`weight.${scenario}.${task}`) })),
  }));
  const y = valueScale(cells.flatMap((cell) => cell.series.flatMap((s) => s.values)), { include: [0], count: 4 });
  weights.draw(history.times, cells, { y, level: { at: 0 }, format: (v, axis) => fixed(v, axis ? axis.digits : 2), label: "Weights of the tasks by scenario" });
}

/** What the agents see of the rankings that were served; hidden where they do not measure it. */
export function drawOnline({ online }) {
  document.getElementById("online-card").hidden = !online.length;
  document.getElementById("online").tBodies[0].replaceChildren(...online.map((row) => el("tr", "",
    Object.assign(el("th", "", `${row.scenario} · ${row.task}`), { scope: "row" }),
    el("td", "", fixed(row.auc)), el("td", "", row.ctr === null ? "–" : `${(100 * row.ctr).toFixed(1)} %`),
    el("td", "", fixed(row.calibration.current, 2)), el("td", "", fixed(row.calibration.previous, 2)), el("td", "", `${row.drift ?? "–"}`))));
}
