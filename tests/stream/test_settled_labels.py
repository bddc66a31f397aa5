"""Reading the settled labels of a message: which rows count, what is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.exceptions import DecodeError
from stream.schema import SETTLED_KINDS
from stream.settled_labels import read_settled
from tests.stream.served_labels import GRACE_MS, SCHEMA, WINDOW_MS, emission, message

TASKS = tuple(SCHEMA.tasks)


def test_a_label_has_score_version_and_close() -> None:
    read = read_settled(
        message(emission(at=5_000, version=7, scores=[0.25, 0.5], labels=[1, 0], watermark_ms=9)), TASKS
    )
    assert list(read.labels) == [("home", "click")]
    assert read.labels["home", "click"].tolist() == [
        (5_000 + WINDOW_MS + GRACE_MS, 7, 0.25, 1),
        (5_000 + WINDOW_MS + GRACE_MS, 7, 0.5, 0),
    ]
    assert (read.watermark_ms, read.num_unscored) == (9, 0)


def test_scenarios_and_tasks_are_told_apart() -> None:
    read = read_settled(
        message(
            emission(scenario="home", labels=[0]),
            emission(scenario="search", labels=[1]),
            emission(scenario="search", task="order", labels=[0]),
        ),
        TASKS,
    )
    found = {cell: labels["label"].tolist() for cell, labels in read.labels.items()}
    assert found == {("home", "click"): [0], ("search", "click"): [1], ("search", "order"): [0]}


@pytest.mark.parametrize("kind", ["fake_negative", "early_positive", "early_negative", "late_positive"])
def test_labels_that_may_still_change_do_not_count(kind) -> None:
    assert read_settled(message(emission(kind=kind)), TASKS).labels == {}


@pytest.mark.parametrize("kind", SETTLED_KINDS)
def test_labels_of_a_closed_window_count(kind) -> None:
    assert len(read_settled(message(emission(kind=kind)), TASKS).labels["home", "click"]) == 1


def test_labels_without_a_score_are_counted_and_left_out() -> None:
    read = read_settled(message(emission(scores=[None, 0.5], labels=[0, 0])), TASKS)
    assert (read.num_unscored, len(read.labels["home", "click"])) == (1, 1)


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (b"", "examples: "),
        (b"not arrow at all", "examples: "),
        (message(emission(scores=[1.5])), "served.click: only probabilities"),
        (message(emission())[:-40], "examples: "),
    ],
)
def test_what_is_no_message_is_refused(value: bytes, what: str) -> None:
    with pytest.raises(DecodeError, match=what):
        read_settled(value, TASKS)


def test_a_task_the_message_does_not_know_is_refused() -> None:
    with pytest.raises(DecodeError, match="hide"):
        read_settled(message(emission()), ("hide",))


@given(value=st.binary(max_size=200), at=st.integers(0, 2_000))
def test_damage_is_refused_or_harmless(value: bytes, at: int) -> None:
    good = message(emission())
    try:
        read_settled(good[:at] + value + good[at + len(value) :], TASKS)
    except DecodeError:
        pass
