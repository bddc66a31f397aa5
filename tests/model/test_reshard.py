"""Resharding: whichever way the rows of a table go over how many ranks, it is the same table."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.admission import AdmissionConfig
from model.embedding import EmbeddingTable
from model.embedding_config import EmbeddingConfig
from model.exceptions import CheckpointMismatchError
from model.features import EncodedBatch, FeatureEncoder
from model.field_ids import FieldIdsConfig
from model.lookup import Lookup
from model.optim import OptimConfig
from model.reshard import ranks_with, reshard, split_rows
from model.sharding import NUM_SHARDS
from model.teacher_rows import FrozenRows
from tests.model.worlds import SCHEMA, columns, tiny_config

VIEW = "teacher.copies.current.rows."
LIMITS = EmbeddingConfig(
    width=4,
    max_rows=60,
    evictions_per_step=5,
    admission=AdmissionConfig(counter_bits=14),
    fields={
        "item_id": FieldIdsConfig(admission=3, ttl_ms=9_000),
        "user_id": FieldIdsConfig(admission=2, max_rows=8),
    },
)

pytestmark = pytest.mark.usefixtures("one_thread")


class Life:
    """A table and a view of what it was, and random steps of theirs."""

    def __init__(self, config: EmbeddingConfig = LIMITS) -> None:
        model = tiny_config(embedding=config)
        self.encoder = FeatureEncoder(SCHEMA, model.encoding)
        self.table = EmbeddingTable(model.input_layout(self.encoder.fields), config, seed=5)
        self.view: FrozenRows | None = None
        self.steps = 0

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint has of it."""
        state = {f"rows.{name}": tensor for name, tensor in self.table.state().items()}
        return state | ({VIEW + name: t for name, t in self.view.state().items()} if self.view is not None else {})

    def become(self, state: dict[str, Tensor], steps: int) -> None:
        """Goes on from a state."""
        self.table.load_state({name[5:]: tensor for name, tensor in state.items() if name.startswith("rows.")})
        view = {name.removeprefix(VIEW): tensor for name, tensor in state.items() if name.startswith(VIEW)}
        if view:
            self.view = FrozenRows.restored(view, torch.device("cpu"))
            self.table.refreeze(self.view)
        self.steps = steps

    def step(self, rng: np.random.Generator) -> dict[str, Any]:
        """Learns one batch; now and then evicts, exports, takes a view. Returns what can be seen of it."""
        self.steps += 1
        batch = self.encoder.encode_columns(columns(rng, 4, 12, num_ids=40))
        lookup = self.table.lookup(batch, rng.random(12) < 0.8)
        gradients = rng.normal(size=(len(lookup.rows_U), 4)).astype(np.float32)
        seen = self.looked_up(batch, lookup)
        self.table.apply(lookup, torch.from_numpy(gradients), OptimConfig(), watermark_ms=1_000 * self.steps)
        keys = np.sort(self.table.ids.items()[0])
        what = rng.random()
        if what < 0.2:
            self.table.evict(rng.choice(keys, min(len(keys), 4), replace=False))
        elif what < 0.4:
            keys, weights, evicted = self.table.changes(max(0, self.table.clock - 6))
            seen |= {
                "changed": dict(zip(keys.tolist(), weights.tolist(), strict=True)),
                "evicted": sorted(evicted.tolist()),
            }
        elif what < 0.5:
            self.table.forget_evicted(self.table.clock - 8)
        elif what < 0.6:
            if self.view is not None:
                self.table.release(self.view)
            self.view = self.table.freeze()
        return seen | {"rows": {name: counters.rows for name, counters in self.table.counters.items()}}

    def looked_up(self, batch: EncodedBatch, lookup: Lookup) -> dict[str, Any]:
        """What each value of a batch finds, now and in the view, and who is to be admitted."""
        place = torch.from_numpy(lookup.index_N)
        seen: dict[str, Any] = {
            "weights": lookup.weight_UW[place].tolist(),
            "accumulators": lookup.accumulator_U[place].tolist(),
            "admitted": lookup.admissions.keys.tolist(),
        }
        if self.view is not None:
            old = self.view.rows_of(self.table.batch_rows(lookup), self.table.layout)
            seen |= {"old": old.source_VW[torch.from_numpy(old.index_N)].tolist(), "known": old.examples_N.tolist()}
        return seen


def lived(seed: int, num_steps: int) -> Life:
    life, rng = Life(), np.random.default_rng(seed)
    for _ in range(num_steps):
        life.step(rng)
    return life


def over(parts: Sequence[dict[str, Tensor]], size: int) -> list[dict[str, Tensor]]:
    """The rows of each rank of a world of another size."""
    return [
        reshard((parts[part] for part in ranks_with(rank, size, of=len(parts))), rank, size) for rank in range(size)
    ]


@dataclass(frozen=True)
class Known:
    """All that a part knows of its keys, one at a time."""

    rows: dict[int, tuple[Any, ...]]
    evicted: dict[int, int]
    old: dict[int, tuple[Any, ...]]
    """By the view: old weights and examples of keys that changed or went since; that they had no row."""


