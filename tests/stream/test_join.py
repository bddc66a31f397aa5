"""The join core by tables: settings, messages in arrival order, expected output, a sentence per case."""

from collections.abc import Sequence

import pytest

from stream.emission import Emission
from stream.join import JoinConfig, JoinCore, Resume
from stream.schema import Feedback, Impression, SchemaConfig, TaskConfig
from tests.stream.build import did, schema, shown

GRACE_MS = 2_000
CONFIG = JoinConfig(grace_ms=GRACE_MS, duplicate_ms=1_000)
WAIT = schema(click=TaskConfig(action="click", window_ms=60_000, policy="wait"))
EAGER = schema(click=TaskConfig(action="click", window_ms=60_000, policy="eager"))
CLICK_AND_ORDER = schema(
    click=TaskConfig(action="click", window_ms=60_000, policy="eager"),
    order=TaskConfig(action="order", window_ms=100_000, policy="wait"),
)

Token = Impression | Feedback | int
"""A slate, an action, or a watermark."""


def run(core: JoinCore, log: Sequence[Token]) -> list[Emission]:
    """Returns all emissions of a log; offsets count up per topic."""
    emissions: list[Emission] = []
    num_shown = num_done = 0
    for token in log:
        if isinstance(token, Impression):
            emissions += core.observe_impression(token, num_shown)
            num_shown += 1
        elif isinstance(token, Feedback):
            emissions += core.observe_feedback(token, num_done)
            num_done += 1
        else:
            emissions += core.advance(token)
    return emissions


def labels(emissions: list[Emission]) -> list[tuple[str, str, int, int]]:
    """Returns (item, task, label, delay_ms) in the order of emission; all of kind final."""
    found = [label for emission in emissions for label in emission.labels()]
    assert {label.kind for label in found} <= {"final"}
    return [(label.item_id, label.task, label.label, label.delay_ms) for label in found]


def run_labels(schema: SchemaConfig, *log: Token) -> list[tuple[str, str, int, int]]:
    return labels(run(JoinCore(schema, CONFIG), log))


POSITIVE, NEGATIVE = ("a", "click", 1), ("a", "click", 0)


@pytest.mark.parametrize("policy", [WAIT, EAGER], ids=["wait", "eager"])
@pytest.mark.parametrize(
    ("action_ms", "expected"),
    [
        (999, NEGATIVE),  # before its slate: no click on it
        (1_000, POSITIVE),  # in the millisecond of the slate: the left end counts
        (1_001, POSITIVE),
        (60_999, POSITIVE),
        (61_000, POSITIVE),  # in the last millisecond of the window: the right end counts
        (61_001, NEGATIVE),  # outside, although within grace: grace waits for arrival, it does not widen the window
    ],
)
def test_the_label_window_has_both_ends(policy: SchemaConfig, action_ms: int, expected: tuple[str, str, int]) -> None:
    found = run_labels(policy, shown(at=1_000), did(at=action_ms), 10**6)
    assert found == [(*expected, action_ms - 1_000 if expected[2] else -1)]


@pytest.mark.parametrize("policy", [WAIT, EAGER], ids=["wait", "eager"])
@pytest.mark.parametrize(("watermark_ms", "is_closed"), [(62_999, False), (63_000, False), (63_001, True)])
def test_a_window_closes_when_the_watermark_passes_its_end_and_grace(
    policy: SchemaConfig, watermark_ms: int, is_closed: bool
) -> None:
    assert run_labels(policy, shown(at=1_000), watermark_ms) == ([("a", "click", 0, -1)] if is_closed else [])


@pytest.mark.parametrize("policy", [WAIT, EAGER], ids=["wait", "eager"])
@pytest.mark.parametrize(("watermark_ms", "label"), [(62_999, 1), (63_000, 1), (63_001, 0)])
def test_feedback_that_arrives_after_the_close_is_late(policy: SchemaConfig, watermark_ms: int, label: int) -> None:
    core = JoinCore(policy, CONFIG)
    found = labels(run(core, [shown(at=1_000), watermark_ms, did(at=61_000), 10**6]))
    assert found == [("a", "click", label, 60_000 if label else -1)]
    assert (core.counters.feedback_positive, core.counters.feedback_late) == (label, 1 - label)


@pytest.mark.parametrize(("watermark_ms", "is_joined"), [(62_999, True), (63_000, True), (63_001, False)])
def test_an_impression_is_late_when_the_watermark_has_passed_its_last_close(watermark_ms: int, is_joined: bool) -> None:
    core = JoinCore(EAGER, CONFIG)
    found = labels(run(core, [watermark_ms, shown(at=1_000), 10**6]))
    assert found == ([("a", "click", 0, -1)] if is_joined else [])
    assert (core.counters.slates, core.counters.impression_late) == (int(is_joined), int(not is_joined))


