"""Learned weights in service: which request gets which version, what it falls back to, what is drawn around what."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from tests.utility_blender.some_versions import TASKS, some_version
from utility_blender.blend import Blender, BlenderConfig
from utility_blender.bounds import BoundsConfig
from utility_blender.contexts import Contexts, Floats
from utility_blender.exceptions import BlenderVersionError
from utility_blender.explore import ExploreConfig, log_density
from utility_blender.learn_config import LearnConfig
from utility_blender.learned import policy_from_dict
from utility_blender.serving import Lanes, ReadyVersion

STATIC = {"click": 1.0, "order": 5.0}
EVERYONE = ExploreConfig(share=1.0, allow_above_cap=True)
FEATURES = {"user": {}, "context": {"mood": "buy"}}


class Clock:
    """Seconds that pass by `step` with each look."""

    def __init__(self, step: float = 0.0) -> None:
        self.now, self.step = 0.0, step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


@dataclass
class Says:
    """A policy that says the same of every request, or does what it is told."""

    answer: Callable[[Contexts], Any]

    def weights(self, contexts: Contexts) -> Floats:
        return np.array(self.answer(contexts), np.float64)


def blender(clock: Clock | None = None, **sections: Any) -> Blender:
    config = BlenderConfig(
        weights={"default": STATIC}, scale={"order": 0.5}, learn=LearnConfig(context=("context.mood",)), **sections
    )
    clock = clock or Clock()
    return Blender(TASKS, ("home", "search"), config, clock, clock)


def ready(blend: Blender, version: int = 1, answer: Callable[[Contexts], Any] | None = None) -> ReadyVersion:
    """Weights on a scale of 0.1 and 0.01, for `home` alone; production there is 0.1 and 5 * 0.01 / 0.5 = 0.1."""
    stored = some_version(version, version - 1)
    return blend.made_ready(stored, Says(answer) if answer else policy_from_dict(stored.policy))


def test_learned_weights_serve_on_their_own_scale() -> None:
    blend = blender()
    blend.lanes = Lanes(stable=ready(blend, answer=lambda _: [[0.15, 0.05]]))
    got = blend.weights("home", "r-1", FEATURES)
    length = math.hypot(0.1, 0.1) / math.hypot(0.15, 0.05)
    assert got.weights_T.tolist() == pytest.approx([0.15 * length, 0.05 * length])
    assert got.scale_T.tolist() == [0.1, 0.01]
    assert (got.version, got.fallback, got.explore, got.is_on_trial) == (1, None, False, False)
    assert blend.version == 1


def test_learned_weights_that_are_productions_give_productions_order() -> None:
    """Step 0 of learning reproduces production: its weights, carried over to the version's scale."""
    blend, scores_NT = blender(), np.random.default_rng(0).random((200, 2)).astype(np.float32)
    before = blend.weights("home", "r")
    blend.lanes = Lanes(stable=ready(blend, answer=lambda _: [[0.7, 0.7]]))
    after = blend.weights("home", "r", FEATURES)
    assert after.version == 1 and after.scale_T.tolist() != before.scale_T.tolist()
    orders = [np.argsort(-blend.utility(scores_NT, d.weights_T, d.scale_T)).tolist() for d in (before, after)]
    assert orders[0] == orders[1]


def test_the_weights_depend_on_the_requests_features() -> None:
    blend = blender()
    asked: list[Any] = []

    def by_mood(contexts: Contexts) -> Any:
        asked.append((list(contexts.scenario), dict(contexts.columns)))
        return [[0.2, 0.1]] if contexts.columns.get("context.mood") == ["buy"] else [[0.1, 0.2]]

    blend.lanes = Lanes(stable=ready(blend, answer=by_mood))
    asked.clear()
    buy, look = (
        blend.weights("home", "r", {"context": {"mood": mood}, "user": {"city": "x"}}) for mood in ("buy", None)
    )
    assert buy.weights_T[0] > buy.weights_T[1] and look.weights_T[0] < look.weights_T[1]
    assert asked == [(["home"], {"context.mood": ["buy"]}), (["home"], {"context.mood": [None]})]


def raises(_: Contexts) -> Any:
    raise RuntimeError("nobody foresaw this")


