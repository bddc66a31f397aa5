"""The HTML page of the study of stability, and its plots. Pure: what `study_stability` returned in, text out."""

import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from freshrank.charts import Reference, line_chart
from freshrank.report import number, page, table
from freshrank.trade_off_chart import Band, Point, trade_off_chart

CHURN = {"rbo_distance": "churn per period, 1 - RBO.9", "top1_changed": "top-1 changed per period"}
COST = {"ne_difference": "NE over the one without the term", "auc_difference": "AUC over the one without the term"}


def study_stability_page(result: Mapping[str, Any]) -> str:
    """Returns the page of a study in synthetic worlds, or of one on a recorded log, which has the stream part alone.

    Raises:
        ValueError: there is no seed floor to set the churn beside.
    """
    settings = result["settings"]
    what = (
        f"Synthetic worlds that drift, {settings['seeds']} of each kind; the truth is known."
        if settings["synthetic"]
        else f"{settings['source']}: {settings['rows']:,} rows, {settings['seeds']} seeds."
    )
    body = [
        "<h1>Stability against quality</h1>",
        f'<p class="quiet">{escape(what)} Churn is of the utility, on requests that stand still; mean over seeds with '
        "95 % intervals, differences paired by seed. Yellow: what chance alone changes; seed floor: the same data, "
        "other first weights and order; refresh floor: the same model at the start of a period, its data in two "
        f"orders. {result['timing']['wall_s']:,.0f} s.</p>",
        "<h2>One pass over a stream</h2>",
        f'<div class="charts">{"".join(_figure(title, chart) for title, chart in plots(result).items())}</div>',
        _stream_table(result),
    ]
    if "refits" in result:
        body += ["<h2>A refit per period</h2>", _refits_table(result["refits"])]
    if "drift" in result:
        body += ["<h2>After a jump</h2>", _drift_table(result["drift"])]
    return page("freshrank study stability", body)


def plots(result: Mapping[str, Any]) -> dict[str, str]:
    """Returns the plots by title, each an `<svg>` element.

    Raises:
        ValueError: there is no seed floor to set the churn beside.
    """
    found = {}
    for x_figure, x_label in CHURN.items():
        for y_figure, y_label in COST.items():
            found[f"{y_label.split()[0]} against {x_label}"] = _trade_off(result, x_figure, x_label, y_figure, y_label)
    weights = [0.0, *sorted({point["weight"] for point in result["curve"]})]
    base = result["stream"]["no term"]
    for figure, title, level in (
        ("calibration", "calibration by weight", Reference(y=1.0, text="right")),
        ("wlr", "wins over losses among turned pairs, by weight", Reference(y=1.0, text="as many wins as losses")),
    ):
        series = _by_form(result["curve"], base, figure)
        found[title] = line_chart(weights, series, x_label="weight of the term", reference=level)
    pairs = {
        f"{form}: {side}": values
        for side in ("good", "bad")
        for form, values in _by_form(result["curve"], base, f"{side}_pairs").items()
        if form == "ce"
    }
    nothing = Reference(y=0.0, text="nothing turns")
    found["pairs of a request that turn, by weight"] = line_chart(
        weights, pairs, x_label="weight of the term", reference=nothing
    )
    if "drift" in result:
        drift = result["drift"]
        publishes = [age * result["settings"]["publishes"] for age in drift["age_periods"]]
        series = {_short(name): one["ne_excess"] for name, one in drift["variants"].items()}
        found["NE over the one without the term, since a jump"] = line_chart(
            publishes, series, x_label="publishes", reference=Reference(y=0.0, text="no term")
        )
    return found


def svg_files(result: Mapping[str, Any]) -> dict[str, str]:
    """Returns the plots by the name of a file, each to be shown by itself."""
    return {
        re.sub(r"[^a-z0-9]+", "-", f"stability {title}".lower()): chart.replace(
            'font-family="inherit"', 'font-family="sans-serif"'
        )
        for title, chart in plots(result).items()
    }


