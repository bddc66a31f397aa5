"""Rows that left the memory of several ranks come to the row store as those of one."""

from types import SimpleNamespace
from typing import cast

import msgspec
import numpy as np
import pytest
import torch

from model.gathered_rows import GatheredModel, Outcome, follow
from model.ranks import Ranks
from model.row_publish import RowPublisher, RowStats
from model.row_store import MemoryRowStore, fetch_rows
from model.trained_model import TrainedModel
from tests.model.cold_world import ColdWorld
from tests.model.thread_ranks import on_ranks

NUM_RANKS = 3


class RankWorld(ColdWorld):
    """The rows that one rank owns."""

    def __init__(self, rank: int) -> None:
        super().__init__(seed=rank)
        self.table = SimpleNamespace(weight=torch.empty(1, self.width))
        self.learn(*range(rank * 100 + 1, rank * 100 + 2 + 7 * rank))  # 1, 8 and 15 rows
        if rank:
            self.cool(*self.rows)


@pytest.mark.parametrize("is_cut_short", [False, True])
def test_the_lead_writes_the_rows_of_all_ranks(is_cut_short: bool) -> None:
    worlds = [RankWorld(rank) for rank in range(NUM_RANKS)]
    store = MemoryRowStore()

    def run(ranks: Ranks) -> None:
        world = worlds[ranks.rank]
        model = cast(TrainedModel, world)
        if not ranks.is_lead:
            for _ in range(2):
                follow(ranks, model)
            return
        gathered = GatheredModel(model, ranks)
        rows = RowPublisher(store, gathered, width=world.width, stats=RowStats())
        if is_cut_short:
            next(gathered.cold_rows())  # and then nothing: the store has failed, say
        gathered.serving_full()
        rows.write(epoch=1, version=1, is_full=True)
        gathered.mark_promoted()
        ranks.broadcast(msgspec.msgpack.encode(Outcome(is_live=True)))
        assert not len(gathered.cooled()[0]), "all of it is told"
        worlds[0].cool(1)
        worlds[2].evict(201)
        at = rows.write(epoch=1, version=2, is_full=False)
        ranks.broadcast(msgspec.msgpack.encode(Outcome(is_live=True)))
        keys = np.array(sorted(key for world in worlds for key in [*world.rows, 201]))
        keys = np.unique(keys)
        found = fetch_rows(store, at, keys, world.width)
        expected = {key: weights for world in worlds for key, weights in world.rows.items()}
        assert keys[~found.has_row_N].tolist() == [201]
        for key, weights in zip(keys.tolist(), found.weights_NW, strict=True):
            assert key == 201 or weights.tolist() == expected[key].tolist()

    assert on_ranks(NUM_RANKS, run) == [None] * NUM_RANKS