@pytest.mark.parametrize(
    ("reason", "answer", "scenario", "features", "step"),
    [
        ("scenario", [[0.1, 0.2]], "search", FEATURES, 0.0),
        ("missing", [[0.1, 0.2]], "home", {"context": {}}, 0.0),
        ("missing", [[0.1, 0.2]], "home", None, 0.0),
        ("error", raises, "home", FEATURES, 0.0),
        ("error", [[0.1, 0.2, 0.3]], "home", FEATURES, 0.0),
        ("non_finite", [[math.nan, 0.2]], "home", FEATURES, 0.0),
        ("non_finite", [[math.inf, 0.2]], "home", FEATURES, 0.0),
        ("non_finite", [[0.0, 0.0]], "home", FEATURES, 0.0),
        ("timeout", [[0.1, 0.2]], "home", FEATURES, 0.0031),
    ],
)
def test_whatever_is_wrong_production_serves_and_says_why(
    reason: str, answer: Any, scenario: str, features: Any, step: float
) -> None:
    clock = Clock()
    blend = blender(clock, explore=EVERYONE)
    said: list[Any] = [[[0.1, 0.1]]]

    def policy(contexts: Contexts) -> Any:
        return said[0](contexts) if callable(said[0]) else said[0]

    blend.lanes = Lanes(stable=ready(blend, answer=policy))
    said[0], clock.step = answer, step
    got = blend.weights(scenario, "r-1", features)
    assert (got.fallback, got.version, got.weights_T.tolist()) == (reason, 0, [1.0, 5.0])
    assert got.scale_T.tolist() == [1.0, 0.5]
    assert not got.explore and got.center_T is None  # what fell back is never explored


def test_the_budget_is_what_the_config_says() -> None:
    clock = Clock()
    blend = blender(clock, bounds=BoundsConfig(budget_ms=3.2))
    blend.lanes = Lanes(stable=ready(blend, answer=lambda _: [[0.1, 0.2]]))
    clock.step = 0.0031
    assert blend.weights("home", "r", FEATURES).fallback is None


def test_an_adversarial_model_stays_within_the_bounds() -> None:
    blend, rng = blender(), np.random.default_rng(1)
    said: list[Any] = [[[0.1, 0.1]]]
    blend.lanes = Lanes(stable=ready(blend, answer=lambda _: said[0]))
    for _ in range(300):
        said[0] = rng.standard_normal((1, 2)) * 10.0 ** rng.integers(-6, 6)
        weights_T = blend.weights("home", "r", FEATURES).weights_T
        assert (weights_T >= 0.1 / 4 * (1 - 1e-9)).all() and (weights_T <= 0.1 * 4 * (1 + 1e-9)).all()
        assert weights_T.max() / weights_T.sum() <= 0.8 + 1e-9


def test_draws_are_made_around_the_learned_weights() -> None:
    blend = blender(explore=EVERYONE)
    blend.lanes = Lanes(stable=ready(blend, answer=lambda _: [[0.15, 0.05]]))
    got = blend.weights("home", "r-1", FEATURES)
    assert got.explore and got.version == 1 and got.center_T is not None and got.log_density is not None
    assert got.center_T.tolist() == pytest.approx([0.1 * 3 / math.sqrt(5), 0.1 / math.sqrt(5)])
    assert got.weights_T.tolist() != got.center_T.tolist()
    assert got.log_density == pytest.approx(log_density(got.weights_T, got.center_T, EVERYONE))


def test_a_version_on_trial_serves_its_share_and_the_one_before_the_others() -> None:
    blend = blender()
    stable, trial = ready(blend, 1), ready(blend, 2)
    served: dict[float, set[str]] = {}
    for share in (0.01, 0.1, 0.5):
        blend.lanes = Lanes(stable=stable, trial=trial, share=share)
        got = {f"r-{n}": blend.weights("home", f"r-{n}", FEATURES) for n in range(4_000)}
        served[share] = {name for name, one in got.items() if one.version == 2}
        assert {name for name, one in got.items() if one.is_on_trial} == served[share]
        assert {one.version for one in got.values()} == {1, 2}
        assert abs(len(served[share]) - 4_000 * share) < 4 * math.sqrt(4_000 * share)  # 4 standard deviations and more
    assert served[0.01] < served[0.1] < served[0.5]  # who has it keeps it
    assert blend.version == 2


