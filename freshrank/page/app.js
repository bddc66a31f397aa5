// The live page: asks the monitor for its state every second and draws it. No state of its own but the curves.

import { drawCurves } from "./charts.js";
import { bytes, duration, el, fixed, percent, put, rate, whole } from "./format.js";
import { getJson, offerScenarios, startUserPanel } from "./user.js";

const POLL_MS = 1000;
let panelStarted = false;

async function tick() {
  try {
    const state = await getJson("/api/state?history=1");
    draw(state);
    offerScenarios(state.schema);
    const down = state.processes.filter((p) => !p.up).map((p) => p.name);
    setStatus(down.length ? `${down.join(", ")} not answering` : "live", down.length > 0);
    if (!panelStarted) {
      panelStarted = true;
      startUserPanel(state.schema).catch((error) => put("story", `This panel needs the simulator's world: ${error.message}`));
    }
  } catch {
    setStatus("monitor not answering", true);
  }
  setTimeout(tick, POLL_MS);
}

function setStatus(text, bad) {
  put("status", text);
  document.getElementById("status").classList.toggle("bad", bad);
}

function gateText(gate) {
  if (!gate.state) return "–";
  const says = { pass: "passes", not_judged: "nothing to judge yet", warn: "warns", block: "blocks" }[gate.state];
  const held = gate.holding ? ", learning waits for data in order" : gate.frozen ? ", publishing is frozen" : "";
  return `${says}; ${whole(gate.rejected)} versions rejected${held}`;
}

function weightsText(blender) {
  if (blender.version === null) return "–";
  const serves = blender.version === 0 ? "of the configuration"
    : `learned, version ${whole(blender.version)}${blender.share < 1 ? ` on trial for ${percent(blender.share)}` : ""}`;
  const explores = blender.exploring ? "; some requests explore" : "";
  const round = blender.round_requests === null ? ""
    : `; ${whole(blender.round_missing)} explored requests to the next round`;
  const lift = blender.lift === null ? ""
    : `; the last candidate promised ${percent(blender.lift)}, at least ${percent(blender.lift_low)}`;
  return serves + explores + round + lift;
}

function draw(state) {
  const { freshness, model, lift, history, schema } = state;
  const first = schema.tasks[0];
  big("freshness-p50", duration(freshness.p50_ms));
  put("freshness-p99", duration(freshness.p99_ms));
  put("version", whole(model.version));
  put("model-age", duration(model.age_ms));
  put("steps", whole(model.steps));
  put("snapshots", whole(model.snapshots));
  put("top1-changed", percent(model.top1_changed));
  put("rbo", fixed(model.rbo));
  put("gate", gateText(state.gate));
  put("weights", weightsText(state.blender));
  put("first-task", first);
  put("ne", fixed(state.quality[first]?.all?.ne));
  put("lift-share", percent(lift.share));
  for (const name of ["served", "random", "oracle"]) put(`lift-${name}`, fixed(lift[name]));
  put("memory", bytes(state.memory_bytes));
  put("config-hash", state.config_hash);
  curve("freshness-curve", [["main", "freshness_p50_ms"], ["second", "freshness_p99_ms"]], { zero: true, label: "freshness, median and 99th percentile, over time" });
  curve("version-curve", [["main", "model_age_ms"]], { zero: true, label: "model age over time" });
  curve("ne-curve", [["main", "ne"]], { line: 1, label: `normalized entropy of ${first} over time, dashed line at 1` });
  curve("lift-curve", [["main", "lift_served"], ["second", "lift_random"], ["third", "lift_oracle"]], { label: "utility over time: served, random and oracle" });
  drawLoop(state.flow, state.processes);
  drawQuality(state.quality, schema);
  drawProcesses(state.processes);
  drawCounters(state.join);

  function curve(id, series, options) {
    drawCurves(document.getElementById(id), series.map(([name, key]) => ({ name, values: history[key] })), options);
  }
}

/** A figure with its unit small beside it. */
function big(id, text) {
  const [value, ...unit] = text.split(" ");
  document.getElementById(id).replaceChildren(value, ...(unit.length ? [el("span", "unit", unit.join(" "))] : []));
}

const STATIONS = [
  ["ranker", "ranks and logs"], ["joiner", "makes labels"], ["trainer", "scores, then learns"], ["ranker", "serves the new one"],
];

function drawLoop(flow, processes) {
  const up = (name) => processes.some((p) => p.name.startsWith(name) && p.up);
  const arrows = [
    [["events", flow.events_per_s]], [["examples", flow.examples_per_s]], [["snapshots", flow.snapshots_per_s]],
  ];
  const nodes = [arrow("rankings asked", flow.rankings_per_s)];
  STATIONS.forEach(([name, what], i) => {
    nodes.push(el("li", `station${up(name) ? "" : " down"}`, el("strong", "", name), el("span", "", what)));
    nodes.push(i < arrows.length ? arrow(...arrows[i][0]) : arrow("feedback", flow.feedback_per_s));
  });
  document.getElementById("loop").replaceChildren(...nodes);
}

function arrow(name, perSecond) {
  return el("li", `arrow${perSecond ? "" : " idle"}`, el("b", "", rate(perSecond)), el("i"), el("span", "", name));
}

function drawQuality(quality, schema) {
  const table = document.getElementById("quality");
  const heads = ["scenario", ...schema.tasks.flatMap((task) => [`${task}: NE`, "calibration", "AUC", "rows"])];
  table.tHead.replaceChildren(el("tr", "", ...heads.map((text) => Object.assign(el("th", "", text), { scope: "col" }))));
  table.tBodies[0].replaceChildren(...["all", ...schema.scenarios].map((scenario) => {
    const cells = schema.tasks.flatMap((task) => {
      const q = quality[task]?.[scenario] ?? {};
      return [
        el("td", q.ne === undefined || q.ne === null ? "" : q.ne < 1 ? "good" : "poor", fixed(q.ne)),
        el("td", "", fixed(q.calibration, 2)), el("td", "", fixed(q.auc)), el("td", "", whole(q.n)),
      ];
    });
    const added = schema.added.includes(scenario) ? [" ", el("small", "", "added")] : [];
    return el("tr", scenario === "all" ? "all" : "", Object.assign(el("th", "", scenario, ...added), { scope: "row" }), ...cells);
  }));
}

function drawProcesses(processes) {
  document.getElementById("processes").tBodies[0].replaceChildren(...processes.map((p) => el("tr", "",
    Object.assign(el("th", "", p.name), { scope: "row" }),
    el("td", p.up ? "good" : "gone", p.up ? (p.restarts ? `up, restarted ${p.restarts}×` : "up") : "not answering"),
    el("td", "", duration(p.uptime_ms)), el("td", "", percent(p.cpu_share)), el("td", "", bytes(p.resident_bytes)))));
}

function drawCounters(counters) {
  document.getElementById("join").replaceChildren(...Object.entries(counters).map(([name, value]) =>
    el("div", "", el("dt", "", name.replaceAll("_", " ")), el("dd", "", whole(value)))));
}

document.getElementById("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});

tick();
