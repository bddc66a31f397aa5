"""Learning the weights: one entry for every method of `LearnConfig.method`."""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import numpy as np

from utility_blender.learn_config import LearnConfig
from utility_blender.outcomes import Outcomes
from utility_blender.policy import Policy, StaticPolicy
from utility_blender.reward import RewardConfig

FIT_PART = 5 / 7
"""Earliest part of what `fit` gets that is fitted to; the rest chooses. Of all outcomes: 50 and 20 %, the latest 30 %
being kept from `fit` altogether, for the gate."""
MIN_OUTCOMES = 200
"""Fewer outcomes than this are no ground for any weights."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """Learned weights, and how they came about."""

    policy: Policy
    report: Mapping[str, Any] = field(default_factory=dict)
    """Plain numbers, for JSON: what was tried, what was chosen, and why."""


class Method(Protocol):
    """One way to learn; same arguments as `fit`, which has checked them."""

    def __call__(
        self,
        outcomes: Outcomes,
        center: Policy,
        static: StaticPolicy,
        config: LearnConfig,
        reward: RewardConfig,
        *,
        numeric: Sequence[str],
        seed: int,
    ) -> Fitted:
        """Returns the learned weights."""


METHODS: Mapping[str, str] = {
    "reward_regression": "utility_blender.reward_regression:fit_reward_regression",
    "one_step": "utility_blender.one_step:fit_one_step",
    "static_mean": "utility_blender.reward_regression:fit_static_mean",
    "quadratic_q": "utility_blender.quadratic_q:fit_quadratic_q",
    "grid_q": "utility_blender.grid_q:fit_grid_q",
    "global": "utility_blender.global_weights:fit_global",
    "published": "utility_blender.published:fit_published",
}
"""Method -> the function that fits it, as `module:name`; imported when first asked for."""


def fit(
    outcomes: Outcomes,
    center: Policy,
    static: StaticPolicy,
    config: LearnConfig,
    reward: RewardConfig,
    *,
    numeric: Sequence[str],
    seed: int,
) -> Fitted:
    """Returns weights learned from explored requests by `config.method`.

    Args:
        outcomes: explored requests, the latest 30 % withheld by the caller; all drawn around `center`.
        center: the policy in service when they were drawn.
        static: production weights.
        config: the method and its settings.
        reward: what actions are worth.
        numeric: names in `config.context` of features that are numbers; all others are categories.
        seed: of draws, of initial networks and of the order of rows; the same seed gives the same weights.

    Raises:
        ValueError: the method is off or unknown, there is nothing to learn from, outcomes are of several blender
            versions, or the fit ran away.
    """
    if config.method not in METHODS:
        raise ValueError(f"learn.method: {config.method} is not allowed; one of {', '.join(METHODS)}")
    if not any(reward.values.get(action) for action in outcomes.actions):
        raise ValueError(f"reward.values: no action met is worth anything; met were {', '.join(outcomes.actions)}")
    if outcomes.num_requests < MIN_OUTCOMES:
        raise ValueError(f"outcomes: {outcomes.num_requests} are not enough; at least {MIN_OUTCOMES}")
    versions = sorted(set(outcomes.blender_N.tolist()))
    if len(versions) > 1:
        raise ValueError(f"outcomes: of the blender versions {versions}; give those of the one in service alone")
    module, _, name = METHODS[config.method].partition(":")
    method = cast(Method, getattr(importlib.import_module(module), name))
    return method(outcomes, center, static, config, reward, numeric=numeric, seed=seed)


def split_by_time(outcomes: Outcomes, first_part: float = FIT_PART) -> tuple[Outcomes, Outcomes]:
    """Returns the earlier `first_part` of the outcomes by event time, and the later rest."""
    order = np.argsort(outcomes.ts_ms_N, kind="stable")
    cut = round(first_part * outcomes.num_requests)
    return outcomes.take(order[:cut]), outcomes.take(order[cut:])