def test_a_first_version_on_trial_stands_beside_production() -> None:
    blend = blender()
    blend.lanes = Lanes(trial=ready(blend, 1), share=0.5)
    got = [blend.weights("home", f"r-{n}", FEATURES) for n in range(200)]
    assert {(one.version, one.is_on_trial, one.fallback) for one in got} == {(0, False, None), (1, True, None)}


def test_learned_weights_are_compared_with_others_also_while_nobody_explores() -> None:
    blend = blender(explore=ExploreConfig(share=0.4, allow_above_cap=True, holdout=0.0))
    blend.explore_until_s = 0.0

    def compared() -> set[int]:
        got = [blend.weights("home", f"r-{n}", FEATURES) for n in range(200)]
        assert not any(one.explore for one in got)
        return {one.version for one in got if one.is_control}

    assert compared() == set()
    blend.lanes = Lanes(stable=ready(blend, 1), trial=ready(blend, 2), share=0.3)
    assert compared() == {1, 2}
    blend.lanes = Lanes(stable=ready(blend, 1))
    assert compared() == {1}


def test_an_explored_request_is_never_on_trial() -> None:
    blend = blender(explore=EVERYONE)
    blend.lanes = Lanes(stable=ready(blend, 1), trial=ready(blend, 2), share=0.9)
    got = [blend.weights("home", f"r-{n}", FEATURES) for n in range(200)]
    assert {(one.version, one.is_on_trial, one.explore) for one in got} == {(1, False, True)}


def test_a_holdout_of_users_keeps_the_production_weights_while_learned_ones_serve() -> None:
    explore = ExploreConfig(share=1.0, allow_above_cap=True, holdout=0.1)
    blend = blender(explore=explore)

    def served(salt_of_request: str) -> dict[str, tuple[int, bool, str | None]]:
        got = {
            f"u-{n}": blend.weights("home", f"{salt_of_request}-{n}", FEATURES, user_id=f"u-{n}") for n in range(3_000)
        }
        return {user: (one.version, one.explore, one.fallback) for user, one in got.items()}

    assert set(served("a").values()) == {(0, True, None)}  # nobody is held out of nothing
    blend.lanes = Lanes(stable=ready(blend))
    first, second = served("a"), served("b")
    assert set(first.values()) == {(0, False, None), (1, True, None)}
    assert first == second  # by user, not by request
    held_out = sum(version == 0 for version, _, _ in first.values())
    assert abs(held_out - 300) < 4 * math.sqrt(3_000 * 0.1 * 0.9)


def test_new_and_marked_users_never_explore() -> None:
    explore = ExploreConfig(share=1.0, allow_above_cap=True, min_history=3, excluding_feature="at_risk")
    blend = blender(explore=explore)

    def explores(num_actions: int, **user: Any) -> bool:
        return blend.weights("home", "r", {"user": user, "context": {}}, num_actions=num_actions).explore

    assert [explores(num) for num in (0, 2, 3, 50)] == [False, False, True, True]
    assert [explores(3, at_risk=value) for value in (None, "", 0, 0.0)] == [True] * 4
    assert [explores(3, at_risk=value) for value in ("yes", 1, "0", 0.5)] == [False] * 4
    blend.lanes = Lanes(stable=ready(blend))
    got = blend.weights("home", "r", FEATURES, user_id="u", num_actions=2)
    assert (got.version, got.explore) == (1, False)  # learned weights they do get


def test_nobody_explores_once_the_lease_has_run_out() -> None:
    clock = Clock()
    blend = blender(clock, explore=EVERYONE)
    blend.explore_until_s = 2.0
    assert blend.weights("home", "r-1").explore and blend.is_exploring
    clock.now = 2.0
    got = blend.weights("home", "r-1")
    assert not got.explore and not blend.is_exploring and got.weights_T.tolist() == [1.0, 5.0]


@pytest.mark.parametrize(
    ("change", "reason"),
    [({"tasks": ("order", "click")}, "schema"), ({"policy": {"kind": "learned"}}, "policy")],
)
def test_a_version_that_does_not_fit_is_never_made_ready(change: dict[str, Any], reason: str) -> None:
    blend, answer = blender(), Says(lambda _: [[math.nan, 1.0]])
    with pytest.raises(BlenderVersionError) as error:
        blend.made_ready(some_version(**change), answer)
    assert error.value.reason == reason
