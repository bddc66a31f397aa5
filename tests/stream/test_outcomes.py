"""Outcomes of explored slates: which actions count, when they go out, and how they look on the wire."""

from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest

from stream.emission import Outcome
from stream.examples import MAX_MESSAGE_BYTES
from stream.join import JoinConfig, JoinCore, remember_ms, replay_span_ms
from stream.outcomes import OutcomeEncoder
from stream.schema import (
    Candidates,
    FeatureConfig,
    FeaturesConfig,
    Feedback,
    Impression,
    SchemaConfig,
    Served,
    TaskConfig,
)
from stream.tally import Tally, Total
from tests.stream.build import did, explored, schema, shown
from tests.stream.oracle import deeds_of

WINDOW_MS, GRACE_MS, DUPLICATE_MS = 90, 5, 7
CLOSE_MS = WINDOW_MS + GRACE_MS
CONFIG = JoinConfig(grace_ms=GRACE_MS, duplicate_ms=DUPLICATE_MS, outcome_window_ms=WINDOW_MS)
SCHEMA = schema(
    click=TaskConfig(action="click", window_ms=60, policy="wait"),
    order=TaskConfig(action="order", window_ms=90, policy="wait"),
)
START_MS = 1_000


def slate(request_id: str = "r", at: int = START_MS) -> Impression:
    return explored(shown(request_id, "a", "b", at=at), SCHEMA.tasks, "c")


def come(core: JoinCore, *events: Impression | Feedback | int) -> list[Outcome]:
    """Feeds events and watermarks; returns the outcomes."""
    offsets = {Impression: 0, Feedback: 0}
    for event in events:
        if isinstance(event, int):
            core.advance(event)
        elif isinstance(event, Impression):
            core.observe_impression(event, offsets[Impression])
        else:
            core.observe_feedback(event, offsets[Feedback])
        if not isinstance(event, int):
            offsets[type(event)] += 1
    return core.outcomes


