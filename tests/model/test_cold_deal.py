"""Rows that left memory on some number of ranks go on, on another, as if that had always been their number."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from freshrank.cold_store import ColdStore
from model.config import ModelConfig
from model.embedding import EmbeddingTable
from model.ranks import Ranks
from model.sharding import owner_of
from model.source import MemoryExampleSource
from model.trainer import Trainer
from tests.model.cold_child import TIERED, WHOLE
from tests.model.example_log import Clock, new_trainer, partition_log
from tests.model.memory_bytes import MemoryStores
from tests.model.test_cold_tier import rows_of
from tests.model.test_resume import after_rounds, never
from tests.model.thread_ranks import on_ranks
from tests.model.train_child import CONFIG

LOG = {p: partition_log(seed=p, num_messages=num, first=p) for p, num in enumerate([7, 5, 6, 9])}

pytestmark = pytest.mark.usefixtures("one_thread")


def tables(
    size: int,
    folder: Path | None,
    *,
    rounds: int | None = None,
    model: ModelConfig = TIERED,
    stores: Callable[[Ranks], MemoryStores | ColdStore] = lambda _: MemoryStores(),
) -> list[EmbeddingTable]:
    """Returns the tables of a world that resumed and ran on, so many rounds of its loop or to the end of the log."""

    def run(ranks: Ranks) -> Trainer:
        trainer = new_trainer(
            source=MemoryExampleSource({p: log for p, log in LOG.items() if p % ranks.size == ranks.rank}),
            checkpoint_dir=folder,
            config=replace(CONFIG, checkpoint_interval_ms=1_000_000),
            model=model,
            clock=Clock(step_ms=1),
            ranks=ranks,
            cold_stores=stores(ranks),
        )
        if rounds == 0:
            assert trainer.resume()
        else:
            trainer.run(never if rounds is None else after_rounds(rounds))
        return trainer

    found = on_ranks(size, run)
    for one in found:
        if isinstance(one, Exception):
            raise one
    return [one.learner.trained.table for one in found if isinstance(one, Trainer)]


def check_shared_out(of_ranks: list[EmbeddingTable]) -> dict[int, tuple[object, ...]]:
    """Returns the rows of all ranks; each has its own, and what left memory is older than what did not."""
    everything: dict[int, tuple[object, ...]] = {}
    for rank, table in enumerate(of_ranks):
        assert table.cold is not None
        rows = rows_of(table)
        keys, _ = table.ids.items()
        hot = {key: (rows[key][4], key) for key in keys.tolist()}
        cold = {key: (row[4], key) for key, row in rows.items() if key not in hot}
        assert max(cold.values(), default=(0, 0)) < min(hot.values()) and len(cold) == len(table.cold)
        assert (owner_of(torch.tensor(list(rows)).numpy(), len(of_ranks)) == rank).all()
        everything |= rows
    total = {name: one.rows for name, one in of_ranks[0].counters.items()}
    assert sum(total.values()) == len(everything)
    return everything


def test_any_number_of_ranks_goes_on_from_any_other(tmp_path: Path) -> None:
    whole = rows_of(*tables(1, None, model=WHOLE))
    saved = check_shared_out(tables(2, tmp_path, rounds=14))
    for size in (3, 1):
        assert check_shared_out(tables(size, tmp_path, rounds=0)) == saved
        saved = check_shared_out(tables(size, tmp_path, rounds=14))
    found = check_shared_out(tables(2, tmp_path))
    assert found.keys() == whole.keys() and sum(1 for _ in found) > 30
    for key, (weight, accumulator, *others) in found.items():
        assert weight == pytest.approx(whole[key][0], abs=1e-4)
        assert accumulator == pytest.approx(whole[key][1], rel=1e-3) and others == list(whole[key][2:])


def test_local_stores_are_dealt_as_those_in_memory(tmp_path: Path) -> None:
    opened: list[ColdStore] = []

    def stores(ranks: Ranks) -> ColdStore:
        opened.append(ColdStore(tmp_path, ranks.rank, ranks.size, 16))
        return opened[-1]

    saved = check_shared_out(tables(2, tmp_path, rounds=14, stores=stores))
    assert check_shared_out(tables(3, tmp_path, rounds=0, stores=stores)) == saved
    for one in opened:
        one.close()
