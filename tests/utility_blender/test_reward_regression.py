"""The default form against the world whose best weights are known, and against rewards that know nothing of weights."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from freshrank.study_blender_world import MOOD, NUMERIC, Judge, World, contexts_of, judge_of, world_of
from sim.scored_world import ScoredWorld, ScoredWorldConfig
from utility_blender.centring import angles
from utility_blender.explore import ExploreConfig
from utility_blender.fit import Fitted, fit
from utility_blender.learn_config import LearnConfig, MethodName
from utility_blender.learned import LearnedPolicy, policy_from_dict, policy_to_dict
from utility_blender.outcomes import Outcomes
from utility_blender.policy import Policy
from utility_blender.reward_regression import static_mean

CONTEXT = (*NUMERIC, MOOD)
EXPLORE = ExploreConfig(tau=0.3)


@cache
def world() -> World:
    return world_of(ScoredWorld(ScoredWorldConfig(), seed=2))


@cache
def judge() -> Judge:
    return judge_of(world(), 4_000, seed=999)


@cache
def log(num: int) -> Outcomes:
    return world().explored(num, world().static, EXPLORE, seed=7)


def learn(
    outcomes: Outcomes, *penalties: float, center: Policy | None = None, hide: float = -2.0, **settings: object
) -> Fitted:
    config = LearnConfig(method="reward_regression", context=CONTEXT, penalties=penalties or LearnConfig().penalties)
    reward = replace(world().reward, values={**world().reward.values, "hide": hide})
    config = replace(config, **settings)  # type: ignore[arg-type]  # fields of the config
    return fit(outcomes, center or world().static, world().static, config, reward, numeric=NUMERIC, seed=1)


def median_angle(policy: Policy, center: Policy | None = None) -> float:
    contexts = contexts_of(judge().requests)
    return float(np.median(angles(policy.weights(contexts), (center or world().static).weights(contexts))))


def test_one_round_gets_a_good_part_of_the_oracles_lift() -> None:
    """Acceptance test 3, its first round: 50k requests, of which 30 % are the gate's."""
    fitted = learn(log(35_000), 0.014, 0.01, 0.007, 0.005, 0.0035, 0.0025)
    share = judge().oracle_share(fitted.policy)
    assert share >= 0.45
    chosen = next(row for row in fitted.report["steps"] if row["penalty"] == fitted.report["penalty"])
    assert chosen["admitted"] and chosen["angle"] <= 1.05 * fitted.report["angle_explored"]
    steps = fitted.report["steps"]
    assert [row["angle"] for row in steps] == sorted(row["angle"] for row in steps)
    mean = static_mean(fitted.policy, log(35_000), world().static)
    assert 0 < judge().oracle_share(mean) < judge().oracle_share(fitted.policy)


def test_a_second_round_starts_at_the_first_and_keeps_its_step() -> None:
    first = learn(log(8_000), 0.02).policy
    around = world().explored(6_000, first, EXPLORE, seed=8, version=1)
    still = learn(around, 1e9, center=first).policy
    assert isinstance(still, LearnedPolicy) and len(still.links) == 2
    assert median_angle(still, first) < 1e-5
    second = learn(around, 0.02, center=first).policy
    assert 0.5 < median_angle(second, first) < 13
    contexts = contexts_of(judge().requests)
    again = policy_from_dict(policy_to_dict(second))
    assert again.weights(contexts).tolist() == second.weights(contexts).tolist()


def test_a_chain_that_grows_too_long_becomes_one_network_that_says_the_same() -> None:
    first = learn(log(8_000), 0.02).policy
    around = world().explored(2_000, first, EXPLORE, seed=9, version=1)
    long, short = (learn(around, 0.05, center=first, max_links=most) for most in (2, 1))
    assert isinstance(long.policy, LearnedPolicy) and len(long.policy.links) == 2
    assert isinstance(short.policy, LearnedPolicy) and len(short.policy.links) == 1
    assert median_angle(short.policy, long.policy) < 1.2


def test_an_infinite_penalty_serves_the_centre() -> None:
    """Acceptance test 1."""
    fitted = learn(log(2_000), 1e9)
    contexts = contexts_of(judge().requests)
    static_NT = world().static.weights(contexts)
    assert np.abs(fitted.policy.weights(contexts) / static_NT - 1).max() < 1e-6


