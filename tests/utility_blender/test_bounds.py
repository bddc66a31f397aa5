"""The bounds of served weights, held against plain loops and adversaries."""

import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utility_blender.bounds import Bounded, BoundsConfig, bounded
from utility_blender.contexts import Contexts
from utility_blender.policy import StaticPolicy

SIZES = st.floats(0.01, 100.0)
STATIC = st.lists(st.tuples(SIZES, st.sampled_from([-1.0, 1.0])), min_size=1, max_size=6).map(
    lambda pairs: [size * sign for size, sign in pairs]
)


def plain(weights: list[float], static: list[float], config: BoundsConfig) -> list[float]:
    """The rules one after the other, one weight at a time."""
    length = math.sqrt(sum(s * s for s in static)) / math.sqrt(sum(w * w for w in weights))
    sizes = []
    for weight, s in zip(weights, static, strict=True):
        towards = weight * length * (1 if s > 0 else -1)
        sizes.append(max(abs(s) / config.most, min(abs(s) * config.most, towards)))
    result = []
    for place, (size, s) in enumerate(zip(sizes, static, strict=True)):
        allowed = max(config.contribution, abs(s) / sum(map(abs, static)))
        others = sum(sizes) - sizes[place]
        if allowed < 1:
            size = min(size, allowed / (1 - allowed) * others)
        result.append(size if s > 0 else -size)
    return result


@settings(max_examples=200, deadline=None)
@given(STATIC, st.data(), st.floats(1.0, 8.0), st.floats(0.51, 1.0))
def test_whatever_a_model_says_signs_limits_and_shares_hold(
    static: list[float], data: st.DataObject, most: float, contribution: float
) -> None:
    adversarial = data.draw(
        st.lists(st.floats(-1e6, 1e6), min_size=len(static), max_size=len(static)).filter(
            lambda w: sum(x * x for x in w) > 1e-6
        )
    )
    config = BoundsConfig(most=most, contribution=contribution)
    got_T = bounded(np.array([adversarial]), np.array([static]), config)[0]
    np.testing.assert_allclose(got_T, plain(adversarial, static, config), rtol=1e-9)
    static_T = np.array(static)
    assert (np.sign(got_T) == np.sign(static_T)).all()
    assert (np.abs(got_T) <= np.abs(static_T) * most * (1 + 1e-9)).all()
    assert (np.abs(got_T) >= np.abs(static_T) / most * (1 - 1e-9)).all()
    share_T, production_T = (np.abs(v) / np.abs(v).sum() for v in (got_T, static_T))
    assert (share_T <= np.maximum(contribution, production_T) + 1e-9).all()


@settings(max_examples=100, deadline=None)
@given(STATIC, st.floats(1e-3, 1e3))
def test_production_weights_of_any_length_pass_unchanged(static: list[float], factor: float) -> None:
    static_NT = np.array([static])
    np.testing.assert_allclose(bounded(static_NT * factor, static_NT, BoundsConfig()), static_NT, rtol=1e-9)


def test_a_task_that_production_leaves_out_stays_out() -> None:
    assert bounded(np.array([[1.0, 3.0]]), np.array([[2.0, 0.0]]), BoundsConfig()).tolist() == [
        [2.0 / math.sqrt(10), 0.0]
    ]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("weights", [[math.nan, 1.0], [math.inf, 1.0], [0.0, 0.0]])
def test_nonsense_is_not_made_to_look_like_sense(weights: list[float]) -> None:
    assert not np.isfinite(bounded(np.array([weights]), np.array([[1.0, -1.0]]), BoundsConfig())).all()


def test_a_bounded_policy_is_bounded_in_every_context() -> None:
    static = StaticPolicy({"home": np.array([1.0, 1.0]), "search": np.array([1.0, -1.0])})
    wild = StaticPolicy({"home": np.array([9.0, -1.0]), "search": np.array([9.0, 9.0])})
    weights_NT = Bounded(wild, static, BoundsConfig()).weights(Contexts(scenario=["search", "home"], columns={}))
    np.testing.assert_allclose(weights_NT, [[1.0, -0.25], [1.0, 0.25]], rtol=1e-12)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"most": 0.9}, "most: 0.9 is not allowed; at least 1"),
        ({"contribution": 0.5}, "contribution: 0.5 is not allowed; in (0.5, 1]"),
        ({"contribution": 1.1}, "contribution: 1.1 is not allowed; in (0.5, 1]"),
        ({"budget_ms": 0.0}, "budget_ms: 0.0 is not allowed; above 0"),
    ],
)
def test_settings_that_are_refused(setting: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        BoundsConfig(**setting)
