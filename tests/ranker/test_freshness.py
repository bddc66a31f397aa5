"""Freshness: every action is measured once, by the first request that a version which knows it scores, in stages that
add up to it."""

import msgspec
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from model.snapshot import Manifest
from model.store import MemorySnapshotStore
from ranker.freshness import MAX_PENDING, MAX_RECENT, FreshnessRecorder, stage_durations
from ranker.freshness_stages import STAGES
from ranker.stats import Histogram
from tests.ranker.given import Clock, Trainer

EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("arrived"), st.lists(st.integers(0, 1_000), max_size=3)),
        st.tuples(st.just("used"), st.integers(0, 3)),
    ),
    max_size=30,
)
STAMPS = st.lists(st.lists(st.integers(0, 5_000), min_size=5, max_size=5), max_size=20)
"""Five clocks that know nothing of one another."""
ANY, _ = Trainer(MemorySnapshotStore()).build()


def manifest(event_ms: list[int], joined_ms: list[int] = [], trained_ms: list[int] = []) -> Manifest:  # noqa: B006
    return msgspec.structs.replace(
        ANY, feedback_ms=event_ms, feedback_joined_ms=joined_ms, feedback_trained_ms=trained_ms, created_ms=1_600
    )


@settings(max_examples=100, deadline=None)
@given(EVENTS)
def test_each_action_is_measured_once_at_the_first_use_of_a_version_that_knows_it(events: list[tuple]) -> None:
    recorder, expected, waiting, version, now_ms = FreshnessRecorder(lambda: 0), [], [], 0, 2_000
    for kind, value in events:
        now_ms += 7
        if kind == "arrived":
            version += 1
            recorder.arrived(version, manifest(value))
            waiting += [(version, event_ms) for event_ms in value]
        else:
            used = version - value  # a request in progress may still hold an older version
            recorder.used(used, now_ms)
            expected += [now_ms - event_ms for of_version, event_ms in waiting if of_version <= used]
            waiting = [entry for entry in waiting if entry[0] > used]
    summary = recorder.summary()
    assert summary.n == len(expected) == sum(recorder.histogram.counts)
    assert recorder.histogram.total == sum(expected)
    if expected:
        assert min(expected) <= summary.p50_ms <= summary.p99_ms <= max(expected)


@settings(max_examples=200, deadline=None)
@given(STAMPS, st.integers(0, 5_000))
def test_stages_of_an_action_add_up_whatever_the_clocks_say(stamps: list[list[int]], served_ms: int) -> None:
    stamps_NS = np.array(stamps, np.int64).reshape(-1, 5)
    durations_NS, is_negative_NS = stage_durations(stamps_NS, served_ms)
    assert (durations_NS >= 0).all()
    assert durations_NS.sum(axis=1).tolist() == [max(0, served_ms - times[0]) for times in stamps]
    for durations, is_negative, times in zip(durations_NS, is_negative_NS, stamps, strict=True):
        edges = [*times, served_ms]
        assert is_negative.tolist() == [later < earlier for earlier, later in zip(edges, edges[1:], strict=False)]
        assert not durations[is_negative].any()
        if not is_negative.any():
            assert durations.tolist() == np.diff(edges).tolist()


def test_each_stage_is_from_the_stamp_before_to_its_own() -> None:
    clock = Clock(1_700)
    recorder = FreshnessRecorder(clock)
    recorder.arrived(1, manifest([1_000, 1_100], [1_200, 1_250], [1_500, 1_520]))
    recorder.used(1, now_ms=1_900)
    assert {stage: found.total for stage, found in recorder.stages.items()} == {
        "joined": 200 + 150,
        "trained": 300 + 270,
        "published": 100 + 80,
        "applied": 100 + 100,
        "served": 200 + 200,
    }
    assert recorder.histogram.total == 900 + 800 == sum(found.total for found in recorder.stages.values())
    assert not any(recorder.negative.values())


def test_clock_that_is_ahead_is_counted_by_the_stage_it_makes_negative() -> None:
    recorder = FreshnessRecorder(Clock(1_700))
    recorder.arrived(1, manifest([1_000], [1_550], [1_500]))  # the joiner's clock is ahead of the trainer's
    recorder.arrived(2, manifest([2_500], [1_200], [1_500]))  # the user's is ahead of everybody's
    recorder.used(2, now_ms=1_900)
    assert dict(recorder.negative) == dict.fromkeys(STAGES, 0) | {"joined": 1, "trained": 1}
    assert recorder.stages["trained"].total == 0 and recorder.stages["published"].total == 50
    assert recorder.histogram.total == 900 == sum(found.total for found in recorder.stages.values())
    assert min(recorder.histogram.counts) >= 0 and recorder.summary().n == 2


def test_actions_without_stamps_are_measured_as_a_whole_only() -> None:
    recorder = FreshnessRecorder(lambda: 1_700)
    recorder.arrived(1, manifest([1_000, 1_100]))  # of a trainer that does not stamp
    recorder.arrived(2, manifest([1_200, 1_300], [-1, 1_400], [1_500, 1_500]))  # of a log that does not say when
    recorder.used(2, now_ms=2_000)
    assert recorder.summary().n == 4
    assert {sum(found.counts) for found in recorder.stages.values()} == {1}


def test_memory_is_bounded_and_the_count_goes_on() -> None:
    recorder = FreshnessRecorder(lambda: 0)
    for version in range(1, 4):
        recorder.arrived(version, manifest(list(range(MAX_PENDING))))
        recorder.used(version, now_ms=100_000)
    assert recorder.summary().n == 3 * MAX_PENDING
    assert len(recorder._recent) == MAX_RECENT


def test_oldest_of_too_many_waiting_actions_are_forgotten() -> None:
    recorder = FreshnessRecorder(lambda: 0)
    for version in range(1, 4):
        recorder.arrived(version, manifest([version] * (MAX_PENDING // 2 + 1)))
    recorder.arrived(4, manifest([4] * (2 * MAX_PENDING)))
    recorder.used(4, now_ms=1_004)
    assert recorder.summary() == type(recorder.summary())(1_000.0, 1_000.0, MAX_PENDING)


def test_percentiles_are_of_the_newest_measurements() -> None:
    recorder = FreshnessRecorder(lambda: 0)
    recorder.arrived(1, manifest([0] * MAX_RECENT))
    recorder.used(1, now_ms=50_000)
    recorder.arrived(2, manifest([0] * MAX_RECENT))
    recorder.used(2, now_ms=1_000)
    assert recorder.summary().p99_ms == 1_000.0


def test_a_histograms_bounds_are_inclusive_one_by_one_and_together() -> None:
    histogram, together = Histogram((1.0, 2.0)), Histogram((1.0, 2.0))
    values = (0.0, 1.0, 1.1, 2.0, 2.1)
    for value in values:
        histogram.observe(value)
    together.observe_all(np.array(values))
    together.observe_all(np.empty(0))
    assert histogram.counts == together.counts == [2, 2, 1]
    assert histogram.total == together.total
