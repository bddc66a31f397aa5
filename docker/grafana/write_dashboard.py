"""Writes Grafana's `dashboards/overview.json` from the table below.

    python docker/grafana/write_dashboard.py

The queries and their order are in the table; everything Grafana wants around them is made here.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

PATH = Path(__file__).parent / "dashboards/overview.json"
DATASOURCE = {"type": "prometheus", "uid": "prometheus"}
COLUMNS, HEIGHT = 24, 7
OBJECTIVE = 0.99
"""Share of actions that are to be known to the rankings within a second."""


class Panel(NamedTuple):
    """One panel: its queries and what their lines are called, the unit of their values, its width in columns of 24."""

    title: str
    queries: dict[str, str]
    unit: str = "short"
    width: int = 8
    kind: str = "timeseries"
    text: str = ""
    stacked: bool = False
    highest: float | None = None


def rate(series: str, by: str = "") -> str:
    """Returns the query of a counter's slope over all processes, by the values of some labels."""
    return f"sum{f' by ({by})' if by else ''} (rate({series}[$__rate_interval]))"


def quantile(which: float, histogram: str, by: str = "le") -> str:
    """Returns the query of a quantile of a histogram."""
    return f"histogram_quantile({which}, {rate(f'{histogram}_bucket', by)})"


def share(part: str, whole: str, by: str = "") -> str:
    """Returns the query of one counter's slope over another's, by the labels of the first."""
    return f"{rate(part, by)} / on () group_left () {rate(whole)}" if by else f"{rate(part)} / {rate(whole)}"


def of_cells(metric: str) -> str:
    """Returns the query of a metric by task and scenario, of those that are chosen at the top of the page."""
    return f'{metric}{{task=~"$task",scenario=~"$scenario"}}'