def test_rewards_that_know_nothing_of_weights_teach_next_to_nothing() -> None:
    """Acceptance test 4, with 2 penalty far above the variance of the tilt (0.01)."""
    outcomes = log(35_000)
    permuted_NCA = outcomes.value_NCA[np.random.default_rng(3).permutation(outcomes.num_requests)]
    fitted = learn(replace(outcomes, value_NCA=permuted_NCA), 0.03)
    assert median_angle(fitted.policy) <= 2.0 * np.sqrt(50 / 35)  # 2 degrees at 50k, and noise is what it is
    assert median_angle(learn(outcomes, 0.03).policy) > 3.0


def test_a_worse_hide_weighs_more() -> None:
    """Acceptance test 11."""
    contexts = contexts_of(judge().requests)
    shares = []
    for hide in (-1.0, -2.0, -4.0):
        weights_NT = learn(log(12_000), 0.02, hide=hide, max_angle=9.0, max_angle_p95=9.0).policy.weights(contexts)
        shares.append(float(np.mean(np.abs(weights_NT[:, 3]) / np.linalg.norm(weights_NT, axis=1))))
    assert shares == sorted(shares) and shares[-1] > 1.05 * shares[0]


def test_the_same_seed_gives_the_same_weights() -> None:
    one, again = (policy_to_dict(learn(log(2_000), 0.1).policy) for _ in range(2))
    assert one == again


def test_steps_beyond_the_reach_of_the_exploration_are_not_made() -> None:
    with pytest.raises(ValueError, match="penalties: none makes a step within the reach of 1"):
        learn(log(4_000), 1e-4)


def test_a_small_scenario_shares_a_function_and_keeps_its_own_weights() -> None:
    outcomes = log(4_000)
    names = ["home" if row % 4 else "search" for row in range(4_000)]
    mixed = replace(outcomes, contexts=replace(outcomes.contexts, scenario=names))
    static = {"home": world().static.weights_of["home"], "search": world().static.weights_of["home"] * 3.0}
    mixed.center_NT[::4] *= 3.0
    mixed.weights_NT[::4] *= 3.0
    config = LearnConfig(method="reward_regression", context=CONTEXT, penalties=(0.03,), own_from=2_000)
    center = replace(world().static, weights_of=static)
    policy = fit(mixed, center, center, config, world().reward, numeric=NUMERIC, seed=1).policy
    mixed.center_NT[::4] /= 3.0
    mixed.weights_NT[::4] /= 3.0
    assert isinstance(policy, LearnedPolicy) and policy.links[0].encoder.scenarios == ("home",)
    contexts = contexts_of(judge().requests)
    search_NT = policy.weights(replace(contexts, scenario=["search"] * len(contexts)))
    ratio_NT = search_NT / static["search"]
    assert (ratio_NT >= 0.5).all() and (ratio_NT <= 2).all() and 0.5 < np.median(angles(search_NT, static["search"]))


@pytest.mark.parametrize("method", ["one_step", "static_mean"])
def test_the_other_forms_beat_production(method: MethodName) -> None:
    settings = LearnConfig(method=method, context=CONTEXT, penalties=(0.03, 0.02, 0.016, 0.013, 0.01))
    fitted = fit(log(20_000), world().static, world().static, settings, world().reward, numeric=NUMERIC, seed=1)
    assert fitted.report["method"] == method
    assert judge().oracle_share(fitted.policy) > (0.3 if method == "one_step" else 0.12)
    contexts = contexts_of(judge().requests)
    assert (len(np.unique(fitted.policy.weights(contexts), axis=0)) == 1) == (method == "static_mean")


def test_one_step_finds_what_the_regression_finds_to_first_order() -> None:
    """Same outcomes, a small step and a linear network: the same direction."""
    linear = learn(log(20_000), 0.1, hidden=(), adam=replace(LearnConfig().adam, epochs=12, rate=3e-3)).policy
    settings = LearnConfig(method="one_step", context=CONTEXT, penalties=(0.1,))
    step = fit(log(20_000), world().static, world().static, settings, world().reward, numeric=NUMERIC, seed=1).policy
    contexts = contexts_of(judge().requests)
    static_NT = world().static.weights(contexts)
    one_NT, other_NT = (policy.weights(contexts) - static_NT for policy in (linear, step))
    cosine = (one_NT * other_NT).sum() / np.linalg.norm(one_NT) / np.linalg.norm(other_NT)
    assert cosine > 0.85
