// Axes: round numbers at even steps, and the same for all charts that are to be compared.

/** The smallest round step that covers `span` in at most `count` parts, and how many decimals it has. */
export function roundStep(span, count) {
  const power = Math.floor(Math.log10(span / count));
  const round = [1, 2, 2.5, 5, 10].find((m) => m * 10 ** power >= (span / count) * (1 - 1e-9));
  return { step: round * 10 ** power, digits: Math.max(0, (round === 2.5 ? 1 : round === 10 ? -1 : 0) - power) };
}

/** Returns `{low, high, ticks, digits}` around values. `include`: levels that must be on it. `share`: how much of the
 * values must be; the others are drawn at its edge and marked. Null without values. */
export function valueScale(values, { include = [], share = 1, count = 4 } = {}) {
  const sorted = values.filter((v) => v !== null && v !== undefined).sort((a, b) => a - b);
  if (!sorted.length) return null;
  const cut = Math.floor(((1 - share) / 2) * sorted.length);
  const kept = [...sorted.slice(cut, sorted.length - cut), ...include];
  let [low, high] = [Math.min(...kept), Math.max(...kept)];
  if (high - low < 1e-6) [low, high] = [low - 0.1 * Math.max(Math.abs(low), 0.1), high + 0.1 * Math.max(Math.abs(high), 0.1)];
  const { step, digits } = roundStep(high - low, count);
  const [first, last] = [Math.floor(low / step + 1e-9), Math.ceil(high / step - 1e-9)];
  const ticks = Array.from({ length: last - first + 1 }, (_, i) => (first + i) * step);
  return { low: ticks[0], high: ticks.at(-1), ticks, digits };
}

/** Seconds that an axis may be long, and into how many round parts it may be cut. */
const WINDOWS = [[60, 2], [120, 4, 2], [300, 5], [600, 5, 2], [1200, 4, 2], [1800, 6, 3], [3600, 6, 4, 2], [7200, 4, 2], [14400, 4, 2], [86400, 4, 2]];
const TICK_PX = 72;

/** Returns `{from, to, ticks}` of a time axis of some px that ends at the last of `times` and is long enough for all. */
export function timeScale(times, width) {
  const to = times.at(-1) ?? 0;
  const [window_s, ...parts] = WINDOWS.find(([seconds]) => seconds * 1000 >= to - (times[0] ?? to)) ?? WINDOWS.at(-1);
  const num = parts.find((n) => n * TICK_PX <= width) ?? 1;
  const ticks = Array.from({ length: num + 1 }, (_, i) => Math.round(window_s * (1 - i / num)))
    .map((ago_s) => ({ t: to - 1000 * ago_s, text: ago(ago_s) }));
  return { from: to - 1000 * window_s, to, ticks };
}

/** Returns the axis of before where it still fits, so that it does not jump with every value. */
export function steady(before, y) {
  const fits = before && y && before.low <= y.low && before.high >= y.high && before.high - before.low <= 2.01 * (y.high - y.low);
  return fits ? before : y;
}

function ago(seconds) {
  if (seconds < 0.5) return "now";
  return seconds < 120 && seconds % 60 ? `−${Math.round(seconds)} s` : seconds < 7200 ? `−${seconds / 60} min` : `−${seconds / 3600} h`;
}