def seed_floor(result: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the churn between two seeds, without which churn says nothing.

    Raises:
        ValueError: it is missing.
    """
    floor: Mapping[str, Any] | None = result.get("floors", {}).get("seed")
    if not floor:
        raise ValueError("floors.seed: missing; churn without its seed floor is not shown")
    return floor


def _by_form(curve: Sequence[Mapping[str, Any]], base: Mapping[str, Any], figure: str) -> dict[str, list[float]]:
    forms = dict.fromkeys(point["form"] for point in curve)
    return {
        form: [base[figure]["mean"], *(point[figure]["mean"] for point in curve if point["form"] == form)]
        for form in forms
    }


def _trade_off(result: Mapping[str, Any], x_figure: str, x_label: str, y_figure: str, y_label: str) -> str:
    def point(found: Mapping[str, Any], label: str) -> Point:
        (x, x_half), (y, y_half) = (_mean_and_half(found[name]) for name in (x_figure, y_figure))
        return Point(x, y, x_half, y_half, label)

    base, curve = result["stream"]["no term"], result["curve"]
    lines = {
        form: [point(base, "no term"), *(point(one, one["name"]) for one in curve if one["form"] == form)]
        for form in dict.fromkeys(one["form"] for one in curve)
    }
    on_curve = {one["name"] for one in curve}
    most = 2 * max(abs(one.y) for line in lines.values() for one in line)  # what is far worse is in the table alone
    others = [point(found, name) for name, found in result["stream"].items() if name not in on_curve]
    markers = [one for one in others if abs(one.y) <= most]
    bands = []
    for name, floor in (("seed floor", seed_floor(result)), ("refresh floor", result["floors"].get("refresh"))):
        if floor:
            mean, half = _mean_and_half(floor[x_figure])
            bands.append(Band(low=mean - half, high=mean + half, text=name))
    limit = result["settings"]["free_ne"] if y_figure == "ne_difference" else 0.0
    level = (limit, "at no cost below" if limit else "as without the term")
    return trade_off_chart(lines, markers, bands, x_label=x_label, y_label=y_label, level=level)


def _stream_table(result: Mapping[str, Any]) -> str:
    floors = {"seed": seed_floor(result), **{n: f for n, f in result["floors"].items() if n != "seed" and f}}
    chosen = (result["free_with_term"] or {}).get("name")
    rows = [
        (
            "whole" if name == chosen else "",
            [name],
            [with_interval(found[figure], digits) for figure, digits in _STREAM.items()],
        )
        for name, found in result["stream"].items()
    ]
    shared = ("top1_changed", "rbo_distance")
    rows += [
        (
            "zero",
            [f"{name} floor"],
            [with_interval(floor[figure], digits) if figure in shared else "" for figure, digits in _STREAM.items()],
        )
        for name, floor in floors.items()
    ]
    titles = ("NE - base", "AUC - base", "top-1", "over base's", "1 - RBO.9", "top-1 a publish", "calibration", "WLR")
    return table(("",), titles, rows)


def _refits_table(refits: Mapping[str, Any]) -> str:
    rows = []
    chosen = (refits["free_against_scratch"] or {}).get("name")
    for name, found in refits["against_scratch"].items():
        warm = refits["against_warm"][name]
        cells = [with_interval(found[figure], digits) for figure, digits in _REFITS.items()]
        cells += [with_interval(warm["top1_ratio"], 3), with_interval(warm["ne_difference"], 4)]
        rows.append(("whole" if name == chosen else "", [name], cells))
    floor = refits["floor"]
    cells = ["", *(with_interval(floor[f], _REFITS[f]) for f in ("top1_changed", "rbo_distance")), *[""] * 5]
    rows.append(("zero", ["seed floor (scratch)"], cells))
    own = ("NE", "top-1", "1 - RBO.9", "calibration", "over scratch's", "NE - scratch's")
    titles = (*own, "top-1 over warm's", "NE - warm's")
    return table(("",), titles, rows)


def _drift_table(drift: Mapping[str, Any]) -> str:
    rows = [("", [name], [with_interval(one["area"], 4)]) for name, one in drift["variants"].items()]
    return table(("",), ("NE over the one without the term, times periods",), rows)


_STREAM = {
    "ne_difference": 4, "auc_difference": 4, "top1_changed": 3, "top1_ratio": 3, "rbo_distance": 3,
    "publish_top1_changed": 3, "calibration": 3, "wlr": 2,
}  # fmt: skip
_REFITS = {
    "ne": 4, "top1_changed": 3, "rbo_distance": 3, "calibration": 3, "top1_ratio": 3, "ne_difference": 4
}  # fmt: skip


def with_interval(figure: Mapping[str, Any], digits: int) -> str:
    """Returns a mean and half its interval as text."""
    mean, half = _mean_and_half(figure)
    return number(mean, digits) if figure["ci"] is None else f"{number(mean, digits)} ± {number(half, digits)}"


def _mean_and_half(figure: Mapping[str, Any]) -> tuple[float, float]:
    return figure["mean"], figure["ci"][1] - figure["mean"] if figure["ci"] else 0.0


def _short(name: str) -> str:
    """Returns the name of a way to follow a jump, as short as a legend needs it."""
    return name.replace("weight ", "w").replace(", age", " age").replace(", with", "")


def _figure(title: str, chart: str) -> str:
    return f"<figure><h3>{escape(title)}</h3>{chart}</figure>"
