"""The entry of all methods: what it refuses before anything is fitted, and how it splits."""

import re
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest

from tests.utility_blender.some_outcomes import some_outcomes
from utility_blender.fit import METHODS, fit, split_by_time
from utility_blender.learn_config import LearnConfig, MethodName, PublishedConfig
from utility_blender.outcomes import concat
from utility_blender.policy import StaticPolicy
from utility_blender.reward import RewardConfig

STATIC = StaticPolicy({name: np.array([1.0, 5.0]) for name in ("home", "search")})
REWARD = RewardConfig(values={"click": 1.0})
ONE_STEP = LearnConfig(method="one_step", context=("context.mood",))


def test_every_method_of_the_config_has_a_way_to_be_fitted() -> None:
    assert set(METHODS) == set(get_args(MethodName)) - {"off"}


def test_outcomes_are_split_by_event_time_not_by_arrival() -> None:
    outcomes = some_outcomes(70).take(np.random.default_rng(0).permutation(70))
    earlier, later = split_by_time(outcomes)
    assert (earlier.num_requests, later.num_requests) == (50, 20)
    assert earlier.ts_ms_N.max() < later.ts_ms_N.min()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config": LearnConfig()}, "learn.method: off is not allowed; one of reward_regression"),
        ({"reward": RewardConfig()}, "reward.values: no action met is worth anything; met were click, order"),
        ({"reward": RewardConfig(values={"hide": -1.0})}, "reward.values: no action met is worth anything"),
        ({"outcomes": some_outcomes(199)}, "outcomes: 199 are not enough; at least 200"),
        (
            {"outcomes": concat([some_outcomes(200), some_outcomes(200, version=3)])},
            "outcomes: of the blender versions [0, 3]; give those of the one in service alone",
        ),
        (
            {"config": replace(ONE_STEP, context=("user.age",))},
            "learn.context: user.age is not logged with outcomes; these are: context.mood",
        ),
        (
            {"outcomes": replace(some_outcomes(300), tau_N=np.full(300, np.nan))},
            "outcomes: some were not drawn by the lognormal law",
        ),
    ],
)
def test_what_cannot_be_learned_from_is_refused_in_one_line(changes: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"outcomes": some_outcomes(300), "config": ONE_STEP, "reward": REWARD, **changes}
    with pytest.raises(ValueError, match=re.escape(message)):
        fit(given["outcomes"], STATIC, STATIC, given["config"], given["reward"], numeric=(), seed=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "magic"}, "method: 'magic' is not allowed; one of off, reward_regression"),
        ({"penalties": ()}, "penalties: [] is not allowed; finite numbers above 0"),
        ({"penalties": (1.0, 0.0)}, "penalties: [1.0, 0.0] is not allowed; finite numbers above 0"),
        ({"penalties": (0.1, 1.0)}, "penalties: [0.1, 1.0] is not allowed; falling"),
        ({"max_angle": 0.0}, "max_angle: 0.0 is not allowed; a finite number above 0"),
        ({"clip": 1.0}, "clip: 1.0 is not allowed; a finite number above 1"),
        ({"strength": 0.0}, "strength: 0.0 is not allowed; in (0, 1]"),
        ({"hidden": (8, 0)}, "hidden: [8, 0] is not allowed; at least 1 each"),
        ({"own_from": 0}, "own_from: 0 is not allowed; at least 1"),
    ],
)
def test_settings_that_are_refused_say_what_is_allowed(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        LearnConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"penalty": -1.0}, "penalty: -1.0 is not allowed; a finite number, at least 0"),
        ({"hide": "away"}, "hide: 'away' is not allowed; one of literal, relabel"),
        ({"prior": "none"}, "prior: 'none' is not allowed; one of per_row, per_batch"),
        ({"row": "user"}, "row: 'user' is not allowed; one of item, request"),
    ],
)
def test_options_of_the_published_form_that_are_refused_say_what_is_allowed(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        PublishedConfig(**settings)
