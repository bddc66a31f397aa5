"""The world of conflicting tasks: its labels follow its probabilities, its tastes its correlations."""

import numpy as np
import pytest

from sim.conflict_world import ConflictRows, ConflictWorld, ConflictWorldConfig


def drawn(config: ConflictWorldConfig, num_rows: int, seed: int = 0) -> ConflictRows:
    batches = list(ConflictWorld(config, seed).rows(num_rows))
    return ConflictRows(*(np.concatenate(columns) for columns in zip(*batches, strict=True)))


def test_the_same_seed_gives_the_same_rows_and_another_one_others() -> None:
    first, again, other = (drawn(ConflictWorldConfig(), 100, seed) for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first.probability_BT, other.probability_BT)


def test_labels_come_as_often_as_their_probability_says() -> None:
    rows = drawn(ConflictWorldConfig(), 60_000)
    for task in range(2):
        order = np.argsort(rows.probability_BT[:, task])
        for part in np.array_split(order, 10):
            expected, seen = rows.probability_BT[part, task].mean(), rows.label_BT[part, task].mean()
            assert abs(seen - expected) < 4 * np.sqrt(expected * (1 - expected) / len(part))
    shares = np.bincount(rows.scenario_B) / len(rows.scenario_B)
    assert np.abs(shares - ConflictWorldConfig().scenario_shares).max() < 0.02


@pytest.mark.parametrize("correlation", [-0.9, 0.0, 0.9])
def test_tasks_agree_as_far_as_they_are_told_to(correlation: float) -> None:
    config = ConflictWorldConfig(
        task_correlation=correlation, scenario_correlation=1.0, taste_width=400, num_users=50, num_items=50
    )
    taste_TZ = ConflictWorld(config, seed=3)._user_taste_MTF[0]
    assert np.corrcoef(taste_TZ)[0, 1] == pytest.approx(correlation, abs=0.15)


@pytest.mark.parametrize("correlation", [0.0, 0.5, 1.0])
def test_scenarios_agree_as_far_as_they_are_told_to(correlation: float) -> None:
    config = ConflictWorldConfig(scenario_correlation=correlation, taste_width=400, num_users=50, num_items=50)
    taste_MZ = ConflictWorld(config, seed=3)._user_taste_MTF[:, 0]
    assert np.corrcoef(taste_MZ)[0, 1] == pytest.approx(correlation, abs=0.15)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scenario_shares": (0.5, 0.4)}, "scenario_shares: .* shares above 0 that sum to 1"),
        ({"base_rates": (0.0,)}, "base_rates: .* between 0 and 1"),
        ({"task_correlation": -1.1}, "task_correlation: -1.1 is not allowed; -1 to 1"),
        ({"scenario_correlation": -0.1}, "scenario_correlation: -0.1 is not allowed; 0 to 1"),
    ],
)
def test_bad_settings_are_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ConflictWorldConfig(**changes)
