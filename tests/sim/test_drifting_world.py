"""The drifting world: its truth is what its labels follow, it moves as fast as it says, and a seed is a world."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sim.drifting_world import DriftingRows, DriftingWorld, DriftingWorldConfig

SMALL = DriftingWorldConfig(period_rows=2_000, batch_rows=200)


def logit(p: Any) -> Any:
    return np.log(p / (1 - p))


def drawn(config: DriftingWorldConfig, seed: int, periods: int) -> list[DriftingRows]:
    return list(DriftingWorld(config, seed).periods(periods))


def test_labels_come_as_often_as_the_truth_says() -> None:
    rows = drawn(SMALL, 0, 10)
    probability, label = (
        np.concatenate([getattr(one, name) for one in rows]) for name in ("probability_BT", "label_BT")
    )
    for task in range(2):
        for part in np.array_split(np.argsort(probability[:, task]), 4):
            spread = np.sqrt((probability[part, task] * (1 - probability[part, task])).sum()) / len(part)
            assert abs(label[part, task].mean() - probability[part, task].mean()) < 4 * spread
    assert probability[:, 0].mean() > 3 * probability[:, 1].mean()


def test_a_seed_is_a_world() -> None:
    one, again, other = (drawn(SMALL, seed, 2) for seed in (3, 3, 4))
    for a, b in zip(one, again, strict=True):
        assert np.array_equal(a.item_B, b.item_B) and np.array_equal(a.label_BT, b.label_BT)
        assert np.array_equal(a.probability_BT, b.probability_BT)
    assert not np.array_equal(one[0].label_BT, other[0].label_BT)


@pytest.mark.parametrize(("drift", "jump_period", "kept"), [(0.0, None, 1.0), (0.3, None, 0.954), (0.0, 1, 0.527)])
def test_the_truth_moves_as_fast_as_it_says(drift: float, jump_period: int | None, kept: float) -> None:
    config = replace(SMALL, drift=drift, jump_period=jump_period, num_items=4_000, num_kinds=2_000)
    world = DriftingWorld(config, seed=1)
    items = np.arange(config.num_items)
    segments = np.zeros_like(items)
    rows = world.periods(3)
    for _ in range(10):
        next(rows)
    before = logit(world.probability(segments, items))
    for _ in range(10):
        next(rows)
    after = logit(world.probability(segments, items))
    for task in range(2):
        # The segment's own taste stands still: what is kept is the correlation of what it meets.
        assert np.corrcoef(before[:, task], after[:, task])[0, 1] == pytest.approx(kept, abs=0.03)


def test_lists_hold_each_item_once_and_do_not_change_the_rows() -> None:
    world, other = DriftingWorld(SMALL, 5), DriftingWorld(SMALL, 5)
    lists = world.lists(20, 30)
    assert lists.item_NK.shape == (20, 30)
    assert (np.diff(lists.item_NK, axis=1) > 0).all()
    assert np.array_equal(next(world.periods(1)).label_BT, next(other.periods(1)).label_BT)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("base_rates", ()),
        ("base_rates", (1.0,)),
        ("drift", 1.5),
        ("jump", -1.0),
        ("batch_rows", 0),
        ("period_rows", 30),
    ],
)
def test_settings_that_make_no_sense_are_refused(setting: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{setting}: .* is not allowed; "):
        replace(SMALL, **{setting: value})
