"""Task scores to one utility: `utility = sum_t w_t * score_t / scale_t`.

Shape letters: N candidates, T tasks (in the order of the schema).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from utility_blender.bounds import BoundsConfig
from utility_blender.explore import ExploreConfig, draw, request_rng
from utility_blender.gate_config import GateConfig
from utility_blender.learn_config import LearnConfig
from utility_blender.reward import RewardConfig

DEFAULT = "default"
"""Key of `weights` for scenarios without an entry of their own."""
STATIC_VERSION = 0
"""Blender version of weights that come from the config; learned ones count from 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlenderConfig:
    """Production weights and the exploration around them."""

    weights: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Weight of each task under `default`, and per scenario those that differ; 0 leaves a task out of the ranking."""
    scale: Mapping[str, float] = field(default_factory=dict)
    """What one unit of a task's score is: its standard deviation over candidates, above 0; 1 where not given."""
    explore: ExploreConfig = field(default_factory=ExploreConfig)
    """Exploration draws; off unless `explore.share` says otherwise."""
    reward: RewardConfig = field(default_factory=RewardConfig)
    """What each action is worth: what learned weights aim at."""
    learn: LearnConfig = field(default_factory=LearnConfig)
    """How weights are learned from explored requests; off unless `learn.method` names a way."""
    gate: GateConfig = field(default_factory=GateConfig)
    """What learned weights must prove before they serve."""
    bounds: BoundsConfig = field(default_factory=BoundsConfig)
    """What learned weights may not do, whatever they say."""

    def __post_init__(self) -> None:
        for scenario, weights in self.weights.items():
            for task, weight in weights.items():
                if not math.isfinite(weight):
                    raise ValueError(f"weights.{scenario}.{task}: {weight} is not allowed; a finite number")
        for task, scale in self.scale.items():
            if not 0 < scale < math.inf:
                raise ValueError(f"scale.{task}: {scale} is not allowed; a finite number above 0")


@dataclass(frozen=True, slots=True)
class Draw:
    """The weights of one request."""

    weights_T: NDArray[np.float64]
    explore: bool = False
    """Whether the weights were drawn; then `log_density` is the natural logarithm of their density."""
    log_density: float | None = None


class Blender:
    """Weights by scenario, drawn anew for the requests that explore.

    >>> config = BlenderConfig(weights={"default": {"click": 1.0, "order": 5.0}, "home": {"order": 2.0}})
    >>> blender = Blender(("click", "order"), ("home", "search"), config)
    >>> blender.weights("home", "r-1").weights_T
    array([1., 2.])
    >>> blender.utility(np.array([[0.5, 0.1], [0.1, 0.5]]), blender.weights("search", "r-1").weights_T)
    array([1. , 2.6])
    """

    version = STATIC_VERSION

    def __init__(self, tasks: Sequence[str], scenarios: Sequence[str], config: BlenderConfig) -> None:
        """Resolves the weights of every scenario.

        Raises:
            ValueError: a task without a weight, a name that is no task or scenario, weights that are all zero, or a
                zero weight where exploration is on.
        """
        self.tasks = tuple(tasks)
        self._config = config
        _refuse_unknown("weights", config.weights, (DEFAULT, *scenarios))
        _refuse_unknown("scale", config.scale, tasks)
        _refuse_unknown("explore.excluded_scenarios", config.explore.excluded_scenarios, scenarios)
        for scenario, weights in config.weights.items():
            _refuse_unknown(f"weights.{scenario}", weights, tasks)
        self._scale_T = np.array([config.scale.get(task, 1.0) for task in tasks])
        self._weights = {scenario: self._resolve(scenario) for scenario in scenarios}

    def _resolve(self, scenario: str) -> NDArray[np.float64]:
        """Returns the static weights of a scenario: its own over the default ones."""
        merged = {**self._config.weights.get(DEFAULT, {}), **self._config.weights.get(scenario, {})}
        if missing := [task for task in self.tasks if task not in merged]:
            raise ValueError(
                f"weights.{DEFAULT}: no weight for {', '.join(missing)} (needed by scenario {scenario}); "
                "give each task a number, 0 leaves it out of the ranking"
            )
        weights_T = np.array([float(merged[task]) for task in self.tasks])
        if not weights_T.any():
            raise ValueError(f"weights.{scenario}: all are 0; at least one task must count")
        if self._explores(scenario) and (zeros := [task for task in self.tasks if merged[task] == 0]):
            raise ValueError(
                f"weights.{scenario}.{zeros[0]}: 0 cannot be explored, a draw is a multiple of the weight and would "
                "stay 0; give it a small weight, or name the scenario in explore.excluded_scenarios"
            )
        weights_T.flags.writeable = False  # handed out to every request
        return weights_T

    def _explores(self, scenario: str) -> bool:
        explore = self._config.explore
        return explore.share > 0 and scenario not in explore.excluded_scenarios

    def weights(self, scenario: str, request_id: str) -> Draw:
        """Returns the weights of a request; the same request id always gets the same draw.

        Raises:
            KeyError: a scenario the blender was not built with.
        """
        center_T = self._weights[scenario]
        rng = request_rng(request_id, self._config.explore) if self._explores(scenario) else None
        if rng is None:
            return Draw(center_T)
        weights_T, log_density = draw(center_T, self._config.explore, rng)
        return Draw(weights_T, explore=True, log_density=log_density)

    def production(self, scenario: str) -> NDArray[np.float64]:
        """Returns the static weights of a scenario, weights_T.

        Raises:
            KeyError: a scenario the blender was not built with.
        """
        return self._weights[scenario]

    def utility(self, scores_NT: NDArray[Any], weights_T: NDArray[np.float64]) -> NDArray[np.float64]:
        """Returns utility_N in float64; its order does not change when all weights grow by one positive factor.

        Summed per row and not with BLAS: an item's utility then depends on its own scores alone, to the last bit, and
        replaying logged weights gives the logged slate whatever else was in the batch.
        """
        utility_N: NDArray[np.float64] = (scores_NT * (weights_T / self._scale_T)).sum(axis=1, dtype=np.float64)
        return utility_N


def _refuse_unknown(where: str, given: Mapping[str, Any] | Sequence[str], known: Sequence[str]) -> None:
    if unknown := [name for name in given if name not in known]:
        raise ValueError(f"{where}: {', '.join(unknown)} is not known; one of {', '.join(known)}")
