"""`freshrank up` for a while on the embedded broker: it learns, says so in figures, and leaves nothing behind."""

import pytest

from tests.e2e.conftest import UpRun

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(180)]
UP_ARGUMENTS = ("--for", "45")


@pytest.fixture(scope="module")
def ended(up_run: UpRun) -> UpRun:
    """The run after it has ended by itself."""
    code = up_run.end(150)
    assert code == 0, up_run.lines[-15:]
    return up_run


def test_ranking_was_served_by_a_snapshot_of_its_own_events(ended: UpRun) -> None:
    report = ended.report()
    assert report["learned"] is True
    assert report["freshness_ms"]["n"] > 0
    assert report["versions"]["learned_own_click"] >= 1
    assert report["time_to_first_changed_ranking_s"] > 0


def test_it_learned(ended: UpRun) -> None:
    report = ended.report()
    click = report["tasks"]["click"]["all"]
    assert click["n"] > 1_000
    assert click["ne"] < 1.0
    assert click["auc"] > 0.5
    assert report["lift"]["share"] > 0.0


def test_report_holds_what_is_promised(ended: UpRun) -> None:
    report = ended.report()
    assert report["examples"] > 1_000
    assert report["steps"] > 10
    assert report["snapshots"] > 10
    assert set(report["tasks"]) == {"click", "order", "hide"}
    for by_scenario in report["tasks"].values():
        assert set(by_scenario) == {"all", "home", "search", "deals"}
        assert all(set(figures) == {"n", "positives", "ne", "auc", "calibration"} for figures in by_scenario.values())
    join = report["join"]
    assert join["impressions"] == join["slates"] + join["impression_duplicate"] + join["impression_late"]
    assert join["malformed"] == join["feedback_unknown_item"] == join["lost_messages"] == 0


def test_it_says_how_it_goes_and_leaves_nothing_behind(ended: UpRun) -> None:
    assert any(line.startswith("The page:  http://127.0.0.1:") for line in ended.lines)
    assert sum("events/s" in line for line in ended.lines) > 15
    assert any(line.startswith("change") for line in ended.lines)
    assert not any("Traceback" in line for line in ended.lines)
    assert ended.left_behind() == []
    assert ended.report()["restarts"] == 0
