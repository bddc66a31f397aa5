"""The HTML page of a comparison. Pure: what `freshrank compare` writes as JSON in, text out."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

from freshrank.charts import COLORS, ticks
from freshrank.report import number, page, table

FIGURES = (("auc", "AUC"), ("ne", "NE"), ("gauc", "GAUC"))
_WIDTH, _ROW, _LEFT, _RIGHT = 560, 22, 170, 16
_GRID, _TEXT = "#e4e7eb", "#52606d"


class Difference(NamedTuple):
    """One row of a difference plot."""

    name: str
    mean: float
    ci: float | None
    """Half width of the 95 % interval; None with a single seed."""


def compare_page(result: Mapping[str, Any]) -> str:
    """Returns the page of a comparison."""
    reference = next(iter(result["models"]))
    body = [
        "<h1>Models compared</h1>",
        f'<p class="quiet"><code>{escape(result["source"])}</code> · configuration '
        f"<code>{escape(result['config_hash'])}</code> · {result['examples']:,} examples learned, "
        f"{result['heldout_examples']:,} held out, {result['seeds']} seeds, batches of {result['batch_rows']:,} · "
        f"{result['budget']:,} dense parameters for each network, within a tenth.</p>",
        "<h2>Sizes and cost</h2>",
        _sizes(result),
        "<h2>Progressive validation</h2>",
        '<p class="quiet">Every batch is scored, then learned. NE below 1 beats knowing the mean rate; GAUC is the AUC '
        "inside each user. Mean over seeds ± half the 95 % interval; a peer without randomness has none.</p>",
        _figures_table(result["models"]),
    ]
    if len(result["models"]) > 1:
        body += [
            f"<h2>Differences from {escape(reference)}</h2>",
            '<p class="quiet">Paired by seed, all scenarios together; right of the line is higher: better for AUC and '
            "GAUC, worse for NE.</p>",
            f'<div class="charts">{"".join(_difference_charts(result, reference))}</div>',
        ]
    if result["heldout_examples"]:
        body += [
            "<h2>Held out</h2>",
            '<p class="quiet">The last examples, scored by the models as they were after the others.</p>',
            _figures_table(result["heldout"]["models"]),
        ]
    return page("freshrank compare", body)


def with_interval(figure: Mapping[str, float | None], digits: int) -> str:
    """Returns mean ± half width, or what of it there is: one pass that stands for all seeds has no interval.

    >>> with_interval({"mean": 0.5, "ci": 0.01}, 3), with_interval({"mean": 0.5, "ci": 0.0}, 3)
    ('0.500 ± 0.010', '0.500')
    >>> with_interval({"mean": None, "ci": None}, 3)
    '-'
    """
    mean = number(figure["mean"], digits)
    return mean if not figure["ci"] else f"{mean} ± {number(figure['ci'], digits)}"


def difference_chart(rows: Sequence[Difference]) -> str:
    """Returns an `<svg>` element: a point and its interval per row, and a line at zero."""
    edges = [row.mean + sign * (row.ci or 0.0) for row in rows for sign in (-1, 1)] + [0.0]
    marks = ticks(min(edges), max(edges), about=4)
    height = _ROW * len(rows) + 34

    def x(value: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (value - marks[0]) / (marks[-1] - marks[0])

    bottom = height - 28
    parts = []
    for mark in marks:
        stroke = f'stroke="{_TEXT}" stroke-dasharray="4 3"' if mark == 0 else f'stroke="{_GRID}"'
        parts.append(f'<line x1="{x(mark):.1f}" y1="4" x2="{x(mark):.1f}" y2="{bottom}" {stroke}/>')
        parts.append(f'<text x="{x(mark):.1f}" y="{bottom + 15}" text-anchor="middle">{mark:.6g}</text>')
    for place, row in enumerate(rows):
        y, color = 4 + _ROW * place + _ROW / 2, COLORS[1 + place % (len(COLORS) - 1)]
        parts.append(f'<text x="{_LEFT - 10}" y="{y + 4:.1f}" text-anchor="end">{escape(row.name)}</text>')
        if row.ci is not None:
            ends = f'x1="{x(row.mean - row.ci):.1f}" x2="{x(row.mean + row.ci):.1f}"'
            parts.append(f'<line {ends} y1="{y:.1f}" y2="{y:.1f}" stroke="{color}" stroke-width="2"/>')
        parts.append(f'<circle cx="{x(row.mean):.1f}" cy="{y:.1f}" r="4" fill="{color}"/>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img" font-size="11" '
        f'font-family="inherit" fill="{_TEXT}">{"".join(parts)}</svg>'
    )


def _difference_charts(result: Mapping[str, Any], reference: str) -> list[str]:
    charts = []
    for task in result["tasks"]:
        for figure, title in FIGURES:
            cells = {name: others[reference][task]["all"][figure] for name, others in _others(result, reference)}
            rows = [
                Difference(name, cell["mean"], cell["ci"]) for name, cell in cells.items() if cell["mean"] is not None
            ]
            if rows:
                charts.append(f"<figure><h3>{escape(task)}: {title}</h3>{difference_chart(rows)}</figure>")
    return charts


def _others(result: Mapping[str, Any], reference: str) -> list[tuple[str, Mapping[str, Any]]]:
    return [(name, others) for name, others in result["pairs"].items() if name != reference]


def _sizes(result: Mapping[str, Any]) -> str:
    rows = []
    for name, size in result["params"].items():
        scale, skipped = result["scale"].get(name), result["skipped_steps"][name]
        cells = ["-" if size is None else f"{size:,}", number(scale, 3), f"{skipped:,}"]
        rows.append(("", [name], [*cells, f"{result['examples_per_cpu_s'][name]:,.0f}"]))
    return table(("model",), ("dense parameters", "widths scaled by", "steps skipped", "examples per CPU second"), rows)


def _figures_table(models: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    rows = []
    tasks = next(iter(models.values()))
    for task, cells in tasks.items():
        for scenario in cells:
            for name, by_task in models.items():
                figures = by_task[task][scenario]
                shown = [with_interval(figures[figure], 4) for figure, _ in FIGURES]
                rows.append(("whole" if scenario == "all" else "", [task, scenario, name], shown))
    return table(("task", "scenario", "model"), [title for _, title in FIGURES], rows)
