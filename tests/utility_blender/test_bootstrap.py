import numpy as np
import pytest

from utility_blender.bootstrap import Bootstrap, user_sums


def mean(sums: np.ndarray) -> np.ndarray:
    """Returns the mean per request of sums over (1, value)."""
    ratio: np.ndarray = sums[..., 1] / sums[..., 0]
    return ratio


def test_user_sums_add_up_each_users_requests() -> None:
    sums_UK = user_sums(np.array([[1.0, 2.0], [1.0, 3.0], [1.0, 10.0]]), ["b", "a", "b"])
    assert sums_UK.tolist() == [[1.0, 3.0], [2.0, 12.0]]


def test_bounds_of_independent_values_are_those_of_the_normal_distribution() -> None:
    values_N = np.random.default_rng(0).standard_normal(4_000)
    columns_NK = np.stack([np.ones(4_000), values_N], axis=1)
    sums_UK = user_sums(columns_NK, [str(n) for n in range(4_000)])
    interval = Bootstrap(sums_UK, 2_000, np.random.default_rng(1)).interval(mean)
    assert interval.value == pytest.approx(values_N.mean())
    assert interval.se == pytest.approx(1 / np.sqrt(4_000), rel=0.08)
    assert interval.low == pytest.approx(interval.value - 1.645 * interval.se, abs=0.15 * interval.se)
    assert interval.high == pytest.approx(interval.value + 1.645 * interval.se, abs=0.15 * interval.se)


def test_resampling_in_parts_gives_every_resample_as_many_users() -> None:
    sums_UK = np.ones((70_000, 1))  # more than fit into one part
    interval = Bootstrap(sums_UK, 200, np.random.default_rng(0)).interval(lambda sums: sums[..., 0])
    assert (interval.low, interval.value, interval.high, interval.se) == (70_000, 70_000, 70_000, 0)


def test_intervals_hold_the_truth_as_often_as_they_say_only_if_users_are_resampled() -> None:
    """Five correlated requests per user: 400 worlds, the share of 95 % intervals that hold the mean, 0."""
    rng = np.random.default_rng(2)
    held = {"users": 0, "rows": 0}
    users = [str(user) for user in np.repeat(np.arange(120), 5)]
    rows = [str(row) for row in range(600)]
    for _ in range(400):
        value_N = np.repeat(rng.standard_normal(120), 5) + rng.standard_normal(600)
        columns_NK = np.stack([np.ones(600), value_N], axis=1)
        for name, by in (("users", users), ("rows", rows)):
            interval = Bootstrap(user_sums(columns_NK, by), 400, rng).interval(mean, level=0.975)
            held[name] += interval.low <= 0 <= interval.high
    assert 0.92 <= held["users"] / 400 <= 0.98
    assert held["rows"] / 400 < 0.85
