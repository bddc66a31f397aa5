"""Task scores to one utility: `utility = sum_t w_t * score_t / scale_t`.

Shape letters: N candidates, T tasks (in the order of the schema).
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from utility_blender.bounds import BoundsConfig
from utility_blender.explore import ExploreConfig, draw, is_control, is_held_out, may_explore, request_rng
from utility_blender.gate_config import GateConfig
from utility_blender.guard import GuardConfig
from utility_blender.learn_config import LearnConfig
from utility_blender.policy import Policy
from utility_blender.reward import RewardConfig
from utility_blender.rounds import RoundsConfig
from utility_blender.serving import Fallback, Lanes, ReadyVersion, made_ready
from utility_blender.store import BlenderStoreConfig
from utility_blender.version import BlenderVersion

DEFAULT = "default"
"""Key of `weights` for scenarios without an entry of their own."""
STATIC_VERSION = 0
"""Blender version of weights that come from the config; learned ones count from 1."""
Features = Mapping[str, Mapping[str, Any]]
"""Features of a request by side and name."""


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
    guard: GuardConfig = field(default_factory=GuardConfig)
    """When exploration ends by itself, and weights in service are taken back."""
    rounds: RoundsConfig = field(default_factory=RoundsConfig)
    """How much is learned from at a time, and in which stages it goes into service."""
    bounds: BoundsConfig = field(default_factory=BoundsConfig)
    """What learned weights may not do, whatever they say."""
    store: BlenderStoreConfig = field(default_factory=BlenderStoreConfig)
    """Where learned weights and the switch of exploration are kept."""

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
    """The weights of one request, and why it has them."""

    weights_T: NDArray[np.float64]
    scale_T: NDArray[np.float64]
    """What one unit of a score is under these weights."""
    version: int = STATIC_VERSION
    """Whose weights they are, or were drawn around."""
    explore: bool = False
    """Whether the weights were drawn; then `log_density` is the natural logarithm of their density."""
    log_density: float | None = None
    center_T: NDArray[np.float64] | None = None
    """What they were drawn around; None if they were not drawn."""
    is_on_trial: bool = False
    """Whether the request is in the share of a version on trial."""
    is_control: bool = False
    """Whether what comes of the request is compared with: with explored ones, with learned or with tried weights."""
    fallback: Fallback | None = None
    """Why these are the production weights, where learned ones should have served."""


class Blender:
    """Weights by scenario, learned or the config's, drawn anew for the requests that explore.

    One thread may replace `lanes` and `explore_until_s` while others ask for weights.

    >>> config = BlenderConfig(weights={"default": {"click": 1.0, "order": 5.0}, "home": {"order": 2.0}})
    >>> blender = Blender(("click", "order"), ("home", "search"), config)
    >>> blender.weights("home", "r-1").weights_T
    array([1., 2.])
    >>> blender.utility(np.array([[0.5, 0.1], [0.1, 0.5]]), blender.weights("search", "r-1").weights_T)
    array([1. , 2.6])
    """

    def __init__(
        self,
        tasks: Sequence[str],
        scenarios: Sequence[str],
        config: BlenderConfig,
        elapsed_s: Callable[[], float] = time.perf_counter,
        busy_s: Callable[[], float] = time.thread_time,
    ) -> None:
        """Resolves the weights of every scenario.

        Args:
            tasks: In the order of the schema.
            scenarios: The listed ones.
            config: Weights, exploration, bounds.
            elapsed_s: A clock that never goes back, in seconds; for `explore_until_s`.
            busy_s: The processor time of the thread that asks, in seconds: what the time budget is about. The wall
                clock would punish learned weights for a machine that is busy with something else.

        Raises:
            ValueError: a task without a weight, a name that is no task or scenario, weights that are all zero, or a
                zero weight where exploration is on.
        """
        self.tasks = tuple(tasks)
        self.lanes = Lanes()
        """What serves; the production weights until somebody says otherwise."""
        self.explore_until_s = math.inf
        """By `elapsed_s`: from then on no request explores, until it is put off (see `ranker.blender_follow`)."""
        self.shifted: frozenset[tuple[int, str]] = frozenset()
        """Version and scenario where the scores have moved too far from those that the version was learned on."""
        self._config = config
        self._elapsed_s = elapsed_s
        self._busy_s = busy_s
        _refuse_unknown("weights", config.weights, (DEFAULT, *scenarios))
        _refuse_unknown("scale", config.scale, tasks)
        _refuse_unknown("explore.excluded_scenarios", config.explore.excluded_scenarios, scenarios)
        for scenario, weights in config.weights.items():
            _refuse_unknown(f"weights.{scenario}", weights, tasks)
        self._scale_T = np.array([config.scale.get(task, 1.0) for task in tasks])
        self._weights = {scenario: self._resolve(scenario) for scenario in scenarios}
        self._production = {scenario: Draw(weights_T, self._scale_T) for scenario, weights_T in self._weights.items()}
        self._context = [(name, *name.partition(".")[::2]) for name in config.learn.context]

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

    def weights(
        self,
        scenario: str,
        request_id: str,
        features: Features | None = None,
        *,
        user_id: str = "",
        num_actions: int = 0,
    ) -> Draw:
        """Returns the weights of a request; the same request id always gets the same draw.

        A request that explores is drawn around the stable lane: what is on trial serves as it is or not at all, and
        where learned weights should have served but could not, nothing is drawn either. Scores that have moved away
        are no such case: without exploration nobody could learn new weights.

        Args:
            scenario: Its listed scenario.
            request_id: Its id.
            features: Its features by side (`user`, `context`) and name; needed once learned weights serve.
            user_id: Its user, by whom a holdout keeps the production weights while learned ones serve.
            num_actions: Actions in the user's sequence: new users may be left out of the exploration.

        Raises:
            KeyError: a scenario the blender was not built with.
        """
        lanes, explore = self.lanes, self._config.explore
        if lanes.version and explore.holdout and is_held_out(user_id, explore):
            return replace(self._production[scenario], is_control=True)
        rng = self._rng(scenario, request_id)
        if rng is not None and not may_explore((features or {}).get("user", {}), num_actions, explore):
            rng = None
        is_on_trial = rng is None and lanes.is_on_trial(request_id)
        version = lanes.trial if is_on_trial else lanes.stable
        if version is None:
            chosen = self._production[scenario]
        elif rng is None and (version.version, scenario) in self.shifted:
            chosen = replace(self._production[scenario], fallback="shifted")
        else:
            chosen = self._learned(version, scenario, features or {}, is_on_trial=is_on_trial)
        if rng is None or chosen.fallback:
            return replace(chosen, is_control=True) if self._is_control(request_id, chosen, lanes) else chosen
        weights_T, log_density = draw(chosen.weights_T, explore, rng)
        return replace(chosen, weights_T=weights_T, explore=True, log_density=log_density, center_T=chosen.weights_T)

    def _rng(self, scenario: str, request_id: str) -> np.random.Generator | None:
        if not self._explores(scenario) or not self.is_exploring:
            return None
        return request_rng(request_id, self._config.explore)

    def _is_control(self, request_id: str, chosen: Draw, lanes: Lanes) -> bool:
        """Returns whether to compare with it. Learned weights are watched also while nobody explores."""
        if chosen.fallback:
            return False
        is_compared = self.is_exploring or lanes.version > 0
        return chosen.is_on_trial or (is_compared and is_control(request_id, self._config.explore))

    @property
    def law(self) -> ExploreConfig:
        """The law of the draws."""
        return self._config.explore

    @property
    def is_exploring(self) -> bool:
        """Whether requests explore now: the config has a share for it, and nobody has pulled the plug."""
        return self._config.explore.share > 0 and self._elapsed_s() < self.explore_until_s

    def _learned(self, version: ReadyVersion, scenario: str, features: Features, *, is_on_trial: bool) -> Draw:
        weights = version.weights(scenario, self._columns(features), self._config.bounds.budget_ms, self._busy_s)
        if isinstance(weights, str):
            return replace(self._production[scenario], is_on_trial=is_on_trial, fallback=weights)
        return Draw(weights, version.scale[scenario], version.version, is_on_trial=is_on_trial)

    def _columns(self, features: Features) -> dict[str, list[Any]] | None:
        """Returns the features the weights depend on, None if the request lacks one; null is a value like others."""
        columns = {}
        for full_name, side, name in self._context:
            of_side = features.get(side, {})
            if name not in of_side:
                return None
            columns[full_name] = [of_side[name]]
        return columns

    def made_ready(self, version: BlenderVersion, policy: Policy) -> ReadyVersion:
        """Returns a version that can be put into `lanes`.

        Raises:
            BlenderVersionError: it is made for other tasks, or gives no finite weights.
        """
        return made_ready(version, policy, self._weights, self._scale_T, self.tasks, self._config.bounds)

    @property
    def version(self) -> int:
        """Newest version that serves anybody; 0: the production weights."""
        return self.lanes.version

    def production(self, scenario: str) -> NDArray[np.float64]:
        """Returns the static weights of a scenario, weights_T.

        Raises:
            KeyError: a scenario the blender was not built with.
        """
        return self._weights[scenario]

    def utility(
        self,
        scores_NT: NDArray[Any],
        weights_T: NDArray[np.float64],
        scale_T: NDArray[np.float64] | None = None,
    ) -> NDArray[np.float64]:
        """Returns utility_N in float64; its order does not change when all weights grow by one positive factor.

        Summed per row and not with BLAS: an item's utility then depends on its own scores alone, to the last bit, and
        replaying logged weights gives the logged slate whatever else was in the batch.

        Args:
            scores_NT: Scores of the candidates.
            weights_T: Weights of the tasks.
            scale_T: What one unit of a score is; that of the config if left out.
        """
        factor_T = weights_T / (self._scale_T if scale_T is None else scale_T)
        utility_N: NDArray[np.float64] = (scores_NT * factor_T).sum(axis=1, dtype=np.float64)
        return utility_N


def _refuse_unknown(where: str, given: Mapping[str, Any] | Sequence[str], known: Sequence[str]) -> None:
    if unknown := [name for name in given if name not in known]:
        raise ValueError(f"{where}: {', '.join(unknown)} is not known; one of {', '.join(known)}")