PROBED = "freshrank_probe_freshness_seconds"
FRESH, STAGE = "freshrank_ranker_freshness_seconds", "freshrank_ranker_freshness_stage_seconds"
TRAINED, JOINED, RANKED = "freshrank_trainer_", "freshrank_joiner_", "freshrank_ranker_"
DRIFT = of_cells("freshrank_agents_drift_alarms_total")
IN_TIME = FRESH + '_bucket{le="1.0"}'
ROWS: dict[str, list[Panel]] = {
    "Freshness: from an action to the first ranking that knows it": [
        Panel(
            "Within a second",
            {"": share(IN_TIME, f"{FRESH}_count")},
            "percentunit",
            4,
            "stat",
            f"The objective is {OBJECTIVE:.0%}.",
        ),
        Panel("Model age", {"": f"max({RANKED}model_age_seconds)"}, "s", 4, "stat"),
        Panel("Freshness", {"p50": quantile(0.5, FRESH), "p99": quantile(0.99, FRESH)}, "s"),
        Panel(
            "Freshness by stage, mean",
            {"{{stage}}": f"{rate(f'{STAGE}_sum', 'stage')} / {rate(f'{STAGE}_count', 'stage')}"},
            "s",
            text="The stages add up to the freshness: event, joined, trained, published, applied, served.",
            stacked=True,
        ),
        Panel("Freshness by stage, p99", {"{{stage}}": quantile(0.99, STAGE, "le, stage")}, "s"),
        Panel("Stages made negative by clocks", {"{{stage}}": rate(f"{RANKED}freshness_negative_total", "stage")}),
        Panel(
            "Freshness as the probe sees it",
            {"p50": quantile(0.5, PROBED), "p99": quantile(0.99, PROBED)},
            "s",
            text="Measured over HTTP by `freshrank probe`, where it runs.",
        ),
        Panel("Alerts", {"{{alertname}}": 'ALERTS{alertstate="firing"}'}, width=24, kind="state-timeline"),
    ],
    "Quality of the model": [
        Panel(
            "Normalized entropy",
            {"{{task}} {{scenario}}": of_cells(f"{TRAINED}normalized_entropy_ratio")},
            text="Below 1 beats knowing the mean rate. Each example is scored just before it is learned.",
        ),
        Panel("AUC", {"{{task}} {{scenario}}": of_cells(f"{TRAINED}auc_ratio")}, highest=1.0),
        Panel(
            "Calibration",
            {"{{task}} {{scenario}}": of_cells(f"{TRAINED}calibration_ratio")},
            text="Mean score over mean label; 1 is right.",
        ),
        Panel(
            "Calibration as served, by cohort of versions",
            {"{{task}} {{scenario}} {{cohort}}": of_cells("freshrank_agents_online_calibration_ratio")},
        ),
        Panel("AUC as served", {"{{task}} {{scenario}}": of_cells("freshrank_agents_online_auc_ratio")}, highest=1.0),
        Panel(
            "Drift alarms in a quarter of an hour",
            {"{{task}} {{scenario}}": f"sum by (task, scenario) (increase({DRIFT}[15m]))"},
        ),
    ],
    "Joining": [
        Panel(
            "Events and labels per second",
            {
                "impressions": rate(f"{JOINED}impressions_total"),
                "feedback": rate(f"{JOINED}feedback_total"),
                "labels": rate(f"{JOINED}labels_total"),
            },
        ),
        Panel(
            "Events without effect per second",
            {
                name: rate(f"{JOINED}{name}_total")
                for name in (
                    *("malformed", "impression_duplicate", "impression_late", "feedback_duplicate", "feedback_late"),
                    *("feedback_unmatched", "feedback_outside_window", "clock_ahead", "lost_messages"),
                )
            },
        ),
        Panel("Age of the watermark", {"partition {{partition}}": f"{JOINED}watermark_age_seconds"}, "s"),
        Panel(
            "Waiting",
            {
                "slates {{partition}}": f"{JOINED}open_slates",
                "feedback {{partition}}": f"{JOINED}pending_feedback",
            },
        ),
        Panel(
            "Transactions per second",
            {"committed": rate(f"{JOINED}commits_total"), "aborted": rate(f"{JOINED}aborted_total")},
        ),
        Panel(
            "Sequences: trouble per second",
            {
                "Redis": rate("freshrank_agents_redis_failures_total"),
                "malformed": rate("freshrank_agents_malformed_total"),
            },
        ),
    ],
    "Training and publishing": [
        Panel("Examples per second", {"": rate(f"{TRAINED}examples_total")}),
        Panel("Age of what is learned", {"": f"{TRAINED}watermark_age_seconds"}, "s"),
        Panel("Loss", {"": f"{TRAINED}loss"}),
        Panel(
            "Snapshots per second",
            {
                "{{kind}}": rate(f"{TRAINED}snapshots_total", "kind"),
                "not: {{reason}}": rate(f"{TRAINED}publish_failures_total", "reason"),
            },
        ),
        Panel("The gate says", {"{{state}}": f"{TRAINED}gate_state_ratio == 1"}, kind="state-timeline"),
        Panel(
            "Training stands still for",
            {"publish": f"{TRAINED}publish_seconds", "checkpoint": f"{TRAINED}checkpoint_seconds"},
            "s",
        ),
        Panel("Size of a snapshot", {"": f"{TRAINED}payload_bytes"}, "bytes"),
        Panel("Embedding rows", {"{{field}}": f"{TRAINED}table_rows"}),
        Panel(
            "Trouble in ten minutes",
            {
                "steps skipped": f"increase({TRAINED}skipped_total[10m])",
                "examples held": f"increase({TRAINED}held_total[10m])",
                "dead letters": f"increase({TRAINED}dead_letters_total[10m])",
                "checkpoints failed": f"increase({TRAINED}checkpoint_failures_total[10m])",
            },
        ),
    ],
    "Ranking": [
        Panel("Rankings per second", {"{{instance}}": rate(f"{RANKED}requests_total", "instance")}, "reqps"),
        Panel(
            "Latency",
            {
                "p50": quantile(0.5, f"{RANKED}latency_seconds"),
                "p99 {{instance}}": quantile(0.99, f"{RANKED}latency_seconds", "le, instance"),
            },
            "s",
        ),
        Panel(
            "Answers without something",
            {"{{reason}}": share(f"{RANKED}degraded_total", f"{RANKED}requests_total", "reason")},
            "percentunit",
        ),
        Panel("Version", {"{{instance}}": f"{RANKED}version", "released": f"{TRAINED}released_version"}),
        Panel("Swaps change", {"{{figure}}": f"{RANKED}churn_ratio"}, "percentunit"),
        Panel(
            "Refused and dropped per second",
            {
                "rank requests": rate(f"{RANKED}requests_refused_total"),
                "feedback refused": rate(f"{RANKED}feedback_refused_total"),
                "feedback dropped": rate(f"{RANKED}feedback_dropped_total"),
                "impressions dropped": rate(f"{RANKED}impressions_dropped_total"),
                "snapshot: {{reason}}": rate(f"{RANKED}snapshots_refused_total", "reason"),
            },
        ),
    ],
    "Blending": [
        Panel("Version and share", {"version": f"{RANKED}blender_version", "share": f"{RANKED}blender_share_ratio"}),
        Panel("Lift of the last candidate", {"{{bound}}": "freshrank_blender_lift_ratio"}, "percentunit"),
        Panel(
            "Requests of the round",
            {"there": "freshrank_blender_round_requests", "missing": "freshrank_blender_round_missing_requests"},
        ),
        Panel("Exploring", {"{{instance}}": f"{RANKED}exploring_ratio"}, kind="state-timeline"),
        Panel(
            "The config's weights instead, per second",
            {"{{reason}}": rate(f"{RANKED}blender_fallback_total", "reason")},
        ),
        Panel(
            "Taken back in an hour",
            {
                "weights": "increase(freshrank_blender_rollbacks_total[1h])",
                "exploration": "increase(freshrank_blender_exploration_trips_total[1h])",
            },
        ),
    ],
    "Processes": [
        Panel("Up", {"{{instance}}": "up"}, kind="state-timeline"),
        Panel("Cores used", {"{{instance}}": "rate(process_cpu_seconds_total[$__rate_interval])"}, stacked=True),
        Panel("Memory", {"{{instance}}": "process_resident_memory_bytes"}, "bytes", stacked=True),
    ],
}


