"""A table whose rows leave memory against one whose rows do not: the same by key, bit for bit, whatever happens."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model import cold_rows, eviction
from model.embedding import EmbeddingTable
from model.hashing import value_key
from stream.local_store import LocalStore, StoreMemory
from tests.model.memory_bytes import MemoryBytes
from tests.model.rows_oracle import FIELDS, WIDTH, BatchRow, Rules
from tests.model.test_eviction import BATCHES, RULES, encoded, learn, new_table, optim, plain, shown

torch.set_num_threads(1)
ITEMS = st.lists(st.sampled_from("abcdef"), unique=True, max_size=2)
OPS = st.lists(
    st.one_of(
        st.tuples(st.just("learn"), BATCHES, st.integers(0, 12)),
        st.tuples(st.just("learn"), BATCHES, st.integers(0, 12)),
        st.tuples(st.just("skip"), BATCHES),
        st.tuples(st.just("evict"), ITEMS),
        st.tuples(st.just("export"), st.booleans()),
        st.tuples(st.just("reload")),
    ),
    min_size=4,
    max_size=20,
)
VALUES = [(name, value) for name, values in zip(FIELDS, ("uvw", "abcdef", "xyz"), strict=True) for value in values]
KEYS = np.array([value_key(*value) for value in VALUES])


def tiered(rules: Rules, hot_rows: int, checkpoint: Path | None = None, **changes: object) -> EmbeddingTable:
    """Returns a table that keeps few rows in memory, the others in a store that goes on from a checkpoint."""
    table = new_table(rules, hot_rows=hot_rows, **changes)
    table.use_cold(MemoryBytes(checkpoint))
    return table


def rows_of(table: EmbeddingTable) -> dict[int, tuple[object, ...]]:
    """Returns all that is kept of each row, by key, wherever it is; not in memory and in the store at once."""
    keys, rows = table.ids.items()
    state = table.state()
    names = ("weight", "accumulator", "examples", "seen.field", "seen.clock", "seen.ms")
    columns = [state[name][torch.from_numpy(rows)].tolist() for name in names]
    found = dict(zip(keys.tolist(), zip(*columns, strict=True), strict=True))
    for piece in table.cold.all() if table.cold is not None else ():
        columns = [column.tolist() for column in (piece.weight, piece.accumulator, piece.examples)]
        columns += [piece.field.tolist(), piece.clock.tolist(), piece.ms.tolist()]
        cold = dict(zip(piece.keys.tolist(), zip(*columns, strict=True), strict=True))
        assert not found.keys() & cold.keys()
        found |= cold
    return found


class Readers:
    """A ranker with the hot rows of the promoted version in memory, and the row store behind it."""

    def __init__(self) -> None:
        self.memory: dict[int, list[float]] = {}
        self.store: dict[int, list[float]] = {}
        self._since = 0

    def export(self, table: EmbeddingTable, *, is_promoted: bool) -> None:
        """Makes an export; if it is not promoted, readers see nothing of it, and the next one has it all."""
        assert table.cold is not None
        keys, weight_NW, evicted = table.changes(self._since)
        cooled = list(table.cold.cooled())
        names = [key for piece in cooled for key in piece.keys.tolist()]
        assert sorted(table.cold.cooled_keys().tolist()) == sorted(names)
        assert not set(keys.tolist()) & set(names) and not set(evicted.tolist()) & {*keys.tolist(), *names}
        clock = table.clock
        table.cold.mark_exported()
        if not is_promoted:
            return
        for key in [*evicted.tolist(), *names]:
            self.memory.pop(key, None)
        for key in evicted.tolist():
            self.store.pop(key, None)
        for piece in cooled:
            self.store.update(zip(piece.keys.tolist(), piece.weight.tolist(), strict=True))
        self.memory.update(zip(keys.tolist(), weight_NW.tolist(), strict=True))
        table.forget_evicted(clock)
        table.cold.mark_promoted()
        self._since = clock

    def check(self, table: EmbeddingTable) -> None:
        """Holds exactly the rows in memory, and finds every other one in the store."""
        assert self.memory.keys() == set(table.ids.items()[0].tolist())
        expected = {key: row[0] for key, row in rows_of(table).items()}
        assert self.store | self.memory == expected


@settings(max_examples=60, deadline=None)
@given(
    rules=RULES, ops=OPS, hot_rows=st.integers(1, 6), new_rows=st.sampled_from(["default", "random"]), data=st.data()
)
def test_any_history_equals_a_table_that_is_all_in_memory(
    rules: Rules,
    ops: list[tuple[object, ...]],
    hot_rows: int,
    new_rows: str,
    data: st.DataObject,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    with mock.patch.object(eviction, "_MIN_SAMPLE", 2), mock.patch.object(cold_rows, "_AHEAD", 2):
        whole, table = new_table(rules, new_rows=new_rows), tiered(rules, hot_rows, new_rows=new_rows)
        readers, watermark_ms = Readers(), data.draw(st.sampled_from([0, 100]))
        whole.changes(0)
        for op, *arguments in [*ops, ("export", True)]:
            if op == "learn":
                batch, later_ms = arguments
                watermark_ms += later_ms if watermark_ms else 0
                counts = data.draw(st.lists(st.booleans(), min_size=len(batch), max_size=len(batch)))
                seed = data.draw(st.integers(0, 9))
                for one in (whole, table):
                    learn_drawn(one, rules, batch, counts, seed, watermark_ms)
                watermark_ms = watermark_ms or data.draw(st.sampled_from([0, 50]))
                in_batch = set(table.layout.flat_keys(encoded(batch)).tolist())
                assert len(table.ids) <= max(hot_rows, len(in_batch))
            elif op == "skip":
                for one in (whole, table):
                    one.lookup(encoded(arguments[0]), np.ones(len(arguments[0]), bool))
            elif op == "evict":
                keys = np.array([value_key("item_id", item) for item in arguments[0]], np.int64)
                assert table.evict(keys) == whole.evict(keys)
            elif op == "export":
                readers.export(table, is_promoted=arguments[0])
                if arguments[0]:
                    readers.check(table)
            else:
                assert table.cold is not None
                folder = tmp_path_factory.mktemp("cold") / "kept"
                table.cold.save(folder)
                state, counters = table.state(), table.counters
                table.cold.close()
                hot_rows = data.draw(st.integers(1, 6))
                table = tiered(rules, hot_rows, folder, new_rows=new_rows)
                table.load_state(state)
                for name, one in counters.items():
                    assert table.counters[name].rows == one.rows
                    table.counters[name] = dataclasses.replace(one)
            check_equal(table, whole)


def learn_drawn(
    table: EmbeddingTable, rules: Rules, batch: Sequence[BatchRow], counts: list[bool], seed: int, watermark_ms: int
) -> None:
    """Learns with gradients that depend on the values' places alone; some are zero."""
    lookup = table.lookup(encoded(batch), np.array(counts))
    rng = np.random.default_rng(seed)
    gradient_NW = rng.choice([0.0, 0.5, -1.25], (len(lookup.index_N), WIDTH)).astype(np.float32)
    grad_UW = torch.zeros_like(lookup.weight_UW)
    grad_UW.index_add_(0, torch.from_numpy(lookup.index_N), torch.from_numpy(gradient_NW))
    table.apply(lookup, grad_UW, optim(rules), watermark_ms=watermark_ms)


