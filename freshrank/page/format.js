// Numbers as people read them. null, undefined and NaN are a dash: nothing is shown that was not measured.

const missing = (v) => v === null || v === undefined || Number.isNaN(v);

export const whole = (v) => (missing(v) ? "–" : Math.round(v).toLocaleString("en"));
export const fixed = (v, digits = 3) => (missing(v) ? "–" : v.toFixed(digits).replace("-", "−"));
export const percent = (v) => (missing(v) ? "–" : `${Math.round(100 * v)} %`);

/** A rate per second: two digits while it is small. */
export const rate = (v) => (missing(v) ? "–" : v < 10 ? v.toFixed(1) : whole(v));

export function duration(ms) {
  if (missing(ms)) return "–";
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (ms < 60_000) return `${(ms / 1000).toFixed(1)} s`;
  const seconds = Math.round(ms / 1000), minutes = Math.floor(seconds / 60);
  return minutes < 60 ? `${minutes} min ${seconds % 60} s` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

export const bytes = (v) => (missing(v) ? "–" : v < 1e9 ? `${Math.round(v / 2 ** 20)} MiB` : `${(v / 2 ** 30).toFixed(2)} GiB`);

/** Sets the text of an element by id; numbers with a unit get the unit small. */
export function put(id, text) {
  const element = document.getElementById(id);
  if (element.textContent !== text) element.textContent = text;
}

/** An element with a class and children; strings become text, never markup. */
export function el(tag, className = "", ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...children);
  return element;
}
