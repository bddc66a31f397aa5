"""The HTML page of the freshness study. Pure: what `study_freshness` returned in, text out."""

import math
from collections.abc import Mapping
from typing import Any

from freshrank.charts import Reference, line_chart
from freshrank.report import number, page, table


def study_freshness_page(result: Mapping[str, Any]) -> str:
    """Returns the page of a study."""
    body = [
        "<h1>What freshness is worth</h1>",
        f'<p class="quiet">Synthetic: {result["seeds"]} worlds whose tastes go round in '
        f"{result['drift_period_s'] / 3_600:g} h and whose items live {result['item_life_s'] / 60:g} min; "
        f"{result['hours']:g} h measured of each, {result['rows']:,} shown items. One model learns all the time; the "
        f"slates are scored by copies of it, published at different intervals. Task: {result['task']}. AUC and NE are "
        "against the true probabilities; means over worlds with their 95 % interval, losses world by world.</p>",
        f"<figure><h3>AUC lost against publishing every {result['curve'][0]['interval_s']} s</h3>{_chart(result)}"
        "</figure>",
        table(("publish every",), ("AUC", "lost", "NE", "lost"), [_row(point) for point in result["curve"]]),
    ]
    return page("freshrank study freshness", body)


def freshness_plot(result: Mapping[str, Any]) -> str:
    """Returns the plot as an SVG file."""
    return _chart(result).replace('font-family="inherit"', 'font-family="sans-serif"')


def _chart(result: Mapping[str, Any]) -> str:
    curve = result["curve"]
    seconds = [math.log10(point["interval_s"]) for point in curve]
    losses = [point["auc_lost"]["mean"] for point in curve]
    label = "publish interval, log10 of seconds: 0 is a second, 3.6 an hour"
    return line_chart(seconds, {"AUC lost": losses}, x_label=label, reference=Reference(y=0.0, text="always fresh"))


def _row(point: Mapping[str, Any]) -> tuple[str, list[str], list[str]]:
    figures = [_with_interval(point[name]) for name in ("auc", "auc_lost", "ne", "ne_lost")]
    return "", [f"{point['interval_s']:,} s"], figures


def _with_interval(figure: Mapping[str, Any]) -> str:
    mean = number(figure["mean"], 4)
    return mean if figure["ci"] is None else f"{mean} ± {number(figure['ci'][1] - figure['mean'], 4)}"