def check_equal(table: EmbeddingTable, whole: EmbeddingTable) -> None:
    assert rows_of(table) == rows_of(whole)
    assert table.counters == whole.counters and table.clock == whole.clock
    assert torch.equal(table.reserved(), whole.reserved())
    weight_KW, has_row_K = table.read_keys(KEYS)
    expected_KW, is_there_K = whole.read_keys(KEYS)
    assert has_row_K.tolist() == is_there_K.tolist()
    assert torch.equal(weight_KW[torch.from_numpy(has_row_K)], expected_KW[torch.from_numpy(has_row_K)])
    batch = encoded([("u", "a", ["x"]), ("v", "e", []), ("w", "f", ["z", "y"])])
    keys_N = table.layout.flat_keys(batch)
    (ours, our_N), (theirs, their_N) = (
        one.read(one.layout.rows(batch, keys_N, one.ids), keys_N) for one in (table, whole)
    )
    assert torch.equal(ours[torch.from_numpy(our_N)], theirs[torch.from_numpy(their_N)])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_thousands_of_rows_come_and_go_through_a_local_store(tmp_path: Path, dtype: str) -> None:
    """Ties, scans, read-ahead and limits of a real size; killed and resumed on the way."""
    nothing = dict.fromkeys(FIELDS)
    rules = plain(max_rows=nothing | {"item_id": 3_000}, ttl_ms=nothing | {"item_id": 4}, per_step=300, max_total=3_900)
    memory, rng = StoreMemory(16), np.random.default_rng(0)
    whole, table = new_table(rules, dtype=dtype), new_table(rules, hot_rows=900, dtype=dtype)
    table.use_cold(LocalStore(tmp_path / "live0", memory))
    for step in range(24):
        batch = [("u", str(n), [str(n % 900)]) for n in rng.integers(0, 8_000, 700).tolist()]
        for one in (whole, table):
            learn_drawn(one, rules, batch, [True] * len(batch), step, 100 + step)
        assert table.cold is not None and len(table.ids) <= 2_000
        if step % 9 == 7:
            table.cold.save(tmp_path / f"kept{step}")
            state, counters = table.state(), table.counters
            table.cold.close()
            table = new_table(rules, hot_rows=900, dtype=dtype)
            table.use_cold(LocalStore(tmp_path / f"kept{step}", memory))
            table.load_state(state)
            table.counters = counters
    assert rows_of(table) == rows_of(whole) and table.counters == whole.counters
    assert table.cold is not None and table.cold.stats.found > 100 and len(table.cold) > 2_000
    assert min(table.counters["item_id"].evictions[cause] for cause in ("full", "expired")) > 1_000
    table.cold.close()


