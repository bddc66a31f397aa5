"""Grafana's dashboard: written from its table, drawn from metrics that exist, provisioned where compose mounts it."""

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.promql import TABLE, faults, metrics_named

GRAFANA = Path(__file__).parents[2] / "docker/grafana"
PATH = GRAFANA / "dashboards/overview.json"
DASHBOARD: dict[str, Any] = json.loads(PATH.read_text())
PANELS: list[dict[str, Any]] = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
ELSEWHERE = {"ALERTS", "up", "process_cpu_seconds_total", "process_resident_memory_bytes"}
"""What Prometheus itself, or its client library, has."""


def test_dashboard_is_what_the_table_writes() -> None:
    written = runpy.run_path(str(GRAFANA / "write_dashboard.py"))["dashboard"]()
    assert written == DASHBOARD, "run: python docker/grafana/write_dashboard.py"


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_panel_reads_metrics_that_exist(panel: dict[str, Any]) -> None:
    assert panel["targets"]
    refs = [target["refId"] for target in panel["targets"]]
    assert len(refs) == len(set(refs))
    for target in panel["targets"]:
        expression = target["expr"]
        assert list(faults(expression)) == []
        assert metrics_named(expression) or any(name in expression for name in ELSEWHERE), expression
        for label in legend_labels(target["legendFormat"]):
            assert label in labels_of(expression), f"{expression} has no label {label}"


def legend_labels(legend: str) -> list[str]:
    return [part.split("}}")[0] for part in legend.split("{{")[1:]]


def labels_of(expression: str) -> set[str]:
    """Returns the labels that the answer may have: those grouped by, else those of its metrics."""
    if expression.startswith(("sum by (", "histogram_quantile(")):
        grouping, _, _ = expression.partition("by (")[2].partition(")")
        return set(grouping.split(", "))
    of_metrics = {label for name in metrics_named(expression) for label in TABLE[name].labels}
    return of_metrics | {"instance", "job", "alertname"}


def test_panels_have_numbers_of_their_own_and_do_not_overlap() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len({panel["title"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells


def test_dashboard_asks_the_data_source_that_is_provisioned() -> None:
    [source] = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yml").read_text())["datasources"]
    asked = {"type": source["type"], "uid": source["uid"]}
    assert all(panel["datasource"] == asked for panel in PANELS)
    assert all(target["datasource"] == asked for panel in PANELS for target in panel["targets"])
    assert all(choice["datasource"] == asked for choice in DASHBOARD["templating"]["list"])
    for choice in DASHBOARD["templating"]["list"]:
        metric, label = choice["query"]["query"].removeprefix("label_values(").rstrip(")").split(", ")
        assert label in TABLE[metric].labels


def test_compose_mounts_what_grafana_is_told_to_read() -> None:
    compose = yaml.safe_load((GRAFANA.parents[1] / "docker-compose.yml").read_text())["services"]
    mounts = dict(volume.split(":")[:2] for volume in compose["grafana"]["volumes"] if volume.startswith("./"))
    assert all(volume.endswith(":ro") for volume in compose["grafana"]["volumes"] if volume.startswith("./"))
    assert mounts == {
        "./docker/grafana/provisioning": "/etc/grafana/provisioning",
        "./docker/grafana/dashboards": "/etc/grafana/dashboards",
    }
    [provider] = yaml.safe_load((GRAFANA / "provisioning/dashboards/freshrank.yml").read_text())["providers"]
    assert provider["options"]["path"] == "/etc/grafana/dashboards"
    [source] = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    assert "./docker/alerts.yml:/etc/prometheus/alerts.yml:ro" in compose["prometheus"]["volumes"]
