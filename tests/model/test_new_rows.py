"""Random starts of new rows, and the switch that chooses them."""

import numpy as np
import pytest
import torch

from model.new_rows import drawn_rows
from model.optim import OptimConfig
from tests.model.test_eviction import encoded, new_table, plain, shown

KEYS = np.arange(1, 40_001) * 7_919


def test_draws_are_normal_and_independent() -> None:
    rows_KW = drawn_rows(KEYS, 3, 0.05, seed=1).astype(np.float64)
    assert rows_KW.shape == (40_000, 3) and rows_KW.dtype == np.float64
    assert np.abs(rows_KW.mean(axis=0)).max() < 4 * 0.05 / 200
    assert rows_KW.std(axis=0) == pytest.approx([0.05] * 3, rel=0.02)
    assert (np.abs(rows_KW) > 0.1).mean() == pytest.approx(0.0455, abs=0.004)
    assert np.abs(np.corrcoef(rows_KW.T) - np.eye(3)).max() < 0.02


def test_a_key_draws_the_same_row_in_any_company() -> None:
    all_KW = drawn_rows(KEYS[:100], 4, 1.0, seed=1)
    assert np.array_equal(drawn_rows(KEYS[40:50][::-1], 4, 1.0, seed=1), all_KW[40:50][::-1])
    assert not np.isin(drawn_rows(KEYS[:100], 4, 1.0, seed=2), all_KW).any()
    assert drawn_rows(KEYS[:0], 4, 1.0, seed=1).shape == (0, 4)


@pytest.mark.parametrize("new_rows", ["default", "random"])
def test_new_rows_start_as_configured(new_rows: str) -> None:
    table = new_table(plain(), new_rows=new_rows)
    lookup = table.lookup(encoded(shown("ab")), np.ones(2, bool))
    table.apply(lookup, torch.zeros_like(lookup.weight_UW), OptimConfig())
    keys, rows = table.ids.items()
    assert len(keys) == 3
    fields = np.array([0 if key == lookup.admissions.keys[lookup.admissions.fields == 0] else 1 for key in keys])
    default_NW = table.weight[torch.from_numpy(2 * fields)]
    expected = default_NW.numpy() if new_rows == "default" else drawn_rows(keys, 2, 0.05, seed=3)
    assert np.array_equal(table.weight[torch.from_numpy(rows)].numpy(), expected)