def test_a_lookup_by_keys_finds_rows_that_left() -> None:
    tables = [new_table(plain()), tiered(plain(), 2)]
    for table in tables:
        for items in ("abc", "de", "f"):
            learn(table, plain(), shown(items))
    order = np.argsort(KEYS)
    keys, field = KEYS[order], np.array([FIELDS.index(VALUES[place][0]) for place in order])
    ones = np.ones(len(keys), np.int64)
    whole, ours = (table.lookup_keys(keys, field, ones, ones) for table in tables)
    assert torch.equal(whole.weight_UW[torch.from_numpy(whole.index_N)], ours.weight_UW[torch.from_numpy(ours.index_N)])
    assert ours.thawed is not None and whole.admissions.keys.tolist() == ours.admissions.keys.tolist()
    for table, lookup in zip(tables, (whole, ours), strict=True):
        table.apply(lookup, torch.ones_like(lookup.weight_UW), optim(plain()))
    check_equal(tables[1], tables[0])


def test_a_row_that_changed_and_then_left_is_told_with_its_weights() -> None:
    table = tiered(plain(), 2)
    learn(table, plain(), shown("a"))
    readers = Readers()
    readers.export(table, is_promoted=True)
    learn(table, plain(), shown("a"))
    learn(table, plain(), shown("b"))
    learn(table, plain(), shown("c"))
    readers.export(table, is_promoted=True)
    readers.check(table)
    key = value_key("item_id", "a")
    assert key not in readers.memory and readers.store[key] == table.read_keys(np.array([key]))[0][0].tolist()


def test_without_a_store_rows_that_left_cannot_be_taken_up() -> None:
    table = tiered(plain(), 1)
    learn(table, plain(), shown("abc"))
    learn(table, plain(), shown("d"))
    with pytest.raises(ValueError, match="hot_rows: null is not allowed where rows have left memory; any number"):
        new_table(plain()).load_state(table.state())


def test_a_lowered_limit_is_reached_over_several_steps() -> None:
    whole = new_table(plain())
    learn(whole, plain(), shown("abcdef"))
    table = tiered(plain(), 2)
    table.load_state(whole.state())
    left = []
    with mock.patch("model.embedding._COOLED_AT_ONCE", 2):
        for _ in range(3):
            learn(table, plain(), shown("f"))
            left.append(len(table.ids))
    assert left == [5, 3, 2] and len(rows_of(table)) == 7
