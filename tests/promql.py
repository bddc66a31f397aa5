"""What the expressions of alerts and dashboards name: metrics and labels, checked against the table of metrics."""

import re
from collections.abc import Iterator

from prometheus_client.utils import floatToGoString

from freshrank.metrics import MetricRow, metric_table
from ranker.freshness_stages import BOUNDS_MS
from ranker.stats import LATENCY_BOUNDS_MS

OF_SCRAPES = {"job", "instance"}
"""Labels that Prometheus adds to whatever it scrapes."""
_SELECTOR = re.compile(r"\b(?P<name>freshrank_[a-z0-9_]+)(?:\{(?P<matchers>[^}]*)\})?")
_MATCHER = re.compile(r'(\w+)\s*(?:=~|!~|!=|=)\s*"((?:[^"\\]|\\.)*)"')
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
_SUFFIXES = ("_bucket", "_count", "_sum")


def metrics_named(expression: str) -> set[str]:
    """Returns the rows of the table that an expression reads."""
    return {_row(match["name"])[0] for match in _SELECTOR.finditer(expression)}


def faults(expression: str) -> Iterator[str]:
    """Yields what an expression names and no process has."""
    known: set[str] = set(OF_SCRAPES)
    for match in _SELECTOR.finditer(expression):
        name, suffix = _row(match["name"])
        row = TABLE.get(name)
        if row is None:
            yield f"{match['name']} is no metric"
            continue
        if (row.type == "histogram") != bool(suffix):
            yield f"{match['name']}: {row.type} {row.name} has no such series"
        labels = {*row.labels, *OF_SCRAPES, *({"le"} if suffix == "_bucket" else ())}
        known |= labels
        for label, value in _MATCHER.findall(match["matchers"] or ""):
            if label not in labels:
                yield f"{match['name']} has no label {label}; {sorted(labels)}"
            if label == "le" and value not in BOUNDS:
                yield f"{match['name']}: no bucket ends at {value}"
    for grouping in _GROUPING.findall(expression):
        yield from (f"nothing here has a label {label}" for label in re.findall(r"\w+", grouping) if label not in known)


def _row(series: str) -> tuple[str, str]:
    """Returns the metric a series belongs to, and the suffix of its series if it is a histogram's."""
    if series in TABLE:
        return series, ""
    suffix = next((suffix for suffix in _SUFFIXES if series.endswith(suffix)), "")
    return series.removesuffix(suffix), suffix


TABLE: dict[str, MetricRow] = {row.name: row for row in metric_table()}
BOUNDS = {*(floatToGoString(bound / 1_000) for bound in (*BOUNDS_MS, *LATENCY_BOUNDS_MS)), "+Inf"}
"""Ends of the buckets of all histograms."""