@pytest.mark.parametrize(("watermark_ms", "is_joined"), [(63_999, True), (64_000, True), (64_001, False)])
def test_feedback_waits_for_its_impression_until_none_could_be_accepted(watermark_ms: int, is_joined: bool) -> None:
    """Feedback at 2,000 could belong to a slate at 2,000 at the latest, which is late from 64,001 on."""
    core = JoinCore(EAGER, CONFIG)
    found = labels(run(core, [did(at=2_000), watermark_ms, shown(at=2_000), 10**6]))
    assert found == ([("a", "click", 1, 0)] if is_joined else [])
    assert core.counters.feedback_unmatched == int(not is_joined)
    assert core.state.num_pending == 0


def test_wait_emits_at_the_close_and_eager_a_positive_at_once() -> None:
    log: list[Token] = [shown("r", "a", "b", at=0), did(item="a", at=5_000)]
    for policy, at_once in ((WAIT, []), (EAGER, [("a", "click", 1, 5_000)])):
        core = JoinCore(policy, CONFIG)
        before = labels(run(core, log))
        assert before == at_once
        after = labels(core.advance(62_001))
        assert sorted(before + after) == [("a", "click", 1, 5_000), ("b", "click", 0, -1)]


def test_the_first_qualifying_feedback_to_arrive_gives_the_delay() -> None:
    for policy in (WAIT, EAGER):
        assert run_labels(policy, shown(at=0), did(at=9_000), did(at=4_000), 10**6) == [("a", "click", 1, 9_000)]


def test_tasks_of_one_slate_follow_their_own_windows_and_policies() -> None:
    core = JoinCore(CLICK_AND_ORDER, CONFIG)
    log = [shown("r", "a", "b", at=0), did("order", "b", at=90_000), did("click", "a", at=10)]
    assert labels(run(core, log)) == [("a", "click", 1, 10)]
    assert labels(core.advance(62_001)) == [("b", "click", 0, -1)]
    assert labels(core.advance(102_001)) == [("a", "order", 0, -1), ("b", "order", 1, 90_000)]


def test_one_action_can_make_labels_of_several_tasks_in_one_row() -> None:
    tasks = schema(
        view=TaskConfig(action="view", window_ms=60_000),
        long_view=TaskConfig(action="view", window_ms=90_000, at_least=30.0),
    )
    core = JoinCore(tasks, CONFIG)
    emissions = run(core, [shown(at=0), did("view", at=1, value=30.0)])
    assert len(emissions) == 1
    assert labels(emissions) == [("a", "view", 1, 1), ("a", "long_view", 1, 1)]


@pytest.mark.parametrize(("value", "label"), [(29.9, 0), (30.0, 1), (30.1, 1)])
def test_at_least_is_inclusive(value: float, label: int) -> None:
    tasks = schema(long_view=TaskConfig(action="view", window_ms=60_000, at_least=30.0))
    core = JoinCore(tasks, CONFIG)
    found = labels(run(core, [shown(at=0), did("view", at=1, value=value), 10**6]))
    assert [label for _, _, label, _ in found] == [label]
    assert core.counters.feedback_below == 1 - label


def test_a_later_value_that_reaches_at_least_makes_the_label_positive() -> None:
    tasks = schema(long_view=TaskConfig(action="view", window_ms=60_000, at_least=30.0))
    log = [shown(at=0), did("view", at=10_000, value=10), did("view", at=31_000, value=31), 10**6]
    assert labels(run(JoinCore(tasks, CONFIG), log)) == [("a", "long_view", 1, 31_000)]


def test_a_slate_whose_short_window_has_closed_on_arrival_is_settled_at_once_and_stays_open_for_the_rest() -> None:
    core = JoinCore(CLICK_AND_ORDER, CONFIG)
    assert labels(run(core, [62_001, shown(at=0)])) == [("a", "click", 0, -1)]
    assert labels(run(core, [did("order", at=50_000), 102_001])) == [("a", "order", 1, 50_000)]


def test_pending_feedback_counts_for_a_window_that_has_closed_before_the_slate_came() -> None:
    """The log holds both: the slate in time for its longest window, the click before it. Truth wins over the clock."""
    assert run_labels(CLICK_AND_ORDER, did(at=1_000), 62_001, shown(at=0))[0] == ("a", "click", 1, 1_000)


