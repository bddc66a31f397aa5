"""Messages of the topic outcomes as the blender reads them."""

import random
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from freshrank.outcome_rows import decode_outcomes
from stream.emission import Outcome
from stream.outcomes import OutcomeEncoder
from stream.schema import Candidates, FeatureConfig, FeaturesConfig, Impression, SchemaConfig, TaskConfig
from stream.tally import Total
from tests.stream.build import explored, shown
from utility_blender.outcomes import Outcomes, concat, slates, utilities

SCHEMA = SchemaConfig(
    scenarios=("home", "search"),
    tasks={"click": TaskConfig(action="click", window_ms=60), "order": TaskConfig(action="order", window_ms=90)},
    features=FeaturesConfig(
        user={"age": FeatureConfig(kind="numeric")},
        item={"price": FeatureConfig(kind="numeric")},
        context={"mood": FeatureConfig(kind="categorical"), "tags": FeatureConfig(kind="categorical", many=True)},
    ),
    unknown_scenario="add",
)


def drawn(seed: int) -> Outcome:
    """Returns an explored slate with random candidates, draw and actions."""
    rng = random.Random(seed)
    names = [f"i{number}" for number in rng.sample(range(300), rng.randint(1, 9))]
    num_shown = rng.randint(1, len(names))
    impression = explored(shown(f"r{seed}", *names[:num_shown], at=1_000 + seed, user=f"u{seed % 3}"), SCHEMA.tasks)
    impression.items.scores = {task: [rng.random() for _ in range(num_shown)] for task in SCHEMA.tasks}
    others = names[num_shown:]
    impression.candidates = Candidates(others, {task: [rng.random() for _ in others] for task in SCHEMA.tasks})
    impression.scenario = rng.choice(["home", "search", "deals"])
    impression.user = {"age": rng.random()} if rng.random() < 0.5 else {}
    impression.context = rng.choice([{}, {"mood": 3}, {"mood": "buy", "tags": ["x", 4]}])
    served = impression.served
    assert served is not None
    served.snapshot, served.blender, served.log_density = rng.randrange(99), rng.randrange(9), rng.gauss(0, 1)
    served.weights = {task: rng.random() for task in SCHEMA.tasks}
    served.center = {task: rng.random() for task in SCHEMA.tasks}
    served.scale = {task: rng.random() + 0.1 for task in SCHEMA.tasks}
    if rng.random() < 0.3:
        served.law, served.tau, served.truncate = "grid", None, None
    totals: dict[str, dict[int, Total]] = {}
    for _ in range(rng.randrange(4)):
        rows = totals.setdefault(rng.choice(["click", "share", "hide"]), {})
        rows[rng.randrange(num_shown)] = Total(rng.gauss(0, 5), 1_000)
    return Outcome(impression, totals, close_ms=seed, watermark_ms=seed + 1)


def message(*outcomes: Outcome) -> bytes:
    (value,) = OutcomeEncoder(SCHEMA, outcome_window_ms=90, grace_ms=5).encode(outcomes)
    return value


def reference(outcome: Outcome, task_names: list[str]) -> dict[str, Any]:
    """Returns what must be found of one outcome, by name: written without a look at the decoder."""
    impression, served = outcome.impression, outcome.impression.served
    assert served is not None
    assert impression.candidates is not None
    candidates = {}
    for place, item in enumerate(impression.items.id):
        candidates[item] = (place, [np.float32(impression.items.scores[task][place]) for task in task_names])
    for place, item in enumerate(impression.candidates.id):
        candidates[item] = (-1, [np.float32(impression.candidates.scores[task][place]) for task in task_names])
    done = {}
    for action, rows in outcome.totals.items():
        for row, total in rows.items():
            done[sorted(candidates).index(impression.items.id[row]), action] = total.value
    mood, tags = impression.context.get("mood"), impression.context.get("tags")
    return {
        "ids": (impression.request_id, impression.user_id, impression.ts, served.snapshot, served.blender),
        "candidates": [candidates[item] for item in sorted(candidates)],
        "done": done,
        "draw": [[by_task[task] for task in task_names] for by_task in (served.weights, served.center, served.scale)],
        "law": [served.log_density, served.tau, served.truncate],
        "context": (
            impression.scenario if impression.scenario in SCHEMA.scenarios else "home",
            impression.user.get("age"),
            None if mood is None else str(mood),
            None if tags is None else [str(tag) for tag in tags],
        ),
    }


