"""`freshrank up` on the embedded broker: it learns, says so in figures, and leaves nothing behind."""

import signal
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import httpx
import pytest

from freshrank.command import now_ms
from freshrank.live_probe import LiveProbe
from tests.e2e.conftest import UpRun, wait_for_state

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(200)]
UP_ARGUMENTS = ("--for", "150")
"""Ended by SIGTERM as soon as it has learned; a machine too slow for that ends by itself."""


@pytest.fixture(scope="module")
def probe(up_run: UpRun) -> Iterator[LiveProbe]:
    """A probe of the run."""
    with httpx.Client(base_url=up_run.ranker_url) as http:
        yield LiveProbe(http, "home", "click", timeout_ms=30_000, clock_ms=now_ms, wait=pause)


def pause(seconds: float) -> bool:
    time.sleep(seconds)
    return False


@pytest.fixture(scope="module")
def ended(up_run: UpRun, probe: LiveProbe) -> UpRun:
    """The run after it was seen to learn, and probed once."""
    wait_for_state(up_run, has_learned, "the click task beats the mean rate and rankings beat a random order", 140)
    probe.round()
    up_run.child.send_signal(signal.SIGTERM)
    assert up_run.end(60) == 0, up_run.lines[-15:]
    return up_run


def has_learned(state: dict[str, Any]) -> bool:
    """Tells whether it learned: NE of clicks below 1 over thousands of labels, and lift over a random order."""
    click = state["quality"]["click"]["all"]
    return (click["n"] or 0) > 5_000 and (click["ne"] or 9.0) < 1.0 and (state["lift"]["share"] or 0.0) > 0.0


def test_ranking_was_served_by_a_snapshot_of_its_own_events(ended: UpRun) -> None:
    report = ended.report()
    assert report["learned"] is True
    assert report["freshness_ms"]["n"] > 0
    assert all(stage["n"] > 0 and stage["p50"] is not None for stage in report["stages_ms"].values())
    assert report["versions"]["learned_own_click"] >= 1
    assert report["time_to_first_changed_ranking_s"] > 0


def test_probe_saw_a_ranking_that_knew_its_action(ended: UpRun, probe: LiveProbe) -> None:
    assert asdict(probe.counters) == {"actions": 1, "known": 1, "missed": 0, "failures": 0}
    assert 0 < probe.freshness_ms.total < 30_000


def test_report_holds_what_is_promised(ended: UpRun) -> None:
    report = ended.report()
    assert report["examples"] >= report["steps"] >= report["snapshots"] > 0
    assert set(report["tasks"]) == {"click", "order", "hide"}
    for by_scenario in report["tasks"].values():
        assert set(by_scenario) == {"all", "home", "search", "deals"}
        assert all(set(figures) == {"n", "positives", "ne", "auc", "calibration"} for figures in by_scenario.values())
    join = report["join"]
    assert join["impressions"] == join["slates"] + join["impression_duplicate"] + join["impression_late"]
    assert join["malformed"] == join["feedback_unknown_item"] == join["lost_messages"] == 0


def test_it_says_how_it_goes_and_leaves_nothing_behind(ended: UpRun) -> None:
    assert any(line.startswith("The page:  http://127.0.0.1:") for line in ended.lines)
    assert any("events/s" in line for line in ended.lines)
    assert any(line.startswith("change") for line in ended.lines)
    assert not any("Traceback" in line for line in ended.lines)
    assert ended.left_behind() == []
    assert ended.report()["restarts"] == 0
