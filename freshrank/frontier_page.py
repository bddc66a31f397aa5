"""The HTML page of a frontier. Pure: what `freshrank.frontier.frontier` returned in, text out."""

import itertools
from collections.abc import Mapping
from html import escape
from typing import Any

from freshrank.frontier import AS_CONFIGURED
from freshrank.report import number, page, table
from freshrank.scatter import Dot, scatter_chart


def frontier_page(result: Mapping[str, Any]) -> str:
    """Returns the page: what least misery takes, a chart per pair of tasks, and the table of all runs."""
    picked = result["least_misery"]
    charts = [
        f"<figure><h3>{escape(one)} against {escape(other)}</h3>{_chart(result, one, other)}</figure>"
        for one, other in itertools.combinations(result["tasks"], 2)
    ]
    body = [
        "<h1>The frontier of the tasks</h1>",
        f'<p class="quiet"><code>{escape(result["source"])}</code>, {result["examples"]:,} examples, seeds: '
        f"{result['seeds']}. Each run is PE-LTR with other least weights, and <code>{AS_CONFIGURED}</code> the "
        "configuration as it was given. NE is progressive: every micro-batch is scored, then learned; less is better."
        "</p>",
        f"<p>Least misery (the worst task is best) takes <b>{escape(picked['ne'])}</b>; by log loss, where rare tasks "
        f"hardly count, <b>{escape(picked['log_loss'])}</b>.</p>",
        *_truth(result),
        "<h2>Pairs of tasks</h2>",
        '<p class="quiet">Filled: efficient, no other run is at least as good for every task. Hollow: one is.</p>',
        f'<div class="charts">{"".join(charts)}</div>',
        "<h2>All runs</h2>",
        _table(result),
    ]
    return page("freshrank study frontier", body)


def _truth(result: Mapping[str, Any]) -> list[str]:
    if not result["truth"]:
        return []
    cells = ", ".join(f"{task} {number(found['ne'], 4)}" for task, found in result["truth"].items())
    return [f"<p>The true probabilities themselves have an NE of: {escape(cells)}.</p>"]


def _chart(result: Mapping[str, Any], one: str, other: str) -> str:
    dots = [
        Dot(
            run["tasks"][one]["ne"]["mean"],
            run["tasks"][other]["ne"]["mean"],
            run["name"],
            "chosen" if run["name"] == result["least_misery"]["ne"] else "usual" if run["is_efficient"] else "weak",
        )
        for run in result["runs"]
    ]
    return scatter_chart(dots, x_label=f"NE {one}", y_label=f"NE {other}")


def _table(result: Mapping[str, Any]) -> str:
    tasks = result["tasks"]
    rows = []
    for run in sorted(result["runs"], key=lambda run: max(run["tasks"][task]["ne"]["mean"] for task in tasks)):
        figures = [run["tasks"][task]["ne"] for task in tasks]
        cells = [number(figure["mean"], 4) + (f" ± {figure['ci']:.4f}" if figure["ci"] else "") for figure in figures]
        kind = "whole" if run["name"] == result["least_misery"]["ne"] else "" if run["is_efficient"] else "zero"
        cells += [number(max(figure["mean"] for figure in figures), 4)]
        cells += [number(run["weights"][task], 3) for task in tasks]
        rows.append((kind, [run["name"], "yes" if run["is_efficient"] else "no"], cells))
    names = (*(f"NE {task}" for task in tasks), "worst", *(f"weight {task}" for task in tasks))
    return table(("least weights", "efficient"), names, rows)
