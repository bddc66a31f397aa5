"""What an outcome is worth: the reward table.

Shape letters: N requests, C candidates.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np

from utility_blender.contexts import Floats
from utility_blender.outcomes import Outcomes

Aggregate = Literal["sum", "binary"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardConfig:
    """What each action is worth."""

    values: Mapping[str, float] = field(default_factory=dict)
    """Worth of one unit of an action's value by action; actions not named are worth nothing. Empty: nothing can be
    learned."""
    aggregate: Aggregate = "sum"
    """`sum`: all that the user did on the shown items counts; `binary`: each action once per request at most."""
    winsorize: float = 0.999
    """Quantile that both tails of the requests' rewards are cut to, per scenario; in (0.5, 1]; 1: not at all."""

    def __post_init__(self) -> None:
        for action, value in self.values.items():
            if not math.isfinite(value):
                raise ValueError(f"values.{action}: {value} is not allowed; a finite number")
        if self.aggregate not in get_args(Aggregate):
            raise ValueError(f"aggregate: {self.aggregate!r} is not allowed; one of {', '.join(get_args(Aggregate))}")
        if not 0.5 < self.winsorize <= 1:
            raise ValueError(f"winsorize: {self.winsorize} is not allowed; in (0.5, 1]")

    def version(self) -> str:
        """Returns 8 hex digits: another table, another version. Old outcomes are valued anew from their actions."""
        table = [sorted(self.values.items()), self.aggregate]
        return hashlib.sha256(json.dumps(table).encode()).hexdigest()[:8]


@dataclass(frozen=True, slots=True)
class Winsor:
    """Limits of the requests' rewards by scenario, frozen when they were fitted."""

    limits: Mapping[str, tuple[float, float]]

    def __call__(self, reward_N: Floats, scenario: Sequence[str]) -> Floats:
        """Returns the rewards cut to the limits of their scenario; of a scenario without limits as they are."""
        low_N, high_N = np.array([self.limits.get(name, (-math.inf, math.inf)) for name in scenario]).reshape(-1, 2).T
        cut_N: Floats = np.clip(reward_N, low_N, high_N)
        return cut_N


def fit_winsor(reward_N: Floats, scenario: Sequence[str], quantile: float) -> Winsor:
    """Returns the limits at `1 - quantile` and `quantile` of each scenario's rewards."""
    names = np.array(scenario)
    return Winsor(
        {
            str(name): (
                float(np.quantile(reward_N[names == name], 1 - quantile, method="lower")),
                float(np.quantile(reward_N[names == name], quantile, method="higher")),
            )
            for name in sorted(set(scenario))
        }
    )


def item_rewards(outcomes: Outcomes, config: RewardConfig) -> Floats:
    """Returns what came of each candidate, reward_NC; 0 where it was not shown.

    Raises:
        ValueError: `binary` rewards do not split into items.
    """
    if config.aggregate == "binary":
        raise ValueError("reward.aggregate: binary rewards do not split into items; use sum")
    reward_NC: Floats = outcomes.value_NCA @ _worth(outcomes, config)
    return reward_NC


def request_rewards(outcomes: Outcomes, config: RewardConfig) -> Floats:
    """Returns what came of each request, reward_N, not yet winsorised."""
    value_NA = outcomes.value_NCA.sum(axis=1)
    if config.aggregate == "binary":
        value_NA = np.minimum(value_NA, 1.0)
    reward_N: Floats = value_NA @ _worth(outcomes, config)
    return reward_N


def _worth(outcomes: Outcomes, config: RewardConfig) -> Floats:
    return np.array([config.values.get(action, 0.0) for action in outcomes.actions])