def found(outcomes: Outcomes, row: int) -> dict[str, Any]:
    here = [place for place in range(outcomes.position_NC.shape[1]) if outcomes.position_NC[row, place] != -2]
    assert here == list(range(len(here))), "padding comes last"
    assert not outcomes.scores_NCT[row, len(here) :].any()
    law = [outcomes.log_density_N[row], outcomes.tau_N[row], outcomes.truncate_N[row]]
    columns = outcomes.contexts.columns
    return {
        "ids": (
            outcomes.request_id[row],
            outcomes.user_id[row],
            outcomes.ts_ms_N[row],
            outcomes.snapshot_N[row],
            outcomes.blender_N[row],
        ),
        "candidates": [(outcomes.position_NC[row, p], list(outcomes.scores_NCT[row, p])) for p in here],
        "done": {
            (place, action): outcomes.value_NCA[row, place, number]
            for place in range(outcomes.position_NC.shape[1])
            for number, action in enumerate(outcomes.actions)
            if outcomes.value_NCA[row, place, number]
        },
        "draw": [list(values[row]) for values in (outcomes.weights_NT, outcomes.center_NT, outcomes.scale_NT)],
        "law": [None if np.isnan(value) else value for value in law],
        "context": (
            outcomes.contexts.scenario[row],
            *(columns[name][row] for name in ("user.age", "context.mood", "context.tags")),
        ),
    }


def test_everything_comes_back_sorted_and_padded() -> None:
    drawn_outcomes = [drawn(seed) for seed in range(60)]
    outcomes = decode_outcomes(message(*drawn_outcomes), SCHEMA)
    assert outcomes.num_requests == len(drawn_outcomes)
    assert (outcomes.tasks, outcomes.actions) == (("click", "order"), ("click", "hide", "share"))
    for row, outcome in enumerate(drawn_outcomes):
        assert found(outcomes, row) == reference(outcome, ["click", "order"])
    shape = {field.name: np.shape(getattr(outcomes, field.name)) for field in fields(outcomes) if "_N" in field.name}
    assert (shape["scores_NCT"], shape["value_NCA"]) == ((60, 9, 2), (60, 9, 3))


def test_the_logged_slate_is_that_of_the_logged_weights() -> None:
    """As the ranker orders: by utility, equal ones by the smaller id."""
    outcome = drawn(5)
    impression, served = outcome.impression, outcome.impression.served
    assert served is not None
    scores = {"i1": (0.5, 0.25), "i10": (0.5, 0.25), "i2": (0.5, 0.25), "i3": (0.75, 0.5)}
    impression.items.id, others = ["i3", "i1", "i10"], ["i2"]
    impression.items.scores = {t: [scores[i][n] for i in impression.items.id] for n, t in enumerate(SCHEMA.tasks)}
    impression.candidates = Candidates(others, {t: [scores[i][n] for i in others] for n, t in enumerate(SCHEMA.tasks)})
    outcome.totals = {}
    outcomes = decode_outcomes(message(outcome), SCHEMA)
    chosen_NC = slates(utilities(outcomes, outcomes.weights_NT), outcomes.size_N)
    np.testing.assert_array_equal(chosen_NC, outcomes.shown_NC)


def test_what_a_fallback_or_a_trial_served_is_left_out() -> None:
    three = [drawn(seed) for seed in range(3)]
    for outcome, name in ((three[0], "fallback"), (three[2], "lane")):
        setattr(outcome.impression.served, name, "canary")
    assert decode_outcomes(message(*three), SCHEMA).request_id == ["r1"]
    none = decode_outcomes(message(three[0]), SCHEMA)
    assert (none.num_requests, none.scores_NCT.shape, none.actions) == (0, (0, 0, 2), ())
    one = decode_outcomes(message(three[1]), SCHEMA)
    assert concat([none, one]).request_id == ["r1"]


