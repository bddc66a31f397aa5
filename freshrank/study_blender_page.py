"""The page of the blender's study. Pure: what `freshrank.study_blender.study_blender` returned in, text out."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from freshrank.charts import COLORS, ticks
from freshrank.compare_page import Difference, difference_chart, with_interval
from freshrank.report import page, table

_GRID, _TEXT = "#e4e7eb", "#52606d"
_WIDTH, _HEIGHT = 560, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 120, 12, 40
_FLOOR = -1.0
"""Shares below are drawn at the edge: how far a collapse goes is in the table."""
_TEXTS = {
    "reward_regression": "the recommended form: one gated round",
    "one_step": "its first step in closed form",
    "static_mean": "the mean of its weights, for all contexts",
    "quadratic_q": "the best of 400 arms by a quadratic model",
    "global": "one vector, by a linear model",
    "grid_q": "the best of 7 x 7 arms of two heads by a network; actions are counted",
    "grid_q_once": "the same, each action once per request, as published",
    "published_literal": "the published form, penalty 2, hides as negative positives",
    "published_relabel": "the same, hides as negatives",
    "rounds": "the recommended form in gated rounds",
}
_CHARTS = {
    "step-size": ("The size of the step: penalty on a step", ("clipped", "unclipped"), "penalty, smaller is further"),
    "ablation": (
        "What makes it work: parts left out",
        ("unclipped", "request_credit", "constant_base", "no_centring", "neither"),
        "penalty, smaller is further",
    ),
    "published": (
        "The published form: penalty of the prior",
        ("published_literal", "published_relabel"),
        "penalty, smaller is further",
    ),
    "one-step": ("The closed form: step size", ("one_step",), "step size"),
}


def study_blender_page(result: Mapping[str, Any]) -> str:
    """Returns the page: every way to learn, the rounds, and what the size of a step does."""
    settings = result["settings"]
    charts = [
        f"<figure><h3>{escape(_CHARTS[name][0])}</h3>{chart}</figure>" for name, chart in _curve_charts(result).items()
    ]
    body = [
        "<h1>Learned utility against the best there is</h1>",
        f'<p class="quiet">Synthetic worlds with known truth: {settings["worlds"]}, {settings["requests"]:,} requests '
        f"of each explored at tau {settings['tau']:g} (published form: {settings['published_tau']:g}); the first 70 % "
        "are learned from, the gate judges on the rest. 0 is production, 1 the best weights there are, which gain "
        f"{_percent(result['oracle_lift'])}. Exploring costs {_percent(result['exploration_cost'])} of the explored "
        "requests' reward. Mean over worlds ± half the 95 % interval.</p>",
        f'<div class="charts"><figure><h3>Share of the oracle\'s lift</h3>{_variants_chart(result)}</figure></div>',
        _variants_table(result),
        "<h2>Rounds</h2>",
        f'<p class="quiet">Each explores {settings["round_requests"]:,} requests around the weights then in service; a '
        "refused round goes on.</p>",
        _rounds_table(result),
        "<h2>What a step takes</h2>",
        f'<div class="charts">{"".join(charts)}</div>',
        _curves_table(result),
    ]
    return page("freshrank study blender", body)


def main_plots(result: Mapping[str, Any]) -> dict[str, str]:
    """Returns the plots by name, each an SVG file."""
    charts = {"blender-variants": _variants_chart(result)}
    charts |= {f"blender-{name}": chart for name, chart in _curve_charts(result).items()}
    return {name: chart.replace('font-family="inherit"', 'font-family="sans-serif"') for name, chart in charts.items()}


def gate_cell(passed: int | None, result: Mapping[str, Any]) -> str:
    """Returns in how many worlds the gate let it serve.

    >>> gate_cell(2, {"settings": {"worlds": 3}}), gate_cell(None, {})
    ('passed 2 of 3', '-')
    """
    return "-" if passed is None else f"passed {passed} of {result['settings']['worlds']}"


def share_chart(x: Sequence[float], curves: Mapping[str, Sequence[Mapping[str, Any]]], x_label: str) -> str:
    """Returns an `<svg>` element: shares of the oracle's lift with their intervals, at even steps of x.

    Shares below -1 are drawn at -1.
    """
    points = [(point["mean"], point["ci"] or 0.0) for curve in curves.values() for point in curve]
    low = max(min(0.0, *(mean - ci for mean, ci in points)), _FLOOR)
    marks = ticks(low, max(1.0, *(mean for mean, _ in points)))
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM

    def at_x(place: int) -> float:
        return _LEFT + 14 + (right - _LEFT - 28) * place / max(len(x) - 1, 1)

    def at_y(share: float) -> float:
        inside = min(max(share, marks[0]), marks[-1])
        return _TOP + (bottom - _TOP) * (marks[-1] - inside) / (marks[-1] - marks[0])

    parts = []
    for mark in marks:
        stroke = f'stroke="{_TEXT}" stroke-dasharray="4 3"' if mark in (0, 1) else f'stroke="{_GRID}"'
        parts.append(f'<line x1="{_LEFT}" y1="{at_y(mark):.1f}" x2="{right}" y2="{at_y(mark):.1f}" {stroke}/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{at_y(mark) + 4:.1f}" text-anchor="end">{mark:.6g}</text>')
    parts += [
        f'<text x="{at_x(place):.1f}" y="{bottom + 15}" text-anchor="middle">{value:g}</text>'
        for place, value in enumerate(x)
    ]
    parts.append(f'<text x="{right}" y="{bottom + 32}" text-anchor="end">{escape(x_label)}</text>')
    for number, (name, curve) in enumerate(curves.items()):
        color = COLORS[(number + 1) % len(COLORS)]
        line = " ".join(f"{at_x(place):.1f},{at_y(point['mean']):.1f}" for place, point in enumerate(curve))
        parts.append(f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="2"/>')
        for place, point in enumerate(curve):
            top, end = (at_y(point["mean"] + sign * (point["ci"] or 0.0)) for sign in (1, -1))
            ends = f'x1="{at_x(place):.1f}" x2="{at_x(place):.1f}" y1="{top:.1f}" y2="{end:.1f}"'
            parts.append(f'<line {ends} stroke="{color}"/>')
        y = _TOP + 8 + 17 * number
        parts.append(f'<line x1="{right + 8}" y1="{y}" x2="{right + 24}" y2="{y}" stroke="{color}" stroke-width="2"/>')
        parts.append(f'<text x="{right + 28}" y="{y + 4}">{escape(name)}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" font-size="11" '
        f'font-family="inherit" fill="{_TEXT}">{"".join(parts)}</svg>'
    )


def _variants_chart(result: Mapping[str, Any]) -> str:
    cells = {name: cell["oracle_share"] for name, cell in result["variants"].items()}
    return difference_chart([Difference(name, cell["mean"], cell["ci"]) for name, cell in _sorted(cells)])


def _curve_charts(result: Mapping[str, Any]) -> dict[str, str]:
    charts = {}
    for name, (_, curves, x_label) in _CHARTS.items():
        common = [x for x in result["curves"][curves[0]]["x"] if all(x in result["curves"][one]["x"] for one in curves)]
        points = {
            curve: [
                point
                for x, point in zip(result["curves"][curve]["x"], result["curves"][curve]["oracle_share"], strict=True)
                if x in common
            ]
            for curve in curves
        }
        charts[name] = share_chart(common, points, x_label)
    return charts


def _variants_table(result: Mapping[str, Any]) -> str:
    cells = {name: cell["oracle_share"] for name, cell in result["variants"].items()}
    rows = [
        (
            "whole" if name == "rounds" else "",
            [name, _TEXTS[name]],
            [with_interval(cell, 3), gate_cell(result["variants"][name]["passed"], result)],
        )
        for name, cell in _sorted(cells)
    ]
    return table(("way to learn", "what it is"), ("share of the oracle's lift", "gate"), rows)


def _rounds_table(result: Mapping[str, Any]) -> str:
    rows = [
        ("", [str(place)], [with_interval(cell["oracle_share"], 3), gate_cell(cell["passed"], result)])
        for place, cell in enumerate(result["rounds"], start=1)
    ]
    return table(("round",), ("share of the oracle's lift", "gate"), rows)


def _curves_table(result: Mapping[str, Any]) -> str:
    rows = [
        ("", [name, f"{x:g}"], [with_interval(point, 3)])
        for name, curve in result["curves"].items()
        for x, point in zip(curve["x"], curve["oracle_share"], strict=True)
    ]
    return table(("curve", "penalty or step size"), ("share of the oracle's lift",), rows)


def _sorted(cells: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, Mapping[str, Any]]]:
    return sorted(cells.items(), key=lambda pair: -pair[1]["mean"])


def _percent(figure: Mapping[str, Any]) -> str:
    return with_interval({name: None if value is None else 100 * value for name, value in figure.items()}, 2) + " %"