END = START_MS + CLOSE_MS + 1
CASES = {
    "nothing was done": ([slate(), END], []),
    "at the slate": ([slate(), did(at=START_MS, value=2.5), END], [("a", "click", 2.5, START_MS)]),
    "before the slate": ([slate(), did(at=START_MS - 1), END], []),
    "at the end of the window": (
        [slate(), did("order", at=START_MS + 90), END],
        [("a", "order", 1.0, START_MS + 90)],
    ),
    "after the window": ([slate(), did("order", at=START_MS + 91), END], []),
    "after the label's window": ([slate(), did(at=START_MS + 61), END], [("a", "click", 1.0, START_MS + 61)]),
    "an action without a task": (
        [slate(), did("share", "b", at=START_MS + 1), END],
        [("b", "share", 1.0, START_MS + 1)],
    ),
    "an item that was not shown": ([slate(), did("share", "c", at=START_MS + 1), END], []),
    "before its impression": (
        [did("share", at=START_MS + 1), slate(), END],
        [("a", "share", 1.0, START_MS + 1)],
    ),
    "several of one name, the earliest read last": (
        [slate(), did(at=START_MS + 9, value=2.0), did(at=START_MS + 4, value=-0.5), END],
        [("a", "click", 1.5, START_MS + 4)],
    ),
    "the same twice": (
        [slate(), did(at=START_MS + 1, event_id="e"), did(at=START_MS + 1, event_id="e"), END],
        [("a", "click", 1.0, START_MS + 1)],
    ),
    "the same twice, once before the impression": (
        [did(at=START_MS + 1, event_id="e"), slate(), did(at=START_MS + 1, event_id="e"), END],
        [("a", "click", 1.0, START_MS + 1)],
    ),
    "one name for two: the first counts": (
        [slate(), did(at=START_MS + 91, event_id="e"), did(at=START_MS + 2, event_id="e", value=3.0),
         did("order", at=START_MS + 2, event_id="e"), END],
        [("a", "click", 3.0, START_MS + 2)],
    ),
    "read at the close": (
        [slate(), START_MS + CLOSE_MS, did(at=START_MS + 3), END],
        [("a", "click", 1.0, START_MS + 3)],
    ),
    "an impression read at the close": (
        [START_MS + CLOSE_MS, did(at=START_MS + 3), slate(), END],
        [("a", "click", 1.0, START_MS + 3)],
    ),
    "values too large to add up": (
        [slate(), did(at=START_MS + 3, value=1.7e308), did(at=START_MS + 4, value=1.7e308), END],
        [("a", "click", 1.7976931348623157e308, START_MS + 3)],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("events", "deeds"), CASES.values(), ids=CASES.keys())
def test_what_counts(events: list[Any], deeds: list[tuple[str, str, float, int]]) -> None:
    core = JoinCore(SCHEMA, CONFIG)
    (outcome,) = come(core, *events)
    assert deeds_of(outcome) == set(deeds)
    assert (outcome.close_ms, outcome.watermark_ms) == (START_MS + CLOSE_MS, END)
    counters = core.counters
    assert (counters.explored, counters.outcomes) == (1, 1)
    fates = sum(count for name, count in counters.as_dict().items() if name.startswith("feedback_"))
    assert fates == counters.feedback


def test_it_goes_out_once_the_watermark_has_passed_the_close() -> None:
    core = JoinCore(SCHEMA, CONFIG)
    assert come(core, slate(), START_MS + CLOSE_MS) == []
    assert len(come(core, START_MS + CLOSE_MS + 1)) == 1
    assert len(come(core, START_MS + CLOSE_MS + DUPLICATE_MS)) == 1
    assert core.state.num_slates == 1, "it is remembered for its copies"
    core.advance(START_MS + CLOSE_MS + DUPLICATE_MS + 1)
    assert core.state.num_slates == 0


def test_what_comes_later_is_counted_and_changes_nothing() -> None:
    core = JoinCore(SCHEMA, CONFIG)
    early = did(at=START_MS + 2)
    late = [early, did("share", at=START_MS + 3), did("share", at=START_MS + WINDOW_MS + 1)]
    (outcome,) = come(core, slate(), early, END, *late)
    assert deeds_of(outcome) == {("a", "click", 1.0, START_MS + 2)}
    assert (core.counters.outcome_actions, core.counters.outcome_late) == (1, 1)
    assert core.counters.feedback_unknown_action == 2


def test_an_impression_after_the_close_has_no_outcome() -> None:
    core = JoinCore(SCHEMA, CONFIG)
    assert come(core, END, slate(), slate(at=START_MS + DUPLICATE_MS), 10 * END) == []
    assert (core.counters.impression_late, core.counters.impression_duplicate, core.counters.explored) == (1, 1, 0)


def test_a_slate_whose_labels_are_closed_but_not_its_outcome_has_both() -> None:
    config = replace(CONFIG, outcome_window_ms=500)
    core = JoinCore(SCHEMA, config)
    core.advance(START_MS + 300)
    emissions = core.observe_impression(slate(), 0)
    assert {(label.task, label.label) for e in emissions for label in e.labels()} == {("click", 0), ("order", 0)}
    core.observe_feedback(did("share", at=START_MS + 400), 0)
    core.advance(START_MS + 506)
    assert [deeds_of(outcome) for outcome in core.outcomes] == [{("a", "share", 1.0, START_MS + 400)}]


@pytest.mark.parametrize("setting", [CONFIG, replace(CONFIG, outcome_window_ms=None)], ids=["outcomes", "none"])
def test_slates_that_are_not_explored_cost_nothing_more(setting: JoinConfig) -> None:
    core = JoinCore(SCHEMA, setting)
    assert come(core, shown(at=START_MS), did("share", at=START_MS + 1), did(at=START_MS + 2)) == []
    assert core.oldest_needed(9, 9) == (0, 1), "the click made a label positive, the share nothing"
    core.advance(START_MS + CLOSE_MS + 1)
    assert (core.oldest_needed(9, 9), core.outcomes) == ((0, 9), [])
    counters = core.counters
    assert (counters.feedback_unknown_action, counters.feedback_positive, counters.explored) == (1, 1, 0)


def test_what_an_open_outcome_rests_on_stays_needed() -> None:
    core = JoinCore(SCHEMA, replace(CONFIG, outcome_window_ms=500))
    come(core, slate(), did("share", at=START_MS + 1), START_MS + CLOSE_MS + DUPLICATE_MS + 1)
    assert (core.state.num_slates, core.oldest_needed(9, 9)) == (1, (0, 0))
    core.advance(START_MS + 500 + GRACE_MS + 1)
    assert core.oldest_needed(9, 9) == (0, 9)


def test_an_action_without_a_task_and_without_a_slate_is_counted_once_as_such() -> None:
    core = JoinCore(SCHEMA, CONFIG)
    come(core, did("share", at=START_MS))
    assert (core.state.num_pending, core.counters.feedback_unknown_action) == (1, 0)
    core.advance(END)
    assert (core.state.num_pending, core.counters.feedback_unknown_action, core.counters.feedback_unmatched) == (
        0,
        1,
        0,
    )


def spoilt(**changes: Any) -> Impression:
    """Returns an explored slate with some fields of `served` changed."""
    bad = slate()
    for name, value in changes.items():
        setattr(bad.served, name, value)
    return bad


def with_candidates(candidates: Candidates | None) -> Impression:
    bad = slate()
    bad.candidates = candidates
    return bad


def without_scores() -> Impression:
    bad = slate()
    bad.items.scores = {"click": [0.1, 0.2]}
    return bad


@pytest.mark.parametrize(
    "bad",
    [
        spoilt(log_density=None),
        spoilt(law=""),
        spoilt(law="normal"),
        spoilt(tau=None),
        spoilt(truncate=None),
        spoilt(weights={"click": 1.0}),
        spoilt(center={}),
        spoilt(scale={"click": 1.0, "order": 0.0}),
        with_candidates(Candidates(["c"], {"click": [0.5]})),
        with_candidates(Candidates(["a"], {"click": [0.5], "order": [0.5]})),
        with_candidates(Candidates(["c", "c"], {"click": [0.5, 0.5], "order": [0.5, 0.5]})),
        without_scores(),
    ],
)
def test_a_slate_that_lacks_what_its_draw_is_judged_by_has_no_outcome(bad: Impression) -> None:
    core = JoinCore(SCHEMA, CONFIG)
    assert come(core, bad, END) == []
    assert (core.counters.slates, core.counters.explored, core.counters.explored_incomplete) == (1, 0, 1)


@pytest.mark.parametrize("plain", [spoilt(explore=False), with_candidates(None), shown("r", "a", "b", at=START_MS)])
def test_a_slate_that_is_not_explored_has_no_outcome(plain: Impression) -> None:
    core = JoinCore(SCHEMA, CONFIG)
    assert come(core, plain, END) == []
    assert (core.counters.slates, core.counters.explored, core.counters.explored_incomplete) == (1, 0, 0)


def test_a_grid_needs_no_tau() -> None:
    assert len(come(JoinCore(SCHEMA, CONFIG), spoilt(law="grid", tau=None, truncate=None), END)) == 1


@pytest.mark.parametrize("window_ms", [0, 2**31])
def test_a_window_that_is_none_is_refused(window_ms: int) -> None:
    with pytest.raises(ValueError, match=f"outcome_window_ms: {window_ms} is not allowed; 1 to 2147483647, or none"):
        JoinConfig(outcome_window_ms=window_ms)


def test_a_window_shorter_than_a_label_window_is_refused() -> None:
    with pytest.raises(ValueError, match="outcome_window_ms: 89 is not allowed; at least the longest window_ms"):
        JoinCore(SCHEMA, replace(CONFIG, outcome_window_ms=89))


def test_the_log_must_keep_what_an_open_outcome_needs() -> None:
    config = replace(CONFIG, outcome_window_ms=500, out_of_orderness_ms=3_000)
    assert remember_ms(SCHEMA, config) == 500 + GRACE_MS + DUPLICATE_MS
    assert replay_span_ms(SCHEMA, config) == 500 + GRACE_MS + DUPLICATE_MS + 3_000


FEATURES = SchemaConfig(
    scenarios=("home",),
    tasks=SCHEMA.tasks,
    features=FeaturesConfig(
        user={"age": FeatureConfig(kind="numeric")},
        item={"price": FeatureConfig(kind="numeric")},
        context={"mood": FeatureConfig(kind="categorical"), "tags": FeatureConfig(kind="categorical", many=True)},
    ),
)


def encoder() -> OutcomeEncoder:
    return OutcomeEncoder(FEATURES, outcome_window_ms=WINDOW_MS, grace_ms=GRACE_MS)


def test_a_row_holds_all_that_was_logged() -> None:
    one = slate("r1")
    one.context, one.user = {"mood": 3, "tags": ["x", 4]}, {"age": 30}
    served = one.served
    assert served is not None
    served.fallback, served.lane = "timeout", "canary"
    totals = {"share": {1: Total(2.0, 7)}, "click": {1: Total(1.0, 8), 0: Total(3.5, 9)}}
    two = spoilt(law="grid", tau=None, truncate=None)
    two.candidates = Candidates([], {"click": [], "order": []})
    later = Outcome(two, {}, close_ms=20, watermark_ms=30)
    (message,) = encoder().encode([later, Outcome(one, totals, close_ms=19, watermark_ms=30)])
    table = pa.ipc.open_stream(message).read_all()
    first, second = table.to_pylist()
    assert first == {
        "request_id": "r1", "user_id": "u", "scenario": "home", "ts": START_MS, "close_ms": 19,
        "emitted_watermark_ms": 30, "snapshot": 7, "blender": 2, "law": "lognormal", "fallback": "timeout",
        "lane": "canary", "tau": 0.3, "truncate": 2.0, "log_density": -0.75,
        "weight.click": 1.5, "center.click": 1.0, "scale.click": 0.25,
        "weight.order": 1.5, "center.order": 1.0, "scale.order": 0.25,
        "user.age": 30.0, "context.mood": "3", "context.tags": ["x", "4"],
        "item_id": ["a", "b", "c"], "position": [0, 1, -1],
        "score.click": [0.5, 0.25, 0.125], "score.order": [0.5, 0.25, 0.125],
        "action.position": [0, 1, 1], "action.name": ["click", "click", "share"], "action.value": [3.5, 1.0, 2.0],
        "action.first_ts": [9, 8, 7],
    }  # fmt: skip
    assert (second["item_id"], second["position"], second["action.name"], second["tau"]) == (
        ["a", "b"],
        [0, 1],
        [],
        None,
    )
    assert {name.decode(): value.decode() for name, value in table.schema.metadata.items()} == {
        "schema_version": "1",
        "schema_hash": FEATURES.schema_hash(),
        "outcome_window_ms": "90",
        "grace_ms": "5",
    }


def large(request_id: str, num_candidates: int) -> Outcome:
    impression = slate(request_id)
    names = [f"candidate-{number:0100}" for number in range(num_candidates)]
    impression.candidates = Candidates(names, {task: [0.5] * num_candidates for task in SCHEMA.tasks})
    return Outcome(impression, {}, close_ms=0, watermark_ms=0)


def test_messages_are_shorter_than_the_largest_that_kafka_takes() -> None:
    outcomes = [large(f"r{number}", 2_000) for number in range(9)]
    messages = encoder().encode(outcomes)
    rows = [row["request_id"] for message in messages for row in pa.ipc.open_stream(message).read_all().to_pylist()]
    assert rows == [f"r{number}" for number in range(9)]
    assert all(len(message) <= MAX_MESSAGE_BYTES for message in messages)
    assert len(messages) > 1


def test_no_outcomes_no_messages() -> None:
    assert encoder().encode([]) == []


def test_a_tally_keeps_each_event_once() -> None:
    tally = Tally()
    assert [tally.add(0, did(at=1, event_id=event)) for event in ("e", "e", "f")] == [True, False, True]
    assert tally == Tally({"click": {0: Total(2.0, 1)}}, {"e", "f"})


def test_served_defaults_are_not_explored() -> None:
    impression = shown(at=START_MS)
    impression.served = Served()
    assert come(JoinCore(SCHEMA, CONFIG), impression, END) == []
