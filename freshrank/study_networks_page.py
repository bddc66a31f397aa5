"""The HTML page of a study of networks. Pure: what `freshrank.study_networks.study_networks` returned in, text out."""

from collections.abc import Mapping
from html import escape
from typing import Any

from freshrank.compare_page import Difference, difference_chart, with_interval
from freshrank.report import page, table


def study_networks_page(result: Mapping[str, Any]) -> str:
    """Returns the page: what each network leaves unexplained, and the pairs for which papers claim an order."""
    tasks = list(result["models"]["truth"])
    charts = [
        f"<figure><h3>{escape(task)}: NE above the truth's</h3>{difference_chart(_rows(result, task))}</figure>"
        for task in tasks
    ]
    body = [
        "<h1>Networks and the truth</h1>",
        f'<p class="quiet">Synthetic worlds: {result["worlds"]}, of {result["rows"]:,} rows with conflicting tasks and '
        "shifted scenarios; equal data, order, embeddings and dense parameters (within a tenth); each network at the "
        "learning rate that suits it best in a world apart. Progressive figures of the second half of each world; mean "
        "over worlds ± half the 95 % interval; less is better.</p>",
        f'<div class="charts">{"".join(charts)}</div>',
        "<h2>By task and scenario</h2>",
        _excess(result),
        "<h2>What papers claim</h2>",
        '<p class="quiet">NE of the first minus NE of the second, paired by world: below 0 the claim holds.</p>',
        _claims(result),
    ]
    return page("freshrank study networks", body)


def _rows(result: Mapping[str, Any], task: str) -> list[Difference]:
    cells = {name: by_task[task]["all"]["ne"] for name, by_task in result["excess"].items()}
    return [Difference(name, cell["mean"], cell["ci"]) for name, cell in cells.items()]


def _excess(result: Mapping[str, Any]) -> str:
    rows = [
        (
            "whole" if scenario == "all" else "",
            [task, scenario, name, f"{result['params'][name]:,}", f"{result['dense_lr'][name]:g}"],
            [with_interval(cell[figure], 4) for figure in ("ne", "auc")],
        )
        for name, by_task in result["excess"].items()
        for task, cells in by_task.items()
        for scenario, cell in cells.items()
    ]
    rows.sort(key=lambda row: row[1][:2])
    titles = ("task", "scenario", "network", "parameters", "learning rate")
    return table(titles, ("NE above the truth's", "AUC above the truth's"), rows)


def _claims(result: Mapping[str, Any]) -> str:
    rows = [
        ("", [claim["better"], claim["other"], task], [with_interval(cells["all"]["ne"], 4)])
        for claim in result["expected"]
        for task, cells in claim["difference"].items()
    ]
    return table(("claimed to be no worse", "than", "task"), ("difference of NE",), rows)
