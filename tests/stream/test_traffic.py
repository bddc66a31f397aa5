"""The traffic ratio against the sum it stands for, and the same ratios from a replay."""

import pytest

from stream.join import JoinConfig, JoinCore, Resume, replay_span_ms
from stream.schema import Feedback, Impression, TaskConfig
from stream.traffic import MAX_RATIO, Traffic
from tests.stream.build import did, schema, shown

WINDOW_MS, BUCKET_MS = 24_000, 250
SCHEMA = schema(click=TaskConfig(action="click", window_ms=WINDOW_MS, traffic_ratio=True))
CONFIG = JoinConfig(grace_ms=0, out_of_orderness_ms=0, max_ahead_ms=0, duplicate_ms=0)


def traffic(*per_bucket: int, scenario: str = "home") -> Traffic:
    counted = Traffic(WINDOW_MS, grace_ms=0, out_of_orderness_ms=0)
    for bucket, count in enumerate(per_bucket):
        for number in range(count):
            counted.observe(scenario, bucket * BUCKET_MS, offset=number)
    return counted


def test_steady_traffic_has_a_ratio_of_one() -> None:
    assert traffic(*[7] * 240).ratio("home", shown_ms=40_000, feedback_ms=45_000) == 1.0


def test_the_ratio_compares_a_window_before_the_feedback_with_the_time_of_the_slate() -> None:
    counted = traffic(*[2] * 120, *[8] * 120)
    # The three buckets before 9,000 and before 33,000: a window lies between.
    assert counted.ratio("home", shown_ms=33_000, feedback_ms=33_000) == 2 / 8
    assert counted.ratio("home", shown_ms=33_000, feedback_ms=33_000 + WINDOW_MS) == 1.0
    assert counted.ratio("home", shown_ms=30_000, feedback_ms=30_000) == 1.0, "the slate's own bucket is not complete"


def test_at_the_start_there_was_no_traffic_a_window_ago() -> None:
    assert traffic(*[5] * 80).ratio("home", shown_ms=10_000, feedback_ms=12_000) == 0.0


def test_traffic_that_stopped_and_came_back_is_bounded() -> None:
    assert traffic(*[9] * 80, *[0] * 120).ratio("home", shown_ms=40_000, feedback_ms=40_000) == MAX_RATIO


def test_scenarios_are_counted_apart() -> None:
    assert traffic(*[5] * 240, scenario="search").ratio("home", shown_ms=40_000, feedback_ms=41_000) == 0.0


def test_what_no_open_slate_can_ask_for_is_forgotten() -> None:
    counted = traffic(*[3] * 800)
    counted.forget(190_000)
    assert len(counted.state()) < 240
    assert counted.ratio("home", shown_ms=190_000 - WINDOW_MS, feedback_ms=190_000 - WINDOW_MS) == 1.0


def stream() -> list[Impression | Feedback]:
    """Ten slates a second, then forty; a click on each after three seconds."""
    times = [*range(0, 30_000, 100), *range(30_000, 60_000, 25)]
    events: list[Impression | Feedback] = [shown(f"r{n}", at=at) for n, at in enumerate(times)]
    events += [did(at=at + 3_000, on=f"r{n}") for n, at in enumerate(times)]
    return sorted(events, key=lambda event: event.ts)


def ratios(
    core: JoinCore, events: list[Impression | Feedback], begin: tuple[int, int] = (0, 0)
) -> tuple[dict[str, float], dict[int, tuple[Resume, tuple[int, int]]]]:
    """Returns the ratio of each positive by request, and where a commit after each event would resume."""
    found: dict[str, float] = {}
    commits: dict[int, tuple[Resume, tuple[int, int]]] = {}
    offsets = {Impression: 0, Feedback: 0}
    for number, event in enumerate(events):
        offset = offsets[type(event)]
        offsets[type(event)] += 1
        if offset >= begin[isinstance(event, Feedback)]:
            observe = core.observe_impression if isinstance(event, Impression) else core.observe_feedback
            emissions = observe(event, offset)  # type: ignore[operator]
            emissions += core.advance(event.ts)
            for emission in emissions:
                column = emission.columns["click"]
                if column.label[0]:
                    assert column.ratio is not None
                    found[emission.impression.request_id] = column.ratio[0]
        read = (offsets[Impression], offsets[Feedback])
        commits[number] = (Resume(*read, core.watermark_ms), core.oldest_needed(*read))
    return found, commits


def test_a_replay_stamps_the_same_ratios() -> None:
    events = stream()
    expected, commits = ratios(JoinCore(SCHEMA, CONFIG), events)
    for at in (700, 1_500, 2_600):
        resume, oldest = commits[at]
        again, _ = ratios(JoinCore(SCHEMA, CONFIG, resume), events, begin=oldest)
        assert again and again.items() <= expected.items()
        assert len(again) == sum(isinstance(event, Feedback) for event in events[at + 1 :])


def test_through_a_step_in_traffic_positives_and_negatives_keep_their_balance() -> None:
    """Odds of the emitted labels: without the ratio four times too high after the step, with it as they should be."""
    weight = {True: 0.0, False: 0.0}
    core = JoinCore(SCHEMA, CONFIG)
    for number, at in enumerate([*range(0, 60_000, 100), *range(60_000, 90_000, 25)]):
        # Every other slate is clicked after half a second.
        emissions = core.observe_impression(shown(f"r{number}", at=at), number)
        if number % 2:
            emissions += core.observe_feedback(did(at=at + 500, on=f"r{number}"), number // 2)
        emissions += core.advance(at)
        # From the step on until its slates close: positives of the new traffic meet negatives of the old.
        if 61_500 <= at < 60_000 + WINDOW_MS:
            for emission in emissions:
                column = emission.columns["click"]
                for row, label in enumerate(column.label):
                    weight[bool(label)] += 1.0 if column.ratio is None else column.ratio[row]
    assert weight[True] / weight[False] == pytest.approx(1.0, rel=0.03)


def test_it_is_on_by_default_for_long_windows_only() -> None:
    def is_on(**settings: object) -> bool:
        return TaskConfig(**{"action": "order"} | settings).has_traffic_ratio  # type: ignore[arg-type]

    assert [is_on(window_ms=300_000), is_on(window_ms=300_001)] == [False, True]
    assert not is_on(window_ms=300_001, traffic_ratio=False)
    assert not is_on(window_ms=300_001, policy="wait")


def test_the_log_must_keep_what_a_restart_reads_again() -> None:
    config = JoinConfig(grace_ms=2_000, out_of_orderness_ms=1_000, duplicate_ms=500)
    plain = schema(click=TaskConfig(action="click", window_ms=60_000, traffic_ratio=False))
    assert replay_span_ms(plain, config) == 60_000 + 2_000 + 500 + 1_000
    counting = schema(click=TaskConfig(action="click", window_ms=60_000, traffic_ratio=True))
    assert replay_span_ms(counting, config) == 2 * 62_000 + 1_000 + 4 * 625 + 1_000
