// Curves without a library: one SVG path per series, scaled to the card.

const NS = "http://www.w3.org/2000/svg";

/** Draws series (`{name, values}`, nulls are gaps) into `host`. `line` adds a dashed level, e.g. NE = 1. */
export function drawCurves(host, series, { line = null, zero = false, label = "" } = {}) {
  const all = series.flatMap((s) => s.values).filter((v) => v !== null);
  if (all.length < 2) return;
  let low = Math.min(...all, ...(line === null ? [] : [line]), ...(zero ? [0] : []));
  let high = Math.max(...all, ...(line === null ? [] : [line]));
  if (high - low < 1e-9) { low -= 0.5; high += 0.5; }
  const y = (v) => 100 - (100 * (v - low)) / (high - low);
  const svg = document.createElementNS(NS, "svg");
  svg.setAttribute("viewBox", "0 0 300 100");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", label);
  if (line !== null) svg.append(path(`M0 ${y(line)}H300`, "dim"));
  for (const { name, values } of series) {
    const step = 300 / Math.max(values.length - 1, 1);
    let d = "";
    values.forEach((v, i) => {
      if (v === null) return;
      d += `${i === 0 || values[i - 1] === null ? "M" : "L"}${(i * step).toFixed(1)} ${y(v).toFixed(1)}`;
    });
    svg.append(path(d, name));
  }
  host.replaceChildren(svg);
}

function path(d, name) {
  const element = document.createElementNS(NS, "path");
  element.setAttribute("d", d);
  element.setAttribute("class", name);
  return element;
}
