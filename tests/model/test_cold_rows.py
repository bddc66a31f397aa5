"""Rows that left memory against a plain list: found by key, oldest first, and who left since an export."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.cold_rows import ByteStore, ColdNames, ColdRows, RowValues
from stream.local_store import LocalStore, StoreMemory
from stream.local_store import clone as clone_store
from tests.model.memory_bytes import MemoryBytes

FIELDS, WIDTH = 3, 2
KEYS = st.integers(-5, 5).map(lambda n: n << 60)
"""Few, so that they come again, and of both signs."""
OPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.lists(st.tuples(KEYS, st.integers(0, 2)), max_size=6)),
        st.tuples(st.just("remove"), st.lists(KEYS, max_size=4)),
        st.tuples(st.just("oldest"), st.sampled_from([0, 1, 2, None]), st.integers(0, 4), st.integers(0, 40)),
        st.tuples(st.sampled_from(["export", "promote", "reopen"])),
    ),
    max_size=20,
)


def rows_of(names: list[tuple[int, int, int, int]], dtype: torch.dtype = torch.float32) -> RowValues:
    """Returns rows of (clock, key, field, ms), what is kept of them made up from these."""
    clock, keys, field, ms = np.array(names, np.int64).reshape(-1, 4).T.copy()
    weight = torch.from_numpy(np.stack([clock + field, -clock], axis=1)).to(dtype)
    return RowValues(keys, field, weight, torch.from_numpy(clock / 8).float(), clock * 3, clock, ms)


def new_rows(store: ByteStore, dtype: torch.dtype = torch.float32) -> ColdRows:
    return ColdRows(store, num_fields=FIELDS, width=WIDTH, dtype=dtype, now_s=lambda: 0.0)


@settings(max_examples=80, deadline=None)
@given(ops=OPS)
def test_any_history_equals_a_sorted_list(
    ops: list[tuple[object, ...]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    rows, here, clock = new_rows(MemoryBytes()), [], 0
    left: list[tuple[int, int]] = []
    exported = promoted = (0, 0)
    for op, *arguments in [*ops, ("oldest", None, 99, 99)]:
        if op == "add":
            clock += 1
            fresh = {key: field for key, field in arguments[0] if key not in [name[1] for name in here]}
            new = sorted((clock, key, field, 2 * clock) for key, field in fresh.items())
            rows.add(rows_of(new))
            here += new
            left += [name[:2] for name in new]
        elif op == "remove":
            gone = [name for name in here if name[1] in arguments[0]]
            rows.remove(names_of(gone))
            here = [name for name in here if name not in gone]
        elif op == "oldest":
            field, count, before_ms = arguments
            names = rows.oldest(field, count, before_ms=before_ms)
            expected = [name for name in here if field in (None, name[2]) and name[3] < before_ms][:count]
            assert [column.tolist() for column in names] == [column.tolist() for column in names_of(expected)]
            rows.remove(names)
            here = [name for name in here if name not in expected]
        elif op == "export":
            rows.mark_exported()
            exported = max(left, default=(0, 0))
        elif op == "promote":
            rows.mark_promoted()
            promoted = exported
        else:
            folder = tmp_path_factory.mktemp("cold") / "kept"
            rows.save(folder)
            state, rows = rows.state(), new_rows(MemoryBytes(folder))
            rows.load_state(state)
        assert rows.num_rows_F.tolist() == [sum(name[2] == field for name in here) for field in range(FIELDS)]
        assert rows.cooled_keys().tolist() == [name[1] for name in here if name[:2] > promoted]
        check_found(rows, here)
        assert [key for piece in rows.all() for key in piece.keys.tolist()] == [name[1] for name in here]


def names_of(names: list[tuple[int, int, int, int]]) -> ColdNames:
    clock, keys, field, _ = np.array(names, np.int64).reshape(-1, 4).T
    return ColdNames(keys, field, clock)


def check_found(rows: ColdRows, here: list[tuple[int, int, int, int]]) -> None:
    asked = np.array([n << 60 for n in (3, -5, 0, 3, 5, -1, 4, 1, 2, -2, -3, -4)])
    found = rows.find(asked)
    expected = sorted((name for name in here if name[1] in asked), key=lambda name: name[1])
    assert (found is None) == (not expected)
    if found is not None:
        assert all(np.array_equal(ours, theirs) for ours, theirs in zip(found, rows_of(expected), strict=True))
    assert rows.stats.store_s == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_local_store_keeps_every_bit_over_a_checkpoint(tmp_path: Path, dtype: torch.dtype) -> None:
    memory = StoreMemory(16)
    rows = new_rows(LocalStore(tmp_path / "live", memory), dtype)
    names = [
        (clock, key, key % FIELDS, 5 * clock) for clock in (1, 2) for key in range(1_500 * clock, 1_500 * clock + 1_200)
    ]
    rows.add(rows_of(names, dtype))
    rows.remove(names_of(names[:100]))
    rows.save(tmp_path / "kept")
    state = rows.state()
    rows.remove(names_of(names[100:]))
    rows.close()
    clone_store(tmp_path / "kept", tmp_path / "again")
    again = new_rows(LocalStore(tmp_path / "again", memory), dtype)
    again.load_state(state)
    found, expected = again.find(np.arange(5_000)), rows_of(names[100:], dtype)
    assert found is not None
    assert all(ours.tolist() == theirs.tolist() for ours, theirs in zip(found, expected, strict=True))
    assert again.oldest(None, 2_000).keys.tolist() == [name[1] for name in names[100:2_100]]
    assert again.stats.asked == 5_000 and again.stats.found == 2_300
    again.close()


def test_nothing_is_asked_of_a_store_that_is_empty() -> None:
    rows = new_rows(MemoryBytes())
    assert rows.find(np.array([1, 2])) is None and rows.stats.asked == 0
