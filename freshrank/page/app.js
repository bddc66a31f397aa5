// The live page: asks the monitor for its state every second and hands it to the panels.

import { drawControls, startControls } from "./controls.js";
import { drawFreshness } from "./freshness.js";
import { drawFigures } from "./figures.js";
import { drawGates } from "./gates.js";
import { History } from "./history.js";
import { getJson } from "./http.js";
import { drawCounters, drawLoop, drawProcesses } from "./loop.js";
import { drawQuality } from "./quality.js";
import { drawTimeline } from "./timeline.js";
import { drawOnline, drawTrends } from "./trends.js";
import { offerScenarios, startUserPanel } from "./user.js";
import { put } from "./format.js";

const POLL_MS = 1000;
const PANELS = [
  drawFigures, drawFreshness, drawLoop, drawControls, drawTimeline, drawQuality, drawGates, drawTrends, drawOnline, drawProcesses, drawCounters,
];
const history = new History();
let hasStarted = false;

async function tick() {
  if (!document.hidden) {
    const state = await ask();
    if (state) show(state);
  }
  setTimeout(tick, POLL_MS);
}

async function ask() {
  try {
    const state = await getJson("/api/state");
    await history.load(state.history_ms);
    return state;
  } catch {
    setStatus("monitor not answering", true);
    return null;
  }
}

function show(state) {
  const down = state.processes.filter((p) => !p.up).map((p) => p.name);
  setStatus(down.length ? `${down.join(", ")} not answering` : "live", down.length > 0);
  for (const draw of PANELS) draw(state, history);
  offerScenarios(state.schema);
  if (hasStarted) return;
  hasStarted = true;
  startUserPanel(state.schema).catch((error) => put("story", `This panel needs the simulator's world: ${error.message}`));
  startControls();
}

function setStatus(text, bad) {
  put("status", text);
  document.getElementById("status").classList.toggle("bad", bad);
}

document.getElementById("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});

tick();
