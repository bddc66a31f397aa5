"""Online metrics of a partition against a slow oracle, and against themselves after any interruption."""

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.exceptions import DecodeError
from stream.online_figures import CellFigures, figures
from stream.online_metrics import PartitionMetrics
from stream.online_metrics_config import OnlineMetricsConfig
from stream.settled_labels import read_settled
from tests.stream.served_labels import LATER, SCHEMA, emission, message, random_log

TASKS = tuple(SCHEMA.tasks)
CONFIG = OnlineMetricsConfig(window_labels=60, cohort_labels=25, drift_block_labels=10)


def fold(metrics: PartitionMetrics, log: list[bytes], offset: int = 0) -> Counter[tuple[str, str]]:
    alarms: Counter[tuple[str, str]] = Counter()
    for value in log:
        alarms += metrics.fold(offset, read_settled(value, TASKS)).alarms
        offset += 1
    return alarms


def folded(log: list[bytes], config: OnlineMetricsConfig = CONFIG) -> PartitionMetrics:
    metrics = PartitionMetrics(config)
    fold(metrics, log)
    return metrics


def oracle(log: list[bytes], window_labels: int) -> dict[tuple[str, str], tuple[int, int, float, float | None]]:
    """Returns labels, positives, sum of scores and AUC of each cell's window, label by label and pair by pair."""
    waiting: dict[tuple[str, str], list[tuple[int, float, int]]] = {}
    last_second = -1
    window: dict[tuple[str, str], list[tuple[float, int]]] = {}
    for value in log:
        read = read_settled(value, TASKS)
        for cell, labels in read.labels.items():
            held = waiting.setdefault(cell, [])
            held += [(int(row["close_ms"]), float(row["score"]), int(row["label"])) for row in labels]
            held.sort(key=lambda row: row[0])
        if read.watermark_ms // 1_000 > last_second:  # what has closed is counted once per second
            last_second = read.watermark_ms // 1_000
            for cell, held in waiting.items():
                while held and held[0][0] < read.watermark_ms:
                    _, score, label = held.pop(0)
                    window.setdefault(cell, []).append((score, label))
    found = {}
    for cell, rows in window.items():
        rows = rows[-window_labels:]
        ups, downs = ([score for score, label in rows if label == wanted] for wanted in (1, 0))
        wins = sum((up > down) + (up == down) / 2 for up in ups for down in downs)
        auc = wins / (len(ups) * len(downs)) if ups and downs else None
        found[cell] = (len(rows), len(ups), sum(score for score, _ in rows), auc)
    return found


def window_of(found: CellFigures) -> tuple[int, int, float, float | None]:
    return (found.num_labels, found.num_positives, found.score_sum, found.auc)


@pytest.mark.parametrize("seed", range(5))
def test_windows_are_those_of_the_oracle(seed: int) -> None:
    log = random_log(seed, 30)
    found = {part.cell: window_of(part) for part in figures([folded(log)])}
    expected = oracle(log, CONFIG.window_labels)
    assert found.keys() == expected.keys() and len(found) == 4
    for cell, window in found.items():
        assert window == pytest.approx(expected[cell])


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000), cuts=st.lists(st.integers(0, 20), max_size=5))
def test_a_state_that_changes_hands_goes_on_as_if_it_had_not(seed: int, cuts: list[int]) -> None:
    log = random_log(seed, 14)
    whole = PartitionMetrics(CONFIG)
    alarms = fold(whole, log)
    handed_on, alarms_handed_on = PartitionMetrics(CONFIG), Counter()
    edges = [0, *sorted(min(cut, len(log)) for cut in cuts), len(log)]
    for start, end in zip(edges, edges[1:], strict=False):
        handed_on = PartitionMetrics.decode(handed_on.encode(), CONFIG)
        alarms_handed_on += fold(handed_on, log[start:end], start)
    assert handed_on.encode() == whole.encode()
    assert alarms_handed_on == alarms


def test_a_positive_waits_for_its_negatives() -> None:
    log = random_log(3, 30)
    before = figures([folded(log[:LATER])])
    assert before and all(part.num_labels == 0 for part in before)  # positives alone have come so far
    after = {part.cell: part for part in figures([folded(log)])}
    assert 0.1 < after["home", "click"].num_positives / after["home", "click"].num_labels < 0.5


def test_labels_beyond_those_that_may_wait_go_on_the_oldest_first() -> None:
    log = [message(emission(at=at, labels=[1], scores=[at / 100], watermark_ms=at)) for at in (30, 10, 20)]
    log.append(message(emission(at=40, labels=[1], watermark_ms=1_040)))
    (found,) = figures([folded(log, replace(CONFIG, max_waiting=2))])
    assert (found.num_labels, found.score_sum) == (2, pytest.approx(0.1 + 0.2))


def test_partitions_add_up() -> None:
    log, other = random_log(1, 20), random_log(2, 20)
    alone, together = figures([folded(log)]), figures([folded(log), folded(other)])
    beside = {part.cell: part for part in figures([folded(other)])}
    for one, both in zip(alone, together, strict=True):
        other_one = beside[one.cell]
        assert both.num_labels == one.num_labels + other_one.num_labels
        assert both.score_sum == pytest.approx(one.score_sum + other_one.score_sum)
        assert both.cohorts["current"].tally == one.cohorts["current"].tally + other_one.cohorts["current"].tally


def test_scenarios_beyond_the_limit_are_counted_and_left_out() -> None:
    metrics = PartitionMetrics(replace(CONFIG, max_scenarios=1))
    both = message(emission(scenario="home"), emission(scenario="search"))
    first = metrics.fold(0, read_settled(both, TASKS))
    assert (first.num_labels, first.num_left_out) == (1, 1)
    again = PartitionMetrics.decode(metrics.encode(), replace(CONFIG, max_scenarios=1))
    assert again.fold(1, read_settled(both, TASKS)).num_left_out == 1


@pytest.mark.parametrize("data", [b"", b"\x80", b"{}", folded(random_log(0, 9)).encode()[:-3]])
def test_a_state_that_is_none_is_refused(data: bytes) -> None:
    with pytest.raises(DecodeError, match="state of online metrics"):
        PartitionMetrics.decode(data, CONFIG)


def test_a_state_of_other_settings_is_refused() -> None:
    data = folded(random_log(0, 9)).encode()
    with pytest.raises(DecodeError, match="other settings"):
        PartitionMetrics.decode(data, replace(CONFIG, window_labels=61))


@pytest.mark.parametrize(
    ("setting", "allowed"),
    [
        ({"window_labels": 0}, "window_labels: 0 is not allowed; at least 1"),
        ({"interval_ms": 9}, "interval_ms: 9 is not allowed; at least 10"),
        ({"drift_delta": 1.0}, "drift_delta: 1.0 is not allowed; more than 0, less than 1"),
    ],
)
def test_settings_out_of_range_are_refused(setting, allowed: str) -> None:
    with pytest.raises(ValueError, match=allowed):
        OnlineMetricsConfig(**setting)
