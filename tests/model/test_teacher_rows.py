"""The view of a table as it was, against a deep copy of the table."""

import copy
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from model.embedding import EmbeddingTable
from model.embedding_config import EmbeddingConfig
from model.features import EncodedBatch, FeatureEncoder
from model.field_ids import FieldIdsConfig
from model.lookup import Lookup
from model.optim import OptimConfig
from model.teacher_rows import FrozenRows
from tests.model.worlds import SCHEMA, columns, tiny_config

NUM_ROUNDS = 60


@dataclass(frozen=True)
class Taken:
    """A view, and the copy that it has to equal."""

    view: FrozenRows
    twin: EmbeddingTable


def check(table: EmbeddingTable, taken: Taken, batch: EncodedBatch, lookup: Lookup) -> None:
    """What each value of a batch was: by the view of the live table, and by the copy."""
    old = taken.view.rows_of(table.batch_rows(lookup), table.layout)
    rows_N = table.layout.rows(batch, table.layout.flat_keys(batch), taken.twin.ids)
    assert torch.equal(old.source_VW[torch.from_numpy(old.index_N)], taken.twin.weight[torch.from_numpy(rows_N)])
    has_row_N = rows_N >= table.layout.num_reserved
    examples = taken.twin.state()["examples"].numpy()
    assert np.array_equal(old.examples_N, np.where(has_row_N, examples[rows_N], -1))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "config",
    [
        EmbeddingConfig(width=4),
        EmbeddingConfig(width=4, new_rows="random", max_rows=40, evictions_per_step=7),
        EmbeddingConfig(
            width=4, fields={"item_id": FieldIdsConfig(ttl_ms=2_000), "user_id": FieldIdsConfig(max_rows=5)}
        ),
    ],
    ids=["asked", "full", "expired"],
)
def test_a_view_is_the_table_as_it_was(config: EmbeddingConfig, seed: int) -> None:
    """Random touches, admissions, evictions of every cause, views taken, given up and restored in between."""
    rng = np.random.default_rng(seed)
    model = tiny_config(embedding=config)
    encoder = FeatureEncoder(SCHEMA, model.encoding)
    table = EmbeddingTable(model.input_layout(encoder.fields), config, seed)
    views: list[Taken] = []
    returned = 0
    for round_ in range(NUM_ROUNDS):
        batch = encoder.encode_columns(columns(rng, 4, 12, num_ids=25))
        lookup = table.lookup(batch, rng.random(12) < 0.8)
        for taken in views:
            check(table, taken, batch, lookup)
        if rng.random() < 0.9:
            grad_UW = torch.from_numpy(rng.normal(size=(len(lookup.rows_U), 4)).astype(np.float32))
            table.apply(lookup, grad_UW, OptimConfig(), watermark_ms=1_000 * (round_ + 1))
        if rng.random() < 0.2:
            keys, _ = table.ids.items()
            returned += len(keys)
            table.evict(rng.choice(keys, min(len(keys), 6), replace=False))
        if rng.random() < 0.15:
            if len(views) == 3:
                table.release(views.pop(0).view)
            twin = copy.deepcopy(table)
            views.append(Taken(table.freeze(), twin))
        if views and rng.random() < 0.1:
            table.release(views[0].view)
            view = FrozenRows.restored(views[0].view.state(), torch.device("cpu"))
            table.refreeze(view)
            views[0] = Taken(view, views[0].twin)
    assert views and returned and any(taken.view.num_kept for taken in views)
    evictions = sum((counters.evictions for counters in table.counters.values()), start=Counter[str]())
    assert evictions["asked"] and (config.max_rows is None or evictions["full"])
    assert not config.fields or (evictions["expired"] and evictions["full"])


def test_a_view_keeps_only_what_was_touched() -> None:
    rng = np.random.default_rng(0)
    model = tiny_config()
    encoder = FeatureEncoder(SCHEMA, model.encoding)
    table = EmbeddingTable(model.input_layout(encoder.fields), model.embedding, 0)

    def step(num_ids: int) -> Lookup:
        batch = encoder.encode_columns(columns(rng, 6, 30, num_ids=num_ids))
        lookup = table.lookup(batch, np.ones(30, np.bool_))
        table.apply(lookup, torch.ones(len(lookup.rows_U), 4), OptimConfig())
        return lookup

    for _ in range(20):
        step(30)
    view = table.freeze()
    assert view.num_kept == 0
    lookup = step(3)
    old = np.setdiff1d(lookup.rows_U[lookup.rows_U >= table.layout.num_reserved], lookup.rows_U[lookup.new_U])
    assert view.num_kept == len(old) < len(table.ids)
    table.release(view)
    step(30)
    assert view.num_kept == len(old)
