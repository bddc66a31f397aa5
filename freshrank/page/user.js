// "Be a user": one user, one set of candidates; act on an item and watch the same candidates being ranked again.

import { duration, el, fixed, percent } from "./format.js";
import { getJson, postJson } from "./http.js";

const REFRESH_MS = 500;
const AFTER_MS = 1_500; // how long the list goes on being refreshed after the model has learned the action
const PATIENCE_MS = 8_000; // when the model takes longer than this, it is asked less often
const SLOW_REFRESH_MS = 2_000;
const GIVE_UP_MS = 60_000;
const SIZE = 10;

const slate = document.getElementById("slate");
const story = document.getElementById("story");
const who = document.getElementById("who");

let tasks = [];
let session = null; // {user, scenario, candidates, answer, acted: Map(item -> action), follow}

export async function startUserPanel(schema) {
  tasks = schema.tasks;
  const users = await getJson("/api/users");
  who.user.replaceChildren(...users.users.map((name) => new Option(name)));
  who.addEventListener("submit", (event) => { event.preventDefault(); begin(); });
  who.addEventListener("change", begin);
  await begin();
}

/** Lets the user choose from all scenarios, also those that were added during the run; what is chosen stays chosen. */
export function offerScenarios(schema) {
  const offered = new Set([...who.scenario.options].map((option) => option.value));
  who.scenario.append(...schema.scenarios.filter((name) => !offered.has(name)).map((name) => new Option(name)));
}

/** New candidates for the chosen user and scenario, ranked once. */
async function begin() {
  clearTimeout(session?.follow?.timer);
  const [user, scenario] = [who.user.value, who.scenario.value];
  try {
    const candidates = await getJson(`/api/candidates?${new URLSearchParams({ user_id: user, scenario })}`);
    session = { user, scenario, candidates, answer: null, acted: new Map(), follow: null };
    await rank();
    const scoredAs = session.answer.scenario === scenario ? "" : `, as ${session.answer.scenario}`;
    tell(`${user} in ${scenario}: ${candidates.candidates.id.length} candidates, the best ${session.answer.items.length} shown.`
      + (session.answer.snapshot ? ` Ranked by model version ${session.answer.snapshot}${scoredAs}.` : " No model yet: input order."));
  } catch (error) {
    tell(`The ranking could not be fetched: ${error.message}`);
  }
}

/** Asks for the slate of a session's candidates. Every answer is a slate shown, with a request id of its own. */
function ask({ user: user_id, scenario, candidates: { candidates, user, context } }) {
  return postJson("/api/rank", { user_id, scenario, candidates, user, context, size: SIZE });
}

async function rank() {
  const mine = session;
  const answer = await ask(mine);
  if (mine !== session) return;
  const before = mine.answer;
  mine.answer = answer;
  draw(before);
}

async function act(item, action) {
  const mine = session;
  const before = mine.answer;
  try {
    // A label counts within seconds of its slate, but people read for longer. So the slate is asked for once more.
    const again = await ask(mine);
    const shown = again.items.some((entry) => entry.id === item) ? again : before;
    const feedback = { request_id: shown.request_id, user_id: mine.user, item_id: item, action };
    const sent = await postJson("/api/feedback", feedback);
    mine.acted.set(item, action);
    clearTimeout(mine.follow?.timer);
    mine.follow = { since_ms: sent.now_ms, version: before.snapshot, order: before.items.map((i) => i.id), item, action, done: null };
    tell(`${describe(action)} ${item}, seen by model version ${before.snapshot}. Waiting for the model to learn it…`);
    mine.follow.timer = setTimeout(follow, REFRESH_MS);
  } catch (error) {
    tell(`The ${action} could not be sent: ${error.message}`);
  }
}

/** Ranks the same candidates again until the time is up, and says when the model had learned the action. */
async function follow() {
  const mine = session;
  const { follow: state } = mine;
  try {
    await rank();
  } catch (error) {
    tell(`The ranking could not be fetched: ${error.message}`);
  }
  if (mine !== session || state !== mine.follow) return;
  const { answer } = mine;
  if (state.done === null && answer.snapshot && answer.now_ms - answer.model_age_ms >= state.since_ms) {
    state.done = answer.now_ms - state.since_ms;
  }
  const moved = answer.items.filter((entry, i) => state.order[i] !== entry.id).length;
  const place = answer.items.findIndex((entry) => entry.id === state.item);
  const change = moved ? `${moved} of ${answer.items.length} places changed; ${state.item} is ${place < 0 ? "no longer shown" : `now number ${place + 1}`}.` : "The order is the same so far.";
  tell(state.done === null
    ? `${describe(state.action)} ${state.item}. Model version ${state.version} → ${answer.snapshot}; not learned yet. ${change}`
    : `Model version ${state.version} → ${answer.snapshot}: your ${state.action} was learned within ${duration(state.done)}. ${change}`);
  // Every refresh is a slate without a click, so it does not go on long after the answer is known.
  const waited_ms = answer.now_ms - state.since_ms;
  const until_ms = state.done === null ? GIVE_UP_MS : state.done + AFTER_MS;
  if (waited_ms < until_ms) state.timer = setTimeout(follow, waited_ms < PATIENCE_MS ? REFRESH_MS : SLOW_REFRESH_MS);
}

