"""The world is a function of seed, id and time."""

from dataclasses import fields
from typing import Any

import numpy as np
import pytest

from sim.catalogue import CATEGORIES
from sim.config import SimConfig
from sim.scenario import ScenarioConfig
from sim.world import FEATURES, World

NOW_MS = 1_790_000_000_000
CONFIG = SimConfig(num_users=20, num_items=60, item_life_s=600.0)


def test_the_same_seed_is_the_same_world_whatever_was_asked_before() -> None:
    one, other = World(CONFIG), World(CONFIG)
    for user_id in other.users():
        other.candidates(user_id, "search", NOW_MS + 10_000_000, 30)
    other.candidates("u3", "home", NOW_MS - 10_000_000, 30)
    for scenario in one.scenario_names:
        ours, theirs = (world.candidates("u7", scenario, NOW_MS, 40) for world in (one, other))
        assert ours.id == theirs.id
        assert ours.features == theirs.features
        np.testing.assert_array_equal(ours.vec_ND, theirs.vec_ND)
        assert one.context("u7", scenario, NOW_MS) == other.context("u7", scenario, NOW_MS)
    np.testing.assert_array_equal(one.taste("u7", NOW_MS), other.taste("u7", NOW_MS))


def test_another_seed_is_another_world() -> None:
    one, other = World(CONFIG), World(SimConfig(seed=2, num_users=20, num_items=60, item_life_s=600.0))
    assert one.candidates("u1", "home", NOW_MS, 40).id != other.candidates("u1", "home", NOW_MS, 40).id
    assert not np.allclose(one.taste("u1", NOW_MS), other.taste("u1", NOW_MS))


def test_new_items_replace_old_ones_at_a_steady_pace() -> None:
    world = World(CONFIG)

    def alive(now_ms: int) -> set[str]:
        world.catalogue.move_to(now_ms)
        return set(world.catalogue.id)

    start = alive(NOW_MS)
    born = [len(alive(NOW_MS + minute * 60_000) - start) for minute in range(11)]
    assert born == [0, 6, 12, 18, 24, 30, 36, 42, 48, 54, 60]
    assert alive(NOW_MS) == start


def test_the_catalogue_changes_at_the_very_millisecond_a_life_ends() -> None:
    world = World(CONFIG)
    asked_often, asked_once = World(CONFIG).catalogue, World(CONFIG).catalogue
    for now_ms in range(NOW_MS, NOW_MS + 10_050, 25):
        asked_often.move_to(now_ms)
    asked_once.move_to(now_ms)
    assert asked_often.id == asked_once.id
    world.catalogue.move_to(NOW_MS)
    assert world.catalogue.id != asked_once.id


def test_tastes_drift_slowly_and_come_back_after_a_period() -> None:
    world = World(CONFIG)
    period_ms = round(1_000 * CONFIG.drift_period_s)
    now, soon, later, again = (
        world.taste("u5", NOW_MS + shift_ms) for shift_ms in (0, 1_000, period_ms // 2, period_ms)
    )
    assert np.linalg.norm(soon - now) < 0.02
    assert np.linalg.norm(later - now) > 1.0
    np.testing.assert_allclose(again, now, atol=1e-6)


def test_a_query_is_asked_in_search_alone_and_half_of_the_candidates_match_it() -> None:
    world = World(SimConfig(num_users=20, num_items=600))
    for user_id in world.users():
        assert world.context(user_id, "home", NOW_MS)["query"] is None
        assert not world.candidates(user_id, "home", NOW_MS, 40).matches_N.any()
        query = world.context(user_id, "search", NOW_MS)["query"]
        assert query in CATEGORIES
        found = world.candidates(user_id, "search", NOW_MS, 40)
        assert found.matches_N.sum() == 20
        assert {c for c, matches in zip(found.features["category"], found.matches_N, strict=True) if matches} == {query}


def test_what_is_sent_is_what_the_schema_declares() -> None:
    world = World(CONFIG)
    candidates = world.candidates("u0", "search", NOW_MS, 40)
    assert set(candidates.features) == set(FEATURES.item)
    assert set(world.user_features("u0")) == set(FEATURES.user)
    assert set(world.context("u0", "search", NOW_MS)) == set(FEATURES.context)
    assert len(candidates.id) == len(set(candidates.id)) == 40
    for name, column in candidates.features.items():
        kind = list if FEATURES.item[name].many else float if FEATURES.item[name].kind == "numeric" else str
        assert all(type(value) is kind for value in column)


def test_unknown_users_and_scenarios_are_refused_by_name() -> None:
    world = World(CONFIG)
    with pytest.raises(ValueError, match="^user_id: 'u20' is not allowed; u0 to u19"):
        world.user_features("u20")
    with pytest.raises(ValueError, match="^scenario: 'shop' is not allowed; one of home, search, deals"):
        world.candidates("u1", "shop", NOW_MS, 5)


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"seed": -1}, "seed"),
        ({"num_users": 0}, "num_users"),
        ({"requests_per_s": 0.0}, "requests_per_s"),
        ({"requests_per_s": float("inf")}, "requests_per_s"),
        ({"duplicate_share": 1.1}, "duplicate_share"),
        ({"candidates": 5, "slate": 10}, "candidates"),
        ({"candidates": 700}, "candidates"),
        ({"scenarios": {}}, "scenarios"),
        ({"delays": {}}, "delays"),
        ({"utility": {"click": 1.0}}, "utility"),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(settings: dict[str, Any], field: str) -> None:
    with pytest.raises(ValueError, match=f"^{field}: "):
        SimConfig(**settings)


def test_when_a_scenario_comes_up_is_checked_by_name() -> None:
    with pytest.raises(ValueError, match="^from_s: -1.0 is not allowed; at least 0$"):
        ScenarioConfig(from_s=-1.0)
    late = ScenarioConfig(from_s=1.0)
    with pytest.raises(ValueError, match=r"^scenarios\.home\.from_s: 1.0 is not allowed; 0 for the first scenario$"):
        SimConfig(scenarios={"home": late, "search": ScenarioConfig()})
    SimConfig(scenarios={"home": ScenarioConfig(), "search": late})


@pytest.mark.parametrize("name", [f.name for f in fields(ScenarioConfig) if f.type is float])
def test_scenario_coefficients_must_be_finite(name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}: nan is not allowed"):
        ScenarioConfig(**{name: float("nan")})
