import math

import numpy as np
import pytest

from tests.utility_blender.planted import EXPLORE, make_world
from utility_blender.kernel import bandwidth, distance, kernel_means, kernel_weights
from utility_blender.redraw import redraw

WORLD = make_world()


def test_kernel_weights_against_plain_loops() -> None:
    outcomes = WORLD.explored(3, WORLD.static, EXPLORE, seed=5)
    draws_NMT = redraw(outcomes, 400, np.random.default_rng(0))
    target_NT = outcomes.center_NT * [1.2, 0.8, 1.0, 1.1]
    omega_N = kernel_weights(target_NT, outcomes.weights_NT, kernel_means(target_NT, draws_NMT, 0.02), 0.02)

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        cosine = sum(map(float, a * b)) / math.sqrt(sum(map(float, a * a)) * sum(map(float, b * b)))
        return math.exp(-(1 - cosine) / 0.02)

    for row in range(3):
        mean = sum(kernel(draws_NMT[row, m], target_NT[row]) for m in range(400)) / 400
        assert omega_N[row] == pytest.approx(kernel(outcomes.weights_NT[row], target_NT[row]) / mean)


def test_only_directions_count() -> None:
    a_NT, b_NT = np.array([[1.0, 2.0]]), np.array([[2.0, 1.0]])
    np.testing.assert_allclose(distance(a_NT, b_NT), distance(5 * a_NT, 0.1 * b_NT), rtol=1e-12)


def test_fewer_than_400_draws_are_refused() -> None:
    outcomes = WORLD.explored(2, WORLD.static, EXPLORE, seed=6)
    draws_NMT = redraw(outcomes, 399, np.random.default_rng(0))
    with pytest.raises(ValueError, match="^kernel_draws: 399 is not allowed; at least 400$"):
        kernel_means(outcomes.center_NT, draws_NMT, 0.02)


@pytest.mark.parametrize(("explored", "expected"), [(0.06, 0.05), (0.05, 0.05), (0.023, 0.02), (0.003, 0.003)])
def test_the_bandwidth_is_the_widest_that_the_exploration_reaches(explored: float, expected: float) -> None:
    assert bandwidth(np.array([explored - 0.001, explored + 0.001])) == pytest.approx(expected)


def test_no_support_at_all_weighs_nothing() -> None:
    nothing_N = np.zeros(1)
    assert kernel_weights(np.array([[1.0, 0.0]]), np.array([[-1.0, 0.0]]), nothing_N, 1e-3).tolist() == [0.0]