/** Draws the slate; items that moved slide from where they were, with an arrow saying how far. */
function draw(before) {
  const places = new Map((before?.items ?? []).map((entry, i) => [entry.id, i]));
  const start = session.follow ? new Map(session.follow.order.map((id, i) => [id, i])) : places;
  const old = new Map([...slate.children].map((node) => [node.dataset.id, node]));
  const tops = new Map([...old].map(([id, node]) => [id, node.getBoundingClientRect().top]));
  const focused = document.activeElement?.dataset?.act;
  const top = Object.fromEntries(tasks.map((task) => [task, Math.max(...session.answer.items.map((i) => i.scores[task] ?? 0), 1e-9)]));
  const nodes = session.answer.items.map((entry, i) => row(entry, i, start, top));
  slate.replaceChildren(...nodes);
  if (focused) slate.querySelector(`[data-act="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
  if (matchMedia("(prefers-reduced-motion: reduce)").matches) return;
  for (const node of nodes) {
    const from = tops.get(node.dataset.id);
    const shift = from === undefined ? 0 : from - node.getBoundingClientRect().top;
    if (from === undefined && before) node.animate([{ opacity: 0 }, { opacity: 1 }], { duration: 350 });
    if (Math.abs(shift) > 1) node.animate([{ transform: `translateY(${shift}px)` }, { transform: "none" }], { duration: 450, easing: "cubic-bezier(.2,.8,.2,1)" });
  }
}

function row(entry, place, start, top) {
  const features = session.candidates.candidates.features;
  const index = session.candidates.candidates.id.indexOf(entry.id);
  const about = Object.entries(features).map(([name, column]) => show(name, column[index])).filter(Boolean).join(" · ");
  const was = start.get(entry.id);
  const by = was === undefined ? null : was - place;
  const move = el("span", `move ${by > 0 ? "up" : by < 0 ? "down" : ""}`);
  if (session.follow && by === null) move.append(el("span", "up", "new"));
  else if (by) move.append(`${by > 0 ? "▲" : "▼"} ${Math.abs(by)}`);
  if (by) move.setAttribute("aria-label", `${by > 0 ? "up" : "down"} ${Math.abs(by)}`);
  const name = el("span", "name", entry.id, el("small", "", about));
  const bars = el("div", "bars", ...tasks.filter((task) => task in entry.scores).map((task, t) => {
    const bar = el("div", `bar t${t}`, el("span", "", task), el("i"), el("span", "", percentage(entry.scores[task])));
    bar.children[1].style.setProperty("--w", percent(entry.scores[task] / top[task]).replace(" ", ""));
    return bar;
  }));
  const utility = el("span", "utility", el("b", "", fixed(entry.utility)), "utility");
  const acts = el("div", "acts", ...tasks.map((task) => {
    const button = el("button", "", task);
    button.type = "button";
    button.dataset.act = `${task} ${entry.id}`;
    button.setAttribute("aria-label", `${task} ${entry.id}`);
    button.addEventListener("click", () => act(entry.id, actionOf(task)));
    return button;
  }));
  const node = el("li", `item${session.acted.has(entry.id) ? " acted" : ""}`, el("span", "place", `${place + 1}`), move, name, bars, utility, acts);
  node.dataset.id = entry.id;
  return node;
}

const actionOf = (task) => session.candidates.actions[task];
const describe = (action) => ({ click: "You clicked", order: "You ordered", hide: "You hid" })[action] ?? `You did ${action} on`;
const percentage = (p) => `${(100 * p).toFixed(1)} %`;

function show(name, value) {
  if (value === null || value === undefined) return "";
  if (Array.isArray(value)) return value.join(", ");
  return typeof value === "number" ? `${name} ${value.toLocaleString("en", { maximumFractionDigits: 2 })}` : `${value}`;
}

function tell(text) { story.textContent = text; }
