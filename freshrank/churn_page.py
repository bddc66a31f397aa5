"""What `freshrank churn` shows: the HTML page, and a table in the terminal. Figures in, text out."""

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any, TextIO

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Column, Table

from freshrank.churn_report import UTILITY
from freshrank.compare_page import Difference, difference_chart
from freshrank.report import number, page, table

RANKING = {
    "top1_changed": "top-1 changed", "affected": "affected", "rbo": "RBO", "kendall_tau_b": "Kendall tau_b",
    "overlap": "overlap", "jaccard": "Jaccard",
}  # fmt: skip
PAIRS = {"good_pairs": "newly right", "bad_pairs": "newly wrong", "wlr": "wins / losses"}
DRIFT = {"mean_abs_drift": "mean |dp|", "spd": "SPD", "logit_rmse": "logit RMSE", "psi": "PSI"}
QUALITY = {
    "ne_old": "NE old", "ne_new": "NE new", "ne_old_affected": "old, affected", "ne_new_affected": "new, affected",
    "ne_old_unaffected": "old, unaffected", "ne_new_unaffected": "new, unaffected",
    "calibration_old": "calibration old", "calibration_new": "new", "ece_old": "ECE old", "ece_new": "new",
}  # fmt: skip
_TEXTS = ("scenario", "ranked by", "")


def churn_page(result: Mapping[str, Any]) -> str:
    """Returns the page of what `freshrank.churn_report.churn_report` returned, with the names of the models."""
    k, rbo = result["k"], result["rbo"]
    body = [
        "<h1>Churn</h1>",
        f'<p class="quiet"><code>{escape(result["old"])}</code> &rarr; <code>{escape(result["new"])}</code> on '
        f"{result['requests']['all']:,} requests of {result['users']:,} users of <code>{escape(result['folder'])}"
        f"</code>. Floor: {escape(result['floor_is'])}. Intervals: 95 %, bootstrap by user.</p>",
        f'<div class="charts"><figure><h3>top-1 changed, and its floor</h3>{_chart(result)}</figure></div>',
        "<h2>Rankings</h2>",
        f'<p class="quiet">By each task alone, and by the utility: after the blender, with the weights of the '
        f"configuration for both models. Affected, overlap and Jaccard: first {k}. RBO: p = {rbo['p']:g}, depth "
        f"{rbo['depth']}, where {rbo['mass']:.2%} of the weight of endless lists lies. Pairs: of one request, of "
        "unlike labels, whose order turned; per request.</p>",
        table(_TEXTS, tuple((RANKING | PAIRS).values()), list(_rows(result, RANKING | PAIRS, with_utility=True))),
        "<h2>Scores</h2>",
        table(_TEXTS, tuple(DRIFT.values()), list(_rows(result, DRIFT, with_utility=False))),
        "<h2>Against the labels</h2>",
        '<p class="quiet">Only where the label window had closed. Affected requests show something else now.</p>',
        table(_TEXTS, tuple(QUALITY.values()), list(_rows(result, QUALITY, with_utility=False))),
    ]
    return page("freshrank churn", body)


def churn_table(result: Mapping[str, Any], out: TextIO) -> None:
    """Prints the rankings' churn beside its floor."""
    columns = [Column(name, no_wrap=True) for name in _TEXTS]
    columns += [Column(name, justify="right") for name in RANKING.values()]
    shown = Table(*columns, title=f"{result['old']} -> {result['new']}; floor: {result['floor_is']}", box=SIMPLE)
    for _, texts, numbers in _rows(result, RANKING, with_utility=True):
        shown.add_row(*texts, *numbers)
    Console(file=out).print(shown)


def _rows(
    result: Mapping[str, Any], figures: Mapping[str, str], *, with_utility: bool
) -> Iterator[tuple[str, list[str], list[str]]]:
    for scenario, cells in result["churn"].items():
        for task, cell in cells.items():
            if task == UTILITY and not with_utility:
                continue
            floor = result["floor"][scenario][task]
            kind = "whole" if task == UTILITY else ""
            yield kind, [scenario, task, "churn"], [_text(cell.get(name)) for name in figures]
            yield "zero", ["", "", "floor"], [_text(floor.get(name)) for name in figures]


def _text(figure: Mapping[str, Any] | float | None) -> str:
    if not isinstance(figure, Mapping):
        return number(figure, 4)
    if figure["ci"] is None:
        return number(figure["mean"], 3)
    return f"{number(figure['mean'], 3)} [{number(figure['ci'][0], 3)}, {number(figure['ci'][1], 3)}]"


def _chart(result: Mapping[str, Any]) -> str:
    rows = []
    for task in (*result["tasks"], UTILITY):
        for what, name in (("churn", task), ("floor", f"{task}, floor")):
            figure = result[what]["all"][task]["top1_changed"]
            half = None if figure["ci"] is None else (figure["ci"][1] - figure["ci"][0]) / 2
            rows.append(Difference(name, figure["mean"], half))
    return difference_chart(rows)
