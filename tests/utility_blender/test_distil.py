"""Distillation: one step leads to where a chain of steps led."""

import numpy as np
import pytest

from freshrank.study_blender_world import MOOD, NUMERIC, contexts_of, world_of
from sim.scored_world import ScoredWorld, ScoredWorldConfig
from utility_blender.centring import angles
from utility_blender.distil import distilled
from utility_blender.learn_config import LearnConfig
from utility_blender.learned import LearnedPolicy, Link, as_learned, policy_from_dict, policy_to_dict
from utility_blender.mlp import Mlp
from utility_blender.prepared import encoder_of

WORLD = world_of(ScoredWorld(ScoredWorldConfig(num_candidates=2, num_shown=1), seed=0))
CONTEXTS = contexts_of(WORLD.scored.requests(8_000, seed=1))


def chain(num_links: int, size: float) -> LearnedPolicy:
    rng = np.random.default_rng(3)
    encoder = encoder_of(CONTEXTS, (*NUMERIC, MOOD), numeric=NUMERIC, own_from=100)
    policy = as_learned(WORLD.static, WORLD.scored.config.actions)
    for _ in range(num_links):
        layers = (
            (rng.standard_normal((encoder.width, 16)) / np.sqrt(encoder.width), np.zeros(16)),
            (size * rng.standard_normal((16, 4)) / 4, np.zeros(4)),
        )
        policy = policy.then(Link(encoder, Mlp(layers)))
    return policy


def test_one_step_leads_to_where_three_led() -> None:
    policy = chain(3, size=0.3)
    new = contexts_of(WORLD.scored.requests(2_000, seed=2))
    moved_N = angles(policy.weights(new), WORLD.static.weights(new))
    one, error = distilled(policy, CONTEXTS, LearnConfig(), np.random.default_rng(0))
    assert len(one.links) == 1 and one.links[0].clip == 8.0
    error_N = angles(one.weights(new), policy.weights(new))
    assert np.median(moved_N) > 8, np.median(moved_N)
    assert error <= 1.0 and np.median(error_N) <= 1.0
    assert np.median(error_N) == pytest.approx(error, abs=0.2)  # what is reported is what unseen requests get
    assert np.quantile(error_N, 0.95) < 4
    assert (np.sign(one.weights(new)) == np.sign(WORLD.static.weights(new))).all()
    assert np.array_equal(policy_from_dict(policy_to_dict(one)).weights(new), one.weights(new))


def test_a_chain_that_does_not_move_becomes_a_step_that_does_not() -> None:
    one, error = distilled(chain(2, size=0.0), CONTEXTS, LearnConfig(), np.random.default_rng(0))
    assert error == 0.0
    assert np.allclose(one.weights(CONTEXTS), WORLD.static.weights(CONTEXTS), rtol=1e-12)


def test_nothing_to_distil_is_refused() -> None:
    with pytest.raises(ValueError, match="distil: 0 links and 8000 requests"):
        distilled(chain(0, size=0.3), CONTEXTS, LearnConfig(), np.random.default_rng(0))
    with pytest.raises(ValueError, match="distil: 1 links and 3 requests"):
        distilled(chain(1, size=0.3), CONTEXTS.take([0, 1, 2]), LearnConfig(), np.random.default_rng(0))
