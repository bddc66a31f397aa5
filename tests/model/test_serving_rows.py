"""Rows that take turns: every version is what its deltas say, whoever still holds an older one."""

import gc
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.hashing import MISSING_KEY, REMOVED_KEY
from model.serving_rows import ServingRows

NUM_RESERVED, WIDTH = 2, 3
Contents = dict[int, list[float]]


def delta(keys: list[int], evicted: list[int], number: int) -> dict[str, Tensor]:
    """Returns a delta whose embeddings say which one it was."""
    return {
        "rows.keys": torch.tensor(keys, dtype=torch.int64),
        "rows.weights": torch.tensor([[float(key), number, 0.5] for key in keys]).view(-1, WIDTH),
        "rows.evicted": torch.tensor(evicted, dtype=torch.int64),
        "rows.reserved": torch.full((NUM_RESERVED, WIDTH), float(number)),
    }


def contents(rows: ServingRows) -> tuple[Contents, list[list[float]]]:
    """Returns rows by key as scoring sees them, and the reserved ones."""
    exported = rows.tensors()
    keys = exported["rows.keys"]
    seen = rows.weight[torch.from_numpy(rows.ids.lookup(keys.numpy()))].tolist()
    assert seen == exported["rows.weights"].tolist()
    return dict(zip(keys.tolist(), seen, strict=True)), exported["rows.reserved"].tolist()


def first() -> ServingRows:
    return ServingRows.empty(num_reserved=NUM_RESERVED, width=WIDTH).after(delta([10, 20, 30], [], 0))


KEYS = st.lists(st.integers(1, 40), unique=True, max_size=12)
OPS = st.lists(
    st.one_of(
        st.tuples(st.just("delta"), KEYS, KEYS),
        st.tuples(st.just("hold"), KEYS, KEYS),
        st.tuples(st.just("let go"), KEYS, KEYS),
        st.tuples(st.just("fork"), KEYS, KEYS),
    ),
    max_size=25,
)


@settings(deadline=None)
@given(OPS)
def test_every_version_that_is_held_stays_what_it_was(ops: list[tuple[str, list[int], list[int]]]) -> None:
    """Deltas one after the other, versions held for a while, and deltas on a version that others were built on before.

    A table is never handed on while its rows are held, and what is handed on lacks nothing.
    """
    rows = first()
    oracle, reserved = contents(rows)
    held: list[tuple[ServingRows, Contents, list[list[float]]]] = []
    for number, (op, keys, evicted) in enumerate(ops, start=1):
        if op == "hold":
            held.append((rows, dict(oracle), reserved))
        elif op == "let go":
            held = held[1:]
        else:
            given_delta = delta(keys, evicted, number)
            after = rows.after(given_delta)
            after_oracle = {key: row for key, row in oracle.items() if key not in evicted}
            after_oracle |= dict(zip(keys, given_delta["rows.weights"].tolist(), strict=True))
            after_reserved = given_delta["rows.reserved"].tolist()
            assert contents(after) == (after_oracle, after_reserved)
            assert contents(rows) == (oracle, reserved)
            if op == "delta":  # else it was a candidate that is not served
                rows, oracle, reserved = after, after_oracle, after_reserved
            del after
        for old, old_oracle, old_reserved in held:
            assert contents(old) == (old_oracle, old_reserved)


def tables(num_deltas: int, *, is_held: bool) -> set[int]:
    """Returns where the embeddings of the last versions lie."""
    rows = first()
    held, places = [rows], []
    for number in range(num_deltas):
        rows = rows.after(delta([10, 20, 50 + number % 2], [51 - number % 2], number))
        held = [*held, rows] if is_held else []
        places.append(rows.weight.data_ptr())
    return set(places[2:])


def test_two_tables_take_turns_and_a_version_that_is_held_keeps_its_own() -> None:
    assert len(tables(10, is_held=False)) == 2
    assert len(tables(10, is_held=True)) == 8


def test_a_version_that_was_let_go_leaves_no_more_than_its_table() -> None:
    rows = first()
    old = []
    for number in range(5):
        old.append(weakref.ref(rows))
        rows = rows.after(delta([10], [], number))
    gc.collect()
    assert [one() for one in old] == [None] * 5


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"rows.keys": torch.tensor([7, 7])}, "rows.keys: a key is reserved, or stands there twice"),
        ({"rows.keys": torch.tensor([7, MISSING_KEY])}, "rows.keys: a key is reserved"),
        ({"rows.keys": torch.tensor([7, REMOVED_KEY])}, "rows.keys: a key is reserved"),
        ({"rows.evicted": torch.tensor([20, 20])}, "rows.evicted: a key stands there twice"),
        ({"rows.evicted": torch.tensor([[20]])}, r"rows.evicted: the state has \(1, 1\)"),
        ({"rows.keys": torch.tensor([7.0, 8.0])}, "rows.keys: the state has torch.float32, this model needs torch.int"),
        ({"rows.weights": torch.ones(2, WIDTH, dtype=torch.int64)}, "rows.weights: the state has torch.int64"),
        ({"rows.weights": torch.ones(3, WIDTH)}, "rows.weights: the state has"),
        ({"rows.reserved": torch.ones(1, WIDTH)}, "rows.reserved: the state has"),
    ],
)
def test_a_delta_that_is_no_delta_changes_nothing_for_any_version(changes: dict[str, Tensor], sentence: str) -> None:
    rows = first().after(delta([10], [], 1)).after(delta([20], [], 2))
    before = contents(rows)
    with pytest.raises(ValueError, match=sentence):
        rows.after(delta([7, 8], [20], 3) | changes)
    assert contents(rows) == before
    after = rows.after(delta([8], [10], 4))
    assert contents(after)[0].keys() == {20, 30, 8}
    assert np.array_equal(after.ids.lookup(np.array([7])), [-1])


def test_rows_that_cooled_are_not_held_any_more() -> None:
    held = first()
    cooled = delta([40], [10], 1) | {"rows.cooled": torch.tensor([20, 50])}
    assert contents(held.after(cooled))[0] == {30: [30.0, 0.0, 0.5], 40: [40.0, 1.0, 0.5]}
    assert contents(held.after(cooled).after(delta([20], [], 2)))[0].keys() == {20, 30, 40}
    with pytest.raises(ValueError, match=r"there and in rows\.cooled"):
        held.after(delta([], [10], 1) | {"rows.cooled": torch.tensor([10])})
