// Orders to the simulator and to `freshrank up`: traffic, and faults on purpose. Hidden where they are not allowed.

import { el, put } from "./format.js";
import { getJson, postJson } from "./http.js";

const card = document.getElementById("controls");
const [slider, number] = [document.getElementById("rate"), document.getElementById("rate-number")];
const KILLS = {
  trainer: "Nothing is learned for a few seconds. Rankings go on with the last version: its age rises, then falls again.",
  joiner: "Labels wait in the log. Nothing is lost or counted twice: the transaction that was open is done again.",
  ranker: "Requests fail until it is back: users wait, rankings per second drop to 0. It takes the newest version up at once.",
  agents: "Sequences of actions stand still. Rankings go on with what is known.",
};
let opens = "";
let bots = null; // the entry of their button

export async function startControls() {
  const can = await getJson("/api/controls").catch(() => null); // 404 where controls are off
  if (!can || !(can.traffic || can.kill.length)) return;
  document.getElementById("rate-form").hidden = !can.traffic;
  for (const input of [slider, number]) {
    if (can.traffic) [input.min, input.max] = [can.traffic.min_requests_per_s, can.traffic.max_requests_per_s];
    input.addEventListener("input", () => { slider.value = number.value = input.value; });
  }
  slider.addEventListener("change", sendRate);
  document.getElementById("rate-form").addEventListener("submit", (event) => { event.preventDefault(); sendRate(); });
  const faults = can.kill.map((name) => fault(`kill-${name}`, `Kill the ${name}`, KILLS[name], { kill: name }));
  bots = fault("bots", "Let bots in for 20 s", "30 % of the requests click on everything. Once the gate has seen enough to judge, it stops versions, rolls back, and waits for data in order.", { bots_for_s: 20 });
  if (can.traffic) faults.push(bots);
  for (const name of can.pause) faults.push(fault(`pause-${name}`, `Stop ${name === "redis" ? "Redis" : name} for 10 s`, "No version can be published or fetched. Rankings go on from memory; afterwards the newest version comes at once.", { pause: name }));
  document.getElementById("faults").prepend(...faults);
  card.hidden = false;
}

/** What the simulator is at; scenarios of its world that nobody has come to yet can be opened. */
export function drawControls({ traffic }) {
  if (card.hidden) return;
  if (traffic.requests_per_s !== null && ![slider, number].includes(document.activeElement)) slider.value = number.value = traffic.requests_per_s;
  put("rate-now", traffic.requests_per_s === null ? "–" : `${traffic.requests_per_s}`);
  bots.firstChild.toggleAttribute("disabled", traffic.bots > 0);
  const closed = Object.entries(traffic.is_open).filter(([, isOpen]) => !isOpen).map(([name]) => name);
  if (closed.join() === opens) return;
  opens = closed.join();
  document.getElementById("scenarios-to-open").replaceChildren(...closed.map((name) =>
    fault(`open-${name}`, `Open scenario ${name}`, "The model does not know it. Its rows are learned as the default scenario's, then the model grows a part for it; nothing restarts.", { open_scenario: name })));
}

function fault(id, title, text, order) {
  const button = Object.assign(el("button", "", title), { type: "button", id });
  const note = Object.assign(el("span", "note", text), { id: `${id}-note` });
  button.setAttribute("aria-describedby", note.id);
  button.addEventListener("click", () => send(order, button));
  return el("li", "", button, note);
}

const sendRate = () => send({ requests_per_s: Number(number.value) });

async function send(order, button = null) {
  try {
    button?.setAttribute("aria-busy", "true");
    put("order", `${(await postJson("/api/controls", order, { "X-Freshrank-Control": "page" })).done}.`);
  } catch (error) {
    put("order", `Refused: ${error.message}`);
  } finally {
    button?.removeAttribute("aria-busy");
  }
}
