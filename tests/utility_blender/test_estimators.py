import math

import numpy as np
import pytest

from tests.utility_blender.planted import EXPLORE, make_world
from utility_blender.estimators import density_ratios, doubly_robust, effective_share, ips, reward_at_hit, snips
from utility_blender.explore import log_density
from utility_blender.redraw import log_densities, redraw
from utility_blender.reward import request_rewards

WORLD = make_world()
OUTCOMES = WORLD.explored(400, WORLD.static, EXPLORE, seed=1)


def test_the_logging_law_itself_is_worth_the_mean_reward_exactly() -> None:
    reward_N = request_rewards(OUTCOMES, WORLD.reward)
    omega_N = density_ratios(OUTCOMES, OUTCOMES.center_NT, OUTCOMES.tau_N, OUTCOMES.truncate_N)
    assert np.abs(omega_N - 1).max() < 1e-9
    value = ips(np.array((omega_N * reward_N).sum()), np.array(len(reward_N)))
    assert value == pytest.approx(reward_N.mean(), abs=1e-9)


def test_a_narrower_law_than_the_logged_one_is_valued_by_density_ratios() -> None:
    world, num = WORLD, 20_000
    logged = world.explored(num, world.static, EXPLORE, seed=2)
    omega_N = density_ratios(logged, logged.center_NT, logged.tau_N / 2, logged.truncate_N)
    se = omega_N.std() / math.sqrt(num)
    assert abs(omega_N.mean() - 1) < 3 * se
    assert effective_share(omega_N) < 0.5


def test_densities_of_columns_are_those_of_single_draws() -> None:
    log_N = log_densities(OUTCOMES.weights_NT, OUTCOMES.center_NT, OUTCOMES.tau_N, OUTCOMES.truncate_N)
    np.testing.assert_allclose(log_N, OUTCOMES.log_density_N, atol=1e-9)
    far_NT = OUTCOMES.center_NT * np.exp(0.3 * 2.5)
    assert log_densities(far_NT, OUTCOMES.center_NT, OUTCOMES.tau_N, OUTCOMES.truncate_N).tolist() == [-np.inf] * 400
    turned_NT = -OUTCOMES.weights_NT
    assert log_density(turned_NT[0], OUTCOMES.center_NT[0], EXPLORE) == -np.inf
    assert np.isneginf(log_densities(turned_NT, OUTCOMES.center_NT, OUTCOMES.tau_N, OUTCOMES.truncate_N)).all()


def test_a_weight_that_was_not_drawn_stays_and_has_no_density() -> None:
    kept = OUTCOMES.take([0])
    kept.weights_NT[:, 1] = kept.center_NT[:, 1]
    others = [0, 2, 3]
    expected = log_density(kept.weights_NT[0, others], kept.center_NT[0, others], EXPLORE)
    log_N = log_densities(kept.weights_NT, kept.center_NT, kept.tau_N, kept.truncate_N)
    assert log_N[0] == pytest.approx(expected)
    drawn_NMT = redraw(kept, 50, np.random.default_rng(0))
    assert (drawn_NMT[:, :, 1] == kept.center_NT[:, None, 1]).all()
    assert (drawn_NMT[:, :, 0] != kept.center_NT[:, None, 0]).all()


def test_fresh_draws_follow_the_law() -> None:
    few = OUTCOMES.take([0, 1])
    few.tau_N[1] = 0.1
    jitter_NMT = np.log(redraw(few, 20_000, np.random.default_rng(0)) / few.center_NT[:, None, :])
    assert np.abs(jitter_NMT).max(axis=(1, 2)) == pytest.approx([0.6, 0.2], abs=1e-3)
    assert jitter_NMT.std(axis=(1, 2)) == pytest.approx([0.8796 * 0.3, 0.8796 * 0.1], rel=0.02)  # sd within +-2


def test_draws_of_a_grid_cannot_be_drawn_again() -> None:
    grid = OUTCOMES.take([0, 1])
    grid.tau_N[1] = np.nan
    with pytest.raises(ValueError, match="^outcomes: some were not drawn by the lognormal law"):
        redraw(grid, 10, np.random.default_rng(0))


def test_estimates_by_hand() -> None:
    omega_N, reward_N, q_N = np.array([2.0, 0.0, 1.0]), np.array([1.0, 5.0, 3.0]), np.array([1.0, 1.0, 2.0])
    total, num = np.array((omega_N * reward_N).sum()), np.array(3.0)
    assert ips(total, num) == pytest.approx(5 / 3)
    assert snips(total, np.array(omega_N.sum())) == pytest.approx(5 / 3)
    assert effective_share(omega_N) == pytest.approx(9 / 15)
    assert effective_share(np.zeros(3)) == 0.0
    residual = np.array((omega_N * (reward_N - q_N)).sum())
    assert doubly_robust(np.array(6.0), num, residual, np.array(3.0)) == pytest.approx(2 + 1 / 3)


def test_reward_at_hit_is_the_mean_over_the_requests_that_drew_the_chosen_arm() -> None:
    arms_AT = np.array([[1.0, 1, 1, 1], [2.0, 1, 1, 1]])
    drawn_N = np.array([0, 1, 1, 0])
    grid = OUTCOMES.take([0, 1, 2, 3])
    grid.weights_NT[:] = arms_AT[drawn_N]
    chosen_NT = arms_AT[[0, 1, 0, 0]]
    assert reward_at_hit(grid, chosen_NT, np.array([1.0, 2.0, 10.0, 6.0])) == (3.0, 0.75)
    value, share = reward_at_hit(grid, 3 * chosen_NT, np.ones(4))
    assert math.isnan(value)
    assert share == 0.0
