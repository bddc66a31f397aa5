"""The blender's view of the world of scored requests: replayable, and its oracle the best there is."""

import numpy as np
import pytest

from freshrank.study_blender_world import World, contexts_of, judge_of, world_of
from sim.scored_world import ScoredWorld, ScoredWorldConfig
from utility_blender.explore import ExploreConfig
from utility_blender.outcomes import slates, utilities
from utility_blender.policy import StaticPolicy
from utility_blender.reward import request_rewards

WORLD = world_of(ScoredWorld(ScoredWorldConfig(), seed=0))


def test_the_oracle_lifts_production_by_about_5_percent_and_no_constant_gets_more_than_part_of_it() -> None:
    lifts, of_global = [], []
    for seed in range(4):
        world = world_of(ScoredWorld(ScoredWorldConfig(), seed))
        judge = judge_of(world, 4_000, seed=100 + seed)
        lifts.append(judge.oracle_value / judge.static_value - 1)
        mean_T = world.oracle.weights(contexts_of(judge.requests)).mean(axis=0)
        of_global.append(judge.oracle_share(StaticPolicy({"home": mean_T})))
        assert judge.oracle_share(world.static) == 0.0
        assert judge.oracle_share(world.oracle) == 1.0
    assert 0.043 < np.mean(lifts) < 0.053, lifts
    assert 0.4 < np.mean(of_global) < 0.55, of_global


def test_no_weights_beat_the_oracle_on_any_request() -> None:
    requests = WORLD.scored.requests(300, seed=8)
    best_NT = WORLD.oracle.weights(contexts_of(requests))
    best_N = WORLD.values(requests, best_NT)
    rng = np.random.default_rng(0)
    for _ in range(5):
        other_NT = best_NT * np.exp(0.4 * rng.standard_normal(best_NT.shape))
        assert (WORLD.values(requests, other_NT) <= best_N + 1e-9).all()


@pytest.mark.parametrize("scaled", [True, False])
def test_logged_weights_replay_the_logged_slates(scaled: bool) -> None:
    world = world_of(WORLD.scored, scaled=scaled)
    outcomes = world.explored(500, world.static, ExploreConfig(tau=0.5), seed=5)
    assert np.array_equal(slates(utilities(outcomes, outcomes.weights_NT), outcomes.size_N), outcomes.shown_NC)
    ratio_NT = outcomes.weights_NT / outcomes.center_NT
    assert (np.abs(np.log(ratio_NT)) <= 0.5 * 2 + 1e-9).all() and np.log(ratio_NT).std() > 0.3


def test_scale_is_a_unit_and_nothing_else() -> None:
    raw = world_of(WORLD.scored, scaled=False)
    requests = WORLD.scored.requests(200, seed=5)
    contexts = contexts_of(requests)
    of_both = [world.values(requests, world.static.weights(contexts)) for world in (WORLD, raw)]
    assert np.allclose(*of_both)


def test_rewards_drawn_are_the_expected_ones_on_average() -> None:
    world = World(WORLD.scored, WORLD.scale_T)
    outcomes = world.explored(20_000, world.static, ExploreConfig(), seed=9)
    expected_N = world.values(world.scored.requests(20_000, seed=9), outcomes.weights_NT)
    drawn_N = request_rewards(outcomes, world.reward)
    error = float((drawn_N - expected_N).std()) / np.sqrt(len(drawn_N))
    assert abs(float((drawn_N - expected_N).mean())) < 3.5 * error
    assert (outcomes.value_NCA[~outcomes.shown_NC] == 0).all()


def test_exploring_costs_a_little() -> None:
    costs = []
    for tau in (0.2, 0.3, 0.5):
        outcomes = WORLD.explored(10_000, WORLD.static, ExploreConfig(tau=tau), seed=11)
        requests = WORLD.scored.requests(10_000, seed=11)
        served, drawn = (WORLD.values(requests, w).mean() for w in (outcomes.center_NT, outcomes.weights_NT))
        costs.append(1 - drawn / served)
    assert 0.0005 < costs[0] < costs[1] < costs[2] < 0.03, costs
