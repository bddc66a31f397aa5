"""Rounding by chance: right on average, one of the two neighbours each time, and the same draw for the same key."""

import numpy as np
import pytest
import torch

from model.hashing import _mixed as mixed_by_numpy
from model.rounding import _mixed, rounded_by_chance

NUM_KEYS = 20_000


def keys(count: int = NUM_KEYS, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(-(2**63), 2**63 - 1, count))


@pytest.mark.parametrize("share", [0.01, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("base", [1.0, -1.0, 3.0e-5])
def test_a_weight_is_right_on_average(base: float, share: float) -> None:
    low = torch.tensor(base, dtype=torch.bfloat16)
    high = (low.view(torch.int16) + 1).view(torch.bfloat16)
    between = (low.float() + share * (high.float() - low.float())).item()
    rounded = rounded_by_chance(torch.full((NUM_KEYS, 5), between), keys(), "a")
    assert set(rounded.flatten().tolist()) == {low.item(), high.item()}
    error = (rounded == high).double().mean(dim=0) - share  # of each column: all 16 bits of every draw count
    assert error.abs().max() < 5 * (share * (1 - share) / NUM_KEYS) ** 0.5


def test_what_bfloat16_holds_stays_and_so_does_what_is_not_finite() -> None:
    exact = torch.randn(NUM_KEYS, 3).bfloat16()
    assert torch.equal(rounded_by_chance(exact.float(), keys(), "a"), exact)
    odd = torch.tensor([[np.nan, np.inf, -np.inf, 0.0]])
    assert rounded_by_chance(odd, keys(1), "a").tolist()[0][1:] == [np.inf, -np.inf, 0.0]
    assert rounded_by_chance(odd, keys(1), "a")[0, 0].isnan()
    every_nan = torch.tensor([[0x7FFFFFFF, 0x7FC00000, -1]], dtype=torch.int32).view(torch.float32)
    assert rounded_by_chance(every_nan, keys(1), "a").isnan().all()


def test_the_draw_is_of_the_key_and_not_of_the_place() -> None:
    weight, key = torch.randn(500, 16), keys(500)
    rounded, order = rounded_by_chance(weight, key, "7/1"), torch.randperm(500)
    assert torch.equal(rounded_by_chance(weight[order], key[order], "7/1"), rounded[order])
    assert torch.equal(rounded_by_chance(weight[:, :5], key, "7/1"), rounded[:, :5])
    for other in (rounded_by_chance(weight, key, "7/2"), rounded_by_chance(weight, keys(500, seed=1), "7/1")):
        assert 0.1 < (other != rounded).float().mean() < 0.9


def test_numbers_are_mixed_as_the_hash_mixes_them() -> None:
    numbers = keys(1_000)
    with np.errstate(over="ignore"):
        assert np.array_equal(_mixed(numbers).numpy(), mixed_by_numpy(numbers.numpy().view(np.uint64)).view(np.int64))
