"""Item by item credit says the same as credit for whole requests, with less noise."""

import numpy as np

from freshrank.study_blender_world import World
from tests.utility_blender.planted import make_world
from utility_blender.centring import tilts
from utility_blender.contexts import Floats
from utility_blender.credit import item_credit, request_credit
from utility_blender.explore import ExploreConfig
from utility_blender.outcomes import Outcomes, slates, utilities
from utility_blender.redraw import redraw
from utility_blender.reward import item_rewards, request_rewards

WORLD: World = make_world()


def explored(num: int) -> Outcomes:
    return WORLD.explored(num, WORLD.static, ExploreConfig(tau=0.3), seed=21)


def test_each_item_has_the_mean_tilt_of_the_draws_that_show_it() -> None:
    """Against plain loops."""
    outcomes, num_draws = explored(6), 9
    reward_NC = item_rewards(outcomes, WORLD.reward)
    credit = item_credit(outcomes, reward_NC, np.random.default_rng(1), num_draws)
    fresh_NMT = redraw(outcomes, num_draws, np.random.default_rng(1))
    for row in range(6):
        weights = [outcomes.weights_NT[row], *fresh_NMT[row]]
        unit = [weights_T / np.sqrt((weights_T**2).sum()) for weights_T in weights]
        tilt = [one - sum(unit) / 10 for one in unit]
        shows = [
            slates(utilities(one := outcomes.take(np.array([row])), weights_T[None]), one.size_N)[0]
            for weights_T in weights
        ]
        pull_T, of_base_T = np.zeros(4), np.zeros(4)
        for item in np.flatnonzero(outcomes.shown_NC[row]):
            mean_T = np.mean([tilt_T for tilt_T, shown_C in zip(tilt, shows, strict=True) if shown_C[item]], axis=0)
            pull_T += reward_NC[row, item] * mean_T
            of_base_T += mean_T / 8
        np.testing.assert_allclose(credit.pull_NT[row], pull_T, atol=1e-12)
        np.testing.assert_allclose(credit.of_base_NT[row], of_base_T, atol=1e-12)
        spread_TT = sum(np.outer(tilt_T, tilt_T) for tilt_T in tilt) / 10
        np.testing.assert_allclose(credit.spread_NTT[row], spread_TT, atol=1e-12)
        np.testing.assert_allclose(
            credit.pulls(np.full(6, 2.0))[row], pull_T - 2 * of_base_T, atol=1e-12
        )  # a base is spread over the slate


def test_both_credits_agree_in_expectation_and_that_of_items_is_less_noisy() -> None:
    outcomes, rng = explored(8_000), np.random.default_rng(2)
    mean = float(request_rewards(outcomes, WORLD.reward).mean())
    base_N = np.full(outcomes.num_requests, mean)
    plain_NT = request_credit(tilts(outcomes, rng), request_rewards(outcomes, WORLD.reward)).pulls(base_N)
    few, many = (
        item_credit(outcomes, item_rewards(outcomes, WORLD.reward), rng, num_draws).pulls(base_N)
        for num_draws in (8, 60)
    )
    assert _apart(plain_NT, many) < 3.5
    assert _apart(few * 9 / 8, many * 61 / 60) < 3.5  # own mean: the usual n / (n - 1)
    assert many.var(axis=0).sum() < plain_NT.var(axis=0).sum() / 8
    shifted_NT = many + 0.3 * many.std(axis=0)
    assert _apart(plain_NT, shifted_NT) > 3.5  # the test can fail


def test_a_base_changes_no_expectation() -> None:
    outcomes = explored(8_000)
    credit = item_credit(outcomes, item_rewards(outcomes, WORLD.reward), np.random.default_rng(3), 30)
    assert _apart(credit.of_base_NT, np.zeros_like(credit.of_base_NT)) < 3.5


def _apart(a_NT: Floats, b_NT: Floats) -> float:
    """Returns the largest difference of the means in standard errors of the difference."""
    apart_NT = a_NT - b_NT
    error_T = apart_NT.std(axis=0) / np.sqrt(len(apart_NT))
    return float(np.max(np.abs(apart_NT.mean(axis=0)) / error_T))
