// The four figures on top.

import { bytes, duration, el, fixed, percent, put, whole } from "./format.js";

export function drawFigures({ freshness, model, gate, blender, lift, quality, schema, memory_bytes, config_hash }) {
  const task = schema.tasks[0];
  big("freshness-p50", duration(freshness.p50_ms));
  put("freshness-p99", duration(freshness.p99_ms));
  put("version", whole(model.version));
  put("model-age", duration(model.age_ms));
  put("steps", whole(model.steps));
  put("snapshots", whole(model.snapshots));
  put("top1-changed", percent(model.top1_changed));
  put("rbo", fixed(model.rbo));
  put("lanes", lanesText(model));
  put("gate", gateText(gate));
  put("weights", weightsText(blender));
  put("first-task", task);
  put("ne", fixed(quality[task]?.all?.ne));
  put("calibration", fixed(quality[task]?.all?.calibration, 2));
  put("auc", fixed(quality[task]?.all?.auc));
  big("lift-share", percent(lift.share));
  put("memory", bytes(memory_bytes));
  put("config-hash", config_hash);
}

/** A figure with its unit small beside it. */
function big(id, text) {
  const [value, ...unit] = text.split(" ");
  document.getElementById(id).replaceChildren(value, ...(unit.length ? [el("span", "unit", unit.join(" "))] : []));
}

function lanesText({ published, released }) {
  if (published === null || !released || released >= published) return "every version goes to all";
  return `version ${whole(published)} is on trial, all others get ${whole(released)}`;
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
