"""Learned policies: bounded steps in a chain, and their written form."""

import json
import math
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from utility_blender.centring import angles
from utility_blender.contexts import Contexts, fit_encoder
from utility_blender.learned import LearnedPolicy, Link, as_learned, policy_from_dict, policy_to_dict
from utility_blender.mlp import Mlp, new_mlp
from utility_blender.policy import StaticPolicy

TASKS = ("click", "order", "hide")
BASE = {"home": np.array([1.0, 5.0, -2.0]), "default": np.array([0.1, 0.2, -0.3])}
CONTEXTS = Contexts(
    scenario=["home", "search", "home", "shop"] * 10, columns={"context.mood": ["buy", "look", "look", "buy"] * 10}
)
ENCODER = fit_encoder(CONTEXTS)


def link(seed: int, size: float = 1.0, **settings: Any) -> Link:
    mlp = new_mlp((ENCODER.width, 8, 3), np.random.default_rng(seed))
    weights = np.random.default_rng(seed).normal(size=(8, 3)) * size
    return Link(ENCODER, Mlp((*mlp.layers[:-1], (weights, mlp.layers[-1][1]))), **settings)


def test_step_zero_is_production_exactly() -> None:
    """Design, acceptance test 1: the last layer starts as zero."""
    fresh = Link(ENCODER, new_mlp((ENCODER.width, 64, 32, 3), np.random.default_rng(0)))
    policy = LearnedPolicy(TASKS, BASE)
    static_NT = policy.weights(CONTEXTS)
    assert static_NT[:2].tolist() == [BASE["home"].tolist(), BASE["default"].tolist()]
    assert policy.then(fresh).weights(CONTEXTS).tolist() == static_NT.tolist()


@pytest.mark.parametrize("size", [0.01, 1.0, 1e6])
def test_a_step_keeps_signs_and_stays_within_its_factor_whatever_the_network_says(size: float) -> None:
    policy = LearnedPolicy(TASKS, BASE).then(link(1, size))
    ratio_NT = policy.weights(CONTEXTS) / policy.static(CONTEXTS)
    assert (ratio_NT >= 0.5 - 1e-12).all() and (ratio_NT <= 2 + 1e-12).all()
    assert (ratio_NT != 1).any()


def test_a_chain_is_one_step_after_the_other_each_from_weights_of_the_static_length() -> None:
    first, second = link(1), link(2, strength=0.5)
    chain_NT = LearnedPolicy(TASKS, BASE, (first, second)).weights(CONTEXTS)
    for row in range(4):
        one = CONTEXTS.take([row])
        static_T = BASE.get(one.scenario[0], BASE["default"])
        weights_T = np.array(static_T)
        for step in (first, second):
            weights_T = weights_T * np.linalg.norm(static_T) / np.linalg.norm(weights_T)
            goal_T = weights_T + np.linalg.norm(weights_T) * step.mlp(ENCODER.encode(one))[0]
            for task, center in enumerate(weights_T):
                low, high = sorted((center / 2, center * 2))
                goal_T[task] = min(max(goal_T[task], low), high)
            weights_T = weights_T + step.strength * (goal_T - weights_T)
        assert chain_NT[row].tolist() == pytest.approx(weights_T.tolist(), rel=1e-12)


def test_strength_zero_goes_nowhere_and_half_the_strength_half_the_way() -> None:
    static_NT = LearnedPolicy(TASKS, BASE).weights(CONTEXTS)
    none_NT, half_NT, full_NT = (
        LearnedPolicy(TASKS, BASE, (link(1, strength=strength),)).weights(CONTEXTS) for strength in (0.0, 0.5, 1.0)
    )
    assert none_NT.tolist() == static_NT.tolist()
    assert np.allclose(half_NT, (static_NT + full_NT) / 2)


def test_the_direction_of_an_answer_does_not_depend_on_the_length_of_the_base() -> None:
    longer = {name: weights_T * 37.0 for name, weights_T in BASE.items()}
    one_NT, other_NT = (LearnedPolicy(TASKS, base, (link(1), link(2))).weights(CONTEXTS) for base in (BASE, longer))
    assert angles(one_NT, other_NT).max() < 1e-5


def test_an_unlisted_scenario_has_the_default_or_none() -> None:
    only_home = LearnedPolicy(TASKS, {"home": BASE["home"]}, (link(1),))
    assert only_home.weights(CONTEXTS.take([0])).shape == (1, 3)
    with pytest.raises(KeyError):
        only_home.weights(CONTEXTS)


@pytest.mark.parametrize("clip", [2.0, math.inf])
def test_a_policy_survives_json_to_the_last_bit(clip: float) -> None:
    policy = LearnedPolicy(TASKS, BASE, (link(1), replace(link(2), clip=clip, strength=0.3)))
    again = policy_from_dict(json.loads(json.dumps(policy_to_dict(policy), allow_nan=False)))
    assert again.weights(CONTEXTS).tolist() == policy.weights(CONTEXTS).tolist()
    static = StaticPolicy({"home": BASE["home"]})
    home = CONTEXTS.take([0])
    assert policy_from_dict(policy_to_dict(static)).weights(home).tolist() == static.weights(home).tolist()


def damaged(**changes: Any) -> dict[str, Any]:
    return {**json.loads(json.dumps(policy_to_dict(LearnedPolicy(TASKS, BASE, (link(1),))))), **changes}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "policy.kind: None is not allowed; one of learned"),
        (damaged(kind="pickle"), "policy.kind: pickle is not allowed; one of learned"),
        (damaged(base={"home": [1.0, 2.0]}), "base: [1.0, 2.0] is not allowed; 3 finite numbers"),
        (damaged(base={"home": [1.0, 2.0, math.nan]}), "3 finite numbers, not all 0"),
        (damaged(base={"home": [0, 0, 0]}), "3 finite numbers, not all 0"),
        (damaged(links=[{}]), "policy: this is no policy of kind learned"),
        (damaged(links=[{**damaged()["links"][0], "clip": 0.5}]), "links: clip 0.5"),
        (damaged(links=[{**damaged()["links"][0], "strength": 2}]), "strength 2.0"),
        (damaged(links=[{**damaged()["links"][0], "mlp": [{"weights": [[1.0]], "bias": [1.0]}]}]), "does not fit"),
        (damaged(tasks=5), "policy: this is no policy of kind learned"),
    ],
)
def test_data_that_is_no_policy_is_refused_in_one_line(data: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        policy_from_dict(data)


def test_only_policies_that_can_be_written_down_are() -> None:
    class Odd:
        def weights(self, contexts: Contexts) -> Any:
            return np.ones((len(contexts), 3))

    with pytest.raises(ValueError, match="policy: Odd is not allowed"):
        policy_to_dict(Odd())
    with pytest.raises(ValueError, match="center: Odd is not allowed; StaticPolicy or LearnedPolicy"):
        as_learned(Odd(), TASKS)
