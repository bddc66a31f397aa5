"""The HTML page and the plots of the delay study. Pure: what `study_delays` returned in, text out."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from freshrank.charts import Reference, line_chart
from freshrank.report import number, page, table

MAIN = ("eager", "eager_plain", "fnw", "es_dfm", "defer", "fsiw", "vanilla_dup", "wait")
OTHERS = ("fnw_rn", "defer_neg", "defuse", "dfm", "fnc", "dfm_exact", "defer_exact", "vanilla")
_WORLD_TEXTS = {
    "stationary": ("Weights stand still", "Unbiased policies end at a calibration of 1; NE differs by noise alone."),
    "weights_step": ("Weights jump: the first window after it", "Half of what was right no longer is."),
    "traffic_step": ("Traffic jumps: the first window after it", "Positives run ahead of negatives where both count."),
}
_EXCESS = Reference(y=0.0, text="the oracle")
_RIGHT = Reference(y=1.0, text="right")


def study_page(result: Mapping[str, Any]) -> str:
    """Returns the page of a study."""
    settings, l4 = result["settings"], result["l4"]
    body = [
        "<h1>Label policies under delayed feedback</h1>",
        f'<p class="quiet">Everything here is synthetic: worlds with known truth, {settings["seeds"]} of each kind, '
        f"window {settings['window_hours']:g} h, drift {settings['drift']:g} per hour, {settings['hours']:g} h "
        f"measured, {settings['items_per_hour']:g} items per hour. Join core and weights are the product's own; the "
        f"model is logistic. Figures are means over seeds with their 95 % interval; excess is NE over the oracle's, "
        f"seed by seed. {result['timing']['wall_s']:,.0f} s.</p>",
        "<h2>Weights walk at random</h2>",
        _figures_table(result["policies"]),
    ]
    for name, (title, text) in _WORLD_TEXTS.items():
        body += [f"<h2>{title}</h2>", f'<p class="quiet">{text}</p>', _figures_table(result["worlds"][name])]
    body += ["<h2>By age</h2>", f'<div class="charts">{"".join(_figures(result))}</div>']
    body += [
        f"<h2>Goal L4: calibration within {l4['goal']:.0%}, window {l4['window_s']} s</h2>",
        '<p class="quiet">Orders at 5 to 9 % of the items; `vanilla` is the naive short look.</p>',
        _l4_table(l4),
    ]
    return page("freshrank study delays", body)


def main_plots(result: Mapping[str, Any]) -> dict[str, str]:
    """Returns the two main plots by name, each an SVG file."""
    charts = {
        "weights-step": _chart(result, MAIN, "weights_step", "ne_excess", _EXCESS),
        "traffic-step": _chart(result, MAIN, "traffic_step", "calibration", _RIGHT),
    }
    return {name: chart.replace('font-family="inherit"', 'font-family="sans-serif"') for name, chart in charts.items()}


def _figures(result: Mapping[str, Any]) -> list[str]:
    figures = []
    for names, which in ((MAIN, "main"), (OTHERS, "others")):
        for title, curve, figure, reference in (
            ("NE over the oracle's, since the weights jumped", "weights_step", "ne_excess", _EXCESS),
            ("AUC, since the weights jumped", "weights_step", "auc", None),
            ("calibration, since traffic jumped", "traffic_step", "calibration", _RIGHT),
            ("NE over the oracle's, since traffic jumped", "traffic_step", "ne_excess", _EXCESS),
            ("positives expected by an age over those seen by then", "delay_age", "calibration", _RIGHT),
        ):
            level = reference or Reference(y=max(result["curves"]["oracle"][curve][figure]), text="the oracle's best")
            chart = _chart(result, names, curve, figure, level)
            figures.append(f"<figure><h3>{escape(title)} ({which})</h3>{chart}</figure>")
    return figures


def _chart(result: Mapping[str, Any], names: Sequence[str], curve: str, figure: str, reference: Reference) -> str:
    series = {name: result["curves"][name][curve][figure] for name in names}
    return line_chart(result["curves"][names[0]][curve]["age_h"], series, x_label="hours", reference=reference)


def _figures_table(policies: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [
        (
            "whole" if name in ("oracle", "truth") else "",
            [name],
            [_with_interval(figures[figure], digits) for figure, digits in _DIGITS.items()],
        )
        for name, figures in sorted(policies.items(), key=lambda pair: pair[1]["ne"]["mean"])
    ]
    return table(("policy",), ("NE", "NE excess", "AUC", "calibration"), rows)


def _l4_table(l4: Mapping[str, Any]) -> str:
    rows = [
        (
            "whole" if figures["within_goal"] else "",
            [name, "yes" if figures["within_goal"] else "no"],
            [_with_interval(figures["bias"], 4), number(figures["worst"], 4), _with_interval(figures["ne"], 4)],
        )
        for name, figures in l4["policies"].items()
    ]
    return table(("policy", "all seeds within"), ("bias", "worst seed", "NE"), rows)


_DIGITS = {"ne": 4, "ne_excess": 4, "auc": 4, "calibration": 3}


def _with_interval(figure: Mapping[str, Any], digits: int) -> str:
    mean = number(figure["mean"], digits)
    if figure["ci"] is None:
        return mean
    return f"{mean} ± {number(figure['ci'][1] - figure['mean'], digits)}"
