"""The id table against a dictionary."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.id_table import NO_ROW, IdTable

KEYS = st.sampled_from([k * 1024 + low for k in range(1, 12) for low in (0, 1, 1023)] + [-5, -6, 2**62, -(2**62)])
OPS = st.lists(
    st.tuples(st.sampled_from(["insert", "remove", "reload", "copy"]), st.lists(KEYS, unique=True)), max_size=25
)


def array(keys: list[int]) -> np.ndarray:
    return np.array(keys, np.int64)


@settings(max_examples=60, deadline=None)
@given(ops=OPS)
def test_any_history_of_inserts_and_removals_equals_a_dictionary(ops: list[tuple[str, list[int]]]) -> None:
    table, oracle, free, next_row = IdTable(num_reserved=3), {}, [], 3
    for op, keys in ops:
        if op == "insert":
            new = [key for key in keys if key not in oracle]
            expected = [free.pop() if free else (next_row := next_row + 1) - 1 for _ in new]
            assert table.next_rows(len(new)).tolist() == expected
            assert table.insert(array(new)).tolist() == expected
            oracle |= dict(zip(new, expected, strict=True))
        elif op == "remove":
            gone = [oracle.pop(key) for key in keys if key in oracle]
            free += gone
            assert table.remove(array(keys)).tolist() == gone
        elif op == "reload":
            state, table = table.state(), IdTable(num_reserved=3)
            table.load_state(state)
        else:
            former, table = table, table.copy()
            former.insert(array([77]))
        rows = table.lookup(array([*keys, 999, 0])).tolist()
        assert rows == [oracle.get(key, NO_ROW) for key in [*keys, 999]] + [NO_ROW]
        assert len(table) == len(oracle) and table.num_rows == next_row
        found, found_rows = table.items()
        assert dict(zip(found.tolist(), found_rows.tolist(), strict=True)) == oracle


def test_many_keys_through_growth_and_turnover() -> None:
    rng, table, oracle = np.random.default_rng(0), IdTable(num_reserved=4), {}
    for _ in range(30):
        keys = np.unique(rng.integers(-(2**63), 2**63 - 1, 3_000))
        oracle |= dict(zip(keys.tolist(), table.insert(keys).tolist(), strict=True))
        gone = rng.choice(np.array(list(oracle)), 1_500, replace=False)
        table.remove(gone)
        for key in gone.tolist():
            del oracle[key]
    keys = np.array(list(oracle))
    assert table.lookup(keys).tolist() == list(oracle.values())
    assert len(set(oracle.values())) == len(oracle) and min(oracle.values()) >= 4
    assert (table.lookup(rng.integers(-(2**63), 2**63 - 1, 10_000)) == NO_ROW).all()


@pytest.mark.parametrize("keys", [[], [0], [0, 0]])
def test_no_key_and_the_missing_key_have_no_row(keys: list[int]) -> None:
    table = IdTable(num_reserved=2)
    table.insert(array([5]))
    assert table.lookup(array(keys)).tolist() == [NO_ROW] * len(keys)
    assert table.remove(array(keys[:1])).tolist() == [] and len(table) == 1


def test_removal_does_not_break_the_probe_sequence_of_the_others() -> None:
    table, colliding = IdTable(num_reserved=0), array([1024, 2048, 3072])
    rows = table.insert(colliding)
    table.remove(colliding[:1])
    assert table.lookup(colliding[1:]).tolist() == rows[1:].tolist()