@pytest.mark.parametrize(
    ("log", "counter"),
    [
        ([shown(at=0), did(at=1)], "feedback_positive"),
        ([did(at=1), shown(at=0)], "feedback_positive"),
        ([shown(at=0), did(at=1, event_id="x"), did(at=1, event_id="y")], "feedback_repeat"),
        ([shown(at=0), did(at=1, event_id="x"), did(at=1, event_id="x")], "feedback_duplicate"),
        ([did(at=1, event_id="x"), did(at=1, event_id="x"), shown(at=0)], "feedback_duplicate"),
        ([shown(at=0), did(item="z", at=1)], "feedback_unknown_item"),
        ([shown(at=0), did("share", at=1)], "feedback_unknown_action"),
        ([did("share", at=1)], "feedback_unknown_action"),
        ([shown(at=5), did(at=4)], "feedback_outside_window"),
        ([shown(at=0), did(at=60_001)], "feedback_outside_window"),
        ([shown(at=0), 62_001, did(at=1)], "feedback_late"),
        ([shown(at=0), 62_500, did(at=1)], "feedback_late"),
        ([did(at=1), 62_002], "feedback_unmatched"),
        ([62_002, did(at=1)], "feedback_unmatched"),
        ([shown(at=0), 64_000, did(at=1)], "feedback_unmatched"),
        ([shown(at=0), did(at=1), 62_001, did(at=2)], "feedback_repeat"),
    ],
)
def test_each_fate_of_feedback_has_its_own_counter(log: list[Token], counter: str) -> None:
    core = JoinCore(EAGER, CONFIG)
    run(core, log)
    counts = core.counters.as_dict()
    fates = {name: count for name, count in counts.items() if name.startswith("feedback_") and count}
    assert fates.pop(counter) == 1
    assert sum(fates.values()) == counts["feedback"] - 1


@pytest.mark.parametrize(
    ("log", "counts"),
    [
        ([shown(at=0), shown(at=0)], (1, 1, 0)),  # the same message again
        ([shown(at=0), shown(at=700)], (1, 1, 0)),  # sent again with a new time stamp: still one slate
        ([shown(at=0), 62_001, shown(at=700)], (1, 1, 0)),  # ... after the first was settled
        ([shown(at=0), 63_001, shown(at=0)], (1, 0, 1)),  # ... after it was forgotten: late, never a second slate
        ([62_001, shown(at=0), shown(at=700)], (0, 1, 1)),  # ... after the first was refused as late
        ([63_001, shown(at=0)], (0, 0, 1)),
        ([shown("r", at=0), shown("q", at=0)], (2, 0, 0)),
    ],
)
def test_each_fate_of_an_impression_has_its_own_counter(log: list[Token], counts: tuple[int, int, int]) -> None:
    core = JoinCore(EAGER, CONFIG)
    run(core, [*log, 10**6])
    c = core.counters
    assert (c.slates, c.impression_duplicate, c.impression_late) == counts
    assert c.labels == c.items == c.slates


def test_the_watermark_never_moves_back() -> None:
    core = JoinCore(EAGER, CONFIG)
    run(core, [70_000, 10])
    assert core.watermark_ms == 70_000


def test_closes_come_in_order_of_event_time() -> None:
    core = JoinCore(CLICK_AND_ORDER, CONFIG)
    run(core, [shown("late", at=50_000), shown("early", at=0)])
    emissions = core.advance(10**6)
    assert [e.trigger_ms for e in emissions] == [62_000, 102_000, 112_000, 152_000]


def test_a_slate_is_needed_until_forgotten_and_feedback_while_a_label_rests_on_it() -> None:
    core = JoinCore(EAGER, CONFIG)
    log = [shown("r0", at=0), shown("r1", at=1_000), did(on="r1", at=1_001), did(on="r0", at=2), did(on="?", at=70_000)]
    run(core, log)
    assert core.oldest_needed(2, 3) == (0, 0)
    core.advance(62_001)
    assert core.oldest_needed(2, 3) == (0, 0), "r0 is closed, but remembered; r1 is open and rests on feedback 0"
    core.advance(63_001)
    assert core.oldest_needed(2, 3) == (1, 2), "nothing rests on feedback 0 and 1; feedback 2 is pending"
    core.advance(64_001)
    assert core.oldest_needed(2, 3) == (2, 2)
    core.advance(132_001)
    assert core.oldest_needed(2, 3) == (2, 3)
    assert (core.state.num_slates, core.state.num_pending) == (0, 0)


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"grace_ms": -1}, "grace_ms"),
        ({"out_of_orderness_ms": -1}, "out_of_orderness_ms"),
        ({"max_ahead_ms": 2_001}, "max_ahead_ms"),
        ({"refuse_ahead_ms": 10}, "refuse_ahead_ms"),
        ({"idle_ms": 0}, "idle_ms"),
        ({"duplicate_ms": -1}, "duplicate_ms"),
        ({"commit_interval_ms": 0}, "commit_interval_ms"),
        ({"batch_items": 0}, "batch_items"),
    ],
)
def test_impossible_settings_are_refused_by_name(settings: dict[str, int], field: str) -> None:
    with pytest.raises(ValueError, match=f"^{field}: .* is not allowed; at"):
        JoinConfig(**settings)


def test_a_replay_that_reads_new_feedback_before_an_old_slate_does_not_reopen_a_closed_window() -> None:
    """The slate's negative is committed. A click that no transaction has read is read before the slate is replayed."""
    core = JoinCore(CLICK_AND_ORDER, CONFIG, Resume(next_impression=1, next_feedback=0, watermark_ms=62_001))
    assert labels(core.observe_feedback(did(at=1_000), 0)) == []
    assert labels(core.observe_impression(shown(at=0), 0)) == []
    assert core.counters.feedback_late == 1
    assert labels(core.advance(10**6)) == [("a", "order", 0, -1)]