def panels() -> Iterator[dict[str, Any]]:
    """Yields Grafana's panels, row after row, each as far left as there is room."""
    number, top = 0, 0
    for title, row in ROWS.items():
        number += 1
        yield {
            "id": number,
            "type": "row",
            "title": title,
            "collapsed": False,
            "panels": [],
            "gridPos": at(0, top, 24, 1),
        }
        left, top = 0, top + 1
        for panel in row:
            number += 1
            if left + panel.width > COLUMNS:
                left, top = 0, top + HEIGHT
            yield {"id": number, "gridPos": at(left, top, panel.width, HEIGHT), **drawn(panel)}
            left += panel.width
        top += HEIGHT


def at(left: int, top: int, width: int, height: int) -> dict[str, int]:
    """Returns a place on Grafana's grid."""
    return {"x": left, "y": top, "w": width, "h": height}


def drawn(panel: Panel) -> dict[str, Any]:
    """Returns a panel as Grafana describes it, but for its place."""
    defaults: dict[str, Any] = {"unit": panel.unit}
    options: dict[str, Any] = {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}}
    if panel.kind == "stat":
        options = {"reduceOptions": {"calcs": ["lastNotNull"]}}
    elif panel.kind == "state-timeline":
        options = {"legend": {"showLegend": False}, "showValue": "never"}
    else:
        custom = {"fillOpacity": 30, "stacking": {"mode": "normal"}} if panel.stacked else {"fillOpacity": 0}
        defaults |= {"custom": custom, "min": 0} if panel.stacked else {"custom": custom}
    if panel.highest is not None:
        defaults["max"] = panel.highest
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.text,
        "datasource": DATASOURCE,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options,
        "targets": [
            {"refId": chr(ord("A") + index), "datasource": DATASOURCE, "expr": expression, "legendFormat": legend}
            for index, (legend, expression) in enumerate(panel.queries.items())
        ],
    }


def choice(name: str, chosen: str) -> dict[str, Any]:
    """Returns a choice at the top of the page: the values of a label, one of them to begin with."""
    return {
        "name": name,
        "type": "query",
        "datasource": DATASOURCE,
        "query": {"query": f"label_values(freshrank_trainer_window_rows, {name})", "refId": name},
        "refresh": 2,
        "multi": True,
        "includeAll": True,
        "current": {"text": chosen, "value": "$__all" if chosen == "All" else chosen},
    }


def dashboard() -> dict[str, Any]:
    """Returns the whole dashboard."""
    return {
        "uid": "freshrank",
        "title": "freshrank",
        "schemaVersion": 39,
        "editable": False,
        "time": {"from": "now-15m", "to": "now"},
        "refresh": "5s",
        "templating": {"list": [choice("task", "All"), choice("scenario", "all")]},
        "panels": list(panels()),
    }


if __name__ == "__main__":
    PATH.write_text(json.dumps(dashboard(), indent=1) + "\n")
