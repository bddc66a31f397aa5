"""The blend: which weights a request gets, what a utility is, and which settings are refused."""

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utility_blender.blend import Blender, BlenderConfig
from utility_blender.explore import ExploreConfig, log_density

TASKS, SCENARIOS = ("click", "order"), ("home", "search")
EVERYONE = ExploreConfig(share=1.0, allow_above_cap=True)


def blender(**sections: Any) -> Blender:
    sections.setdefault("weights", {"default": {"click": 1.0, "order": 5.0}})
    return Blender(TASKS, SCENARIOS, BlenderConfig(**sections))


def test_a_scenario_overrides_single_tasks_of_the_default() -> None:
    both = blender(weights={"default": {"click": 1.0, "order": 5.0}, "home": {"order": 2.0}})
    assert both.weights("home", "r").weights_T.tolist() == [1.0, 2.0]
    assert both.weights("search", "r").weights_T.tolist() == [1.0, 5.0]


def test_utility_is_the_weighted_sum_of_scaled_scores() -> None:
    scores_NT = np.array([[0.2, 0.01], [0.1, 0.05]], dtype=np.float32)
    blend = blender(scale={"order": 0.1})
    utility_N = blend.utility(scores_NT, np.array([1.0, 5.0]))
    assert utility_N.tolist() == pytest.approx([0.2 + 5 * 0.01 / 0.1, 0.1 + 5 * 0.05 / 0.1], rel=1e-6)
    assert utility_N.dtype == np.float64


@settings(max_examples=50, deadline=None)
@given(factor=st.floats(1e-3, 1e3), seed=st.integers(0, 1_000))
def test_the_ranking_does_not_depend_on_the_length_of_the_weights(factor: float, seed: int) -> None:
    scores_NT = np.random.default_rng(seed).random((50, 2))
    blend = blender()
    weights_T = blend.weights("home", "r").weights_T
    order = np.argsort(-blend.utility(scores_NT, weights_T), kind="stable")
    assert np.argsort(-blend.utility(scores_NT, weights_T * factor), kind="stable").tolist() == order.tolist()


def test_an_items_utility_does_not_depend_on_the_other_candidates_to_the_last_bit() -> None:
    scores_NT = np.random.default_rng(0).random((301, 2)).astype(np.float32)
    blend, weights_T = blender(), np.array([0.37, 4.1])
    together_N = blend.utility(scores_NT, weights_T)
    assert [blend.utility(row[None], weights_T)[0] for row in scores_NT] == together_N.tolist()


def test_production_weights_have_no_density_and_cannot_be_written_to() -> None:
    given = blender().weights("home", "r")
    assert (given.explore, given.log_density) == (False, None)
    with pytest.raises(ValueError, match="read-only"):
        given.weights_T[0] = 9.0


def test_an_explored_request_gets_the_same_draw_each_time_with_its_density() -> None:
    blend = blender(explore=EVERYONE)
    first, again, other = (blend.weights("home", request_id) for request_id in ("r-1", "r-1", "r-2"))
    assert first.explore and first.log_density == again.log_density
    assert first.weights_T.tolist() == again.weights_T.tolist() != other.weights_T.tolist()
    center_T = np.array([1.0, 5.0])
    assert first.log_density == pytest.approx(log_density(first.weights_T, center_T, EVERYONE))


def test_an_excluded_scenario_never_explores() -> None:
    blend = blender(explore=ExploreConfig(share=1.0, allow_above_cap=True, excluded_scenarios=("search",)))
    assert blend.weights("home", "r-1").explore
    assert not any(blend.weights("search", f"r-{i}").explore for i in range(50))


def test_a_zero_weight_is_allowed_without_exploration_and_where_the_scenario_is_excluded() -> None:
    weights = {"default": {"click": 1.0, "order": 5.0}, "search": {"order": 0.0}}
    assert blender(weights=weights).weights("search", "r").weights_T.tolist() == [1.0, 0.0]
    excluded = ExploreConfig(share=0.01, excluded_scenarios=("search",))
    assert blender(weights=weights, explore=excluded).weights("search", "r").weights_T.tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"weights": {}}, "weights.default: no weight for click, order (needed by scenario home)"),
        ({"weights": {"default": {"click": 1}}}, "weights.default: no weight for order"),
        ({"weights": {"default": {"click": 1, "order": 1, "hide": 1}}}, "weights.default: hide is not known; one of"),
        ({"weights": {"shop": {"click": 1}}}, "weights: shop is not known; one of default, home, search"),
        ({"weights": {"default": {"click": 0, "order": 0}}}, "weights.home: all are 0; at least one task must count"),
        ({"weights": {"default": {"click": float("nan")}}}, "weights.default.click: nan is not allowed"),
        ({"scale": {"clicks": 1.0}}, "scale: clicks is not known; one of click, order"),
        ({"scale": {"click": 0.0}}, "scale.click: 0.0 is not allowed; a finite number above 0"),
        (
            {"weights": {"default": {"click": 1, "order": 0}}, "explore": ExploreConfig(share=0.01)},
            "weights.home.order: 0 cannot be explored, a draw is a multiple of the weight and would stay 0",
        ),
        (
            {"explore": ExploreConfig(excluded_scenarios=("shop",))},
            "explore.excluded_scenarios: shop is not known; one of home, search",
        ),
    ],
)
def test_settings_that_are_refused_name_the_field_and_what_is_allowed(sections: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        blender(**sections)
