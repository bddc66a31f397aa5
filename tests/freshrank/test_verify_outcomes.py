"""`freshrank verify-join` on outcomes: the joiner's are exact, planted faults are told by name."""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freshrank.verify_join import verify_log
from stream.audit_log import AuditRange
from stream.log import OUTCOMES
from stream.schema import Impression
from tests.freshrank.verified_log import CONFIG, SCHEMA, EditedLog, Event, Row, joined, source_of, traffic
from tests.stream.build import explored, shown
from tests.stream.cluster import Cluster

WITH = replace(CONFIG, outcome_window_ms=13_000)


def explored_traffic(seed: int, **more: Any) -> list[tuple[int, Event]]:
    """Returns the traffic of the other tests, with two slates of three explored; one of them lacks a scale."""
    arrivals = traffic(seed, SCHEMA, **more)
    for _, event in arrivals:
        if isinstance(event, Impression) and event.request_id.startswith("r") and int(event.request_id[1:]) % 3:
            explored(event, SCHEMA.tasks, "not shown")
            if event.request_id == "r4" and event.served is not None:
                event.served.scale = {}
    return arrivals


@pytest.fixture(scope="module")
def cluster() -> Cluster:
    return joined(explored_traffic(seed=4), SCHEMA, config=WITH)


def test_the_joiners_outcomes_are_exact(cluster: Cluster) -> None:
    report = verify_log(source_of(cluster), SCHEMA, WITH)
    assert report.findings == []
    assert report.outcomes == sum(number % 3 != 0 for number in range(12)) - 1 == cluster.counters().outcomes


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10**6), st.sets(st.integers(0, 200), max_size=3), st.sampled_from([0.0, 0.3]))
def test_killed_and_started_again_they_stay_exact_whatever_is_late(seed: int, crash_at: set[int], wild: float) -> None:
    again = joined(explored_traffic(seed, wild_share=wild), SCHEMA, config=WITH, crash_at=crash_at)
    assert verify_log(source_of(again), SCHEMA, WITH).findings == []


def busy(rows: list[Row]) -> list[Row]:
    """Returns the rows in which something was done."""
    return [row for row in rows if row["action.name"]]


def lose(rows: list[Row]) -> None:
    del rows[:1]


def double(rows: list[Row]) -> None:
    rows.extend(dict(row) for row in rows[:1])


def misname(rows: list[Row]) -> None:
    for row in rows[:1]:
        row["request_id"] = "nobody"


def raise_value(rows: list[Row]) -> None:
    for row in busy(rows)[:1]:
        row["action.value"] = [row["action.value"][0] + 1.0, *row["action.value"][1:]]


def shift_time(rows: list[Row]) -> None:
    for row in busy(rows)[:1]:
        row["action.first_ts"] = [row["action.first_ts"][0] - 1, *row["action.first_ts"][1:]]


def forget_action(rows: list[Row]) -> None:
    for row in busy(rows)[:1]:
        for name in ("position", "name", "value", "first_ts"):
            row[f"action.{name}"] = row[f"action.{name}"][1:]


def swap_candidates(rows: list[Row]) -> None:
    for row in rows[:1]:
        row["item_id"] = row["item_id"][::-1]
        row["action.position"], row["action.name"], row["action.value"], row["action.first_ts"] = [], [], [], []


def send_early(rows: list[Row]) -> None:
    for row in rows[:1]:
        row["emitted_watermark_ms"] = row["close_ms"]


@pytest.mark.parametrize(
    ("spoil", "counts", "text"),
    [
        (lose, {"lost": 1}, "an outcome expected, none found"),
        (double, {"double": 1}, "an outcome found beyond the one expected"),
        (misname, {"lost": 1, "wrong": 1}, "never showed"),
        (raise_value, {"wrong": 1}, "actions .* expected"),
        (shift_time, {"wrong": 1}, "actions .* expected"),
        (forget_action, {"wrong": 1}, "actions .* expected"),
        (swap_candidates, {"wrong": 1}, "candidates .* expected"),
        (send_early, {"wrong": 1}, "before it passed"),
    ],
)
def test_planted_faults_are_reported_under_their_names(
    cluster: Cluster, spoil: Callable[[list[Row]], None], counts: dict[str, int], text: str
) -> None:
    log = EditedLog(cluster)
    num = sum(bool(log.log[OUTCOMES, number]) for number in range(log.num_partitions))
    report = verify_log(log.edit(spoil, OUTCOMES), SCHEMA, WITH)
    for name in ("lost", "double", "contradictory", "wrong"):
        at_least = counts.get(name, 0) * num
        assert getattr(report, name) >= at_least
        assert bool(getattr(report, name)) == bool(at_least), name
    assert any(re.search(text, finding.text) for finding in report.findings)


def test_an_outcome_of_a_slate_that_was_not_explored_is_wrong(cluster: Cluster) -> None:
    def take_over(rows: list[Row]) -> None:
        for row in rows[:1]:
            row["request_id"], row["ts"] = "beat-u0-0", 0

    report = verify_log(EditedLog(cluster).edit(take_over, OUTCOMES), SCHEMA, WITH)
    assert any("not explored" in finding.text or "never showed" in finding.text for finding in report.findings)


def test_an_open_outcome_is_not_missed() -> None:
    cluster = Cluster(SCHEMA, WITH)
    cluster.start()
    cluster.send(explored(shown(at=0), SCHEMA.tasks))
    for _ in range(12):
        cluster.now_ms += 1_000
        cluster.turn()
    report = verify_log(source_of(cluster), SCHEMA, WITH, lag_ms=0)
    assert (report.findings, report.outcomes) == ([], 0)


def test_only_outcomes_in_range_are_judged(cluster: Cluster) -> None:
    report = verify_log(EditedLog(cluster).edit(lose, OUTCOMES), SCHEMA, WITH, AuditRange(since_ms=10**9))
    assert report.is_exact


def test_outcomes_made_under_other_settings_are_refused(cluster: Cluster) -> None:
    with pytest.raises(ValueError, match=r"outcomes\[.\] at offset .*: outcome_window_ms was 13000"):
        verify_log(source_of(cluster), SCHEMA, replace(WITH, outcome_window_ms=13_001))


def test_without_a_window_outcomes_are_not_looked_at(cluster: Cluster) -> None:
    report = verify_log(EditedLog(cluster).edit(lose, OUTCOMES), SCHEMA, CONFIG)
    assert (report.is_exact, report.outcomes) == (True, 0)