def known(part: dict[str, Tensor]) -> Known:
    """Reads a part slowly."""
    key_of_row = part["rows.ids.key_of_row"].tolist()
    per_row = ("weight", "accumulator", "changed_at", "examples", "seen.field", "seen.clock", "seen.ms")
    values = {name: part[f"rows.{name}"].tolist() for name in per_row}
    rows = {key: tuple(values[name][row] for name in per_row) for row, key in enumerate(key_of_row) if key}
    old: dict[int, tuple[Any, ...]] = {}
    if f"{VIEW}weight" in part:
        view = {name: part[VIEW + name].tolist() for name in ("place_of_row", "examples", "gone_keys", "gone_places")}
        weights = part[f"{VIEW}weight"].tolist()
        for row, key in enumerate(key_of_row):
            place = view["place_of_row"][row] if row < len(view["place_of_row"]) else -2
            if key and place != -1:
                old[key] = (weights[place], view["examples"][place]) if place >= 0 else ("none",)
        for key, place in zip(view["gone_keys"], view["gone_places"], strict=True):
            old[key] = (weights[place], view["examples"][place])
    return Known(rows, dict(part["rows.evicted"].tolist()), old)


def check_owned(parts: Sequence[dict[str, Tensor]], whole: dict[str, Tensor]) -> None:
    """Each key is at its owner and nowhere else, with all that the whole table knows of it; the rest is on all."""
    size, everything = len(parts), known(whole)
    num_reserved = int((whole["rows.ids.key_of_row"] == 0).sum()) - len(whole["rows.ids.free"])
    for rank, part in enumerate(parts):
        expected = {
            name: {key: of for key, of in facts.items() if (key % 2**64 >> 32) % NUM_SHARDS % size == rank}
            for name, facts in vars(everything).items()
        }
        assert vars(known(part)) == expected
        assert part.keys() == whole.keys()
        for name, tensor in part.items():
            assert tensor.dtype == whole[name].dtype, name
        is_own = torch.arange(NUM_SHARDS) % size == rank
        for name in ("rows.admission.counts", "rows.admission.num_counted"):
            assert torch.equal(part[name][is_own], whole[name][is_own]) and not part[name][~is_own].any(), name
        is_own = torch.arange(NUM_SHARDS) % size == rank
        for name in ("rows.admission.counts", "rows.admission.num_counted"):
            assert torch.equal(part[name][is_own], whole[name][is_own]) and not part[name][~is_own].any(), name
        for name in ("rows.clock", "rows.has_exported", "rows.seen.now"):
            assert torch.equal(part[name], whole[name]), name
        for name in ("weight", "accumulator", "seen.field", "seen.clock", "seen.ms"):
            reserved = f"rows.{name}"
            assert torch.equal(part[reserved][:num_reserved], whole[reserved][:num_reserved]), name


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    num_steps=st.integers(0, 40),
    way=st.one_of(st.just([2, 4, 3, 1]), st.lists(st.integers(1, 6), min_size=1, max_size=4).map(lambda s: [*s, 1])),
)
def test_a_table_that_went_over_many_ranks_is_the_same_table(seed: int, num_steps: int, way: list[int]) -> None:
    life = lived(seed, num_steps)
    whole = life.state()
    parts = [whole]
    for size in way:
        parts = over(parts, size)
        check_owned(parts, whole)
    other = Life()
    other.become(parts[0], life.steps)
    ours, theirs = np.random.default_rng(seed + 1), np.random.default_rng(seed + 1)
    for _ in range(25):
        assert other.step(theirs) == life.step(ours)
    check_owned(over([other.state()], 2), life.state())


def test_a_part_does_not_depend_on_the_way() -> None:
    [direct] = over([lived(1, 50).state()], 1)
    [far] = over(over(over([direct], 5), 2), 1)
    assert direct.keys() == far.keys()
    assert all(torch.equal(direct[name], far[name]) for name in direct)


def test_a_life_has_everything_in_it() -> None:
    """Or the tests above show nothing."""
    state = lived(3, 60).state()
    found = known(state)
    assert len(found.rows) > 30 and found.evicted and len(state["rows.ids.free"])
    assert {len(of) for of in found.old.values()} == {1, 2}, "rows that changed, and keys that had none"
    assert len(state[f"{VIEW}gone_keys"]) and state["rows.admission.counts"].any()


def test_a_state_is_split_into_what_is_per_rank_and_what_is_not() -> None:
    names = ["rows.weight", "teacher.copies.previous.rows.weight", "teacher.copies.denied", "dense.rows.x", "adam.rows"]
    own, alike = split_rows({name: torch.zeros(1) for name in names})
    assert list(own) == names[:2] and list(alike) == names[2:]


def test_what_nobody_knows_how_to_deal_is_not_dropped() -> None:
    part = lived(1, 5).state() | {"rows.shoe_size": torch.zeros(3)}
    with pytest.raises(CheckpointMismatchError, match="^rows.shoe_size: cannot be dealt to another number of ranks$"):
        reshard([part], 0, 2)
