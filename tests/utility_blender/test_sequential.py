"""Sequential tests: they keep their error however often they look, put up with the margin, and do trip."""

import math
from statistics import NormalDist

import numpy as np
import pytest

from utility_blender.sequential import FIRST_LOOK, Moments, SequentialTest


def run(tried_N: np.ndarray, control_N: np.ndarray, *, alpha: float = 0.001, margin: float = 0.05) -> int:
    """Returns after how many pairs it tripped; 0: never."""
    test = SequentialTest(alpha=alpha, margin=margin)
    for n, (tried, control) in enumerate(zip(tried_N.tolist(), control_N.tolist(), strict=True), start=1):
        test.tried.add(tried)
        test.control.add(control)
        if test.look():
            return n
    return 0


def test_moments_are_those_of_the_values() -> None:
    values = np.random.default_rng(0).exponential(3.0, 500)
    moments = Moments()
    for value in values.tolist():
        moments.add(value)
    assert moments.mean == pytest.approx(values.mean())
    assert moments.squared_error == pytest.approx(values.var(ddof=1) / 500)


def test_without_a_loss_it_trips_no_more_often_than_alpha_however_often_it_looks() -> None:
    rng = np.random.default_rng(1)
    trips = sum(run(rng.poisson(0.2, 3_200), rng.poisson(0.2, 3_200), alpha=0.05, margin=0.0) > 0 for _ in range(300))
    assert trips / 300 <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 300)


def test_a_loss_beyond_the_margin_trips_and_one_within_it_does_not() -> None:
    rng = np.random.default_rng(2)
    control_N = rng.normal(1.0, 0.5, 20_000)
    assert 0 < run(rng.normal(0.85, 0.5, 20_000), control_N) < 5_000
    assert run(rng.normal(0.97, 0.5, 20_000), control_N) == 0


def test_the_margin_is_a_share_of_the_size_also_where_means_are_negative() -> None:
    rng = np.random.default_rng(3)
    hides_N = -rng.normal(0.2, 0.1, 10_000)
    assert run(-rng.normal(0.205, 0.1, 10_000), hides_N) == 0  # 2.5 % more of what is unwanted
    assert run(-rng.normal(0.25, 0.1, 10_000), hides_N) > 0


def test_it_does_not_look_before_there_is_enough_and_stays_tripped() -> None:
    test = SequentialTest(alpha=0.1, margin=0.0)
    for n in range(FIRST_LOOK - 1):
        test.tried.add(0.0 + n % 2)
        test.control.add(9.0 + n % 2)
        assert not test.look()
    for _ in range(2):
        test.tried.add(1.0)
        test.control.add(9.0)
    assert test.look()
    for _ in range(10_000):
        test.tried.add(99.0)
        test.control.add(0.0)
    assert test.look()


def test_streams_that_never_vary_are_compared_all_the_same() -> None:
    assert run(np.zeros(200), np.ones(200)) == FIRST_LOOK
    assert run(np.ones(200), np.ones(200)) == 0


@pytest.mark.parametrize("sign", [1, -1])
def test_the_error_of_the_limit_grows_with_the_limit(sign: int) -> None:
    test, kept = SequentialTest(alpha=0.5, margin=0.5), 1 - sign * 0.5
    for n in range(FIRST_LOOK):
        test.tried.add(kept * sign * 3.0 - 0.6 + n % 2)
        test.control.add(sign * (1.0 + 4.0 * (n % 2)))
    error = math.sqrt(test.tried.squared_error + kept**2 * test.control.squared_error)
    assert test._p_value() == pytest.approx(NormalDist().cdf(-0.1 / error))
