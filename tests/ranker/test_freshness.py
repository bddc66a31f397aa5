"""Freshness: every action is measured once, by the first request that a version which knows it scores."""

from hypothesis import given, settings
from hypothesis import strategies as st

from ranker.freshness import MAX_PENDING, MAX_RECENT, FreshnessRecorder
from ranker.stats import Histogram

EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("arrived"), st.lists(st.integers(0, 1_000), max_size=3)),
        st.tuples(st.just("used"), st.integers(0, 3)),
    ),
    max_size=30,
)


@settings(max_examples=100, deadline=None)
@given(EVENTS)
def test_each_action_is_measured_once_at_the_first_use_of_a_version_that_knows_it(events: list[tuple]) -> None:
    recorder, expected, waiting, version, now_ms = FreshnessRecorder(), [], [], 0, 2_000
    for kind, value in events:
        now_ms += 7
        if kind == "arrived":
            version += 1
            recorder.arrived(version, value)
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


def test_memory_is_bounded_and_the_count_goes_on() -> None:
    recorder = FreshnessRecorder()
    for version in range(1, 4):
        recorder.arrived(version, list(range(MAX_PENDING)))
        recorder.used(version, now_ms=100_000)
    assert recorder.summary().n == 3 * MAX_PENDING
    assert len(recorder._recent) == MAX_RECENT


def test_percentiles_are_of_the_newest_measurements() -> None:
    recorder = FreshnessRecorder()
    recorder.arrived(1, [0] * MAX_RECENT)
    recorder.used(1, now_ms=50_000)
    recorder.arrived(2, [0] * MAX_RECENT)
    recorder.used(2, now_ms=1_000)
    assert recorder.summary().p99_ms == 1_000.0


def test_a_histograms_bounds_are_inclusive() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.0, 1.0, 1.1, 2.0, 2.1):
        histogram.observe(value)
    assert histogram.counts == [2, 2, 1]
