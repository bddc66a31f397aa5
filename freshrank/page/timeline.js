// What has happened, newest first. Only new entries are added, so that a screen reader says each once.

import { el } from "./format.js";

const KINDS = { you: "you", fault: "fault", well: "well", gate: "gate", news: "news" };
const list = document.getElementById("timeline");
let last = "";

const key = (event) => `${event.t_ms} ${event.text}`;

export function drawTimeline({ events }) {
  const known = events.findIndex((event) => key(event) === last);
  const fresh = events.slice(known + 1);
  if (!fresh.length) return;
  if (known < 0) list.replaceChildren();
  last = key(events.at(-1));
  for (const event of fresh) {
    const time = el("time", "", new Date(event.t_ms).toLocaleTimeString("en-GB"));
    list.prepend(el("li", event.kind, time, el("span", "kind", KINDS[event.kind]), el("span", "", event.text)));
  }
}
