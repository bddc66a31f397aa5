"""The HTML page of a search. Pure: what `freshrank.tune.search` returned in, text out."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from freshrank.charts import Reference, line_chart
from freshrank.report import number, page, table

_SHOWN = 20


def tune_page(result: Mapping[str, Any]) -> str:
    """Returns the page: the best configuration, how the search went, the best trials, and each setting's part in it."""
    trials, baseline, best = result["trials"], result["baseline"], result["best"]
    ended = [trial for trial in trials if trial["mean_ne"] is not None]
    cards = [
        (number(best["mean_ne"], 4) if best else "-", "best mean NE"),
        (number(baseline["mean_ne"], 4), "as configured"),
        (f"{len(ended):,}", "trials"),
        (f"{len(trials) - len(ended):,}", "failed"),
        (f"{result['examples']:,}", "examples each"),
    ]
    cells = (f'<div class="card"><b>{value}</b><span class="quiet">{name}</span></div>' for value, name in cards)
    body = [
        f"<h1>Search over {escape(result['architecture'])}</h1>",
        f'<p class="quiet"><code>{escape(result["source"])}</code>, sampler {escape(result["sampler"])}, seed '
        f"{result['seed']}. Each trial is one pass: every micro-batch is scored, then learned. NE is progressive, over "
        "all settled labels, and its mean over the tasks is what is searched for; below 1 beats knowing the mean "
        "rate. Differences as small as those between two seeds mean nothing: compare the winners with "
        "<code>freshrank compare</code>.</p>",
        f'<div class="cards">{"".join(cells)}</div>',
    ]
    if best:
        if best["mean_ne"] >= baseline["mean_ne"]:
            body += ["<p>No trial was better than the configuration as it was given.</p>"]
        body += ["<h2>The best configuration</h2>", f"<pre><code>{escape(result['best_yaml'])}</code></pre>"]
        body += ["<h2>How the search went</h2>", _course(ended, baseline["mean_ne"])]
        body += ["<h2>Best trials</h2>", _trials_table(ended)]
        body += ["<h2>Setting by setting</h2>", _settings_table(ended)]
    failed = [trial for trial in trials if trial["mean_ne"] is None]
    if failed:
        rows: list[tuple[str, list[str], list[str]]] = [
            ("", [str(trial["number"]), _settings(trial["point"]), trial["reason"]], []) for trial in failed
        ]
        body += ["<h2>Failed</h2>", table(("trial", "settings", "why"), (), rows)]
    return page("freshrank tune", body)


def _course(ended: Sequence[Mapping[str, Any]], baseline: float) -> str:
    values = [trial["mean_ne"] for trial in ended]
    series = {"best so far": [min(values[: place + 1]) for place in range(len(values))], "trial": values}
    chart = line_chart(
        [float(place + 1) for place in range(len(values))],
        series,
        x_label="trials",
        reference=Reference(y=baseline, text="as configured"),
    )
    return f'<div class="charts"><figure>{chart}</figure></div>'


def _trials_table(ended: Sequence[Mapping[str, Any]]) -> str:
    tasks = list(ended[0]["tasks"])
    rows = [
        (
            "" if place else "whole",
            [str(trial["number"]), _settings(trial["point"])],
            [
                number(trial["mean_ne"], 4),
                *(number(trial["tasks"][task]["ne"], 4) for task in tasks),
                f"{trial['params']:,}",
            ],
        )
        for place, trial in enumerate(sorted(ended, key=lambda trial: trial["mean_ne"])[:_SHOWN])
    ]
    return table(("trial", "settings"), ("mean NE", *tasks, "parameters"), rows)


def _settings_table(ended: Sequence[Mapping[str, Any]]) -> str:
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for trial in ended:
        for path, value in trial["point"].items():
            found[path, value].append(trial["mean_ne"])
    best = {path: min(min(values) for (other, _), values in found.items() if other == path) for path, _ in found}
    rows = [
        (
            "whole" if min(values) == best[path] else "",
            [path, value],
            [str(len(values)), number(min(values), 4), number(sum(values) / len(values), 4)],
        )
        for (path, value), values in sorted(found.items(), key=lambda pair: (pair[0][0], _sortable(pair[0][1])))
    ]
    return table(("setting", "value"), ("trials", "best", "mean"), rows)


def _sortable(value: str) -> tuple[float, str]:
    try:
        return float(value), value
    except ValueError:
        return 0.0, value


def _settings(point: Mapping[str, str]) -> str:
    return "  ".join(f"{path}={value}" for path, value in point.items())