def changed(name: str, change: Callable[[Any], Any]) -> bytes:
    """Returns a message of two good outcomes with one column changed in its first row."""
    table = pa.ipc.open_stream(message(drawn(1), drawn(2))).read_all()
    index = table.schema.get_field_index(name)
    values = table[name].to_pylist()
    values[0] = change(values[0])
    table = table.set_column(index, name, pa.array(values, table.schema.field(name).type))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue().to_pybytes())


BAD = {
    "a scale of zero": ("scale.click", lambda _: 0.0, "scale: a number not above 0"),
    "no density": ("log_density", lambda _: None, "log_density: an explored request has none"),
    "a weight that is none": ("weight.order", lambda _: float("nan"), "weight.order: a value is not finite"),
    "an infinite tau": ("tau", lambda _: float("inf"), "tau: a value is not finite"),
    "no time": ("ts", lambda _: None, "ts: a value is missing"),
    "a score that is none": ("score.click", lambda s: [float("inf"), *s[1:]], "score.click: a value is not finite"),
    "a score too few": ("score.click", lambda s: s[1:], "score.click: lists of the wrong length"),
    "no candidates": ("item_id", lambda _: None, "item_id: no lists"),
    "an id missing": ("item_id", lambda ids: [None, *ids[1:]], "item_id: a value is missing"),
    "an id twice": ("item_id", lambda ids: [ids[0]] * len(ids), "item_id: a candidate is there twice"),
    "shown in no order": ("position", lambda p: p[::-1], "position: not 0, 1, ..."),
    "an action on nothing": ("action.position", lambda p: [99] * len(p), "action.position: no item was shown there"),
    "an infinite value": ("action.value", lambda v: [float("inf")] * len(v), "action.value: a value is not finite"),
}


@pytest.mark.parametrize(("name", "change", "error"), BAD.values(), ids=BAD.keys())
def test_a_bad_message_is_refused_in_one_line(name: str, change: Callable[[Any], Any], error: str) -> None:
    with pytest.raises(ValueError, match=error) as raised:
        decode_outcomes(changed(name, change), SCHEMA)
    assert "\n" not in str(raised.value)


def test_what_is_no_message_of_this_schema_is_refused() -> None:
    good = message(drawn(1))
    with pytest.raises(ValueError, match="outcomes: cannot be read"):
        decode_outcomes(good[:-200], SCHEMA)
    with pytest.raises(ValueError, match="outcomes: cannot be read"):
        decode_outcomes(b"no arrow", SCHEMA)
    other = replace(SCHEMA, scenarios=("home",))
    with pytest.raises(ValueError, match="schema_hash: .* is not allowed"):
        decode_outcomes(good, other)


def test_a_missing_column_is_named() -> None:
    table = pa.ipc.open_stream(message(drawn(1))).read_all().drop_columns(["center.order"])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(ValueError, match=r"center\.order"):
        decode_outcomes(bytes(sink.getvalue().to_pybytes()), SCHEMA)


def test_impressions_are_not_changed_by_being_written() -> None:
    outcome = drawn(3)
    before = repr(outcome.impression)
    message(outcome)
    assert repr(outcome.impression) == before
    assert isinstance(outcome.impression, Impression)


def test_a_request_to_compare_with_has_no_density_and_only_its_shown_candidates() -> None:
    control, plain = drawn(1), drawn(1)
    served = control.impression.served
    assert served is not None
    control.impression.candidates = None
    served.law, served.explore, served.log_density, served.tau, served.truncate = "none", False, None, None, None
    both = decode_outcomes(message(control, plain), SCHEMA)
    assert np.isnan(both.log_density_N).tolist() == [True, False]
    assert both.size_N[0] == both.present_NC[0].sum() == len(control.impression.items.id)
    assert both.value_NCA[0].sum() == both.value_NCA[1].sum()
