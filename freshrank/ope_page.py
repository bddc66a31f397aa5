"""The HTML page of an off-policy evaluation. Pure: what `freshrank ope` writes as JSON in, text out."""

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from freshrank.charts import COLORS, Reference, line_chart
from freshrank.compare_page import Difference, difference_chart
from freshrank.report import number, page, table
from utility_blender.ope_report import WEIGHT_BINS

_LIFTS = {
    "item": "item inclusion",
    "dr": "doubly robust",
    "kernel_ips": "kernel IPS",
    "kernel_snips": "kernel SNIPS",
    "static_mean": "over own mean",
}
_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 560, 180, 12, 36
_GRID, _TEXT = "#e4e7eb", "#52606d"


def ope_page(result: Mapping[str, Any]) -> str:
    """Returns the page: verdict and reasons first, then figures and plots of each group, then the plan."""
    policy = f" · judged: <code>{escape(result['policy'])}</code>" if result["policy"] else ""
    body = ["<h1>Off-policy evaluation</h1>", f'<p class="quiet"><code>{escape(result["source"])}</code>{policy}</p>']
    if "decision" in result:
        body += _verdict(result["decision"])
        for group in result["report"]["groups"]:
            body += _group(group)
    if "plan" in result:
        body += _plan(result["plan"])
    return page("freshrank ope", body)


def _verdict(decision: Mapping[str, Any]) -> Iterator[str]:
    yield f"<h2>{'Passed' if decision['passed'] else 'Refused'}</h2>"
    rows = [
        ("" if rule["verdict"] == "passed" else "whole" if rule["verdict"] == "failed" else "zero",
         [rule["name"], rule["limit"], rule["verdict"]], [number(rule["value"], 4)])
        for rule in decision["rules"]
    ]  # fmt: skip
    yield table(("rule", "must be", "verdict"), ("value",), rows)


def _group(group: Mapping[str, Any]) -> Iterator[str]:
    yield f"<h2>{escape(group['name'])}: {group['num_requests']:,} requests of {group['num_users']:,} users</h2>"
    value = group["value_center"]
    yield (
        f'<p class="quiet">Value of the centre {value["value"]:.4g} ({value["low"]:.4g} to {value["high"]:.4g}); '
        "lifts over it, bounds one-sided at 95 %, users resampled.</p>"
    )
    lifts = [(name, group[key]) for key, name in _LIFTS.items() if group[key] is not None]
    rows = [("", [name], [number(one[key], 4) for key in ("value", "se", "low", "high")]) for name, one in lifts]
    yield table(
        ("lift",),
        ("value", "s.e.", "lower", "upper"),
        [*rows, ("", ["model alone"], [number(group["dm"], 4)] + ["-"] * 3)],
    )
    drawn = [Difference(name, one["value"], 1.645 * one["se"]) for name, one in lifts]
    figures = [f"<figure><h3>Lifts</h3>{difference_chart(drawn)}</figure>"]
    figures += [
        f"<figure><h3>Importance weights, {name}: {legend}</h3>{_histogram(group['weight_counts'][name])}</figure>"
        for name, legend in (
            ("item", f"{group['uncovered']:.2%} of its slates never explored"),
            ("kernel", f"effective share {group['ess']:.0%}"),
        )
    ]
    yield f'<div class="charts">{"".join(figures)}</div>'
    yield table(
        ("mean weight of",),
        ("value", "lower", "upper"),
        [("", [n], [number(w[key], 4) for key in ("value", "low", "high")]) for n, w in group["mean_weights"].items()],
    )
    actions = [
        ("", [scope, action], [f"{one[key]:+.2%}" for key in ("value", "low", "high")])
        for scope, found in group["actions"].items()
        for action, one in found.items()
    ]
    yield table(("where", "action"), ("relative lift", "lower", "upper"), actions)


def _plan(plan: Mapping[str, Any]) -> Iterator[str]:
    yield "<h2>What a verdict needs</h2>"
    origin = "of this policy" if plan["is_measured"] else "scaled from our simulation"
    yield (
        f'<p class="quiet">{plan["num_requests"]:,} explored requests, reward sd/mean {plan["variation"]:.2f}; error '
        f"of a lift {plan['relative_se']:.2%} of the value, {origin}. One-sided 5 %, 80 % power; arms: two-sided, "
        "independent.</p>"
    )
    rows = []
    for row in plan["rows"]:
        figures = [f"{row['paired']:,}", number(row["days"], 1), *(f"{num:,}" for num in row["arms"].values())]
        rows.append(("", [f"{row['lift']:.1%}"], figures))
    arms = [f"{count} arms" for count in plan["rows"][0]["arms"]]
    yield table(("lift",), ("requests, paired", "days", *arms), rows)
    numbers = [plan["num_requests"] * factor for factor in (0.25, 0.5, 1, 2, 4, 8, 16)]
    found = [100 * 2.486 * plan["relative_se"] * (plan["num_requests"] / n) ** 0.5 for n in numbers]
    now = Reference(y=found[2], text="this log")
    chart = line_chart(numbers, {"least lift found, %": found}, x_label="explored requests", reference=now)
    yield f'<div class="charts"><figure><h3>Power</h3>{chart}</figure></div>'


def _histogram(counts: Sequence[int]) -> str:
    """Returns an `<svg>` element: a bar per bin of the weights."""
    step, most = (_WIDTH - 2 * _LEFT) / len(counts), max(*counts, 1)
    floor = _HEIGHT - _BOTTOM
    parts = [f'<line x1="{_LEFT}" y1="{floor}" x2="{_WIDTH - _LEFT}" y2="{floor}" stroke="{_GRID}"/>']
    for place, (edge, count) in enumerate(zip(WEIGHT_BINS, counts, strict=True)):
        x, height = _LEFT + place * step, (floor - 22) * count / most
        middle = x + step / 2
        parts.append(
            f'<rect x="{x + 2:.1f}" y="{floor - height:.1f}" width="{step - 4:.1f}" height="{height:.1f}" '
            f'fill="{COLORS[0]}"/>'
        )
        parts.append(f'<text x="{middle:.1f}" y="{floor - height - 4:.1f}" text-anchor="middle">{count:,}</text>')
        parts.append(f'<text x="{middle:.1f}" y="{floor + 15}" text-anchor="middle">≥ {edge:g}</text>')
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" xmlns="http://www.w3.org/2000/svg" role="img" font-size="11" '
        f'fill="{_TEXT}">{"".join(parts)}</svg>'
    )
