"""`grid_q`: its two heads, its arms, what it learns of them, and that it is written down as it is."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from freshrank.study_blender_world import MOOD, NUMERIC, contexts_of, judge_of, world_of
from sim.scored_world import ScoredWorld, ScoredWorldConfig
from utility_blender.explore import ExploreConfig
from utility_blender.fit import fit
from utility_blender.fit_mlp import AdamConfig
from utility_blender.grid_q import GridPolicy, main_heads
from utility_blender.learn_config import LearnConfig
from utility_blender.learned import policy_from_dict, policy_to_dict
from utility_blender.outcomes import Outcomes
from utility_blender.reward import RewardConfig

WORLD = world_of(ScoredWorld(ScoredWorldConfig(num_candidates=12, num_shown=3), seed=0))
CONFIG = LearnConfig(method="grid_q", context=(*NUMERIC, MOOD), own_from=100)
LEVELS = np.geomspace(0.5, 2.0, 7)


def log(num: int, heads: tuple[int, int] = (0, 1)) -> Outcomes:
    return WORLD.explored_on_grid(num, WORLD.static, heads, LEVELS, seed=1)


def test_the_main_heads_are_those_of_the_largest_share() -> None:
    outcomes = log(300)
    share_T = np.zeros(4)
    for row in range(300):
        for candidate in range(12):
            for task in range(4):
                score = float(outcomes.scores_NCT[row, candidate, task]) / float(outcomes.scale_NT[row, task])
                share_T[task] += abs(float(outcomes.center_NT[row, task]) * score)
    assert main_heads(outcomes) == tuple(sorted(np.argsort(share_T)[2:].tolist()))


@pytest.mark.parametrize("aggregate", ["sum", "binary"])
def test_planted_arms_are_found_by_context(aggregate: str) -> None:
    outcomes = log(6_000)
    heads = main_heads(outcomes)
    assert heads == (0, 1)
    up_N = np.array([mood == "buy" for mood in outcomes.contexts.columns[MOOD]])
    height_N2 = np.log2(outcomes.weights_NT[:, heads] / outcomes.center_NT[:, heads])
    # Who buys pays for a high first and a low second head, the others for the reverse.
    chance_N = 0.5 + 0.2 * np.where(up_N, 1, -1) * (height_N2[:, 0] - height_N2[:, 1])
    value_NCA = np.zeros((*outcomes.position_NC.shape, 1))
    value_NCA[:, 0, 0] = np.random.default_rng(0).random(6_000) < chance_N
    paid = RewardConfig(values={"paid": 2.0}, aggregate=aggregate)  # type: ignore[arg-type]
    planted = replace(outcomes, actions=("paid",), value_NCA=value_NCA)
    config = replace(CONFIG, adam_base=AdamConfig(epochs=30))
    policy = fit(planted, WORLD.static, WORLD.static, config, paid, numeric=NUMERIC, seed=0).policy
    contexts = contexts_of(WORLD.scored.requests(300, seed=7))
    ratio_NT = policy.weights(contexts) / WORLD.static.weights(contexts)
    assert (ratio_NT[:, 2:] == 1).all()  # the other heads keep the weights in service
    assert set(np.unique(ratio_NT[:, :2].round(6))) <= set(LEVELS.round(6))
    buys_N = np.array([mood == "buy" for mood in contexts.columns[MOOD]])
    assert (ratio_NT[buys_N, 0] > ratio_NT[buys_N, 1]).mean() > 0.95
    assert (ratio_NT[~buys_N, 0] < ratio_NT[~buys_N, 1]).mean() > 0.95


def test_it_is_written_down_to_the_last_bit() -> None:
    policy = fit(log(1_000), WORLD.static, WORLD.static, CONFIG, WORLD.reward, numeric=NUMERIC, seed=0).policy
    assert isinstance(policy, GridPolicy)
    data = json.loads(json.dumps(policy_to_dict(policy)))
    contexts = contexts_of(WORLD.scored.requests(50, seed=3))
    assert np.array_equal(policy_from_dict(data).weights(contexts), policy.weights(contexts))
    for broken in ({"heads": [0]}, {"levels": [[1.0], [-1.0]]}, {"worth": [1.0]}, {"mlp": []}):
        with pytest.raises(ValueError, match="no policy of kind grid_q"):
            policy_from_dict({**data, **broken})


def test_any_law_will_do_and_arms_span_what_it_explored() -> None:
    outcomes = WORLD.explored(2_000, WORLD.static, ExploreConfig(tau=0.2), seed=1)
    policy = fit(outcomes, WORLD.static, WORLD.static, CONFIG, WORLD.reward, numeric=NUMERIC, seed=0).policy
    assert isinstance(policy, GridPolicy)
    assert (np.abs(np.log(policy.levels_2L)) <= 0.4 + 1e-12).all()
    assert policy.levels_2L[:, -1].min() > math.exp(0.35)


def test_a_main_head_that_was_not_explored_is_named() -> None:
    with pytest.raises(ValueError, match="outcomes: repin or closeup was never explored"):
        fit(log(300, heads=(1, 2)), WORLD.static, WORLD.static, CONFIG, WORLD.reward, numeric=NUMERIC, seed=0)


def test_it_gains_in_the_world_where_actions_count_and_loses_where_each_counts_once() -> None:
    world = world_of(ScoredWorld(ScoredWorldConfig(), seed=1))
    judge = judge_of(world, 4_000, seed=1_001)
    outcomes = world.explored_on_grid(50_000, world.static, (0, 1), LEVELS, seed=11)
    counted, once = (
        judge.oracle_share(fit(outcomes, world.static, world.static, CONFIG, reward, numeric=NUMERIC, seed=0).policy)
        for reward in (world.reward, replace(world.reward, aggregate="binary"))
    )
    assert counted > 0.2 and once < counted - 0.2, (counted, once)
